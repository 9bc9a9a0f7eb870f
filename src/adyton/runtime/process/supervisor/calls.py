"""Host calls of the file server: sent without waiting, waited for by any number of operations. Sans-IO.

An operation is a generator that yields a `Pending` and is sent its result. A Pending is a host call under way, or anything else that
will have a result (`Calls.complete` and `Pending.finish` say which). What is to be done when it is there, whether or not anybody
waits, is in `after`, in order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from adyton.hostcall import abi
from adyton.hostcall.check import Checked

Outcome = abi.Result | Checked


class Pending:
    """See the module. `result` is None until it is there."""

    __slots__ = ("after", "result")

    def __init__(self) -> None:
        self.result: Any = None
        self.after: list[Callable[[Any], object]] = []

    def finish(self, result: Any) -> None:
        """It is there; only once."""
        assert self.result is None, self.result
        self.result = result
        after, self.after = self.after, []
        for each in after:
            each(result)


class OwnPending(Pending):
    """What the client has no part in."""

    __slots__ = ()


Cached = Generator[Pending, Any, abi.Result]


class Ask(NamedTuple):
    """A host call to be sent. `ordered`: the client carries it out after all ordered ones before it, else beside others."""

    ticket: int
    request: abi.Request
    ordered: bool = False


MAX_UNDER_WAY = 2048  # a session allows more; the rest is for what cannot wait


class Calls:
    """Numbers host calls, and knows which are under way."""

    def __init__(self, first: int = 1) -> None:
        self._tickets = itertools.count(first)
        self._pending: dict[int, Pending] = {}
        self._behind: dict[Pending, None] = {}
        self._to_send: list[Ask] = []
        self._room: Pending | None = None

    def send(
        self, request: abi.Request, *, ordered: bool = False, behind: bool = False, pending: Pending | None = None
    ) -> Pending:
        """Queue a host call; its result will be `pending`'s, or a new one's. `behind`: what it does was answered already."""
        ask = Ask(next(self._tickets), request, ordered)
        self._to_send.append(ask)
        found = self._pending[ask.ticket] = Pending() if pending is None else pending
        if behind:
            self._behind[found] = None
            found.after.append(lambda _: self._behind.pop(found))
        return found

    def take(self) -> list[Ask]:
        """What was queued since the last time."""
        taken, self._to_send = self._to_send, []
        return taken

    def complete(self, ticket: int, result: Outcome) -> None:
        """The client's answer, checked."""
        pending = self._pending.pop(ticket, None)
        if pending is not None:
            pending.finish(result)
        if self._room is not None and len(self._pending) <= MAX_UNDER_WAY // 2:
            room, self._room = self._room, None
            room.finish(abi.Done())

    def room(self) -> Pending | None:
        """What to wait for before more is sent; None: nothing."""
        if len(self._pending) < MAX_UNDER_WAY:
            return None
        if self._room is None:
            self._room = Pending()
        return self._room

    def settled(self) -> Pending | None:
        """What is finished when all has happened that was answered before now; None: it has."""
        waiting = set(self._behind)
        if not waiting:
            return None
        settled = Pending()

        def came(pending: Pending) -> None:
            waiting.discard(pending)
            if not waiting:
                settled.finish(abi.Done())

        for pending in list(waiting):
            pending.after.append(lambda _, pending=pending: came(pending))  # type: ignore[misc]
        return settled
