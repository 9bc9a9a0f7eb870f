"""What ends a supervisor that waits for itself, see notifications.copying: its guest is ended first.

A lock that a thread of the guest holds while the kernel copies for it, to or from a page that this supervisor has to serve, is waited for
without end: not even SIGKILL gets this process out of that. But it ends the guest's thread, whose wait for the page fails, and so
the lock is let go. Then this process ends, as it does where it is the one that waits for a page.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading


class Rescue:
    """`pidfd`: of the guest's process with which all others end. `start` it before all other threads, which have to leave SIGALRM to it."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd

    def start(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        threading.Thread(target=self._run, name="adyton-rescue", daemon=True).start()

    def _run(self) -> None:
        signal.sigwait({signal.SIGALRM})
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
