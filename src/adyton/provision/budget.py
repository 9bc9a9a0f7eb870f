"""The time that a load may take, of which each of its steps takes some."""

from __future__ import annotations

import threading
import time


class Budget:
    """So many seconds from now on; None: as many as wanted."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._until = None if seconds is None else time.monotonic() + seconds

    def left(self, most: float | None = None) -> float:
        """Seconds, at least 0, that are left; not more than `most`, which is the limit of a single step."""
        left = threading.TIMEOUT_MAX
        if self._until is not None:
            left = min(left, max(0.0, self._until - time.monotonic()))
        return left if most is None else min(left, most)

    def __str__(self) -> str:
        return f"{self._seconds:g} s"
