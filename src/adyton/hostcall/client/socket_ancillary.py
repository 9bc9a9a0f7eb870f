"""What goes and comes with datagrams, as this machine's sendmsg and recvmsg have it. See sockets.Ancillary.

An item that this machine does not have is left out. Source: ip(7), ipv6(7), RFC 3542.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable

from adyton.hostcall.sockets import Ancillary, Family

# Options that have datagrams told of
RECEIVING = frozenset(
    ["IP_PKTINFO", "IP_RECVTOS", "IP_RECVTTL", "IPV6_RECVHOPLIMIT", "IPV6_RECVPKTINFO", "IPV6_RECVTCLASS"]
)
ROOM = 256  # bytes of what is told with one datagram

Item = tuple[int, int, bytes]  # level, type, data

# Item types, by the field of Ancillary; what Python's module does not name is Linux's.
_LINUX = {"IP_PKTINFO": 8, "IPV6_TCLASS": 67, "IPV6_HOPLIMIT": 52, "IPV6_PKTINFO": 50}


def _number(name: str) -> int | None:
    number: int | None = getattr(socket, name, _LINUX.get(name) if sys.platform == "linux" else None)
    return number


_LEVELS: dict[Family, int] = {"inet": socket.IPPROTO_IP, "inet6": socket.IPPROTO_IPV6}
_TYPES: dict[Family, dict[str, int | None]] = {
    "inet": {"local": _number("IP_PKTINFO"), "hops": _number("IP_TTL"), "traffic_class": _number("IP_TOS")},
    "inet6": {
        "local": _number("IPV6_PKTINFO"),
        "hops": _number("IPV6_HOPLIMIT"),
        "traffic_class": _number("IPV6_TCLASS"),
    },
}
_INT = struct.Struct("i")
_PACKET_INFO = struct.Struct("i4s4s")  # struct in_pktinfo: interface, own address, address of the header
_PACKET_INFO6 = struct.Struct("16si")  # struct in6_pktinfo: address, interface


def items(ancillary: Ancillary, family: Family) -> list[Item]:
    """For sendmsg. ValueError: `local` is no address of the family."""
    found = []
    for name, kind in _TYPES[family].items():
        value = getattr(ancillary, name)
        if value is None or kind is None:
            continue
        if name != "local":
            data = _INT.pack(value)
        elif family == "inet":
            data = _PACKET_INFO.pack(0, _packed(value, socket.AF_INET), bytes(4))
        else:
            data = _PACKET_INFO6.pack(_packed(value, socket.AF_INET6), 0)
        found.append((_LEVELS[family], kind, data))
    return found


def _packed(host: str, family: int) -> bytes:
    try:
        return socket.inet_pton(family, host)
    except OSError as error:
        raise ValueError(str(error)) from error


def ancillary(received: Iterable[Item], family: Family) -> Ancillary | None:
    """From recvmsg; None: nothing was told."""
    local: str | None = None
    numbers: dict[str, int] = {}
    for level, kind, data in received:
        if level != _LEVELS[family]:
            continue
        name = next((name for name, each in _TYPES[family].items() if each == kind), None)
        if name == "local" and family == "inet" and len(data) == _PACKET_INFO.size:
            local = socket.inet_ntop(socket.AF_INET, _PACKET_INFO.unpack(data)[1])
        elif name == "local" and family == "inet6" and len(data) == _PACKET_INFO6.size:
            local = socket.inet_ntop(socket.AF_INET6, _PACKET_INFO6.unpack(data)[0])
        elif name in ("hops", "traffic_class") and len(data) in (1, _INT.size):
            numbers[name] = (data[0] if len(data) == 1 else _INT.unpack(data)[0]) & 0xFF
    if local is None and not numbers:
        return None
    return Ancillary(local, numbers.get("hops"), numbers.get("traffic_class"))
