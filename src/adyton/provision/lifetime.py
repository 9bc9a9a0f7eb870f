"""What ends a server process: a signal, a session that is over, or the process that it was started for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable


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
        """Set it, with b"s", at these signals; call this from the main thread."""

        def stop(number: int, _: object) -> None:
            self.interrupted = self.interrupted or number == signal.SIGINT
            self.set(b"s")

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
        return os.read(self._reading, 1)

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)
