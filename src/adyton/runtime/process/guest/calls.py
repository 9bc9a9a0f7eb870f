"""The client's calls that are under way in the guest: until when, whether they are cancelled, and the streams of their arguments and results.

Each is run by one thread or task, but others may read its streams, and a thread aside says what happens to it (`guest.aside`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from adyton.communicator.messages import Raised, decode
from adyton.communicator.streams import ITEMS, LARGE, RAISED, Outgoing
from adyton.communicator.tracing import TraceContext
from adyton.errors import RemoteProtocolError
from adyton.proto.values import Bulk, ItemDecoder, Stream
from adyton.runtime.process.guest.link import Batch, GuestLink, Items, Took

NOBODY_WAITS = "the client no longer waits for this call"

_NONE: frozenset[int] = frozenset()
_making = threading.Lock()  # of what most calls never need

current: ContextVar[Call | None] = ContextVar("call", default=None)  # which this code runs in


class Call:
    """Thread-safe. `until`: by the monotonic clock; None: for ever."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.bulk: Sequence[bytes] = ()  # beside its arguments, until they are decoded
        self.trace: TraceContext | None = None  # of one on the link aside
        self.until: float | None = None
        self.cancelled = False
        self.known_aside = False  # a Forget will come
        self.returned = False
        self._condition: threading.Condition | None = None
        self._batches: dict[int, deque[Batch]] = {}
        self._opened: frozenset[int] | None = None  # streams; None: the arguments are not decoded
        self._took: Callable[[Took], None] = lambda _: None
        self._wakers: list[Callable[[], None]] = []  # of what waits without a thread, once each
        self._cancels: list[Callable[[], None]] = []
        self._results: Outgoing | None = None
        self._link: GuestLink | None = None  # that results go out on

    @property
    def _changed(self) -> threading.Condition:
        if self._condition is None:
            with _making:
                self._condition = self._condition or threading.Condition()
        return self._condition

    def begin(self, left: float | None) -> None:
        """Its caller waits for so many seconds, and no longer than for a call that it is nested in. TimeoutError: for none."""
        around = current.get()
        self.until = None if around is None or around is self else around.until
        if left is not None:
            until = time.monotonic() + left
            self.until = until if self.until is None else min(until, self.until)
        if self.cancelled or self.until is not None:
            self.check()

    def left(self) -> float | None:
        """Seconds until its caller waits no longer, perhaps less than 0; None: it waits for ever."""
        return None if self.until is None else self.until - time.monotonic()

    def check(self) -> None:
        """TimeoutError: nobody waits any more."""
        left = self.left()
        if self.cancelled or (left is not None and left <= 0):
            raise TimeoutError(NOBODY_WAITS)

    # -- cancelling ---------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.cancelled = True
        while self._cancels:
            with contextlib.suppress(IndexError):  # another thread has taken it
                self._cancels.pop()()
        self._wake()

    @contextlib.contextmanager
    def cancelling(self, step: Callable[[], None]) -> Iterator[None]:
        """Have `step` called when it is cancelled; at once, if it is. Once: by who takes it off the list."""
        self._cancels.append(step)
        if self.cancelled and self._take_back(step):
            step()
        try:
            yield
        finally:
            self._take_back(step)

    def _take_back(self, step: Callable[[], None]) -> bool:
        try:
            self._cancels.remove(step)
        except ValueError:
            return False
        return True

    async def cancellable(self, work: Coroutine[Any, Any, Any]) -> Any:
        """`work`, in the task that runs this, which is cancelled with the call."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def step() -> None:
            _call_soon(loop, task.cancel)

        self._cancels.append(step)
        if self.cancelled and self._take_back(step):
            step()
        try:
            return await work
        finally:
            self._take_back(step)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
            wakers, self._wakers = self._wakers, []
        for each in wakers:
            each()

    async def _woken(self, waits: Callable[[], bool]) -> None:
        """Until something has happened, if it is waited for."""
        loop = asyncio.get_running_loop()
        happened = loop.create_future()

        def happen() -> None:
            if not happened.done():
                happened.set_result(None)

        def wake() -> None:
            _call_soon(loop, happen)

        with self._changed:
            if not waits():
                return
            self._wakers.append(wake)
        await happened

    # -- streams of arguments -----------------------------------------------------------------------------------------

    def arrived(self, batch: Batch, took: Callable[[Took], None]) -> None:
        """A batch of an argument's. `took` is told when it was taken."""
        with self._changed:
            self._took = took
            unknown = self._opened is not None and batch.stream not in self._opened
            if not unknown:
                self._batches.setdefault(batch.stream, deque()).append(batch)
        if unknown:
            took(Took(self.number, batch.stream, hungry=False))
        self._wake()

    def opened(self, streams: list[int]) -> None:
        """Its arguments have these streams: what came of others is dropped."""
        if not (streams or self._batches):
            self._opened = _NONE
            return
        with self._changed:
            self._opened = frozenset(streams)
            others = [self._batches.pop(number) for number in [*self._batches] if number not in self._opened]
        for batch in (each for batches in others for each in batches):
            self._took(Took(self.number, batch.stream, hungry=False))

    def wait_for_batch(self, stream: int) -> Batch:
        """The next one. TimeoutError: nobody waits for this call any more."""
        with self._changed:
            batches = self._batches.setdefault(stream, deque())
            hungry = not batches
            while not batches:
                self.check()
                self._changed.wait(self.left())
        return self._take(stream, hungry)

    async def next_batch(self, stream: int) -> Batch:
        """The same for a task."""
        batches = self._batches.setdefault(stream, deque())
        hungry = not batches
        while not batches:
            self.check()
            await self._woken(lambda: not batches and not self.cancelled)
        return self._take(stream, hungry)

    def _take(self, stream: int, hungry: bool) -> Batch:
        batch = self._batches[stream].popleft()
        self._took(Took(self.number, stream, hungry))
        return batch

    # -- the stream of results ----------------------------------------------------------------------------------------

    def results_to(self, link: GuestLink) -> None:
        """Where items go out."""
        self._link, self._results = link, Outgoing()

    def give(self, item: bytes | Bulk) -> bool:
        """An item, encoded if it is no bulk; once another one can be. False: nobody wants it any more."""
        with self._changed:
            full = self._add(item)
            while full and self._is_held():
                self._changed.wait()
        return not self.cancelled

    async def give_async(self, item: bytes | Bulk) -> bool:
        """The same for a task."""
        with self._changed:
            full = self._add(item)
        while full and self._is_held():
            await self._woken(self._is_held)
        return not self.cancelled

    def _add(self, item: bytes | Bulk) -> bool:
        """Under the lock: whether no more can be added now."""
        assert self._results is not None
        if isinstance(item, Bulk):
            self._results.add_large(item.value)
        else:
            self._results.add(item)
        self._push()
        return self._results.full

    def taken(self, *, hungry: bool) -> None:
        """The client has taken a batch; perhaps after the last was sent."""
        with self._changed:
            if self._link is not None and self._results is not None:
                self._results.taken(hungry=hungry)
                self._push()
        self._wake()

    def _push(self) -> None:
        """Under the lock: what may go out."""
        while self._link and self._results and (due := self._results.take()) is not None:
            kind, parts = due
            if kind == LARGE:
                self._link.send_bulk(Items(self.number, b"", (len(parts[0]),)), parts[0])
            else:
                self._link.send(Items(self.number, b"".join(parts)))

    def _is_held(self) -> bool:
        return self._results is not None and self._results.full and not self.cancelled

    def end_results(self) -> None:
        """After the last: until all are sent, if anybody wants them. Then nothing is sent any more."""
        with self._changed:
            while self._results is not None and self._results.pending and not self.cancelled:
                self._changed.wait()
            self._link = None


class Calls:
    """Those under way, by number. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[int, Call] = {}

    def find(self, number: int, *, aside: bool) -> Call:
        """The one of that number, which somebody mentions for the first time perhaps. `aside`: it was on the link aside."""
        with self._lock:
            call = self._calls.get(number)
            if call is None:
                call = self._calls[number] = Call(number)
            call.known_aside = call.known_aside or aside
            return call

    def ended(self, call: Call) -> None:
        """It has returned."""
        with self._lock:
            call.returned = True
            if not call.known_aside:
                self._calls.pop(call.number, None)

    def forget(self, number: int) -> None:
        """It has returned, and nothing more comes of it."""
        with self._lock:
            self._calls.pop(number, None)


class _Argument:
    def __init__(
        self, call: Call, number: int, stream: Stream, what: str, exception: Callable[[Raised], Exception]
    ) -> None:
        self._call = call
        self._number = number
        self._decoder = ItemDecoder(stream.item, what)
        self._exception = exception
        self._items: deque[Any] = deque()
        self._error: Exception | None = None  # behind the items
        self._over = False

    def _read(self, batch: Batch) -> None:
        if batch.kind in (ITEMS, LARGE):
            decode_items = self._decoder.decode if batch.kind == ITEMS else self._decoder.large
            items, self._error = decode_items(batch.payload)
            self._items.extend(items)
            self._over = self._error is not None
            return
        self._over = True
        if batch.kind == RAISED:
            try:
                self._error = self._exception(decode(batch.payload, Raised))
            except RemoteProtocolError as error:
                self._error = error
            self._error.adyton_argument = self._number  # type: ignore[attr-defined]

    def _ended(self) -> bool:
        """Whether nothing more comes; raises what the stream ends with, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._over


class ArgumentStream(_Argument, Iterator[Any]):
    """The client's iterator, as a program iterates over it, in any of its threads."""

    def __next__(self) -> Any:
        while not self._items:
            if self._ended():
                raise StopIteration
            self._read(self._call.wait_for_batch(self._number))
        return self._items.popleft()


class AsyncArgumentStream(_Argument, AsyncIterator[Any]):
    """The same for tasks."""

    async def __anext__(self) -> Any:
        while not self._items:
            if self._ended():
                raise StopAsyncIteration
            self._read(await self._call.next_batch(self._number))
        return self._items.popleft()


def _call_soon(loop: asyncio.AbstractEventLoop, step: Callable[[], Any]) -> None:
    with contextlib.suppress(RuntimeError):  # it is closed: nothing waits there
        loop.call_soon_threadsafe(step)
