"""A proxy server: the process beside one enclave that its client talks to.

Started by hand or for a local load, it receives the image itself, over the same connection. A provision server's spawner starts it
with an enclave that is running already.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from adyton.errors import ResourceLimitError, UsageError
from adyton.provision.lifetime import Stop
from adyton.provision_pb2 import Ready
from adyton.remote.address import SOCKET_PATH

if TYPE_CHECKING:
    import grpc

    from adyton.remote.address import TLS
    from adyton.remote.relay import Relay

THREADS = 4  # of RPCs: one stream, and callers that are turned away
JOIN_SECONDS = 10.0  # until the client of a started enclave must have joined
DRAIN_SECONDS = 30.0  # that a session may go on after SIGTERM; a second SIGTERM ends it


class _Enclave(Protocol):
    socket: socket.socket

    def close(self) -> None: ...


def announced(listen: str, port: int) -> str:
    """The address that a ready line names, for what was asked to be listened at and the port that was got."""
    return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"


@dataclass(frozen=True)
class Launched:
    """By whom a proxy server was started. `parent`: a pipe whose end ends us; `directory`: for blobs, removed at the end."""

    parent: int
    directory: str


def serve_alone(
    listen: str, tls: TLS | None, token: str, launched: Launched | None, announce: Callable[[str], None]
) -> None:
    """Serve one client and one enclave: provision it, relay it, end with it. `launched`: None if started by hand.

    Raises PlatformError (no sandbox here), UsageError (cannot listen), and KeyboardInterrupt at the end that Ctrl-C asked for.
    """
    from adyton.runtime.launch import LaunchRequest, Zygote

    stop = Stop()
    stop.on_signals()
    os.umask(0o022)  # enclaves have uids of their own, and must be able to read the blobs
    if launched is not None:
        stop.on_end_of(launched.parent)
    _check_free(listen)
    listening = False
    directory = launched.directory if launched else tempfile.mkdtemp(prefix="adyton-proxy-")
    store_directory = os.path.join(directory, "store")
    try:
        os.mkdir(store_directory)
        with contextlib.closing(Zygote.start(store_directory)) as zygote:
            from adyton.provision.service import Order, ProvisionService
            from adyton.provision.store import BlobStore
            from adyton.remote.connection import open_server
            from adyton.remote.process_reports import ProcessReporter
            from adyton.remote.relay import Relay

            relay, reporter = Relay(), ProcessReporter()
            enclaves: list[_Enclave] = []
            vacant = threading.Semaphore()

            def start(order: Order) -> Ready:
                if not vacant.acquire(blocking=False):
                    raise ResourceLimitError("this proxy server has its enclave already: start another one")
                try:
                    enclave = zygote.launch(LaunchRequest(order.measurement, order.signatures, order.platform))
                except BaseException:
                    vacant.release()
                    raise
                enclaves.append(enclave)
                done = store_directory if launched else directory  # the supervisor has read it all
                shutil.rmtree(done, ignore_errors=True)
                session = secrets.token_bytes(32)
                relay.attach(enclave.socket, session)
                reporter.attach(enclave.pid, session)
                return Ready(enclave_id="0", port=0, session=session)

            service = ProvisionService(BlobStore(store_directory), start, token)
            server, port = open_server([service.handler(), relay.handler(), reporter.handler()], listen, tls, THREADS)
            listening = True
            _relay_until_stopped(server, relay, stop, lambda: announce(announced(listen, port)))
            for enclave in enclaves:
                enclave.close()
    finally:
        if listening:
            _remove_socket(listen)
        shutil.rmtree(directory, ignore_errors=True)
    if stop.interrupted:
        raise KeyboardInterrupt


def serve_enclave(
    enclave: int, pid: int, listen: str, tls: TLS | None, session: bytes, announce: Callable[[str], None]
) -> None:
    """Relay for an enclave that a spawner started; `enclave`: descriptor of its supervisor's socket, `pid`: the supervisor's. Ends with the
    session."""
    from adyton.remote.connection import open_server
    from adyton.remote.process_reports import ProcessReporter
    from adyton.remote.relay import Relay

    stop = Stop()
    stop.on_signals()
    relay, reporter = Relay(), ProcessReporter()
    supervisor = socket.socket(fileno=enclave)
    relay.attach(supervisor, session)
    reporter.attach(pid, session)
    server, port = open_server([relay.handler(), reporter.handler()], listen, tls, THREADS)
    hung_up = select.poll()
    hung_up.register(supervisor, 0)

    def wait_for_client() -> None:
        hung_up.poll(JOIN_SECONDS * 1000)  # nobody else sees the enclave's end until its client has joined
        if not relay.joined:
            stop.set()

    threading.Thread(target=wait_for_client, name="adyton-joining", daemon=True).start()
    _relay_until_stopped(server, relay, stop, lambda: announce(announced(listen, port)))


def _relay_until_stopped(server: grpc.Server, relay: Relay, stop: Stop, ready: Callable[[], None]) -> None:
    relay.on_finished(stop.set)
    server.start()
    ready()
    why = stop.wait()
    if why == b"s" and relay.joined:
        server.stop(DRAIN_SECONDS)  # takes no new callers; does not block
        enough = threading.Timer(DRAIN_SECONDS, stop.set)
        enough.daemon = True
        enough.start()
        stop.wait()
    server.stop(1).wait(2)


def _check_free(listen: str) -> None:
    """UsageError if somebody listens at that unix socket (gRPC would take its name away from it), or nobody can."""
    if not listen.startswith("unix:"):
        return
    if len(os.fsencode(listen[5:])) > SOCKET_PATH:
        raise UsageError(f"cannot listen at {listen}: a unix socket's path has at most {SOCKET_PATH} bytes")
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
        sock.connect(listen[5:])
        raise UsageError(f"cannot listen at {listen}: a process listens there already")


def _remove_socket(listen: str) -> None:
    if listen.startswith("unix:"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(listen[5:])
