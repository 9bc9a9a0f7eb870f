"""What processes have of memory together at least, from sizes that count for each of them what several share. Sans-IO.

To know what they have exactly takes a walk through all their page tables. But what one of them has got more of its own from one look to the
next is new, and nobody else's; and what it has less, or had when it ended, is at most as much less of all. What one that is new shares with
whoever started it is known already. So a bound goes on from look to look, and an exact size moves it. Not so where two processes have the same
memory, see memory_lent: who relies on the bound asks for those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Size(NamedTuple):
    """Of a process, in bytes: `whole`: all that it has; `own`: of that, pages which it can share only with who was forked (swap included)."""

    whole: int
    own: int


Sizes = Mapping[str, Size]


class Least:
    """Of the processes that looks find, one after the other."""

    def __init__(self) -> None:
        self._bytes = 0
        self._before: Sizes = {}

    def look(self, sizes: Sizes) -> int:
        """What they have at least, in bytes."""
        for process, before in self._before.items():
            now = sizes.get(process, Size(0, 0))
            self._bytes += min(now.whole - before.whole, now.own - before.own)
        self._bytes = max([self._bytes, *(size.own for size in sizes.values())])
        self._before = sizes
        return self._bytes

    def exactly(self, memory: int, sizes: Sizes) -> None:
        """They have so much; `sizes`: of each the largest that it had while that was found out."""
        self._bytes, self._before = memory, sizes
