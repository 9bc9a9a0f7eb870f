"""Host calls on names: looking, listing, making, removing, renaming.

Each works from a descriptor of the directory that holds the name, and never follows a link there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections import OrderedDict

from adyton.hostcall import abi
from adyton.hostcall.client import openat, paths
from adyton.hostcall.client.attributes import attributes_at
from adyton.hostcall.client.handlers import Handlers
from adyton.hostcall.client.link_targets import LinkTargets
from adyton.hostcall.client.open_files import OpenFiles
from adyton.hostcall.client.places import Places, Refused
from adyton.hostcall.client.policy import Denied
from adyton.hostcall.names import in_bytes
from adyton.hostcall.own_paths import leads_to_own, own_path

KEPT_LISTINGS = 16  # directories whose names are kept while they are read in parts
_SET_ID = stat.S_ISUID | stat.S_ISGID


class NameCalls:
    """See the module."""

    def __init__(self, places: Places, files: OpenFiles) -> None:
        self._places = places
        self._tree = places.tree
        self._files = files
        self._targets = LinkTargets(places)
        self._moving = threading.Lock()  # between a look at where links lead, and the move of what was looked at
        self._lock = threading.Lock()
        self._listings: OrderedDict[tuple[str, int], list[str]] = OrderedDict()

    @property
    def handlers(self) -> Handlers:
        return {
            abi.Access: ("access", self._access),
            abi.ReadLink: ("readlink", self._read_link),
            abi.List: ("list", self._list),
            abi.SyncDirectory: ("fsync", self._sync_directory),
            abi.SyncAll: ("syncfs", self._sync_all),
            abi.MakeDirectory: ("mkdir", self._make_directory),
            abi.Remove: ("remove", self._remove),
            abi.Rename: ("rename", self._rename),
            abi.Link: ("link", self._link),
            abi.SymbolicLink: ("symlink", self._symbolic_link),
        }

    # -- looking ------------------------------------------------------------------------------------------------------

    def _access(self, request: abi.Access) -> abi.Result:
        """What the policy allows may still be against the file's own permissions."""
        with self._tree.parent(self._places.allowed(request.path, request.right)) as (directory, name):
            mode = os.W_OK if request.right == "write" else os.R_OK
            os.stat(name, dir_fd=directory, follow_symlinks=False)
            if not os.access(name, mode, dir_fd=directory, effective_ids=True, follow_symlinks=False):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return abi.Done()

    def _read_link(self, request: abi.ReadLink) -> abi.Result:
        path = self._places.enterable(request.path)
        target = self._places.link(path)
        if target is None:
            raise OSError(errno.EINVAL, "not a symbolic link")
        self._places.check_target(path, target)
        return abi.Target(target)

    def _list(self, request: abi.List) -> abi.Result:
        descriptor = self._tree.list_directory(self._places.followed(request.path, "read"))
        try:
            names = self._names_of(request, descriptor)
            entries: list[abi.Entry] = []
            position = request.cookie
            while position < len(names) and len(entries) < abi.MAX_ENTRIES:
                name = names[position]
                position += 1
                with contextlib.suppress(FileNotFoundError):  # gone since the names were read
                    entries.append(abi.Entry(name, attributes_at(descriptor, name)))
        finally:
            os.close(descriptor)
        if position < len(names):
            return abi.Entries(entries, position)
        with self._lock:
            self._listings.pop((request.path, request.listing), None)
        return abi.Entries(entries, 0)

    def _names_of(self, request: abi.List, descriptor: int) -> list[str]:
        """The names in a directory that a host call can carry; the same ones from the first part of a listing to the last."""
        path, key = request.path, (request.path, request.listing)
        with self._lock:
            kept = None if request.cookie == 0 else self._listings.get(key)
        if kept is not None:
            return kept
        names = sorted(name for name in os.listdir(descriptor) if len(in_bytes(name)) <= abi.MAX_NAME)
        if leads_to_own(path):
            names = [name for name in names if own_path(paths.join(path, name)) is None]
        if len(names) > abi.MAX_ENTRIES:
            with self._lock:
                self._listings[key] = names
                self._listings.move_to_end(key)
                while len(self._listings) > KEPT_LISTINGS:
                    self._listings.popitem(last=False)
        return names

    def _sync_all(self, _request: abi.SyncAll) -> abi.Result:
        self._places.written.sync()
        return abi.Done()

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
            openat.make_directory(directory, name, request.mode & ~_SET_ID, request.umask)
            return attributes_at(directory, name)

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
        with self._moving:
            self._targets.check_move(source, target)
            if request.exchange:
                self._targets.check_move(target, source)
            with self._tree.parent(source) as old, self._tree.parent(target) as new:
                openat.rename(old, new, replace=request.replace, exchange=request.exchange)
        return abi.Done()

    def _link(self, request: abi.Link) -> abi.Result:
        target = self._places.allowed(request.target, "write")
        with self._tree.parent(target) as (directory, name):
            if request.handle is not None:
                with self._files.using(request.handle) as file:
                    if not file.writable:
                        raise Refused(Denied("write", file.path))
                    os.link(openat.by_descriptor(file.descriptor), name, dst_dir_fd=directory, follow_symlinks=True)
            else:
                source = self._places.allowed(request.source, "write")
                with self._moving, self._tree.parent(source) as (above, old):
                    self._targets.check_move(source, target)
                    os.link(old, name, src_dir_fd=above, dst_dir_fd=directory, follow_symlinks=False)
            return attributes_at(directory, name)

    def _symbolic_link(self, request: abi.SymbolicLink) -> abi.Result:
        path = self._places.allowed(request.path, "write")
        with self._moving, self._tree.parent(path) as (directory, name):
            self._targets.check(path, request.target)
            os.symlink(request.target, name, dir_fd=directory)
            return attributes_at(directory, name)
