"""How the program's threads ask the supervisor aside: each conversation has a socket of its own (SEQPACKET), so any thread may have one at any time."""

from __future__ import annotations

import _socket
import socket
from typing import Self


class Conversation:
    """One, of which a message is a packet, and each has one answer."""

    def __init__(self, control: socket.socket, kind: bytes) -> None:
        """`kind`: what the supervisor is told on the control socket, with the socket attached."""
        # None of socket's, which a program may replace, as gevent does: that one would be served by the program's own loop.
        self._socket, other = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(None)
        try:
            socket.send_fds(control, [kind], [other.fileno()])
        except BaseException:
            self._socket.close()
            raise
        finally:
            other.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def exchange(self, message: bytes, largest: int, seconds: float | None = None) -> bytes:
        """The answer, of at most so many bytes; b"": the supervisor has as many conversations as it may, or is gone. TimeoutError."""
        if seconds is not None:
            self._socket.settimeout(seconds)
        try:
            self._socket.send(message, socket.MSG_NOSIGNAL)
            return self._socket.recv(largest)
        except ConnectionError:
            return b""
