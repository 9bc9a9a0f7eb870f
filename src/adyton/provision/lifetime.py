"""What ends a server process: a signal, a session that is over, or the process that it was started for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable

_WAKE_UPS = frozenset(bytes([number]) for number in signal.valid_signals())  # what Python writes: none is a letter


class Stop:
    """A latch that signals, threads and dying parents can set; the main thread waits for it."""

    def __init__(self) -> None:
        self.interrupted = False  # by SIGINT, which is Ctrl-C
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)

    def set(self, why: bytes = b"f") -> None:
        """End the wait; safe in a signal handler. `why`: one byte."""
        try:
            os.write(self._writing, why)
        except BlockingIOError:
            pass  # it has been said often enough

    def on_signals(self, numbers: Iterable[signal.Signals] = (signal.SIGTERM, signal.SIGINT)) -> None:
        """Set it, with b"s", at these signals; call this from the main thread. Until `close` no other wake-up descriptor can be had."""

        def stop(number: int, _: object) -> None:
            self.interrupted = self.interrupted or number == signal.SIGINT
            self.set(b"s")

        # Python's handlers run in the main thread, which waits in `wait`; but the kernel may give the signal to another one (of a process
        # that goes on after SIGSTOP it does), and then only this descriptor wakes the main thread.
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, stop)

    def on_end_of(self, descriptor: int) -> None:
        """Set it, with b"p", when the other end of a pipe is closed, which the end of its process does."""

        def watch() -> None:
            while os.read(descriptor, 64):
                pass
            os.close(descriptor)
            self.set(b"p")

        threading.Thread(target=watch, name="adyton-parent", daemon=True).start()

    def wait(self) -> bytes:
        """Block until it is set; why."""
        while (why := os.read(self._reading, 1)) in _WAKE_UPS:
            pass  # the handler runs now, and says b"s"
        return why

    def close(self) -> None:
        if threading.current_thread() is threading.main_thread():
            woken = signal.set_wakeup_fd(-1)
            if woken != self._writing:
                signal.set_wakeup_fd(woken)
        os.close(self._reading)
        os.close(self._writing)
