"""Options of stand-in sockets: the numbers of Linux, and where each is kept. Pure.

    CLIENT   an option of the client's socket, under its name in the ABI
    LOCAL    of the stand-in itself: the guest's kernel keeps it and obeys it
    TOLD     only read: what the supervisor knows
    IGNORED  taken, read as it was set, and without effect: what it would report never happens to a stand-in, or is no business of a program's
    GROUP    joins or leaves a multicast group: asked of the client, whose policy decides
    DEVICE   of which interface: any, by the client's choice
    REFUSED  fails with an errno, for a reason

All that Python's module `socket` names of these levels is here; what is not here is ENOPROTOOPT.
Source: asm-generic/socket.h, linux/tcp.h, linux/udp.h, linux/in.h, linux/in6.h.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import Literal

from adyton.runtime.process.table_rows import Errno, Refused

SOL_SOCKET, IPPROTO_IP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_IPV6 = 1, 0, 6, 17, 41
SO_TYPE, SO_ERROR, SO_SNDLOWAT, SO_ACCEPTCONN, SO_PROTOCOL, SO_DOMAIN = 3, 4, 19, 30, 38, 39

Place = Literal["client", "local", "told", "ignored", "group", "device", "refused"]


@dataclass(frozen=True, slots=True)
class Known:
    """`switch`: it is on or off. `least`, `most`: what may be set; `asked`: what is read is not what was set, so the client is asked.

    `leaves`: it leaves a group. `refused`: how, and why.
    """

    name: str
    place: Place = "client"
    switch: bool = False
    least: int = -(1 << 31)
    most: int = (1 << 31) - 1
    asked: bool = False
    leaves: bool = False
    refused: Refused | None = None


def _switch(name: str) -> Known:
    return Known(name, switch=True)


def _no(name: str, number: Errno, reason: str) -> Known:
    return Known(name, "refused", refused=Refused(number, reason))


_PRIVILEGE = "it takes a privilege, which no enclave has on its client's machine"
_INTERFACE = "it names an interface of the client's machine"
_FILTER = "it would run a program in a kernel"
_ROUTE = "it would have packets go where the policy does not see it"
_HEADERS = "headers of packets stay with the client"
_KERNEL = "it tells of the client's kernel, or of how its connection fares there"
_BYTES = "bytes go by way of a stand-in: how the client's kernel would carry or count them does not show"
_SOURCES = "groups are joined whole"
_OTHER_KIND = "sockets of other kinds have it"

OPTIONS: dict[tuple[int, int], Known] = {
    (SOL_SOCKET, 1): _no("SO_DEBUG", "EACCES", _PRIVILEGE),
    (SOL_SOCKET, 2): _switch("SO_REUSEADDR"),
    (SOL_SOCKET, SO_TYPE): Known("SO_TYPE", "told"),
    (SOL_SOCKET, SO_ERROR): Known("SO_ERROR", "told"),
    (SOL_SOCKET, 5): _switch("SO_DONTROUTE"),
    (SOL_SOCKET, 6): _switch("SO_BROADCAST"),
    (SOL_SOCKET, 7): Known("SO_SNDBUF", asked=True),
    (SOL_SOCKET, 8): Known("SO_RCVBUF", asked=True),
    (SOL_SOCKET, 9): _switch("SO_KEEPALIVE"),
    (SOL_SOCKET, 10): _switch("SO_OOBINLINE"),
    (SOL_SOCKET, 12): Known("SO_PRIORITY", least=0, most=6),
    (SOL_SOCKET, 13): Known("SO_LINGER"),
    (SOL_SOCKET, 15): _switch("SO_REUSEPORT"),
    (SOL_SOCKET, 16): Known("SO_PASSCRED", "ignored", switch=True),
    (SOL_SOCKET, 17): _no("SO_PEERCRED", "ENOPROTOOPT", _OTHER_KIND),
    (SOL_SOCKET, 18): Known("SO_RCVLOWAT", "local"),
    (SOL_SOCKET, SO_SNDLOWAT): Known("SO_SNDLOWAT", "told"),
    (SOL_SOCKET, 20): Known("SO_RCVTIMEO", "local"),
    (SOL_SOCKET, 21): Known("SO_SNDTIMEO", "local"),
    (SOL_SOCKET, 25): _no("SO_BINDTODEVICE", "EPERM", _INTERFACE),
    (SOL_SOCKET, 26): _no("SO_ATTACH_FILTER", "EPERM", _FILTER),
    (SOL_SOCKET, 27): _no("SO_DETACH_FILTER", "EPERM", _FILTER),
    (SOL_SOCKET, 29): _no("SO_TIMESTAMP", "ENOPROTOOPT", _KERNEL),
    (SOL_SOCKET, SO_ACCEPTCONN): Known("SO_ACCEPTCONN", "told"),
    (SOL_SOCKET, 31): _no("SO_PEERSEC", "ENOPROTOOPT", _OTHER_KIND),
    (SOL_SOCKET, 34): Known("SO_PASSSEC", "ignored", switch=True),
    (SOL_SOCKET, 35): _no("SO_TIMESTAMPNS", "ENOPROTOOPT", _KERNEL),
    (SOL_SOCKET, 36): _no("SO_MARK", "EPERM", _PRIVILEGE),
    (SOL_SOCKET, 37): _no("SO_TIMESTAMPING", "ENOPROTOOPT", _KERNEL),
    (SOL_SOCKET, SO_PROTOCOL): Known("SO_PROTOCOL", "told"),
    (SOL_SOCKET, SO_DOMAIN): Known("SO_DOMAIN", "told"),
    (SOL_SOCKET, 44): _no("SO_LOCK_FILTER", "EPERM", _FILTER),
    (SOL_SOCKET, 49): _no("SO_INCOMING_CPU", "ENOPROTOOPT", _KERNEL),
    (SOL_SOCKET, 50): _no("SO_ATTACH_BPF", "EPERM", _FILTER),
    (SOL_SOCKET, 51): _no("SO_ATTACH_REUSEPORT_CBPF", "EPERM", _FILTER),
    (SOL_SOCKET, 52): _no("SO_ATTACH_REUSEPORT_EBPF", "EPERM", _FILTER),
    (SOL_SOCKET, 60): _no("SO_ZEROCOPY", "ENOPROTOOPT", _BYTES),
    (SOL_SOCKET, 62): _no("SO_BINDTOIFINDEX", "EPERM", _INTERFACE),
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
    (IPPROTO_TCP, 11): _no("TCP_INFO", "ENOPROTOOPT", _KERNEL),
    (IPPROTO_TCP, 12): Known("TCP_QUICKACK", switch=True, asked=True),
    (IPPROTO_TCP, 13): _no("TCP_CONGESTION", "ENOPROTOOPT", _KERNEL),
    (IPPROTO_TCP, 14): _no("TCP_MD5SIG", "ENOPROTOOPT", _HEADERS),
    (IPPROTO_TCP, 16): _switch("TCP_THIN_LINEAR_TIMEOUTS"),
    (IPPROTO_TCP, 17): _switch("TCP_THIN_DUPACK"),
    (IPPROTO_TCP, 18): Known("TCP_USER_TIMEOUT", least=0),
    (IPPROTO_TCP, 19): _no("TCP_REPAIR", "EPERM", _PRIVILEGE),
    (IPPROTO_TCP, 20): _no("TCP_REPAIR_QUEUE", "EPERM", _PRIVILEGE),
    (IPPROTO_TCP, 21): _no("TCP_QUEUE_SEQ", "EPERM", _PRIVILEGE),
    (IPPROTO_TCP, 22): _no("TCP_REPAIR_OPTIONS", "EPERM", _PRIVILEGE),
    (IPPROTO_TCP, 23): Known("TCP_FASTOPEN", least=0),
    (IPPROTO_TCP, 24): _no("TCP_TIMESTAMP", "ENOPROTOOPT", _KERNEL),
    (IPPROTO_TCP, 25): Known("TCP_NOTSENT_LOWAT"),
    (IPPROTO_TCP, 26): _no("TCP_CC_INFO", "ENOPROTOOPT", _KERNEL),
    (IPPROTO_TCP, 27): _no("TCP_SAVE_SYN", "ENOPROTOOPT", _HEADERS),
    (IPPROTO_TCP, 28): _no("TCP_SAVED_SYN", "ENOPROTOOPT", _HEADERS),
    (IPPROTO_TCP, 29): _no("TCP_REPAIR_WINDOW", "EPERM", _PRIVILEGE),
    (IPPROTO_TCP, 30): _no(
        "TCP_FASTOPEN_CONNECT", "ENOPROTOOPT", "a connect says what came of it, before anything is sent"
    ),
    (IPPROTO_TCP, 31): _no("TCP_ULP", "ENOPROTOOPT", "keys stay in the enclave: TLS is the program's own"),
    (IPPROTO_TCP, 32): _no("TCP_MD5SIG_EXT", "ENOPROTOOPT", _HEADERS),
    (IPPROTO_TCP, 33): _no("TCP_FASTOPEN_KEY", "ENOPROTOOPT", _KERNEL),
    (IPPROTO_TCP, 34): _no("TCP_FASTOPEN_NO_COOKIE", "ENOPROTOOPT", _KERNEL),
    (IPPROTO_TCP, 35): _no("TCP_ZEROCOPY_RECEIVE", "ENOPROTOOPT", _BYTES),
    (IPPROTO_TCP, 36): _no("TCP_INQ", "ENOPROTOOPT", _BYTES),
    (IPPROTO_TCP, 37): _no("TCP_TX_DELAY", "ENOPROTOOPT", _BYTES),
    (IPPROTO_UDP, 1): _no("UDP_CORK", "ENOPROTOOPT", _BYTES),
    (IPPROTO_UDP, 103): _no("UDP_SEGMENT", "ENOPROTOOPT", _BYTES),
    (IPPROTO_UDP, 104): _no("UDP_GRO", "ENOPROTOOPT", _BYTES),
    (IPPROTO_IP, 1): Known("IP_TOS", least=0, most=255, asked=True),
    (IPPROTO_IP, 2): Known("IP_TTL", least=1, most=255),
    (IPPROTO_IP, 3): _no("IP_HDRINCL", "ENOPROTOOPT", _OTHER_KIND),
    (IPPROTO_IP, 4): _no("IP_OPTIONS", "EPERM", _ROUTE),
    (IPPROTO_IP, 6): _no("IP_RECVOPTS", "ENOPROTOOPT", _HEADERS),
    (IPPROTO_IP, 7): _no("IP_RETOPTS", "ENOPROTOOPT", _HEADERS),
    (IPPROTO_IP, 8): _switch("IP_PKTINFO"),
    (IPPROTO_IP, 10): Known("IP_MTU_DISCOVER", least=0, most=5),
    (IPPROTO_IP, 11): Known("IP_RECVERR", "ignored", switch=True),
    (IPPROTO_IP, 12): _switch("IP_RECVTTL"),
    (IPPROTO_IP, 13): _switch("IP_RECVTOS"),
    (IPPROTO_IP, 15): _no("IP_FREEBIND", "EPERM", "a socket has an address that the client's machine has"),
    (IPPROTO_IP, 19): _no("IP_TRANSPARENT", "EPERM", _PRIVILEGE),
    (IPPROTO_IP, 20): _no("IP_RECVORIGDSTADDR", "ENOPROTOOPT", _HEADERS),
    (IPPROTO_IP, 24): Known("IP_BIND_ADDRESS_NO_PORT", "ignored", switch=True),
    (IPPROTO_IP, 32): Known("IP_MULTICAST_IF", "device"),
    (IPPROTO_IP, 33): Known("IP_MULTICAST_TTL", least=-1, most=255, asked=True),
    (IPPROTO_IP, 34): _switch("IP_MULTICAST_LOOP"),
    (IPPROTO_IP, 35): Known("IP_ADD_MEMBERSHIP", "group"),
    (IPPROTO_IP, 36): Known("IP_DROP_MEMBERSHIP", "group", leaves=True),
    (IPPROTO_IP, 37): _no("IP_UNBLOCK_SOURCE", "ENOPROTOOPT", _SOURCES),
    (IPPROTO_IP, 38): _no("IP_BLOCK_SOURCE", "ENOPROTOOPT", _SOURCES),
    (IPPROTO_IP, 39): _no("IP_ADD_SOURCE_MEMBERSHIP", "ENOPROTOOPT", _SOURCES),
    (IPPROTO_IP, 40): _no("IP_DROP_SOURCE_MEMBERSHIP", "ENOPROTOOPT", _SOURCES),
    (IPPROTO_IP, 80): _no("SO_ORIGINAL_DST", "ENOPROTOOPT", _KERNEL),
    (IPPROTO_IPV6, 7): _no("IPV6_CHECKSUM", "ENOPROTOOPT", _OTHER_KIND),
    (IPPROTO_IPV6, 9): _no("IPV6_NEXTHOP", "EPERM", _ROUTE),
    (IPPROTO_IPV6, 16): Known("IPV6_UNICAST_HOPS", least=-1, most=255, asked=True),
    (IPPROTO_IPV6, 17): Known("IPV6_MULTICAST_IF", "device"),
    (IPPROTO_IPV6, 18): Known("IPV6_MULTICAST_HOPS", least=-1, most=255, asked=True),
    (IPPROTO_IPV6, 19): _switch("IPV6_MULTICAST_LOOP"),
    (IPPROTO_IPV6, 20): Known("IPV6_JOIN_GROUP", "group"),
    (IPPROTO_IPV6, 21): Known("IPV6_LEAVE_GROUP", "group", leaves=True),
    (IPPROTO_IPV6, 23): Known("IPV6_MTU_DISCOVER", least=0, most=5),
    (IPPROTO_IPV6, 25): Known("IPV6_RECVERR", "ignored", switch=True),
    (IPPROTO_IPV6, 26): _switch("IPV6_V6ONLY"),
    (IPPROTO_IPV6, 49): _switch("IPV6_RECVPKTINFO"),
    (IPPROTO_IPV6, 50): _no("IPV6_PKTINFO", "ENOPROTOOPT", "each datagram has its own"),
    (IPPROTO_IPV6, 51): _switch("IPV6_RECVHOPLIMIT"),
    (IPPROTO_IPV6, 52): _no("IPV6_HOPLIMIT", "ENOPROTOOPT", "each datagram has its own"),
    (IPPROTO_IPV6, 53): _no("IPV6_RECVHOPOPTS", "ENOPROTOOPT", _HEADERS),
    (IPPROTO_IPV6, 54): _no("IPV6_HOPOPTS", "EPERM", _ROUTE),
    (IPPROTO_IPV6, 55): _no("IPV6_RTHDRDSTOPTS", "EPERM", _ROUTE),
    (IPPROTO_IPV6, 56): _no("IPV6_RECVRTHDR", "ENOPROTOOPT", _HEADERS),
    (IPPROTO_IPV6, 57): _no("IPV6_RTHDR", "EPERM", _ROUTE),
    (IPPROTO_IPV6, 58): _no("IPV6_RECVDSTOPTS", "ENOPROTOOPT", _HEADERS),
    (IPPROTO_IPV6, 59): _no("IPV6_DSTOPTS", "EPERM", _ROUTE),
    (IPPROTO_IPV6, 60): _no("IPV6_RECVPATHMTU", "ENOPROTOOPT", _HEADERS),
    (IPPROTO_IPV6, 61): _no("IPV6_PATHMTU", "ENOPROTOOPT", _KERNEL),
    (IPPROTO_IPV6, 62): _switch("IPV6_DONTFRAG"),
    (IPPROTO_IPV6, 66): _switch("IPV6_RECVTCLASS"),
    (IPPROTO_IPV6, 67): Known("IPV6_TCLASS", least=-1, most=255, asked=True),
}

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
