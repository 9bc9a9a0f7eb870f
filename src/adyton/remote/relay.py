"""The proxy server's data path: splice a client's gRPC stream and the supervisor's socket. It sees ciphertext only.

Two threads and no queue: one takes requests and writes the socket, the RPC's handler yields what the socket gives; so what is
held is what the kernel's socket buffers and HTTP/2's window hold.
"""

from __future__ import annotations

import hmac
import itertools
import mmap
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from adyton.allocator import keep_freed_memory
from adyton.communicator.joining import GRACE_SECONDS
from adyton.errors import ClosedError, UnauthenticatedError
from adyton.handing_over import connect
from adyton.remote import envelopes
from adyton.remote.connection import SESSION_METADATA, abort
from adyton.stopped import STOPPED_SECONDS

LOOK_SECONDS = 1.0  # between two looks at whether there is a connection
END_MOMENT = 0.1  # seconds
END_SECONDS = 5.0  # for a client to take the last that its ended enclave said
FIRST_SIZE, LARGEST_SIZE = 1 << 16, 1 << 19  # bytes of a piece


class Relay:
    """Joins one client to one supervisor, on one connection after the other: a new one ends the one before."""

    def __init__(self, grace: float = GRACE_SECONDS) -> None:
        """`grace`: seconds that the enclave waits for another connection of its client's; one that waits longer was stopped."""
        self.joined = False  # once
        self._grace = grace
        self._finished: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._control: socket.socket | None = None
        self._session = b""
        self._current: socket.socket | None = None
        self._streams = 0

    def attach(self, control: socket.socket, session: bytes) -> None:
        """Let the client that shows `session` (a secret of at least 16 bytes) join the supervisor behind the socket, see `handing_over`."""
        with self._changed:
            self._control, self._session = control, session
        threading.Thread(target=self._wait_for_end, args=(control,), name="adyton-enclave", daemon=True).start()

    def on_finished(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the enclave has ended, and its client been told."""
        self._finished = callback

    def _wait_for_end(self, control: socket.socket) -> None:
        poller, alone = select.poll(), 0.0
        poller.register(control, select.POLLIN)
        while alone <= self._grace + STOPPED_SECONDS and not poller.poll(LOOK_SECONDS * 1000):
            alone = alone + LOOK_SECONDS if self.joined and not self._streams else 0.0
        with self._changed:
            self._control = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._streams, END_SECONDS)
        self._finished()

    def _has_ended(self) -> bool:
        """A supervisor's sockets close one after the other."""
        with self._changed:
            return self._changed.wait_for(lambda: self._control is None, END_MOMENT)

    def handler(self) -> grpc.GenericRpcHandler:
        """The gRPC service."""
        method = grpc.stream_stream_rpc_method_handler(
            self._communicate, request_deserializer=envelopes.unpack, response_serializer=envelopes.pack
        )
        handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(
            "adyton.Communicator", {"Communicate": method}
        )
        return handler

    def _join(self, context: Any) -> socket.socket:
        shown = dict(context.invocation_metadata()).get(SESSION_METADATA, b"")
        if not self._session or not hmac.compare_digest(shown, self._session):
            abort(context, UnauthenticatedError("no session of that token: provision an enclave first"))
        with self._changed:
            try:
                sock = connect(self._control) if self._control is not None else None
            except OSError:
                sock = None
            if sock is not None:
                if self._current is not None:
                    _end(self._current)
                self._current = sock
                self._streams += 1
        if sock is None:
            abort(context, ClosedError("the enclave has ended: load it again"))
            raise AssertionError
        self.joined = True
        return sock

    def _left(self, sock: socket.socket) -> None:
        with self._changed:
            if self._current is sock:
                self._current = None
            self._streams -= 1
            self._changed.notify_all()

    def _communicate(self, requests: Iterator[memoryview], context: Any) -> Iterator[memoryview]:
        sock = self._join(context)
        if not context.add_callback(lambda: _end(sock)):  # wakes both threads, whatever the supervisor does
            _end(sock)
        ends = itertools.count(1)

        def leave() -> None:
            if next(ends) == 2:  # of both threads: what one closes, the other must not be using
                sock.close()

        pump = threading.Thread(target=_pump, args=(requests, sock, leave), name="adyton-relay", daemon=True)
        pump.start()
        try:
            yield from pieces(sock)
        except OSError:
            pass  # the supervisor is gone, or this connection not the latest
        finally:
            self._left(sock)
            _end(sock)
            leave()
        if self._has_ended():
            abort(context, ClosedError("the enclave has ended"))


def pieces(sock: socket.socket) -> Iterator[memoryview]:
    """What a socket gives, until its end, in pieces that grow while there is always more. Each is good until the next is asked for.

    A client sees a sign of life only when all of a piece is there. On a slow line a session has little under way, see communicator.flow: a
    quarter of a MiB at most, if much of it is urgent; all of that as one piece would take such a line longer than a client waits.
    """
    keep_freed_memory()
    buffer = memoryview(mmap.mmap(-1, LARGEST_SIZE))  # no memory until much comes
    most = FIRST_SIZE
    while size := sock.recv_into(buffer[:most]):
        yield buffer[:size]
        if size == most:
            most = min(2 * most, LARGEST_SIZE)
        elif size <= most // 2:
            most = max(most // 2, FIRST_SIZE)


def _pump(requests: Iterator[memoryview], sock: socket.socket, leave: Callable[[], None]) -> None:
    try:
        for request in requests:
            sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
    except Exception:  # noqa: BLE001 - gRPC raises plain Exception when the client is gone
        _end(sock)  # wakes the handler, and tells the supervisor
    finally:
        leave()


def _end(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # closed already
