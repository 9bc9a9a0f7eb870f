"""Where a server is, and how its connections are secured, as people write it. Without grpc."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from adyton.errors import UsageError

DEFAULT_PORT = 4321
SOCKET_PATH = 107  # bytes that the path of a unix socket may have (sys/un.h: 108, the last of them 0)


@dataclass(frozen=True)
class TLS:
    """Files of a connection's TLS: `ca` to check the peer by (default: the system's), `cert` and `key` to show who we are."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    @classmethod
    def from_environment(cls) -> TLS | None:
        """What ADYTON_CA, ADYTON_CERT and ADYTON_KEY name; None if there is none of them."""
        ca, cert, key = (os.environ.get(f"ADYTON_{name}") or None for name in ("CA", "CERT", "KEY"))
        return cls(ca, cert, key) if ca or cert or key else None


@dataclass(frozen=True)
class Address:
    """Where a server is. `target` as gRPC takes it; `host` without port, or "" for a unix socket."""

    target: str
    host: str
    secure: bool

    @classmethod
    def parse(cls, text: str) -> Address:
        """From grpc://H[:P], grpcs://H[:P], unix:PATH, or H:P (grpcs unless loopback); UsageError otherwise."""
        if text.startswith("unix:"):
            if not text[5:]:
                raise UsageError("unix: needs a path, such as unix:/run/adyton.sock")
            return cls(text, "", secure=False)
        scheme, separator, rest = text.partition("://")
        if not separator:
            scheme, rest = "", text
        if scheme not in ("", "grpc", "grpcs"):
            raise UsageError(
                f"{text}: a server is grpc://HOST[:PORT], grpcs://HOST[:PORT] or unix:PATH, not {scheme}://"
            )
        try:
            split = urlsplit(f"//{rest}")
            host, port = split.hostname or "", split.port or DEFAULT_PORT
        except ValueError as error:
            raise UsageError(f"{text}: {error}; write HOST:PORT, an IPv6 address in brackets") from None
        if not host or split.path not in ("", "/") or split.query or split.username:
            raise UsageError(f"{text}: a server is grpc://HOST[:PORT], grpcs://HOST[:PORT] or unix:PATH")
        host = f"[{host}]" if ":" in host else host
        secure = scheme == "grpcs" or (not scheme and not is_loopback(host))
        return cls(f"{host}:{port}", host, secure)

    def with_port(self, port: int) -> Address:
        """The same host, another port."""
        return Address(f"{self.host}:{port}", self.host, self.secure)


def is_loopback(host: str) -> bool:
    """Whether a host, as it is written, is this machine itself: localhost, 127.0.0.0/8, ::1."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
