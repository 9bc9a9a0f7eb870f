"""Iterators among a call's arguments: read by a thread or a task each, as the enclave takes their items, until the call ends."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from adyton.communicator import session as communicator
from adyton.communicator.messages import Raised, encode
from adyton.communicator.streams import END, HUNGRY, RAISED, ItemCalls, Outgoing
from adyton.errors import EnclaveTypeError
from adyton.proto.values import Bulk, encode_or_bulk
from adyton.remote.stream_way import StreamWay

MAX_TEXT = 4096  # characters of what an iterator raised


class Argument:
    """One iterator. `error`: what it raised."""

    def __init__(self, streams: ArgumentStreams, name: str, number: int, source: Any) -> None:
        self.error: Exception | None = None
        self._streams = streams
        self._name = name
        self._number = number
        self._source = source
        self._call = 0
        self._out = Outgoing()
        self._changed = threading.Condition()
        self._stopped = False
        self._waker: Callable[[], None] | None = None  # of the task that reads it
        self._task: asyncio.Task[None] | None = None

    @property
    def asynchronous(self) -> bool:
        """Whether it is read by a loop."""
        return not isinstance(self._source, Iterator)

    def begin(self, call: int, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """For that call, which has been made. `loop`: the running one, if the call is one of its tasks'."""
        self._call = call
        if isinstance(self._source, Iterator):
            threading.Thread(target=self._read, name="adyton-argument", daemon=True).start()
        elif loop is None:
            threading.Thread(target=self._read_in_a_loop, name="adyton-argument", daemon=True).start()
        else:
            self._task = loop.create_task(self._read_async())  # kept, for a loop keeps none

    def stop(self) -> None:
        """The call has ended. From any thread: it is closed by who reads it: a task at once, a thread when it does not wait for it."""
        with self._changed:
            self._stopped = True
            task = self._task
        if task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)
        self._wake()

    def taken(self, *, hungry: bool) -> None:
        """The enclave has taken a batch."""
        with self._changed:
            self._out.taken(hungry=hungry)
            self._push()
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
            waker, self._waker = self._waker, None
        if waker is not None:
            waker()

    def _push(self) -> None:
        """Under the lock: what may be sent."""
        while not self._stopped and (due := self._out.take()) is not None:
            number = self._out.batches - 1
            self._streams.send(self, self._call, self._number, number, *due)

    def _add(self, item: Any) -> None:
        encoded = encode_or_bulk(self._name, item)
        with self._changed:
            if isinstance(encoded, Bulk):
                self._out.add_large(encoded.value)
            else:
                self._out.add(encoded)
            self._push()

    def _end(self, error: Exception | None) -> None:
        self.error = error
        with self._changed:
            self._out.end(*((END, b"") if error is None else (RAISED, encode(_raised(error)))))
            self._push()

    def _read(self) -> None:
        error: Exception | None = None
        try:
            for item in self._source:
                if self._stopped:
                    break
                self._add(item)
                with self._changed:
                    while self._out.full and not self._stopped:
                        self._changed.wait()
                if self._stopped:
                    break
        except Exception as raised:  # noqa: BLE001 - for the enclave, and for the caller
            error = raised
        finally:
            close = getattr(self._source, "close", None)
            if close is not None:
                with contextlib.suppress(Exception):
                    close()
        self._end(error)

    def _read_in_a_loop(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._read_async())

    async def _read_async(self) -> None:
        with self._changed:
            self._task = asyncio.current_task()
            if self._stopped:
                return
        error: Exception | None = None
        try:
            async for item in self._source:
                if self._stopped:
                    break
                self._add(item)
                while self._out.full and not self._stopped:
                    await self._woken()
                if self._stopped:
                    break
        except Exception as raised:  # noqa: BLE001 - as above
            error = raised
        finally:
            close = getattr(self._source, "aclose", None)
            if close is not None:
                with contextlib.suppress(Exception):
                    await close()
        self._end(error)

    async def _woken(self) -> None:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(woken.set)

        with self._changed:
            if not self._out.full or self._stopped:
                return
            self._waker = wake
        await woken.wait()


class ArgumentStreams:
    """All of one client's."""

    def __init__(self, way: StreamWay) -> None:
        self._way = way
        self._calls: ItemCalls[Argument] = ItemCalls(way.session)
        self._begun: weakref.WeakSet[Argument] = weakref.WeakSet()

    def of(self, name: str, sources: list[Any]) -> list[Argument]:
        """The iterators among the arguments of a call of `name`, numbered as in adyton.proto.values."""
        arguments = [Argument(self, name, number, source) for number, source in enumerate(sources, 1)]
        if arguments:
            with self._way.lock:
                self._begun.update(arguments)
        return arguments

    def send(
        self, argument: Argument, call: int, stream: int, number: int, kind: int, parts: tuple[bytes, ...]
    ) -> None:
        """A batch of an argument's."""
        with self._way.lock:
            if self._way.is_open():
                self._calls.send(argument, call, stream, number, kind, parts)
        self._way.wake()

    def replied(self, event: communicator.Replied) -> bool:
        """Whether that is the answer to a batch."""
        with self._way.lock:
            argument = self._calls.replied(event.call)
        if argument is not None:
            argument.taken(hungry=event.body == HUNGRY)
        return argument is not None

    def lost(self) -> None:
        """The connection is."""
        with self._way.lock:
            begun = list(self._begun)
        for each in begun:
            each.stop()


def _raised(error: Exception) -> Raised:
    kind = "type" if isinstance(error, EnclaveTypeError) else "raised"
    builtin = next(base.__name__ for base in type(error).__mro__ if getattr(builtins, base.__name__, None) is base)
    errno = error.errno if isinstance(error, OSError) and isinstance(error.errno, int) else 0
    text = error.message if isinstance(error, EnclaveTypeError) else str(error)
    sendable = text.encode("utf-8", "backslashreplace").decode()[:MAX_TEXT]
    return Raised(kind, type(error).__qualname__[:256], sendable, builtin, errno)  # type: ignore[arg-type]
