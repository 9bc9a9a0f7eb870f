"""Host calls and their results as they are sent: MessagePack; in two parts where a file's content would else be copied once more."""

from __future__ import annotations

import struct

import msgspec

from adyton.hostcall import abi

_LEAST = (
    1 << 16
)  # bytes of content, from which on it is a part of its own: MessagePack has a head of five bytes for it then
_HEAD = struct.Struct(">BI")
_BIN_32 = 0xC6  # https://github.com/msgpack/msgpack/blob/master/spec.md

_encode = msgspec.msgpack.Encoder().encode


def encode(message: abi.Request | abi.Result) -> bytes | tuple[bytes, ...]:
    """The message, whole or in parts."""
    if isinstance(message, abi.Data | abi.Write) and (size := len(message.data)) >= _LEAST:
        before = _encode(msgspec.structs.replace(message, data=b""))[
            :-2
        ]  # the content is the last field: two bytes if there is none
        return before + _HEAD.pack(_BIN_32, size), message.data
    return _encode(message)
