"""Streams of results on the client: batches in order, to the thread or task that iterates, which asks for more by taking them.

Each has a pair of its own, whose call ends when the stream does; host calls on it are executed by the thread that waits for the next item,
or, of a stream that a task reads, on the client's threads for functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from adyton.communicator import session as communicator
from adyton.communicator.messages import Raised, StreamEnd, decode
from adyton.communicator.streams import FED, HUNGRY, ITEMS, LARGE, RESULT, Batch, Incoming, batch_of
from adyton.errors import AdytonError, RemoteProtocolError
from adyton.proto.values import ItemDecoder
from adyton.remote import steps
from adyton.remote.client_pairs import CallFailed, Mailbox, Pair, note_end, settle
from adyton.remote.deadlines import Deadline
from adyton.remote.stream_way import StreamWay

if TYPE_CHECKING:
    from adyton.remote.proxy_client import ProxyClient


class Arrived(NamedTuple):
    """A batch, and the call that it came as."""

    call: int
    batch: Batch


class Ended(NamedTuple):
    """Behind all batches; `raised`: what the entry ended with."""

    raised: Raised | None


def _nothing() -> None:
    pass


class Results:
    """One stream. What is not `wanted` any more is dropped when it arrives. `finished` is called at the end, once, without the lock."""

    def __init__(self, pair: Pair) -> None:
        self.call = 0
        self.pair = pair
        self.wanted = True
        self.incoming = Incoming()
        self.untaken: dict[int, Batch] = {}  # in the mailbox, or out of it, by the calls that they came as
        self.end: Ended | None = None
        self.error: BaseException | None = None  # that it ended with
        self.finished: Callable[[], None] = _nothing
        self.over: Callable[[], None] = _nothing  # of its telemetry, once or more


class ResultStreams:
    """Those under way, by call, each with its pair in `pairs`."""

    def __init__(self, way: StreamWay, pairs: dict[int, Pair]) -> None:
        self._way = way
        self._session = way.session
        self._pairs = pairs
        self._open: dict[int, Results] = {}
        self._unread: dict[int, Results] = {}  # whose end is there, behind what is in their mailboxes
        self._dropped: queue.SimpleQueue[Results] = queue.SimpleQueue()  # whose iterators nobody has any more

    def began(self, call: int, results: Results) -> None:
        """Under the lock: the call was made."""
        results.call = call
        self._open[call] = results
        self._pairs[results.pair.number] = results.pair

    def drops(self, stream: object, results: Results) -> weakref.finalize[..., Any]:
        """What cancels it when nobody has `stream` any more."""
        finalizer = weakref.finalize(stream, note_end, self._dropped, self._way.wake_later, results)
        finalizer.atexit = False
        return finalizer

    def drop_ended(self) -> list[Callable[[], None]]:
        """Under the lock: cancel what nobody has any more. What is to be called afterwards, without the lock."""
        finished: list[Callable[[], None]] = []
        while True:
            try:
                results = self._dropped.get_nowait()
            except queue.Empty:
                return finished
            self._cancel(results)
            if self._unread.pop(results.call, None) is not None:  # no end will come that finishes it
                finished.append(results.finished)

    def read(self, results: Results) -> None:
        """To its end, or nobody wants that."""
        with self._way.lock:
            self._unread.pop(results.call, None)

    def arrived(self, called: communicator.Called) -> None:
        """A batch. RemoteProtocolError: of no stream, or against its rules."""
        batch = batch_of(called.body, called.bulk)
        with self._way.lock:
            results = self._open.get(batch.call)
            if results is None or batch.stream != RESULT or batch.kind not in (ITEMS, LARGE):
                raise RemoteProtocolError(
                    f"the enclave sent items of stream {batch.stream} of call {batch.call}, which has none"
                )
            for call, each in results.incoming.arrived(called.call, batch):
                if results.wanted:
                    results.untaken[call] = each
                    results.pair.mailbox.put(Arrived(call, each))
                else:
                    self._drop(results, call, each)
            ended = self._check_end(results)
        if ended:
            results.finished()

    def replied(self, event: communicator.Replied) -> bool:
        """The answer to the call of a stream, which ends it. False: it is none."""
        with self._way.lock:
            results = self._open.get(event.call)
            if results is None:
                return False
            end = decode(event.body, StreamEnd) if event.ok else StreamEnd(0, bytes(event.body))
            results.incoming.ends(end.batches)
            results.end = Ended(decode(end.raised, Raised) if end.raised else None)
            ended = self._check_end(results)
            wanted = results.wanted
        if ended:
            results.finished()
        return wanted

    def _check_end(self, results: Results) -> bool:
        """Whether it has come to its end, and nobody else will notice."""
        if results.end is None or not results.incoming.complete:
            return False
        del self._open[results.call]
        if results.wanted:
            self._unread[results.call] = results
            results.pair.mailbox.put(results.end)
        return not results.wanted

    def take(self, results: Results, arrived: Arrived, *, hungry: bool) -> None:
        """A batch is taken."""

        def step() -> None:
            with self._way.lock:
                if results.untaken.pop(arrived.call, None) is not None:
                    results.incoming.taken(len(arrived.batch.payload))
                    self._session.reply(arrived.call, True, HUNGRY if hungry else FED)
            self._way.wake()

        steps.take(step)

    def _drop(self, results: Results, call: int, batch: Batch) -> None:
        results.incoming.taken(len(batch.payload))
        self._session.reply(call, True, FED)

    def cancel(self, results: Results) -> None:
        """Nobody wants the rest."""

        def step() -> None:
            with self._way.lock:
                self._cancel(results)
            self._way.wake()

        steps.take(step)

    def _cancel(self, results: Results) -> None:
        results.wanted = False
        results.pair.abandoned = True
        if results.call in self._open and self._way.is_open():
            self._session.cancel(results.call)
        while results.untaken:
            self._drop(results, *results.untaken.popitem())
        settle(self._session, results.pair.number, results.pair)

    def lost(self) -> list[Results]:
        """Under the lock: the connection is; those that were under way, or have not been read to their end."""
        found = [*self._open.values(), *self._unread.values()]
        self._open.clear()
        self._unread.clear()
        return found


class _Stream:
    """`error_of` turns a CallFailed into what is raised."""

    def __init__(
        self,
        client: ProxyClient,
        results: Results,
        decoder: ItemDecoder,
        error_of: Callable[[CallFailed], BaseException],
        deadline: Deadline,
    ) -> None:
        self._client = client
        self._results = results
        self._decoder = decoder
        self._error_of = error_of
        self._deadline = deadline
        self._denials = client.denials
        self._items: deque[Any] = deque()
        self._error: BaseException | None = None  # behind the items
        self._over = False
        self._finalizer = client.results.drops(self, results)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'ended' if self._over else 'open'}>"

    def _take(self, item: Any, *, hungry: bool) -> None:
        """An item of the mailbox."""
        if isinstance(item, Arrived):
            self._client.results.take(self._results, item, hungry=hungry)
            batch = item.batch
            items, error = (self._decoder.decode if batch.kind == ITEMS else self._decoder.large)(batch.payload)
            self._items.extend(items)
            if error is not None:
                self._error = error
                self._cancel()
        elif isinstance(item, Ended):
            if item.raised is not None:
                failed = CallFailed(item.raised, denied=self._client.denials > self._denials)
                self._error = self._deadline.error("the entry") if self._deadline.over else self._error_of(failed)
            self._end()
        elif isinstance(item, AdytonError):
            self._error = type(item)(*item.args)
            self._end()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._results.error = self._results.error or self._error
            self._finalizer.detach()
            self._client.results.read(self._results)
            finished, self._results.finished = self._results.finished, _nothing
            finished()

    def _cancel(self) -> None:
        if not self._over:
            self._client.results.cancel(self._results)
            self._end()

    def _next(self) -> bool:
        """Whether there is an item; raises what the stream ended with, once."""
        if self._items:
            return True
        error, self._error = self._error, None
        if error is not None:
            raise error
        return False

    def _late(self) -> BaseException:
        error = self._results.error = self._deadline.error("the entry")
        self._cancel()
        return error


class ResultStream(_Stream, Iterator[Any]):
    """The items of a result. `close` it, or let go of it, when no more of them is wanted: the entry is cancelled."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._busy = threading.Lock()

    def __next__(self) -> Any:
        try:
            return self._items.popleft()
        except IndexError:
            pass  # and no context of what is raised then
        return self._awaited()

    def _awaited(self) -> Any:
        if not self._busy.acquire(blocking=False):
            raise ValueError("another thread waits for the next item already")
        try:
            while not self._next():
                if self._over:
                    raise StopIteration
                self._fill()
            return self._items.popleft()
        finally:
            self._busy.release()

    def _fill(self) -> None:
        mailbox = self._results.pair.mailbox
        hungry = mailbox.empty()
        around = self._client.deadlines.until
        try:
            item = self._client.wait(mailbox, self._deadline.until)
            if isinstance(item, communicator.Called):
                self._client.serve(item, self._deadline)
            else:
                self._take(item, hungry=hungry)
        except queue.Empty:
            raise self._late() from None
        except BaseException as error:  # KeyboardInterrupt and the like
            self._results.error = error
            self._cancel()
            self._client.deadlines.until = around
            raise

    def close(self) -> None:
        """Nothing more is wanted; idempotent."""
        self._items.clear()
        self._error = None
        self._cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncResultStream(_Stream, AsyncIterator[Any]):
    """The same for tasks of one loop."""

    async def __anext__(self) -> Any:
        while not self._next():
            if self._over:
                raise StopAsyncIteration
            mailbox = self._results.pair.mailbox
            hungry = mailbox.empty()
            assert isinstance(mailbox, LoopMailbox)
            try:
                async with asyncio.timeout(self._deadline.left()):
                    await mailbox.filled()
            except TimeoutError:
                raise self._late() from None
            self._take(mailbox.get(), hungry=hungry)
        return self._items.popleft()

    async def aclose(self) -> None:
        """Nothing more is wanted; idempotent."""
        self._items.clear()
        self._error = None
        self._cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class LoopMailbox(Mailbox):
    """Of a pair that a task waits on; `put` from any thread, all else from the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[Any] = deque()
        self._filled = asyncio.Event()

    def put(self, item: Any) -> None:
        """See Mailbox."""
        self._items.append(item)
        if len(self._items) == 1:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._filled.set)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: ARG002
        """See Mailbox; never waits."""
        try:
            item = self._items.popleft()
        except IndexError:
            raise queue.Empty from None
        return item

    def empty(self) -> bool:
        """See Mailbox."""
        return not self._items

    async def filled(self) -> None:
        """Until there is something."""
        while not self._items:
            self._filled.clear()
            if not self._items:
                await self._filled.wait()
