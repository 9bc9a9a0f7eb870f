"""The options that an enclave may have on the client's sockets: by their C names, with what this machine calls them."""

from __future__ import annotations

import socket
import struct

from adyton.hostcall.sockets import Family, Option

_LEVELS = {
    "SO": getattr(socket, "SOL_SOCKET", None),
    "TCP": getattr(socket, "IPPROTO_TCP", None),
    "IP": getattr(socket, "IPPROTO_IP", None),
    "IPV6": getattr(socket, "IPPROTO_IPV6", None),
}

# Nothing that needs a privilege, names an interface, a file or a group, or lets somebody else's traffic be seen.
NAMES = frozenset(
    [
        "SO_BROADCAST",
        "SO_DONTROUTE",
        "SO_KEEPALIVE",
        "SO_LINGER",
        "SO_OOBINLINE",
        "SO_PRIORITY",
        "SO_RCVBUF",
        "SO_REUSEADDR",
        "SO_REUSEPORT",
        "SO_SNDBUF",
        "TCP_CORK",
        "TCP_DEFER_ACCEPT",
        "TCP_FASTOPEN",
        "TCP_KEEPCNT",
        "TCP_KEEPIDLE",
        "TCP_KEEPINTVL",
        "TCP_LINGER2",
        "TCP_MAXSEG",
        "TCP_NODELAY",
        "TCP_NOTSENT_LOWAT",
        "TCP_QUICKACK",
        "TCP_SYNCNT",
        "TCP_THIN_DUPACK",
        "TCP_THIN_LINEAR_TIMEOUTS",
        "TCP_USER_TIMEOUT",
        "TCP_WINDOW_CLAMP",
        "IP_MTU_DISCOVER",
        "IP_MULTICAST_LOOP",
        "IP_MULTICAST_TTL",
        "IP_PKTINFO",
        "IP_RECVTOS",
        "IP_RECVTTL",
        "IP_TOS",
        "IP_TTL",
        "IPV6_DONTFRAG",
        "IPV6_MTU_DISCOVER",
        "IPV6_MULTICAST_HOPS",
        "IPV6_MULTICAST_LOOP",
        "IPV6_RECVHOPLIMIT",
        "IPV6_RECVPKTINFO",
        "IPV6_RECVTCLASS",
        "IPV6_TCLASS",
        "IPV6_UNICAST_HOPS",
        "IPV6_V6ONLY",
    ]
)
_LINGER = struct.Struct("ii")
_ANY_INTERFACE = bytes(4)  # by its address, or by its number

# What Python's module does not name, from linux/in.h, linux/in6.h and linux/tcp.h
_LINUX = {
    "IP_MTU_DISCOVER": 10,
    "IP_PKTINFO": 8,
    "IP_RECVTOS": 13,
    "IP_RECVTTL": 12,
    "IPV6_MTU_DISCOVER": 23,
    "IPV6_RECVHOPLIMIT": 51,
    "IPV6_RECVPKTINFO": 49,
    "IPV6_RECVTCLASS": 66,
    "IPV6_TCLASS": 67,
    "SO_PRIORITY": 12,
    "TCP_NOTSENT_LOWAT": 25,
    "TCP_THIN_DUPACK": 17,
    "TCP_THIN_LINEAR_TIMEOUTS": 16,
    "TCP_USER_TIMEOUT": 18,
}


def _numbers(name: str) -> tuple[int, int]:
    """Level and option; OSError ENOPROTOOPT where there is none."""
    import errno
    import sys

    level = _LEVELS[name.partition("_")[0]] if name in NAMES else None
    option = getattr(socket, name, _LINUX.get(name) if sys.platform == "linux" else None)
    if level is None or option is None:
        raise OSError(errno.ENOPROTOOPT, f"no option {name} here")
    return level, option


def set_option(sock: socket.socket, option: Option) -> None:
    """OSError as the system has it."""
    level, number = _numbers(option.name)
    if option.name == "SO_LINGER":
        sock.setsockopt(level, number, _LINGER.pack(option.values[0], option.values[-1]))
    else:
        sock.setsockopt(level, number, option.values[0])


def set_membership(sock: socket.socket, family: Family, group: str, *, leaves: bool) -> None:
    """Of a multicast group, on an interface of the system's choice. OSError as the system has it; EINVAL: it is no group."""
    if family == "inet6":
        joined = socket.inet_pton(socket.AF_INET6, group) + _ANY_INTERFACE
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_LEAVE_GROUP if leaves else socket.IPV6_JOIN_GROUP, joined)
    else:
        joined = socket.inet_pton(socket.AF_INET, group) + _ANY_INTERFACE
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP if leaves else socket.IP_ADD_MEMBERSHIP, joined)


def get_option(sock: socket.socket, name: str) -> list[int]:
    """Its values; OSError as the system has it."""
    level, number = _numbers(name)
    if name == "SO_LINGER":
        return list(_LINGER.unpack(sock.getsockopt(level, number, _LINGER.size)))
    return [sock.getsockopt(level, number)]
