"""What number a thread of the guest has there, told from the one that it has here.

The filter's listener gives the second; the guest's /proc, the only one that a supervisor has, knows the first. Both are in
/proc/self/fdinfo/N of a descriptor N that is a pidfd: what the opened file says is of what has that number by then. proc_pid_fdinfo(5), pidfd_open(2).
"""

from __future__ import annotations

import os

_THREAD = os.O_EXCL  # PIDFD_THREAD, Linux 6.9
_SIZE = 4096  # bytes, of which these files have some hundred


class ThreadNumbers:
    """Made while this process's own /proc can be reached."""

    def __init__(self) -> None:
        self._slot = os.pidfd_open(os.getpid())
        self._told: int | None = None
        try:
            self._told = os.open(f"/proc/self/fdinfo/{self._slot}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # whose /proc it is differs
            pass

    def inside(self, thread: int) -> int | None:
        """The number in the innermost pid namespace; None if it cannot be told: there is no such thread, or it is not its process's first (before Linux 6.9)."""
        if self._told is None:
            return None
        try:
            pidfd = _open(thread)
            try:
                os.dup2(pidfd, self._slot, inheritable=False)
            finally:
                os.close(pidfd)
            return numbered(os.pread(self._told, _SIZE, 0))
        except OSError:
            return None


def numbered(info: bytes) -> int | None:
    """The last number in the line NSpid; None: there is no such line, or no process any more."""
    for line in info.splitlines():
        name, _, numbers = line.partition(b":")
        if name == b"NSpid" and (words := numbers.split()) and words[-1].isdigit():
            return int(words[-1]) or None
    return None


def _open(thread: int) -> int:
    try:
        return os.pidfd_open(thread, _THREAD)
    except OSError:
        return os.pidfd_open(thread)
