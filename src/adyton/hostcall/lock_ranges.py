"""Locks on ranges of one file, by owner, as fcntl(2) has them. Pure; both ends of a host call use it.

An owner's locks replace its own where they overlap, and never stand in its own way. Ranges include both ends; LAST stands for no end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from adyton.hostcall import abi

LAST = (1 << 63) - 1  # the last byte that a file can have


class Held(NamedTuple):
    """A lock. `process`: who took it, for those who ask; 0: not known."""

    owner: int
    kind: abi.LockKind
    start: int
    end: int
    process: int


class LockRanges:
    """All locks of one file."""

    def __init__(self) -> None:
        self._held: list[Held] = []

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held)

    def in_the_way(self, owner: int, kind: abi.LockKind, start: int, end: int) -> Iterator[Held]:
        """The locks of others that bar this one."""
        for held in self._held:
            if held.owner != owner and held.start <= end and start <= held.end and "write" in (held.kind, kind):
                yield held

    def set(self, owner: int, kind: abi.LockKind, start: int, end: int, process: int = 0) -> None:
        """The owner has this lock now, or none ("none") there. Neighbours of the same kind become one."""
        kept = []
        for held in self._held:
            if held.owner != owner or held.end < start - 1 or end + 1 < held.start:
                kept.append(held)
            elif held.kind == kind:
                start, end = min(start, held.start), max(end, held.end)
            else:
                if held.start < start:
                    kept.append(held._replace(end=min(held.end, start - 1)))
                if held.end > end:
                    kept.append(held._replace(start=max(held.start, end + 1)))
        if kind != "none":
            kept.append(Held(owner, kind, start, end, process))
        self._held = kept

    def drop(self, owner: int) -> None:
        """The owner has none any more."""
        self._held = [held for held in self._held if held.owner != owner]
