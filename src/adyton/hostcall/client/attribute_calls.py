"""Host calls on the attributes of files, by path or by handle."""

from __future__ import annotations

import os
import stat

from adyton.hostcall import abi
from adyton.hostcall.client import openat
from adyton.hostcall.client.attributes import attributes_of
from adyton.hostcall.client.handlers import Handlers
from adyton.hostcall.client.open_files import OpenFiles
from adyton.hostcall.client.places import Places, Refused
from adyton.hostcall.client.policy import Denied


class AttributeCalls:
    """See the module."""

    def __init__(self, places: Places, files: OpenFiles) -> None:
        self._places = places
        self._tree = places.tree
        self._files = files

    @property
    def handlers(self) -> Handlers:
        return {
            abi.SetAttributes: ("setattr", self._set_attributes),
        }

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
            return attributes_of(os.stat(name, dir_fd=directory, follow_symlinks=False))


def _set_open(descriptor: int, request: abi.SetAttributes) -> abi.Attributes:
    if request.size is not None:
        os.ftruncate(descriptor, request.size)
    if request.mode is not None:
        openat.check_set_id(stat.S_IFREG, request.mode)
        os.fchmod(descriptor, request.mode)
    if request.accessed is not None or request.modified is not None:
        openat.set_times(descriptor, "", request.accessed, request.modified)
    return attributes_of(os.fstat(descriptor))
