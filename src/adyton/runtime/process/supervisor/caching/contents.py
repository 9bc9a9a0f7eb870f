"""The content of one of the client's files, as far as it is here: blocks that were read, and writes on their way.

A block is BLOCK bytes at a multiple of that, or what the file has of them. A block on its way that a write overtakes is not used:
whether it holds the write nobody can say. Writes go out in order; what is written while others are under way is put together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from adyton.hostcall import abi
from adyton.runtime.process.supervisor.calls import Pending

BLOCK = 1 << 17  # bytes
RUN = abi.MAX_BLOCK // BLOCK  # blocks that are asked for together
MAX_CACHED = 64 << 20  # bytes of blocks, of all files together
_LEAST = 1 << 10  # bytes that a block counts for
MAX_DIRTY = 32 << 20  # bytes of writes that the client has not confirmed, of all files together


class Run(Pending):
    """Blocks from `first` on, under way."""

    __slots__ = ("first",)

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def part(self, block: int, data: bytes) -> bytes:
        """What `data`, which came, has of a block."""
        start = (block - self.first) * BLOCK
        return data[start : start + BLOCK]


@dataclass(slots=True, eq=False)
class Extent:
    """`size` bytes to be written at `offset`; with `append` at the end, wherever that is. `handle`: the client's."""

    handle: int
    offset: int
    size: int
    parts: list[bytes]
    append: bool

    @property
    def end(self) -> int:
        """The first offset behind it."""
        return self.offset + self.size

    def content(self) -> bytes:
        """All bytes."""
        if len(self.parts) > 1:
            self.parts = [b"".join(self.parts)]
        return self.parts[0]

    def overlaps(self, other: Extent) -> bool:
        """Whether both write the same byte; where an end is, only the client knows."""
        return self.append or other.append or (self.offset < other.end and other.offset < self.end)


@dataclass(slots=True, eq=False)
class Contents:
    """Of one file. `blocks`: their bytes, or what will bring them; `waiting`: writes not sent; `sent`: those under way.

    `under_way`: other changes that were answered already, and that the client has not confirmed.
    """

    blocks: dict[int, bytes | bytearray | Run] = field(default_factory=dict)
    waiting: list[Extent] = field(default_factory=list)
    sent: list[Extent] = field(default_factory=list)
    waiting_bytes: int = 0
    retried: bool = False  # a part of a write was sent once more
    under_way: int = 0
    drained: Pending | None = None

    @property
    def busy(self) -> bool:
        """Whether the client does not have all that was written."""
        return bool(self.waiting or self.sent) or self.under_way > 0

    def forget(self) -> None:
        """The blocks are not what the file holds."""
        self.blocks.clear()

    def cut(self, size: int) -> None:
        """The file has `size` bytes now: blocks that end elsewhere are forgotten."""
        for block in [block for block, data in self.blocks.items() if (block + 1) * BLOCK > size or _ends_early(data)]:
            del self.blocks[block]

    def overwrite(self, offset: int, data: bytes, size: int) -> None:
        """A write into a file of `size` bytes: blocks that are here have it at once."""
        end = offset + len(data)
        if offset > size:
            self.blocks.pop(size // BLOCK, None)  # what lies between are zeros now
        for block in range(offset // BLOCK, -(-end // BLOCK)):
            held = self.blocks.get(block)
            if held is None:
                continue
            start = block * BLOCK
            low, high = max(offset, start), min(end, start + BLOCK)
            if isinstance(held, Run) or low - start > len(held):
                del self.blocks[block]
                continue
            if isinstance(held, bytes):
                held = self.blocks[block] = bytearray(held)
            held[low - start : high - start] = data[low - offset : high - offset]

    def add(self, extent: Extent) -> None:
        """Write this after all else: with the one before it, if it goes on there."""
        self.waiting_bytes += extent.size
        last = self.waiting[-1] if self.waiting else None
        if (
            last is not None
            and (last.handle, last.append) == (extent.handle, extent.append)
            and last.end == extent.offset
            and last.size + extent.size <= abi.MAX_BLOCK
        ):
            last.parts += extent.parts
            last.size += extent.size
        else:
            self.waiting.append(extent)


def _ends_early(data: bytes | bytearray | Run) -> bool:
    return isinstance(data, Run) or len(data) < BLOCK


class Blocks:
    """Which blocks of which files are here, least used first; at most MAX_CACHED bytes."""

    def __init__(self, capacity: int = MAX_CACHED) -> None:
        self._capacity = capacity
        self._held: OrderedDict[tuple[int, int], tuple[Contents, int]] = OrderedDict()
        self._bytes = 0

    def put(self, contents: Contents, block: int, data: bytes | bytearray) -> None:
        """It came, or is begun."""
        key = (id(contents), block)
        self._remove(key)
        contents.blocks[block] = data
        size = BLOCK if isinstance(data, bytearray) else max(_LEAST, len(data))
        self._held[key] = contents, size
        self._bytes += size
        while self._bytes > self._capacity:
            oldest = next(iter(self._held))
            owner, _ = self._held[oldest]
            if isinstance(owner.blocks.get(oldest[1]), bytes | bytearray):
                del owner.blocks[oldest[1]]
            self._remove(oldest)

    def used(self, contents: Contents, block: int) -> None:
        """It was read."""
        key = (id(contents), block)
        if key in self._held:
            self._held.move_to_end(key)

    def _remove(self, key: tuple[int, int]) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._bytes -= held[1]


def blocks_of(offset: int, size: int) -> Iterator[int]:
    """The blocks that hold these bytes."""
    return iter(range(offset // BLOCK, -(-(offset + size) // BLOCK)))
