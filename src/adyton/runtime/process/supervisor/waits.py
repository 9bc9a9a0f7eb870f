"""How often, and for how long, something in the enclave waits for its client. Without IO; the clock is the owner's.

Whoever serves the guest says of each request of it (a file operation, a socket call, a call of a registered function: the *waiter*, any
hashable name of it) when it begins to wait for the client, and when it has what it waited for:

    began(waiter, "read")     it cannot go on without the client; once more after `ended`, if it then needs something else
    ended(waiter)             it has its answer, or was given up; nothing if it did not wait
    hit() / miss()            a request about the client's files was answered from what is known here / was not

What the client is sent and nobody waits for (read ahead, written behind, a close) is none of these, until somebody waits for it.

A *round trip* is counted when a wait begins, unless one is under way in which nothing has arrived: requests that are sent together and
waited for together are one, and so is one request that waits for many answers; what is asked for after an answer came is the next one.
A program with one thread has as many round trips as it has waits one after the other. `waiting` is the time in which at least one
waits. Bytes of a socket stand-in and entry calls are no waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from adyton.communicator.messages import MAX_WAITS, Counts, Wait

REPORT_AFTER = 1_000_000_000  # nanoseconds between two reports in the middle of an entry


class Waits:
    """See the module."""

    def __init__(self, now: Callable[[], int] = time.monotonic_ns) -> None:
        """`now`: nanoseconds; never backwards. What is told of times counts from here: the machine's clock says when it was started."""
        self._clock, self._start = now, now()
        self._waiters: set[Hashable] = set()
        self._under_way = False  # a round trip in which nothing has arrived
        self._since = 0
        self._what = ""
        self._waited = 0
        self._kept: list[Wait] = []
        self._lost = 0  # waits that were not kept, because too many were
        self._entered: dict[int, int] = {}  # entries under way, and when they arrived; for a trace
        self._reported = (0, 0, 0, 0)
        self._reported_at = 0
        self.keep = False  # waits, for a trace
        self.changed = False  # something, perhaps, since the last report
        self.round_trips = 0
        self.hits = 0
        self.misses = 0

    def _now(self) -> int:
        return self._clock() - self._start

    def began(self, waiter: Hashable, what: str) -> None:
        """Something in the enclave waits for the client from now on. Nothing if this waiter does already."""
        if waiter in self._waiters:
            return
        if not self._waiters:
            self._since, self._what = self._now(), what
        self._waiters.add(waiter)
        if not self._under_way:
            self._under_way = self.changed = True
            self.round_trips += 1

    def ended(self, waiter: Hashable) -> None:
        """It waits no longer. Nothing if it did not."""
        if waiter not in self._waiters:
            return
        self._waiters.discard(waiter)
        self._under_way = False
        if self._waiters:
            return
        duration = self._now() - self._since
        self._waited += duration
        self.changed = True
        if self.keep:
            if len(self._kept) < MAX_WAITS:
                self._kept.append(Wait(self._since, duration, self._what))
            else:
                self._lost += 1

    def hit(self) -> None:
        """A request of the guest about the client's things was answered from here."""
        self.hits += 1
        self.changed = True

    def miss(self) -> None:
        """One had to be asked of the client."""
        self.misses += 1
        self.changed = True

    def entered(self, call: int) -> None:
        """The client's entry `call` has arrived."""
        if self.keep:
            self._entered[call] = self._now()

    def report(self, call: int = 0) -> Counts | None:
        """What the client is to be told before the reply to its entry `call`; None: nothing has changed. Not needed unless `changed` or `keep`.

        Without a call: None unless a second has passed since the last report, or much is kept.
        """
        now = self._now()
        received = self._entered.pop(call, 0)
        current = (self.round_trips, self.hits, self.misses, self._waited)
        due = call or now - self._reported_at >= REPORT_AFTER or len(self._kept) >= MAX_WAITS // 2
        if current == self._reported or not due:
            self.changed = current != self._reported
            return None
        self._reported, self._reported_at, self.changed = current, now, False
        kept, self._kept = self._kept, []
        waiting = self._waited + (now - self._since if self._waiters else 0)
        return Counts(self.round_trips, waiting, self.hits, self.misses, call, received, now, self._lost, kept)
