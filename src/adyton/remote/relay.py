"""The proxy server's data path: splice a client's gRPC stream and the supervisor's socket. It sees ciphertext only.

What comes is written to the socket by the thread that serves gRPC's events, and only what finds no room there by another, which may wait; then
the next is asked for. The RPC's own thread sends what the socket gives. So what is held is one message each way, and what the kernel's
socket buffers and HTTP/2's window hold.
"""

from __future__ import annotations

import contextlib
import hmac
import itertools
import mmap
import os
import queue
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from adyton.allocator import keep_freed_memory
from adyton.communicator.joining import GRACE_SECONDS
from adyton.errors import ClosedError, RemoteProtocolError, UnauthenticatedError
from adyton.handing_over import connect
from adyton.remote import envelopes
from adyton.remote.connection import SESSION_METADATA, abort
from adyton.remote.core_events import EventStream, ServerStream
from adyton.stopped import STOPPED_SECONDS

LOOK_SECONDS = 1.0  # between two looks at whether there is a connection again
END_MOMENT = 0.1  # seconds
END_SECONDS = 5.0  # for a client to take the last that its ended enclave said
FIRST_SIZE, LARGEST_SIZE = 1 << 16, 1 << 19  # bytes of a piece


class Relay:
    """Joins one client to one supervisor, on one connection after the other. Which of them carries the session the supervisor decides, and ends the others."""

    def __init__(self, grace: float = GRACE_SECONDS) -> None:
        """`grace`: seconds that the enclave waits for another connection of its client's; one that waits longer was stopped."""
        self.joined = False  # once
        self._grace = grace
        self._finished: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._control: socket.socket | None = None
        self._session = b""
        self._streams = 0
        self._alone = -1  # an eventfd: there is no connection any more

    def attach(self, control: socket.socket, session: bytes) -> None:
        """Let the client that shows `session` (a secret of at least 16 bytes) join the supervisor behind the socket, see `handing_over`."""
        with self._changed:
            self._control, self._session = control, session
            self._alone = os.eventfd(0)
        threading.Thread(target=self._wait_for_end, args=(control,), name="adyton-enclave", daemon=True).start()

    def on_finished(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the enclave has ended, and its client been told."""
        self._finished = callback

    def _wait_for_end(self, control: socket.socket) -> None:
        poller, alone = select.poll(), 0.0
        poller.register(control, select.POLLIN)
        poller.register(self._alone, select.POLLIN)
        while alone <= self._grace + STOPPED_SECONDS:
            ready = dict(poller.poll(LOOK_SECONDS * 1000 if self.joined and not self._streams else None))
            if ready.pop(self._alone, 0):
                os.eventfd_read(self._alone)
                alone = 0.0
            elif ready:
                break
            else:
                alone = 0.0 if self._streams else alone + LOOK_SECONDS
        with self._changed:
            self._control = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._streams, END_SECONDS)
            os.close(self._alone)
            self._alone = -1
        self._finished()

    def _has_ended(self) -> bool:
        """A supervisor's sockets close one after the other."""
        with self._changed:
            return self._changed.wait_for(lambda: self._control is None, END_MOMENT)

    def handler(self) -> grpc.GenericRpcHandler:
        """The gRPC service."""
        method = grpc.stream_stream_rpc_method_handler(self._communicate)
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
                self._streams += 1
        if sock is None:
            abort(context, ClosedError("the enclave has ended: load it again"))
            raise AssertionError
        self.joined = True
        return sock

    def _left(self) -> None:
        with self._changed:
            self._streams -= 1
            if not self._streams and self._alone >= 0:
                os.eventfd_write(self._alone, 1)
            self._changed.notify_all()

    def _communicate(self, _: Iterator[bytes], context: Any) -> Iterator[bytes]:
        sock = self._join(context)
        splice = Splice(sock)
        try:
            splice.run(ServerStream(splice, context))
        finally:
            self._left()
        if splice.was_garbled:
            abort(context, RemoteProtocolError("this is no message of a session"))
        if self._has_ended():
            abort(context, ClosedError("the enclave has ended"))
        return iter(())


class Splice:
    """A core_events.Side: one RPC and its socket to the supervisor, which this owns."""

    def __init__(self, sock: socket.socket) -> None:
        self.was_garbled = False
        self.over = threading.Event()  # the RPC
        self._sock = sock
        self._takes = True  # the supervisor
        self._room = threading.Lock()  # held while a message is on its way into gRPC
        self._late: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()  # what the socket had no room for
        self._left = itertools.count(1)
        self.sent = self._room.release

    def run(self, stream: EventStream) -> None:
        """Until the supervisor has said its last, or either is gone."""
        self._stream = stream
        try:
            threading.Thread(target=self._write, name="adyton-relay", daemon=True).start()
            self._ask()
            for piece in pieces(self._sock):
                self._room.acquire()
                if not stream.send(envelopes.pack(piece)):
                    return
            self._room.acquire()
        except OSError:
            pass  # the supervisor is gone, or the client
        finally:
            _end(self._sock)
            self._leave()

    def ended(self) -> None:
        """See Side."""
        _end(self._sock)  # wakes whoever waits, whatever the supervisor does
        self._leave()
        self.over.set()

    def _leave(self) -> None:
        if next(self._left) == 3:  # of sender, receiver, and the RPC's end: what one closes, no other must be using
            self._sock.close()

    # -- what comes, one message at a time --------------------------------------------------------------------------------

    def _ask(self) -> None:
        if not self._stream.receive():
            self.received(None)

    def received(self, message: bytes | None) -> None:
        """See Side."""
        if message is None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
            self._late.put(None)
            self._leave()
            return
        taken = size = 0
        try:
            if self._takes:
                data = envelopes.unpack(message)
                size = len(data)
                taken = self._sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        except (OSError, DecodeError) as error:
            self.was_garbled = isinstance(error, DecodeError)
            self._fail()
            taken = size
        if taken == size:
            self._ask()
        else:
            self._late.put(data[taken:])

    def _write(self) -> None:
        while (data := self._late.get()) is not None:
            try:
                self._sock.sendall(data)
            except OSError:
                self._fail()
            self._ask()

    def _fail(self) -> None:
        self._takes = False  # what comes is read all the same: behind it comes the end
        _end(self._sock)  # wakes the sender, and tells the supervisor


def pieces(sock: socket.socket) -> Iterator[memoryview]:
    """What a socket gives, until its end, in pieces that grow while there is always more. Each is good until the next is asked for.

    A client sees a sign of life only when all of a piece is there. On a slow line a session has little under way, see communicator.flow: a
    quarter of a MiB at most, if much of it is urgent; all of that as one piece would take such a line longer than a client waits.
    """
    keep_freed_memory()
    buffer = memoryview(mmap.mmap(-1, LARGEST_SIZE))  # no memory until much comes
    most = FIRST_SIZE
    poller = select.poll()  # a thread that waits in recv is woken, too, when its peer has read
    poller.register(sock, select.POLLIN)
    while poller.poll() and (size := sock.recv_into(buffer, most)):
        yield buffer[:size]
        if size == most:
            most = min(2 * most, LARGEST_SIZE)
        elif size <= most // 2:
            most = max(most // 2, FIRST_SIZE)


def _end(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # closed already
