"""The seam between a proxy client and what carries its bytes: one ordered byte stream in each direction."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Protocol

from adyton.errors import UsageError
from adyton.handing_over import connect

if TYPE_CHECKING:
    from adyton.processes_pb2 import ProcessReport


Bytes = bytes | memoryview


class Source(Protocol):
    """What a transport sends."""

    @property
    def due(self) -> bool:
        """Whether there is something now."""
        ...

    def pull(self) -> bytes | None:
        """It; b"": nothing now, but perhaps later, of which the transport is woken; None: nothing more will come. By one thread at a time."""
        ...


class Transport(Protocol):
    """Carries bytes until either side ends. `redials`: whether it can be `run` again afterwards, on another connection. `enclave_id`: by which a server
    finds what it leads to; "" where that is no server's."""

    redials: bool
    enclave_id: str

    @property
    def nobody_listens(self) -> float | None:
        """Where the last attempt to `run` found nobody: seconds for which that may be so until it is for good. None: it did not."""
        ...

    def run(self, source: Source) -> Generator[Bytes, None, None]:
        """Send what the source has, now and whenever woken; yield what arrives, until the peer ends.

        The end of the source tells the peer that nothing more comes. Raises ConnectionLostError, UnreachableError or
        UnauthenticatedError.
        """
        ...

    def wake(self) -> None:
        """The source that is run, if there is one, may have something. It may be pulled, and sent, by the thread that says so."""
        ...

    def wake_later(self) -> None:
        """The same at any moment: it is done by another thread."""
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


class Pulled:
    """What a source gives, for a thread that sends it and does nothing else."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[bytes]:
        while (data := self._source.pull()) is not None:
            if data:
                yield data
            else:
                self._wakes.get()

    def wake(self) -> None:
        """There may be something."""
        if self._wakes.empty():  # a peer that sends much and takes nothing must not fill what this waits by
            self._wakes.put(None)


class SocketTransport:
    """To a supervisor that is handed its connection by this process: in-process enclaves, and tests."""

    redials = False
    enclave_id = ""
    nobody_listens = None

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._socket: socket.socket | None = None
        self._outgoing: Pulled | None = None

    def run(self, source: Source) -> Generator[Bytes, None, None]:
        """See Transport."""
        try:
            sock = self._socket = connect(self._control)
        except OSError:
            return
        outgoing = self._outgoing = Pulled(source)
        threading.Thread(target=self._send, args=(sock, outgoing), name="adyton-send", daemon=True).start()
        try:
            while data := sock.recv(1 << 18):
                yield data
        except OSError:
            return
        finally:
            sock.close()

    def wake(self) -> None:
        """See Transport."""
        if self._outgoing is not None:
            self._outgoing.wake()

    wake_later = wake

    def _send(self, sock: socket.socket, outgoing: Pulled) -> None:
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
