"""Calls that no thread waits for: each is one of the session's without a pair, and the future of a task. Any number at once.

    task ──► begin ──► session          reader ──► answered ──► the loop, once for all that came together ──► futures

One thread of the client's watches over them: it looks after the peer, as who waits does, and ends those whose time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any

from adyton.communicator import session as communicator
from adyton.communicator.messages import EnterRequest, Raised, decode
from adyton.errors import AdytonError, RemoteProtocolError
from adyton.remote.client_pairs import CallFailed, result_of
from adyton.remote.deadlines import Deadline
from adyton.remote.pulse import TICK

if TYPE_CHECKING:
    from adyton.remote.arguments import Argument
    from adyton.remote.proxy_client import ProxyClient

MOST_CALLS = 2048  # unanswered; the others wait here, in order
KEPT = 1024  # times of calls that are over, at most, beside as many as are not


class Watch:
    """`tick` twice a second while something is watched; each is told once when its time is over."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._changed = threading.Condition()
        self._watched: dict[object, Callable[[], None]] = {}
        self._due: list[tuple[float, int, object]] = []  # a heap; of some that are over already
        self._numbers = itertools.count()
        self._running = False
        self._closed = False

    def add(self, key: object, until: float | None, late: Callable[[], None]) -> None:
        """Watch it until `remove`; `late` is called from the thread here at `until` (monotonic)."""
        with self._changed:
            self._watched[key] = late
            if until is not None:
                heapq.heappush(self._due, (until, next(self._numbers), key))
            if not self._running and not self._closed:
                self._running = True
                threading.Thread(target=self._run, name="adyton-watch", daemon=True).start()
            elif len(self._watched) == 1 or (until is not None and self._due[0][0] == until):
                self._changed.notify()

    def remove(self, key: object) -> None:
        """It is over."""
        with self._changed:
            self._watched.pop(key, None)
            if len(self._due) > 2 * len(self._watched) + KEPT:
                self._due = [each for each in self._due if each[2] in self._watched]
                heapq.heapify(self._due)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        ticked = time.monotonic()
        while True:
            with self._changed:
                if self._closed:
                    return
                if not self._watched:
                    self._due.clear()
                    self._changed.wait()
                    ticked = time.monotonic()
                    continue
                now = time.monotonic()
                until = min(ticked + TICK, self._due[0][0] if self._due else now + TICK)
                if until > now:
                    self._changed.wait(until - now)
                late = []
                now = time.monotonic()
                while self._due and self._due[0][0] <= now:
                    late.append(self._watched.get(heapq.heappop(self._due)[2]))
                ticks = now >= ticked + TICK
            for each in late:
                if each is not None:
                    each()
            if ticks:
                ticked = now
                self._tick()


class _Delivery:
    """What comes to the futures of one loop, together."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._came: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._scheduled = False

    def put(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        """From any thread."""
        self._came.append((future, result, error))
        loop = self._loop()
        if not self._scheduled and loop is not None:
            self._scheduled = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        while self._came:
            future, result, error = self._came.popleft()
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)


class UnpairedCall:
    """One call. `future`: of the loop that it was made in."""

    def __init__(
        self,
        calls: UnpairedCalls,
        request: EnterRequest,
        deadline: Deadline,
        arguments: list[Argument],
        delivery: _Delivery,
        bulk: Sequence[bytes],
        context: Context | None,
    ) -> None:
        self.request = request
        self.bulk = bulk
        self.deadline = deadline
        self.arguments = arguments
        self.context = context  # that it is to be made in
        self.number = 0  # until it is made
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls = calls
        self._delivery = delivery
        self._denials = calls.client.denials
        self.over = False

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        if not self.over:
            self._end()
            self._calls.drop(self)

    def late(self) -> None:
        """Its time is over."""
        if not self.over:
            self._delivery.put(self.future, None, self.deadline.error("the entry"))
            self._end()
            self._calls.drop(self)

    def answered(self, event: communicator.Replied) -> None:
        """The enclave's answer."""
        if self.over:
            return
        if event.ok:
            try:
                self._delivery.put(self.future, result_of(event), None)
            except RemoteProtocolError as malformed:
                self._delivery.put(self.future, None, malformed)
        elif self.deadline.over:  # the enclave was the first to notice
            self._delivery.put(self.future, None, self.deadline.error("the entry"))
        else:
            try:
                denied = self._calls.client.denials > self._denials
                error: BaseException = CallFailed(decode(event.body, Raised), denied=denied)
            except AdytonError as malformed:
                error = malformed
            self._delivery.put(self.future, None, error)
        self._end()

    def failed(self, error: AdytonError) -> None:
        """The connection is lost, or the call cannot be made."""
        if not self.over:
            self._delivery.put(self.future, None, type(error)(*error.args))
            self._end()

    def _end(self) -> None:
        self.over = True
        if self.number:
            self._calls.client.over(self.number, self.request.entry)
        self._calls.watch.remove(self)
        for each in self.arguments:
            each.stop()


class UnpairedCalls:
    """All of one client's. Thread-safe."""

    def __init__(self, client: ProxyClient) -> None:
        self.client = client
        self.watch = Watch(client.tick)
        self._lock = threading.Lock()
        self._answered = threading.Condition(self._lock)
        self._under_way: dict[int, UnpairedCall] = {}
        self._waiting: deque[UnpairedCall] = deque()
        self._deliveries: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Delivery] = weakref.WeakKeyDictionary()

    def begin(
        self,
        request: EnterRequest,
        deadline: Deadline,
        arguments: list[Argument],
        bulk: Sequence[bytes] = (),
        context: Context | None = None,
    ) -> UnpairedCall:
        """Make a call from a task, whose future gets the body of its result, or CallFailed or an AdytonError. `context`: the calling one, if it
        matters which.
        """
        loop = asyncio.get_running_loop()
        delivery = self._deliveries.get(loop)
        if delivery is None:
            delivery = self._deliveries[loop] = _Delivery(loop)
        call = UnpairedCall(self, request, deadline, arguments, delivery, bulk, context)
        with self._lock:
            waits = len(self._under_way) >= MOST_CALLS
            if waits:
                self._waiting.append(call)
        if not waits:
            self._make(call)
        self.watch.add(call, deadline.until, call.late)
        return call

    def _make(self, call: UnpairedCall) -> None:
        """Raises what `ProxyClient.made` does."""

        def made(number: int) -> None:
            """Before its answer can come."""
            call.number = number
            with self._lock:
                self._under_way[number] = call

        self.client.made(0, "enter", call.request, call.deadline, made, call.bulk)
        for each in call.arguments:
            each.begin(call.number, call.future.get_loop())

    def answered(self, event: communicator.Replied) -> None:
        """The answer to a call without a pair."""
        with self._lock:
            call = self._under_way.pop(event.call, None)
            following = self._waiting.popleft() if self._waiting else None
            self._answered.notify_all()
        if call is not None:
            call.answered(event)
        if following is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits
                loop = following.future.get_loop()
                loop.call_soon_threadsafe(self._make_following, following, context=following.context)

    def _make_following(self, call: UnpairedCall) -> None:
        try:
            if not call.over:
                self._make(call)
        except AdytonError as error:
            call.failed(error)

    def drop(self, call: UnpairedCall) -> None:
        """Nobody waits for it: the enclave is told, if it knows of it."""
        with self._lock:
            if call in self._waiting:
                self._waiting.remove(call)
            self._answered.notify_all()
        if call.number:
            self.client.cancel(call.number)

    def wait(self, seconds: float | None) -> int:
        """Until none is waited for by its task, or that time is over; how many are."""

        def waited_for() -> Iterator[UnpairedCall]:
            return (each for each in (*self._under_way.values(), *self._waiting) if not each.over)

        with self._lock:
            self._answered.wait_for(lambda: next(waited_for(), None) is None, seconds)
            return len(list(waited_for()))

    def lost(self, error: AdytonError) -> None:
        """The connection is."""
        with self._lock:
            calls = [*self._under_way.values(), *self._waiting]
            self._under_way.clear()
            self._waiting.clear()
            self._answered.notify_all()
        for each in calls:
            each.failed(error)
        self.watch.close()
