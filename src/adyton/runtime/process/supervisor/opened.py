"""Operations on open files and directories: open, create, read, write, fsync, close, list. Operations: see `view`.

The client's files are written through: a write has reached the client when it returns, so that a close has nothing left to report.
What the kernel has cached of a client's file goes when the file is opened again, and what the client's other programs wrote shows
then (close-to-open).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator

from adyton.hostcall import abi
from adyton.hostcall.own_paths import leads_to_own, own_path
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.fuse_abi import FileError, Header, OpenFlag
from adyton.runtime.process.supervisor.fuse_answers import DirectoryEntry, OpenAnswer
from adyton.runtime.process.supervisor.handles import STANDARD_INPUT_HANDLE, Handles, OpenDirectory, OpenFile
from adyton.runtime.process.supervisor.layout import Place
from adyton.runtime.process.supervisor.private import Directory, File
from adyton.runtime.process.supervisor.tree import Node, is_same, learn
from adyton.runtime.process.supervisor.view import (
    TYPES,
    Steps,
    View,
    ask,
    inode_type,
    private_directory,
    private_file,
    right_of,
    sendable,
)

_ACCESS: dict[int, abi.OpenMode] = {os.O_RDONLY: "read", os.O_WRONLY: "write", os.O_RDWR: "read-write"}
_PRIVATE_FLAGS = OpenFlag.KEEP_CACHE | OpenFlag.NOFLUSH  # nobody else changes it
MAX_LISTED = 1 << 18  # names of one directory


class OpenOperations:
    """See the module."""

    def __init__(self, view: View, handles: Handles) -> None:
        self._view = view
        self._tree = view.tree
        self._private = view.private
        self._handles = handles

    # -- opening ----------------------------------------------------------------------------------------------------

    def open(self, header: Header, body: fuse_abi.Open) -> Steps:
        """Opens a file that is there."""
        node = self._tree.get(header.node)
        if node.private is not None:
            return self._open_private(node, body.flags)
        if node is self._tree.standard_input:
            return _open_standard_input(body.flags)
        if node.own:
            raise FileError(errno.EISDIR)
        path = self._tree.path(node)
        if self._view.place(path) is not Place.CLIENT:
            yield from self._view.denied(header, path, right_of(body.flags))
        number = self._handles.reserve()
        try:
            attributes = yield from ask(_open_request(path, number, body.flags), abi.Attributes)
            if not is_same(node, attributes):
                self._view.tells.append(abi.Close(number))
                raise FileError(errno.ESTALE)  # replaced since the look-up: the kernel looks again, and opens that
            learn(node, attributes)
            return self._opened(number, node, body.flags)
        finally:
            self._handles.release(number)

    def create(self, header: Header, body: fuse_abi.Create) -> Steps:
        """Opens, and makes the file if it is not there."""
        parent = self._tree.get(header.node)
        name, path = self._view.child_path(parent, body.name)
        mode = body.mode & 0o7777 & ~body.umask
        match self._view.place(path):
            case Place.OWN:
                raise FileError(errno.EACCES)
            case Place.PRIVATE:
                return self._create_private(parent, name, body.flags, mode)
            case Place.LEADING | Place.OUTSIDE:
                yield from self._view.denied(header, path, "write")
        number = self._handles.reserve()
        try:
            request = _open_request(path, number, body.flags, create=True, mode=mode)
            attributes = yield from ask(request, abi.Attributes)
            node = self._tree.found_client(parent, name, attributes)
            return self._view.entry(node) + self._opened(number, node, body.flags)
        finally:
            self._handles.release(number)

    def _opened(self, number: int, node: Node, flags: int) -> bytes:
        self._handles.add(OpenFile(number, node, _access(flags), bool(flags & os.O_APPEND)))
        return fuse_answers.pack_open(OpenAnswer(number, OpenFlag.NONE))

    def _create_private(self, parent: Node, name: str, flags: int, mode: int) -> bytes:
        _access(flags)  # before anything is made
        directory = private_directory(parent)
        existing = directory.entries.get(name)
        if existing is None:
            inode = self._private.make_file(directory, name, mode)
        elif flags & os.O_EXCL:
            raise FileError(errno.EEXIST)
        elif not isinstance(existing, File):
            raise FileError(errno.EISDIR if isinstance(existing, Directory) else errno.ELOOP)
        else:
            inode = existing
        node = self._tree.found_private(parent, name, inode)
        opened = self._open_private(node, flags)
        return self._view.entry(node) + opened

    def _open_private(self, node: Node, flags: int) -> bytes:
        file, access = private_file(node), _access(flags)
        number = self._handles.reserve()
        try:
            self._private.open(file)
            if flags & os.O_TRUNC:
                self._private.resize(file, 0)
            self._handles.add(OpenFile(number, node, access, private=file))
        finally:
            self._handles.release(number)
        return fuse_answers.pack_open(OpenAnswer(number, _PRIVATE_FLAGS))

    # -- content ----------------------------------------------------------------------------------------------------

    def read(self, _header: Header, body: fuse_abi.Read) -> Steps:
        """At most `size` bytes; fewer are the end of the file, to the kernel too."""
        opened = self._handles.file(body.handle)
        if opened.private is not None:
            return self._private.read(opened.private, body.offset, body.size)
        parts: list[bytes] = []
        done = 0
        while done < body.size:
            size = min(body.size - done, abi.MAX_BLOCK)
            part = (yield from ask(abi.Read(opened.number, body.offset + done, size), abi.Data)).data
            parts.append(part)
            done += len(part)
            if len(part) < size:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, _header: Header, body: fuse_abi.Write) -> Steps:
        """At the offset, or at the end in append mode; may be less than all of it."""
        opened = self._handles.file(body.handle)
        if opened.private is not None:
            return fuse_answers.pack_written(self._private.write(opened.private, body.offset, body.data))
        handle = opened.number
        if opened.append and (body.write_flags & fuse_abi.WRITE_CACHE or not body.flags & os.O_APPEND):
            handle = yield from self._positional(opened)
        data = body.data[: abi.MAX_BLOCK]
        written = (yield from ask(abi.Write(handle, body.offset, data), abi.Written)).size
        opened.node.size = max(opened.node.size, body.offset + written)
        return fuse_answers.pack_written(written)

    def _positional(self, opened: OpenFile) -> Generator[abi.Request, abi.Result, int]:
        """A handle for a write that has its place (a page of a mapping) though the file was opened to append: that would move it."""
        if opened.positional is None:
            path = sendable(self._tree.path(opened.node))
            number = self._handles.reserve()
            try:
                attributes = yield from ask(abi.Open(path, number, "write"), abi.Attributes)
                if is_same(opened.node, attributes) and opened.positional is None:
                    opened.positional = number
                else:
                    self._view.tells.append(abi.Close(number))
            finally:
                if opened.positional != number:
                    self._handles.release(number)
        if opened.positional is None:
            raise FileError(errno.ESTALE)
        return opened.positional

    def fsync(self, _header: Header, body: fuse_abi.Sync) -> Steps:
        """Durable on the client when answered."""
        opened = self._handles.file(body.handle)
        if opened.private is None:
            data_only = bool(body.flags & fuse_abi.FSYNC_DATA_ONLY)
            yield from ask(abi.Sync(opened.number, data_only), abi.Done)
        return b""

    def release(self, _header: Header, body: fuse_abi.Release) -> bytes:
        """The last descriptor of an open file is closed. Nobody waits for the client."""
        if body.handle == STANDARD_INPUT_HANDLE:
            return b""
        opened = self._handles.file(body.handle)
        self._handles.remove(opened)
        if opened.private is not None:
            self._private.close(opened.private)
            return b""
        self._view.tells.append(abi.Close(opened.number))
        if opened.positional is not None:
            self._view.tells.append(abi.Close(opened.positional))
            self._handles.release(opened.positional)
        return b""

    # -- directories ------------------------------------------------------------------------------------------------

    def opendir(self, header: Header, _body: object) -> Steps:
        """Opens for listing; the first names are asked for at once, so that what is wrong is said here."""
        node = self._tree.get(header.node)
        path = self._tree.path(node)
        place = self._view.place(path)
        root = self._private.root
        lists = (
            place in (Place.CLIENT, Place.OWN)
            or node.private is root
            or (place is Place.PRIVATE and not self._view.leads(path))
        )
        if not lists:
            yield from self._view.denied(header, path, "read")
        opened = OpenDirectory(self._handles.reserve(), node)
        try:
            yield from self._begin(opened)
            self._handles.add(opened)
        finally:
            self._handles.release(opened.number)
        return fuse_answers.pack_open(OpenAnswer(opened.number, OpenFlag.NONE))

    def readdir(self, _header: Header, body: fuse_abi.Read) -> Steps:
        """The names from `offset` on, as many as fit."""
        opened = self._handles.directory(body.handle)
        if body.offset == 0 and not opened.fresh:
            yield from self._begin(opened)
        opened.fresh = False
        wanted = body.offset + body.size // _SMALLEST_ENTRY
        while opened.cookie is not None and len(opened.names) <= body.offset:
            yield from self._more(opened)
        entries = (
            DirectoryEntry(number, offset, kind, name.encode("utf-8", "surrogateescape"))
            for offset, (name, number, kind) in enumerate(opened.names[body.offset : wanted], body.offset + 1)
        )
        return fuse_answers.pack_directory(entries, body.size)

    def _begin(self, opened: OpenDirectory) -> Steps:
        """(Re)start a listing: what is known here, then the client's first names."""
        node = opened.node
        path = self._tree.path(node)
        opened.names.clear()
        opened.seen.clear()
        opened.cookie = None
        for name, number in ((".", node), ("..", node.parent or node)):
            self._list(opened, name, self._view.attr(number)[1].number, stat.S_IFDIR)
        for name, child in node.children.items():
            if (child.own and child is not self._tree.standard_input) or child.private is self._private.root:
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
        entries = yield from ask(abi.List(path, opened.cookie), abi.Entries)
        mixed = leads_to_own(path)
        for entry in entries.entries:
            if not (mixed and own_path(f"{path.rstrip('/')}/{entry.name}") is not None):
                self._list(opened, entry.name, entry.attributes.identity, TYPES[entry.attributes.kind])
        opened.cookie = entries.next or None
        return b""

    def _list(self, opened: OpenDirectory, name: str, number: int, kind: int) -> None:
        if len(opened.names) >= MAX_LISTED:
            raise FileError(errno.EOVERFLOW)
        if name not in opened.seen:
            opened.seen.add(name)
            opened.names.append((name, number, kind))

    def releasedir(self, _header: Header, body: fuse_abi.Release) -> bytes:
        """The last descriptor of an open directory is closed."""
        self._handles.remove(self._handles.directory(body.handle))
        return b""

    def fsyncdir(self, _header: Header, body: fuse_abi.Sync) -> Steps:
        """Of a directory; the enclave's own and private ones have nothing to write."""
        node = self._handles.directory(body.handle).node
        if node.private is None and not node.own:
            yield from ask(abi.SyncDirectory(sendable(self._tree.path(node))), abi.Done)
        return b""


_SMALLEST_ENTRY = 32  # bytes: an entry with a name of up to eight


def _access(flags: int) -> abi.OpenMode:
    """EINVAL for the fourth mode, which some kernels' device drivers know: open(2)."""
    access = _ACCESS.get(flags & os.O_ACCMODE)
    if access is None:
        raise FileError(errno.EINVAL)
    return access


def _open_standard_input(flags: int) -> bytes:
    """Its reads are served by `files`."""
    if _access(flags) != "read":
        raise FileError(errno.EACCES)
    treatment = OpenFlag.DIRECT_IO | OpenFlag.NONSEEKABLE | OpenFlag.STREAM | OpenFlag.NOFLUSH
    return fuse_answers.pack_open(OpenAnswer(STANDARD_INPUT_HANDLE, treatment))


def _open_request(path: str, number: int, flags: int, *, create: bool = False, mode: int = 0o644) -> abi.Open:
    return abi.Open(
        sendable(path),
        number,
        _access(flags),
        create=create,
        exclusive=create and bool(flags & os.O_EXCL),
        truncate=bool(flags & os.O_TRUNC),
        append=bool(flags & os.O_APPEND),
        mode=mode,
    )
