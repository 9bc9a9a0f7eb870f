"""Host calls on open files."""

from __future__ import annotations

import errno
import os
import stat

from adyton.durable import sync_folder
from adyton.hostcall import abi
from adyton.hostcall.client import openat
from adyton.hostcall.client.attributes import attributes_of_open, time_of
from adyton.hostcall.client.handlers import Handlers
from adyton.hostcall.client.lock_calls import LockCalls
from adyton.hostcall.client.open_files import OpenFile, OpenFiles
from adyton.hostcall.client.paths import split
from adyton.hostcall.client.places import Places, Refused
from adyton.hostcall.client.policy import Denied

ACCESS_FLAGS = {"read": os.O_RDONLY, "write": os.O_WRONLY, "read-write": os.O_RDWR}


class FileCalls:
    """What an open file may be used for is decided when it is opened."""

    def __init__(self, places: Places, files: OpenFiles, locks: LockCalls) -> None:
        self._places = places
        self._tree = places.tree
        self._files = files
        self._locks = locks

    @property
    def handlers(self) -> Handlers:
        return {
            abi.Open: ("open", self._open),
            abi.OpenUnnamed: ("open", self._open_unnamed),
            abi.OpenAgain: ("open", self._open_again),
            abi.Read: ("read", self._read),
            abi.Write: ("write", self._write),
            abi.Seek: ("lseek", self._seek),
            abi.Allocate: ("fallocate", self._allocate),
            abi.Copy: ("copy_file_range", self._copy),
            abi.Sync: ("fsync", self._sync),
            abi.Close: ("close", self._close),
        }

    def _open(self, request: abi.Open) -> abi.Result:
        writes = request.access != "read" or request.create or request.truncate
        path = self._places.followed(request.path, "write" if writes else "read")
        self._files.require_free(request.handle)
        if request.create:
            openat.check_set_id(stat.S_IFREG, request.mode)
        flags = ACCESS_FLAGS[request.access]
        flags |= os.O_CREAT if request.create else 0
        flags |= os.O_EXCL if request.create and request.exclusive else 0
        flags |= os.O_TRUNC if request.truncate else 0
        flags |= os.O_APPEND if request.append else 0
        descriptor = self._tree.open_file(path, flags, request.mode, request.umask)
        if request.create and self._places.policy.is_container(request.path):
            try:
                if not os.fstat(descriptor).st_size:
                    self._sync_names_beside(path)
            except OSError:
                os.close(descriptor)
                raise
        return self._opened(request, descriptor)

    def _sync_names_beside(self, path: str) -> None:
        directory = self._tree.list_directory(split(path)[0])
        try:
            sync_folder(directory)
        finally:
            os.close(directory)

    def _open_unnamed(self, request: abi.OpenUnnamed) -> abi.Result:
        path = self._places.followed(request.path, "write")
        self._files.require_free(request.handle)
        openat.check_set_id(stat.S_IFREG, request.mode)
        flags = ACCESS_FLAGS[request.access]
        flags |= 0 if request.linkable else os.O_EXCL
        flags |= os.O_APPEND if request.append else 0
        return self._opened(request, self._tree.open_unnamed(path, flags, request.mode, request.umask))

    def _open_again(self, request: abi.OpenAgain) -> abi.Result:
        """Under the rights of the path by which it was opened first, and the file's own permissions."""
        self._files.require_free(request.handle)
        with self._files.using(request.opened) as file:
            if (request.access != "read" or request.truncate) and not file.writable:
                raise Refused(Denied("write", file.path))
            flags = ACCESS_FLAGS[request.access] | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
            flags |= os.O_TRUNC if request.truncate else 0
            flags |= os.O_APPEND if request.append else 0
            descriptor = os.open(openat.by_descriptor(file.descriptor), flags)
            return self._opened(request, descriptor, file.path)

    def _opened(
        self, request: abi.Open | abi.OpenUnnamed | abi.OpenAgain, descriptor: int, path: str | None = None
    ) -> abi.Attributes:
        """`path`: by which it was allowed, if that is not the request's."""
        path = request.path if path is None else path
        try:
            attributes = attributes_of_open(descriptor)
            writable = self._places.writable(path)
            self._files.add(request.handle, OpenFile(descriptor, path, request.access, writable, request.append))
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
                if written == len(data) or file.append:
                    break  # what is left would be appended behind what others wrote meanwhile
            status = os.fstat(file.descriptor)
        return abi.Written(written, time_of(status.st_mtime_ns), time_of(status.st_ctime_ns))

    def _seek(self, request: abi.Seek) -> abi.Result:
        with self._files.using(request.handle) as file:
            whence = os.SEEK_DATA if request.what == "data" else os.SEEK_HOLE
            return abi.Position(os.lseek(file.descriptor, request.offset, whence))  # reads and writes have places

    def _allocate(self, request: abi.Allocate) -> abi.Result:
        with self._files.using(request.handle) as file:
            openat.allocate(file.descriptor, request.way, request.offset, request.size)
        return abi.Done()

    def _copy(self, request: abi.Copy) -> abi.Result:
        with self._files.using(request.source) as source, self._files.using(request.target) as target:
            if target.append:
                raise OSError(errno.EBADF, "the place of a copy is not the end")
            copied = os.copy_file_range(
                source.descriptor, target.descriptor, request.size, request.source_offset, request.target_offset
            )
        return abi.Copied(copied)

    def _sync(self, request: abi.Sync) -> abi.Result:
        with self._files.using(request.handle) as file:
            (os.fdatasync if request.data_only else os.fsync)(file.descriptor)
        return abi.Done()

    def _close(self, request: abi.Close) -> abi.Result:
        self._locks.forget(self._files.close(request.handle))
        return abi.Done()
