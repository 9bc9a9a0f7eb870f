"""What is due to be sent, in order of urgency: whole small messages and the heads of large ones first, in the order in which they were
put; then the bodies of the large ones, a chunk of each in turn: the smaller, the less may be on its way.

The receiver keeps what has arrived of a body until it is complete. So that honest ends never exceed what they may make each other
keep, bodies are only begun while all that are begun have no more than `window` bytes together; the others wait in order.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

from adyton.communicator.frames import CHUNK, MAX_CHUNK, MoreFrame, encode


class _Body:
    __slots__ = ("_chunk", "_frame_head", "behind", "body", "head", "kind", "number", "offset")

    def __init__(self, head: bytes, kind: Literal["call", "reply"], number: int, body: bytes) -> None:
        self.head = head
        self.kind: Literal["call", "reply"] = kind
        self.number = number
        self.body = memoryview(body)
        self.offset = 0
        self.behind = b""  # a frame that must not overtake the body
        self._frame_head = b""
        self._chunk = 0  # bytes of a frame with that head

    def frame_head(self, size: int) -> bytes:
        """What comes before `size` bytes of the body."""
        if size != self._chunk:
            self._frame_head = encode(MoreFrame(self.kind, self.number, memoryview(bytes(size))))[:-size]
            self._chunk = size
        return self._frame_head


class Outbox:
    """Frames and bodies in, bytes out. `pending`: how many bytes are due, give or take the heads of chunks; `ended`: the last frame is out.

    `replies`: how many bodies of replies are due.
    """

    def __init__(self, window: int) -> None:
        self.pending = 0
        self.ended = False
        self.replies = 0
        self._frames = 0  # that were ever put
        self._window = window
        self._begun = 0  # bytes of all bodies in the ring, sent or not
        self._urgent: deque[bytes | _Body] = deque()
        self._waiting: deque[_Body] = deque()
        self._ring: deque[_Body] = deque()
        self._unsent: dict[tuple[str, int], _Body] = {}
        self._last = b""

    def put(self, frame: bytes) -> None:
        """A frame that goes out before every chunk of a body."""
        self._urgent.append(frame)
        self._frames += 1
        self.pending += len(frame)

    def put_body(self, head: bytes, kind: Literal["call", "reply"], number: int, body: bytes) -> None:
        """A head, in order with `put`, and its body, which follows when there is nothing urgent."""
        item = _Body(head, kind, number, body)
        self._urgent.append(item)
        self._frames += 1
        self._unsent[kind, number] = item
        self.replies += kind == "reply"
        self.pending += len(head) + len(body)

    def put_behind(self, call: int, frame: bytes) -> None:
        """A frame that must not overtake the call's body, if that is not sent yet."""
        item = self._unsent.get(("call", call))
        if item is None:
            self.put(frame)
        else:
            item.behind += frame
            self.pending += len(frame)

    def put_last(self, frame: bytes) -> None:
        """The frame that goes out when nothing else is due."""
        self._last = frame
        self.pending += len(frame)

    def last_put(self) -> int:
        """A number for the frame that was `put` last, see `has_sent`."""
        return self._frames

    def has_sent(self, frame: int) -> bool:
        """Whether that frame, and so all before it, is out."""
        return frame <= self._frames - len(self._urgent)

    def unsent(self, kind: Literal["call", "reply"], number: int) -> bool:
        """Whether some of this body is due still."""
        return (kind, number) in self._unsent

    def take(self, limit: int, room: int) -> bytes:
        """What goes out next: about `limit` bytes, where a negative one is none; of them, about `room` with bodies."""
        if not self._unsent and not self._last and len(self._urgent) == 1 and limit > 0:
            frame = self._urgent.popleft()
            assert isinstance(frame, bytes)
            self.pending = 0
            return frame
        parts: list[bytes | memoryview] = []
        size = self._take_urgent(parts, limit)
        if self._unsent and (room > 0 or size):
            self._take_bodies(parts, room - size)
        if self._last and not self._urgent and not self._unsent:
            self.pending -= len(self._last)
            parts.append(self._last)
            self._last = b""
            self.ended = True
        return b"".join(parts)

    def _take_urgent(self, parts: list[bytes | memoryview], limit: int) -> int:
        """Until `limit` is reached; how many bytes that were."""
        size = 0
        urgent = self._urgent
        while urgent and size < limit:
            item = urgent.popleft()
            if not isinstance(item, bytes):
                self._waiting.append(item)
                item = item.head
            parts.append(item)
            size += len(item)
        self.pending -= size
        return size

    def _take_bodies(self, parts: list[bytes | memoryview], limit: int) -> None:
        """At least one chunk, so that bodies arrive in the end however much is urgent."""
        ring = self._ring
        while self._waiting and (not ring or self._begun + len(self._waiting[0].body) <= self._window):
            item = self._waiting.popleft()
            self._begun += len(item.body)
            ring.append(item)
        taken = 0
        share = max(CHUNK, limit // max(1, len(ring)) // CHUNK * CHUNK)  # of each that has something to send
        while ring and (taken < limit or not taken):
            item = ring.popleft()
            left = max(CHUNK, (limit - taken) // CHUNK * CHUNK)
            stop = min(item.offset + min(share, left, MAX_CHUNK), len(item.body))
            size = stop - item.offset
            parts += item.frame_head(size), item.body[item.offset : stop]
            taken += size
            item.offset = stop
            if stop < len(item.body):
                ring.append(item)
                continue
            self._begun -= stop
            del self._unsent[item.kind, item.number]
            self.replies -= item.kind == "reply"
            if item.behind:
                parts.append(item.behind)
                taken += len(item.behind)
        self.pending -= taken
