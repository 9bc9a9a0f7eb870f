"""Whether a thread of the guest has a socket under a descriptor's number, by the link in its /proc: without having what is there.

    /proc/THREAD/fd/N ──► socket:[inode]

It is true of the moment of the look, and no promise: the guest can put something else there. Source: proc_pid_fd(5).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable

KEPT = 64  # directories
_SOCKET = "socket:["


class Links:
    """`inside`: see thread_numbers.ThreadNumbers; `proc`: the guest's, by whose numbers that tells of threads."""

    def __init__(self, inside: Callable[[int], int | None], proc: str) -> None:
        self._inside = inside
        self._proc = proc
        self._kept: OrderedDict[int, int] = OrderedDict()  # thread, as this process numbers it → its directory

    def is_socket(self, thread: int, descriptor: int, check: Callable[[], None]) -> bool | None:
        """Of a thread that waits as long as `check` raises nothing. None: it cannot be told, or there is nothing.

        A directory that was opened is of that thread for ever, and empty once it has ended: whoever has its number then is looked for anew.
        """
        directory = self._kept.get(thread)
        if directory is not None:
            found = _is_socket(descriptor, directory)
            if found is not None:
                return found
            os.close(self._kept.pop(thread))
        inside = self._inside(thread)
        if inside is None:
            return None
        try:
            directory = os.open(f"{self._proc}/{inside}/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            check()  # so it was its number all the time
        except BaseException:
            os.close(directory)
            raise
        self._kept[thread] = directory
        if len(self._kept) > KEPT:
            os.close(self._kept.popitem(last=False)[1])
        return _is_socket(descriptor, directory)


def _is_socket(descriptor: int, directory: int) -> bool | None:
    try:
        return os.readlink(str(descriptor), dir_fd=directory).startswith(_SOCKET)
    except OSError:
        return None
