"""Files that only the enclave has: what lies below /tmp while /tmp is part of the tree that the supervisor serves.

Kept in the supervisor's memory, gone with the enclave. The guest is hostile towards the supervisor, so bytes, inodes, names and
extended attributes are bounded (ENOSPC), and sparse files count in full. Errors are FileError (errnos as of POSIX.1-2017).
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Generator
from typing import Any, TypeAlias, TypeVar

from adyton.hostcall import abi
from adyton.hostcall.names import in_bytes
from adyton.runtime.process.supervisor.fuse_abi import FileError
from adyton.sealed_files.store import StoredObject

INODE_COST = (
    512  # bytes that an inode and its name count for; each further name, and each extended attribute, counts as much
)


class Inode:
    """What files, directories and links have in common. `number` is not used twice; times are nanoseconds.

    `files`: those that it is one of, which all that is done to it goes through. `stored`: of sealed ones, what the store has of it.
    """

    __slots__ = (
        *("accessed", "born", "changed", "extended", "files", "links", "mode", "modified", "number", "opens"),
        "stored",
    )

    def __init__(self, number: int, mode: int, now: int) -> None:
        self.files: PrivateFiles
        self.stored: StoredObject | None = None
        self.number = number
        self.mode = mode
        self.links = 1
        self.opens = 0
        self.extended: dict[str, bytes] = {}
        self.accessed = self.modified = self.changed = self.born = now

    @property
    def size(self) -> int:
        return 0

    @property
    def cost(self) -> int:
        """Bytes that it counts for, but for its further names."""
        return self.size + INODE_COST + sum(INODE_COST + len(value) for value in self.extended.values())


class File(Inode):
    __slots__ = ("data",)

    def __init__(self, number: int, mode: int, now: int) -> None:
        super().__init__(number, mode, now)
        self.data = bytearray()

    @property
    def size(self) -> int:
        return len(self.data) if self.stored is None else self.stored.size


class Link(Inode):
    __slots__ = ("target",)

    def __init__(self, number: int, target: bytes, now: int) -> None:
        super().__init__(number, 0o777, now)
        self.target = target

    @property
    def size(self) -> int:
        return len(self.target)


class Special(Inode):
    """A pipe or a socket's name, by its type bits: the guest's kernel does the rest, within the guest."""

    __slots__ = ("type",)

    def __init__(self, number: int, kind: int, mode: int, now: int) -> None:
        super().__init__(number, mode, now)
        self.type = kind


class Directory(Inode):
    """`pinned`: it leads to names of the client's, so it stays where it is."""

    __slots__ = ("entries", "pinned")

    def __init__(self, number: int, mode: int, now: int, *, pinned: bool = False) -> None:
        super().__init__(number, mode, now)
        self.entries: dict[str, Inode] = {}
        self.links = 2
        self.pinned = pinned


_Made = TypeVar("_Made", bound=Inode)
_R = TypeVar("_R")
Done: TypeAlias = _R | Generator[Any, Any, _R]  # at once; or, of sealed files, by steps, see `view`


class PrivateFiles:
    """All of them. `capacity` in bytes; `numbers` gives inode numbers; `now` the time."""

    def __init__(self, capacity: int, numbers: Callable[[], int], now: Callable[[], int]) -> None:
        self.capacity = capacity
        self.used = 0
        self._numbers = numbers
        self._now = now
        self.root = self._new(Directory(numbers(), 0o1777, now(), pinned=True))

    def _new(self, inode: _Made) -> _Made:
        inode.files = self
        return inode

    # -- making ---------------------------------------------------------------------------------------------------

    def make_file(self, directory: Directory, name: str, mode: int) -> File:
        """A new, empty file; EEXIST, ENOSPC."""
        return self._place(directory, name, File(self._numbers(), mode, self._now()))

    def make_link(self, directory: Directory, name: str, target: bytes) -> Link:
        """A new symbolic link; EEXIST, ENOSPC."""
        self._require_space(len(target) + INODE_COST)
        link = self._place(directory, name, Link(self._numbers(), target, self._now()))
        self.used += len(target)
        return link

    def make_special(self, directory: Directory, name: str, mode: int) -> Special:
        """A new pipe or socket, as the type bits of `mode` say; EEXIST, ENOSPC."""
        return self._place(
            directory, name, Special(self._numbers(), stat.S_IFMT(mode), stat.S_IMODE(mode), self._now())
        )

    def make_unnamed(self, mode: int) -> File:
        """A new file without a name, open: it is freed when it is closed, unless it got one; ENOSPC."""
        self._require_space(INODE_COST)
        file = self._new(File(self._numbers(), mode, self._now()))
        file.links, file.opens = 0, 1
        self.used += INODE_COST
        return file

    def make_directory(self, directory: Directory, name: str, mode: int, *, pinned: bool = False) -> Directory:
        """A new, empty directory; EEXIST, ENOSPC."""
        made = self._place(directory, name, Directory(self._numbers(), mode, self._now(), pinned=pinned))
        directory.links += 1
        return made

    def _place(self, directory: Directory, name: str, inode: _Made) -> _Made:
        if directory.links == 0:
            raise FileError(errno.ENOENT)
        if name in directory.entries:
            raise FileError(errno.EEXIST)
        self._require_space(INODE_COST)
        self.used += INODE_COST
        directory.entries[name] = self._new(inode)
        self._touched(directory)
        return inode

    # -- names ------------------------------------------------------------------------------------------------------

    def find(self, directory: Directory, name: str) -> Inode:
        """ENOENT."""
        inode = directory.entries.get(name)
        if inode is None:
            raise FileError(errno.ENOENT)
        return inode

    def remove(self, directory: Directory, name: str, *, is_directory: bool) -> None:
        """unlink, or rmdir; ENOENT, ENOTDIR, EISDIR, ENOTEMPTY, EBUSY."""
        inode = self.find(directory, name)
        if is_directory and not isinstance(inode, Directory):
            raise FileError(errno.ENOTDIR)
        if not is_directory and isinstance(inode, Directory):
            raise FileError(errno.EISDIR)
        self._require_removable(inode)
        self._unlink(directory, name, inode)

    def link(self, inode: Inode, directory: Directory, name: str) -> None:
        """One more name; EPERM for a directory, EEXIST, ENOSPC, ENOENT."""
        if isinstance(inode, Directory):
            raise FileError(errno.EPERM)
        self._require_kept(inode)
        if directory.links == 0:
            raise FileError(errno.ENOENT)
        if name in directory.entries:
            raise FileError(errno.EEXIST)
        if inode.links:  # the first one is counted with the inode
            self._require_space(INODE_COST)
            self.used += INODE_COST
        inode.links += 1
        self._changed(inode)
        directory.entries[name] = inode
        self._touched(directory)

    def exchange(self, source: Directory, name: str, target: Directory, new_name: str) -> None:
        """Both change places; ENOENT, EBUSY if one is pinned. That neither goes into itself is the kernel's care."""
        inode, other = self.find(source, name), self.find(target, new_name)
        for each in (inode, other):
            if isinstance(each, Directory) and each.pinned:
                raise FileError(errno.EBUSY)
        source.entries[name], target.entries[new_name] = other, inode
        for each, above, below in ((inode, source, target), (other, target, source)):
            if isinstance(each, Directory):
                above.links -= 1
                below.links += 1
            self._changed(each)
        for directory in (source, target):
            self._touched(directory)

    def rename(self, source: Directory, name: str, target: Directory, new_name: str, *, replace: bool) -> None:
        """Give it another name; EBUSY if pinned, else errors as of POSIX. That no directory goes into itself is the kernel's care."""
        inode = self.find(source, name)
        if isinstance(inode, Directory) and inode.pinned:
            raise FileError(errno.EBUSY)
        existing = target.entries.get(new_name)
        if existing is inode:
            return
        if existing is not None:
            if not replace:
                raise FileError(errno.EEXIST)
            if isinstance(inode, Directory) != isinstance(existing, Directory):
                raise FileError(errno.EISDIR if isinstance(existing, Directory) else errno.ENOTDIR)
            self._require_removable(existing)
            self._unlink(target, new_name, existing)
        elif target.links == 0:
            raise FileError(errno.ENOENT)
        target.entries[new_name] = source.entries.pop(name)
        if isinstance(inode, Directory):
            source.links -= 1
            target.links += 1
        for directory in (source, target):
            self._touched(directory)
        self._changed(inode)

    def _require_removable(self, inode: Inode) -> None:
        if isinstance(inode, Directory):
            if inode.pinned:
                raise FileError(errno.EBUSY)
            if inode.entries:
                raise FileError(errno.ENOTEMPTY)

    def _unlink(self, directory: Directory, name: str, inode: Inode) -> None:
        del directory.entries[name]
        self._touched(directory)
        self._changed(inode)
        if isinstance(inode, Directory):
            inode.links = 0
            directory.links -= 1
        else:
            inode.links -= 1
            if inode.links:
                self.used -= INODE_COST
        self._drop(inode)

    def _touched(self, inode: Inode) -> None:
        inode.modified = self._now()
        self._changed(inode)

    def _changed(self, inode: Inode) -> None:
        inode.changed = self._now()

    # -- content ------------------------------------------------------------------------------------------------------

    def open(self, inode: Inode) -> None:
        """Hold on to it though its name may go; ESTALE if it has been freed."""
        self._require_kept(inode)
        inode.opens += 1

    def close(self, inode: Inode) -> None:
        """The opposite of `open`; the last one frees what has no name."""
        inode.opens -= 1
        self._drop(inode)

    def read(self, file: File, offset: int, size: int) -> Done[bytes]:
        """At most `size` bytes; fewer only at the end."""
        return bytes(memoryview(file.data)[offset : offset + size])

    def write(self, file: File, offset: int, data: bytes) -> Done[int]:
        """All of `data`, or ENOSPC."""
        if offset + len(data) > len(file.data):
            self._resize(file, offset + len(data))
        file.data[offset : offset + len(data)] = data
        self._touched(file)
        return len(data)

    def resize(self, file: File, size: int) -> Done[None]:
        """Cut off, or fill up with zeros; ENOSPC, ESTALE if it has been freed."""
        self._resize(file, size)
        return None

    def _resize(self, file: File, size: int) -> None:
        self._require_kept(file)
        more = size - len(file.data)
        if more < 0:
            del file.data[size:]
        else:
            self._require_space(more)
            file.data.extend(bytes(more))
        self.used += more
        self._touched(file)

    def allocate(self, file: File, way: abi.Allocation, offset: int, size: int) -> Done[None]:
        """fallocate: there are no holes, so that a hole is zeros; EOPNOTSUPP for what moves content, as tmpfs has it, ENOSPC."""
        if way in ("collapse", "insert", "unshare"):
            raise FileError(errno.EOPNOTSUPP)
        end = offset + size
        longer = end > len(file.data)
        if longer and way in ("extend", "zero"):
            self._resize(file, end)
        elif longer and way == "keep-size":
            self._require_space(end - len(file.data))
        if way not in ("extend", "keep-size"):
            within = max(0, min(end, len(file.data)) - offset)
            file.data[offset : offset + within] = bytes(within)
            self._touched(file)
        return None

    def sync(self) -> Done[None]:
        """What was done until now is durable: in memory nothing is, and nobody is told that it is not."""
        return None

    def set_attributes(
        self, inode: Inode, *, mode: int | None = None, accessed: int | None = None, modified: int | None = None
    ) -> None:
        """Those that are given."""
        if mode is not None:
            inode.mode = mode
        if accessed is not None:
            inode.accessed = accessed
        if modified is not None:
            inode.modified = modified
        self._changed(inode)

    # -- extended attributes ------------------------------------------------------------------------------------------

    def set_extended(self, inode: Inode, name: str, value: bytes, *, create: bool, replace: bool) -> None:
        """EEXIST, ENODATA, ENOSPC."""
        known = inode.extended.get(name)
        if create and known is not None:
            raise FileError(errno.EEXIST)
        if replace and known is None:
            raise FileError(errno.ENODATA)
        self._require_kept(inode)
        more = len(value) + INODE_COST - (0 if known is None else len(known) + INODE_COST)
        self._require_space(more)
        if sum(len(in_bytes(each)) + 1 for each in {*inode.extended, name}) > abi.MAX_EXTENDED:
            raise FileError(errno.ENOSPC)
        self.used += more
        inode.extended[name] = value
        self._changed(inode)

    def remove_extended(self, inode: Inode, name: str) -> None:
        """ENODATA."""
        value = inode.extended.pop(name, None)
        if value is None:
            raise FileError(errno.ENODATA)
        if inode.links or inode.opens:
            self.used -= len(value) + INODE_COST
        self._changed(inode)

    # -- room ---------------------------------------------------------------------------------------------------------

    def room(self) -> tuple[int, int]:
        """Bytes that there may be, and how many of them are left."""
        return self.capacity, max(0, self.capacity - self.used)

    def _require_space(self, size: int) -> None:
        if self.used + size > self.capacity:
            raise FileError(errno.ENOSPC)

    def _require_kept(self, inode: Inode) -> None:
        if inode.links == 0 and inode.opens == 0:
            raise FileError(errno.ESTALE)

    def _drop(self, inode: Inode) -> None:
        if inode.links == 0 and inode.opens == 0:
            self.used -= inode.cost
            inode.extended.clear()
            if isinstance(inode, File):
                inode.data.clear()
