"""When an enclave is to be told its client's time again: it goes on by itself, and is right until somebody sets the client's clock."""

from __future__ import annotations

import time
from collections.abc import Callable

STEP = 1_000_000  # ns by which the clock was set, or ran faster or slower than the monotonic one, so that it is told at once
EVERY = 60_000_000_000  # ns after which it is told in any case: two machines' clocks do not run alike


class TimeTeller:
    """Clocks in ns; nothing is due before the first `told`."""

    def __init__(
        self, realtime: Callable[[], int] = time.time_ns, monotonic: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._realtime = realtime
        self._monotonic = monotonic
        self._last: tuple[int, int] | None = None  # realtime and monotonic

    def told(self) -> int:
        """What time it is, which the enclave is being told now."""
        self._last = self._realtime(), self._monotonic()
        return self._last[0]

    def due(self) -> bool:
        """Whether the enclave is to be told again."""
        if self._last is None:
            return False
        realtime, monotonic = self._realtime() - self._last[0], self._monotonic() - self._last[1]
        return monotonic >= EVERY or abs(realtime - monotonic) > STEP
