"""Operations on names and attributes: look-up, stat, mkdir, unlink, rename, links, access. Operations: see `view`."""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Generator
from typing import Literal

from adyton.hostcall import abi
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.fuse_abi import FileError, Header, SetFlag
from adyton.runtime.process.supervisor.handles import Handles
from adyton.runtime.process.supervisor.layout import Place
from adyton.runtime.process.supervisor.private import Directory, File, Inode, Link
from adyton.runtime.process.supervisor.tree import Node, is_same, learn
from adyton.runtime.process.supervisor.view import Steps, View, ask, private_directory, sendable

# What a statfs says of a file system whose true size nobody here knows: room enough.
_BLOCKS = 1 << 38
_FILES = 1 << 32
_SETTABLE = sum(SetFlag)


class NameOperations:
    """See the module."""

    def __init__(self, view: View, handles: Handles) -> None:
        self._view = view
        self._tree = view.tree
        self._private = view.private
        self._handles = handles

    # -- finding ----------------------------------------------------------------------------------------------------

    def lookup(self, header: Header, body: fuse_abi.Name) -> Steps:
        """What is at a name."""
        parent = self._tree.get(header.node)
        name, path = self._view.child_path(parent, body.name)
        existing = parent.children.get(name)
        if existing is not None and existing.own:
            return self._view.entry(existing)
        match self._view.place(path):
            case Place.OWN:
                raise FileError(errno.ENOENT)
            case Place.PRIVATE:
                if existing is not None and existing.private is self._private.root:
                    return self._view.entry(existing)
                inode = self._private.find(private_directory(parent), name)
                return self._view.entry(self._tree.found_private(parent, name, inode))
            case Place.OUTSIDE:
                yield from self._view.denied(header, path, "read", guess=True)
            case Place.LEADING if existing is not None and _is_directory(existing):
                return self._view.entry(existing)  # judged once: what leads to an allowed path was resolved at load
        try:
            attributes = yield from ask(abi.Stat(sendable(path)), abi.Attributes)
        except FileError as error:
            if error.number in (errno.ENOENT, errno.ENOTDIR):
                self._tree.gone(parent, name)
            raise
        return self._view.entry(self._tree.found_client(parent, name, attributes))

    def getattr(self, header: Header, _body: object) -> Steps:
        """stat, fstat."""
        node = self._tree.get(header.node)
        if node.private is None and not node.own and node.path is not None:
            yield from self._refresh(node)
        return fuse_answers.pack_attr(*self._view.attr(node))

    def _refresh(self, node: Node) -> Steps:
        """Learn a client's file's attributes anew. A file of which only the open handles are left shows what was last known."""
        number = errno.ESTALE  # another is there: the kernel looks the name up again
        try:
            attributes = yield from ask(abi.Stat(sendable(self._tree.path(node))), abi.Attributes)
        except FileError as error:
            if error.number not in (errno.ENOENT, errno.ENOTDIR):
                raise
            number = error.number
        else:
            if is_same(node, attributes):
                learn(node, attributes)
                return b""
        if node.parent is not None:
            self._tree.detach(node)
        if not self._handles.any_of(node):
            raise FileError(number)
        return b""

    def readlink(self, header: Header, _body: object) -> Steps:
        """A link's target; EACCES if a link of the client's leads to what is not the client's.

        Were it followed, a client could have the enclave open a file of its own (such as /proc/self/mem) where it means to open
        the client's. Each part of a target that is a link itself is judged when the kernel asks for that one; ".." behind a
        name would be applied to what that name leads to, and cannot be judged here.
        """
        node = self._tree.get(header.node)
        if isinstance(node.private, Link):
            return node.private.target
        path = self._tree.path(node)
        if node.private is not None or self._view.place(path) not in (Place.CLIENT, Place.LEADING):
            raise FileError(errno.EINVAL)
        target = (yield from ask(abi.ReadLink(sendable(path)), abi.Target)).path
        names = [name for name in target.split("/") if name not in ("", ".")]
        climbs = 0 if target.startswith("/") else next((i for i, name in enumerate(names) if name != ".."), len(names))
        if ".." in names[climbs:]:
            raise FileError(errno.EACCES)
        leads_to = posixpath.normpath("/" + posixpath.join(posixpath.dirname(path), target).lstrip("/"))
        place = self._view.place(leads_to)
        if place is Place.OWN or (place is Place.PRIVATE and not self._view.leads(leads_to)):
            raise FileError(errno.EACCES)
        return target.encode()

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

    def statfs(self, _header: Header, _body: object) -> bytes:
        """Room enough: the client's disk is its own affair, and says so when it is full."""
        return fuse_answers.pack_statfs(
            blocks=_BLOCKS, free=_BLOCKS, files=_FILES, files_free=_FILES, name_length=abi.MAX_NAME
        )

    # -- attributes -------------------------------------------------------------------------------------------------

    def setattr(self, header: Header, body: fuse_abi.SetAttr) -> Steps:
        """chmod, truncate, utimensat; chown only to whose they are already."""
        node = self._tree.get(header.node)
        valid = SetFlag(body.valid & _SETTABLE)
        if (SetFlag.UID in valid and body.uid != self._view.uid) or (
            SetFlag.GID in valid and body.gid != self._view.gid
        ):
            raise FileError(errno.EPERM)
        if SetFlag.SIZE in valid and body.size > fuse_abi.LARGEST:
            raise FileError(errno.EINVAL)
        if node.private is not None:
            self._set_private(node.private, valid, body)
        elif node.own:
            raise FileError(errno.EACCES)
        else:
            yield from self._set_client(header, node, valid, body)
        return fuse_answers.pack_attr(*self._view.attr(node))

    def _set_private(self, inode: Inode, valid: SetFlag, body: fuse_abi.SetAttr) -> None:
        now = self._view.now()
        if SetFlag.SIZE in valid:
            if not isinstance(inode, File):
                raise FileError(errno.EISDIR if isinstance(inode, Directory) else errno.EINVAL)
            self._private.resize(inode, body.size)
        if SetFlag.MODE in valid:
            inode.mode = body.mode & 0o7777
        if SetFlag.ATIME in valid:
            inode.accessed = now if SetFlag.ATIME_NOW in valid else body.accessed
        if SetFlag.MTIME in valid:
            inode.modified = now if SetFlag.MTIME_NOW in valid else body.modified
        inode.changed = now

    def _set_client(self, header: Header, node: Node, valid: SetFlag, body: fuse_abi.SetAttr) -> Steps:
        path = node.path
        if path is not None and self._view.place(path) is not Place.CLIENT:
            yield from self._view.denied(header, path, "write")
        handle = None
        if SetFlag.FH in valid:
            opened = self._handles.file(body.handle)
            handle = opened.number if opened.access != "read" else None
        if path is None:
            handle = handle if handle is not None else self._handles.writable(node)
            if handle is None:
                raise FileError(errno.ESTALE)
        request = abi.SetAttributes(
            sendable(node.last_path),
            handle,
            size=body.size if SetFlag.SIZE in valid else None,
            mode=body.mode & 0o7777 if SetFlag.MODE in valid else None,
            accessed=_time(SetFlag.ATIME in valid, SetFlag.ATIME_NOW in valid, body.accessed),
            modified=_time(SetFlag.MTIME in valid, SetFlag.MTIME_NOW in valid, body.modified),
        )
        if request.size is request.mode is request.accessed is request.modified is None:
            return b""
        attributes = yield from ask(request, abi.Attributes)
        if is_same(node, attributes):
            learn(node, attributes)
        elif handle is None:
            raise FileError(errno.ESTALE)
        return b""

    # -- making and removing ----------------------------------------------------------------------------------------

    def mkdir(self, header: Header, body: fuse_abi.MakeDir) -> Steps:
        """A new, empty directory."""
        parent = self._tree.get(header.node)
        name, path = self._view.child_path(parent, body.name)
        mode = body.mode & 0o7777 & ~body.umask
        if (yield from self._writable(header, path)) is Place.PRIVATE:
            made = self._private.make_directory(private_directory(parent), name, mode)
            return self._view.entry(self._tree.found_private(parent, name, made))
        attributes = yield from ask(abi.MakeDirectory(sendable(path), mode), abi.Attributes)
        return self._view.entry(self._tree.found_client(parent, name, attributes))

    def symlink(self, header: Header, body: fuse_abi.SymLink) -> Steps:
        """A link among private files; none on the client (EPERM: that has no symbolic links, as link(2) says it)."""
        parent = self._tree.get(header.node)
        name, path = self._view.child_path(parent, body.name)
        if (yield from self._writable(header, path)) is not Place.PRIVATE:
            raise FileError(errno.EPERM)
        made = self._private.make_link(private_directory(parent), name, body.target)
        return self._view.entry(self._tree.found_private(parent, name, made))

    def unlink(self, header: Header, body: fuse_abi.Name) -> Steps:
        """Remove a file or link."""
        return self._remove(header, body, is_directory=False)

    def rmdir(self, header: Header, body: fuse_abi.Name) -> Steps:
        """Remove an empty directory."""
        return self._remove(header, body, is_directory=True)

    def _remove(self, header: Header, body: fuse_abi.Name, *, is_directory: bool) -> Steps:
        parent = self._tree.get(header.node)
        name, path = self._view.child_path(parent, body.name)
        if (yield from self._writable(header, path)) is Place.PRIVATE:
            self._private.remove(private_directory(parent), name, is_directory=is_directory)
        else:
            yield from ask(abi.Remove(sendable(path), is_directory), abi.Done)
        self._tree.gone(parent, name)
        return b""

    def rename(self, header: Header, body: fuse_abi.OldRename) -> Steps:
        """RENAME2 without flags."""
        return self.rename2(header, fuse_abi.Rename(body.directory, 0, body.source, body.target))

    def rename2(self, header: Header, body: fuse_abi.Rename) -> Steps:
        """As renameat2(2) has it; EXDEV between private files and the client's, EINVAL for an exchange, or into itself."""
        if body.flags & ~fuse_abi.RENAME_NOREPLACE:
            raise FileError(errno.EINVAL)
        parent, target = self._tree.get(header.node), self._tree.get(body.directory)
        name, path = self._view.child_path(parent, body.source)
        new_name, new_path = self._view.child_path(target, body.target)
        source_place = yield from self._writable(header, path)
        target_place = yield from self._writable(header, new_path)
        if source_place is not target_place:
            raise FileError(errno.EXDEV)
        if new_path.startswith(path + "/"):
            raise FileError(errno.EINVAL)
        replace = not body.flags
        if source_place is Place.PRIVATE:
            source_directory, target_directory = private_directory(parent), private_directory(target)
            same = source_directory.entries.get(name) is target_directory.entries.get(new_name)
            self._private.rename(source_directory, name, target_directory, new_name, replace=replace)
        else:
            same = path == new_path
            yield from ask(abi.Rename(sendable(path), sendable(new_path), replace), abi.Done)
        if not same:
            self._tree.move(parent, name, target, new_name)
        return b""

    def _writable(self, header: Header, path: str) -> Generator[abi.Request, abi.Result, Place]:
        """CLIENT or PRIVATE; all else is no place to change a name in."""
        place = self._view.place(path)
        if place is Place.OWN:
            raise FileError(errno.EACCES)
        if place in (Place.LEADING, Place.OUTSIDE):
            yield from self._view.denied(header, path, "write")
        return place


def _time(given: bool, now: bool, nanoseconds: int) -> int | Literal["now"] | None:
    if not given:
        return None
    return "now" if now else nanoseconds


def _is_directory(node: Node) -> bool:
    """As far as is known of a client's name."""
    return node.attributes is not None and node.attributes.kind == "directory"
