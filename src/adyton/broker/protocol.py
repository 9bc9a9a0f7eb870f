"""What the two say once the channel is attested: one request, one answer. Bytes in, one message out, the same at both ends.

A message is its length in four bytes, little-endian, and a MessagePack array that begins with its tag. Answers are padded to whole blocks, so that who sees
their ciphertext cannot tell a key from a refusal.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from adyton.errors import RemoteProtocolError, UsageError

MAX_SECRET = 1 << 16  # bytes
MAX_NAME = 64
NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\Z"
BLOCK = 4096  # bytes, of which an answer has a whole number
MAX_REQUEST = 1 << 10  # bytes after the length
MAX_ANSWER = MAX_SECRET + 2 * BLOCK
_LENGTH = struct.Struct("<I")
_LEAST_PADDING = 256  # bytes, so that what is before it is always as long (MessagePack's bin 16)
_HEAD_OF_PADDING = 3

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, max_length=MAX_NAME)]


class _Message(msgspec.Struct, frozen=True, array_like=True):
    # A later version may add fields: no forbid_unknown_fields.
    pass


class Request(_Message, frozen=True, tag=1):
    """The enclave wants the secret of that name."""

    name: Name


class Given(_Message, frozen=True, tag=2):
    """Here it is. `secret` is in the reader's memory, which `Reader.wipe` clears."""

    secret: Annotated[memoryview, msgspec.Meta(min_length=1, max_length=MAX_SECRET)]
    padding: memoryview = memoryview(b"")

    def __repr__(self) -> str:
        return "Given(…)"


class Refused(_Message, frozen=True, tag=3):
    """Not to this enclave, or there is none: which of the two, only the broker's log says."""

    padding: memoryview = memoryview(b"")


Answer = Given | Refused
_T = TypeVar("_T")
_ENCODER = msgspec.msgpack.Encoder()


def encode_request(name: str) -> bytes:
    """UsageError for what is no name of a secret."""
    body = _ENCODER.encode(Request(name))
    try:
        msgspec.msgpack.decode(body, type=Request)
    except msgspec.ValidationError:
        raise UsageError(
            f"{name[:80]!r} is no name of a secret: it has up to {MAX_NAME} letters, digits and _ . -"
        ) from None
    return _LENGTH.pack(len(body)) + body


def encode_answer(secret: memoryview | None) -> bytearray:
    """An answer (None: refused), padded; the caller overwrites it once it is sent."""
    size = 0 if secret is None else len(secret)
    fixed = 2 + _HEAD_OF_PADDING + (0 if secret is None else size + (2 if size < 256 else 3 if size < 65536 else 5))
    blocks = -(-(fixed + _LEAST_PADDING) // BLOCK)
    padding = memoryview(bytes(blocks * BLOCK - fixed))
    whole = bytearray(_LENGTH.size + blocks * BLOCK)  # as long as it will be: nothing is moved, and no copy left behind
    _ENCODER.encode_into(Refused(padding) if secret is None else Given(secret, padding), whole, _LENGTH.size)
    assert len(whole) == _LENGTH.size + blocks * BLOCK
    _LENGTH.pack_into(whole, 0, blocks * BLOCK)
    return whole


class Reader(Generic[_T]):
    """Bytes in, the one message out. Only RemoteProtocolError leaves it."""

    def __init__(self, kind: Any, limit: int) -> None:
        self._decoder: msgspec.msgpack.Decoder[_T] = msgspec.msgpack.Decoder(kind)
        self._limit = _LENGTH.size + limit
        self._buffer = bytearray(self._limit)
        self._size = 0

    def receive(self, data: bytes | memoryview) -> _T | None:
        """The message, once it is there; None before. RemoteProtocolError for what is none, is too long, or has something behind it."""
        end = self._size + len(data)
        if end > self._limit:
            raise RemoteProtocolError(f"the peer sent {end} bytes, where one message of at most {self._limit} is due")
        self._buffer[self._size : end] = data
        self._size = end
        if end < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > self._limit - _LENGTH.size:
            raise RemoteProtocolError(
                f"the peer announced a message of {length} bytes; at most {self._limit} are taken"
            )
        if end < _LENGTH.size + length:
            return None
        if end > _LENGTH.size + length:
            raise RemoteProtocolError("the peer sent more than one message")
        try:
            return self._decoder.decode(memoryview(self._buffer)[_LENGTH.size : end])
        except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError):
            raise RemoteProtocolError("the peer sent a malformed message") from None  # its text could hold some of it

    def wipe(self) -> None:
        """Overwrite what was received."""
        self._buffer[:] = bytes(len(self._buffer))


def requests() -> Reader[Request]:
    """The broker's."""
    return Reader(Request, MAX_REQUEST)


def answers() -> Reader[Answer]:
    """The enclave's."""
    return Reader(Answer, MAX_ANSWER)
