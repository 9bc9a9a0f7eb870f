"""Where a server is, and how its connections are secured, as people write it. Without grpc."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from adyton.errors import UsageError

DEFAULT_PORT = 4321
SOCKET_PATH = 107  # bytes that the path of a unix socket may have (sys/un.h: 108, the last of them 0)


@dataclass(frozen=True)
class TLS:
    """Files of a connection's TLS: `ca` to check the peer by (default: the public CAs that gRPC brings), `cert` and `key` to show
    who we are."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        """UsageError for what is no path."""
        _check_paths(self, "ca", "cert", "key")

    @classmethod
    def from_environment(cls) -> TLS | None:
        """What ADYTON_CA, ADYTON_CERT and ADYTON_KEY name; None if there is none of them. UsageError for two different ones.

        ADYTON_SSL_CERT and ADYTON_SSL_KEY, as the original's flags are called, are the same as the last two.
        """
        found = {name: os.environ.get(variable) or None for name, variable in _VARIABLES}
        cert = the_same(("ADYTON_CERT", found["cert"]), ("ADYTON_SSL_CERT", found["ssl_cert"]))
        key = the_same(("ADYTON_KEY", found["key"]), ("ADYTON_SSL_KEY", found["ssl_key"]))
        return cls(found["ca"], cert, key) if found["ca"] or cert or key else None


@dataclass(frozen=True)
class Caller:
    """Files of what an enclave is to know its client by: a `key`, and the certificate around it with its chain, if there is one (`cert`)."""

    key: str | None = None
    cert: str | None = None

    def __post_init__(self) -> None:
        """UsageError for what is no path."""
        _check_paths(self, "key", "cert")

    @classmethod
    def from_environment(cls) -> Caller | None:
        """What ADYTON_CALLER_KEY and ADYTON_CALLER_CERT name; None if there is neither."""
        key, cert = (os.environ.get(f"ADYTON_CALLER_{name}") or None for name in ("KEY", "CERT"))
        return cls(key, cert) if key or cert else None


def _check_paths(files: TLS | Caller, *names: str) -> None:
    for name in names:
        value = getattr(files, name)
        if isinstance(value, os.PathLike):
            object.__setattr__(files, name, os.fspath(value))
        elif not isinstance(value, str | None):
            raise UsageError(f"{type(files).__name__}({name}={value!r}): give the path of a file")


_VARIABLES = tuple((name, f"ADYTON_{name.upper()}") for name in ("ca", "cert", "key", "ssl_cert", "ssl_key"))


def the_same(ours: tuple[str, str | None], original: tuple[str, str | None]) -> str | None:
    """The one value of two options (name, value) that mean the same; UsageError if they differ."""
    if ours[1] is None or original[1] is None or os.path.abspath(ours[1]) == os.path.abspath(original[1]):
        return original[1] if ours[1] is None else ours[1]
    raise UsageError(f"{ours[0]} and {original[0]} mean the same, but name {ours[1]} and {original[1]}: give one")


SecurityType = Literal["ssl", "local"]


def security_type_of(text: str | None) -> SecurityType | None:
    """The original's --security_type, in any case: ssl, or local; None or "" for neither. UsageError for anything else."""
    match (text or "").lower():
        case "":
            return None
        case "ssl":
            return "ssl"
        case "local":
            return "local"
    raise UsageError(f"security type {text!r} is unknown: it is ssl or local")


@dataclass(frozen=True)
class Address:
    """Where a server is. `target` as gRPC takes it; `host` without port, or "" for a unix socket."""

    target: str
    host: str
    secure: bool

    @classmethod
    def parse(cls, text: str, security_type: SecurityType | None = None) -> Address:
        """From grpc://H[:P], grpcs://H[:P], unix:PATH, or H:P (grpcs unless loopback); UsageError otherwise.

        `security_type` ssl: TLS or an error; local: no TLS, and an error for what is not on this machine.
        """
        if not isinstance(text, str):
            raise UsageError(f"{text!r} is no address: a server is a text such as grpcs://HOST:PORT")
        if text.startswith("unix:"):
            if not text[5:]:
                raise UsageError("unix: needs a path, such as unix:/run/adyton.sock")
            if security_type == "ssl":
                raise UsageError(
                    f"{text} is reached without TLS, and security type ssl asks for it: leave one of them out"
                )
            return cls(text, "", secure=False)
        scheme, separator, rest = text.partition("://")
        if not separator:
            scheme, rest = "", text
        if scheme and rest.startswith("unix:"):
            raise UsageError(f"{text}: a unix socket is written {rest}, and is without TLS")
        if scheme not in ("", "grpc", "grpcs"):
            raise UsageError(
                f"{text}: a server is grpc://HOST[:PORT], grpcs://HOST[:PORT] or unix:PATH, not {scheme}://"
            )
        try:
            split = urlsplit(f"//{rest}")
            host, port = split.hostname or "", DEFAULT_PORT if split.port is None else split.port
        except ValueError as error:
            raise UsageError(f"{text}: {error}; write HOST:PORT, an IPv6 address in brackets") from None
        if port == 0:
            raise UsageError(f"{text}: no server has port 0: write the one that it says it listens at")
        if not host or split.path not in ("", "/") or split.query or split.username:
            raise UsageError(f"{text}: a server is grpc://HOST[:PORT], grpcs://HOST[:PORT] or unix:PATH")
        host = f"[{host}]" if ":" in host else host
        secure = scheme == "grpcs" or (not scheme and (security_type == "ssl" or not is_loopback(host)))
        if security_type == "ssl" and not secure:
            raise UsageError(f"{text} is without TLS, and security type ssl asks for it: write grpcs://{host}:{port}")
        if security_type == "local" and scheme == "grpcs":
            raise UsageError(f"{text} is with TLS, and security type local is without: leave it out, or write ssl")
        if security_type == "local" and not is_loopback(host):
            raise UsageError(f"security type local is for servers of this machine, and {host} is none: write ssl")
        return cls(f"{host}:{port}", host, secure)

    def with_port(self, port: int) -> Address:
        """The same host, another port."""
        return Address(f"{self.host}:{port}", self.host, self.secure)


def is_loopback(host: str) -> bool:
    """Whether a host, as it is written, is this machine itself: localhost, 127.0.0.0/8, ::1."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = (
        address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    )  # by itself in Python 3.13 only
    return (mapped or address).is_loopback
