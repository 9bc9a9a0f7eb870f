"""A timer that one process puts off again and again, and that others see when it does so no more: it was stopped, or hangs. timerfd_create(2)."""

from __future__ import annotations

import contextlib
import os
import struct
import time

from adyton.runtime.process.libc import system_call

# struct itimerspec: the interval, for repetition, and the time until then, in seconds and nanoseconds
_TIME = struct.Struct("qqqq")


class DeadMansSwitch:
    """`descriptor`, which those who watch inherit, and only poll: readable from when `put_off` was due again. OSError: not to be had."""

    def __init__(self) -> None:
        self.descriptor = system_call("timerfd_create", time.CLOCK_MONOTONIC, os.O_CLOEXEC | os.O_NONBLOCK)

    def put_off(self, seconds: float) -> None:
        """By so much from now."""
        whole, part = divmod(round(seconds * 1e9), 10**9)
        with contextlib.suppress(OSError):
            system_call("timerfd_settime", self.descriptor, 0, _TIME.pack(0, 0, whole, part), None)

    def close(self) -> None:
        os.close(self.descriptor)
