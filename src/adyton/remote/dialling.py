"""Dial-back, the proxy server's side: it dials a client that waits, and then answers it. See remote.dial_back."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from adyton.communicator.joining import GRACE_SECONDS
from adyton.errors import AdytonError, UnreachableError
from adyton.handing_over import connect
from adyton.processes_pb2 import ProcessesReply, ProcessesRequest
from adyton.provision_pb2 import ProvisionRequest, ProvisionResponse
from adyton.remote import envelopes, rpc_threads
from adyton.remote.connection import SESSION_METADATA, error_from
from adyton.remote.core_events import ClientStream
from adyton.remote.dial_back import ACCEPTED, ENDED, SERVICE
from adyton.remote.relay import END_MOMENT, Splice
from adyton.stopped import STOPPED_SECONDS

PAUSE = 0.2  # seconds between two attempts
AGAIN_SECONDS = 5.0  # for a client that was there to be there again
_IN_VAIN = (
    "CERTIFICATE_VERIFY_FAILED",
    "peer certificate",
    "Hostname Verification",
    "WRONG_VERSION_NUMBER",
)  # in gRPC's details: no use to try again
REPORT_SECONDS = 10.0  # for a connected client to accept reports
END_SECONDS = 5.0  # for the client to take the last that its ended enclave said


class Dialler:
    """A channel to the client at `target`. Owns the channel."""

    def __init__(self, channel: grpc.Channel, target: str) -> None:
        self._channel = channel
        self._target = target
        self._closed = threading.Event()

    def provision(
        self, token: str, answers: Callable[[Iterator[ProvisionRequest]], Iterator[ProvisionResponse]], seconds: float
    ) -> Any:
        """Be told what to start. The accepted call; `answers` runs on a thread of gRPC's. UnreachableError, UnauthenticatedError, ClosedError."""
        stub = self._channel.stream_stream(
            f"/{SERVICE}/Provision", ProvisionResponse.SerializeToString, ProvisionRequest.FromString
        )
        return self._open(stub, (("authorization", f"Bearer {token}"),), answers, seconds)

    def communicate(
        self,
        session: bytes,
        control: socket.socket,
        seconds: float,
        joined: Callable[[], None],
        grace: float = GRACE_SECONDS,
    ) -> None:
        """Join the client to the supervisor behind the socket (see `handing_over`), which this closes; returns when the enclave has ended, or we are closed.

        A connection that is lost is made again, for as long as the enclave lives, which is `grace` seconds without one, unless it was stopped.
        As `provision` raises, of the first one.
        """
        ended = threading.Event()
        threading.Thread(target=_wait_for_end, args=(control, ended), name="adyton-enclave", daemon=True).start()
        try:
            self._communicate(session, control, seconds, joined, ended)
            until = time.monotonic() + grace + STOPPED_SECONDS
            while not (ended.wait(PAUSE) or self._closed.is_set()) and time.monotonic() < until:
                with contextlib.suppress(AdytonError, OSError, ValueError):  # gRPC's: the channel was closed just now
                    self._communicate(session, control, AGAIN_SECONDS, lambda: None, ended)
                    until = time.monotonic() + grace + STOPPED_SECONDS
        finally:
            with contextlib.suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)
            control.close()

    def _communicate(
        self,
        session: bytes,
        control: socket.socket,
        seconds: float,
        joined: Callable[[], None],
        ended: threading.Event,
    ) -> None:
        """On one connection. OSError: the enclave has ended."""
        stub = self._channel.stream_stream(f"/{SERVICE}/Communicate")
        timers: list[threading.Timer] = []
        supervisor = connect(control)
        splice = Splice(supervisor)

        def answers(call: Any) -> Iterator[bytes]:
            splice.run(ClientStream(splice, call))
            if splice.was_garbled:
                call.cancel()
            elif ended.wait(END_MOMENT):  # a supervisor's sockets close one after the other
                yield envelopes.pack(ENDED)
            timer = threading.Timer(END_SECONDS, call.cancel)
            timer.daemon = True
            timers.append(timer)
            timer.start()

        try:
            self._open(stub, ((SESSION_METADATA, session),), answers, seconds)
        except BaseException:
            supervisor.close()
            raise
        joined()
        splice.over.wait()
        for timer in timers:
            timer.cancel()

    def report(self, session: bytes, report: Callable[[], ProcessesReply]) -> None:
        """Answer the client's questions about its enclave's processes, from threads of their own, as long as the connection lasts."""
        stub = self._channel.stream_stream(
            f"/{SERVICE}/Report", ProcessesReply.SerializeToString, ProcessesRequest.FromString
        )

        def answers(call: Any) -> Iterator[ProcessesReply]:
            with contextlib.suppress(grpc.RpcError):  # the end of the connection
                for _ in call:
                    yield report()

        def run() -> None:
            with contextlib.suppress(AdytonError, ValueError):  # a client that does not ask, or has gone
                self._open(stub, ((SESSION_METADATA, session),), answers, REPORT_SECONDS)

        threading.Thread(target=run, name="adyton-reports", daemon=True).start()

    def _open(self, stub: Any, metadata: Any, answers: Callable[[Any], Iterator[Any]], seconds: float) -> Any:
        """An accepted call. A client that is not there yet is dialled again, for so many seconds."""
        until = time.monotonic() + seconds
        while True:
            accepted: queue.SimpleQueue[Any] = queue.SimpleQueue()
            call = rpc_threads.begin(stub, _after(accepted, answers), metadata)
            patience = threading.Timer(max(0.0, until - time.monotonic()), call.cancel)
            patience.daemon = True
            patience.start()
            try:
                first = call.initial_metadata()
            finally:
                patience.cancel()
            if any(key == ACCEPTED for key, _ in first or ()):
                accepted.put(call)
                return call
            accepted.put(None)
            call.cancel()
            code, details = call.code(), call.details() or "no details"
            waiting = code in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.CANCELLED,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            )
            if not waiting:
                raise error_from(call, self._target, connected=False)
            if any(mark in details for mark in _IN_VAIN):
                raise UnreachableError(
                    f"cannot trust the client at {self._target}: {details}. Is it the right address, and does --client-ca name the CA of the "
                    "certificate that the client shows there?"
                )
            if self._closed.wait(PAUSE) or time.monotonic() > until:
                raise UnreachableError(
                    f"cannot reach the client at {self._target} within {seconds:g} s: {details}. Does it wait there, "
                    "and does no firewall or NAT keep us away?"
                )

    def close(self) -> None:
        """End every call. Safe to call again, and from any thread."""
        self._closed.set()
        self._channel.close()


def _wait_for_end(control: socket.socket, ended: threading.Event) -> None:
    with contextlib.suppress(OSError):
        control.recv(1)
    ended.set()


def _after(accepted: queue.SimpleQueue[Any], answers: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
    """Nothing is taken from the enclave for a call that the client has not accepted: it would be lost with it."""
    call = accepted.get()
    if call is not None:
        yield from answers(call)
