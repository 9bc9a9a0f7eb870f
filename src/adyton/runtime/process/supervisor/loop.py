"""The supervisor's event loop: one thread, readiness in, callbacks out; and sockets whose unsent bytes wait without blocking it."""

from __future__ import annotations

import heapq
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any

Callback = Callable[[], None]
_MOST_READY = 64  # of one turn
_AT_ONCE = 64  # pieces


class Loop:
    """Calls back when descriptors can be read, or written where asked for."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, int] = {}  # descriptors, and for what
        self._writers: dict[int, Callback] = {}
        self._readers: dict[int, Callback] = {}
        self._alarm: tuple[float, Callback] | None = None
        self._later: list[tuple[float, int, Callback]] = []  # a heap
        self._counted = 0
        self._soon: list[Callback] = []
        self._tidy: tuple[float, Callback] | None = None
        self._tidies = False
        self._running = True

    def read(self, source: Any, callback: Callback | None) -> None:
        """Call back while `source` can be read; None: no longer."""
        self._set(source, self._readers, callback)

    def write(self, source: Any, callback: Callback | None) -> None:
        """Call back while `source` can be written; None: no longer."""
        self._set(source, self._writers, callback)

    def _set(self, source: Any, side: dict[int, Callback], callback: Callback | None) -> None:
        descriptor = source if isinstance(source, int) else source.fileno()
        if callback is None:
            side.pop(descriptor, None)
        else:
            side[descriptor] = callback
        wanted = (select.EPOLLIN if descriptor in self._readers else 0) | (
            select.EPOLLOUT if descriptor in self._writers else 0
        )
        current = self._watched.get(descriptor, 0)
        if wanted == current:
            return
        if not wanted:
            del self._watched[descriptor]
            with suppress(OSError):  # it is closed
                self._epoll.unregister(descriptor)
            return
        if not current:
            self._epoll.register(descriptor, wanted)
        else:
            self._epoll.modify(descriptor, wanted)
        self._watched[descriptor] = wanted

    def forget(self, source: Any) -> None:
        """Stop watching `source`; do so before closing it."""
        self.read(source, None)
        self.write(source, None)

    def alarm(self, seconds: float, callback: Callback | None) -> None:
        """Call back once, so much later, in place of what was set before; None: not at all."""
        self._alarm = None if callback is None else (time.monotonic() + seconds, callback)

    def later(self, seconds: float, callback: Callback) -> None:
        """Call back once, so much later; nothing takes it back."""
        self._counted += 1  # of two at the same time, the first comes first
        heapq.heappush(self._later, (time.monotonic() + seconds, self._counted, callback))

    def soon(self, callback: Callback) -> None:
        """Call back once, at the end of this turn."""
        self._soon.append(callback)

    def tidy(self, seconds: float, callback: Callback) -> None:
        """Call back so much later than anything happened, again and again; never where nothing does."""
        self._tidy = seconds, callback

    def _tidied(self) -> None:
        assert self._tidy is not None
        self._tidies = False
        self._tidy[1]()

    def stop(self) -> None:
        """Make `turn` return False from now on."""
        self._running = False

    def turn(self) -> bool:
        """Wait once, and call back for all that is ready. False: stopped."""
        due = self._later[0][0] if self._later else None
        if self._alarm is not None and (due is None or self._alarm[0] < due):
            due = self._alarm[0]
        left = 0.0 if self._soon else None if due is None else max(0.0, due - time.monotonic())
        ready = self._epoll.poll(left, _MOST_READY)
        if ready and not self._tidies and self._tidy is not None:
            self._tidies = True
            self.later(self._tidy[0], self._tidied)
        for descriptor, events in ready:
            # An end or an error is told to whoever watches.
            if events != select.EPOLLOUT and (reader := self._readers.get(descriptor)):
                reader()
            if events != select.EPOLLIN and (writer := self._writers.get(descriptor)):
                writer()
        if self._alarm is not None and time.monotonic() >= self._alarm[0]:
            callback, self._alarm = self._alarm[1], None
            callback()
        while self._later and time.monotonic() >= self._later[0][0]:
            heapq.heappop(self._later)[2]()
        while self._soon:
            soon, self._soon = self._soon, []
            for callback in soon:
                callback()
        return self._running

    def close(self) -> None:
        """Forget everything; the descriptors stay their owners'."""
        self._epoll.close()


class Outbox:
    """Bytes on their way into a non-blocking stream socket, in order."""

    def __init__(self, loop: Loop, sock: socket.socket, refill: Callback | None = None) -> None:
        """`refill` is called when all has been sent, and may `put` more."""
        sock.setblocking(False)
        self._loop = loop
        self._socket = sock
        self._refill = refill
        self._waiting: deque[memoryview] = deque()
        self._size = 0  # bytes of them
        self._gathered: list[bytes | bytearray] = []
        self._gathered_size = 0

    def __len__(self) -> int:
        return self._size + self._gathered_size

    def gather(self, data: bytes | bytearray) -> None:
        """Send `data`, which is small, in one piece with all else that comes in this turn of the loop."""
        if not self._gathered:
            self._loop.soon(self._put_gathered)
        self._gathered.append(data)
        self._gathered_size += len(data)

    def _put_gathered(self) -> None:
        if self._gathered:
            data = b"".join(self._gathered)
            self._gathered.clear()
            self._gathered_size = 0
            with suppress(OSError):  # the reader side notices the end
                self.put(data)

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, which nobody changes from now on, as soon as the socket takes it. OSError when the peer is gone."""
        self._put_gathered()
        sent = 0
        if not self._waiting:
            with suppress(BlockingIOError):
                sent = self._socket.send(data, socket.MSG_DONTWAIT)  # whoever else has the socket may clear its flag
            if sent == len(data):
                return
            self._loop.write(self._socket, self.push)
        self._waiting.append(memoryview(data)[sent:])
        self._size += len(data) - sent

    def drop(self) -> None:
        """Keep nothing, and call nobody: the socket is of no use any more."""
        self._waiting.clear()
        self._gathered.clear()
        self._size = self._gathered_size = 0
        self._refill = None

    def push(self) -> None:
        """Send what waits, as far as the socket takes it now."""
        try:
            sent = self._socket.sendmsg(islice(self._waiting, _AT_ONCE), (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            sent = self._size  # the reader side notices the end
        self._size -= sent
        while sent:
            first = self._waiting.popleft()
            if sent < len(first):
                self._waiting.appendleft(first[sent:])
                break
            sent -= len(first)
        if not self._waiting:
            self._loop.write(self._socket, None)
            if self._refill is not None:
                self._refill()
