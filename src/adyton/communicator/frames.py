"""Frames: what the two ends of a session send each other. Bytes ↔ frames, nothing else.

A frame is its length in four bytes, little-endian, and a MessagePack array that begins with its tag. A message (call, reply or
notification) whose body has at most `CHUNK` bytes is one frame. The head of a larger one has no body, only its size; the body
follows in More frames of `CHUNK` to `MAX_CHUNK` bytes, as the sender likes, the last one being the rest. A large call or reply may have bulk:
bytes beside its body, which follow it. Its size is that of all; in place of its chunk, the head says how they are cut, an array of sizes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from adyton.errors import RemoteProtocolError

CHUNK = 1 << 14  # bytes of body in one frame
MAX_CHUNK = 1 << 18  # bytes of it in a More frame
MAX_BULK = 64  # of a message
MAX_METHOD = 128  # characters
MAX_REASON = 1024  # characters
MAX_FRAME = MAX_CHUNK + 4 * MAX_REASON + 64  # bytes after the length
MAX_NUMBER = (1 << 63) - 1  # a session that makes a call each nanosecond ends its numbers in 292 years

Number = Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER)]
Pair = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]
Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]
Method = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_METHOD)]
Chunk = Annotated[bytes, msgspec.Meta(max_length=CHUNK)]
Kind = Literal["call", "reply", "notification"]


class _Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class CallFrame(_Frame, frozen=True, tag=1):
    """The sender calls. `call`: its calls are numbered 1, 2, 3 …; `pair` 0: unpaired."""

    call: Number
    pair: Pair
    method: Method
    size: Size
    chunk: Chunk


class ReplyFrame(_Frame, frozen=True, tag=2):
    """The answer to a call that the receiver made."""

    call: Number
    ok: bool
    size: Size
    chunk: Chunk


class NotifyFrame(_Frame, frozen=True, tag=3):
    """A message that has no answer. `notification`: the sender's are numbered 1, 2, 3 …"""

    notification: Number
    method: Method
    size: Size
    chunk: Chunk


class MoreFrame(_Frame, frozen=True, tag=4):
    """The next chunk of the body of a call, reply or notification whose head was sent before. It is not copied out of what came."""

    kind: Kind
    number: Number
    chunk: memoryview


class CancelFrame(_Frame, frozen=True, tag=5):
    """The sender does not need the answer to this call of its own any more; one comes all the same."""

    call: Number


class DisposeFrame(_Frame, frozen=True, tag=6):
    """The client's thread of this idle pair has ended."""

    pair: Number


class GoodbyeFrame(_Frame, frozen=True, tag=7):
    """The sender's last frame."""

    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON)]


class MarkFrame(_Frame, frozen=True, tag=8):
    """The sender wants to hear when this has been read. `mark`: the sender's are numbered 1, 2, 3 …"""

    mark: Number


class ReadFrame(_Frame, frozen=True, tag=9):
    """The sender has read what came before this mark, and before those before it."""

    mark: Number


Frame = (
    CallFrame | ReplyFrame | NotifyFrame | MoreFrame | CancelFrame | DisposeFrame | GoodbyeFrame | MarkFrame | ReadFrame
)

_LENGTH = struct.Struct("<I")
_EMPTY = memoryview(b"")  # two bytes of a frame
_BIN_32 = 0xC6  # https://github.com/msgpack/msgpack/blob/master/spec.md
_CHUNK_HEAD = struct.Struct(">BI")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


def encode(frame: Frame) -> bytes:
    """A frame with its length."""
    body = _encode(frame)
    return _LENGTH.pack(len(body)) + body


def more_head(kind: Kind, number: int, size: int) -> bytes:
    """What goes before the `size` bytes of a MoreFrame's chunk, so that they need not be copied to be encoded."""
    head = _encode(MoreFrame(kind, number, _EMPTY))[:-2] + _CHUNK_HEAD.pack(_BIN_32, size)
    return _LENGTH.pack(len(head) + size) + head


class FrameReader:
    """Bytes in, frames out, wherever the bytes were cut. Only RemoteProtocolError leaves it."""

    def __init__(self) -> None:
        self._rest = bytearray()  # of a frame that is not complete: at most MAX_FRAME and its length

    def receive(self, data: bytes | bytearray) -> Iterator[Frame]:
        """The frames that `data` completes, one by one, so that each is acted on before the next is looked at."""
        start, view = 0, memoryview(data)
        if self._rest:
            start = self._fill(view, 0, _LENGTH.size)
            if len(self._rest) < _LENGTH.size:
                return
            stop = _end(self._rest, 0)
            start = self._fill(view, start, stop)
            if len(self._rest) < stop:
                return
            whole, self._rest = self._rest, bytearray()
            yield _frame(memoryview(whole)[_LENGTH.size :])
        size = len(view)
        while size - start >= _LENGTH.size and (stop := _end(view, start)) <= size:
            yield _frame(view[start + _LENGTH.size : stop])
            start = stop
        if start < size:
            self._rest += view[start:]

    def _fill(self, view: memoryview, start: int, size: int) -> int:
        """Have `size` bytes in the rest, if there are so many from `start` on; where what is left begins."""
        stop = min(len(view), start + max(0, size - len(self._rest)))
        self._rest += view[start:stop]
        return stop


def _end(data: bytearray | memoryview, start: int) -> int:
    """Where the frame that begins at `start` ends."""
    (length,) = _LENGTH.unpack_from(data, start)
    if length > MAX_FRAME:
        raise RemoteProtocolError(f"the peer announced a frame of {length} bytes; the longest has {MAX_FRAME}")
    return start + _LENGTH.size + int(length)


def _frame(body: memoryview) -> Frame:
    try:
        frame: Frame = _decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RemoteProtocolError(f"the peer sent a malformed frame: {error}") from error
    return frame
