"""Seals and opens for the guest, which is hostile here: it is given what became of its bytes, and never a key. See guest.sealing for the messages."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from adyton.attestation.sealing.keys import Sealing
from adyton.errors import AdytonError, LocalProtocolError, RemoteProtocolError
from adyton.runtime.process.guest.sealing import AT_ONCE, MAX_PACKET, OK, REFUSED, Refusal, Seal, Unseal
from adyton.runtime.process.supervisor.guest_sockets import GuestSockets, Hear
from adyton.runtime.process.supervisor.loop import Callback, Loop

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


def seal_links(loop: Loop, guarded: Callable[[Callback], Callback], sealing: Sealing) -> GuestSockets:
    """The sockets on which the guest has values sealed and opened."""

    def begin() -> Hear:
        conversation = Conversation(sealing)
        return lambda message, answer: answer(conversation.receive(message))

    return GuestSockets(loop, guarded, begin, AT_ONCE, MAX_PACKET)
