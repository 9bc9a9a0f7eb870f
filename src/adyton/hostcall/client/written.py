"""Where an enclave has changed files: the file systems that are written out when it asks for that, as syncfs(2) does for any program."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from adyton.hostcall.client.openat import ConfinedTree
from adyton.hostcall.client.paths import split

MAX_NOTED = 1024  # directories, until it is looked on which file systems they are

_libc = ctypes.CDLL(None, use_errno=True)


class Written:
    """See the module. Thread-safe."""

    def __init__(self, tree: ConfinedTree) -> None:
        self._tree = tree
        self._lock = threading.Lock()
        self._directories: set[str] = set()
        self._devices: dict[int, str] = {}  # a directory of each file system

    def note(self, path: str) -> None:
        """Something at the path, which the policy lets it change, may be another from now on."""
        with self._lock:
            self._directories.add(split(path)[0])
            if len(self._directories) > MAX_NOTED:
                self._gather()

    def _gather(self) -> None:
        for directory in self._directories:
            with self._opened(directory) as descriptor:
                self._devices[os.fstat(descriptor).st_dev] = directory
        self._directories.clear()

    @contextmanager
    def _opened(self, directory: str) -> Iterator[int]:
        """A descriptor of the directory; of the nearest one above it where that is not there, or not any more."""
        while True:
            try:
                descriptor = self._tree.list_directory(directory)
                break
            except OSError:
                if directory == "/":
                    raise
                directory = split(directory)[0]
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        """All that has been changed is durable; what fails is tried again the next time. OSError of the first that fails."""
        with self._lock:
            self._gather()
            devices, self._devices = self._devices, {}
        failed: OSError | None = None
        for device, directory in devices.items():
            try:
                self._sync(directory)
            except OSError as error:
                failed = failed or error
                with self._lock:
                    self._devices.setdefault(device, directory)
        if failed is not None:
            raise failed

    def _sync(self, directory: str) -> None:
        with self._opened(directory) as descriptor:
            if _libc.syncfs(ctypes.c_int(descriptor)) < 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
