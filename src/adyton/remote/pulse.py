"""Whether the other end of a session lives. Without IO or clock: the times of its owner's ticks come in, and what to do comes out.

Only while somebody waits are there ticks, a few in each second. Each counts for no more than a tick, so that a process which was
itself stopped, or computes and lets none of its threads run, does not take its own silence for the peer's.
"""

from __future__ import annotations

from typing import Literal

TICK = 0.5  # seconds between two ticks
PING_AFTER = 1.0  # seconds of silence until a sign of life is asked for
LOST_AFTER = 3.5  # seconds of silence until the peer is given up
HANDSHAKE_LOST_AFTER = 2.5  # where nothing large is under way, and who waits has waited for the proxy server before
SUSPENDED = 2.5  # seconds without a tick: it was not only the peer that stood still


class Pulse:
    """Owned and serialized by one session's owner."""

    def __init__(self) -> None:
        self._silence = 0.0  # seconds
        self._last = float("-inf")  # time of the last tick
        self._asked = False

    def heard(self) -> None:
        """Something came from the peer."""
        self._silence = 0.0
        self._asked = False

    def tick(self, now: float, lost_after: float = LOST_AFTER) -> Literal["wait", "ping", "lost"]:
        """`TICK` seconds of waiting are over, at `now` (monotonic seconds). Any number of waiting threads may say so."""
        gap, self._last = now - self._last, now
        if gap > SUSPENDED:  # or nobody waited
            self.heard()
            return "wait"
        self._silence += min(gap, 1.2 * TICK)
        if self._silence >= lost_after:
            return "lost"
        if self._silence >= PING_AFTER and not self._asked:
            self._asked = True
            return "ping"
        return "wait"
