"""Host calls on open files."""

from __future__ import annotations

import errno
import os
import stat

from adyton.hostcall import abi
from adyton.hostcall.client.attributes import attributes_of
from adyton.hostcall.client.handlers import Handlers
from adyton.hostcall.client.open_files import OpenFile, OpenFiles
from adyton.hostcall.client.places import Places

ACCESS_FLAGS = {"read": os.O_RDONLY, "write": os.O_WRONLY, "read-write": os.O_RDWR}
_SET_ID = stat.S_ISUID | stat.S_ISGID


class FileCalls:
    """What an open file may be used for is decided when it is opened."""

    def __init__(self, places: Places, files: OpenFiles) -> None:
        self._places = places
        self._tree = places.tree
        self._files = files

    @property
    def handlers(self) -> Handlers:
        return {
            abi.Open: ("open", self._open),
            abi.Read: ("read", self._read),
            abi.Write: ("write", self._write),
            abi.Sync: ("fsync", self._sync),
            abi.Close: ("close", self._close),
        }

    def _open(self, request: abi.Open) -> abi.Result:
        writes = request.access != "read" or request.create or request.truncate
        path = self._places.followed(request.path, "write" if writes else "read")
        self._files.require_free(request.handle)
        if request.create and request.mode & _SET_ID:
            raise PermissionError(errno.EPERM, "an enclave makes no set-user-id or set-group-id files")
        flags = ACCESS_FLAGS[request.access]
        flags |= os.O_CREAT if request.create else 0
        flags |= os.O_EXCL if request.create and request.exclusive else 0
        flags |= os.O_TRUNC if request.truncate else 0
        flags |= os.O_APPEND if request.append else 0
        return self._opened(request.handle, request.path, self._tree.open_file(path, flags, request.mode))

    def _opened(self, handle: int, path: str, descriptor: int) -> abi.Attributes:
        try:
            attributes = attributes_of(os.fstat(descriptor))
            self._files.add(handle, OpenFile(descriptor, path, self._places.writable(path)))
        except OSError:
            os.close(descriptor)
            raise
        return attributes

    def _read(self, request: abi.Read) -> abi.Result:
        with self._files.using(request.handle) as file:
            data = os.pread(file.descriptor, request.size, request.offset)
            while data and len(data) < request.size:
                more = os.pread(file.descriptor, request.size - len(data), request.offset + len(data))
                if not more:
                    break
                data += more
        return abi.Data(data)

    def _write(self, request: abi.Write) -> abi.Result:
        written = 0
        with self._files.using(request.handle) as file, memoryview(request.data) as data:
            while True:
                try:
                    written += os.pwrite(file.descriptor, data[written:], request.offset + written)
                except OSError:
                    if not written:
                        raise
                    break
                if written == len(data):
                    break
        return abi.Written(written)

    def _sync(self, request: abi.Sync) -> abi.Result:
        with self._files.using(request.handle) as file:
            (os.fdatasync if request.data_only else os.fsync)(file.descriptor)
        return abi.Done()

    def _close(self, request: abi.Close) -> abi.Result:
        self._files.close(request.handle)
        return abi.Done()
