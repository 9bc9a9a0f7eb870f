"""Addresses of dial-back: where a client waits for its proxy server, and where that is dialled. Without grpc or IO."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import unquote

from adyton.errors import UsageError
from adyton.remote.address import SOCKET_PATH, Address

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
_ANY = ipaddress.IPv6Address("::")
_HOST_PORT = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")
_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*\.?")
_FORM = (
    "write IP:PORT, an IPv6 address in brackets ([::1]:7000; [::] and 0.0.0.0 are all of this machine's), or unix:PATH"
)


@dataclass(frozen=True)
class ListenAddress:
    """Where a client waits: a unix socket's `path`, or `ip` and `port` (0: a free one)."""

    path: str = ""
    ip: IP = _ANY
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """From IP:PORT, localhost:PORT or unix:PATH; UsageError otherwise."""
        if not isinstance(text, str):
            raise UsageError(f"dial_back={text!r} is no address to wait at: {_FORM}")
        if text.startswith("unix:"):
            path = text[5:]
            if not path or "\0" in path or len(os.fsencode(path)) > SOCKET_PATH:
                raise UsageError(f"dial_back={text[:200]!r}: unix: needs a path of at most {SOCKET_PATH} bytes")
            return cls(path=path)
        match = _HOST_PORT.fullmatch(text)
        if match is None or int(match["port"]) > 65535:
            raise UsageError(f"dial_back={text[:200]!r} is no address to wait at: {_FORM}")
        host = match["six"] or match["host"]
        try:
            ip = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        except ValueError:
            raise UsageError(f"dial_back={text[:200]!r}: {host[:100]!r} is no IP address: {_FORM}") from None
        if (ip.version == 6) != (match["six"] is not None):
            raise UsageError(f"dial_back={text[:200]!r} is no address to wait at: {_FORM}")
        return cls(ip=_mapped(ip), port=int(match["port"]))

    def at(self, port: int) -> ListenAddress:
        """The same with the port that was got."""
        return self if self.path else ListenAddress(ip=self.ip, port=port)

    def absolute(self) -> ListenAddress:
        """The same for a process with another working directory."""
        return ListenAddress.parse(f"unix:{os.path.abspath(self.path)}") if self.path else self

    @property
    def here(self) -> str:
        """Where a process of this machine dials it, as gRPC takes it."""
        if self.path or not self.ip.is_unspecified:
            return self.target
        return f"127.0.0.1:{self.port}"  # [::] takes IPv4 too, and there may be no IPv6

    @property
    def target(self) -> str:
        """As gRPC takes it."""
        return str(self) if self.path else _dialled(self.ip, self.port)

    @property
    def private(self) -> bool:
        """Whether nobody can listen in on the way there: loopback, or a unix socket."""
        return bool(self.path) or self.ip.is_loopback

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else _joined(self.ip, self.port)


def host_address(text: str) -> Address:
    """Where a proxy server dials its client: HOST:PORT or unix:PATH, as `--host_address` takes it; UsageError otherwise."""
    if text.startswith("unix:"):
        return Address(str(ListenAddress.parse(text)), "", secure=False)
    match = _HOST_PORT.fullmatch(text)
    if match is not None and 0 < int(match["port"]) < 65536:
        host = match["six"] or match["host"]
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            if match["host"] and _NAME.fullmatch(host) and not host.replace(".", "").isdigit():
                return Address(text, host, secure=False)
        else:
            if ip.is_unspecified:
                raise UsageError(
                    f"--host_address {text}: {host} is where a client waits; give an address of its machine"
                )
            if (ip.version == 6) == (match["six"] is not None):
                return Address(text, match["host"] or f"[{host}]", secure=False)
    raise UsageError(
        f"--host_address {text[:200]!r} is no address to dial: write HOST:PORT, an IPv6 address in brackets "
        "([2001:db8::1]:7000), or unix:PATH"
    )


def target_for(offered: str, peer: str) -> str:
    """Where a provision server may have a client dialled that offers an address, as gRPC takes it.

    `offered`: what the client said, any text. `peer`: where it is seen at, as gRPC names it ("ipv4:10.0.0.2:4444", "ipv6:%5B::1%5D:4444",
    "unix:"). Only that address is dialled, so that nobody can have this machine reach for others; [::] and 0.0.0.0 stand for it. A client of
    this machine may also name its loopback addresses and unix sockets. UsageError for anything else.
    """
    address = ListenAddress.parse(offered)
    seen = _seen(peer)
    local = seen is None or seen.is_loopback
    if address.path:
        if not local:
            raise UsageError(f"dial_back={offered}: the server is on another machine; give an IP address and a port")
        if not os.path.isabs(address.path):
            raise UsageError(f"dial_back={offered}: the path must begin at /")
        return str(address)
    if address.port == 0:
        raise UsageError(f"dial_back={offered} names no port")
    if address.ip.is_unspecified:
        if seen is None:
            return address.here
        if address.ip.version == 4 and seen.version == 6:
            raise UsageError(
                f"dial_back={offered} is IPv4, and the server sees the client at {seen}: give [::] instead"
            )
        return _dialled(seen, address.port)
    if address.ip.is_loopback and local:
        return _dialled(_plain(address.ip), address.port)
    if seen is None or _plain(address.ip) != _plain(seen):
        where = "a unix socket" if seen is None else seen
        raise UsageError(
            f"dial_back={offered}: the server dials only where it sees the client, which is {where}: give [::]:PORT, or that address"
        )
    return _dialled(seen, address.port)


def _seen(peer: str) -> IP | None:
    """The address in gRPC's name of a peer; None: a unix socket of this machine."""
    kind, _, rest = unquote(peer).partition(":")
    if kind == "unix":
        return None
    try:
        ip = ipaddress.ip_address(rest.rpartition(":")[0].strip("[]"))
    except ValueError:
        raise UsageError("dial_back: the server cannot tell where the client is: leave dial_back out") from None
    return _mapped(ip)


def _plain(ip: IP) -> IP:
    """The address without the name of this machine's interface."""
    return ipaddress.IPv6Address(ip.packed) if isinstance(ip, ipaddress.IPv6Address) else ip


def _mapped(ip: IP) -> IP:
    """An IPv4 address in IPv6's clothes as what it is."""
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def _dialled(ip: IP, port: int) -> str:
    """As gRPC takes it, which decodes %XX, also in the name of an interface."""
    return _joined(ip, port).replace("%", "%25")


def _joined(ip: IP, port: int) -> str:
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"
