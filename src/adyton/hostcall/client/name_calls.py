"""Host calls on names: looking, listing, making, removing, renaming.

Each works from a descriptor of the directory that holds the name, and never follows a link there.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import OrderedDict

from adyton.hostcall import abi
from adyton.hostcall.client import openat, paths
from adyton.hostcall.client.attributes import attributes_of
from adyton.hostcall.client.handlers import Handlers
from adyton.hostcall.client.places import Places
from adyton.hostcall.own_paths import leads_to_own, own_path

KEPT_LISTINGS = 16  # directories whose names are kept while they are read in parts
_SET_ID = stat.S_ISUID | stat.S_ISGID


class NameCalls:
    """See the module."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._tree = places.tree
        self._lock = threading.Lock()
        self._listings: OrderedDict[str, list[str]] = OrderedDict()

    @property
    def handlers(self) -> Handlers:
        return {
            abi.Access: ("access", self._access),
            abi.Stat: ("stat", self._stat),
            abi.ReadLink: ("readlink", self._read_link),
            abi.List: ("list", self._list),
            abi.SyncDirectory: ("fsync", self._sync_directory),
            abi.MakeDirectory: ("mkdir", self._make_directory),
            abi.Remove: ("remove", self._remove),
            abi.Rename: ("rename", self._rename),
        }

    # -- looking ------------------------------------------------------------------------------------------------------

    def _access(self, request: abi.Access) -> abi.Result:
        self._places.allowed(request.path, request.right)
        return abi.Done()

    def _stat(self, request: abi.Stat) -> abi.Result:
        with self._tree.parent(self._places.enterable(request.path)) as (directory, name):
            return attributes_of(os.stat(name, dir_fd=directory, follow_symlinks=False))

    def _read_link(self, request: abi.ReadLink) -> abi.Result:
        path = self._places.enterable(request.path)
        target = self._places.link(path)
        if target is None:
            raise OSError(errno.EINVAL, "not a symbolic link")
        self._places.check_target(path, target)
        if not paths.is_utf8(target):
            raise OSError(errno.EIO, "the link's target is not UTF-8")
        return abi.Target(target)

    def _list(self, request: abi.List) -> abi.Result:
        descriptor = self._tree.list_directory(self._places.followed(request.path, "read"))
        try:
            names = self._names_of(request.path, descriptor, fresh=request.cookie == 0)
            entries: list[abi.Entry] = []
            position = request.cookie
            while position < len(names) and len(entries) < abi.MAX_ENTRIES:
                name = names[position]
                position += 1
                try:
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # gone since the names were read
                entries.append(abi.Entry(name, attributes_of(status)))
        finally:
            os.close(descriptor)
        if position < len(names):
            return abi.Entries(entries, position)
        with self._lock:
            self._listings.pop(request.path, None)
        return abi.Entries(entries, 0)

    def _names_of(self, path: str, descriptor: int, *, fresh: bool) -> list[str]:
        """The names in a directory that a host call can carry; the same ones from the first part of a listing to the last."""
        with self._lock:
            kept = None if fresh else self._listings.get(path)
        if kept is not None:
            return kept
        names = sorted(name for name in os.listdir(descriptor) if len(name) <= abi.MAX_NAME and paths.is_utf8(name))
        if leads_to_own(path):
            names = [name for name in names if own_path(paths.join(path, name)) is None]
        if len(names) > abi.MAX_ENTRIES:
            with self._lock:
                self._listings[path] = names
                self._listings.move_to_end(path)
                while len(self._listings) > KEPT_LISTINGS:
                    self._listings.popitem(last=False)
        return names

    def _sync_directory(self, request: abi.SyncDirectory) -> abi.Result:
        descriptor = self._tree.list_directory(self._places.followed(request.path, "read"))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return abi.Done()

    # -- changing -----------------------------------------------------------------------------------------------------

    def _make_directory(self, request: abi.MakeDirectory) -> abi.Result:
        with self._tree.parent(self._places.allowed(request.path, "write")) as (directory, name):
            os.mkdir(name, request.mode & ~_SET_ID, dir_fd=directory)
            return attributes_of(os.stat(name, dir_fd=directory, follow_symlinks=False))

    def _remove(self, request: abi.Remove) -> abi.Result:
        with self._tree.parent(self._places.allowed(request.path, "write")) as (directory, name):
            if request.directory:
                os.rmdir(name, dir_fd=directory)
            else:
                os.unlink(name, dir_fd=directory)
        return abi.Done()

    def _rename(self, request: abi.Rename) -> abi.Result:
        source = self._places.allowed(request.source, "write")
        target = self._places.allowed(request.target, "write")
        with self._tree.parent(source) as old, self._tree.parent(target) as new:
            openat.rename(old, new, replace=request.replace)
        return abi.Done()
