"""What is due to be sent, in order of urgency: whole small messages and the heads of large ones first, in the order in which they were
put; then the bodies of the large ones, a chunk of each in turn: the smaller, the less may be on its way.

The receiver keeps what has arrived of a body until it is complete. So that honest ends never exceed what they may make each other
keep, bodies are only begun while all that are begun have no more than `window` bytes together; the others wait in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal

from adyton.communicator.frames import CHUNK, MAX_CHUNK, more_head

Part = bytes | memoryview
_SMALL = 1 << 12  # bytes: parts up to that go out together, since each costs more than to copy them


class _Body:
    """`held`: bytes of it that are here, and not taken."""

    __slots__ = ("_parts", "behind", "head", "held", "kind", "number", "offset", "size")

    def __init__(
        self, head: bytes, kind: Literal["call", "reply"], number: int, body: Sequence[Part], more: int
    ) -> None:
        self.head = head
        self.kind: Literal["call", "reply"] = kind
        self.number = number
        self.held = sum(map(len, body))
        self.size = self.held + more
        self.offset = 0
        self.behind = b""  # a frame that must not overtake the body
        self._parts = deque(memoryview(each) for each in body)

    @property
    def complete(self) -> bool:
        """Whether all of it has come here."""
        return self.offset + self.held == self.size

    def add(self, part: Part) -> None:
        """What comes next of it."""
        self._parts.append(memoryview(part))
        self.held += len(part)

    def frame(self, size: int) -> Iterator[Part]:
        """One with the next `size` bytes."""
        yield more_head(self.kind, self.number, size)
        self.offset += size
        self.held -= size
        while size:
            part = self._parts.popleft()
            if len(part) > size:
                self._parts.appendleft(part[size:])
                part = part[:size]
            yield part
            size -= len(part)


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
        self._urgent: deque[tuple[Part, ...] | _Body] = deque()
        self._waiting: deque[_Body] = deque()
        self._ring: deque[_Body] = deque()
        self._unsent: dict[tuple[str, int], _Body] = {}
        self._last = b""

    def put(self, *frame: Part) -> int:
        """A frame that goes out before every chunk of a body; its parts, together. They are not copied. A number for it, see `has_sent`."""
        self._urgent.append(frame)
        self._frames += 1
        self.pending += sum(map(len, frame))
        return self._frames

    def put_body(
        self, head: bytes, kind: Literal["call", "reply"], number: int, body: Sequence[Part], more: int = 0
    ) -> None:
        """A head, in order with `put`, and the parts of its body, which follow when there is nothing urgent. They are not copied.

        `more`: bytes of the body that are yet to come, by `add`.
        """
        item = _Body(head, kind, number, body, more)
        self._urgent.append(item)
        self._frames += 1
        self._unsent[kind, number] = item
        self.replies += kind == "reply"
        self.pending += len(head) + item.held

    def add(self, kind: Literal["call", "reply"], number: int, part: Part) -> None:
        """What comes next of a body. ValueError: it has no more, or not so much."""
        item = self._unsent.get((kind, number))
        if item is None or item.offset + item.held + len(part) > item.size:
            raise ValueError(f"{len(part)} bytes more than {kind} {number} was to have")
        item.add(part)
        self.pending += len(part)

    def drop_incomplete(self) -> None:
        """Of bodies that have not come completely, nothing more goes out."""
        for item in [each for each in self._unsent.values() if not each.complete]:
            begun = item in self._ring
            for queue in (self._urgent, self._waiting, self._ring):
                if item in queue:
                    queue.remove(item)
                    self.pending -= item.held + (len(item.head) if queue is self._urgent else 0)
            self._begun -= item.size if begun else 0
            del self._unsent[item.kind, item.number]
            self.replies -= item.kind == "reply"

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

    def has_sent(self, frame: int) -> bool:
        """Whether that frame, and so all before it, is out."""
        return frame <= self._frames - len(self._urgent)

    @property
    def has_bodies(self) -> bool:
        """Whether something large is due."""
        return bool(self._unsent)

    def unsent(self, kind: Literal["call", "reply"], number: int) -> bool:
        """Whether some of this body is due still."""
        return (kind, number) in self._unsent

    def take(self, limit: int, room: int) -> list[Part]:
        """What goes out next: about `limit` bytes, where a negative one is none; of them, about `room` with bodies."""
        if not self._unsent and not self._last and len(self._urgent) == 1 and limit > 0:
            frame = self._urgent.popleft()
            assert isinstance(frame, tuple)
            self.pending = 0
            return list(frame)
        parts: list[Part] = []
        size = self._take_urgent(parts, limit)
        if self._unsent and (room > 0 or size):
            self._take_bodies(parts, room - size)
        if self._last and not self._urgent and not self._unsent:
            self.pending -= len(self._last)
            parts.append(self._last)
            self._last = b""
            self.ended = True
        return parts

    def _take_urgent(self, parts: list[Part], limit: int) -> int:
        """Until `limit` is reached; how many bytes that were."""
        size = 0
        urgent = self._urgent
        while urgent and size < limit:
            item = urgent.popleft()
            if isinstance(item, _Body):
                self._waiting.append(item)
                item = (item.head,)
            parts += item
            size += sum(map(len, item))
        self.pending -= size
        return size

    def _take_bodies(self, parts: list[Part], limit: int) -> None:
        """At least one chunk, so that bodies arrive in the end however much is urgent."""
        ring = self._ring
        while self._waiting and (not ring or self._begun + self._waiting[0].size <= self._window):
            item = self._waiting.popleft()
            self._begun += item.size
            ring.append(item)
        taken = 0
        share = max(CHUNK, limit // max(1, len(ring)) // CHUNK * CHUNK)  # of each that has something to send
        idle = 0  # of which too little has come here
        while idle < len(ring) and (taken < limit or not taken):
            item = ring.popleft()
            left = max(CHUNK, (limit - taken) // CHUNK * CHUNK)
            size = min(share, left, MAX_CHUNK, item.held)
            if size < min(CHUNK, item.size - item.offset):
                ring.append(item)
                idle += 1
                continue
            idle = 0
            parts += item.frame(size)
            taken += size
            if item.offset < item.size:
                ring.append(item)
                continue
            self._begun -= item.size
            del self._unsent[item.kind, item.number]
            self.replies -= item.kind == "reply"
            if item.behind:
                parts.append(item.behind)
                taken += len(item.behind)
        self.pending -= taken


def together(parts: Sequence[Part]) -> list[Part]:
    """The same bytes, small parts of them joined."""
    if len(parts) < 2:
        return list(parts)
    joined: list[Part] = []
    small: list[Part] = []
    for part in parts:
        if len(part) <= _SMALL:
            small.append(part)
        else:
            joined += [b"".join(small), part] if small else [part]
            small = []
    return [*joined, b"".join(small)] if small else joined
