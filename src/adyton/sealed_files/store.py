"""All objects of a store, by number, and the commits that make their changes durable all at once. Sans-IO: see `storage`.

    table      the content of an object without a number: a record of 128 bytes for each number
    object     content, and 64 bytes of attributes, in which its owner keeps what it likes; object 0 is the store's own: its past, see `memory`

A commit writes to free slots what was changed (blocks, then the nodes above them, up to the table's root), syncs, writes the first superblock, and syncs again. Before
that second sync the container is in the state of the commit before, and after it in the new one, whatever is cut. What is read is judged by the pointers in memory, so a disk
that gives an older block, or another one, is found out at once.

A full container stays one in which everything can be removed. What a commit takes before it gives anything back is set aside as it comes about (`_left`):
what is written and the nodes above, the whole table once, and what the owner says of what it writes itself at a commit (`set_aside`). Only what needs more of it can fail with ENOSPC.

One thing at a time: whoever runs the generators of a store ends one before it begins another.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from adyton.errors import IntegrityError
from adyton.sealed_files.cipher import BLOCK, HOLE, KEY_SIZE, MAX_SEALED, POINTER, BlockCipher, Keys, slot_of
from adyton.sealed_files.contents import FAN_OUT, MAX_DEPTH, MAX_SIZE, ZEROS, Contents, Sealed, slots_for
from adyton.sealed_files.memory import ENTRY, EPOCH_SIZE, MAX_PAST, Commit, Memory, Notes, last_in, set_back
from adyton.sealed_files.space import SUPERBLOCKS, Space
from adyton.sealed_files.storage import Read, Resize, Size, Steps, StorageError, Sync, Write
from adyton.sealed_files.superblock import Superblock, open_superblock

ATTRIBUTES_SIZE = 64
MAX_OBJECTS = 1 << 16
RECORD = struct.Struct(f"<?BQ{POINTER}s{ATTRIBUTES_SIZE}s22x")  # is there, depth, size, root, attributes
HELD = 8 << 20  # bytes that were written and are not in the container; above that they are put there, before any commit
NODES = (
    64 << 20
)  # bytes of nodes in memory, besides those of one container that is full of large files; with more nothing is added
CACHED = 256  # blocks that were read
PIECE = 256  # blocks of one Read or Write
SPARE = 64  # blocks that are left to files that are cut off or get holes, until a commit gives back what that frees
_PAST_SLOTS = 8  # of one more entry: two blocks at most, and the nodes above them
_PAST = 0  # number of the object
_ENTRIES = ENTRY.size << 11  # bytes of a past that are looked at together
_TRIMMED = 1024  # free slots at the container's end, from which on it is cut


class StoredObject:
    """`number`: 0 while the next commit does not have it. `attributes`: see the module; set them by Store.describe."""

    __slots__ = ("attributes", "contents", "number")

    def __init__(self, number: int, contents: Contents, attributes: bytes = bytes(ATTRIBUTES_SIZE)) -> None:
        self.number = number
        self.contents = contents
        self.attributes = attributes

    @property
    def size(self) -> int:
        """Of the content, in bytes."""
        return self.contents.size


class Store:
    """See the module. `keys`: the enclave's; `capacity`: bytes that the container may have at most.

    `remembers`: somebody does (storage.Recall, Remember): each commit is told to him before it is done. `demands`: nothing is opened that nobody remembers.
    """

    def __init__(self, keys: Keys, capacity: int, *, remembers: bool = False, demands: bool = False) -> None:
        self.objects: dict[int, StoredObject] = {}
        self.set_aside = 0  # slots that the owner will need for what it will `rewrite`
        self.damaged: str | None = None  # what was found when it was opened, and did no harm
        self._keys = keys
        self._sealing: tuple[bytes, bytes] | None = None  # header and key of the superblocks that are written
        self._use(os.urandom(KEY_SIZE))
        self._space = Space(capacity // BLOCK)
        self._memory = Memory(remembers=remembers, demands=demands)
        self._epoch = os.urandom(EPOCH_SIZE)  # of what this one commits
        self._last = Commit(self._epoch, 0)
        self._past = StoredObject(_PAST, Contents())
        self._table = Contents()
        self._records = bytearray()
        self._changed: set[int] = set()  # numbers whose records are to be written
        self._unnumbered: set[StoredObject] = set()
        self._read: OrderedDict[int, bytes] = OrderedDict()  # blocks by slot
        self._sealed = 0  # blocks, ever
        self._superblock = b""  # of the last commit, sealed; empty: there was none
        self._second = b""  # what the second slot has, as far as is known
        self._broken = False
        self._held = 0
        self._end = SUPERBLOCKS  # slots that were ever written
        self._lowest = 1  # number that may be free

    # -- opening ----------------------------------------------------------------------------------------------------

    def _use(self, secret: bytes) -> None:
        self._secret, self._cipher, self._notes = secret, BlockCipher(secret), Notes(secret)

    def open(self) -> Steps[None]:
        """Read what the last commit has, but for contents: first of all, and once. IntegrityError, StorageError."""
        size = yield Size()
        first, second = (yield Read(((0, BLOCK), (BLOCK, BLOCK)))) if size else (b"", b"")
        found = self._choose(first, second)
        if found is not None:
            self._use(found.secret)
            self._last, self._sealed = Commit(found.epoch, found.counter), found.sealed
        remembered = yield from self._memory.recall(self._notes, None if found is None else self._last)
        if found is None:
            return
        yield from self._read_all(found, size)
        if remembered is not None and not (yield from self._comes_from(remembered)):
            raise set_back(self._last, remembered)
        yield from self._tell()  # what was seen is not to be set back either

    def _comes_from(self, commit: Commit) -> Steps[bool]:
        """Whether the last commit is that one, or was made after it."""
        if commit.epoch == self._last.epoch:
            return True
        end = self._past.size
        while end:
            start = max(0, end - _ENTRIES)
            last = last_in((yield from self.read(self._past, start, end - start)), commit.epoch)
            if last is not None:
                return commit.counter <= last
            end = start
        return False

    def _read_all(self, found: Superblock, size: int) -> Steps[None]:
        """All but contents. `size`: of the container, in bytes."""
        if found.slots > size // BLOCK:
            raise IntegrityError(
                f"the sealed files were cut off: their container has {size} bytes, and must have {found.slots * BLOCK}. Restore it as it was"
            )
        self._space.grow(found.slots)
        self._end = found.slots
        if found.size % RECORD.size or found.size > MAX_OBJECTS * RECORD.size:
            raise IntegrityError("the sealed files are not whole: their table is no table")
        self._table = Contents(found.size, found.depth, found.root)
        yield from self._load([self._table])
        self._records = bytearray((yield from self._blocks(self._table, range(self._table.blocks))))[: found.size]
        for number, (there, depth, length, root, attributes) in enumerate(RECORD.iter_unpack(self._records)):
            if there:
                self.objects[number] = StoredObject(number, Contents(length, depth, root), attributes)
        yield from self._load([each.contents for each in self.objects.values()])
        self._past = self.objects.pop(_PAST, self._past)
        if self._past.size % ENTRY.size or self._past.size > MAX_PAST:
            raise IntegrityError("the sealed files are not whole: their past is none")

    def _choose(self, first: bytes, second: bytes) -> Superblock | None:
        """The later of the two superblocks that are whole."""
        whole: list[tuple[Superblock, bytes]] = []
        reason = ""
        for sealed in (second, first):
            try:
                whole.append((open_superblock(self._keys, sealed), sealed))
            except IntegrityError as error:
                reason = str(error)
        if not whole:
            if first.strip(b"\0"):
                raise IntegrityError(
                    f"the sealed files cannot be opened: neither superblock of their container can be: {reason}. Restore it as it was"
                )
            return None  # its first commit was cut before anything was promised, or it is new
        found, self._superblock = max(whole, key=lambda each: each[0].counter)
        self._second = second
        if len(whole) == 1 and (found.counter or second != self._superblock):
            self.damaged = "one of the two superblocks of the sealed files is not whole, by a crash or by a change; the other one holds"
        return found

    def _load(self, all_contents: list[Contents]) -> Steps[None]:
        """Read all nodes, as many at a time as can be."""
        wanted: list[tuple[Contents, int, int, bytes]] = []
        for contents in all_contents:
            if slot := slot_of(contents.root):
                self._space.use(slot)
                if contents.depth:
                    wanted.append((contents, contents.depth, 0, contents.root))
        while wanted:
            batch, wanted = wanted[:PIECE], wanted[PIECE:]
            nodes = yield from self._fetch([pointer for *_, pointer in batch])
            for (contents, level, index, _), node in zip(batch, nodes, strict=True):
                wanted += [(contents, *each) for each in contents.add_node(level, index, node, self._space)]

    def _fetch(self, pointers: list[bytes]) -> Steps[list[bytes]]:
        """The blocks of pointers, none of which is a hole; at most PIECE."""
        ranges: list[tuple[int, int]] = []
        for slot in map(slot_of, pointers):
            offset = slot * BLOCK
            if ranges and sum(ranges[-1]) == offset:
                ranges[-1] = ranges[-1][0], ranges[-1][1] + BLOCK
            else:
                ranges.append((offset, BLOCK))
        parts = yield Read(tuple(ranges))
        sealed = [
            part[at : at + BLOCK] for part, (_, size) in zip(parts, ranges, strict=True) for at in range(0, size, BLOCK)
        ]
        return [self._cipher.open(pointer, block) for pointer, block in zip(pointers, sealed, strict=True)]

    # -- objects ------------------------------------------------------------------------------------------------------

    def create(self) -> StoredObject:
        """A new, empty object, which no commit has until it has a number. ENOSPC."""
        before = self._table_slots()
        self.require(self._table_slots(1) - before)
        made = StoredObject(0, Contents())
        self._unnumbered.add(made)
        return made

    def number(self, stored: StoredObject) -> None:
        """Give it a number, by which the next commit has it; ENOSPC."""
        if stored.number:
            return
        free = next((number for number in range(self._lowest, MAX_OBJECTS) if number not in self.objects), None)
        if free is None:
            raise StorageError(errno.ENOSPC, "the sealed files are too many")
        self._lowest = free + 1
        stored.number = free
        self.objects[free] = stored
        self._unnumbered.discard(stored)
        self._changed.add(free)

    def withdraw(self, stored: StoredObject) -> None:
        """Take its number; it can still be read and written, until it is discarded."""
        if stored.number:
            del self.objects[stored.number]
            self._changed.add(stored.number)
            self._lowest = min(self._lowest, stored.number)
            stored.number = 0
            self._unnumbered.add(stored)

    def discard(self, stored: StoredObject) -> None:
        """Give up an object without a number, and its content."""
        assert not stored.number
        self._cut(stored, 0)
        self._unnumbered.discard(stored)

    def describe(self, stored: StoredObject, attributes: bytes) -> None:
        """Set its attributes."""
        stored.attributes = attributes.ljust(ATTRIBUTES_SIZE, b"\0")
        self._change(stored)

    def _change(self, stored: StoredObject) -> None:
        if stored.number:
            self._changed.add(stored.number)

    @property
    def doubtful(self) -> str | None:
        """Why it could have been set back unseen before it was opened; None: it could not, or is new."""
        return self._memory.doubtful

    @property
    def is_changed(self) -> bool:
        """Whether a commit has anything to do."""
        return bool(self._changed)

    @property
    def capacity(self) -> tuple[int, int]:
        """Blocks that the container may have, and how many of them are free."""
        return self._space.limit, max(0, self._left() - SPARE)

    # -- room ---------------------------------------------------------------------------------------------------------

    def _left(self) -> int:
        """Slots that nothing is set aside for."""
        return self._space.room - self._space.wanted - self._table_slots() - _PAST_SLOTS - self.set_aside

    def _table_slots(self, more: int = 0) -> int:
        """What the next commit takes if all of the table changes, and a later one then. `more`: objects."""
        records = max(len(self._records) // RECORD.size, 1 + len(self.objects) + len(self._unnumbered) + more)
        return needed_for(records * RECORD.size, self._table.size)

    def require(self, slots: int, *, frees: bool = False) -> None:
        """ENOSPC unless so many more can be set aside, of SPARE only by what `frees` others. Nothing is asked of what needs none."""
        if slots > 0 and slots + (0 if frees else SPARE) > self._left():
            raise StorageError(errno.ENOSPC, "the sealed files have no room left")

    # -- content ------------------------------------------------------------------------------------------------------

    def read(self, stored: StoredObject, offset: int, size: int) -> Steps[bytes]:
        """At most `size` bytes; fewer only at the end. IntegrityError, StorageError."""
        size = min(size, stored.size - offset)
        if size <= 0:
            return b""
        first = offset // BLOCK
        found = yield from self._blocks(stored.contents, range(first, (offset + size - 1) // BLOCK + 1))
        start = offset - first * BLOCK
        return found if start == 0 and len(found) == size else found[start : start + size]

    def _blocks(self, contents: Contents, indexes: range) -> Steps[bytes]:
        """The content's blocks, one behind the other."""
        found: dict[int, bytes | bytearray] = {}
        wanted: list[tuple[int, bytes]] = []
        for index in indexes:
            if (block := contents.written.get(index)) is not None:
                found[index] = block
                continue
            pointer = contents.pointer(index)
            slot = slot_of(pointer)
            if not slot:
                found[index] = ZEROS
            elif (known := self._read.get(slot)) is not None:
                self._read.move_to_end(slot)
                found[index] = known
            else:
                wanted.append((index, pointer))
        for start in range(0, len(wanted), PIECE):
            part = wanted[start : start + PIECE]
            opened = yield from self._fetch([pointer for _, pointer in part])
            for (index, pointer), plain in zip(part, opened, strict=True):
                found[index] = plain
                self._keep(slot_of(pointer), plain)
        return b"".join(found[index] for index in indexes)

    def _keep(self, slot: int, block: bytes) -> None:
        self._read[slot] = block
        if len(self._read) > CACHED:
            self._read.popitem(last=False)

    def write(self, stored: StoredObject, offset: int, data: bytes | memoryview) -> Steps[None]:
        """All of `data`; what lies between the end and `offset` becomes zeros. EFBIG, ENOSPC; IntegrityError, StorageError: nothing was written then."""
        if not data:
            return
        if offset + len(data) > MAX_SIZE:
            raise StorageError(errno.EFBIG, "the sealed file would be too large")
        yield from self._make_room(len(data))
        self._require_for(len(data) // BLOCK + 2)
        yield from self._write(stored, offset, data)

    def rewrite(self, stored: StoredObject, content: bytes) -> Steps[None]:
        """That is all of it, for which room was set aside. IntegrityError, StorageError: nothing was written then."""
        yield from self._make_room(len(content))
        yield from self._write(stored, 0, content)
        if len(content) < stored.size:
            yield from self._zero(stored.contents, len(content), -(-len(content) // BLOCK) * BLOCK)
            self._cut(stored, len(content))

    def _write(self, stored: StoredObject, offset: int, data: bytes | memoryview) -> Steps[None]:
        end, contents = offset + len(data), stored.contents
        first, last = offset // BLOCK, (end - 1) // BLOCK
        edges = {index for index, at in ((first, offset), (last, end)) if at % BLOCK and index < contents.blocks}
        for index in sorted(edges):
            yield from self._take_up(contents, index)
        contents.extend(end, self._space)
        for index in range(first, last + 1):
            start = index * BLOCK
            low, high = max(offset, start), min(end, start + BLOCK)
            block = contents.written.get(index)
            if block is None:
                block = contents.hold(index, bytearray(BLOCK), self._space)
                self._held += BLOCK
            block[low - start : high - start] = data[low - offset : high - offset]
        self._change(stored)

    def _take_up(self, contents: Contents, index: int) -> Steps[None]:
        """Have a block in memory, to be changed in part."""
        if index not in contents.written:
            block = bytearray((yield from self._blocks(contents, range(index, index + 1))))
            contents.hold(index, block, self._space)
            self._held += BLOCK

    def _make_room(self, size: int) -> Steps[None]:
        """For so many more bytes in memory."""
        self._check()
        if self._held + size > HELD:
            yield from self._spill()

    def _require_for(self, blocks: int) -> None:
        """ENOSPC unless so many blocks, one behind the other, can be written, with what is above them."""
        self.require(blocks + 2 * (blocks // FAN_OUT + MAX_DEPTH))
        if self._space.held > NODES + self._space.limit * POINTER:
            raise StorageError(errno.ENOSPC, "the sealed files are in more pieces than can be kept in mind")

    def resize(self, stored: StoredObject, size: int) -> Steps[None]:
        """Cut off, or fill up with zeros. EFBIG, ENOSPC; IntegrityError, StorageError."""
        if size > MAX_SIZE:
            raise StorageError(errno.EFBIG, "the sealed file would be too large")
        self._check()
        if size < stored.size:
            rest = size % BLOCK
            if size:
                yield from self._make_room(BLOCK)
                self.require(1 + MAX_DEPTH, frees=True)
            if rest:
                yield from self._zero(stored.contents, size, size - rest + BLOCK)
            self._cut(stored, size)
        elif size > stored.size:
            self._require_for(0)
            stored.contents.extend(size, self._space)
        self._change(stored)

    def punch(self, stored: StoredObject, offset: int, end: int) -> Steps[None]:
        """What is there up to `end`, or the end of the content, becomes a hole. ENOSPC; IntegrityError, StorageError."""
        end = min(end, stored.size)
        if offset >= end:
            return
        yield from self._make_room(2 * BLOCK)
        self.require(2 * (1 + MAX_DEPTH), frees=True)
        contents = stored.contents
        first, last = -(-offset // BLOCK), contents.blocks if end == stored.size else end // BLOCK
        if first > last:
            yield from self._zero(contents, offset, end)
        else:
            yield from self._zero(contents, offset, first * BLOCK)
            yield from self._zero(contents, last * BLOCK, end)
            before = len(contents.written)
            contents.punch(first, last, self._space)
            self._held -= (before - len(contents.written)) * BLOCK
        self._change(stored)

    def _zero(self, contents: Contents, offset: int, end: int) -> Steps[None]:
        """Of one block, unless it is a hole."""
        index, at = divmod(offset, BLOCK)
        if offset < end and (index in contents.written or contents.pointer(index) != HOLE):
            yield from self._take_up(contents, index)
            contents.written[index][at : at + end - offset] = bytes(end - offset)

    def _cut(self, stored: StoredObject, size: int) -> None:
        before = len(stored.contents.written)
        stored.contents.cut(size, self._space)
        self._held -= (before - len(stored.contents.written)) * BLOCK

    # -- commits ------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._broken:
            raise StorageError(errno.EIO, "the disk of the sealed files failed before: load the enclave again")

    def _spill(self) -> Steps[None]:
        """Put what was written into the container, for a later commit."""
        everything = [*self._listed(), *self._unnumbered]
        yield from self._put(
            [sealed for each in everything for sealed in each.contents.seal_blocks(self._cipher, self._space)]
        )
        for each in everything:
            each.contents.put_blocks(self._space)
        self._held = 0

    def _put(self, sealed: list[Sealed]) -> Steps[None]:
        self._sealed += len(sealed)
        if self._sealed > MAX_SEALED:
            raise StorageError(
                errno.ENOSPC, "the key of the sealed files has sealed as much as it may: copy them to a new store"
            )
        sealed.sort()
        for slot, _ in sealed:
            self._read.pop(slot, None)
        for start in range(0, len(sealed), PIECE):
            yield Write(tuple(_joined(sealed[start : start + PIECE])))
        if sealed:
            self._end = max(self._end, sealed[-1][0] + 1)

    def commit(self) -> Steps[None]:
        """Make all changes durable. After an error the container is as it was before, or, after a failed Sync, that cannot be known, and only reading goes on."""
        if not self.is_changed:
            return
        self._check()
        yield from self._write_all()
        yield from self._tell()

    def _tell(self) -> Steps[None]:
        """Have the last commit remembered. If that fails nobody knows whether it is, and only reading goes on."""
        self._broken = True
        yield from self._memory.tell(self._notes, self._last)
        self._broken = False

    def _listed(self) -> list[StoredObject]:
        """Of the changed objects, those that the next commit has."""
        return [stored for number in sorted(self._changed) if (stored := self._numbered(number)) is not None]

    def _numbered(self, number: int) -> StoredObject | None:
        return self._past if number == _PAST else self.objects.get(number)

    def _end_epoch(self) -> Steps[None]:
        """Of whoever had the container before, with the first commit of ours. ENOSPC."""
        if self._last.epoch == self._epoch or _PAST in self._changed:
            return
        if self._past.size >= MAX_PAST:
            raise StorageError(
                errno.ENOSPC, "the sealed files had as many enclaves as they may: copy them to a new store"
            )
        yield from self._write(self._past, self._past.size, ENTRY.pack(self._last.epoch, self._last.counter))
        self._changed.add(_PAST)

    def _write_all(self) -> Steps[None]:
        key = self._sealing_key()  # where there is none, nothing is written
        yield from self._end_epoch()
        listed = self._listed()
        sealed: list[Sealed] = []
        for each in listed:
            sealed += each.contents.seal_blocks(self._cipher, self._space)
            sealed += each.contents.seal_nodes(self._cipher, self._space)
        for number in sorted(self._changed):
            self._record(number)
        sealed += self._table.seal_blocks(self._cipher, self._space)
        sealed += self._table.seal_nodes(self._cipher, self._space)
        yield from self._put(sealed)
        if not self._superblock:
            yield from self._begin()
        elif self._second != self._superblock:
            yield Write(((BLOCK, self._superblock),))
        commit = Commit(self._epoch, self._last.counter + 1)
        superblock = Superblock(
            *(commit.counter, commit.epoch, self._sealed, min(self._end, self._space.needed)),
            *(self._table.size, self._table.depth, self._table.root, self._secret),
        ).seal(*key)
        self._broken = True  # unless all of this succeeds
        yield Sync()
        yield Write(((0, superblock),))
        yield Sync()
        self._broken = False
        self._last = commit
        self._superblock = superblock
        for each in listed:
            self._held -= len(each.contents.written) * BLOCK
        for contents in (*(each.contents for each in listed), self._table):
            contents.put_blocks(self._space)
            contents.put_nodes(self._space)
        self._changed.clear()
        self._space.committed()
        yield from self._tidy()

    def _record(self, number: int) -> None:
        """Put an object's record, or that there is none, where the table's next blocks come from."""
        start = number * RECORD.size
        if len(self._records) < start + RECORD.size:
            self._records.extend(bytes(start + RECORD.size - len(self._records)))
        stored = self._numbered(number)
        packed = bytes(RECORD.size)
        if stored is not None:
            contents = stored.contents
            packed = RECORD.pack(True, contents.depth, contents.size, contents.root, stored.attributes)
        self._records[start : start + RECORD.size] = packed
        self._table.extend(len(self._records), self._space)
        block = start // BLOCK
        self._table.hold(block, self._records[block * BLOCK : (block + 1) * BLOCK].ljust(BLOCK, b"\0"), self._space)

    def _sealing_key(self) -> tuple[bytes, bytes]:
        """Of this enclave as it is now: an older version is not to open what a newer one has written."""
        if self._sealing is None:
            self._sealing = self._keys.new()
        return self._sealing

    def _begin(self) -> Steps[None]:
        """Of a new store: something whole in the second slot, before anything is in the first."""
        empty = Superblock(0, self._epoch, 0, SUPERBLOCKS, 0, 0, HOLE, self._secret).seal(*self._sealing_key())
        yield Write(((BLOCK, empty),))
        yield Sync()
        self._superblock = self._second = empty
        yield from self._tell()  # else a crash behind the first commit would leave one that nobody remembers

    def _tidy(self) -> Steps[None]:
        """What makes no difference to what is durable: the second superblock, and free slots at the end."""
        try:
            yield Write(((BLOCK, self._superblock),))
            self._second = self._superblock
        except StorageError:
            self._second = b""  # the next commit begins with it
        before = len(self._space)
        kept = self._space.trim()
        self._end = min(self._end, kept)
        if before - kept >= _TRIMMED:
            try:
                yield Resize(kept * BLOCK)
            except StorageError:
                pass  # a container may be longer than it must be


def needed_for(size: int, before: int) -> int:
    """Slots for content that is to have so many bytes, and had `before`: for it to be written anew beside that, and once more when it has that size."""
    now, then = slots_for(size), slots_for(before)
    return now + max(0, now - then)


def _joined(sealed: Iterable[Sealed]) -> Iterator[tuple[int, bytes]]:
    """Parts of a Write, of blocks in order of their slots."""
    start, parts = 0, list[bytes]()
    for slot, block in sealed:
        if parts and slot != start + len(parts):
            yield start * BLOCK, b"".join(parts)
            parts = []
        if not parts:
            start = slot
        parts.append(block)
    if parts:
        yield start * BLOCK, b"".join(parts)
