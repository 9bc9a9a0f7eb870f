"""The nodes that the kernel knows, by number and by name.

A node is a file; a regular file, or a symbolic link, may have several names (hard links). The kernel holds a node from the look-up that
told it of it until it forgets it as often as it was told; a node whose file was removed, or was replaced by another one on the client,
is *detached*: it has no name any more, and only what is open of it is of use. Numbers are never used twice.
"""

from __future__ import annotations

import errno
import itertools

from adyton.hostcall import abi
from adyton.runtime.process.guest_start import STANDARD_INPUT
from adyton.runtime.process.supervisor.fuse_abi import ROOT_ID, FileError
from adyton.runtime.process.supervisor.private import Directory, Inode

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
    """`names`: where it is, as directory and name; the first is the one that is used. Directories have one at most.

    `attributes`: what the client last said of it. `left`: of a detached one, the path that it had. `handles`: what is open of it. `leased`:
    until when the kernel may believe its name, see `leases`. `watched`: by a program (see `watching`), while the file has a name at least.
    `removed`: the directory was removed in the enclave; what has it open, or works in it, finds an empty one without names.
    """

    __slots__ = (
        "attributes",
        "children",
        "handles",
        "id",
        "leased",
        "left",
        "lookups",
        "names",
        "own",
        "private",
        "removed",
        "watched",
    )

    def __init__(self, number: int) -> None:
        self.id = number
        self.names: dict[tuple[Node, str], None] = {}
        self.children: dict[str, Node] = {}
        self.lookups = 0
        self.own = 0  # the inode number of one of OWN_DIRECTORIES
        self.private: Inode | None = None
        self.attributes: abi.Attributes | None = None
        self.handles: set[int] = set()
        self.left = ""
        self.leased = 0.0
        self.watched = False
        self.removed = False

    def __repr__(self) -> str:
        return f"<Node {self.id} {self.path or 'detached'}>"

    @property
    def parent(self) -> Node | None:
        """The directory that holds it, by the name that is used."""
        return next((above for above, _ in self.names), None)

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
        while node.names:
            node, name = next(iter(node.names))
            names.append(name)
        return node, "".join(f"/{name}" for name in reversed(names))


class Tree:
    """All nodes; the root, OWN_DIRECTORIES and STANDARD_INPUT from the start."""

    def __init__(self) -> None:
        self._ids = itertools.count(ROOT_ID)
        self._numbers = itertools.count(OWN_NUMBERS)
        self._nodes: dict[int, Node] = {}
        self._by_file: dict[tuple[int, str], Node] = {}  # files that may have several names
        self.root = self._new()
        self.root.own = self.number()
        for path in OWN_DIRECTORIES:
            above, name = path.rsplit("/", 1)
            node = self._named(self._new(), self.own(above or "/"), name)
            node.own = self.number()
        above, name = STANDARD_INPUT.rsplit("/", 1)
        self.standard_input = self._named(self._new(), self.own(above), name)
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

    def at(self, path: str) -> Node | None:
        """The node of a name, if there is one."""
        node: Node | None = self.root
        for name in path.split("/")[1:] if path != "/" else ():
            node = None if node is None else node.children.get(name)
        return node

    def of_file(self, identity: int, kind: abi.Kind) -> Node | None:
        """The node of a client's file that may have several names."""
        return self._by_file.get((identity, kind))

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
            self.gone(parent, name)
            node = None
        if node is None:
            node = self._named(self._elsewhere(attributes) or self._new(_file_key(attributes)), parent, name)
        learn(node, attributes)
        return node

    def _elsewhere(self, attributes: abi.Attributes) -> Node | None:
        """The node of a client's file that is known by other names, or only open."""
        key = _file_key(attributes)
        node = None if key is None else self._by_file.get(key)
        if node is None or not is_same(node, attributes):
            return None
        if attributes.links == 1:  # it had its other names before; or it is a new file with an old one's number
            for above, name in list(node.names):
                self.gone(above, name)
        return node if node.id in self._nodes and (node.names or node.handles or node.watched) else None

    def found_private(self, parent: Node, name: str, inode: Inode) -> Node:
        """The node of a private file at this name. ENFILE."""
        node = parent.children.get(name)
        if node is not None and node.private is not inode:
            self.gone(parent, name)
            node = None
        if node is None:
            key = None if isinstance(inode, Directory) else (inode.number, _PRIVATE)
            known = None if key is None else self._by_file.get(key)
            node = self._named(known or self._new(key), parent, name)
            node.private = inode
        return node

    def unnamed(self, found: abi.Attributes | Inode) -> Node:
        """The node of a new file that has no name. ENFILE."""
        if isinstance(found, Inode):
            node = self._new((found.number, _PRIVATE))
            node.private = found
        else:
            node = self._new(_file_key(found))
            learn(node, found)
        return node

    def one_more(self, node: Node, parent: Node, name: str) -> None:
        """The node's file has got one more name."""
        if parent.children.get(name) is not node:
            self.gone(parent, name)
            self._named(node, parent, name)

    def _new(self, key: tuple[int, str] | None = None) -> Node:
        if len(self._nodes) >= MAX_NODES:
            raise FileError(errno.ENFILE)
        node = Node(next(self._ids))
        self._nodes[node.id] = node
        if key is not None:
            self._by_file[key] = node
        return node

    def _named(self, node: Node, parent: Node, name: str) -> Node:
        node.names[parent, name] = None
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
            if len(node.names) == 1:
                node.left = node.last_path
            del parent.children[name], node.names[parent, name]
            self._drop(node)
            self._drop(parent)

    def removed(self, parent: Node, name: str) -> None:
        """The same, since the enclave removed what was there."""
        node = parent.children.get(name)
        if node is not None and _is_directory(node):
            node.removed = True
        self.gone(parent, name)

    def move(self, parent: Node, name: str, target: Node, new_name: str) -> None:
        """The name was given to `target`, in place of what was there; it is lost if `target` is below it, as after moves that crossed."""
        node = parent.children.get(name)
        if node is not None and _is_within(target, node):
            self.gone(parent, name)
            return
        if node is not None and target.children.get(new_name) is node:
            return  # two names of one file: both stay
        target.lookups += 1  # it stays, though what is there may be all that held it
        self.removed(target, new_name)
        target.lookups -= 1
        if node is not None and parent.children.get(name) is node:
            del parent.children[name], node.names[parent, name]
            self._named(node, target, new_name)
            self._drop(parent)
        self._drop(target)

    def exchange(self, parent: Node, name: str, target: Node, new_name: str) -> None:
        """Both names changed places. What would lie in itself then, as after moves that crossed, is lost."""
        node, other = parent.children.get(name), target.children.get(new_name)
        if (node is not None and _is_within(target, node)) or (other is not None and _is_within(parent, other)):
            self.gone(parent, name)
            self.gone(target, new_name)
            return
        for above, old in ((parent, name), (target, new_name)):
            found = above.children.pop(old, None)
            if found is not None:
                del found.names[above, old]
        if node is not None:
            self._named(node, target, new_name)
        if other is not None:
            self._named(other, parent, name)
        self._drop(parent)
        self._drop(target)

    def _drop(self, node: Node) -> None:
        """Give up the node, and then those above it, if nothing holds it."""
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node.lookups or node.children or node.own or self._nodes.pop(node.id, None) is None:
                continue
            for key in (_file_key(node.attributes), None if node.private is None else (node.private.number, _PRIVATE)):
                if key is not None and self._by_file.get(key) is node:
                    del self._by_file[key]
            for above, name in node.names:
                del above.children[name]
                waiting.append(above)
            node.names.clear()


_PRIVATE = "private"


def _file_key(attributes: abi.Attributes | None) -> tuple[int, str] | None:
    """What a client's file is found by under another name; None for what has but one."""
    return None if attributes is None or attributes.kind == "directory" else (attributes.identity, attributes.kind)


def _is_directory(node: Node) -> bool:
    known = node.attributes
    return isinstance(node.private, Directory) or (known is not None and known.kind == "directory")


def _is_within(node: Node | None, above: Node) -> bool:
    """Whether the directory `node` is `above`, or below it."""
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
