"""How much of what one end sends may be on its way to the other: as much as the way carries, and little more.

What lies in queues on the way delays every small message behind it, and signs of life too; what is less than the way holds leaves it idle.
So marks are put between what is sent, and the peer tells when it has read them: by that it is known how long the way takes, and how
much of it arrives in that time.

Who makes small calls beside a large one wants them answered soon: as long as they come, nothing lies in queues, even if the way is not always full then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

LEAST = 1 << 17  # bytes on their way: what a slow line takes before a sign of life is missed
MOST = 1 << 24
APART = 1 << 20  # bytes between two marks, at most
QUEUE = 0.005  # seconds that what is sent may lie in queues, beside what the way itself takes
HURRY = 0.05  # seconds after a small message beside a large one, in which there is to be no queue
LIGHT = LEAST // 4  # bytes on their way: so few that a mark behind them tells what the way itself takes
AGAIN = 10.0  # seconds after which that is found out again, for it may have become longer
CLOSEST = LIGHT // 4  # bytes between two marks, at least


@dataclass(slots=True)
class _Mark:
    """`end`: bytes sent up to it; `at`: when; `arrived`: bytes known to have arrived by then; `lost`: with a connection, and sent again."""

    number: int
    end: int
    at: float
    arrived: int
    lost: bool = False

    @property
    def light(self) -> bool:
        """Whether little was on its way before it."""
        return self.end - self.arrived <= 2 * LIGHT  # as much as there can be while that is found out


class Flow:
    """Of one end's bytes. `window`: bytes that may be under way; `arrived`: bytes of all that are known to have; `clock` gives seconds that
    never go back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.window = LEAST
        self._clock = clock
        self._sent = 0
        self.arrived = 0
        self._marks: deque[_Mark] = deque()  # that the peer has not told of
        self._number = 0
        self._rate = 0.0  # bytes in a second
        self._way = float("inf")  # seconds there and back when nothing else is under way
        self._known = clock()  # when that was found out
        self._hurried = -float("inf")  # when last
        self._apart = self.window // 4  # bytes between two marks, as long as that is known

    @property
    def room(self) -> int:
        """How many bytes may be sent now; what is urgent may exceed it by LEAST."""
        return self.window - (self._sent - self.arrived)

    @property
    def apart(self) -> int:
        """How many bytes lie between two marks. Few after a pause, so that the first of them is light; more where many go by in no time,
        for a mark and its answer take both ends longer than some bytes do."""
        return LIGHT // 2 if self._clock() - self._known > AGAIN else self._apart

    def sent(self, size: int) -> bool:
        """So many bytes were sent, perhaps none. Whether a mark is due."""
        self._sent += size
        marked = self._marks[-1].end if self._marks else self.arrived
        unmarked = self._sent - marked
        return unmarked >= CLOSEST and unmarked >= self.apart

    def mark(self) -> int:
        """The number of a mark behind what was sent."""
        self._number += 1
        self._marks.append(_Mark(self._number, self._sent, self._clock(), self.arrived))
        return self._number

    def interrupted(self) -> None:
        """The connection is another one: how long the marks under way take says nothing of the way."""
        for mark in self._marks:
            mark.lost = True

    def hurry(self) -> None:
        """Something small is to be sent beside what is large."""
        self._hurried = self._clock()

    def read(self, number: int) -> bool:
        """The peer has read up to this mark. False: it was told of before, or never put."""
        marks = self._marks
        if not marks or not marks[0].number <= number <= marks[-1].number:
            return False
        while (mark := marks.popleft()).number != number:
            pass
        now = self._clock()
        took = max(now - mark.at, 1e-6)
        self.arrived = mark.end
        if mark.lost:
            return True
        rate = (mark.end - mark.arrived) / took
        hurries = now - self._hurried < HURRY
        # Without a queue less arrives than could; the way has become slower only if there is one all the same.
        self._rate = max(rate, self._rate * (1.0 if hurries and took <= 2 * self._way + QUEUE else 0.9))
        if took <= self._way:
            self._way, self._known = took, now
        elif mark.light:
            self._way += (took - self._way) / (1 if now - self._known > AGAIN else 4)
            self._known = now
        if now - self._known > AGAIN:
            self.window = LIGHT  # until a mark has shown it
        else:
            self.window = max(LEAST, min(MOST, int(self._rate * (self._way if hurries else 2 * self._way + QUEUE))))
        self._apart = min(max(self.window // 4, min(self.window // 2, int(self._rate * QUEUE))), APART)
        return True
