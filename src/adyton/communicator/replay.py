"""What one end of a session has sent and the other may not have read: it is sent again when the connection between them was another one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from adyton.communicator.outbox import Part
from adyton.errors import RemoteProtocolError


class Replay:
    """A stream of bytes from `first` to `sent`, both counted from the session's beginning. Parts are kept as they are, not copied."""

    def __init__(self) -> None:
        self.first = 0
        self.sent = 0
        self._parts: deque[Part] = deque()

    def add(self, parts: Iterable[Part]) -> None:
        """These are being sent."""
        for part in parts:
            self._parts.append(part)
            self.sent += len(part)

    def arrived(self, size: int) -> None:
        """So many bytes of all have been read."""
        while self._parts and self.first + len(self._parts[0]) <= size:
            self.first += len(self._parts.popleft())

    def after(self, size: int) -> deque[Part]:
        """What follows the first so many bytes. RemoteProtocolError: the peer cannot have read that many, or so few."""
        if not self.first <= size <= self.sent:
            raise RemoteProtocolError(
                f"the peer says that it has read {size} bytes of this session, of which {self.sent} were sent and {self.first} were read before"
            )
        self.arrived(size)
        parts = deque(self._parts)
        if parts and self.first < size:
            parts[0] = memoryview(parts[0])[size - self.first :]
        return parts
