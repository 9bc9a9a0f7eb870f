"""struct msghdr of Linux and what it points to, for datagrams: buffers, and ancillary data of IP and IPv6. Pure; for every architecture of
the table, all of which are of 64 bits.

Source: linux/socket.h (struct user_msghdr, struct cmsghdr), linux/uio.h, linux/in.h (struct in_pktinfo), linux/in6.h (struct in6_pktinfo), the
kernel's net/core/scm.c (put_cmsg), ip_cmsg_send and ip6_datagram_send_ctl, ip(7), ipv6(7), RFC 3542.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass

from adyton.hostcall.sockets import Ancillary, Family
from adyton.runtime.process.supervisor.sockets.options import IPPROTO_IP, IPPROTO_IPV6, SOL_SOCKET

_HEADER = struct.Struct("=QIxxxxQQQQixxxx")  # name, its size, vector, its length, control, its size, flags
HEADER_SIZE = _HEADER.size
LENGTH_AT = HEADER_SIZE  # of struct mmsghdr: how many bytes the message has, an unsigned int
_NAME_SIZE_AT, _CONTROL_SIZE_AT, _FLAGS_AT = 8, 40, 48
_BUFFER = struct.Struct("=QQ")  # struct iovec: where, how many bytes
BUFFER_SIZE = _BUFFER.size
MAX_BUFFERS = 1024  # UIO_MAXIOV
MAX_CONTROL = 4096  # bytes that are sent with a datagram
_MAX_SIZE = (1 << 63) - 1

_CONTROL = struct.Struct("=Qii")  # struct cmsghdr: size with this, level, type
_INT = struct.Struct("=i")
_PACKET_INFO = struct.Struct("=i4s4s")  # interface, own address, address of the header
_PACKET_INFO6 = struct.Struct("=16si")  # address, interface
_IP_TOS, _IP_TTL, _IP_PKTINFO = 1, 2, 8
_IPV6_PKTINFO, _IPV6_HOPLIMIT, _IPV6_TCLASS = 50, 52, 67
_SCM_RIGHTS, _SCM_CREDENTIALS = 1, 2


def _failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@dataclass(frozen=True, slots=True)
class Header:
    """A struct msghdr: addresses in the memory of who calls, and sizes in bytes; `buffers`: how many there are."""

    name: int
    name_size: int
    vector: int
    buffers: int
    control: int
    control_size: int


def header(data: bytes) -> Header:
    """Of HEADER_SIZE bytes. OSError: EINVAL, EMSGSIZE."""
    name, name_size, vector, buffers, control, control_size, _ = _HEADER.unpack(data)
    if name and name_size > 0x7FFFFFFF:
        raise _failure(errno.EINVAL)
    if buffers > MAX_BUFFERS:
        raise _failure(errno.EMSGSIZE)
    return Header(name, name_size if name else 0, vector, buffers, control, control_size if control else 0)


def buffers(data: bytes) -> list[tuple[int, int]]:
    """The address and size of each buffer of a vector. OSError EINVAL."""
    found = list(_BUFFER.iter_unpack(data))
    if any(size > _MAX_SIZE for _, size in found):
        raise _failure(errno.EINVAL)
    return found


def answers(name_size: int, control_size: int, flags: int) -> list[tuple[int, bytes]]:
    """What recvmsg writes into the header: where in it, and what."""
    return [
        (_NAME_SIZE_AT, struct.pack("=I", name_size)),
        (_CONTROL_SIZE_AT, struct.pack("=Q", control_size)),
        (_FLAGS_AT, struct.pack("=i", flags)),
    ]


# -- ancillary data ---------------------------------------------------------------------------------------------------------


def _aligned(size: int) -> int:
    return (size + 7) & ~7


def ancillary(control: bytes, family: Family) -> Ancillary | None:
    """What a program wants with a datagram; None: nothing. OSError EINVAL, and ENODEV: it names an interface, of which it has none."""
    wanted: dict[str, int | str] = {}
    level_of_family = IPPROTO_IP if family == "inet" else IPPROTO_IPV6
    while len(control) >= _CONTROL.size:
        size, level, kind = _CONTROL.unpack_from(control)
        if not _CONTROL.size <= size <= len(control):
            raise _failure(errno.EINVAL)
        data = control[_CONTROL.size : size]
        control = control[_aligned(size) :]
        if level == level_of_family:
            wanted.update(_inet_item(kind, data) if family == "inet" else _inet6_item(kind, data))
        elif level == SOL_SOCKET and kind not in (_SCM_RIGHTS, _SCM_CREDENTIALS):  # which only unix sockets heed
            raise _failure(errno.EINVAL)
    return Ancillary(**wanted) if wanted else None  # type: ignore[arg-type]  # of the types that the items have


def _inet_item(kind: int, data: bytes) -> dict[str, int | str]:
    if kind == _IP_PKTINFO and len(data) == _PACKET_INFO.size:
        interface, own, _ = _PACKET_INFO.unpack(data)
        return _own_address(interface, socket.AF_INET, own)
    if kind == _IP_TTL and len(data) == _INT.size:
        return {"hops": _within(_INT.unpack(data)[0], 1)}
    if kind == _IP_TOS and len(data) in (1, _INT.size):
        return {"traffic_class": _within(data[0] if len(data) == 1 else _INT.unpack(data)[0], 0)}
    raise _failure(errno.EINVAL)


def _inet6_item(kind: int, data: bytes) -> dict[str, int | str]:
    if kind == _IPV6_PKTINFO and len(data) >= _PACKET_INFO6.size:
        own, interface = _PACKET_INFO6.unpack_from(data)
        return _own_address(interface, socket.AF_INET6, own)
    if kind in (_IPV6_HOPLIMIT, _IPV6_TCLASS) and len(data) == _INT.size:
        value = _within(_INT.unpack(data)[0], -1)
        return {} if value < 0 else {"hops" if kind == _IPV6_HOPLIMIT else "traffic_class": value}  # -1: the default
    raise _failure(errno.EINVAL)


def _own_address(interface: int, family: int, own: bytes) -> dict[str, int | str]:
    if interface:
        raise _failure(errno.ENODEV)
    return {"local": socket.inet_ntop(family, own)} if any(own) else {}


def _within(value: int, least: int) -> int:
    if not least <= value <= 255:
        raise _failure(errno.EINVAL)
    return value


def control(told: Ancillary | None, family: Family, asked: Collection[str], room: int) -> tuple[bytes, bool]:
    """What a program is told with a datagram, as far as it `asked` by these options; and whether that was more than there is room for.

    An item that does not fit is cut, as the kernel does it.
    """
    written, cut = b"", False
    for level, kind, data in _items(told, family, asked) if told is not None else ():
        left = room - len(written)
        if left < _CONTROL.size:
            return written, True
        size = min(_CONTROL.size + len(data), left)
        cut = cut or size < _CONTROL.size + len(data)
        item = _CONTROL.pack(size, level, kind) + data[: size - _CONTROL.size]
        written += item.ljust(min(_aligned(_CONTROL.size + len(data)), left), b"\0")
    return written, cut


def _items(told: Ancillary, family: Family, asked: Collection[str]) -> list[tuple[int, int, bytes]]:
    """In the kernel's order."""
    items: list[tuple[int, int, bytes]] = []
    if family == "inet":
        if told.local is not None and "IP_PKTINFO" in asked:
            own = socket.inet_pton(socket.AF_INET, told.local)
            items.append((IPPROTO_IP, _IP_PKTINFO, _PACKET_INFO.pack(0, own, own)))
        if told.hops is not None and "IP_RECVTTL" in asked:
            items.append((IPPROTO_IP, _IP_TTL, _INT.pack(told.hops)))
        if told.traffic_class is not None and "IP_RECVTOS" in asked:
            items.append((IPPROTO_IP, _IP_TOS, bytes([told.traffic_class])))
        return items
    if told.local is not None and "IPV6_RECVPKTINFO" in asked:
        own = socket.inet_pton(socket.AF_INET6, told.local)
        items.append((IPPROTO_IPV6, _IPV6_PKTINFO, _PACKET_INFO6.pack(own, 0)))
    if told.hops is not None and "IPV6_RECVHOPLIMIT" in asked:
        items.append((IPPROTO_IPV6, _IPV6_HOPLIMIT, _INT.pack(told.hops)))
    if told.traffic_class is not None and "IPV6_RECVTCLASS" in asked:
        items.append((IPPROTO_IPV6, _IPV6_TCLASS, _INT.pack(told.traffic_class)))
    return items
