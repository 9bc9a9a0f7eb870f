"""How a connection joins a session: the first bytes in each direction, inside the attested channel; the session's own follow.

    client ── Hello: which session it is, and how many of its bytes were read ──► enclave
           ◄── Answer: whether it is that one's, and the same ──

The session of the first Hello is new, and its client need not wait for the answer. It is known by a secret that the client has drawn; so who has
lost a connection at any moment can go on where both ends are. Sans-IO.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass

from adyton.errors import RemoteProtocolError

SECRET = 32  # bytes
GRACE_SECONDS = 60.0  # that an enclave waits for another connection, unless its server says otherwise
MAX_GRACE = 86_400.0
FIRST_GRACE_SECONDS = (
    5.0  # … at most for the first one that joins; and that its client goes on for until it is told a grace
)
VERSION = 1
_HELLO = struct.Struct(f">B{SECRET}sQ")
_ANSWER = struct.Struct(">BBQI")


def new_secret() -> bytes:
    """Of a session."""
    return secrets.token_bytes(SECRET)


@dataclass(frozen=True)
class Hello:
    """`read`: bytes of the session that the client has read."""

    secret: bytes
    read: int

    def pack(self) -> bytes:
        """As it is sent."""
        return _HELLO.pack(VERSION, self.secret, self.read)


@dataclass(frozen=True)
class Answer:
    """`read`: bytes of the session that the enclave has read; `grace`: ms that it waits for another connection when one is lost."""

    joined: bool
    read: int
    grace: int

    def pack(self) -> bytes:
        """As it is sent."""
        return _ANSWER.pack(VERSION, self.joined, self.read, self.grace)


class _Reader:
    def __init__(self, size: int) -> None:
        self._size = size
        self._head = bytearray()

    def _take(self, data: bytes) -> tuple[bytes, bytes] | None:
        """The head and what follows it, when it is complete. RemoteProtocolError: of another version."""
        missing = self._size - len(self._head)
        self._head += data[:missing]
        if self._head and self._head[0] != VERSION:
            raise RemoteProtocolError(f"the peer joins a session by version {self._head[0]}; this one knows {VERSION}")
        return (bytes(self._head), data[missing:]) if len(self._head) == self._size else None


class HelloReader(_Reader):
    """Of one connection, the enclave's end."""

    def __init__(self) -> None:
        super().__init__(_HELLO.size)

    def receive(self, data: bytes) -> tuple[Hello, bytes] | None:
        """It and what follows, when it is complete. RemoteProtocolError."""
        taken = self._take(data)
        if taken is None:
            return None
        _, secret, read = _HELLO.unpack(taken[0])
        return Hello(secret, read), taken[1]


class AnswerReader(_Reader):
    """Of one connection, the client's end."""

    def __init__(self) -> None:
        super().__init__(_ANSWER.size)

    def receive(self, data: bytes) -> tuple[Answer, bytes] | None:
        """It and what follows, when it is complete. RemoteProtocolError."""
        taken = self._take(data)
        if taken is None:
            return None
        _, joined, read, grace = _ANSWER.unpack(taken[0])
        if joined not in (0, 1):
            raise RemoteProtocolError(f"the enclave's answer is {joined}, and neither yes nor no")
        return Answer(bool(joined), read, grace), taken[1]
