"""The enclave's clock, matched to the client's. Nanoseconds; without IO.

Of each traced call four times are known, as NTP has them: call sent (client), call arrived (enclave), something sent (enclave), that arrived
(client). The difference of the clocks is told best by the call whose way was the shortest. Clocks drift apart, so an old match loses to
a new one that is a little worse; and for each call the difference is held within what its own four times allow.
"""

from __future__ import annotations

DRIFT = 10_000  # one part in so many: what two machines' monotonic clocks may differ in speed


class Clocks:
    """Of one enclave and its client."""

    def __init__(self) -> None:
        self._way = -1  # of the best match: how long it was under way, both ways; -1: there is none
        self._taken = 0  # when, by the client's clock
        self._difference = 0  # that the enclave's clock and this make the client's

    def match(self, sent: int, received: int, answered: int, arrived: int) -> int:
        """What to add to the enclave's times of a call; `received` and `answered` are by its clock, and may be any."""
        way = (arrived - sent) - (answered - received)
        if way >= 0 and (self._way < 0 or way <= self._way + (arrived - self._taken) // DRIFT):
            self._way, self._taken = way, arrived
            self._difference = ((sent - received) + (arrived - answered)) // 2
        return min(max(self._difference, sent - received), arrived - answered)
