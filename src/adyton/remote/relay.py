"""The proxy server's data path: splice a client's gRPC stream and the supervisor's socket. It sees ciphertext only.

What comes is written to the socket by the thread that serves gRPC's events, and only what finds no room there by another, which may wait; then
the next is asked for. The RPC's own thread sends what the socket gives. So what is held is one message each way, and what the kernel's
socket buffers and HTTP/2's window hold.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import queue
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from adyton.allocator import keep_freed_memory
from adyton.communicator.joining import GRACE_SECONDS
from adyton.errors import ClosedError, RemoteProtocolError, UnauthenticatedError
from adyton.handing_over import connect
from adyton.remote import envelopes
from adyton.remote.connection import abort, digest, shown_by
from adyton.remote.core_events import EventStream, ServerStream
from adyton.stopped import STOPPED_SECONDS

LOOK_SECONDS = 1.0  # between two looks at enclaves that have no connection
JOIN_SECONDS = 10.0  # until the client of an enclave must have joined
END_MOMENT = 0.1  # seconds
END_SECONDS = 5.0  # for a client to take the last that its ended enclave said
STREAMS = 16  # of one enclave at once: one that carries its session, and those that come after it and have not joined
FIRST_SIZE, LARGEST_SIZE = 1 << 16, 1 << 19  # bytes of a piece


class Relay:
    """Joins one client to one supervisor, on one connection after the other. Which of them carries the session the supervisor decides, and ends the others."""

    def __init__(self, control: socket.socket, session: bytes, finished: Callable[[], None], *, kept: bool) -> None:
        self.kept = kept
        self.control: socket.socket | None = control  # None: the enclave has ended
        self.session = digest(session)
        self.finished = finished
        self.joined = False  # once
        self.streams: set[Any] = set()  # contexts of RPCs
        self.waited = 0.0  # seconds without a connection, or, of an ended one, with some


class Relays:
    """Those of a process: one gRPC service, one thread that waits for the ends of all enclaves. Which of them an RPC means, its token says."""

    def __init__(self, grace: float = GRACE_SECONDS) -> None:
        """`grace`: seconds that an enclave waits for another connection of its client's; one that waits longer was stopped."""
        self._grace = grace
        self._changed = threading.Condition()
        self._relays: dict[
            bytes, Relay
        ] = {}  # by the digests of their sessions: a look-up tells nothing of the secrets
        self._controls: dict[int, Relay] = {}  # of those that have not ended, by descriptor
        self._waiting: set[Relay] = set()  # see Relay.waited
        self._closed = False
        self._poller = select.epoll()
        self._news = os.eventfd(0)
        self._poller.register(self._news, select.EPOLLIN)
        threading.Thread(target=self._watch, name="adyton-enclaves", daemon=True).start()

    def attach(
        self,
        control: socket.socket,
        session: bytes,
        finished: Callable[[], None] = lambda: None,
        *,
        kept: bool = False,
    ) -> None:
        """Let the client that shows `session` (a secret of at least 16 bytes) join the supervisor behind the socket, see `handing_over`; owns that.

        `finished` is called when the enclave has ended, and its client been told; on a thread that all others wait for. `kept`: it waits for no client.
        """
        relay = Relay(control, session, finished, kept=kept)
        with self._changed:
            self._relays[relay.session] = relay
            self._controls[control.fileno()] = relay
            if not kept:
                self._wait_with(relay)
            self._poller.register(control, select.EPOLLIN)

    @property
    def joined(self) -> bool:
        """Whether there is an enclave whose client has joined it."""
        with self._changed:
            return any(relay.joined for relay in self._relays.values())

    def close(self) -> None:
        """End all enclaves; their clients are told."""
        with self._changed:
            self._closed = True
            os.eventfd_write(self._news, 1)

    def _wait_with(self, relay: Relay) -> None:
        relay.waited = -LOOK_SECONDS  # it has come between two looks
        self._waiting.add(relay)
        os.eventfd_write(self._news, 1)

    # -- the thread that waits ----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._closed or self._relays:
            ready = [descriptor for descriptor, _ in self._poller.poll(LOOK_SECONDS if self._waiting else None)]
            now = time.monotonic()
            passed, before = min(now - before, LOOK_SECONDS), now  # no more: this process was stopped
            with self._changed:
                if self._news in ready:
                    os.eventfd_read(self._news)
                for relay in list(self._controls.values()) if self._closed else map(self._controls.get, ready):
                    if relay is not None:
                        self._end(relay)
                over = self._look(passed)
            for relay in over:
                relay.finished()
        self._poller.close()
        os.close(self._news)

    def _look(self, passed: float) -> list[Relay]:
        """Under the lock: those that are over."""
        over = []
        for relay in list(self._waiting):
            relay.waited += passed
            longest = self._grace + STOPPED_SECONDS if relay.joined else JOIN_SECONDS
            if relay.control is not None and relay.waited > longest:
                self._end(relay)
            if relay.control is None and (not relay.streams or relay.waited > END_SECONDS):
                self._waiting.discard(relay)
                del self._relays[relay.session]
                for stream in relay.streams:
                    stream.cancel()
                over.append(relay)
        return over

    def _end(self, relay: Relay) -> None:
        assert relay.control is not None
        del self._controls[relay.control.fileno()]
        self._poller.unregister(relay.control)
        relay.control.close()
        relay.control, relay.waited = None, 0.0
        self._waiting.add(relay)
        self._changed.notify_all()

    # -- RPCs ---------------------------------------------------------------------------------------------------------

    def handler(self) -> grpc.GenericRpcHandler:
        """The gRPC service."""
        method = grpc.stream_stream_rpc_method_handler(self._communicate)
        handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(
            "adyton.Communicator", {"Communicate": method}
        )
        return handler

    def _join(self, context: Any) -> tuple[Relay, socket.socket]:
        shown = digest(shown_by(context))
        with self._changed:
            relay = self._relays.get(shown)
            has_room = relay is not None and len(relay.streams) < STREAMS
            sock = None
            if relay is not None and relay.control is not None and has_room:
                with contextlib.suppress(OSError):  # it has just ended
                    sock = connect(relay.control)
            if relay is not None and sock is not None:
                relay.joined = True
                relay.streams.add(context)
                self._waiting.discard(relay)
                return relay, sock
        if relay is None:
            abort(context, UnauthenticatedError("no session of that token: provision an enclave first"))
        if not has_room:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the enclave has as many connections as it takes")
        abort(context, ClosedError("the enclave has ended: load it again"))
        raise AssertionError

    def _left(self, relay: Relay, context: Any) -> None:
        with self._changed:
            relay.streams.discard(context)
            if not relay.streams and relay.session in self._relays and not (relay.kept and relay.control is not None):
                self._wait_with(relay)

    def _has_ended(self, relay: Relay) -> bool:
        """A supervisor's sockets close one after the other."""
        with self._changed:
            return self._changed.wait_for(lambda: relay.control is None, END_MOMENT)

    def _communicate(self, _: Iterator[bytes], context: Any) -> Iterator[bytes]:
        relay, sock = self._join(context)
        splice = Splice(sock)
        try:
            splice.run(ServerStream(splice, context))
        finally:
            self._left(relay, context)
        if splice.was_garbled:
            abort(context, RemoteProtocolError("this is no message of a session"))
        if self._has_ended(relay):
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
        self._waits = False  # a thread, for the socket to have room: not before there was none once
        self._left = itertools.count(1)
        self.sent = self._room.release

    def run(self, stream: EventStream) -> None:
        """Until the supervisor has said its last, or either is gone."""
        self._stream = stream
        try:
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
            return
        if not self._waits:
            self._waits = True
            threading.Thread(target=self._write, name="adyton-relay", daemon=True).start()
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
