"""Host calls on the attributes of files, extended ones too, by path or by handle.

Of extended attributes there are those whose names begin with "user." (EOPNOTSUPP for others): the rest are the machine's, such as
capabilities, access control lists and labels.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from adyton.hostcall import abi
from adyton.hostcall.check import extended_name
from adyton.hostcall.client import openat
from adyton.hostcall.client.attributes import attributes_at, attributes_of_open
from adyton.hostcall.client.handlers import Handlers
from adyton.hostcall.client.open_files import OpenFiles
from adyton.hostcall.client.places import Places, Refused
from adyton.hostcall.client.policy import Denied, PathRight


class AttributeCalls:
    """See the module."""

    def __init__(self, places: Places, files: OpenFiles) -> None:
        self._places = places
        self._tree = places.tree
        self._files = files

    @property
    def handlers(self) -> Handlers:
        return {
            abi.Stat: ("stat", self._stat),
            abi.StatFileSystem: ("statfs", self._stat_file_system),
            abi.GetExtended: ("getxattr", self._get_extended),
            abi.ListExtended: ("listxattr", self._list_extended),
            abi.SetExtended: ("setxattr", self._set_extended),
            abi.RemoveExtended: ("removexattr", self._remove_extended),
            abi.SetAttributes: ("setattr", self._set_attributes),
        }

    def _stat(self, request: abi.Stat) -> abi.Result:
        if request.handle is not None:
            with self._files.using(request.handle) as file:
                return attributes_of_open(file.descriptor, birth=request.birth)
        path = self._places.enterable(request.path)
        if request.birth:
            with self._tree.found(path) as descriptor:
                return attributes_of_open(descriptor, birth=True)
        with self._tree.parent(path) as (directory, name):
            return attributes_at(directory, name)

    def _stat_file_system(self, request: abi.StatFileSystem) -> abi.Result:
        with self._tree.parent(self._places.allowed(request.path, "read")) as (directory, _):
            status = os.fstatvfs(directory)
        return abi.FileSystem(
            block_size=status.f_frsize or status.f_bsize,
            blocks=status.f_blocks,
            free=status.f_bfree,
            available=status.f_bavail,
            files=status.f_files,
            files_free=status.f_ffree,
        )

    def _set_attributes(self, request: abi.SetAttributes) -> abi.Result:
        if request.handle is not None:
            with self._files.using(request.handle) as file:
                if not file.writable:
                    raise Refused(Denied("write", file.path))
                return _set_open(file.descriptor, request)
        path = self._places.allowed(request.path, "write")
        if request.size is not None:
            descriptor = self._tree.open_file(path, os.O_WRONLY)
            try:
                os.ftruncate(descriptor, request.size)
            finally:
                os.close(descriptor)
        with self._tree.parent(path) as (directory, name):
            if request.mode is not None:
                openat.set_mode(directory, name, request.mode)
            if request.accessed is not None or request.modified is not None:
                openat.set_times(directory, name, request.accessed, request.modified)
            return attributes_at(directory, name)

    # -- extended attributes ------------------------------------------------------------------------------------------

    @contextmanager
    def _extended(self, path: str, handle: int | None, right: PathRight) -> Iterator[str]:
        """A path by which the file's extended attributes can be reached, itself if it is a symbolic link."""
        if handle is not None:
            with self._files.using(handle) as file:
                if right == "write" and not file.writable:
                    raise Refused(Denied("write", file.path))
                yield openat.by_descriptor(file.descriptor)
        else:
            with self._tree.found(self._places.allowed(path, right)) as descriptor:
                yield openat.by_descriptor(descriptor)

    def _get_extended(self, request: abi.GetExtended) -> abi.Result:
        _check_extended(request.name)
        with self._extended(request.path, request.handle, "read") as path:
            return abi.Data(os.getxattr(path, request.name))

    def _list_extended(self, request: abi.ListExtended) -> abi.Result:
        with self._extended(request.path, request.handle, "read") as path:
            return abi.Names([name for name in os.listxattr(path) if extended_name(name)])

    def _set_extended(self, request: abi.SetExtended) -> abi.Result:
        _check_extended(request.name)
        with self._extended(request.path, request.handle, "write") as path:
            os.setxattr(path, request.name, request.value, _HOW[request.how])
        return abi.Done()

    def _remove_extended(self, request: abi.RemoveExtended) -> abi.Result:
        _check_extended(request.name)
        with self._extended(request.path, request.handle, "write") as path:
            os.removexattr(path, request.name)
        return abi.Done()


_HOW = {"set": 0, "create": os.XATTR_CREATE, "replace": os.XATTR_REPLACE}


def _check_extended(name: str) -> None:
    if not extended_name(name):
        raise OSError(errno.EOPNOTSUPP, "not an extended attribute that an enclave may have")


def _set_open(descriptor: int, request: abi.SetAttributes) -> abi.Attributes:
    if request.size is not None:
        os.ftruncate(descriptor, request.size)
    if request.mode is not None:
        openat.check_set_id(stat.S_IFREG, request.mode)
        os.fchmod(descriptor, request.mode)
    if request.accessed is not None or request.modified is not None:
        openat.set_times(descriptor, "", request.accessed, request.modified)
    return attributes_of_open(descriptor)
