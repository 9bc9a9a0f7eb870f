"""A proxy client's transport over one bidirectional gRPC stream, dialled by the client."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator
from typing import Any

import grpc

from adyton.errors import AdytonError, ClosedError, ConnectionLostError, UnreachableError
from adyton.processes_pb2 import ProcessReport
from adyton.remote.connection import SESSION_METADATA, Peer, error_from
from adyton.remote.core_stream import CoreStream, CoreStreamError
from adyton.remote.process_query import ask
from adyton.remote.transport import Bytes, Source

METHOD = "/adyton.Communicator/Communicate"
NOBODY_SECONDS = 3.0  # that nobody listens where a proxy server did, until it is taken to have ended
_NOBODY = ("Connection refused", "No such file")  # in gRPC's details


class GrpcTransport:
    """See remote.transport.Transport. `dial` gives a new channel, which this owns."""

    redials = True

    def __init__(
        self,
        dial: Callable[[], grpc.Channel],
        target: Peer | str,
        session: bytes,
        metadata: tuple[tuple[str, str], ...] = (),
        enclave_id: str = "",
    ) -> None:
        self.enclave_id = enclave_id
        self._dial = dial
        self._target = target
        self._metadata: tuple[tuple[str, str | bytes], ...] = (*metadata, (SESSION_METADATA, session))
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = dial()
        self._call: CoreStream | None = None
        self._was_connected = False
        self._closed = False
        self._wakes: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.nobody_listens: float | None = None
        threading.Thread(target=self._wake_for_others, name="adyton-sender", daemon=True).start()

    def run(self, source: Source) -> Generator[Bytes, None, None]:
        """See Transport."""
        with self._lock:
            if self._closed:
                return
            channel = self._channel = self._channel or self._dial()
            self._call = call = CoreStream(channel, METHOD, self._metadata, source)
        connected, self.nobody_listens = False, None
        try:
            with contextlib.closing(call.messages()) as messages:
                for data in messages:
                    connected = self._was_connected = True
                    yield data
        except CoreStreamError as error:
            if not self._was_connected or connected:
                raise error_from(error, self._target, connected=connected) from error
            raise self._redial_error(error) from error
        finally:
            with self._lock:
                self._channel = self._call = None
            channel.close()

    def _redial_error(self, error: Any) -> AdytonError:
        details = error.details() or ""
        if any(mark in details for mark in _NOBODY):
            self.nobody_listens = 0.0 if str(self._target).startswith("unix:") else NOBODY_SECONDS
        if error.code() is grpc.StatusCode.UNAVAILABLE:  # nobody looks closer, for it is tried again
            return UnreachableError(f"cannot reach {self._target} again: {details}")
        return error_from(error, self._target, connected=True)

    def wake(self) -> None:
        """See Transport. The main thread does not send: a signal's handler that raises there would leave grpcio's locks as they are."""
        if threading.current_thread() is threading.main_thread():
            self._wakes.put(True)
        else:
            self._wake()

    def wake_later(self) -> None:
        """See Transport."""
        self._wakes.put(True)

    def _wake(self) -> None:
        call = self._call
        if call is not None:
            call.wake()

    def _wake_for_others(self) -> None:
        while self._wakes.get():
            self._wake()

    def hang_up(self) -> None:
        """See Transport."""
        with self._lock:
            if self._call is not None:
                self._call.cancel()  # `run` closes the channel, which may wait for a peer that takes nothing more

    def close(self) -> None:
        """See Transport."""
        self._wakes.put(False)
        with self._lock:
            call, channel, self._closed = self._call, self._channel, True
        if call is not None:
            call.cancel()
        elif channel is not None:
            channel.close()

    def processes(self, timeout: float) -> dict[str, ProcessReport]:
        """See Transport. On the same connection as the stream."""
        channel = self._channel
        if channel is None and self._closed:
            raise ClosedError(
                f"the connection to {self._target} is closed: its processes cannot be asked about any more"
            )
        if channel is None:
            raise ConnectionLostError("the connection to the proxy server is lost, and being made again")
        return ask(channel, str(self._target), self._metadata, timeout)
