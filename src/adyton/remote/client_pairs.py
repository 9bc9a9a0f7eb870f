"""A client thread's pair: the enclave thread that runs its entries, as the client sees it; and how a call on it fails."""

from __future__ import annotations

import itertools
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

from adyton.communicator import session as communicator
from adyton.communicator.messages import Raised, encode
from adyton.errors import RemoteProtocolError, ResourceLimitError
from adyton.proto.values import Bulk

T = TypeVar("T")
NOBODY_WAITS = encode(
    Raised("raised", "TimeoutError", "the client's thread no longer waits for this call", "TimeoutError")
)


class Mailbox(Protocol):
    """What queue.SimpleQueue has."""

    def put(self, item: Any, /) -> None:
        """From any thread."""

    def get(self, block: bool = ..., timeout: float | None = ...) -> Any:
        """The next item; queue.Empty: there is none in that time."""

    def empty(self) -> bool:
        """Whether there is none."""


class Pair:
    """A client thread's pair, alive as long as the thread; or that of a stream of results. `mailbox`: Called, Replied, batches, or the error
    that ended all. `pooled`: nobody waits on it who could execute host calls.
    """

    def __init__(self, number: int, mailbox: Mailbox | None = None, *, pooled: bool = False) -> None:
        self.number = number
        own: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.mailbox: Mailbox = own if mailbox is None else mailbox
        self.pooled = pooled
        self.abandoned = False  # its thread gave up waiting; what still arrives has no taker
        self.serving: set[int] = set()  # host calls that are being executed
        self.cancelled: Cancellation | None = None  # of a call under way on it


class Cancellation:
    """Of one call, from any thread: `cancel` has its thread stop waiting, which raises CancelledError."""

    def __init__(self) -> None:
        self._pair: Pair | None = None
        self.requested = False

    def begin(self, pair: Pair) -> None:
        """The call waits on that pair from now on."""
        self._pair = pair
        if self.requested:
            pair.mailbox.put(self)

    def cancel(self) -> None:
        """Once."""
        self.requested = True
        if self._pair is not None:
            self._pair.mailbox.put(self)


class CallFailed(Exception):  # noqa: N818 - not an end in itself: the public API turns it into its errors
    """A call was answered with a Raised. `denied`: this client denied a host call while it ran."""

    def __init__(self, raised: Raised, *, denied: bool) -> None:
        super().__init__(raised.message)
        self.raised = raised
        self.denied = denied


class NotMade(NamedTuple):
    """In the mailbox of the call's pair: why there is no such call."""

    error: BaseException


def settle(session: communicator.Session, number: int, pair: Pair | None) -> None:
    """Of a pair that is abandoned, or gone, under the lock: answer the host call that waits on it, if nobody is to."""
    call = session.owed_on(number)
    if call is not None and (pair is None or call not in pair.serving):
        session.reply(call, ok=False, body=NOBODY_WAITS)


def reply(
    session: communicator.Session, call: int, body: communicator.Parts, bulk: tuple[bytes, ...], *, ok: bool
) -> None:
    """Answer a host call; with an error, if the answer is too large."""
    try:
        session.reply(call, ok, body, bulk)
    except ResourceLimitError as error:
        text = f"the result is too large: {error.message}"
        session.reply(call, ok=False, body=encode(Raised("raised", "ValueError", text, "ValueError")))


def result_of(reply: communicator.Replied) -> communicator.Body | Bulk:
    """What a call was answered with, that did not fail. RemoteProtocolError: both in one."""
    if not reply.bulk:
        return reply.body
    if len(reply.bulk) > 1 or reply.body:
        raise RemoteProtocolError(f"the enclave answered with {len(reply.body)} bytes, and bulk beside them")
    return Bulk(reply.bulk[0])


class _Token:
    """Dies with its thread's local storage, which is how the end of a thread is noticed."""

    __slots__ = ("__weakref__", "pair")

    def __init__(self, pair: Pair) -> None:
        self.pair = pair


class ThreadPairs:
    """Those of a client's threads, among all of its `pairs` by number: each is made for its thread's first call, and ends with the thread."""

    def __init__(
        self,
        pairs: dict[int, Pair],
        lock: threading.Lock,
        session: communicator.Session,
        wake: Callable[[], None],
    ) -> None:
        """`lock`: the session's; `wake`: has somebody call `dispose_ended` soon, and takes no lock."""
        self._pairs = pairs
        self._lock = lock
        self._session = session
        self._wake = wake
        self._numbers = itertools.count(1)
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._local = threading.local()

    def new(self, mailbox: Mailbox | None = None) -> Pair:
        """One of no thread."""
        return Pair(next(self._numbers), mailbox, pooled=mailbox is not None)

    def own(self) -> Pair:
        """The calling thread's."""
        token: _Token | None = getattr(self._local, "token", None)
        if token is None or token.pair.abandoned:
            pair = self.new()
            token = _Token(pair)
            # No lock may be taken when a thread's storage dies: the number is queued, and the sender disposes of the pair.
            weakref.finalize(token, note_end, self._ended, self._wake, pair.number).atexit = False
            with self._lock:
                self._pairs[pair.number] = pair
            self._local.token = token  # the last, for it is a pair from then on
        return token.pair

    def drop_if_idle(self, number: int) -> None:
        """Under the lock: of a pair that was abandoned."""
        if number in self._pairs and self._session.idle(number):
            del self._pairs[number]
            self._session.dispose(number)

    def dispose_ended(self, *, is_open: bool) -> None:
        """Under the lock: those whose threads have ended and that nothing is under way on. `is_open`: whether the enclave can be told."""
        while True:
            try:
                number = self._ended.get_nowait()
            except queue.Empty:
                return
            pair = self._pairs.get(number)
            if pair is not None and not pair.abandoned:
                del self._pairs[number]
                if is_open:
                    self._session.dispose(number)


def note_end(ended: queue.SimpleQueue[T], wake: Callable[[], None], what: T) -> None:
    """Runs when a thread's storage dies, at any moment: SimpleQueue.put, which is all that `wake` does, is re-entrant."""
    ended.put(what)
    wake()
