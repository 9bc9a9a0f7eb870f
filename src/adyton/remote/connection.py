"""gRPC channels and servers as adyton makes them: credentials, limits, and errors in our words."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import hashlib
import os
import resource
import socket
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import msgspec

from adyton import errors
from adyton.crypto.self_signed import NAME
from adyton.errors import AdytonError, ConnectionLostError, UnauthenticatedError, UnreachableError, UsageError
from adyton.remote import certificates
from adyton.remote.address import TLS, Address, is_loopback
from adyton.remote.diagnosis import NO_SUCH_NAME, Case, explain, has_waited
from adyton.remote.probe import BRIEF_SECONDS, SECONDS, look
from adyton.remote.unix_socket import NO_WAY

MAX_MESSAGE = 8 << 20  # bytes of one gRPC message; ours stay far below
ERROR_METADATA = "adyton-error-bin"
SESSION_METADATA = "adyton-session-bin"
UPLOAD_WINDOW = 128 << 10  # bytes
SESSION_WINDOW = 1 << 24  # as many as a session sends at most before it hears that they arrived, see communicator.flow
# How one end notices that the other is gone, or stands still: HTTP/2 pings, which gRPC answers without Python, while an RPC is under
# way. (gRPC heeds its ping timeout alone; its keepalive timeout does nothing.) A ping waits behind the data that was sent before it, so
# there must be no more of that than the line carries in that time. gRPC's own windows grow beyond that: these are fixed, and a session
# sends no more than the line takes (communicator.flow).
_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),
]
_CHANNEL_OPTIONS = [
    *_OPTIONS,
    # For a connection and its handshakes: some servers accept, and say nothing more.
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.http2.lookahead_bytes", SESSION_WINDOW),
    ("grpc.enable_retries", 0),  # a second attempt would take as long again
    ("grpc.use_local_subchannel_pool", 1),  # no connection of an earlier channel, whose server may stand still by now
]
# Somebody waits for each answer: known within 5 s.
_IMPATIENT = [*_CHANNEL_OPTIONS, ("grpc.keepalive_time_ms", 800), ("grpc.http2.ping_timeout_ms", 3_000)]
_PATIENT = [*_CHANNEL_OPTIONS, ("grpc.http2.ping_timeout_ms", 6_000)]
# A session has pings of its own while somebody waits, so these are for idle ones: a client must know that its connection is lost while the
# enclave still waits for another one. They come more often than the server's, which sends none as long as they do: a ping costs it 0.35 ms
# to send, over several of gRPC's threads, and half of that to answer; of a thousand idle sessions that is most of what their server does.
_PING_SECONDS = (4.0, 40.0)  # at least, and at most
_TO_REDIAL_SECONDS = 20.0  # are left of the grace, the ping's timeout included
_SERVER_PATIENCE = 1.5  # times as long
_SERVER_OPTIONS = [
    *_OPTIONS,
    ("grpc.http2.ping_timeout_ms", 6_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 400),
    # Pings that a busy machine or network held up arrive together, and that is no reason to hang up.
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),  # who connects and says nothing
    ("grpc.max_connection_idle_ms", 60_000),  # who calls nothing
    ("grpc.so_reuseport", 0),
]
# Of whoever, at once: more than somebody easily holds who says nothing, so that others are served meanwhile. 13 to 17 KiB each, 200 MiB in all.
CONNECTIONS = 12_288
_OTHER_DESCRIPTORS = 1024  # for 256 uploads, a file for each; or two sockets for each of 256 enclaves
RPCS = 4  # for each thread of a server, those that wait for one included: what they have sent, as much as the window, is held meanwhile


@dataclass(frozen=True)
class Peer:
    """A server, and how it is reached: what an error about it is worded from."""

    address: Address
    tls: TLS | None = None

    def __str__(self) -> str:
        return self.address.target


def _pings(grace: float, times: float = 1.0) -> tuple[str, int]:
    least, most = _PING_SECONDS
    return "grpc.keepalive_time_ms", round(min(max(grace - _TO_REDIAL_SECONDS, least), most) * times * 1000)


def open_channel(address: Address, tls: TLS | None, *, impatient: bool = False) -> grpc.Channel:
    """A channel; nothing is sent yet. `impatient`: RPCs end within 5 s when the server stands still."""
    return channel_opener(address, tls, impatient=impatient)()


def channel_opener(
    address: Address, tls: TLS | None, *, impatient: bool = False, grace: float = 0.0
) -> Callable[[], grpc.Channel]:
    """What opens a channel, as often as it is called. It reads the files again, and keeps to what it had if they are of no use by then:
    their dates are judged once, whatever the clock says later. `grace`: seconds that the enclave there waits for another connection."""
    options: list[tuple[str, int]] = _IMPATIENT if impatient else [*_PATIENT, _pings(grace)]
    if not address.host or is_loopback(address.host):
        # What stays within this machine may be in clear, so no http_proxy of the environment may carry it elsewhere.
        options = [*options, ("grpc.enable_http_proxy", 0)]
    if not address.secure:
        if tls is not None and tls != TLS():
            instead = (
                f"write grpcs://{address.target}"
                if address.host
                else "leave them out, a unix socket is this machine's own"
            )
            raise UsageError(f"{address.target} is reached without TLS, but TLS files were given: {instead}")
        return functools.partial(grpc.insecure_channel, address.target, options=options)
    read = functools.partial(certificates.of_client, tls or TLS())
    had = [read()]

    def open_secure() -> grpc.Channel:
        with contextlib.suppress(UsageError):
            had[0] = read()
        files = had[0]
        credentials = grpc.ssl_channel_credentials(files.authorities, files.key, files.chain)
        return grpc.secure_channel(address.target, credentials, options=options)

    return open_secure


def open_pinned_channel(target: str, certificate: bytes) -> grpc.Channel:
    """To a client that waits, whose launch certificate (PEM) we were told; empty: without TLS. Nothing is sent yet."""
    options = [
        *_PATIENT,
        _pings(0.0),
        ("grpc.enable_http_proxy", 0),
    ]  # a client's address is dialled as it is, or not at all
    if not certificate:
        return grpc.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(certificate)
    return grpc.secure_channel(target, credentials, options=[*options, ("grpc.ssl_target_name_override", NAME)])


def server_credentials(tls: TLS | None) -> grpc.ServerCredentials | None:
    """A server's credentials; `tls.ca` given: clients must show a certificate that it signed. None: no TLS."""
    files = certificates.of_server(tls)
    if files is None:
        return None
    authorities = files.authorities
    return grpc.ssl_server_credentials(
        [(files.key, files.chain)], authorities, require_client_auth=authorities is not None
    )


def open_server(
    handlers: list[grpc.GenericRpcHandler],
    listen: str,
    tls: TLS | grpc.ServerCredentials | None,
    threads: int | Executor,
    window: int = SESSION_WINDOW,
    connections: int | None = None,
    rpcs: int | None = None,
    grace: float = 0.0,
) -> tuple[grpc.Server, int]:
    """A server that listens at `listen` (HOST:PORT or unix:PATH) but serves only after its `start`; and its port.

    `window`: bytes that a client may have under way. UPLOAD_WINDOW where impatient clients come over slow lines.
    `connections`: at once, of whoever; those beyond are closed. None: as many as a server takes, whose process may have descriptors for them.
    `rpcs`: at once, of whoever, where an executor is given (None: its owner's business). `grace`: see `channel_opener`.
    """
    options = [
        *_SERVER_OPTIONS,
        _pings(grace, _SERVER_PATIENCE),
        ("grpc.http2.lookahead_bytes", window),
        ("grpc.max_allowed_incoming_connections", _room() if connections is None else connections),
    ]
    executor = threads if isinstance(threads, Executor) else ThreadPoolExecutor(threads, "adyton-rpc")
    rpcs = threads * RPCS if isinstance(threads, int) else rpcs
    server = grpc.server(executor, options=options, maximum_concurrent_rpcs=rpcs)
    server.add_generic_rpc_handlers(handlers)
    credentials = server_credentials(tls) if tls is None or isinstance(tls, TLS) else tls
    umask = os.umask(0o077) if listen.startswith("unix:") else None  # a unix socket is for its owner
    try:
        port = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except RuntimeError:
        why = NO_WAY
        if not listen.startswith("unix:"):
            why = "the port is in use, or the address is not of this machine"
            if _is_for_root(listen):
                why = "so low a port is for root; take one above 1023"
        raise UsageError(f"cannot listen at {listen}: {why}") from None
    finally:
        if umask is not None:
            os.umask(umask)
    return server, port


def _room() -> int:
    """Connections for which this process may have descriptors; it is allowed as many as they want, if that can be."""
    wanted = CONNECTIONS + _OTHER_DESCRIPTORS
    soft, hard = (
        wanted if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    if soft < min(wanted, hard):
        soft = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return min(CONNECTIONS, max(soft - _OTHER_DESCRIPTORS, soft // 2))


def shown_by(context: grpc.ServicerContext) -> bytes:
    """The session's secret that a caller shows; empty if none."""
    shown = dict(context.invocation_metadata()).get(SESSION_METADATA, b"")
    return shown if isinstance(shown, bytes) else b""


def digest(session: bytes) -> bytes:
    """What a session is looked up by: how long that takes says something of the digest, and so nothing of the secret."""
    return hashlib.sha256(session).digest()


def _is_for_root(listen: str) -> bool:
    """Whether it is our rights that HOST:PORT wants. gRPC does not say why it cannot listen, so we try."""
    host, _, port = listen.rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.bind(address)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def abort(context: grpc.ServicerContext, error: AdytonError) -> Any:
    """End an RPC with one of our errors, which the client raises again under the same class."""
    code = getattr(grpc.StatusCode, type(error).code, grpc.StatusCode.UNKNOWN)
    context.set_trailing_metadata(((ERROR_METADATA, packed(error)),))
    context.abort(code, error.message[:1024])


def packed(error: AdytonError) -> bytes:
    """One of our errors for the other side, which `unpacked` makes of the same class again."""
    return msgspec.msgpack.encode((type(error).__name__, error.message[:4096]))


def unpacked(data: bytes) -> AdytonError | None:
    """The error that the other side packed; None if it is none."""
    try:
        name, message = msgspec.msgpack.decode(data, type=tuple[str, str])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, AdytonError) and not issubclass(kind, errors.EnclaveError):
        return kind(message)
    return None


def error_from(rpc: grpc.RpcError, target: Peer | str, *, connected: bool) -> AdytonError:
    """What an RPC's failure means. `target`: a peer, or a name for texts; `connected`: it had worked before.

    A peer that could not be reached is looked at (see `probe`), which may take some seconds.
    """
    call: Any = rpc
    for key, value in call.trailing_metadata() or ():
        if key == ERROR_METADATA and (error := unpacked(value)) is not None:
            return error
    status, details = call.code(), call.details() or "no details"
    unnamed = status is grpc.StatusCode.UNAUTHENTICATED and NO_SUCH_NAME in details
    if status is grpc.StatusCode.UNAUTHENTICATED and not unnamed:
        return UnauthenticatedError(f"{target} does not accept our credentials: {details}")
    if status is grpc.StatusCode.UNIMPLEMENTED:
        return errors.RemoteProtocolError(f"{target} is no adyton server: {details}")
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and not connected:
        return errors.ResourceLimitError(f"{target} has as many callers as it serves: try again later ({details})")
    if connected:
        return ConnectionLostError(
            f"the connection to {target} was lost: {details}. The outcome of calls under way is unknown"
        )
    if isinstance(target, Peer) and status is grpc.StatusCode.UNAVAILABLE and not target.address.host:
        return UnreachableError(
            f"cannot reach {target}: nothing listens there. Is a server running, and is this its path?"
        )
    if isinstance(target, Peer) and (unnamed or status is grpc.StatusCode.UNAVAILABLE):
        now = dt.datetime.now(dt.UTC)
        seconds = BRIEF_SECONDS if has_waited(details, secure=target.address.secure) else SECONDS
        seen = functools.partial(look, target.address, seconds=seconds)
        return explain(Case(target.address, target.tls or TLS(), details, seen, now))
    return UnreachableError(f"cannot reach {target}: {details}. Is a server running there?")
