"""Operations on directories that are open: they are listed, and synced. Operations: see `view`.

A listing has what was there when its first part was read, in one order, so that a place in it means the same until it is rewound. It is
the client's from part to part, as far as it is read. Its first part was asked for when the directory was opened; it is asked for again only if
that may have changed since.
"""

from __future__ import annotations

import errno
import stat

from adyton.hostcall import abi
from adyton.hostcall.names import in_bytes
from adyton.hostcall.own_paths import leads_to_own, own_path
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.fuse_abi import FileError, Header, OpenFlag
from adyton.runtime.process.supervisor.fuse_answers import DirectoryEntry, OpenAnswer
from adyton.runtime.process.supervisor.handles import Handles, OpenDirectory
from adyton.runtime.process.supervisor.layout import Place
from adyton.runtime.process.supervisor.view import (
    TYPES,
    Steps,
    View,
    ask,
    done,
    inode_type,
    is_root,
    private_directory,
    sendable,
)

MAX_LISTED = 1 << 18  # names of one directory
MAX_LISTED_TOGETHER = 1 << 20  # of all that are open
_SMALLEST_ENTRY = 32  # bytes: an entry with a name of up to eight


class DirectoryOperations:
    """See the module."""

    def __init__(self, view: View, handles: Handles) -> None:
        self._view = view
        self._tree = view.tree
        self._handles = handles
        self._listed = 0  # names kept, of all open directories

    def opendir(self, header: Header, _body: object) -> Steps:
        """Opens for listing; the first names are asked for at once, so that what is wrong is said here."""
        node = self._tree.get(header.node)
        path = node.last_path if node.removed else self._tree.path(node)
        place = self._view.place(path)
        lists = (
            place in (Place.CLIENT, Place.OWN)
            or is_root(node.private)
            or (place is Place.PRIVATE and not self._view.leads(path))
        )
        if not lists:
            yield from self._view.denied(header, path, "read")
        opened = OpenDirectory(self._handles.reserve(), node)
        try:
            yield from self._begin(opened)
            opened.state = self._state(opened)
            self._handles.add(opened)
        except BaseException:
            self._listed -= len(opened.names)
            raise
        finally:
            self._handles.release(opened.number)
        return fuse_answers.pack_open(OpenAnswer(opened.number, OpenFlag.NONE))

    def readdir(self, _header: Header, body: fuse_abi.Read) -> Steps:
        """The names from `offset` on, as many as fit."""
        opened = self._handles.directory(body.handle)
        if body.offset == 0 and not (opened.fresh and opened.state is not None and opened.state == self._state(opened)):
            yield from self._begin(opened)
        opened.fresh = False
        wanted = body.offset + body.size // _SMALLEST_ENTRY
        while opened.cookie is not None and len(opened.names) <= body.offset:
            yield from self._more(opened)
        entries = (
            DirectoryEntry(number, offset, kind, in_bytes(name))
            for offset, (name, number, kind) in enumerate(opened.names[body.offset : wanted], body.offset + 1)
        )
        return fuse_answers.pack_directory(entries, body.size)

    def _state(self, opened: OpenDirectory) -> object:
        """Another one if the directory's names may have changed; None: that is not known, or, as of private ones, costs nothing to find out."""
        path = opened.node.path
        return None if path is None or opened.node.private is not None else self._view.cache.state_of_names(path)

    def _begin(self, opened: OpenDirectory) -> Steps:
        """(Re)start a listing: what is known here, then the client's first names."""
        node = opened.node
        self._listed -= len(opened.names)
        opened.names.clear()
        opened.seen.clear()
        opened.cookie = None
        if node.removed:
            return b""
        path = self._tree.path(node)
        for name, number in ((".", node), ("..", node.parent or node)):
            self._list(opened, name, self._view.attr(number)[1].number, stat.S_IFDIR)
        for name, child in node.children.items():
            if (child.own and child is not self._tree.standard_input) or is_root(child.private):
                self._list(opened, name, self._view.attr(child)[1].number, stat.S_IFDIR)
        if node.private is not None:
            for name, inode in private_directory(node).entries.items():
                self._list(opened, name, inode.number, inode_type(inode))
            yield from self._allowed_names(opened, path)
        elif self._view.place(path) is Place.CLIENT:
            opened.cookie = 0
            try:
                yield from self._more(opened)
            except FileError as error:
                if not (node.own and error.number in (errno.ENOENT, errno.ENOTDIR)):
                    raise
                opened.cookie = None  # the client has no such directory; what is the enclave's own is there
        return b""

    def _allowed_names(self, opened: OpenDirectory, path: str) -> Steps:
        """Of the client's names in a private directory: the allowed ones that exist."""
        layout = self._view.layout
        for name in layout.names_in(path) if layout is not None else ():
            child = f"{path}/{name}"
            if self._view.place(child) is Place.PRIVATE:
                continue
            try:
                found = yield from ask(abi.Stat(sendable(child)), abi.Attributes)
            except FileError:
                continue
            self._list(opened, name, found.identity, TYPES[found.kind])
        return b""

    def _more(self, opened: OpenDirectory) -> Steps:
        assert opened.cookie is not None
        path = sendable(self._tree.path(opened.node))
        entries = yield from ask(abi.List(path, opened.cookie, opened.number), abi.Entries)
        mixed = leads_to_own(path)
        for entry in entries.entries:
            if not (mixed and own_path(f"{path.rstrip('/')}/{entry.name}") is not None):
                self._list(opened, entry.name, entry.attributes.identity, TYPES[entry.attributes.kind])
        opened.cookie = entries.next or None
        return b""

    def _list(self, opened: OpenDirectory, name: str, number: int, kind: int) -> None:
        if name not in opened.seen:
            if len(opened.names) >= MAX_LISTED:
                raise FileError(errno.EOVERFLOW)
            if self._listed >= MAX_LISTED_TOGETHER:
                raise FileError(errno.ENOMEM)
            self._listed += 1
            opened.seen.add(name)
            opened.names.append((name, number, kind))

    def releasedir(self, _header: Header, body: fuse_abi.Release) -> bytes:
        """The last descriptor of an open directory is closed."""
        opened = self._handles.directory(body.handle)
        self._handles.remove(opened)
        self._listed -= len(opened.names)
        return b""

    def fsyncdir(self, _header: Header, body: fuse_abi.Sync) -> Steps:
        """Of a directory; the enclave's own and private ones, and removed ones, have nothing to write."""
        node = self._handles.directory(body.handle).node
        if node.private is not None:
            yield from done(node.private.files.sync())
        elif not node.own and not node.removed:
            yield from ask(abi.SyncDirectory(sendable(self._tree.path(node))), abi.Done)
        return b""
