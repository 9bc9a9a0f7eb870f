"""Messages of the Communicator service, as gRPC's serializers: bytes in, the `Envelope` of communicator.proto that holds them, and back.

Written and read here, since protobuf copies what it holds once more each way, and a message has half a megabyte. The one form in which
every protobuf writes an Envelope is known; any other is left to protobuf.
"""

from __future__ import annotations

from adyton.communicator_pb2 import Envelope

_TAG = 0x0A  # field 1, bytes: https://protobuf.dev/programming-guides/encoding/
_DIGITS = 4  # of the length: up to 256 MiB, where gRPC's messages have 8


def _length(size: int) -> bytes:
    """A varint."""
    parts = bytearray()
    while size > 0x7F:
        parts.append(size & 0x7F | 0x80)
        size >>= 7
    parts.append(size)
    return bytes(parts)


_SHORT = [bytes([_TAG, size]) for size in range(128)]  # what is before so many bytes


def pack(data: bytes | memoryview) -> bytes:
    """The message that holds a copy of `data`."""
    size = len(data)
    before = _SHORT[size] if size < 128 else b"\n" + _length(size)
    return before + data if size else b""


def unpack(message: bytes) -> memoryview:
    """What a message holds. google.protobuf.message.DecodeError if it is none."""
    if message[:1] == b"\n":
        size = 0
        for place, digit in enumerate(message[1 : 1 + _DIGITS]):
            size |= (digit & 0x7F) << 7 * place
            if digit < 0x80:
                if size == len(message) - 2 - place:
                    return memoryview(message)[2 + place :]
                break
    return memoryview(Envelope.FromString(message).data)
