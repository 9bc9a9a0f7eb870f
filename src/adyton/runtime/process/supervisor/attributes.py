"""Operations on attributes: stat, statx, statfs, chmod, truncate, utimensat, access, extended attributes. Operations: see `view`.

A file that is open is asked about by what is open of it, and so has attributes when its names are gone. Of extended attributes there
are those of the namespace "user"; no others are asked about: the guest's kernel itself looks for some at each turn.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from typing import Literal, TypeVar

import msgspec

from adyton.hostcall import abi
from adyton.hostcall.check import extended_name
from adyton.hostcall.names import in_bytes, in_text
from adyton.runtime.process.guest import PRIVATE_ATTRIBUTE
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.fuse_abi import FileError, Header, SetFlag
from adyton.runtime.process.supervisor.fuse_answers import FileSystem
from adyton.runtime.process.supervisor.handles import Handles
from adyton.runtime.process.supervisor.layout import Place
from adyton.runtime.process.supervisor.private import INODE_COST, Directory, File, Inode
from adyton.runtime.process.supervisor.tree import Node, is_same, learn
from adyton.runtime.process.supervisor.view import Steps, View, ask, done, sendable

_R = TypeVar("_R")
_BLOCK = 4096
# Of what leads to the client's files, and has no file system of its own: room enough.
_ELSEWHERE = FileSystem(_BLOCK, 1 << 38, 1 << 38, 1 << 38, 1 << 32, 1 << 32)
# Plain numbers, for a flag's own operators take long.
_MODE, _UID, _GID, _SIZE, _ATIME, _MTIME, _FH, _ATIME_NOW, _MTIME_NOW = map(int, SetFlag)
_STATX_BTIME = 0x800  # linux/stat.h
_SET_ID = 0o6000


class AttributeOperations:
    """See the module."""

    def __init__(self, view: View, handles: Handles) -> None:
        self._view = view
        self._tree = view.tree
        self._handles = handles

    # -- looking ----------------------------------------------------------------------------------------------------

    def getattr(self, header: Header, _body: object) -> Steps:
        """stat, fstat."""
        node = self._tree.get(header.node)
        if node.private is None and not node.own:
            yield from self._refresh(node)
        return fuse_answers.pack_attr(*self._view.attr(node))

    def statx(self, header: Header, body: fuse_abi.Statx) -> Steps:
        """statx that asks when the file was made."""
        node = self._tree.get(header.node)
        if node.private is not None:
            born: int | None = node.private.born
        elif node.own:
            born = None
        else:
            yield from self._refresh(node, birth=bool(body.mask & _STATX_BTIME))
            assert node.attributes is not None
            born = node.attributes.born
        return fuse_answers.pack_statx(*self._view.attr(node), born)

    def _refresh(self, node: Node, *, birth: bool = False) -> Steps:
        """Learn a client's file's attributes anew: of what is open of it, else by a name at which it is still found."""
        if node.removed and node.attributes is not None:
            learn(node, msgspec.structs.replace(node.attributes, links=0))  # they are those that it had
            return b""
        path = sendable(node.last_path)
        found = yield from self._handles.ask_open(node, lambda handle: abi.Stat(path, handle, birth), abi.Attributes)
        if found is not None:
            if not is_same(node, found):
                raise FileError(errno.EIO)
            learn(node, found)
            return b""
        number = errno.ESTALE  # the kernel looks the name up again
        while node.path is not None:
            parent, name = next(iter(node.names))
            try:
                attributes = yield from ask(abi.Stat(sendable(self._tree.path(node)), None, birth), abi.Attributes)
            except FileError as error:
                if error.number not in (errno.ENOENT, errno.ENOTDIR):
                    raise
                number = error.number
            else:
                if is_same(node, attributes):
                    learn(node, attributes)
                    return b""
                number = errno.ESTALE
            if parent.children.get(name) is node:
                self._tree.gone(parent, name)
        raise FileError(number)

    def access(self, header: Header, body: fuse_abi.Access) -> Steps:
        """May the guest? A change of directory asks for X only."""
        node = self._tree.get(header.node)
        if node.private is not None:
            return b""
        path = self._tree.path(node)
        place = self._view.place(path)
        rights = [right for bit, right in ((os.R_OK, "read"), (os.W_OK, "write")) if body.mask & bit]
        if place is Place.OWN:
            if "write" in rights:
                raise FileError(errno.EACCES)
            return b""
        for right in rights:
            if place is not Place.CLIENT:
                yield from self._view.denied(header, path, right)
            yield from ask(abi.Access(sendable(path), "write" if right == "write" else "read"), abi.Done)
        if body.mask & os.X_OK and node.attributes is not None and not node.attributes.mode & 0o111:
            raise FileError(errno.EACCES)
        return b""

    def statfs(self, header: Header, _body: object) -> Steps:
        """The client's, where a file is the client's; of private files what is left of their room."""
        node = self._tree.get(header.node)
        if node.private is not None:
            capacity, free = node.private.files.room()
            blocks, left = capacity // _BLOCK, free // _BLOCK
            files = capacity // INODE_COST
            return fuse_answers.pack_statfs(FileSystem(_BLOCK, blocks, left, left, files, files - 1 if left else 0))
        path = node.last_path
        if node.own or self._view.place(path) is not Place.CLIENT:
            return fuse_answers.pack_statfs(_ELSEWHERE)
        found = yield from ask(abi.StatFileSystem(sendable(path)), abi.FileSystem)
        return fuse_answers.pack_statfs(
            FileSystem(found.block_size, found.blocks, found.free, found.available, found.files, found.files_free)
        )

    # -- changing ---------------------------------------------------------------------------------------------------

    def setattr(self, header: Header, body: fuse_abi.SetAttr) -> Steps:
        """chmod, truncate, utimensat; chown only to whose they are already."""
        node = self._tree.get(header.node)
        valid = body.valid
        if (valid & _UID and body.uid != self._view.uid) or (valid & _GID and body.gid != self._view.gid):
            raise FileError(errno.EPERM)
        if valid & _SIZE and body.size > fuse_abi.LARGEST:
            raise FileError(errno.EINVAL)
        if node.private is not None:
            yield from self._set_private(node.private, valid, body)
        elif node.own:
            raise FileError(errno.EACCES)
        else:
            yield from self._set_client(header, node, valid, body)
        return fuse_answers.pack_attr(*self._view.attr(node))

    def _set_private(self, inode: Inode, valid: int, body: fuse_abi.SetAttr) -> Steps:
        now = self._view.now()
        if valid & _SIZE:
            if not isinstance(inode, File):
                raise FileError(errno.EISDIR if isinstance(inode, Directory) else errno.EINVAL)
            yield from done(inode.files.resize(inode, body.size))
        inode.files.set_attributes(
            inode,
            mode=body.mode & 0o7777 if valid & _MODE else None,
            accessed=(now if valid & _ATIME_NOW else body.accessed) if valid & _ATIME else None,
            modified=(now if valid & _MTIME_NOW else body.modified) if valid & _MTIME else None,
        )
        return b""

    def _set_client(self, header: Header, node: Node, valid: int, body: fuse_abi.SetAttr) -> Steps:
        path = node.path
        if path is not None and self._view.place(path) is not Place.CLIENT:
            yield from self._view.denied(header, path, "write")
        request = abi.SetAttributes(
            sendable(node.last_path),
            size=body.size if valid & _SIZE else None,
            mode=body.mode & 0o7777 if valid & _MODE else None,
            accessed=_time(valid & _ATIME, valid & _ATIME_NOW, body.accessed),
            modified=_time(valid & _MTIME, valid & _MTIME_NOW, body.modified),
        )
        if request.size is request.mode is request.accessed is request.modified is None:
            return (yield from self._refresh(node))  # what is answered is the kernel's knowledge from now on
        opened = self._handles.file(body.handle) if valid & _FH else None
        found: abi.Attributes | None = None
        if opened is not None and opened.private is None and opened.access != "read":
            found = yield from ask(msgspec.structs.replace(request, handle=opened.number), abi.Attributes)
        elif request.size is None or path is None:  # else truncate(2), which the file's own permissions must allow
            found = yield from self._handles.ask_open(
                node,
                lambda handle: msgspec.structs.replace(request, handle=handle),
                abi.Attributes,
                writable=request.size is not None,
            )
        if found is None:
            self._tree.path(node)  # without one there is nothing to ask about
            found = yield from ask(request, abi.Attributes)
        if not is_same(node, found):
            raise FileError(errno.ESTALE)
        learn(node, found)
        return b""

    # -- extended attributes ------------------------------------------------------------------------------------------

    def getxattr(self, header: Header, body: fuse_abi.GetXattr) -> Steps:
        """One value; ENODATA, ERANGE."""
        node = self._tree.get(header.node)
        if body.name == os.fsencode(PRIVATE_ATTRIBUTE) and node.private is not None:
            if self._view.leads(node.last_path):
                raise FileError(errno.ENODATA)  # names of the client's are in it
            return _fitting(b"", body.size)
        name = _extended_name(body.name)
        if node.private is not None:
            if name not in node.private.extended:
                raise FileError(errno.ENODATA)
            return _fitting(node.private.extended[name], body.size)
        found = yield from self._ask(header, node, "read", lambda path, h: abi.GetExtended(path, name, h), abi.Data)
        return _fitting(found.data, body.size)

    def listxattr(self, header: Header, body: fuse_abi.ListXattr) -> Steps:
        """All names, each with a NUL behind it; ERANGE."""
        node = self._tree.get(header.node)
        if node.private is not None:
            names = list(node.private.extended)
        elif node.own:
            names = []
        else:
            names = (yield from self._ask(header, node, "read", abi.ListExtended, abi.Names)).names
        return _fitting(b"".join(in_bytes(name) + b"\0" for name in names), body.size)

    def setxattr(self, header: Header, body: fuse_abi.SetXattr) -> Steps:
        """EEXIST, ENODATA as the flags have it."""
        node = self._tree.get(header.node)
        name = _extended_name(body.name)
        create, replace = bool(body.flags & os.XATTR_CREATE), bool(body.flags & os.XATTR_REPLACE)
        if len(body.value) > abi.MAX_EXTENDED:
            raise FileError(errno.E2BIG)
        if node.private is not None:
            if not isinstance(node.private, File | Directory):
                raise FileError(errno.EPERM)  # xattr(7): what may write such a file says nothing about its attributes
            node.private.files.set_extended(node.private, name, body.value, create=create, replace=replace)
            return b""
        how: Literal["set", "create", "replace"] = "create" if create else "replace" if replace else "set"
        yield from self._ask(
            header, node, "write", lambda path, h: abi.SetExtended(path, name, body.value, how, h), abi.Done
        )
        return b""

    def removexattr(self, header: Header, body: fuse_abi.Name) -> Steps:
        """ENODATA."""
        node = self._tree.get(header.node)
        name = _extended_name(body.name)
        if node.private is not None:
            node.private.files.remove_extended(node.private, name)
            return b""
        yield from self._ask(header, node, "write", lambda path, h: abi.RemoveExtended(path, name, h), abi.Done)
        return b""

    def _ask(
        self,
        header: Header,
        node: Node,
        right: str,
        request: Callable[[str, int | None], abi.Request],
        expected: type[_R],
    ) -> Generator[abi.Request, abi.Result, _R]:
        """Ask about a file by what is open of it, else by its name: `request` takes path and handle. ESTALE if it has neither."""
        if node.own:
            raise FileError(errno.EOPNOTSUPP)
        path = node.path
        if path is not None and self._view.place(path) is not Place.CLIENT:
            yield from self._view.denied(header, path, right)
        known = sendable(node.last_path)
        found = yield from self._handles.ask_open(node, lambda handle: request(known, handle), expected)
        if found is not None:
            return found
        return (yield from ask(request(sendable(self._tree.path(node)), None), expected))


def _extended_name(name: bytes) -> str:
    """EOPNOTSUPP for what a client's file cannot have, EINVAL for a namespace without a name."""
    text = in_text(name)
    if text == abi.EXTENDED_PREFIX:
        raise FileError(errno.EINVAL)
    if not extended_name(text):
        raise FileError(errno.EOPNOTSUPP)
    return text


def _fitting(value: bytes, size: int) -> bytes:
    """ERANGE if the caller's buffer of `size` bytes is too small; 0: only the length is wanted."""
    if size and len(value) > size:
        raise FileError(errno.ERANGE)
    return fuse_answers.pack_xattr(value, size)


def _time(given: int, now: int, nanoseconds: int) -> int | Literal["now"] | None:
    if not given:
        return None
    return "now" if now else nanoseconds
