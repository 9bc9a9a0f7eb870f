"""Finding the node that a path leads to, as the guest's kernel would, but here: what was found cannot be exchanged any more, as a path can.

Links are followed by what they hold; each name is looked up, and each link judged, as where the kernel asks (`names`).
"""

from __future__ import annotations

import errno
import posixpath
from collections import deque
from collections.abc import Generator
from typing import Any

from adyton.hostcall import abi
from adyton.hostcall.names import in_bytes, in_text
from adyton.hostcall.own_paths import own_path
from adyton.runtime.process.supervisor.fuse_abi import FileError, Header, Name, Opcode
from adyton.runtime.process.supervisor.layout import Place
from adyton.runtime.process.supervisor.names import NameOperations
from adyton.runtime.process.supervisor.private import Link
from adyton.runtime.process.supervisor.tree import Node
from adyton.runtime.process.supervisor.view import View
from adyton.runtime.process.supervisor.watching.watching import is_directory

MAX_LINKS = 40
Walk = Generator[Any, abi.Result, Node]


class Walking:
    """See the module."""

    def __init__(self, view: View, names: NameOperations) -> None:
        self._view = view
        self._names = names

    def find(self, directory: str, path: bytes, *, follow: bool, only_directory: bool) -> Walk:
        """The node of what `path`, relative to `directory`, is of, told to the kernel once more than it knows, and so kept.

        Whether it may be read is asked of the client by a Follow; what it does not share at all is refused here.
        `follow`: also the link that it ends with. ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG; EACCES for what the client does not allow,
        and for what lies on other file systems of the guest's.
        """
        text = in_text(path)
        if not text:
            raise FileError(errno.ENOENT)
        held: list[Node] = []
        try:
            node = yield from self._walk(f"{directory}/{text}" if text[0] != "/" else text, held, follow=follow)
            if only_directory and not is_directory(node):
                raise FileError(errno.ENOTDIR)
            yield from self._check(node)
            self._view.tree.told(node)
            return node
        finally:
            for each in held:
                self._view.tree.forget(each.id, 1)

    def _walk(self, path: str, held: list[Node], *, follow: bool) -> Walk:
        wanted = posixpath.normpath("/" + path.lstrip("/"))
        todo, links = deque(path.split("/")), 0
        way = [self._view.tree.root]
        while todo:
            name = todo.popleft()
            node = way[-1]
            if not is_directory(node):
                raise FileError(errno.ENOTDIR)
            if name in ("", "."):
                continue
            if name == "..":
                del way[max(1, len(way) - 1) :]
                continue
            child = yield from self._child(node, name, held, wanted)
            target = (yield from self._target(child)) if follow or any(todo) else None
            if target is None:
                way.append(child)
                continue
            links += 1
            if links > MAX_LINKS:
                raise FileError(errno.ELOOP)
            if target.startswith("/"):
                del way[1:]
            todo.extendleft(reversed(target.split("/")))
        return way[-1]

    def _child(self, node: Node, name: str, held: list[Node], wanted: str) -> Walk:
        encoded = in_bytes(name)
        _, path = self._view.child_path(node, encoded)
        if own_path(path) is not None or (self._view.place(path) is Place.OWN):
            raise FileError(errno.EACCES)
        if self._view.place(path) is Place.OUTSIDE:
            yield from self._view.denied(_NOBODY, wanted if (wanted + "/").startswith(path + "/") else path, "read")
        yield from self._names.lookup(_header(node), Name(encoded))
        child = node.children.get(name)
        if child is None:  # removed in the same moment
            raise FileError(errno.ENOENT)
        held.append(child)
        return child

    def _target(self, node: Node) -> Generator[Any, abi.Result, str | None]:
        """What a link holds; None of what is none."""
        if not isinstance(node.private, Link) and (node.attributes is None or node.attributes.kind != "symlink"):
            return None
        target: bytes = yield from self._names.readlink(_header(node), None)
        return in_text(target)

    def _check(self, node: Node) -> Generator[Any, abi.Result, None]:
        if node.private is not None:
            return
        path = self._view.tree.path(node)
        if self._view.place(path) is not Place.CLIENT:
            yield from self._view.denied(_NOBODY, path, "read")


def _header(node: Node) -> Header:
    return Header(0, Opcode.LOOKUP, 0, node.id, 0, 0, 0)


_NOBODY = Header(0, Opcode.LOOKUP, 0, 0, 0, 0, 0)
