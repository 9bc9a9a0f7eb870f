"""What the kernel's requests mean to who watches: after each that succeeded, the events that the kernel itself would tell of.

`Happenings.begins` notes what a request is about before it is carried out, and gives what is to be called with its answer. Source of which
events there are, and in which order: fs/notify, fsnotify.h, and what a program sees on other file systems (the tests compare).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from adyton.hostcall.names import in_text
from adyton.runtime.process.supervisor import fuse_abi
from adyton.runtime.process.supervisor.fuse_abi import FileError, Header, Opcode, SetFlag
from adyton.runtime.process.supervisor.handles import Handles
from adyton.runtime.process.supervisor.tree import Node, Tree
from adyton.runtime.process.supervisor.watching.instances import Mask
from adyton.runtime.process.supervisor.watching.watching import Watching, is_directory

After = Callable[[bytes], None]


class Happenings:
    """See the module."""

    def __init__(self, tree: Tree, handles: Handles, watching: Watching) -> None:
        self._tree = tree
        self._handles = handles
        self._watching = watching
        made, opened = self._made, self._open
        self._meanings: Mapping[int, Callable[[Header, Any], After | None]] = {
            Opcode.SETATTR: self._attributes,
            Opcode.SYMLINK: lambda header, body: made(header, body.name, Mask.CREATE),
            Opcode.MKNOD: lambda header, body: made(header, body.name, Mask.CREATE),
            Opcode.MKDIR: lambda header, body: made(header, body.name, Mask.CREATE | Mask.ISDIR),
            Opcode.CREATE: self._created,
            Opcode.LINK: self._linked,
            Opcode.UNLINK: self._removed,
            Opcode.RMDIR: self._removed,
            Opcode.RENAME: self._renamed,
            Opcode.RENAME2: self._renamed,
            Opcode.OPEN: opened,
            Opcode.OPENDIR: lambda header, _: self._at(self._tree.get(header.node), Mask.OPEN),
            Opcode.READ: lambda _, body: self._if_any(self._file(body), Mask.ACCESS),
            Opcode.READDIR: lambda _, body: self._at(self._handles.directory(body.handle).node, Mask.ACCESS),
            Opcode.WRITE: self._written,
            Opcode.FALLOCATE: lambda _, body: self._at(self._file(body), Mask.MODIFY),
            Opcode.COPY_FILE_RANGE: self._copied,
            Opcode.COPY_FILE_RANGE_64: self._copied,
            Opcode.SETXATTR: lambda header, _: self._at(self._tree.get(header.node), Mask.ATTRIB),
            Opcode.REMOVEXATTR: lambda header, _: self._at(self._tree.get(header.node), Mask.ATTRIB),
            Opcode.RELEASE: self._closed,
            Opcode.RELEASEDIR: lambda _, body: self._at(self._handles.directory(body.handle).node, Mask.CLOSE_NOWRITE),
        }

    def begins(self, header: Header, body: object) -> After | None:
        """What is to be called when the request has succeeded; None if nothing."""
        meaning = self._meanings.get(header.opcode) if self._watching.active else None
        if meaning is None:
            return None
        try:
            return meaning(header, body)
        except FileError:
            return None  # it will fail

    def _file(self, body: Any) -> Node:
        return self._handles.file(body.handle).node

    def _at(self, node: Node, mask: int) -> After:
        return lambda _: self._watching.at(node, mask)

    def _if_any(self, node: Node, mask: int) -> After:
        """If the answer is not nothing: bytes that were read, or a count of them."""

        def after(answer: bytes) -> None:
            if any(answer[:8]) or len(answer) > 8:  # a count has 8 bytes
                self._watching.at(node, mask)

        return after

    # -- names --------------------------------------------------------------------------------------------------------

    def _made(self, header: Header, name: bytes, mask: int) -> After:
        parent, text = self._tree.get(header.node), in_text(name)
        return lambda _: self._watching.itself(parent, mask, text)

    def _created(self, header: Header, body: fuse_abi.Create) -> After:
        parent, name = self._tree.get(header.node), in_text(body.name)

        def after(_: bytes) -> None:
            self._watching.itself(parent, Mask.CREATE, name)
            node = parent.children.get(name)
            if node is not None:
                self._watching.at(node, Mask.OPEN)

        return after

    def _linked(self, header: Header, body: fuse_abi.Link) -> After:
        node, created = self._tree.get(body.node), self._made(header, body.name, Mask.CREATE)

        def after(answer: bytes) -> None:
            self._watching.itself(node, Mask.ATTRIB)
            created(answer)

        return after

    def _removed(self, header: Header, body: fuse_abi.Name) -> After:
        parent, name = self._tree.get(header.node), in_text(body.name)
        node = parent.children.get(name)
        mask = Mask.DELETE | (Mask.ISDIR if header.opcode == Opcode.RMDIR else 0)

        def after(_: bytes) -> None:
            if node is not None and self._watching.unlinked(node, parent, name):
                self._watching.gone(node)
            self._watching.itself(parent, mask, name)

        return after

    def _renamed(self, header: Header, body: fuse_abi.Rename | fuse_abi.OldRename) -> After:
        parent, target = self._tree.get(header.node), self._tree.get(body.directory)
        name, new_name = (in_text(each) for each in (body.source, body.target))
        node, other = parent.children.get(name), target.children.get(new_name)
        exchange = isinstance(body, fuse_abi.Rename) and bool(body.flags & fuse_abi.RENAME_EXCHANGE)

        def after(_: bytes) -> None:
            if node is not None and node is not other:
                self._moved(node, parent, name, target, new_name)
                ends = not exchange and other is not None and self._watching.unlinked(other, target, new_name)
                self._watching.itself(node, Mask.MOVE_SELF)
                if other is not None and exchange:
                    self._moved(other, target, new_name, parent, name)
                    self._watching.itself(other, Mask.MOVE_SELF)
                elif other is not None and ends:
                    self._watching.gone(other)
            if any(each is not None and (each.watched or is_directory(each)) for each in (node, other)):
                self._watching.moved()

        return after

    def _moved(self, node: Node, parent: Node, name: str, target: Node, new_name: str) -> None:
        directory, cookie = Mask.ISDIR if is_directory(node) else 0, self._watching.next_cookie()
        self._watching.itself(parent, Mask.MOVED_FROM | directory, name, cookie)
        self._watching.itself(target, Mask.MOVED_TO | directory, new_name, cookie)

    # -- files --------------------------------------------------------------------------------------------------------

    def _attributes(self, header: Header, body: fuse_abi.SetAttr) -> After | None:
        node, valid = self._tree.get(header.node), SetFlag(body.valid & sum(SetFlag))
        times = valid & (SetFlag.ATIME | SetFlag.MTIME)
        mask = Mask(0)
        if valid & (SetFlag.MODE | SetFlag.UID | SetFlag.GID) or times == SetFlag.ATIME | SetFlag.MTIME:
            mask |= Mask.ATTRIB
        elif times == SetFlag.ATIME:
            mask |= Mask.ACCESS
        if SetFlag.SIZE in valid or times == SetFlag.MTIME:
            mask |= Mask.MODIFY
        return self._at(node, mask) if mask else None

    def _open(self, header: Header, body: fuse_abi.Open) -> After:
        node = self._tree.get(header.node)

        def after(_: bytes) -> None:
            self._watching.at(node, Mask.OPEN)
            if body.flags & os.O_TRUNC:
                self._watching.at(node, Mask.MODIFY)

        return after

    def _written(self, _header: Header, body: fuse_abi.Write) -> After | None:
        """Not what comes from a mapping, which the kernel does not tell of either."""
        if body.write_flags & fuse_abi.WRITE_CACHE:
            return None
        return self._if_any(self._file(body), Mask.MODIFY)

    def _copied(self, _header: Header, body: fuse_abi.Copy) -> After:
        source, target = self._file(body), self._handles.file(body.target).node

        def after(answer: bytes) -> None:
            if any(answer):
                self._watching.at(source, Mask.ACCESS)
                self._watching.at(target, Mask.MODIFY)

        return after

    def _closed(self, _header: Header, body: fuse_abi.Release) -> After:
        opened = self._handles.file(body.handle)

        def after(_: bytes) -> None:
            self._watching.at(opened.node, Mask.CLOSE_NOWRITE if opened.access == "read" else Mask.CLOSE_WRITE)
            self._watching.closed(opened.node)

        return after
