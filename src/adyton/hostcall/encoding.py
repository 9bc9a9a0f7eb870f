"""Host calls and their results as they are sent: MessagePack, with names as `names` has them on the wire.

They are sent in two parts where a file's content would else be copied once more. Names that are not the same on the wire are rare: what has
none is encoded and decoded once, and costs a look at its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from adyton.hostcall import abi
from adyton.hostcall.names import LEAD, from_wire, to_wire

# Bytes of content, from which on it is a part of its own: MessagePack has a head of five bytes for it then.
LARGE = 1 << 16
_HEAD = struct.Struct(">BI")
_BIN_32 = 0xC6  # https://github.com/msgpack/msgpack/blob/master/spec.md
# Large, and without names. A Compound's results are each encoded and decoded by themselves.
_NAMELESS = frozenset({abi.Data, abi.Write, abi.Content, abi.Results, abi.Call, abi.Value})

_encode = msgspec.msgpack.Encoder().encode
_M = TypeVar("_M", bound=msgspec.Struct)


def encode(message: abi.Request | abi.Result) -> bytes | tuple[bytes, ...]:
    """The message, whole or in parts."""
    if type(message) not in _NAMELESS:
        return whole(message)
    if isinstance(message, abi.Data | abi.Write) and len(message.data) >= LARGE:
        return in_parts(msgspec.structs.replace(message, data=b""), message.data)
    return _encode(message)


def in_parts(message: msgspec.Struct, data: bytes) -> tuple[bytes, ...]:
    """A message whose last field is empty, with `data` there, of at least LARGE bytes."""
    return _encode(message)[:-2] + _HEAD.pack(_BIN_32, len(data)), data


def whole(message: msgspec.Struct) -> bytes:
    """The message in one part; also what a client tells of files unasked. UnicodeEncodeError for surrogates that stand for no byte."""
    try:
        encoded = _encode(message)
    except UnicodeEncodeError:
        return _encode(_turned(message, to_wire))
    if type(message) in _NAMELESS or LEAD not in encoded:
        return encoded
    return _encode(_turned(message, to_wire))


def restored(message: _M, encoded: bytes | bytearray) -> _M:
    """What was decoded from `encoded`, or from a part of it, with names as they stand in this process, whoever sent it."""
    if type(message) in _NAMELESS or LEAD not in encoded:
        return message
    turned: _M = _turned(message, from_wire)
    return turned


def _turned(part: Any, turn: Callable[[str], str]) -> Any:
    """A message, or a part of one, with each text in it turned: those that are no names are ASCII."""
    if isinstance(part, str):
        return part if part.isascii() else turn(part)
    if isinstance(part, list | tuple):
        return type(part)(_turned(each, turn) for each in part)
    if isinstance(part, msgspec.Struct):
        return type(part)(*(_turned(getattr(part, field), turn) for field in part.__struct_fields__))
    return part
