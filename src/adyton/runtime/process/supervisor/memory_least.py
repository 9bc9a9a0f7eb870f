"""What processes have of memory together at least, from sizes that count for each of them what several share. Sans-IO.

To know what they have exactly takes a walk through all their page tables. But what one of them has got more of its own from one look to the
next is new, and nobody else's; and what it has less, or had when it ended, is at most as much less of all. What one that is new shares with
whoever started it is known already. So a bound goes on from look to look, and an exact size moves it. Not so where two processes have the same
memory, see memory_lent: who relies on the bound asks for it `without` those.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple


class Size(NamedTuple):
    """Of a process, in bytes: `whole`: all that it has; `own`: of that, pages which it can share only with who was forked (swap included)."""

    whole: int
    own: int


Sizes = Mapping[str, Size]


class Least:
    """Of the processes that looks find, one after the other.

    What is certainly there is `_credit`ed to the process that took it, or is a part of `_common`, which those have that an exact look found. Who
    is forked later shares it only: its end takes nothing away but what it took itself, so to start many for a moment hides nothing.
    """

    def __init__(self) -> None:
        self._common = 0
        self._members: frozenset[str] = frozenset()
        self._credit: dict[str, int] = {}
        self._before: Sizes = {}

    def look(self, sizes: Sizes) -> int:
        """What they have at least, in bytes."""
        for process, before in self._before.items():
            now = sizes.get(process, Size(0, 0))
            credit = self._credit.get(process, 0) + min(now.whole - before.whole, now.own - before.own)
            self._credit[process] = max(0, credit)
            if credit < 0 and process in self._members:
                self._common = max(0, self._common + credit)
        self._credit = {process: credit for process, credit in self._credit.items() if credit and process in sizes}
        self._members &= sizes.keys()
        self._before = sizes
        known = self._common + sum(self._credit.values())
        largest = max(sizes, key=lambda process: sizes[process].own, default="")
        if largest and sizes[largest].own > known:
            self._common, self._credit, known = 0, {largest: sizes[largest].own}, sizes[largest].own
        return known

    def without(self, processes: Collection[str]) -> int:
        """What the others of them have at least; `processes`: such as have another one's memory, so that what that took counts for them too."""
        others = [process for process in self._before if process not in processes]
        known = self._common + sum(self._credit.get(process, 0) for process in others)
        return max([known, *(self._before[process].own for process in others)])

    def exactly(self, memory: int, sizes: Sizes, *, same: bool) -> None:
        """They had so much while that was looked for; `sizes`: of each the largest that it had meanwhile. Both are of those who are still there.

        Unless they are the `same` as before that look, it is at least so much, and moves the bound upwards only.
        """
        if same or memory > self._common + sum(self._credit.values()):
            self._common, self._members, self._credit, self._before = memory, frozenset(sizes), {}, sizes
