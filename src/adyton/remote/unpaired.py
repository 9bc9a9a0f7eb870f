"""Calls that no thread waits for: each is one of the session's without a pair, and the future of a task. Any number at once.

    tasks ──► begin ──► the session, once a turn of their loop          reader ──► answered ──► the loop, once for all that came together ──► futures

One thread of the client's watches over them: it looks after the peer, as who waits does, and ends those whose time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import heapq
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from adyton.communicator import session as communicator
from adyton.communicator.messages import EnterRequest, Raised, decode
from adyton.errors import AdytonError, RemoteProtocolError
from adyton.remote import steps
from adyton.remote.client_pairs import CallFailed, result_of
from adyton.remote.deadlines import Deadline
from adyton.remote.pulse import TICK

if TYPE_CHECKING:
    from adyton.remote.arguments import Argument
    from adyton.remote.proxy_client import ProxyClient
    from adyton.remote.speaker import Speaker

MOST_CALLS = 2048  # unanswered; the others wait here, in order
TOGETHER = 64  # calls, at most, for which others wait that are made or answered
KEPT = 1024  # times of calls that are over, at most, beside as many as are not


class Watch:
    """`tick` twice a second while something is watched; each is told once when its time is over."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._watched: dict[object, Callable[[], None]] = {}
        self._due: list[tuple[float, int, object]] = []  # a heap; of some that are over already
        self._numbers = itertools.count()
        self._running = False
        self._closed = False

    def add(self, key: object, until: float | None, late: Callable[[], None]) -> None:
        """Watch it until `remove`; `late` is called from the thread here at `until` (monotonic)."""
        with self._lock:
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
        with self._lock:
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


class _Tasks:
    """The calls of one loop's tasks: those that are to be made, and what comes to their futures, each together. `due` and `making` under the lock."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._came: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._scheduled = False
        self.due: dict[UnpairedCall, None] = {}  # in order
        self.making = False  # soon, or when there is room

    def put(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        """From any thread."""
        self._came.append((future, result, error))
        if not self._scheduled:
            self._scheduled = True
            self.schedule(self._deliver)

    def schedule(self, step: Callable[[], None], context: Context | None = None) -> None:
        """From any thread."""
        loop = self._loop()
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(step, context=context)

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
        tasks: _Tasks,
        bulk: Sequence[bytes],
        context: Context | None,
        future: asyncio.Future[Any],
    ) -> None:
        self.request = request
        self.bulk = bulk
        self.deadline = deadline
        self.arguments = arguments
        self.context = context  # that it is to be made in, and its arguments read; None: any
        self.number = 0  # until it is made
        self.future = future
        self._calls = calls
        self._tasks = tasks
        self._denials = calls.client.denials
        self.over = False

    def begin_arguments(self, *, asynchronous: bool) -> None:
        """When it has been made; of asynchronous ones in the loop."""
        try:
            for each in self.arguments:
                if each.asynchronous == asynchronous and not self.over:
                    each.begin(self.number, self.future.get_loop())
        except Exception as error:  # noqa: BLE001 - no thread can be started, say: for who waits
            self._settle(None, error, cancels=True)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._end(cancels=True)

    def late(self) -> None:
        """Its time is over."""
        self._settle(None, self.deadline.error("the entry"), cancels=True)

    def answered(self, event: communicator.Replied) -> None:
        """The enclave's answer."""
        if self.over:
            return
        if event.ok:
            try:
                self._settle(result_of(event), None)
            except RemoteProtocolError as malformed:
                self._settle(None, malformed)
        elif self.deadline.over:  # the enclave was the first to notice
            self._settle(None, self.deadline.error("the entry"))
        else:
            try:
                denied = self._calls.client.denials > self._denials
                error: BaseException = CallFailed(decode(event.body, Raised), denied=denied)
            except AdytonError as malformed:
                error = malformed
            self._settle(None, error)

    def failed(self, error: Exception) -> None:
        """The connection is lost, or the call cannot be made."""
        self._settle(None, type(error)(*error.args) if isinstance(error, AdytonError) else error)

    def _settle(self, result: Any, error: BaseException | None, *, cancels: bool = False) -> None:
        if self._end(cancels=cancels):
            self._tasks.put(self.future, result, error)

    def _end(self, *, cancels: bool = False) -> bool:
        """False: it is over already. `cancels`: the enclave is told."""
        if not self._calls.ended(self, self._tasks):
            return False
        self._calls.watch.remove(self)
        for each in self.arguments:
            each.stop()
        if self.number:  # else, if it is being made, who does that sees to it
            self.account(cancels=cancels)
        return True

    def account(self, *, cancels: bool) -> None:
        """It was made, and is over."""
        self._calls.client.over(self.number, self.request.entry)
        if cancels:
            self._calls.speaker.cancel(self.number)


class UnpairedCalls:
    """All of one client's. Thread-safe."""

    def __init__(self, client: ProxyClient, speaker: Speaker) -> None:
        self.client = client
        self.speaker = speaker
        self.watch = Watch(client.tick)
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._open: set[UnpairedCall] = set()  # that somebody waits for
        self._under_way: dict[int, UnpairedCall] = {}
        self._held: deque[_Tasks] = deque()  # until there is room
        self._tasks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Tasks] = weakref.WeakKeyDictionary()

    def begin(
        self,
        request: EnterRequest,
        deadline: Deadline,
        arguments: list[Argument],
        bulk: Sequence[bytes] = (),
        context: Context | None = None,
    ) -> UnpairedCall:
        """A call from a task, whose future gets the body of its result, or CallFailed or an AdytonError. It is made when the tasks that run now have
        had their turn, together with theirs. `context`: the calling one, if it matters which.
        """
        loop = asyncio.get_running_loop()
        tasks = self._tasks.get(loop)
        if tasks is None:
            tasks = _Tasks(loop)
            with self._lock:
                self._tasks[loop] = tasks
        if arguments and context is None:
            context = copy_context()
        call = UnpairedCall(self, request, deadline, arguments, tasks, bulk, context, loop.create_future())
        with self._lock:
            self._open.add(call)
            tasks.due[call] = None
            making = tasks.making
        try:
            if not making:
                loop.call_soon(steps.take, functools.partial(self._make, tasks))
                tasks.making = True  # behind it: who is interrupted in between makes no other wait for nothing
            self.watch.add(call, deadline.until, call.late)
        except BaseException:
            call.cancel()
            raise
        return call

    def _make(self, tasks: _Tasks) -> None:
        """As far as there is room. From any thread but the main one."""
        while calls := self._next_due(tasks):
            try:
                self.speaker.make_all(calls, self.made)
            except Exception as error:  # noqa: BLE001 - a defect, told to who waits
                for call in calls:
                    call.failed(error)
            for call in calls:
                if call.arguments and call.context is not None:
                    call.context.run(call.begin_arguments, asynchronous=False)
                    tasks.schedule(functools.partial(call.begin_arguments, asynchronous=True), call.context)
        self.speaker.wake()

    def _next_due(self, tasks: _Tasks) -> list[UnpairedCall]:
        with self._lock:
            room = MOST_CALLS - len(self._under_way)
            calls = list(itertools.islice(tasks.due, max(0, min(room, TOGETHER))))
            for call in calls:
                del tasks.due[call]
            if not tasks.due:
                tasks.making = bool(calls)
            elif not calls and tasks not in self._held:
                self._held.append(tasks)
        return calls

    def made(self, calls: Iterable[tuple[UnpairedCall, int]]) -> list[UnpairedCall]:
        """They have these numbers; before their answers can come. Those that were over before."""
        over = []
        with self._lock:
            for call, number in calls:
                call.number = number
                self._under_way[number] = call
                if call.over:
                    over.append(call)
        return over

    def answered(self, event: communicator.Replied) -> None:
        """The answer to a call without a pair."""
        with self._lock:
            call = self._under_way.pop(event.call, None)
            held = self._held.popleft() if self._held and len(self._under_way) <= MOST_CALLS * 7 // 8 else None
        if call is not None:
            call.answered(event)
        if held is not None:
            self._make(held)

    def ended(self, call: UnpairedCall, tasks: _Tasks) -> bool:
        """Nobody waits for it any more. False: nobody did."""
        with self._lock:
            if call.over:
                return False
            call.over = True
            tasks.due.pop(call, None)
            self._open.discard(call)
            if not self._open:
                self._ended.notify_all()
        return True

    def wait(self, seconds: float | None) -> int:
        """Until none is waited for by its task, or that time is over; how many are. Their loops need not run meanwhile."""
        with self._lock:
            loops = [*self._tasks.values()]
        for tasks in loops:
            steps.take_and_wait(functools.partial(self._make, tasks))
        with self._lock:
            self._ended.wait_for(lambda: not self._open, seconds)
            return len(self._open)

    def lost(self, error: AdytonError) -> None:
        """The connection is."""
        with self._lock:
            calls = [*self._open]
            self._under_way.clear()
            held, self._held = self._held, deque()
            for tasks in held:
                tasks.making = False
        for each in calls:
            each.failed(error)
        self.watch.close()
