"""What may take longer than its caller can wait, done by a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Aside(Generic[T]):
    """`function`, once at a time; before `start` in the caller's thread. `under_way`: it was called, and has not ended yet, as far as is known."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._asked: queue.SimpleQueue[None] | None = None
        self._ended: queue.SimpleQueue[T | Exception] = queue.SimpleQueue()
        self.under_way = False

    def start(self, name: str) -> None:
        """Begin the thread."""
        asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._asked = asked
        threading.Thread(target=self._run, args=(asked,), name=name, daemon=True).start()

    def call(self, seconds: float) -> T | None:
        """What it returns, or raises; if it is under way already, that one. None: not within so many seconds."""
        if self._asked is None:
            return self._function()
        if not self.under_way:
            self.under_way = True
            self._asked.put(None)
        try:
            ended = self._ended.get(timeout=seconds)
        except queue.Empty:
            return None
        self.under_way = False
        if isinstance(ended, Exception):
            raise ended
        return ended

    def _run(self, asked: queue.SimpleQueue[None]) -> None:
        while True:
            asked.get()
            try:
                self._ended.put(self._function())
            except Exception as error:  # noqa: BLE001 - the caller's
                self._ended.put(error)
