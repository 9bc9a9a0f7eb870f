"""Options of stand-in sockets: the numbers of Linux, and where each is kept. Pure.

    CLIENT   an option of the client's socket, under its name in the ABI
    LOCAL    of the stand-in itself: the guest's kernel keeps it and obeys it
    TOLD     only read: what the supervisor knows
    IGNORED  taken, and without effect: what it would report never happens to a stand-in

Source: asm-generic/socket.h, linux/tcp.h, linux/in.h, linux/in6.h.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import Literal

SOL_SOCKET, IPPROTO_IP, IPPROTO_TCP, IPPROTO_IPV6 = 1, 0, 6, 41
SO_TYPE, SO_ERROR, SO_ACCEPTCONN, SO_PROTOCOL, SO_DOMAIN = 3, 4, 30, 38, 39

Place = Literal["client", "local", "told", "ignored"]


@dataclass(frozen=True, slots=True)
class Known:
    """`switch`: it is on or off. `least`, `most`: what may be set; `asked`: what is read is not what was set, so the client is asked."""

    name: str
    place: Place = "client"
    switch: bool = False
    least: int = -(1 << 31)
    most: int = (1 << 31) - 1
    asked: bool = False


def _switch(name: str) -> Known:
    return Known(name, switch=True)


OPTIONS: dict[tuple[int, int], Known] = {
    (SOL_SOCKET, 2): _switch("SO_REUSEADDR"),
    (SOL_SOCKET, SO_TYPE): Known("SO_TYPE", "told"),
    (SOL_SOCKET, SO_ERROR): Known("SO_ERROR", "told"),
    (SOL_SOCKET, 5): _switch("SO_DONTROUTE"),
    (SOL_SOCKET, 6): _switch("SO_BROADCAST"),
    (SOL_SOCKET, 7): Known("SO_SNDBUF", asked=True),
    (SOL_SOCKET, 8): Known("SO_RCVBUF", asked=True),
    (SOL_SOCKET, 9): _switch("SO_KEEPALIVE"),
    (SOL_SOCKET, 10): Known("SO_OOBINLINE", "ignored", switch=True),
    (SOL_SOCKET, 12): Known("SO_PRIORITY", least=0, most=6),
    (SOL_SOCKET, 13): Known("SO_LINGER"),
    (SOL_SOCKET, 15): _switch("SO_REUSEPORT"),
    (SOL_SOCKET, 18): Known("SO_RCVLOWAT", "local"),
    (SOL_SOCKET, 20): Known("SO_RCVTIMEO", "local"),
    (SOL_SOCKET, 21): Known("SO_SNDTIMEO", "local"),
    (SOL_SOCKET, SO_ACCEPTCONN): Known("SO_ACCEPTCONN", "told"),
    (SOL_SOCKET, SO_PROTOCOL): Known("SO_PROTOCOL", "told"),
    (SOL_SOCKET, SO_DOMAIN): Known("SO_DOMAIN", "told"),
    (SOL_SOCKET, 66): Known("SO_RCVTIMEO_NEW", "local"),
    (SOL_SOCKET, 67): Known("SO_SNDTIMEO_NEW", "local"),
    (IPPROTO_TCP, 1): _switch("TCP_NODELAY"),
    (IPPROTO_TCP, 2): Known("TCP_MAXSEG", least=88, most=32767, asked=True),
    (IPPROTO_TCP, 3): _switch("TCP_CORK"),
    (IPPROTO_TCP, 4): Known("TCP_KEEPIDLE", least=1, most=32767),
    (IPPROTO_TCP, 5): Known("TCP_KEEPINTVL", least=1, most=32767),
    (IPPROTO_TCP, 6): Known("TCP_KEEPCNT", least=1, most=127),
    (IPPROTO_TCP, 7): Known("TCP_SYNCNT", least=1, most=127),
    (IPPROTO_TCP, 8): Known("TCP_LINGER2", asked=True),
    (IPPROTO_TCP, 9): Known("TCP_DEFER_ACCEPT", asked=True),
    (IPPROTO_TCP, 10): Known("TCP_WINDOW_CLAMP", asked=True),
    (IPPROTO_TCP, 12): Known("TCP_QUICKACK", switch=True, asked=True),
    (IPPROTO_TCP, 18): Known("TCP_USER_TIMEOUT", least=0),
    (IPPROTO_TCP, 25): Known("TCP_NOTSENT_LOWAT"),
    (IPPROTO_IP, 1): Known("IP_TOS", least=0, most=255, asked=True),
    (IPPROTO_IP, 2): Known("IP_TTL", least=1, most=255),
    (IPPROTO_IP, 8): _switch("IP_PKTINFO"),
    (IPPROTO_IP, 10): Known("IP_MTU_DISCOVER", least=0, most=5),
    (IPPROTO_IP, 11): Known("IP_RECVERR", "ignored", switch=True),
    (IPPROTO_IP, 12): _switch("IP_RECVTTL"),
    (IPPROTO_IP, 13): _switch("IP_RECVTOS"),
    (IPPROTO_IPV6, 16): Known("IPV6_UNICAST_HOPS", least=-1, most=255, asked=True),
    (IPPROTO_IPV6, 23): Known("IPV6_MTU_DISCOVER", least=0, most=5),
    (IPPROTO_IPV6, 25): Known("IPV6_RECVERR", "ignored", switch=True),
    (IPPROTO_IPV6, 26): _switch("IPV6_V6ONLY"),
    (IPPROTO_IPV6, 49): _switch("IPV6_RECVPKTINFO"),
    (IPPROTO_IPV6, 51): _switch("IPV6_RECVHOPLIMIT"),
    (IPPROTO_IPV6, 66): _switch("IPV6_RECVTCLASS"),
    (IPPROTO_IPV6, 67): Known("IPV6_TCLASS", least=-1, most=255, asked=True),
}

LOCAL_SOCKET_OPTIONS = (18, 20, 21)  # of these, one number for each: SO_RCVLOWAT, SO_RCVTIMEO, SO_SNDTIMEO

_INT = struct.Struct("=i")
_LINGER = struct.Struct("=ii")
MAX_LENGTH = 64  # bytes of a value that are looked at


def known(level: int, number: int) -> Known:
    """OSError ENOPROTOOPT for what a stand-in does not have."""
    try:
        return OPTIONS[level, number]
    except KeyError:
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT)) from None


def values_of(option: Known, data: bytes) -> list[int]:
    """What setsockopt was given; OSError EINVAL. A value of one byte is one of the IP level's, which Linux takes."""
    if option.name == "SO_LINGER":
        if len(data) < _LINGER.size:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        on, seconds = _LINGER.unpack_from(data)
        return [int(bool(on)), seconds]
    if option.name.startswith("IP_") and len(data) == 1:
        value = data[0]
    elif len(data) < _INT.size:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    else:
        (value,) = _INT.unpack_from(data)
    if option.switch:
        value = int(bool(value))
    elif not option.least <= value <= option.most:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return [value]


def data_of(values: list[int]) -> bytes:
    """What getsockopt gives."""
    return b"".join(map(_INT.pack, values))
