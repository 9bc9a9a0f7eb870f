"""The seam between a proxy client and what carries its bytes: one ordered byte stream in each direction."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Protocol

from adyton.errors import UsageError
from adyton.handing_over import connect

if TYPE_CHECKING:
    from adyton.processes_pb2 import ProcessReport


Bytes = bytes | memoryview


class Transport(Protocol):
    """Carries bytes until either side ends. `redials`: whether it can be `run` again afterwards, on another connection."""

    redials: bool

    @property
    def nobody_listens(self) -> float | None:
        """Where the last attempt to `run` found nobody: seconds for which that may be so until it is for good. None: it did not."""
        ...

    def run(self, outgoing: Iterator[bytes]) -> Generator[Bytes, None, None]:
        """Pull from `outgoing` (from a thread of the transport's) and send it; yield what arrives, until the peer ends.

        The end of `outgoing` tells the peer that nothing more comes. Raises ConnectionLostError, UnreachableError or
        UnauthenticatedError.
        """
        ...

    def hang_up(self) -> None:
        """End the connection at once, from any thread."""
        ...

    def close(self) -> None:
        """The same, for good."""
        ...

    def processes(self, timeout: float) -> dict[str, ProcessReport]:
        """What the proxy server reports of itself ("proxy"), the "supervisor" and the "guest": see process_query.ask for errors.

        From any thread; `timeout` in seconds.
        """
        ...


class SocketTransport:
    """To a supervisor that is handed its connection by this process: in-process enclaves, and tests."""

    redials = False
    nobody_listens = None

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._socket: socket.socket | None = None

    def run(self, outgoing: Iterator[bytes]) -> Generator[Bytes, None, None]:
        """See Transport."""
        try:
            sock = self._socket = connect(self._control)
        except OSError:
            return
        threading.Thread(target=self._send, args=(sock, outgoing), name="adyton-send", daemon=True).start()
        try:
            while data := sock.recv(1 << 18):
                yield data
        except OSError:
            return
        finally:
            sock.close()

    def _send(self, sock: socket.socket, outgoing: Iterator[bytes]) -> None:
        try:
            for data in outgoing:
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the receiving side notices the end

    def hang_up(self) -> None:
        """See Transport."""
        if self._socket is not None:
            with contextlib.suppress(OSError):  # closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See Transport."""
        self.hang_up()
        self._control.close()

    def processes(self, timeout: float) -> dict[str, ProcessReport]:  # noqa: ARG002
        """See Transport: there is no proxy server."""
        raise UsageError("this enclave has no processes of its own: it runs on threads of this one")
