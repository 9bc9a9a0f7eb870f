"""Until when a call's caller waits, which nested calls have no more time than."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from adyton.errors import DeadlineError
from adyton.proto.values import LONGEST


class Deadline(NamedTuple):
    """`until`: by the monotonic clock; None: for ever. `within`: the same in words."""

    until: float | None
    within: str = ""

    def left(self) -> float | None:
        """Seconds, perhaps less than 0."""
        return None if self.until is None else self.until - time.monotonic()

    @property
    def over(self) -> bool:
        """No time is left."""
        return self.until is not None and self.until <= time.monotonic()

    def error(self, waited_for: str) -> DeadlineError:
        """It is over."""
        return DeadlineError(
            f"no answer from {waited_for} within {self.within}; its outcome is unknown. "
            "If it only needs longer, give a longer timeout"
        )


class Deadlines(threading.local):
    """`until`: of what this thread is executing for a call, by the monotonic clock; None: it has none."""

    until: float | None = None

    def of(self, timeout: float | None) -> Deadline:
        """Of a call that is made now with this timeout in seconds."""
        own = None if timeout is None else time.monotonic() + min(timeout, LONGEST)
        if own is None or (self.until is not None and self.until < own):
            return Deadline(self.until, "the time left to the call around it")
        return Deadline(own, f"{round(timeout or 0, 2):g} s")
