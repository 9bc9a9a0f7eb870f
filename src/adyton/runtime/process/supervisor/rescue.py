"""What gets a supervisor out of a look at its guest (see `looks`) that waits for the supervisor itself, or ends it: its guest first.

A process in the middle of an execve gets its closes answered by this thread (`fuse_device`), and so is out of the way in a moment; a page
that the look itself is to read cannot be had, which is EFAULT.

All else ends the enclave. A socket's lock that a thread of the guest holds while the kernel copies for it, to or from a page that this
supervisor has to serve, is waited for without end: not even SIGKILL gets this process out of that. But it ends the guest's thread, whose wait for
the page fails, and so the lock is let go. (So no request is taken while a socket is read: who waits for one that was taken is not ended by
SIGKILL, but only by the device's end.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

from adyton.runtime.process.supervisor.fuse_device import WAIT_SECONDS, FuseDevice
from adyton.runtime.process.supervisor.looks import Looks, looks

SOON = 0.01  # seconds after which a look is attended to
LONGEST = 2.0  # seconds that a look may take once somebody attends to it


class Rescue:
    """`pidfd`: of the guest's process with which all others end. `start` it before all other threads, which have to leave SIGALRM to it."""

    def __init__(self, pidfd: int, device: FuseDevice, at: Looks = looks) -> None:
        self._pidfd = pidfd
        self._device = device
        self._looks = at

    def start(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        self._looks.alarm_after = SOON
        threading.Thread(target=self._run, name="adyton-rescue", daemon=True).start()

    def _run(self) -> None:
        while True:
            signal.sigwait({signal.SIGALRM})
            self._attend_to(self._looks.under_way)

    def _attend_to(self, look: int) -> None:
        deadline = time.monotonic() + LONGEST
        while self._looks.meanwhile(look, self._help):
            if time.monotonic() >= deadline:
                self._end()
            if self._looks.can_be_helped:
                self._device.wait()
            else:  # requests may be waiting, which are not for this thread
                time.sleep(WAIT_SECONDS)

    def _help(self) -> None:
        if self._looks.can_be_helped:
            self._device.serve_looks()

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._device.close()
        os.kill(os.getpid(), signal.SIGKILL)
