"""Looks at the guest, each of which may have to wait for what this very process serves: its memory, its descriptors, its end of a socket.

A page of its memory may be of a file that is served here. A socket is locked by who reads it while the kernel copies what is read to such
a page. And nobody's memory or descriptors can be had while execve closes what is not to be inherited: it holds exec_update_lock, and each
close of a file that is served here asks this process (FUSE_FLUSH). The kernel has no call that would only try; nothing but the process's
end gets it out of such a wait. So a timer runs meanwhile, and another thread attends to looks that take long: see `rescue`.
Sources: process_vm_readv(2), pidfd_getfd(2); in the kernel, begin_new_exec of fs/exec.c, mm_access of kernel/fork.c, fuse_flush of
fs/fuse/file.c, which no signal ends.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Literal


class Looks:
    """Those of this process, which has one timer: one thread has them, one after the other. `with` it, each."""

    def __init__(self) -> None:
        self._begun = 0  # looks, ever
        self._lock = threading.Lock()
        self.under_way = 0  # the number of the one that is; 0: there is none
        self.can_be_helped = True  # what it waits for is no lock of a socket
        self.alarm_after = 0.0  # seconds, of a look, which takes microseconds; 0: nobody attends to any

    def __enter__(self) -> None:
        self._begun += 1
        self.under_way = self._begun
        signal.setitimer(signal.ITIMER_REAL, self.alarm_after)

    def __exit__(self, *_: object) -> Literal[False]:
        signal.setitimer(signal.ITIMER_REAL, 0)
        with self._lock:
            self.under_way = 0
        return False

    def meanwhile(self, look: int, step: Callable[[], None]) -> bool:
        """For another thread: do something while that look goes on, which does not end before it is done. False: it is over, and nothing was done."""
        with self._lock:
            if not look or self.under_way != look:
                return False
            step()
        return True


looks = Looks()


def looking() -> Looks:
    """While memory of the guest is copied, or its descriptors are looked at or fetched."""
    looks.can_be_helped = True
    return looks


def copying() -> Looks:
    """While its end of a socket is read."""
    looks.can_be_helped = False
    return looks
