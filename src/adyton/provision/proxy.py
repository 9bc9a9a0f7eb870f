"""A proxy server: the process beside one enclave that its client talks to.

Started by hand or for a local load, it receives the image itself, over the same connection, and listens for its client or dials one that
waits (dial-back). Those of a provision server, which are given enclaves that run already: `relay_process`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from adyton.communicator.joining import GRACE_SECONDS
from adyton.errors import AdytonError, ConnectionLostError, RemoteProtocolError, ResourceLimitError, UsageError
from adyton.provision.lifetime import Stop
from adyton.provision.temporary_folder import TemporaryFolder
from adyton.provision_pb2 import Ready
from adyton.remote.address import TLS, Address
from adyton.remote.unix_socket import check_free, remove_socket

if TYPE_CHECKING:
    import socket

    from adyton.provision.relay_messages import Dial
    from adyton.provision.service import Order
    from adyton.remote.dialling import Dialler
    from adyton.runtime.launch import Zygote

THREADS = 16  # of RPCs: one stream, those that come after it and have not joined, and callers that are turned away
LAUNCHED_SECONDS = 10.0  # until the client that launched us, and waits, must have been reached
SPAWNED_SECONDS = 10.0  # … until the client that a provision server was told of; less than the spawner waits
HAND_SECONDS = 60.0  # … until a client that a person is to start
DRAIN_SECONDS = 30.0  # that a session may go on after SIGTERM; a second SIGTERM ends it


class _Enclave(Protocol):
    socket: socket.socket
    pid: int  # of its supervisor

    def close(self) -> None: ...


def announced(listen: str, port: int) -> str:
    """The address that a ready line names, for what was asked to be listened at and the port that was got."""
    return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"


@dataclass(frozen=True)
class Launched:
    """By whom a proxy server was started. `parent`: a pipe whose end ends us; `directory`: for blobs, removed at the end."""

    parent: int
    directory: str


class _Place:
    """What a proxy server on its own has: a zygote, a store for one image, and room for one enclave."""

    def __init__(self, launched: Launched | None, grace: float, sealed_directory: str | None) -> None:
        """`grace`: see LaunchRequest. `sealed_directory`: for sealed files, of all images. PlatformError: no sandbox here."""
        self._grace = grace
        self._sealed_directory = sealed_directory
        from adyton.runtime.launch import Zygote

        self._folder: TemporaryFolder | None = None
        if launched is not None:
            self._directory = launched.directory
        else:
            self._folder = TemporaryFolder("adyton-proxy-")
            self._directory = self._folder.path
        self.store = os.path.join(self._directory, "store")
        self._vacant = threading.Semaphore()
        self._enclaves: list[_Enclave] = []
        self._zygote: Zygote | None = None
        try:
            os.umask(0o022)  # enclaves have uids of their own, and must be able to read the blobs
            os.mkdir(self.store)
            self._zygote = Zygote.start(self.store)
        except BaseException:
            self.close()
            raise

    def start(self, order: Order) -> _Enclave:
        """The enclave. ResourceLimitError if there is one already; ImageError, SignatureError, PlatformError."""
        from adyton.runtime.launch import LaunchRequest, sealed_place

        assert self._zygote is not None
        if not self._vacant.acquire(blocking=False):
            raise _full()
        try:
            request = LaunchRequest(order.measurement, order.signatures, order.platform, self._grace)
            with sealed_place(order.sealed_folder(self._sealed_directory)) as sealed:
                enclave = self._zygote.launch(request, sealed)
        except BaseException:
            self._vacant.release()
            raise
        self._enclaves.append(enclave)
        if self._folder is not None:  # the supervisor has read it all
            self._folder.close()
        else:
            shutil.rmtree(self.store, ignore_errors=True)
        return enclave

    def check(self) -> None:
        """Before anybody is listened to. ResourceLimitError."""
        if self._enclaves:
            raise _full()

    def close(self) -> None:
        for enclave in self._enclaves:
            enclave.close()
        if self._zygote is not None:
            self._zygote.close()
        if self._folder is not None:
            self._folder.close()
        else:
            shutil.rmtree(self._directory, ignore_errors=True)


def _full() -> ResourceLimitError:
    return ResourceLimitError("this proxy server has its enclave already: start another one")


def serve_alone(
    listen: str,
    tls: TLS | None,
    token: str,
    launched: Launched | None,
    announce: Callable[[str], None],
    grace: float = GRACE_SECONDS,
    sealed_directory: str | None = None,
) -> None:
    """Serve one client, which dials, and one enclave: provision it, relay it, end with it. `launched`: None if started by hand.

    Raises PlatformError (no sandbox here), UsageError (cannot listen), and KeyboardInterrupt at the end that Ctrl-C asked for.
    """
    stop = _stop(launched)
    check_free(listen)
    listening = False
    try:
        with contextlib.closing(_Place(launched, grace, sealed_directory)) as place:
            from adyton.provision.service import ProvisionService
            from adyton.provision.store import BlobStore
            from adyton.remote.connection import open_server
            from adyton.remote.process_reports import ProcessReporters
            from adyton.remote.relay import Relays

            relays, reporters = Relays(grace), ProcessReporters()

            def start(order: Order) -> Ready:
                if order.dial_back is not None:
                    raise UsageError(
                        "this proxy server waits for its client, and does not dial: leave out dial_back, or start it with --host_address"
                    )
                session = secrets.token_bytes(32)
                enclave = place.start(order)
                reporters.attach(enclave.pid, session)
                relays.attach(enclave.socket.dup(), session, stop.set)  # the place closes its own
                return Ready(enclave_id="0", port=0, session=session, grace=int(grace * 1000))

            service = ProvisionService(BlobStore(place.store), start, token, place.check)
            handlers = [service.handler(), relays.handler(), reporters.handler()]
            server, port = open_server(handlers, listen, tls, THREADS, grace=grace)
            listening = True
            server.start()
            announce(announced(listen, port))
            if stop.wait() == b"s" and relays.joined:
                server.stop(DRAIN_SECONDS)  # takes no new callers; does not block
                drain(stop)
            server.stop(1).wait(2)
    finally:
        if listening:
            remove_socket(listen)
    if stop.interrupted:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class Client:
    """A client that waits at `address`. `token`: what it knows us by. `certificate`: what it will show, in PEM; None: see `tls`."""

    address: Address
    token: str
    certificate: bytes | None = None
    tls: TLS | None = None


def dial_alone(
    client: Client,
    launched: Launched | None,
    announce: Callable[[str], None],
    grace: float = GRACE_SECONDS,
    sealed_directory: str | None = None,
) -> None:
    """Dial one client, and serve it as `serve_alone` does. `announce` is called when the client has accepted us.

    Raises what the client was told, UnreachableError, UnauthenticatedError, ClosedError (it has another proxy server), UsageError
    (certificates), PlatformError, and KeyboardInterrupt at the end that Ctrl-C asked for.
    """
    stop = _stop(launched)
    with contextlib.closing(_Place(launched, grace, sealed_directory)) as place:
        from adyton.provision.service import ProvisionService
        from adyton.provision.store import BlobStore
        from adyton.remote.connection import open_channel, open_pinned_channel
        from adyton.remote.dialling import Dialler
        from adyton.remote.process_reports import ProcessReporter
        from adyton.remote.relay import JOIN_SECONDS

        target = client.address.target
        started: list[tuple[_Enclave, bytes]] = []

        def start(order: Order) -> Ready:
            if order.dial_back is None:
                raise RemoteProtocolError("the client's offer names no session for the proxy server that dialled it")
            started.append((place.start(order), order.dial_back.session))
            return Ready(enclave_id="0")

        service = ProvisionService(BlobStore(place.store), start)
        channel = (
            open_channel(client.address, client.tls)
            if client.certificate is None
            else open_pinned_channel(target, client.certificate)
        )
        dialler = Dialler(channel, target)

        def converse(joined: Callable[[], None]) -> None:
            failures: list[AdytonError] = []
            call = dialler.provision(
                client.token,
                lambda requests: service.answers(requests, requests, failures),
                LAUNCHED_SECONDS if launched else HAND_SECONDS,
            )
            announce(target)
            call.code()  # waits until the client has ended the conversation
            if failures:
                raise failures[0]
            if not started:
                raise ConnectionLostError("the client went before it had said what to start")
            ((enclave, session),) = started
            reporter = ProcessReporter(enclave.pid)

            def accepted() -> None:
                joined()
                dialler.report(session, reporter.report)

            dialler.communicate(session, enclave.socket, JOIN_SECONDS, accepted, grace)

        _dial_until_stopped(dialler, converse, stop)
    if stop.interrupted:
        raise KeyboardInterrupt


def dial_for_enclave(
    enclave: socket.socket,
    pid: int,
    dial: Dial,
    parent: int,
    announce: Callable[[], None],
    grace: float,
) -> None:
    """Dial the client of an enclave that a spawner started; `enclave`: its supervisor's socket, `pid`: the supervisor's. Ends with the session,
    and with `parent`, see Launched. As `dial_alone` raises."""
    from adyton.remote.connection import open_pinned_channel
    from adyton.remote.dialling import Dialler
    from adyton.remote.process_reports import ProcessReporter

    stop = _stop(None)
    stop.on_end_of(parent)
    dialler = Dialler(open_pinned_channel(dial.target, dial.certificate), dial.target)
    reporter = ProcessReporter(pid)

    def converse(joined: Callable[[], None]) -> None:
        def accepted() -> None:
            joined()
            announce()
            dialler.report(dial.session, reporter.report)

        dialler.communicate(dial.session, enclave, SPAWNED_SECONDS, accepted, grace)

    _dial_until_stopped(dialler, converse, stop)


def _dial_until_stopped(dialler: Dialler, converse: Callable[[Callable[[], None]], None], stop: Stop) -> None:
    """Run `converse`, which is given what to call once the client has joined its enclave; raise what it raises."""
    joined = threading.Event()
    errors: list[AdytonError] = []

    def run() -> None:
        try:
            converse(joined.set)
        except AdytonError as error:
            errors.append(error)
        finally:
            stop.set()

    threading.Thread(target=run, name="adyton-dial", daemon=True).start()
    why = stop.wait()
    if why == b"s" and joined.is_set():
        drain(stop)
    dialler.close()
    if why == b"f" and errors:
        raise errors[0]


def _stop(launched: Launched | None) -> Stop:
    stop = Stop()
    stop.on_signals()
    if launched is not None:
        stop.on_end_of(launched.parent)
    return stop


def drain(stop: Stop) -> None:
    """Let the session go on for a while after a signal; a second one ends it."""
    enough = threading.Timer(DRAIN_SECONDS, stop.set)
    enough.daemon = True
    enough.start()
    stop.wait()
