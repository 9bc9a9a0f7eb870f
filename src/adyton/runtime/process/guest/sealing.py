"""The guest's side of sealing: each value has a socket of its own to the supervisor, which keeps the keys, and goes over it segment by segment.

    guest → supervisor    Seal(to, additional) or Unseal(head, additional), then for each segment: 1 if it is the last, else 0 ‖ its bytes
    supervisor → guest    one answer to each: OK ‖ what sealed data begins with, or how many bytes those are, then what the segment is now; or REFUSED ‖ Refusal

One message is one packet (SEQPACKET), and none is sent before the last one was answered, so neither side holds more than a segment. As no thread shares
its socket, any thread may seal at any time, in a signal's handler too; of one that is interrupted nothing stays.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from typing import Annotated

import msgspec

from adyton import errors
from adyton.attestation.sealing.header import MAX_SIZE, To
from adyton.attestation.sealing.segments import MAX_DATA, RANDOM_SIZE, SEGMENT, TAG_SIZE
from adyton.errors import AdytonError, IntegrityError, ResourceLimitError
from adyton.runtime.process.guest.conversation import Conversation

SEAL = b"seal"  # guest → supervisor, on the control socket: a socket for one value, attached
MAX_HEAD = MAX_SIZE + RANDOM_SIZE
MAX_PACKET = 1 + SEGMENT + TAG_SIZE
OK, REFUSED = b"\0", b"\1"
AT_ONCE = 256  # values of one guest

_Additional = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Exchange = Callable[[bytes], bytes]  # a message → the answer to it


class Seal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    to: To
    additional: _Additional


class Unseal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """`head`: the first bytes of what is sealed, as many as may be before its segments. The answer: how many are, two bytes, big-endian."""

    head: Annotated[bytes, msgspec.Meta(max_length=MAX_HEAD)]
    additional: _Additional


class Refusal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`kind`: the error's class, of adyton.errors."""

    kind: str
    message: str


def seal(exchange: Exchange, data: memoryview, to: To, additional: bytes) -> bytes:
    """Sealed data. AdytonError: what the supervisor says."""
    if data.nbytes > MAX_DATA:
        raise ResourceLimitError(
            f"seal(): {data.nbytes} bytes, and at most {MAX_DATA} are sealed as one value: seal parts, each with its number as aad"
        )
    sealed = io.BytesIO()  # gives away what it has grown to as it is
    sealed.write(_answer(exchange(msgspec.msgpack.encode(Seal(to, additional)))))
    _segments(exchange, data, SEGMENT, sealed)
    return sealed.getvalue()


def unseal(exchange: Exchange, sealed: memoryview, additional: bytes) -> bytes:
    """The data, of which nothing is returned before all is authentic. AdytonError: what the supervisor says."""
    most = MAX_HEAD + MAX_DATA + (MAX_DATA // SEGMENT) * TAG_SIZE
    if sealed.nbytes > most:
        raise ResourceLimitError(
            f"unseal(): {sealed.nbytes} bytes, and no sealed value has more than {most}: it is none"
        )
    begin = Unseal(bytes(sealed[:MAX_HEAD]), additional)
    head = int.from_bytes(_answer(exchange(msgspec.msgpack.encode(begin))), "big")
    data = io.BytesIO()
    _segments(exchange, sealed[head:], SEGMENT + TAG_SIZE, data)
    return data.getvalue()


def _segments(exchange: Exchange, given: memoryview, size: int, result: io.BytesIO) -> None:
    count = max(1, -(-len(given) // size))
    for number in range(count):
        piece = given[number * size : (number + 1) * size]
        result.write(_answer(exchange(bytes([number == count - 1]) + piece)))


def _answer(packet: bytes) -> memoryview:
    if packet[:1] == OK:
        return memoryview(packet)[1:]
    refusal = msgspec.msgpack.decode(memoryview(packet)[1:], type=Refusal)
    kind = getattr(errors, refusal.kind, IntegrityError)
    assert isinstance(kind, type)
    assert issubclass(kind, AdytonError)
    raise kind(refusal.message)


class SupervisorSealer:
    """A trusted.sealing.Sealer, by the supervisor at the other end of `control`."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def seal(self, data: memoryview, to: To, additional: bytes) -> bytes:
        with _Value(self._control, SEAL) as value:
            return seal(value.ask, data, to, additional)

    def unseal(self, sealed: memoryview, additional: bytes) -> bytes:
        with _Value(self._control, SEAL) as value:
            return unseal(value.ask, sealed, additional)


class _Value(Conversation):
    """About one value."""

    def ask(self, message: bytes) -> bytes:
        answer = self.exchange(message, MAX_PACKET)
        if not answer:
            raise ResourceLimitError(
                f"the enclave seals and opens {AT_ONCE} values already, or is ending: let fewer threads do so at once"
            )
        return answer
