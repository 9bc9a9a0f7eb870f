"""The files that an enclave has open on its client, by the handle that it chose for each."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from adyton.hostcall import abi
from adyton.hostcall.client.holds import Holds


@dataclass
class OpenFile:
    """`writable`: the policy lets its content and attributes be changed; `users`: threads at work on it.

    `locks`: what `lock_calls` knows the locks by that were taken through it.
    """

    descriptor: int
    path: str
    access: abi.OpenMode
    writable: bool
    append: bool = False
    locks: set[tuple[int, int, int]] = field(default_factory=set)
    users: int = 0
    closed: bool = False


class OpenFiles:
    """At most abi.HANDLE_LIMIT at a time (EMFILE). Thread-safe."""

    def __init__(self) -> None:
        self.holds = Holds()
        self._lock = threading.Lock()
        self._files: dict[int, OpenFile] = {}

    def require_free(self, handle: int) -> None:
        """EINVAL if the handle is in use, EMFILE if there are too many."""
        with self._lock:
            self._require_free(handle)

    def _require_free(self, handle: int) -> None:
        if handle in self._files:
            raise OSError(errno.EINVAL, "the handle is in use")
        if len(self._files) >= abi.HANDLE_LIMIT:
            raise OSError(errno.EMFILE, "too many open files")

    def add(self, handle: int, file: OpenFile) -> None:
        """It is open from now on, and closed with this; the same errors, and then the descriptor stays the caller's."""
        with self._lock:
            self._require_free(handle)
            self._files[handle] = file

    @contextmanager
    def using(self, handle: int) -> Iterator[OpenFile]:
        """The open file of a handle, which stays open until the end of the block even if it is closed meanwhile. EBADF."""
        with self._lock:
            file = self._files.get(handle)
            if file is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            file.users += 1
        try:
            yield file
        finally:
            with self._lock:
                file.users -= 1
                last = file.closed and file.users == 0
            if last:
                os.close(file.descriptor)

    def close(self, handle: int) -> OpenFile:
        """Give the handle back; what the operating system says of the file, unless somebody is still at work on it. EBADF."""
        with self._lock:
            file = self._files.pop(handle, None)
            if file is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self.holds.release(handle)
            file.closed = True
            if file.users:
                return file  # the last of them closes it
        os.close(file.descriptor)
        return file

    def close_all(self) -> None:
        """At the end, when nobody is at work on any."""
        with self._lock:
            files = list(self._files.values())
            self._files.clear()
        self.holds.close()
        for file in files:
            with suppress(OSError):  # what a late write met; nobody is left to tell
                os.close(file.descriptor)
