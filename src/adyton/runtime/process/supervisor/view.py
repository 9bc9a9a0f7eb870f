"""What the operations on files share: the layout, the nodes, the private files, how a file shows, and how a denial is said.

An operation takes a request's header and body and gives the body of the answer to the kernel, or raises FileError. One that may need
the client is a generator: it yields requests of the host-call ABI and is sent the client's results, checked. Two rules hold for all of
them: no request is ever made about the enclave's own names, and what the layout calls OUTSIDE is refused whatever the client says.
"""

from __future__ import annotations

import errno
import os
import stat
import sysconfig
from collections.abc import Callable, Generator
from typing import Any, NoReturn, Protocol, TypeVar

from adyton.hostcall import abi
from adyton.hostcall.names import in_bytes, in_text
from adyton.runtime.process.supervisor.caching.cache import Flush
from adyton.runtime.process.supervisor.caching.contents import BLOCK
from adyton.runtime.process.supervisor.fuse_abi import FOREVER, FileError, Header
from adyton.runtime.process.supervisor.fuse_answers import Attr, EntryAnswer, pack_entry
from adyton.runtime.process.supervisor.layout import TEMPORARY, Layout, Place
from adyton.runtime.process.supervisor.leases import Leases
from adyton.runtime.process.supervisor.private import Directory, Done, File, Inode, Link, PrivateFiles, Special
from adyton.runtime.process.supervisor.sealed import SEALED, SealedFiles
from adyton.runtime.process.supervisor.tree import Node, Tree
from adyton.runtime.process.supervisor.wanted import Wanted, is_below
from adyton.sealed_files import storage


class Lasting(Protocol):
    """What the kernel may go on believing until it is told otherwise, names for a moment only; and what need not be asked."""

    def attributes_last(self, identity: int) -> bool:
        """Of a client's file."""
        ...

    def keeps_content(self, identity: int) -> bool:
        """Whether what is read of a client's file is kept here, in blocks."""
        ...

    def name_lasts(self, path: str, *, directory: bool) -> bool:
        """That the same file, or directory, is at a path."""
        ...

    def is_still_at(self, path: str, identity: int) -> bool:
        """Whether it is known that this client's file is at the path, whatever its attributes are by now."""
        ...

    def state_of_names(self, directory: str) -> object:
        """What is another one as soon as the names in a client's directory may be others; None where that is not told."""
        ...


class _Nothing:
    def attributes_last(self, identity: int) -> bool:  # noqa: ARG002 - see Lasting
        return False

    def keeps_content(self, identity: int) -> bool:  # noqa: ARG002
        return False

    def name_lasts(self, path: str, *, directory: bool) -> bool:  # noqa: ARG002
        return False

    def is_still_at(self, path: str, identity: int) -> bool:  # noqa: ARG002
        return False

    def state_of_names(self, directory: str) -> object:  # noqa: ARG002
        return None


class Park:
    """What an operation waits for that needs no host call: that locks are given back. It then looks again."""


PARK = Park()
Part = bytes | memoryview
Body = bytes | tuple[Part, ...]  # of an answer, perhaps in parts, which need not be copied
Steps = Generator["abi.Request | Flush | Park | storage.Request", Any, bytes]
WantedBy = Callable[[int, str], Wanted | None]
_R = TypeVar("_R")

# What is looked for by itself, and done well without: no program of anybody's wanted it, so no denial is said. By the C library; by its
# loader, for the interpreter's libraries, where they were installed; by a Python that starts, which looks for a zip of its library in
# each directory above it (Modules/getpath.py).
UNSAID = ("/sys/devices/system/cpu", str(sysconfig.get_config_var("LIBDIR")), "/opt/lib")
# Likewise, by a Python from 3.13 on that shows a traceback: it parses lines of it, and looks for the file where one is no whole statement.
UNSAID_NAME = "/<unknown>"

_ERRNOS = {name: getattr(errno, name) for name in abi.ERRNO_NAMES}
# ENOSYS is the supervisor's word: the guest's kernel would remember it, and do without the operation for every file from then on.
_ERRNOS["ENOSYS"] = errno.EOPNOTSUPP
# What is neither file, directory nor link shows as a socket: the guest's kernel refuses to open that, and asks nobody.
TYPES = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK, "other": stat.S_IFSOCK}


class View:
    """See the module. `layout` is None until the client's load; `tells` are requests that nobody waits for, taken by the caller.

    `freed`: locks were given back; taken back by the caller.
    """

    def __init__(
        self, uid: int, gid: int, wanted: WantedBy, now: Callable[[], int], leases: Leases, capacity: int
    ) -> None:
        self.uid = uid
        self.gid = gid
        self.now = now
        self.tree = Tree()
        self.private = PrivateFiles(capacity, self.tree.number, now)
        self.sealed: SealedFiles | None = None
        self.say: Callable[[str], None] = lambda _text: None  # to the client's owner, and into the enclave's own log
        self.why_unsealed = ""  # there are no sealed files, though there would be a place for them
        self._said_sealed = False
        self.layout: Layout | None = None
        self.tells: list[abi.Request] = []
        self.cache: Lasting = _Nothing()
        self.direct = False  # what is not cached here is not cached by the kernel either
        self.freed = False
        self._wanted = wanted
        self._leases = leases

    def set_layout(self, layout: Layout) -> None:
        """The client's load has arrived; only once."""
        if self.layout is not None:
            raise ValueError("the layout is set already")
        self.layout = layout
        temporary = self.tree.own(TEMPORARY)
        place = layout.classify(TEMPORARY)
        if place is Place.OWN:
            return
        temporary.own = 0
        if place is not Place.PRIVATE:
            self.tree.gone(self.tree.root, TEMPORARY[1:])
            return
        temporary.private = self.private.root
        self.tree.told(temporary)  # kept though the kernel forgets it
        for path in layout.private_directories:
            self._pin(path)

    def show_sealed(self, sealed: SealedFiles) -> None:
        """There are sealed files: from now on."""
        self.sealed = sealed
        root = self.tree.found_private(self.tree.root, SEALED[1:], sealed.root)
        self.tree.told(root)  # kept though the kernel forgets it

    def free(self) -> None:
        """Who waits (PARK) looks again."""
        self.freed = True

    def missed_sealed(self, path: str) -> None:
        """Somebody looked for sealed files, and there are none."""
        if self.layout is not None and not self._said_sealed and _is_sealed(path):
            self._said_sealed = True
            self.say(
                self.why_unsealed
                or f"there is no {SEALED}: give --sealed DIR for one on this machine's disk; a server that is started with --sealed-directory DIR has one on its own, for one enclave of an image at a time"
            )

    def _pin(self, path: str) -> None:
        directory = self.private.root
        *above, name = path.split("/")[2:]
        for each in above:
            inode = directory.entries[each]
            assert isinstance(inode, Directory)
            directory = inode
        self.private.make_directory(directory, name, 0o755, pinned=True)

    # -- places -----------------------------------------------------------------------------------------------------

    def place(self, path: str) -> Place:
        """Whose the name is; before the layout is known, nothing is the client's."""
        if self.sealed is not None and _is_sealed(path):
            return Place.PRIVATE
        if self.layout is not None:
            return self.layout.classify(path)
        return Place.OUTSIDE

    def is_listable(self, path: str) -> bool:
        """Whether the client can be asked for the names in a directory."""
        return self.place(path) is Place.CLIENT

    def leads(self, path: str) -> bool:
        """Whether the name is a directory above what is the client's."""
        return self.layout is not None and self.layout.leads(path)

    def child_path(self, parent: Node, name: bytes) -> tuple[str, str]:
        """A name in a directory: its text, and its path. ENAMETOOLONG, ENOTDIR."""
        if parent.attributes is not None and parent.attributes.kind != "directory":
            raise FileError(errno.ENOTDIR)
        if len(name) > abi.MAX_NAME:
            raise FileError(errno.ENAMETOOLONG)
        text = in_text(name)
        above = self.tree.path(parent)
        return text, above + text if above == "/" else f"{above}/{text}"

    def denied(
        self, header: Header, path: str, right: str, *, guess: bool = False
    ) -> Generator[abi.Request, abi.Result, NoReturn]:
        """EACCES, after the client's policy counted and said it. `guess`: `path` may be but the first part of what is wanted."""
        if self.layout is None:
            raise FileError(errno.EACCES)
        access = abi.Access(sendable(path), "write" if right == "write" else "read")
        if guess and (hint := self._wanted(header.pid, path)) is not None and is_below(hint.path, path):
            access = abi.Access(sendable(hint.path), hint.right)
        if not any(is_below(access.path, path) for path in UNSAID) and not access.path.endswith(UNSAID_NAME):
            yield access
        raise FileError(errno.EACCES)

    # -- how files show ---------------------------------------------------------------------------------------------

    def attr(self, node: Node) -> tuple[int, Attr]:
        """A node's attributes as far as they are known here, and for how many seconds they hold."""
        if node.private is not None:
            return FOREVER, self._private_attr(node.private)
        if node is self.tree.standard_input:
            return FOREVER, self._attr(node.own, stat.S_IFREG | 0o400, 0, 1, (0, 0, 0))
        if node.own:
            return self._own_lifetime(node), self._attr(node.own, stat.S_IFDIR | 0o755, 0, 2, (0, 0, 0))
        assert node.attributes is not None
        return FOREVER if self.cache.attributes_last(node.attributes.identity) else 0, self.client_attr(node)

    def client_attr(self, node: Node) -> Attr:
        """What was last learnt of a client's file."""
        known = node.attributes
        assert known is not None
        times = (known.accessed, known.modified, known.changed)
        mode = TYPES[known.kind] | known.mode
        attr = self._attr(known.identity, mode, known.size, known.links, times)
        unit = BLOCK if known.kind == "file" and self.cache.keeps_content(known.identity) else attr.unit
        return attr._replace(blocks=known.blocks, unit=unit)

    def _private_attr(self, inode: Inode) -> Attr:
        times = (inode.accessed, inode.modified, inode.changed)
        return self._attr(inode.number, inode_type(inode) | inode.mode, inode.size, inode.links, times)

    def _attr(self, number: int, mode: int, size: int, links: int, times: tuple[int, int, int]) -> Attr:
        return Attr(number, size, -(-size // 512), *times, mode, links, self.uid, self.gid)

    def _own_lifetime(self, node: Node) -> int:
        """For ever; but whether /tmp is the enclave's own is known only from the layout."""
        return 0 if self.layout is None and node.path == TEMPORARY else FOREVER

    def entry(self, node: Node) -> bytes:
        """The answer that tells the kernel of a node."""
        lifetime, attr = self.attr(node)
        self.tree.told(node)
        client = node.attributes is not None and not node.own
        return pack_entry(EntryAnswer(node.id, self._name_lifetime(node) if client else lifetime, lifetime, attr))

    def _name_lifetime(self, node: Node) -> float:
        """Of a client's. One that has several names is asked about each time."""
        path = node.path
        if path is None or len(node.names) > 1 or node.attributes is None:
            return 0
        lasts = self.cache.name_lasts(path, directory=node.attributes.kind == "directory")
        return self._leases.grant(node) if lasts else 0


def _is_sealed(path: str) -> bool:
    return path == SEALED or path.startswith(f"{SEALED}/")


def done(outcome: Done[_R]) -> Generator[Any, Any, _R]:
    """What private files have done, or what sealed ones do by steps."""
    if isinstance(outcome, Generator):
        return (yield from outcome)
    return outcome


def is_root(inode: Inode | None) -> bool:
    """Whether it is the one directory that all files of its kind are below: it stays where it is."""
    return inode is not None and inode.files.root is inode


def inode_type(inode: Inode) -> int:
    """The type bits of a private file's mode."""
    if isinstance(inode, Directory):
        return stat.S_IFDIR
    if isinstance(inode, Special):
        return inode.type
    return stat.S_IFLNK if isinstance(inode, Link) else stat.S_IFREG


def private_directory(node: Node) -> Directory:
    """The private directory that a node is; ENOTDIR, ESTALE."""
    if isinstance(node.private, Directory):
        return node.private
    raise FileError(errno.ENOTDIR if node.private is not None else errno.ESTALE)


def private_file(node: Node) -> File:
    """The private file that a node is; EISDIR, EINVAL."""
    if isinstance(node.private, File):
        return node.private
    raise FileError(errno.EISDIR if isinstance(node.private, Directory) else errno.EINVAL)


def sendable(path: str) -> str:
    """The path, which the ABI can carry; ENAMETOOLONG."""
    if len(in_bytes(path)) > abi.MAX_PATH:
        raise FileError(errno.ENAMETOOLONG)
    return path


def ask(request: Any, expected: type[_R]) -> Generator[Any, abi.Result, _R]:
    """Ask the client; its result if it is an `expected`, else FileError."""
    result = yield request
    if isinstance(result, expected):
        return result
    raise FileError(errno_of(result))


def errno_of(result: abi.Result) -> int:
    """The errno of a result that is not the expected one."""
    return _ERRNOS.get(result.errno, errno.EIO) if isinstance(result, abi.Failed) else errno.EIO


def right_of(flags: int) -> str:
    """What an open with these flags needs."""
    return "read" if flags & os.O_ACCMODE == os.O_RDONLY and not flags & (os.O_TRUNC | os.O_CREAT) else "write"
