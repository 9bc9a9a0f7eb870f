"""The program's main thread between calls: it waits for signals, and for the calls of one of the client's threads.

Only the main thread may set signal handlers, and there they run (signal(2) of Python); and what a module made when it was imported may
be for the thread that made it, as SQLite's connections are. So the first client thread that calls has this thread for its pair. All
others have threads of their own, also after its end: what is local to a thread must not go from one of them to another.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable

from adyton.runtime.process.guest.link import Enter, GuestLink, HostReturn

_MOMENT = 10  # milliseconds that it waits for a call before it has other threads' signals wake it: in a row of calls, there is one by then


class MainThread:
    """Made by the thread that will `serve`; all else may be called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._woken, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._link: GuestLink | None = None
        self._taken = False
        self._step: Callable[[], None] | None = None
        self._busy = False
        self._closed = False
        self._poller = select.poll()
        self._poller.register(self._woken, select.POLLIN)
        self._polled: GuestLink | None = None  # beside that
        self._is_main = threading.current_thread() is threading.main_thread()
        self._programs_own = -1
        self._watches = False  # signals

    def _watch_signals(self) -> None:
        """Whichever thread the kernel gives a signal to, this one is woken."""
        self._watches = True
        if self._is_main:
            self._programs_own = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)

    def _let_program_watch(self) -> None:
        """As before its last call, that is not at all, or as a library of the program's has it."""
        if not self._watches:
            return
        self._watches = False
        if self._is_main:
            with contextlib.suppress(OSError, ValueError):  # it was closed
                signal.set_wakeup_fd(-1)
                signal.set_wakeup_fd(self._programs_own)

    def take(self, link: GuestLink) -> bool:
        """Whether this thread takes the calls on that link from now on: it is the first."""
        with self._lock:
            if self._taken:
                return False
            self._link, self._taken = link, True
            self._wake()
            return True

    def run(self, step: Callable[[], None]) -> bool:
        """Whether this thread runs that: it is not in a call."""
        with self._lock:
            if self._busy:
                return False
            self._step = step
            self._wake()
            return True

    def close(self) -> None:
        """End `serve`, if no call is under way."""
        with self._lock:
            self._closed = True
            self._wake()

    def _wake(self) -> None:
        if self._waker >= 0:
            with contextlib.suppress(BlockingIOError):
                os.write(self._waker, b"\0")

    def serve(
        self, answer: Callable[[GuestLink, Enter | HostReturn], None], ended: Callable[[GuestLink], None]
    ) -> None:
        """Until `close`. `answer` each call on the link; `ended`: the supervisor closed it."""
        try:
            while not self._closed:
                self._turn(answer, ended)
        finally:
            if self._link is not None:
                ended(self._link)
            with self._lock:
                os.close(self._woken)
                os.close(self._waker)
                self._waker = -1

    def _turn(
        self, answer: Callable[[GuestLink, Enter | HostReturn], None], ended: Callable[[GuestLink], None]
    ) -> None:
        link = self._link
        if link is not self._polled:
            assert link is not None
            self._poller.register(link, select.POLLIN)
            self._polled = link
        ready = dict(self._poller.poll(None if self._watches else _MOMENT))
        if not ready:
            self._watch_signals()
            return
        if self._woken in ready:
            os.read(self._woken, 4096)  # the program's signal handlers run now
        with self._lock:
            step, self._step = self._step, None
            # What else has become ready is the link.
            called = step is None and link is not None and len(ready) > (self._woken in ready)
            self._busy = called
        if step is not None:
            step()
        elif called and link is not None:
            message = link.receive()
            self._let_program_watch()
            if message is not None:
                answer(link, message)
            with self._lock:
                self._busy = False
                self._link = None if message is None else link
            if message is None:
                self._poller.unregister(link)
                self._polled = None
                ended(link)
