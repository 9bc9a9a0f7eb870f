"""gRPC channels and servers as adyton makes them: credentials, limits, and errors in our words."""

from __future__ import annotations

import os
from typing import Any

import grpc
import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from adyton import errors
from adyton.errors import AdytonError, ConnectionLostError, UnauthenticatedError, UnreachableError, UsageError
from adyton.remote.address import TLS, Address

MAX_MESSAGE = 8 << 20  # bytes of one gRPC message; ours stay far below
ERROR_METADATA = "adyton-error-bin"
SESSION_METADATA = "adyton-session-bin"
_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
]
_SERVER_OPTIONS = [*_OPTIONS, ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000), ("grpc.so_reuseport", 0)]


def _read(path: str | None, what: str) -> bytes | None:
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path}: {error.strerror}") from None


def _certificates(path: str | None, what: str) -> bytes | None:
    """A PEM file of certificates, judged here because gRPC would report one that is none as a server out of reach."""
    data = _read(path, what)
    if data is None:
        return None
    try:
        x509.load_pem_x509_certificates(data)
    except ValueError:
        raise UsageError(f"the {what} {path} holds no certificate in PEM") from None
    return data


def _key_pair(key: str | None, certificate: str | None) -> tuple[bytes | None, bytes | None]:
    key_data, chain = _read(key, "key"), _certificates(certificate, "certificate")
    if key_data is None or chain is None:
        return None, None
    try:
        private = serialization.load_pem_private_key(key_data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError(f"{key} holds no private key in PEM, or an encrypted one") from None
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    leaf = x509.load_pem_x509_certificates(chain)[0]
    if private.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise UsageError(f"{key} is not the key of the certificate {certificate}: give the two that belong together")
    return key_data, chain


def open_channel(address: Address, tls: TLS | None) -> grpc.Channel:
    """A channel; nothing is sent yet."""
    if not address.secure:
        if tls is not None and (tls.ca or tls.cert):
            raise UsageError(
                f"{address.target} is reached without TLS, but TLS files were given: write grpcs://{address.target}"
            )
        return grpc.insecure_channel(address.target, options=_OPTIONS)
    tls = tls or TLS()
    if (tls.cert is None) != (tls.key is None):
        raise UsageError("a client certificate needs its key, and a key its certificate: give both --cert and --key")
    credentials = grpc.ssl_channel_credentials(_certificates(tls.ca, "CA certificate"), *_key_pair(tls.key, tls.cert))
    return grpc.secure_channel(address.target, credentials, options=_OPTIONS)


def server_credentials(tls: TLS | None) -> grpc.ServerCredentials | None:
    """A server's credentials; `tls.ca` given: clients must show a certificate that it signed. None: no TLS."""
    if tls is None or (tls.cert is None and tls.key is None and tls.ca is None):
        return None
    if tls.cert is None or tls.key is None:
        raise UsageError("TLS needs both --ssl_cert and --ssl_key")
    authority = _certificates(tls.ca, "client CA")
    return grpc.ssl_server_credentials(
        [_key_pair(tls.key, tls.cert)], authority, require_client_auth=authority is not None
    )


def open_server(
    handlers: list[grpc.GenericRpcHandler], listen: str, tls: TLS | None, threads: int
) -> tuple[grpc.Server, int]:
    """A server that listens at `listen` (HOST:PORT or unix:PATH) but serves only after its `start`; and its port."""
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(threads, "adyton-rpc"), options=_SERVER_OPTIONS)
    server.add_generic_rpc_handlers(handlers)
    credentials = server_credentials(tls)
    umask = os.umask(0o077)  # a unix socket is for its owner
    try:
        port = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except RuntimeError:
        why = "is its folder there, and may you write it?"
        if not listen.startswith("unix:"):
            why = "the port is in use, or the address is not of this machine"
        raise UsageError(f"cannot listen at {listen}: {why}") from None
    finally:
        os.umask(umask)
    return server, port


def abort(context: grpc.ServicerContext, error: AdytonError) -> Any:
    """End an RPC with one of our errors, which the client raises again under the same class."""
    code = getattr(grpc.StatusCode, type(error).code, grpc.StatusCode.UNKNOWN)
    detail = msgspec.msgpack.encode((type(error).__name__, error.message[:4096]))
    context.set_trailing_metadata(((ERROR_METADATA, detail),))
    context.abort(code, error.message[:1024])


def error_from(rpc: grpc.RpcError, target: str, *, connected: bool) -> AdytonError:
    """What an RPC's failure means. `connected`: it had worked before."""
    call: Any = rpc
    for key, value in call.trailing_metadata() or ():
        if key == ERROR_METADATA:
            try:
                name, message = msgspec.msgpack.decode(value, type=tuple[str, str])
            except (msgspec.MsgspecError, ValueError, RecursionError):
                break
            kind = getattr(errors, name, None)
            if isinstance(kind, type) and issubclass(kind, AdytonError) and not issubclass(kind, errors.EnclaveError):
                return kind(message)
    status, details = call.code(), call.details() or "no details"
    if status is grpc.StatusCode.UNAUTHENTICATED:
        return UnauthenticatedError(f"{target} does not accept our credentials: {details}")
    if status is grpc.StatusCode.UNIMPLEMENTED:
        return errors.RemoteProtocolError(f"{target} is no adyton server: {details}")
    if connected:
        return ConnectionLostError(
            f"the connection to {target} was lost: {details}. The outcome of calls under way is unknown"
        )
    advice = next((advice for mark, advice in _ADVICE if mark in details), "Is a server running there?")
    return UnreachableError(f"cannot reach {target}: {details}. {advice}")


_ADVICE = (  # what gRPC's details hold, and what to do then
    ("WRONG_VERSION_NUMBER", "It answers without TLS: write grpc:// if it is to be reached so"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "Its certificate is not signed by the CA that --ca names: is it the right server and CA?",
    ),
    ("peer certificate", "Its certificate is for another name: write the server's name as its certificate has it"),
    ("closed", "It may want TLS (write grpcs://), or a client certificate of its CA (--cert and --key)"),
    ("reset", "It may want TLS (write grpcs://), or a client certificate of its CA (--cert and --key)"),
)
