"""memfd_create: an unnamed file on the file system that the guest has at /dev/shm, whose size is bounded.

The kernel's own is bounded by nothing, and can be kept where nobody sees it: on its way through a socket, or mapped by a single page. What
this one has not is seals.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping

from adyton.runtime.process.supervisor.notifications import GoneError, Listener, Note

# linux/memfd.h: CLOEXEC, ALLOW_SEALING, NOEXEC_SEAL, EXEC. Not HUGETLB, and with it a size.
_CLOEXEC = 1
_FLAGS = _CLOEXEC | 2 | 8 | 16


class MemoryFiles:
    """`directory`: a descriptor of the file system's root, its owner's to close."""

    def __init__(self, listener: Listener, directory: int) -> None:
        self._listener = listener
        self._directory = directory
        self.handlers: Mapping[str, Callable[[Note], None]] = {"memfd_create": self._create}

    def _create(self, note: Note) -> None:
        flags = note.argument(1)
        try:
            if flags & ~_FLAGS:
                raise OSError(errno.EINVAL, "huge pages, or flags that there are not")
            file = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o777, dir_fd=self._directory)
            try:
                self._listener.give(note, file, close_on_exec=bool(flags & _CLOEXEC))
            finally:
                os.close(file)
        except GoneError:
            raise
        except OSError as error:
            self._listener.answer(note, error=error.errno or errno.ENOMEM)
