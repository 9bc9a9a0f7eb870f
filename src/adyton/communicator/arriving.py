"""A message of which the head has come, while its body comes in chunks. What was announced costs nothing; only what has come is held, once."""

from __future__ import annotations

import io
from typing import Generic, TypeVar

import msgspec

from adyton.communicator.frames import MAX_BULK, CallFrame, NotifyFrame, ReplyFrame
from adyton.errors import RemoteProtocolError

Head = CallFrame | ReplyFrame | NotifyFrame
T = TypeVar("T")

_LARGE = 1 << 22  # bytes of a part that must not be held twice, not even for a moment
_SIZES: msgspec.msgpack.Decoder[tuple[int, ...]] = msgspec.msgpack.Decoder(tuple[int, ...])


def sizes_of(head: Head) -> tuple[int, ...]:
    """How the body is cut: its own size, then that of each of the bulk beside it. RemoteProtocolError: it cannot be."""
    if not head.chunk:
        return (head.size,)
    try:
        sizes = _SIZES.decode(head.chunk)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        sizes = ()
    if not 1 < len(sizes) <= 1 + MAX_BULK or min(sizes) < 0 or sum(sizes) != head.size:
        raise RemoteProtocolError(f"the peer announced a message of {head.size} bytes that are cut otherwise")
    return sizes


class _Part:
    __slots__ = ("_held", "left")

    def __init__(self, size: int) -> None:
        self.left = size
        # A BytesIO gives away what it has grown to as it is.
        self._held: io.BytesIO | list[bytes | memoryview] = io.BytesIO() if size > _LARGE else []

    def add(self, chunk: memoryview) -> None:
        """Copied where that frees what came with it, if that is more."""
        self.left -= len(chunk)
        if isinstance(self._held, io.BytesIO):
            self._held.write(chunk)
        else:
            whole = memoryview(chunk.obj).nbytes
            self._held.append(chunk if 2 * len(chunk) >= whole else bytes(chunk))

    def whole(self) -> bytes:
        return self._held.getvalue() if isinstance(self._held, io.BytesIO) else b"".join(self._held)


class Arriving(Generic[T]):
    """See the module. `left`: bytes that have not come."""

    __slots__ = ("_parts", "_place", "head", "left")

    def __init__(self, head: T, sizes: tuple[int, ...]) -> None:
        self.head = head
        self.left = sum(sizes)
        self._parts = [_Part(size) for size in sizes]
        self._place = 0

    def add(self, chunk: memoryview) -> None:
        """The next bytes."""
        self.left -= len(chunk)
        while chunk:
            part = self._parts[self._place]
            if not part.left:
                self._place += 1
                continue
            size = min(part.left, len(chunk))
            part.add(chunk[:size])
            chunk = chunk[size:]

    def whole(self) -> tuple[bytes, tuple[bytes, ...]]:
        """The body and its bulk, when all is there."""
        body, *bulk = [part.whole() for part in self._parts]
        return body, tuple(bulk)


class Passing:
    """The same where nothing is held: its owner is given each chunk."""

    __slots__ = ("head", "left")

    def __init__(self, head: CallFrame | ReplyFrame) -> None:
        self.head = head
        self.left = head.size
