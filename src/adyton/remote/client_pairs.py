"""A client thread's pair: the enclave thread that runs its entries, as the client sees it; and how a call on it fails."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

from adyton.communicator.messages import Raised


class Pair:
    """A client thread's pair, alive as long as the thread. `mailbox`: Called, Replied, or the error that ended all."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.mailbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.abandoned = False  # its thread gave up waiting; what still arrives has no taker
        self.deadline: float | None = None  # of the innermost call under way, by the monotonic clock
        self.owed: list[int] = []  # host calls, innermost last, that its thread was executing when it gave up


class CallFailed(Exception):  # noqa: N818 - not an end in itself: the public API turns it into its errors
    """A call was answered with a Raised. `denied`: this client denied a host call while it ran."""

    def __init__(self, raised: Raised, *, denied: bool) -> None:
        super().__init__(raised.message)
        self.raised = raised
        self.denied = denied


class Token:
    """Dies with its thread's local storage, which is how the end of a thread is noticed."""

    __slots__ = ("__weakref__", "pair")

    def __init__(self, pair: Pair) -> None:
        self.pair = pair


def note_end(ended: queue.SimpleQueue[int], wake: Callable[[], None], number: int) -> None:
    """Runs when a thread's storage dies, at any moment: SimpleQueue.put, which is all that `wake` does, is re-entrant."""
    ended.put(number)
    wake()
