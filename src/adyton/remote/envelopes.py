"""Messages of the Communicator service, as gRPC's serializers: bytes in, the `Envelope` of communicator.proto that holds them, and back.

Written and read here, since protobuf copies what it holds once more each way, and a message has half a megabyte. The one form in which
every protobuf writes an Envelope is known; any other is left to protobuf.
"""

from __future__ import annotations

from adyton.communicator_pb2 import Envelope

_TAG = b"\x0a"  # field 1, bytes: https://protobuf.dev/programming-guides/encoding/


def _length(size: int) -> bytes:
    """A varint."""
    parts = bytearray()
    while size > 0x7F:
        parts.append(size & 0x7F | 0x80)
        size >>= 7
    parts.append(size)
    return bytes(parts)


def pack(data: bytes | memoryview) -> bytes:
    """The message that holds a copy of `data`."""
    return b"".join((_TAG, _length(len(data)), data)) if data else b""


def unpack(message: bytes) -> memoryview:
    """What a message holds. google.protobuf.message.DecodeError if it is none."""
    for digits in range(1, 5):  # of the length: up to 256 MiB, where gRPC's messages have 8
        size = len(message) - 1 - digits
        if size > 0 and len(length := _length(size)) == digits and message.startswith(_TAG + length):
            return memoryview(message)[1 + digits :]
    return memoryview(Envelope.FromString(message).data)
