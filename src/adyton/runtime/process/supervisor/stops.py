"""A guest whose first process is stopped by a signal, and does not go on, ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from adyton.runtime.process.supervisor.loop import Callback, Loop


class Stops:
    """Of the process behind `pidfd`, a child of this one; `end` is called with the reason when it stands still for `patience` seconds."""

    def __init__(self, loop: Loop, pidfd: int, end: Callable[[str], None], patience: float) -> None:
        self._loop = loop
        self._pidfd = pidfd
        self._end = end
        self._patience = patience

    def begin(self, guarded: Callable[[Callback], Callback]) -> None:
        """Look from now on. SIGCHLD tells of stops and continuations, too."""
        woken, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)

        def changed() -> None:
            os.read(woken, 4096)
            self._look()

        self._loop.read(woken, guarded(changed))
        self._look()  # what has happened before

    def _look(self) -> None:
        kinds = os.WSTOPPED | os.WCONTINUED | os.WNOHANG
        try:
            while (status := os.waitid(os.P_PIDFD, self._pidfd, kinds)) is not None:
                stands = status.si_code != os.CLD_CONTINUED
                self._loop.alarm(self._patience, self._too_long if stands else None)
        except ChildProcessError:
            pass  # it has ended, which is seen elsewhere

    def _too_long(self) -> None:
        self._end(
            f"the enclave was ended: a signal stopped its process, which did not go on within {self._patience:g} s"
        )
