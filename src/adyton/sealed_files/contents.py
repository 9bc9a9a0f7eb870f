"""The bytes of one object: a tree of blocks, of which each node holds the pointers to 128 nodes or blocks below it.

    level 0       blocks of the content; the last one ends in zeros
    level 1 …     nodes; node i of a level leads to 128 i … 128 i + 127 of the level below
    depth         the level of the root; 0: the content is one block, or nothing

All nodes are in memory, each up to its last pointer, and counted (Space.held); of the content only what was written and is not in the container yet. What is changed gets another slot each time (copy on write), so
what the last commit has stays as it is.
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
        self.written: dict[int, bytearray] = {}  # blocks that are not in the container yet, by index
        self._nodes: dict[tuple[int, int], bytearray] = {}  # by level and index
        self._changed: set[tuple[int, int]] = set()  # nodes that are not in the container yet

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
        self._changed.add(place)

    # -- changes ------------------------------------------------------------------------------------------------------

    def extend(self, size: int, space: Space) -> None:
        """The content has so many bytes at least; what is new is zeros."""
        self.size = max(self.size, size)
        while self.blocks > FAN_OUT**self.depth:
            root, self.root = self.root, HOLE
            self.depth += 1
            if root != HOLE:
                self._point(self.depth - 1, 0, root, space)

    def cut(self, size: int, space: Space) -> None:
        """The content has so many bytes at most. The block in which it ends, if it does within one, is to be written by the caller: with zeros behind."""
        if size >= self.size:
            return
        self.size = size
        for index in [index for index in self.written if index >= self.blocks]:
            del self.written[index]
        for slot in list(self._cut(space)):
            space.give_back(slot)

    def _cut(self, space: Space) -> Iterator[int]:
        """Take out what is behind the end; the slots of that."""
        count = self.blocks
        for level in range(1, self.depth + 1):
            ends = -(-count // FAN_OUT ** (level - 1))  # of the level below
            for place in [place for place in self._nodes if place[0] == level and (place[1] + 1) * FAN_OUT > ends]:
                first = max(0, ends - place[1] * FAN_OUT)
                node = self._nodes[place]
                yield from filter(None, _SLOTS.unpack(_whole(node))[first:])
                if first:
                    kept = min(first * POINTER, len(node))
                    space.held -= len(node) - kept
                    if kept < len(node):
                        del node[kept:]
                        self._changed.add(place)
                else:
                    del self._nodes[place]
                    space.held -= NODE_COST + len(node)
                    self._changed.discard(place)
        if not count:
            yield from filter(None, [slot_of(self.root)])
            self.root, self.depth = HOLE, 0

    def seal_blocks(self, cipher: BlockCipher, space: Space) -> Iterator[Sealed]:
        """Seal what was written, each block for a slot of its own. It is kept until `put`: the disk may fail. ENOSPC."""
        for index in sorted(self.written):
            yield self._seal(0, index, self.written[index], cipher, space)

    def seal_nodes(self, cipher: BlockCipher, space: Space) -> Iterator[Sealed]:
        """The same of nodes, those below first; up to the root."""
        for level in range(1, self.depth + 1):
            for place in sorted(place for place in self._changed if place[0] == level):
                yield self._seal(*place, _whole(self._nodes[place]), cipher, space)

    def _seal(self, level: int, index: int, block: bytearray, cipher: BlockCipher, space: Space) -> Sealed:
        slot = space.take()
        old = slot_of(self._pointer(level, index))
        if old:
            space.give_back(old)
        pointer, sealed = cipher.seal(slot, block)
        self._point(level, index, pointer, space)
        return slot, sealed

    def put_blocks(self) -> None:
        """What `seal_blocks` gave is in the container."""
        self.written.clear()

    def put_nodes(self) -> None:
        """What `seal_nodes` gave is in the container."""
        self._changed.clear()


def _whole(node: bytearray) -> bytearray:
    """As the container has it."""
    return node.ljust(BLOCK, b"\0")
