"""The nodes that the kernel knows, by number and by name.

A node is a name at which something was found. The kernel holds a node from the look-up that told it of it until it forgets it as
often as it was told; a node whose file was removed, or was replaced by another one on the client, is *detached*: it has no name any
more, and only the files open on it are of use. Numbers are never used twice.
"""

from __future__ import annotations

import errno
import itertools

from adyton.hostcall import abi
from adyton.runtime.process.guest_start import STANDARD_INPUT
from adyton.runtime.process.supervisor.fuse_abi import ROOT_ID, FileError
from adyton.runtime.process.supervisor.private import Inode

# Where the enclave's own files are mounted, and what leads there: answered from here, for ever, whoever asks. A missing one
# would unmount what is on it.
OWN_DIRECTORIES: tuple[str, ...] = (
    "/bin",
    "/dev",
    "/enclave",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/opt/adyton",
    "/opt/adyton/lib",
    "/opt/adyton/python",
    "/proc",
    "/sbin",
    "/tmp",  # noqa: S108 a mount too, unless the layout makes it a part of this tree
    "/usr",
)
MAX_NODES = 1 << 19
OWN_NUMBERS = 1 << 63  # inode numbers from here on are ours; the client's identities lie below


class Node:
    """`attributes`: what the client last said of it; `size`: of its file, as far as known here (detached files).

    `left`: of a detached one, the path that it had.
    """

    __slots__ = ("attributes", "children", "id", "left", "lookups", "name", "own", "parent", "private", "size")

    def __init__(self, number: int, parent: Node | None, name: str) -> None:
        self.id = number
        self.parent = parent
        self.name = name
        self.children: dict[str, Node] = {}
        self.lookups = 0
        self.own = 0  # the inode number of one of OWN_DIRECTORIES
        self.private: Inode | None = None
        self.attributes: abi.Attributes | None = None
        self.size = 0
        self.left = ""

    def __repr__(self) -> str:
        return f"<Node {self.id} {self.path or 'detached'}>"

    @property
    def path(self) -> str | None:
        """Absolute; None if it, or a directory above it, is detached."""
        top, path = self._climbed()
        return (path or "/") if top.id == ROOT_ID else None

    @property
    def last_path(self) -> str:
        """The path that it has, or had when it, or a directory above it, was detached."""
        top, path = self._climbed()
        return top.left + path or "/"

    def _climbed(self) -> tuple[Node, str]:
        """The node above all others, and the path from there."""
        names: list[str] = []
        node = self
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        return node, "".join(f"/{name}" for name in reversed(names))


class Tree:
    """All nodes; the root, OWN_DIRECTORIES and STANDARD_INPUT from the start."""

    def __init__(self) -> None:
        self._ids = itertools.count(ROOT_ID)
        self._numbers = itertools.count(OWN_NUMBERS)
        self.root = Node(next(self._ids), None, "")
        self.root.own = self.number()
        self._nodes: dict[int, Node] = {self.root.id: self.root}
        for path in OWN_DIRECTORIES:
            above, name = path.rsplit("/", 1)
            node = self._add(self.own(above or "/"), name)
            node.own = self.number()
        above, name = STANDARD_INPUT.rsplit("/", 1)
        self.standard_input = self._add(self.own(above), name)
        self.standard_input.own = self.number()

    def __len__(self) -> int:
        return len(self._nodes)

    def number(self) -> int:
        """An inode number that nothing else has or will have."""
        return next(self._numbers)

    def own(self, path: str) -> Node:
        """One of OWN_DIRECTORIES, or the root."""
        node = self.root
        for name in path.split("/")[1:] if path != "/" else ():
            node = node.children[name]
        return node

    def get(self, node: int) -> Node:
        """ESTALE if the kernel was never told of it."""
        found = self._nodes.get(node)
        if found is None:
            raise FileError(errno.ESTALE)
        return found

    def path(self, node: Node) -> str:
        """ESTALE if it is detached: the kernel then looks its name up again."""
        path = node.path
        if path is None:
            raise FileError(errno.ESTALE)
        return path

    # -- what was found ---------------------------------------------------------------------------------------------

    def found_client(self, parent: Node, name: str, attributes: abi.Attributes) -> Node:
        """The node of what the client has at this name; a new one if that is not what was there before. ENFILE."""
        node = parent.children.get(name)
        if node is not None and not is_same(node, attributes):
            self.detach(node)
            node = None
        if node is None:
            node = self._add(parent, name)
        learn(node, attributes)
        return node

    def found_private(self, parent: Node, name: str, inode: Inode) -> Node:
        """The node of a private file at this name. ENFILE."""
        node = parent.children.get(name)
        if node is not None and node.private is not inode:
            self.detach(node)
            node = None
        if node is None:
            node = self._add(parent, name)
            node.private = inode
        return node

    def _add(self, parent: Node, name: str) -> Node:
        if len(self._nodes) >= MAX_NODES:
            raise FileError(errno.ENFILE)
        node = Node(next(self._ids), parent, name)
        self._nodes[node.id] = node
        parent.children[name] = node
        return node

    # -- what the kernel holds --------------------------------------------------------------------------------------

    def told(self, node: Node) -> None:
        """The kernel is being told of the node."""
        node.lookups += 1

    def forget(self, number: int, lookups: int) -> None:
        """The kernel takes back that many of what it was told."""
        node = self._nodes.get(number)
        if node is not None:
            node.lookups = max(0, node.lookups - lookups)
            self._drop(node)

    # -- names that change ------------------------------------------------------------------------------------------

    def gone(self, parent: Node, name: str) -> None:
        """Nothing is at this name any more."""
        node = parent.children.get(name)
        if node is not None and not node.own:
            self.detach(node)

    def detach(self, node: Node) -> None:
        """Take the node's name from it."""
        assert node.parent is not None
        node.left = node.last_path
        parent, node.parent = node.parent, None
        del parent.children[node.name]
        self._drop(node)
        self._drop(parent)

    def move(self, parent: Node, name: str, target: Node, new_name: str) -> None:
        """The name was given to `target`, in place of what was there; it is lost if `target` is below it, as after moves that crossed."""
        node = parent.children.get(name)
        if node is not None and _is_within(target, node):
            self.gone(parent, name)
            return
        self.gone(target, new_name)
        if node is not None and node.parent is not None:
            del parent.children[name]
            node.parent, node.name = target, new_name
            target.children[new_name] = node
            self._drop(parent)

    def _drop(self, node: Node) -> None:
        """Give up the node, and then those above it, if nothing holds it."""
        while not (node.lookups or node.children or node.own) and self._nodes.pop(node.id, None) is not None:
            parent, node.parent = node.parent, None
            if parent is None:
                return
            del parent.children[node.name]
            node = parent


def _is_within(node: Node | None, above: Node) -> bool:
    """Whether `node` is `above`, or below it."""
    while node is not None and node is not above:
        node = node.parent
    return node is above


def is_same(node: Node, attributes: abi.Attributes) -> bool:
    """Whether these are of the file that the node was found to be."""
    known = node.attributes
    return known is not None and (known.identity, known.kind) == (attributes.identity, attributes.kind)


def learn(node: Node, attributes: abi.Attributes) -> None:
    """Note what the client says of the node's file."""
    node.attributes = attributes
    node.size = attributes.size
