"""The bytes of one object: a tree of blocks, of which each node holds the pointers to 128 nodes or blocks below it.

    level 0       blocks of the content; the last one ends in zeros
    level 1 …     nodes; node i of a level leads to 128 i … 128 i + 127 of the level below
    depth         the level of the root; 0: the content is one block, or nothing

All nodes are in memory, each up to its last pointer, and counted (Space.held); of the content only what was written and is not in the container yet. What is changed gets another slot each time (copy on write), so
what the last commit has stays as it is. That these can be had is seen to beforehand: a block that is written counts at once (Space.wanted), and so does each node above it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from adyton.errors import IntegrityError
from adyton.sealed_files.cipher import BLOCK, HOLE, POINTER, BlockCipher, slot_of
from adyton.sealed_files.space import Space

FAN_OUT = BLOCK // POINTER
MAX_DEPTH = 5
MAX_SIZE = BLOCK * FAN_OUT**MAX_DEPTH // 2  # bytes: 64 TiB
ZEROS = bytes(BLOCK)
NODE_COST = 256  # bytes of memory that a node takes besides its pointers
_SLOTS = struct.Struct("<" + f"I{POINTER - 4}x" * FAN_OUT)

Sealed = tuple[int, bytes]  # slot, and what is to be there


class Contents:
    """Of one object, as the last commit has it: `size` in bytes, `depth` and pointer to the root."""

    __slots__ = ("_changed", "_nodes", "depth", "root", "size", "written")

    def __init__(self, size: int = 0, depth: int = 0, root: bytes = HOLE) -> None:
        if depth > MAX_DEPTH or size > BLOCK * FAN_OUT**depth:
            raise IntegrityError(f"the sealed files are not whole: an object of {size} bytes at depth {depth}")
        self.size = size
        self.depth = depth
        self.root = root
        self.written: dict[int, bytearray] = {}  # blocks that are not in the container yet, by index: see `hold`
        self._nodes: dict[tuple[int, int], bytearray] = {}  # by level and index
        # Nodes that are not in the container yet, or will not be: with each, and with each written block, all above it.
        self._changed: set[tuple[int, int]] = set()

    @property
    def blocks(self) -> int:
        """How many the content has."""
        return -(-self.size // BLOCK)

    # -- what the last commit has -------------------------------------------------------------------------------------

    def add_node(self, level: int, index: int, node: bytes, space: Space) -> Iterator[tuple[int, int, bytes]]:
        """A node that was read, in any order from the root: the level, index and pointer of the nodes that it leads to. IntegrityError."""
        mine = self._nodes[level, index] = bytearray(node[: -(-len(node.rstrip(b"\0")) // POINTER) * POINTER])
        space.held += NODE_COST + len(mine)
        ends = -(-self.blocks // FAN_OUT ** (level - 1))
        for number, slot in enumerate(_SLOTS.unpack(node)):
            if slot:
                below = index * FAN_OUT + number
                if below >= ends:
                    raise IntegrityError("the sealed files are not whole: an object has blocks behind its end")
                space.use(slot)
                if level > 1:
                    yield level - 1, below, bytes(mine[number * POINTER : (number + 1) * POINTER])

    def pointer(self, index: int) -> bytes:
        """To a block of the content; HOLE."""
        return self._pointer(0, index)

    def _pointer(self, level: int, index: int) -> bytes:
        if level == self.depth:
            return self.root if index == 0 else HOLE
        above, number = divmod(index, FAN_OUT)
        node = self._nodes.get((level + 1, above))
        return HOLE if node is None else bytes(node[number * POINTER : (number + 1) * POINTER]) or HOLE

    def _point(self, level: int, index: int, pointer: bytes, space: Space) -> None:
        if level == self.depth:
            assert index == 0
            self.root = pointer
            return
        above, number = divmod(index, FAN_OUT)
        place = level + 1, above
        node = self._nodes.get(place)
        if node is None:
            node = self._nodes[place] = bytearray()
            space.held += NODE_COST
        more = max(0, (number + 1) * POINTER - len(node))
        node.extend(bytes(more))
        space.held += more
        node[number * POINTER : (number + 1) * POINTER] = pointer
        self._mark(level, index, space)

    def _mark(self, level: int, index: int, space: Space) -> None:
        """All nodes above a node or block are to be sealed."""
        for above in range(level + 1, self.depth + 1):
            index //= FAN_OUT
            if (above, index) in self._changed:
                return
            self._changed.add((above, index))
            space.wanted += 1

    # -- changes ------------------------------------------------------------------------------------------------------

    def extend(self, size: int, space: Space) -> None:
        """The content has so many bytes at least; what is new is zeros."""
        self.size = max(self.size, size)
        while self.blocks > FAN_OUT**self.depth:
            root, self.root = self.root, HOLE
            self.depth += 1
            if root != HOLE:
                self._point(self.depth - 1, 0, root, space)
            elif self.written or self._changed:
                self._mark(self.depth - 1, 0, space)

    def hold(self, index: int, block: bytearray, space: Space) -> bytearray:
        """The block is written, and will be sealed as it is then."""
        if index not in self.written:
            space.wanted += 1
            self._mark(0, index, space)
        self.written[index] = block
        return block

    def cut(self, size: int, space: Space) -> None:
        """The content has so many bytes at most. The block in which it ends, if it does within one, is to be written by the caller: with zeros behind."""
        if size >= self.size:
            return
        self.size = size
        self._take_out(self.blocks, FAN_OUT**self.depth, space)
        if not size:
            self.depth = 0

    def punch(self, first: int, end: int, space: Space) -> None:
        """These blocks, up to `end`, become holes; the content is as long as before."""
        self._take_out(first, FAN_OUT**self.depth if end >= self.blocks else end, space)

    def _take_out(self, first: int, end: int, space: Space) -> None:
        for index in [index for index in self.written if first <= index < end]:
            del self.written[index]
            space.wanted -= 1
        for level in range(1, self.depth + 1):
            below = FAN_OUT ** (level - 1)  # blocks that a pointer leads to
            low, high = -(-first // below), end // below  # pointers of which nothing is left
            for place in [place for place in {*self._nodes, *self._changed} if place[0] == level]:
                start = place[1] * FAN_OUT
                self._clear(place, max(0, low - start), min(FAN_OUT, high - start), space)
        if not first and end >= FAN_OUT**self.depth:
            if slot := slot_of(self.root):
                space.give_back(slot)
            self.root = HOLE

    def _clear(self, place: tuple[int, int], first: int, end: int, space: Space) -> None:
        """Take these pointers out of a node, which is no more if these are all."""
        if first >= end:
            return
        node = self._nodes.get(place, bytearray())
        for slot in filter(None, _SLOTS.unpack(_whole(node))[first:end]):
            space.give_back(slot)
        if end - first == FAN_OUT:
            if self._nodes.pop(place, None) is not None:
                space.held -= NODE_COST + len(node)
            if place in self._changed:
                self._changed.discard(place)
                space.wanted -= 1
            return
        before = len(node)
        if first * POINTER >= before:
            return
        if end * POINTER >= before:
            del node[first * POINTER :]
        else:
            node[first * POINTER : end * POINTER] = bytes((end - first) * POINTER)
        space.held -= before - len(node)
        self._mark(place[0] - 1, place[1] * FAN_OUT, space)

    def seal_blocks(self, cipher: BlockCipher, space: Space) -> Iterator[Sealed]:
        """Seal what was written, each block for a slot of its own. It is kept until `put`: the disk may fail. ENOSPC."""
        for index in sorted(self.written):
            yield self._seal(0, index, self.written[index], cipher, space)

    def seal_nodes(self, cipher: BlockCipher, space: Space) -> Iterator[Sealed]:
        """The same of nodes, those below first; up to the root."""
        for level in range(1, self.depth + 1):
            for place in sorted(place for place in self._changed if place[0] == level):
                if (node := self._nodes.get(place)) is not None:  # else all that was below it is gone
                    yield self._seal(*place, _whole(node), cipher, space)

    def _seal(self, level: int, index: int, block: bytearray, cipher: BlockCipher, space: Space) -> Sealed:
        slot = space.replace(slot_of(self._pointer(level, index)))
        pointer, sealed = cipher.seal(slot, block)
        self._point(level, index, pointer, space)
        return slot, sealed

    def put_blocks(self, space: Space) -> None:
        """What `seal_blocks` gave is in the container."""
        space.wanted -= len(self.written)
        self.written.clear()

    def put_nodes(self, space: Space) -> None:
        """What `seal_nodes` gave is in the container."""
        space.wanted -= len(self._changed)
        self._changed.clear()


def slots_for(size: int) -> int:
    """How many slots content of so many bytes takes, if it has no holes: blocks, and nodes."""
    count = total = -(-size // BLOCK)
    while count > 1:
        count = -(-count // FAN_OUT)
        total += count
    return total


def _whole(node: bytearray) -> bytearray:
    """As the container has it."""
    return node.ljust(BLOCK, b"\0")
