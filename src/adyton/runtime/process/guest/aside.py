"""The link aside: calls that no client thread waits in, and what is said of the streams and the cancelling of all calls.

    link ──► reader ──► the loop's thread: `async def` entries, any number at once
                   ├──► a few threads: all other entries, the rest of which wait in order
                   └──► Call: batches, cancelling

The reader runs nothing of the program's, so that what a program waits for always comes. Large results leave on links of their own, which may wait:
those of threads on their thread's, those of the loop on links of a few threads more.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from adyton.communicator.arriving import Arriving
from adyton.communicator.messages import EnterRequest
from adyton.proto.values import Bulk
from adyton.runtime.process.guest.application import Application
from adyton.runtime.process.guest.calls import NOBODY_WAITS, Call, Calls, current
from adyton.runtime.process.guest.link import Aside as Message
from adyton.runtime.process.guest.link import (
    Batch,
    Cancel,
    Enter,
    Forget,
    GuestLink,
    Reader,
    Return,
    Taken,
    returned,
)
from adyton.trusted import tracing

THREADS = 32  # for entries that are no coroutines
ANSWERING_THREADS = 8  # for large results of those that are
_READ_SIZE = 1 << 18

_Work = tuple[EnterRequest, Call]


class Aside:
    """See the module. `become`: what a thread does to have the client's functions; `finished`: before each answer; `mask`: the program's blocked signals."""

    def __init__(
        self,
        link: GuestLink,
        application: Application,
        calls: Calls,
        become: Callable[[], None],
        finished: Callable[[BaseException | None], None],
        send_large: Callable[[Return, bytes], None],
        mask: Iterable[int],
    ) -> None:
        self._link = link
        self._application = application
        self._calls = calls
        self._become = become
        self._finished = finished
        self._send_large = send_large
        self._answering: ThreadPoolExecutor | None = None
        self._mask = mask
        self._due = threading.Condition()
        self._work: deque[_Work] = deque()  # for threads
        self._threads = 0
        self._idle = 0  # of them
        self._ended = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._begun: deque[_Work] = deque()  # for the loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._returned: list[Return] = []  # of the loop's, to be sent together

    def run(self) -> None:
        """The reader, until the supervisor closes the link."""
        reader = Reader(Message)
        arriving: Arriving[Enter | Batch] | None = None
        with contextlib.suppress(OSError):  # the supervisor is gone, and so will be this process
            while data := self._link.read(_READ_SIZE):
                for message in reader.receive(data):
                    if isinstance(message, Enter | Batch) and message.sizes:
                        arriving = Arriving(message, message.sizes)
                    elif arriving is None:
                        self._take(message)
                    else:
                        arriving.add(message)
                        if not arriving.left:
                            self._take_large(arriving)
                            arriving = None
        with self._due:
            self._ended = True
            self._due.notify_all()
        if self._answering is not None:
            self._answering.shutdown(wait=False)
        if self._loop is not None and self._over is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._over.set)
        self._link.close()

    def _take(self, message: Message) -> None:
        if isinstance(message, Forget):
            self._calls.forget(message.call)
            return
        call = self._calls.find(message.call, aside=True)
        match message:
            case Enter():
                self._enter(message, call)
            case Batch():
                call.arrived(message, self._link.send)
            case Taken():
                call.taken(hungry=message.hungry)
            case Cancel():
                call.cancel()

    def _take_large(self, arrived: Arriving[Enter | Batch]) -> None:
        """What is there with its bulk."""
        (body, bulk), head = arrived.whole(), arrived.head
        if isinstance(head, Batch):
            self._take(msgspec.structs.replace(head, payload=body))
            return
        self._calls.find(head.call, aside=True).bulk = bulk
        self._take(msgspec.structs.replace(head, body=body))

    def _enter(self, message: Enter, call: Call) -> None:
        try:
            request, call.trace = self._application.request(message.body), message.trace
        except Exception as error:  # noqa: BLE001 - of whatever a client sends, only its call fails
            self._answer(call, error, b"")
            return
        try:
            if self._application.is_async(request.entry):
                self._begun.append((request, call))
                if len(self._begun) == 1:
                    self._wake_loop()
                return
            with self._due:
                self._work.append((request, call))
                if len(self._work) <= self._idle:
                    self._due.notify()
                elif self._threads < THREADS:
                    self._start_thread()
        except RuntimeError as error:  # no more threads can begin
            self._begun.clear()
            self._answer(call, error, b"")

    def _start_thread(self) -> None:
        """RuntimeError: it cannot begin, and there is no other."""
        try:
            threading.Thread(target=self._run_threads, name="adyton-entry", daemon=True).start()
            self._threads += 1
        except RuntimeError:
            if not self._threads:
                self._work.clear()
                raise

    def _answer(self, call: Call, error: BaseException | None, body: bytes | Bulk) -> None:
        answer, data = self._answer_of(call, error, body)
        if data:
            self._answer_large(answer, data)
        else:
            self._link.send(answer)

    def _answer_of(self, call: Call, error: BaseException | None, body: bytes | Bulk) -> tuple[Return, bytes]:
        """And the bytes behind it."""
        self._finished(error)
        self._calls.ended(call)
        answer, data = returned(error is None, body if error is None else b"", call.number)
        if data and call.cancelled:
            error = TimeoutError(NOBODY_WAITS)
        return (answer, data) if error is None else (self._failed(answer, error), b"")

    def _failed(self, answer: Return, error: BaseException) -> Return:
        return Return(ok=False, body=self._application.raised(error), call=answer.call)

    def _answer_large(self, answer: Return, data: bytes) -> None:
        try:
            self._send_large(answer, data)
        except OSError as error:
            self._link.send(self._failed(answer, error))

    # -- threads ------------------------------------------------------------------------------------------------------

    def _run_threads(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        self._become()
        with contextlib.suppress(OSError):  # the supervisor is gone, and so will be this process
            while (work := self._next()) is not None:
                self._run_entry(*work)
        self._application.end_of_thread()

    def _next(self) -> _Work | None:
        """For a thread; None: it is to end."""
        with self._due:
            self._idle += 1  # also while it has been told, and what it is to do stands there still
            while not (self._work or self._ended):
                self._due.wait()
            self._idle -= 1
            return self._work.popleft() if self._work else None

    def _run_entry(self, request: EnterRequest, call: Call) -> None:
        token = current.set(call)
        error: BaseException | None = None
        body: bytes | Bulk = b""
        try:
            if call.trace is None:
                body = self._application.enter_request(request, call)
            else:
                enter = functools.partial(self._application.enter_request, request)
                body = tracing.within(call.trace, enter, call)
        except BaseException as raised:  # noqa: BLE001 - SystemExit and KeyboardInterrupt of an entry end the entry only
            error = raised
        finally:
            current.reset(token)
        self._answer(call, error, body)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _wake_loop(self) -> None:
        """Or begin another, in place of one that a program has stopped."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._begin_tasks)
                return
        self._start_loop().call_soon_threadsafe(self._begin_tasks)

    def _start_loop(self) -> asyncio.AbstractEventLoop:
        started = threading.Event()

        async def serve() -> None:
            self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
            started.set()
            await self._over.wait()

        def run() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            self._become()
            with contextlib.suppress(RuntimeError), asyncio.Runner() as runner:  # a program has stopped it
                runner.run(serve())

        threading.Thread(target=run, name="adyton-asyncio", daemon=True).start()
        started.wait()
        assert self._loop is not None
        return self._loop

    def _begin_tasks(self) -> None:
        assert self._loop is not None
        while self._begun:
            task = self._loop.create_task(self._run_task(*self._begun.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run_task(self, request: EnterRequest, call: Call) -> None:
        current.set(call)  # in this task's own context
        error: BaseException | None = None
        body: bytes | Bulk = b""
        try:
            if call.trace is not None:
                tracing.begin(call.trace)
            body = await call.cancellable(self._application.enter_async(request, call))
        except BaseException as raised:  # noqa: BLE001 - as above
            error = raised
        answer, data = self._answer_of(call, error, body)
        if data:
            try:
                if self._answering is None:
                    self._answering = ThreadPoolExecutor(ANSWERING_THREADS, "adyton-answer", self._become)
                self._answering.submit(self._answer_large, answer, data)
                return
            except RuntimeError as no_thread:
                answer = self._failed(answer, no_thread)
        self._returned.append(answer)
        if len(self._returned) == 1:
            asyncio.get_running_loop().call_soon(self._send_returned)

    def _send_returned(self) -> None:
        returned, self._returned = self._returned, []
        with contextlib.suppress(OSError):  # as above
            self._link.send(*returned)
