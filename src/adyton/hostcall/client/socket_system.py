"""Sockets of this machine's system in the terms of the ABI, and back."""

from __future__ import annotations

import errno
import socket
from typing import Any

from adyton.hostcall import sockets as net
from adyton.hostcall.client.socket_options import set_option

_FAMILIES: dict[net.Family, int] = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
_KINDS: dict[net.Kind, int] = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}
_NAMES = {number: name for name in sorted(net.ERRNO_NAMES) if (number := getattr(errno, name, None)) is not None}


def open_socket(new: net.New) -> socket.socket:
    """A new one, non-blocking, with its options. OSError as the system has it."""
    sock = socket.socket(_FAMILIES[new.family], _KINDS[new.kind])
    try:
        sock.setblocking(False)
        for option in new.options:
            set_option(sock, option)
    except BaseException:
        sock.close()
        raise
    return sock


def is_bound(sock: socket.socket) -> bool:
    """Whether it has a local address."""
    try:
        return bool(sock.getsockname()[1])
    except OSError:
        return False


def check_way(sock: socket.socket, new: net.New, peer: net.Endpoint) -> None:
    """OSError as the system has it for who sends a datagram to `peer`, though nothing is sent.

    There is no way, or it is a broadcast address, and SO_BROADCAST is not set. To connect a datagram socket is to look for the way.
    """
    if new.kind != "datagram":
        raise OSError(errno.EOPNOTSUPP, "not datagrams")
    host, _, *rest = sock.getsockname()
    with open_socket(new) as another:
        another.bind((host, 0, *rest))
        another.connect((peer.host, peer.port))


def endpoint(address: Any) -> net.Endpoint:
    """An address as Python has it, without its scope."""
    return net.Endpoint(address[0].partition("%")[0], address[1])


def name_of(error: OSError) -> str:
    """Its errno by name; EIO for what no answer may say."""
    return _NAMES.get(error.errno or 0, "EIO")
