"""Bytes of a fuzzer → structured input: nearly valid values, so that what lies behind a decoder is reached too.

Everything is a function of the bytes alone; where they end, zeros follow. Equal bytes give equal values, with and without atheris.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from adyton.hostcall.encoding import restored, whole

_T = TypeVar("_T")
_EDGES = (-1, 0, 1, 255, 256, 4095, 4096, 1 << 14, (1 << 14) + 1, 1 << 16, 1 << 20, 1 << 30)
_WIDE_EDGES = ((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63))
MAX_ITEMS = 6  # of a drawn list or mapping


class Draw:
    """Takes values off the front of `data`. `words`: texts that mean something to the target; raw ones are drawn as well."""

    def __init__(self, data: bytes, words: Sequence[str] = ("",)) -> None:
        self._data = data
        self._at = 0
        self._words = words

    def __bool__(self) -> bool:
        """Whether there are bytes left."""
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """The next bytes, `size` of them unless they end before."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def rest(self) -> bytes:
        """All bytes that are left."""
        return self.take(max(0, len(self._data) - self._at))

    def below(self, bound: int) -> int:
        """0 ≤ n < bound ≤ 256."""
        taken = self.take(1)
        return taken[0] % bound if taken else 0

    def often(self) -> bool:
        """Three times out of four; and where the bytes have ended."""
        return self.below(4) < 3

    def pick(self, choices: Sequence[_T]) -> _T:
        """One of at most 256."""
        return choices[self.below(len(choices))]

    def number(self) -> int:
        """Mostly a small one; else one at which something ends, or any of 64 bits."""
        kind = self.below(256)
        if kind < 192:
            return kind % 16
        if kind < 232:
            return self.pick(_EDGES)
        if kind < 244:
            return self.pick(_WIDE_EDGES)
        return int.from_bytes(self.take(8), "little")

    def blob(self) -> bytes:
        """Some bytes of the input; now and then a long run of zeros."""
        size = self.below(64)
        if size < 56:
            return self.take(size)
        return bytes(max(0, self.number()) % (1 << 21))

    def text(self) -> str:
        """A word, a word with something behind it, or anything."""
        kind = self.below(8)
        if kind < 5:
            return self.pick(self._words)
        if kind < 6:
            return f"{self.pick(self._words)}/{self.pick(self._words)}"
        if kind < 7:
            return self.take(self.below(32)).decode("utf-8", "replace")
        word = self.pick(self._words)
        return word * self.below(8) + word[-1:] * (max(0, self.number()) % 5000)

    def spoilt(self, data: bytes) -> bytes:
        """The bytes; now and then with one of them changed to another that is in no UTF-8, or to any."""
        if not self or self.below(8):
            return data
        at, byte = int.from_bytes(self.take(2), "little") % (len(data) or 1), self.below(256)
        return data[:at] + (b"\xff" if byte < 128 else bytes([byte])) + data[at + 1 :]

    def struct(self, kind: Any) -> Any:
        """A value of a type that msgspec decodes. Bounds are kept mostly, types always."""
        return self._value(_type_info(kind))

    def _value(self, info: Any) -> Any:
        match info:
            case inspect.StructType():
                arguments = {field.name: self._value(field.type) for field in info.fields}
                return info.cls(**arguments)
            case inspect.UnionType():
                return self._value(self.pick(info.types))
            case inspect.LiteralType():
                return self.pick(info.values)
            case inspect.IntType():
                return self._integer(info)
            case inspect.StrType():
                return self.text()
            case inspect.BytesType():
                return self.blob()
            case inspect.MemoryViewType():
                return memoryview(self.blob())
            case inspect.BoolType():
                return self.below(2) == 1
            case inspect.FloatType():
                return self.pick((0.0, -1.0, 0.5, float("inf"), float(self.number())))
            case inspect.NoneType():
                return None
            case inspect.RawType():
                return msgspec.Raw(b"\xc0")
            case inspect.TupleType():
                return tuple(self._value(each) for each in info.item_types)
            case inspect.ListType():
                return [self._value(info.item_type) for _ in range(self.below(MAX_ITEMS))]
            case inspect.VarTupleType():
                return tuple(self._value(info.item_type) for _ in range(self.below(MAX_ITEMS)))
            case inspect.DictType():
                pairs = range(self.below(MAX_ITEMS))
                return {self._value(info.key_type): self._value(info.value_type) for _ in pairs}
        raise NotImplementedError(info)

    def _integer(self, info: inspect.IntType) -> int:
        drawn = self.number()
        lowest = info.ge if info.ge is not None else -(1 << 63)
        highest = info.le if info.le is not None else (info.lt or 1 << 64) - 1
        if self.below(32) == 31:  # out of bounds, or not
            return max(-(1 << 63), min(drawn, (1 << 64) - 1))
        return max(lowest, min(drawn, highest))


_type_info = functools.cache(inspect.type_info)


def framed(body: bytes) -> bytes:
    """The body after its length in four bytes, little-endian."""
    return struct.pack("<I", len(body)) + body


def packed(value: Any) -> bytes:
    """The value in MessagePack."""
    return msgspec.msgpack.encode(value)


def arrived(message: Any, kind: Any) -> Any:
    """What a host call, or a result of one, is at the other end."""
    encoded = whole(message)
    return restored(msgspec.msgpack.decode(encoded, type=kind), encoded)
