"""Seals and opens for the guest, which is hostile here: it is given what became of its bytes, and never a key. See guest.sealing for the messages."""

from __future__ import annotations

import socket
from collections.abc import Callable

import msgspec

from adyton.attestation.sealing.keys import Sealing
from adyton.errors import AdytonError, LocalProtocolError, RemoteProtocolError
from adyton.runtime.process.guest.sealing import AT_ONCE, MAX_PACKET, OK, REFUSED, Refusal, Seal, Unseal
from adyton.runtime.process.supervisor.loop import Loop

_DECODER: msgspec.msgpack.Decoder[Seal | Unseal] = msgspec.msgpack.Decoder(Seal | Unseal)


class Conversation:
    """About one value, sans-IO: a message in, the answer out. Only RemoteProtocolError leaves it. `ended`: nothing more is to come."""

    def __init__(self, sealing: Sealing) -> None:
        self._sealing = sealing
        self._segment: Callable[[bytes, bool], bytes] | None = None
        self.ended = False

    def receive(self, message: bytes) -> bytes:
        """The answer. RemoteProtocolError: no guest of this runtime says that."""
        if self.ended:
            raise RemoteProtocolError("its guest goes on with a value that was sealed or opened")
        try:
            if self._segment is None:
                return OK + self._begun(message)
            return OK + self._went_on(message)
        except (LocalProtocolError, msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise RemoteProtocolError(f"malformed request to seal: {error}") from error
        except RemoteProtocolError:
            raise
        except AdytonError as error:
            self.ended = True
            return REFUSED + msgspec.msgpack.encode(Refusal(type(error).__name__, error.message))

    def _begun(self, message: bytes) -> bytes:
        match _DECODER.decode(message):
            case Seal(to, additional):
                head, segments = self._sealing.begin(to, additional)
                self._segment = lambda data, last: segments.seal(data, last=last)
                return head
            case Unseal(head, additional):
                size, segments = self._sealing.open(head, additional)
                self._segment = lambda data, last: segments.open(data, last=last)
                return size.to_bytes(2, "big")

    def _went_on(self, message: bytes) -> bytes:
        assert self._segment is not None
        last = message[:1]
        if last not in (b"\0", b"\1"):
            raise RemoteProtocolError(f"malformed request to seal: {last!r} begins a segment")
        self.ended = last == b"\1"
        return self._segment(message[1:], self.ended)


class SealLinks:
    """The sockets on which the guest has values sealed and opened. `guarded`: what an error in a step does."""

    def __init__(
        self, loop: Loop, sealing: Sealing, guarded: Callable[[Callable[[], None]], Callable[[], None]]
    ) -> None:
        self._loop = loop
        self._sealing = sealing
        self._guarded = guarded
        self._sockets: set[socket.socket] = set()

    def take(self, sock: socket.socket) -> None:
        """Serve it until it is closed."""
        if len(self._sockets) >= AT_ONCE:
            sock.close()  # its own trouble
            return
        self._sockets.add(sock)
        conversation = Conversation(self._sealing)
        self._loop.read(sock, self._guarded(lambda: self._from(sock, conversation)))

    def _from(self, sock: socket.socket, conversation: Conversation) -> None:
        try:
            message = sock.recv(MAX_PACKET + 1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if len(message) > MAX_PACKET:
            raise RemoteProtocolError(f"its guest sent a request to seal of more than {MAX_PACKET} bytes")
        if message:
            try:
                sock.send(conversation.receive(message), socket.MSG_DONTWAIT)
            except OSError:
                message = b""  # it does not take its answers, or is gone
        if not message:
            self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        self._loop.forget(sock)
        self._sockets.discard(sock)
        sock.close()

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
