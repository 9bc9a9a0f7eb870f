"""What waits in a network namespace's sockets, as the kernel tells by sock_diag(7)."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator

# linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBHIIIII")  # struct unix_diag_req: family, protocol, 0, states, inode, show, cookie
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_SOCK_DIAG_BY_FAMILY, _DUMP = 20, 0x301
_ERROR, _DONE = 2, 3
_SHOW = 0x34  # peer, lengths of queues, memory
_PEER, _LENGTHS, _MEMORY = 2, 4, 5
_UNIX_DIAG_MESSAGE = 16  # bytes of struct unix_diag_msg
# linux/netlink_diag.h
_NETLINK_REQUEST = struct.Struct("=BBHIIII")  # struct netlink_diag_req: family, protocol, 0, inode, show, cookie
_NETLINK_SHOW, _NETLINK_MEMORY = 1, 0
_NETLINK_DIAG_MESSAGE = 28  # bytes of struct netlink_diag_msg
_SENT = 8  # in _MEMORY: SK_MEMINFO_WMEM_ALLOC, of what was sent and not yet received
_MAX_MESSAGE = 1 << 15  # the kernel fills no more at once
_BUFFER = "/proc/sys/net/core/wmem_default"  # bytes that may wait on their way from one socket; before Linux 6.7 it is not seen from here
# The most that may be asked for in its place, of which the kernel gives twice as much, and no more than twice the server's wmem_max. socket(7)
LARGEST_BUFFER = 1 << 18
_SMALLEST = 1 << 10  # bytes: more than a message of one byte takes


def queued(diagnosis: socket.socket, most: int = 2 * LARGEST_BUFFER) -> int | None:
    """Bytes that wait in unix sockets; None where the kernel does not tell. `diagnosis`: see namespaces.open_diagnosis.

    What was sent and not yet received, its sender has; if that is closed, its receiver, of which only the length is told: that counts
    as if it were sent byte by byte. `most`: that a sender can have.
    """
    found = 0
    try:
        for data, at, end in _dump(diagnosis, _REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _SHOW, 0, 0)):
            sent, received, peer = _socket_in(data, at + _UNIX_DIAG_MESSAGE, end)
            found += sent + (0 if peer else min(received * _SMALLEST, most))
    except _NotToldError:
        return None
    return found


def listed(diagnosis: socket.socket) -> int | None:
    """Bytes that wait in netlink sockets, which programs ask for lists of interfaces; None where the kernel does not tell."""
    found = 0
    try:
        for data, start, end in _dump(
            diagnosis, _NETLINK_REQUEST.pack(socket.AF_NETLINK, 0, 0, 0, _NETLINK_SHOW, 0, 0)
        ):
            at = start + _NETLINK_DIAG_MESSAGE
            while at < end:
                length, kind = _ATTRIBUTE.unpack_from(data, at)
                if kind == _NETLINK_MEMORY:
                    found += _number(data, at + _ATTRIBUTE.size)  # SK_MEMINFO_RMEM_ALLOC
                at += _aligned(length)
    except _NotToldError:
        return None
    return found


class _NotToldError(Exception):
    """The kernel knows no answer."""


def _dump(diagnosis: socket.socket, request: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Of each socket what there is to say: where it begins and ends in which bytes. _NotToldError."""
    diagnosis.send(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _DUMP, 1, 0) + request)
    while True:
        data = diagnosis.recv(_MAX_MESSAGE)
        at = 0
        while at < len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if kind == _ERROR:
                raise _NotToldError
            if kind == _DONE:
                return
            yield data, at + _HEADER.size, at + length
            at += _aligned(length)


def _socket_in(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Of one socket: bytes that what it sent takes, bytes that it has not yet received, and its peer's inode, 0 for none."""
    sent = received = peer = 0
    while at < end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        content = at + _ATTRIBUTE.size
        if kind == _PEER:
            peer = _number(data, content)
        elif kind == _LENGTHS:
            received = _number(data, content)
        elif kind == _MEMORY:
            sent = _number(data, content + _SENT)
        at += _aligned(length)
    return sent, received, peer


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], sys.byteorder)


def _aligned(length: int) -> int:
    """To where the next one begins; both kinds' least length is 4."""
    return max(length + 3 & ~3, 4)


def most_sent() -> int:
    """Bytes that may wait on their way from one socket."""
    try:
        with open(_BUFFER, encoding="ascii") as file:
            return max(int(file.read()), 2 * LARGEST_BUFFER)
    except (OSError, ValueError):
        return 2 * LARGEST_BUFFER
