"""An end to waiting for a peer that has stopped to say anything."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self


class Patience:
    """Calls `give_up` once, from a thread of its own, when nothing has happened (`renew`) for so many seconds. For a `with`."""

    def __init__(self, seconds: float, give_up: Callable[[], object]) -> None:
        self.exhausted = False
        self._seconds = seconds
        self._give_up = give_up
        self._until = 0.0
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self.renew()
        if self._seconds < threading.TIMEOUT_MAX:  # else it is never at its end
            threading.Thread(target=self._watch, name="adyton-patience", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def renew(self) -> None:
        """Something has happened."""
        self._until = time.monotonic() + self._seconds

    def _watch(self) -> None:
        while (left := self._until - time.monotonic()) > 0:
            if self._over.wait(left):
                return
        self.exhausted = True
        self._give_up()
