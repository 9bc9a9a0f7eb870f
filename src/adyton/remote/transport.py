"""The seam between a proxy client and what carries its bytes: one ordered byte stream in each direction."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Protocol

from adyton.errors import UsageError

if TYPE_CHECKING:
    from adyton.processes_pb2 import ProcessReport


Bytes = bytes | memoryview


class Transport(Protocol):
    """Carries bytes until either side ends. Used once."""

    def run(self, outgoing: Iterator[bytes]) -> Generator[Bytes, None, None]:
        """Pull from `outgoing` (from a thread of the transport's) and send it; yield what arrives, until the peer ends.

        The end of `outgoing` tells the peer that nothing more comes. Raises ConnectionLostError, UnreachableError or
        UnauthenticatedError.
        """
        ...

    def close(self) -> None:
        """End both directions at once, from any thread."""
        ...

    def processes(self, timeout: float) -> dict[str, ProcessReport]:
        """What the proxy server reports of itself ("proxy"), the "supervisor" and the "guest": see process_query.ask for errors.

        From any thread; `timeout` in seconds.
        """
        ...


class SocketTransport:
    """A connected stream socket: in-process enclaves, and tests."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def run(self, outgoing: Iterator[bytes]) -> Generator[Bytes, None, None]:
        """See Transport."""
        threading.Thread(target=self._send, args=(outgoing,), name="adyton-send", daemon=True).start()
        try:
            while data := self._socket.recv(1 << 18):
                yield data
        except OSError:
            return
        finally:
            self._socket.close()

    def _send(self, outgoing: Iterator[bytes]) -> None:
        try:
            for data in outgoing:
                self._socket.sendall(data)
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the receiving side notices the end

    def close(self) -> None:
        """See Transport."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed already

    def processes(self, timeout: float) -> dict[str, ProcessReport]:  # noqa: ARG002
        """See Transport: there is no proxy server."""
        raise UsageError("this enclave has no processes of its own: it runs on threads of this one")
