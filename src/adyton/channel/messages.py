"""The messages before data: a length in four bytes, little-endian, and a MessagePack array that begins with its tag."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Annotated

import msgspec

from adyton.attestation.binding import NONCE_SIZE
from adyton.attestation.evidence import MAX_EVIDENCE
from adyton.errors import RemoteProtocolError

MAX_MESSAGE = MAX_EVIDENCE + 64  # bytes after the length


class _Message(msgspec.Struct, frozen=True, array_like=True):
    # A later version may add fields, and must still be told apart from garbage: no forbid_unknown_fields.
    pass


class AttestRequest(_Message, frozen=True, tag=1):
    """The client wants evidence over this nonce."""

    version: Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)]
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_SIZE, max_length=NONCE_SIZE)]


class Evidence(_Message, frozen=True, tag=2):
    """The enclave's evidence."""

    evidence: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_EVIDENCE)]


class Accept(_Message, frozen=True, tag=3):
    """The client accepts the evidence; data follows."""


Message = AttestRequest | Evidence | Accept

_LENGTH = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Message] = msgspec.msgpack.Decoder(Message).decode


def encode(message: Message) -> bytes:
    """A message with its length."""
    body = _encode(message)
    return _LENGTH.pack(len(body)) + body


class MessageReader:
    """Bytes in, one message at a time out; what follows a message is kept for later. Only RemoteProtocolError leaves it."""

    def __init__(self) -> None:
        self.rest = b""

    def next(self, data: bytes) -> Message | None:
        """The next message, or None while it is not complete."""
        self.rest += data
        if len(self.rest) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self.rest)
        if length > MAX_MESSAGE:
            raise RemoteProtocolError(f"the peer announced a message of {length} bytes before the channel is attested")
        end = _LENGTH.size + length
        if len(self.rest) < end:
            return None
        body, self.rest = self.rest[_LENGTH.size : end], self.rest[end:]
        try:
            return _decode(body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise RemoteProtocolError(
                f"the peer sent a malformed message before the channel is attested: {error}"
            ) from error
