"""What the client says, acted upon one after the other, and held back while something has to be over first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from adyton.runtime.process.supervisor.loop import Callback, Loop

T = TypeVar("T")


class Arrivals(Generic[T]):
    """`listen` says whether more is received, each event of which is to be `take`n; `act` acts upon one. `guarded` wraps what the loop calls."""

    def __init__(
        self,
        loop: Loop,
        listen: Callable[[bool], None],
        act: Callable[[T], None],
        guarded: Callable[[Callback], Callback],
    ) -> None:
        self._loop = loop
        self._listen = listen
        self._resume = guarded(self._go_on)
        self._act = act
        self._held: deque[T] | None = None

    def take(self, event: T) -> None:
        """An event has arrived."""
        if self._held is None:
            self._act(event)
        else:
            self._held.append(event)

    def hold(self, seconds: float) -> None:
        """Act upon nothing that came after what is acted upon now, and receive no more, for so long."""
        self._held = deque()
        self._listen(False)
        self._loop.later(seconds, self._resume)

    def _go_on(self) -> None:
        held, self._held = self._held, None
        while held and self._held is None:
            self._act(held.popleft())
        if self._held is None:
            self._listen(True)
        elif held:
            self._held.extend(held)
