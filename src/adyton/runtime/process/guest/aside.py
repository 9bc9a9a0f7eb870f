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
import time
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
MOST_HELD, QUICK_SECONDS = (
    32,
    0.001,
)  # of their answers; that an entry takes, for its answer to be held while it runs again
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
        self._coming = False  # one of them was told, or begins, and has not looked
        self._held: list[Return] = []  # answers of threads, which who comes sends, if nobody does before
        self._ended = False
        self._loop_lock = threading.Lock()  # of the three below, and of starting one
        self._loop: asyncio.AbstractEventLoop | None = None  # that takes tasks
        self._leaving = False  # one does not any more, and its thread looks for work when it is closed
        self._over: asyncio.Event | None = None
        self._begun: deque[_Work] = deque()  # for the loop
        self._arrived: list[_Work] = []  # with the reader, for threads
        self._arrived_for_loop: list[_Work] = []
        self._tasks: dict[asyncio.Task[None], Call] = {}
        self._returned: list[Return] = []  # of the loop's, to be sent together

    def run(self) -> None:
        """The reader, until the supervisor closes the link."""
        reader = Reader(Message)
        arriving: Arriving[Enter | Batch] | None = None
        with contextlib.suppress(OSError):  # the supervisor is gone, and so will be this process
            while data := self._link.read(_READ_SIZE):
                for message in reader.receive(data):
                    if arriving is None and isinstance(message, Enter) and not message.sizes:
                        self._enter(message, self._calls.find(message.call, aside=False))
                    elif isinstance(message, Enter | Batch) and message.sizes:
                        arriving = Arriving(message, message.sizes)
                    elif arriving is None:
                        self._take(message)
                    else:
                        arriving.add(message)
                        if not arriving.left:
                            self._take_large(arriving)
                            arriving = None
                self._give()
        with self._due:
            self._ended = True
            self._due.notify_all()
        if self._answering is not None:
            self._answering.shutdown(wait=False)
        with self._loop_lock:
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
        call = self._calls.find(head.call, aside=False)
        call.bulk = bulk
        self._enter(msgspec.structs.replace(head, body=body), call)

    def _enter(self, message: Enter, call: Call) -> None:
        try:
            request, call.trace = self._application.request(message.body), message.trace
        except Exception as error:  # noqa: BLE001 - of whatever a client sends, only its call fails
            self._answer(call, error, b"")
            return
        (self._arrived_for_loop if self._application.is_async(request.entry) else self._arrived).append((request, call))

    def _give(self) -> None:
        """What the reader has, to who runs it."""
        if self._arrived_for_loop:
            arrived, self._arrived_for_loop = self._arrived_for_loop, []
            self._begun.extend(arrived)
            if len(self._begun) <= len(arrived):  # else it is about to be looked at
                try:
                    self._wake_loop()
                except RuntimeError as error:  # no more threads can begin
                    self._refuse(self._begun, error)
        if self._arrived:
            arrived, self._arrived = self._arrived, []
            with self._due:
                self._work.extend(arrived)
                try:
                    self._call_thread()
                except RuntimeError as error:  # and there is none
                    self._refuse(self._work, error)

    def _refuse(self, work: deque[_Work], error: RuntimeError) -> None:
        while work:
            self._answer(work.popleft()[1], error, b"")

    def _call_thread(self) -> None:
        """Under the lock: have one more look for work, if none is about to. RuntimeError: it cannot begin, and there is no other."""
        if self._coming:
            return
        if self._idle:
            self._coming = True
            self._due.notify()
        elif self._threads < THREADS:
            try:
                threading.Thread(target=self._run_threads, name="adyton-entry", daemon=True).start()
            except RuntimeError:
                if not self._threads:
                    raise
            else:
                self._coming = True
                self._threads += 1

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
            work = self._next(came=True)
            while work is not None:
                began = time.monotonic()
                self._run_entry(*work)
                quick = work[0].entry if time.monotonic() - began < QUICK_SECONDS else ""
                work = self._next(quick)
        self._application.end_of_thread()

    def _next(self, quick: str = "", *, came: bool = False) -> _Work | None:
        """For a thread, which may have `come` for it, or have run the entry `quick` just now; None: it is to end."""
        while True:
            with self._due:
                if came:
                    self._coming = False
                work = self._work.popleft() if self._work else None
                if self._work:
                    with contextlib.suppress(RuntimeError):  # others are there
                        self._call_thread()
                held: list[Return] = []
                # Where an entry that takes no time runs again and again, its answers go out together; at the latest when who comes has its turn.
                holds = not came and work is not None and work[0].entry == quick and self._coming
                if not holds or len(self._held) >= MOST_HELD:
                    held, self._held = self._held, held
                if not (held or work or self._ended):
                    self._idle += 1
                    self._due.wait()
                    self._idle -= 1
                    came = True
                    continue
            if held:
                self._link.send(*held)
            if work is not None or self._ended:
                return work
            came = False

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
        answer, data = self._answer_of(call, error, body)
        if data:
            self._answer_large(answer, data)
        else:
            with self._due:
                self._held.append(answer)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _wake_loop(self) -> None:
        """Or begin one, if there is none any more: a program has stopped it. RuntimeError: it cannot begin."""
        with self._loop_lock:
            if not self._leaving:
                (self._loop or self._start_loop()).call_soon_threadsafe(self._begin_tasks)

    def _start_loop(self) -> asyncio.AbstractEventLoop:
        """Under the lock."""
        started = threading.Event()
        failed: list[BaseException] = []

        async def serve() -> None:
            self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
            started.set()
            await self._over.wait()

        def run() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            self._become()
            try:
                with asyncio.Runner() as runner:
                    try:
                        runner.run(serve())
                    finally:
                        self._leave()
            except RuntimeError:
                pass  # a program has stopped it
            except OSError as error:  # it has no descriptors left for one
                failed.append(error)
            finally:
                if started.is_set():
                    self._left()
                started.set()

        threading.Thread(target=run, name="adyton-asyncio", daemon=True).start()
        started.wait()
        if self._loop is None:
            raise RuntimeError(f"the enclave cannot have an event loop: {failed}")
        return self._loop

    def _leave(self) -> None:
        """The loop takes no tasks any more: it is about to end those that it has."""
        with self._loop_lock:
            self._loop, self._leaving = None, True

    def _left(self) -> None:
        """It is closed. What goes on no more is answered, and what has come meanwhile is for another."""
        with contextlib.suppress(OSError):  # as above
            for task in list(self._tasks):  # it was stopped while it ended them, too
                self._answer(self._tasks.pop(task), RuntimeError("the program has stopped its event loop"), b"")
        if self._returned:
            self._send_returned()
        with self._loop_lock:
            self._leaving = False
            if self._begun and not self._ended:
                try:
                    self._start_loop().call_soon_threadsafe(self._begin_tasks)
                except RuntimeError as error:
                    self._refuse(self._begun, error)

    def _begin_tasks(self) -> None:
        while self._begun and self._loop is not None:
            request, call = self._begun.popleft()
            task = self._loop.create_task(self._run_task(request, call))
            self._tasks[task] = call
            task.add_done_callback(self._tasks.pop)

    async def _run_task(self, request: EnterRequest, call: Call) -> None:
        current.set(call)  # in this task's own context
        error: BaseException | None = None
        body: bytes | Bulk = b""
        try:
            if call.trace is not None:
                tracing.begin(call.trace)
            body = await call.cancellable(self._application.enter_async(request, call))
        except GeneratorExit:  # its loop is closed, and the call is answered: see _left
            raise
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
