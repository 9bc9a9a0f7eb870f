"""Sockets that a guest hands over, each for one conversation in packets: it says something, is answered, and goes on. The guest is hostile here."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

from adyton.attestation.evidence import MAX_EVIDENCE
from adyton.errors import RemoteProtocolError
from adyton.runtime.process.supervisor.loop import Callback, Loop

Answer = Callable[[bytes | bytearray], None]  # at once, or later
Hear = Callable[[bytes, Answer], None]  # what the guest says; RemoteProtocolError: no guest of this runtime says that


class GuestSockets:
    """`guarded`: what an error in a step does; `begin`: a new conversation; `most`: of them at a time; `largest`: bytes of what the guest says."""

    def __init__(
        self, loop: Loop, guarded: Callable[[Callback], Callback], begin: Callable[[], Hear], most: int, largest: int
    ) -> None:
        self._loop = loop
        self._guarded = guarded
        self._begin = begin
        self._most = most
        self._largest = largest
        self._sockets: set[socket.socket] = set()

    def take(self, sock: socket.socket) -> None:
        """Serve it until it is closed."""
        if len(self._sockets) >= self._most:
            sock.close()  # its own trouble
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_EVIDENCE)  # which the largest answer holds
        self._sockets.add(sock)
        self._loop.read(sock, self._guarded(partial(self._from, sock, self._begin())))

    def _from(self, sock: socket.socket, hear: Hear) -> None:
        try:
            message = sock.recv(self._largest + 1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if len(message) > self._largest:
            raise RemoteProtocolError(f"its guest sent a packet of more than {self._largest} bytes")
        if message:
            hear(message, partial(self._answer, sock))
        else:
            self._drop(sock)

    def _answer(self, sock: socket.socket, answer: bytes | bytearray) -> None:
        if sock not in self._sockets:
            return
        try:
            sock.send(answer, socket.MSG_DONTWAIT)
        except OSError:
            self._drop(sock)  # it does not take its answers, or is gone

    def _drop(self, sock: socket.socket) -> None:
        self._loop.forget(sock)
        self._sockets.discard(sock)
        sock.close()

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
