"""Files below /sealed: in memory as names and attributes, their content in a store of sealed files, to which a commit brings both.

A commit is asked for by fsync (of any of them), and when an entry returns; the last one when the program's finalize does. What the store has of each:

    object      1 is /sealed itself
    attributes  kind, mode, number of names, times of access, modification, change and birth
    content     of a file its own; of a directory its names and the objects at them; of a link its target

There are no pipes, sockets or extended attributes. What goes on in the store is one thing at a time, by steps (see `view`): they yield what is asked of
the storage. Names change at once, so a commit takes what is to be stored of them first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import msgspec

from adyton.errors import IntegrityError, PlatformError
from adyton.hostcall import abi
from adyton.hostcall.names import in_bytes, in_text
from adyton.runtime.process.supervisor.fuse_abi import LARGEST, FileError
from adyton.runtime.process.supervisor.private import INODE_COST, Directory, File, Inode, Link, PrivateFiles, Special
from adyton.sealed_files.cipher import BLOCK
from adyton.sealed_files.contents import slots_for
from adyton.sealed_files.storage import Release, StorageError
from adyton.sealed_files.storage import Steps as StoreSteps
from adyton.sealed_files.store import MAX_OBJECTS, Store, StoredObject, needed_for

SEALED = "/sealed"
ROOT = 1  # the object that it is
_ATTRIBUTES = struct.Struct("<BHI4q")
_KINDS: tuple[type[Inode], ...] = (File, Directory, Link)
_NO_NAMES, _NAME = 5, 6  # bytes that a directory takes at most, and that each name of it takes besides its own
_DIRECTORY = msgspec.msgpack.Decoder(list[tuple[bytes, int]])
_R = TypeVar("_R")


class SealedFiles(PrivateFiles):
    """See the module. `say`: tells the client and the enclave's own log of what is wrong; `wait`, `freed`: see `_alone`."""

    def __init__(
        self,
        store: Store,
        numbers: Callable[[], int],
        now: Callable[[], int],
        say: Callable[[str], None],
        wait: object,
        freed: Callable[[], None],
    ) -> None:
        super().__init__(0, numbers, now)
        self._store = store
        self._say = say
        self._said: set[str] = set()
        self._wait = wait
        self._freed = freed
        self._busy = False
        self._ended = False
        self._count = 1  # of names, and of files without one; each is in memory, so a link's target counts, too
        self._dirty: dict[Inode, None] = {}  # whose attributes, or names, are to be stored
        self._dropped: list[StoredObject] = []  # that nobody has any more
        self._names: dict[Directory, int] = {}  # bytes that a directory takes at most, for its names
        self._needs: dict[Inode, int] = {}  # slots that are set aside for what a commit writes of it

    # -- opening ------------------------------------------------------------------------------------------------------

    def load(self) -> Generator[Any, Any, None]:
        """Take in what the store has: once, before anything else. FileError, after it was said why; then the container may be another enclave's."""
        return self._alone(self._or_given_back(self._load()))

    def _load(self) -> StoreSteps[None]:
        yield from self._store.open()
        for said in (self._store.damaged, self._store.doubtful):
            if said is not None:
                self._tell(said)
        objects = self._store.objects
        if not objects:
            self.root.mode = 0o700
            self.root.stored = self._store.create()
            self._set_aside(self.root)
            return
        inodes = {number: self._inode(stored) for number, stored in objects.items()}
        root = inodes.get(ROOT)
        if not isinstance(root, Directory):
            raise _malformed("their root is no directory")
        root.pinned = True
        self.root = root
        waiting, placed = [root], {ROOT}
        while waiting:
            directory = waiting.pop()
            assert directory.stored is not None
            content = yield from self._store.read(directory.stored, 0, directory.stored.size)
            for name, number in self._entries(content):
                inode = inodes.get(number)
                text = in_text(name)
                if inode is None or text in directory.entries or (number in placed and isinstance(inode, Directory)):
                    raise _malformed("a directory leads nowhere, or to another one")
                placed.add(number)
                self._count += 1
                directory.entries[text] = inode
                self._names[directory] = self._names.get(directory, _NO_NAMES) + len(name) + _NAME
                inode.links += 1
                if isinstance(inode, Directory):
                    directory.links += 1
                    waiting.append(inode)
        for inode in inodes.values():
            if isinstance(inode, Link):
                assert inode.stored is not None
                inode.target = yield from self._store.read(inode.stored, 0, abi.MAX_PATH)
                self._count += _weight(inode) - 1
            self._set_aside(inode)

    def _inode(self, stored: StoredObject) -> Inode:
        """As it is before its names are known."""
        kind, mode, _, *times = _ATTRIBUTES.unpack_from(stored.attributes)
        if kind >= len(_KINDS) or mode > 0o7777:
            raise _malformed("a file is of no kind that there is")
        number, now = self._numbers(), self._now()
        inode: Inode = Link(number, b"", now) if _KINDS[kind] is Link else _KINDS[kind](number, mode, now)
        inode.accessed, inode.modified, inode.changed, inode.born = times
        inode.links = 1 if isinstance(inode, Directory) else 0
        if stored.number == ROOT:
            inode.links = 2
        inode.stored = stored
        return self._new(inode)

    @staticmethod
    def _entries(content: bytes) -> list[tuple[bytes, int]]:
        try:
            entries = _DIRECTORY.decode(content)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise _malformed("a directory cannot be read") from error
        for name, _ in entries:
            if not 0 < len(name) <= abi.MAX_NAME or b"/" in name or b"\0" in name or name in (b".", b".."):
                raise _malformed("a directory has a name that none can have")
        return entries

    # -- what is different from other private files -----------------------------------------------------------------

    def make_special(self, directory: Directory, name: str, mode: int) -> Special:  # noqa: ARG002 - as there
        """EPERM."""
        raise FileError(errno.EPERM)

    def make_unnamed(self, mode: int) -> File:
        """As there; with an object of the store."""
        self._require_count(1)
        stored = self._created()
        file = super().make_unnamed(mode)
        self._count += 1
        file.stored = stored
        return file

    def _created(self) -> StoredObject:
        try:
            return self._store.create()
        except StorageError as error:
            raise FileError(error.number) from error

    def _place(self, directory: Directory, name: str, inode: Any) -> Any:
        self._require_count(_weight(inode))
        self._require_slots(directory, _size(name), self._needed(inode))
        stored = self._created()
        try:
            made = super()._place(directory, name, inode)
        except FileError:
            self._store.discard(stored)
            raise
        self._count += _weight(made)
        made.stored = stored
        self._dirty[made] = None
        self._set_aside(made)
        self._set_aside(directory, _size(name))
        return made

    def link(self, inode: Inode, directory: Directory, name: str) -> None:
        """As there; a further name counts as a file does."""
        further = int(inode.links > 0)
        self._require_count(further)
        self._require_slots(directory, _size(name))
        super().link(inode, directory, name)
        self._count += further
        self._set_aside(directory, _size(name))

    def rename(self, source: Directory, name: str, target: Directory, new_name: str, *, replace: bool) -> None:
        """As there; ENOSPC."""
        existing = target.entries.get(new_name)
        more = 0 if existing is not None else _size(new_name)
        less = _size(name) if source is target else 0
        if existing is not None and existing is source.entries.get(name):
            return  # two names of one file: both stay, as POSIX has it
        self._require_slots(target, more - less)
        super().rename(source, name, target, new_name, replace=replace)
        self._set_aside(source, -_size(name))
        self._set_aside(target, _size(new_name))

    def _unlink(self, directory: Directory, name: str, inode: Inode) -> None:
        super()._unlink(directory, name, inode)
        self._set_aside(directory, -_size(name))
        self._set_aside(inode)
        if inode.links:
            self._count -= 1

    def _needed(self, inode: Inode, more: int = 0) -> int:
        """Slots for what a commit writes of it, if its names take so many bytes more. A link is written once."""
        before = 0 if inode.stored is None else inode.stored.size
        if isinstance(inode, Directory):
            return needed_for(self._names.get(inode, _NO_NAMES) + more, before)
        return slots_for(len(inode.target)) if isinstance(inode, Link) and not before else 0

    def _require_slots(self, directory: Directory, more: int, others: int = 0) -> None:
        """ENOSPC unless there is room for so many bytes more of its names, and for so many slots."""
        try:
            self._store.require(self._needed(directory, more) - self._needed(directory) + others)
        except StorageError as error:
            raise FileError(error.number) from error

    def _set_aside(self, inode: Inode, more: int = 0) -> None:
        """Room for what the next commit writes of it, now that its names take so many bytes more: nothing that comes later takes that."""
        if isinstance(inode, Directory):
            self._names[inode] = self._names.get(inode, _NO_NAMES) + more
        needed = self._needed(inode) if inode.links else 0
        self._store.set_aside += needed - self._needs.pop(inode, 0)
        if needed:
            self._needs[inode] = needed
        else:
            self._names.pop(inode, None)  # type: ignore[call-overload]

    def _require_count(self, more: int) -> None:
        if self._count + more > MAX_OBJECTS - 1:
            raise FileError(errno.ENOSPC)

    def set_extended(self, inode: Inode, name: str, value: bytes, *, create: bool, replace: bool) -> None:  # noqa: ARG002
        """EOPNOTSUPP."""
        raise FileError(errno.EOPNOTSUPP)

    def room(self) -> tuple[int, int]:
        """What the container may have, and what of that is left."""
        slots, free = self._store.capacity
        return slots * BLOCK, free * BLOCK

    def _require_space(self, size: int) -> None:
        """The store sees to that."""

    def _changed(self, inode: Inode) -> None:
        super()._changed(inode)
        self._dirty[inode] = None

    def _drop(self, inode: Inode) -> None:
        if inode.links == 0 and inode.opens == 0 and inode.stored is not None:
            self._count -= _weight(inode)
            self._dropped.append(inode.stored)
            self._dirty.pop(inode, None)

    # -- content ------------------------------------------------------------------------------------------------------

    def read(self, file: File, offset: int, size: int) -> Generator[Any, Any, bytes]:
        """At most `size` bytes; fewer only at the end. EIO."""
        return self._alone(self._store.read(_stored(file), offset, size))

    def write(self, file: File, offset: int, data: bytes) -> Generator[Any, Any, int]:
        """All of `data`; EIO, ENOSPC, EFBIG."""
        yield from self._alone(self._store.write(_stored(file), offset, data))
        self._touched(file)
        return len(data)

    def resize(self, file: File, size: int) -> Generator[Any, Any, None]:
        """Cut off, or fill up with zeros; EIO, ENOSPC, EFBIG."""
        yield from self._alone(self._store.resize(_stored(file), size))
        self._touched(file)

    def allocate(self, file: File, way: abi.Allocation, offset: int, size: int) -> Generator[Any, Any, None]:
        """fallocate, of which there is no more than longer files and zeros: no room is promised."""
        if way in ("collapse", "insert", "unshare", "keep-size"):
            raise FileError(errno.EOPNOTSUPP)
        end = min(offset + size, LARGEST)
        if way in ("zero", "zero-keep-size", "punch-hole"):
            yield from self._alone(self._store.punch(_stored(file), offset, end))
        if way in ("extend", "zero") and end > file.size:
            yield from self._alone(self._store.resize(_stored(file), end))
        self._touched(file)

    # -- commits ------------------------------------------------------------------------------------------------------

    @property
    def is_changed(self) -> bool:
        """Whether `sync` has anything to do."""
        return bool(self._dirty) or bool(self._dropped) or self._store.is_changed

    def sync(self) -> Generator[Any, Any, None]:
        """What was done until now is durable, all of it, when this has ended. EIO, ENOSPC."""
        return self._alone(self._commit())

    def not_kept(self, number: int) -> None:
        """A commit that no program waited for has failed, with that errno."""
        if number != errno.EIO:  # of which it was said why
            self._tell(f"sealed files: what was changed is not on the disk: {os.strerror(number)}")

    def end(self) -> Generator[Any, Any, None]:
        """The same, and the last thing that is done: the program is finalized. The container may be another enclave's when this has ended, also by an error."""
        return self._alone(self._end())

    def _end(self) -> StoreSteps[None]:
        yield from self._or_given_back(self._commit())
        self._ended = True
        yield Release()

    def _or_given_back(self, steps: StoreSteps[None]) -> StoreSteps[None]:
        """These, after an error of which nothing more is done in the container."""
        try:
            yield from steps
        except (IntegrityError, PlatformError, StorageError):
            self._ended = True
            with contextlib.suppress(StorageError):  # it may not even have been opened
                yield Release()
            raise

    def _commit(self) -> StoreSteps[None]:
        dirty, self._dirty = self._dirty, {}
        if dirty and not _stored(self.root).number:
            dirty = {self.root: None, **dirty}  # so that it is the first object
        try:
            for inode in dirty:
                stored = _stored(inode)
                if inode.links:
                    self._store.number(stored)
                else:
                    self._store.withdraw(stored)
            written = [(_stored(inode), self._packed(inode), self._content(inode)) for inode in dirty if inode.links]
            for stored, attributes, content in written:
                if content is not None:
                    yield from self._store.rewrite(stored, content)
                self._store.describe(stored, attributes)
            yield from self._store.commit()
        except BaseException:
            self._dirty = {inode: None for inode in (*dirty, *self._dirty) if inode.links or inode.opens}
            raise
        finally:
            for inode in dirty:
                self._set_aside(inode)

    @staticmethod
    def _packed(inode: Inode) -> bytes:
        kind = next(number for number, each in enumerate(_KINDS) if isinstance(inode, each))
        times = (inode.accessed, inode.modified, inode.changed, inode.born)
        return _ATTRIBUTES.pack(kind, inode.mode, inode.links, *times)

    @staticmethod
    def _content(inode: Inode) -> bytes | None:
        """What the store is to have of it; None: it has it already."""
        if isinstance(inode, Directory):
            return msgspec.msgpack.encode([(in_bytes(name), _number(each)) for name, each in inode.entries.items()])
        return inode.target if isinstance(inode, Link) and not _stored(inode).size else None

    # -- one at a time ------------------------------------------------------------------------------------------------

    def _alone(self, steps: StoreSteps[_R]) -> Generator[Any, Any, _R]:
        """Do this while nothing else is done in the store; FileError for what goes wrong, which is said if nobody else would see it."""
        while self._busy:
            yield self._wait
        if self._ended:
            steps.close()
            raise FileError(errno.EIO)
        self._busy = True
        try:
            while self._dropped:
                stored = self._dropped.pop()
                self._store.withdraw(stored)
                self._store.discard(stored)
            return (yield from steps)
        except IntegrityError as error:
            self._tell(str(error))
            raise FileError(errno.EIO) from error
        except PlatformError as error:
            self._tell(str(error))
            raise FileError(errno.EIO) from error
        except StorageError as error:
            if error.number in (errno.EIO, errno.EBUSY):
                self._tell(f"sealed files: {error}")
            raise FileError(error.number) from error
        finally:
            steps.close()
            self._busy = False
            self._freed()

    def _tell(self, text: str) -> None:
        """Once for each text."""
        if text not in self._said:
            self._said.add(text)
            self._say(text)


def _weight(inode: Inode) -> int:
    return 1 + len(inode.target) // INODE_COST if isinstance(inode, Link) else 1


def _size(name: str) -> int:
    """Bytes that it takes in a directory at most."""
    return len(in_bytes(name)) + _NAME


def _stored(inode: Inode) -> StoredObject:
    assert inode.stored is not None
    return inode.stored


def _number(inode: Inode) -> int:
    number = _stored(inode).number
    assert number
    return number


def _malformed(what: str) -> IntegrityError:
    return IntegrityError(f"the sealed files are not whole: {what}")
