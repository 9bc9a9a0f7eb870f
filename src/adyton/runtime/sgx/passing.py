"""A pair of sockets between threads of one process that carries packets and descriptors, as SEQPACKET and SCM_RIGHTS do, where a library OS has neither.

What is said lies in memory; the sockets beneath say only that there is something, and that the other end is closed.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections import deque
from collections.abc import Iterable
from typing import Any, Self

_Packets = deque[tuple[bytes, list[int]]]


class Passing(socket.socket):
    """One end, to be used by socket.send_fds and recv_fds too. What is passed is a duplicate, which the receiver owns."""

    def __init__(self, descriptor: int, sent: _Packets, received: _Packets) -> None:
        """Use `pair`."""
        super().__init__(fileno=descriptor)
        self._sent = sent
        self._received = received

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Both ends."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        there: _Packets = deque()
        back: _Packets = deque()
        return cls(one.detach(), there, back), cls(other.detach(), back, there)

    def sendmsg(
        self, buffers: Iterable[Any], ancdata: Iterable[Any] = (), flags: int = 0, address: Any = None, /
    ) -> int:
        """BlockingIOError, ConnectionError: nothing was passed."""
        assert address is None
        data = b"".join(buffers)
        descriptors = [os.dup(each) for _, _, passed in ancdata for each in passed]
        packet = data, descriptors
        self._sent.append(packet)  # before who reads is woken
        try:
            super().send(b"\0", flags | socket.MSG_NOSIGNAL)
        except BaseException:
            with contextlib.suppress(ValueError):  # the other end was being closed, and has closed them
                self._sent.remove(packet)
                _close(descriptors)
            raise
        return len(data)

    def send(self, data: Any, flags: int = 0, /) -> int:
        """A packet without a descriptor."""
        return self.sendmsg([data], (), flags)

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> tuple[bytes, list[Any], int, Any]:
        """b"" at the end. What finds no room is lost, as with any packet; descriptors are closed then."""
        if not self.recv(1, flags):
            return b"", [], 0, None
        data, descriptors = self._received.popleft()
        passed = array.array("i", descriptors)
        if not descriptors or ancbufsize < socket.CMSG_LEN(len(descriptors) * passed.itemsize):
            _close(descriptors)
            return data[:bufsize], [], 0, None
        return data[:bufsize], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed.tobytes())], 0, None

    def close(self) -> None:
        """And what has not been received. Idempotent."""
        super().close()
        with contextlib.suppress(IndexError):
            while True:
                _close(self._received.popleft()[1])


def _close(descriptors: list[int]) -> None:
    for each in descriptors:
        os.close(each)
