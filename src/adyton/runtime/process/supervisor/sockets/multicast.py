"""What a program says of multicast groups and interfaces in options of its sockets. Pure; for every architecture of the table.

An enclave knows no interface of the client's: the client's system chooses, and any other choice is an interface that is not there.
Source: ip(7), ipv6(7), linux/in.h (struct ip_mreq, struct ip_mreqn), linux/in6.h (struct ipv6_mreq), the kernel's ip_setsockopt.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from adyton.hostcall.sockets import Family

ANY_INTERFACE = 0
_ADDRESS = 4  # bytes of struct in_addr
_MEMBERSHIP = struct.Struct("=4s4s")  # group, own address
_MEMBERSHIP_AT = struct.Struct("=4s4si")  # and an interface's number
_MEMBERSHIP6 = struct.Struct("=16si")  # group, an interface's number


def _failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def group(data: bytes, family: Family) -> str:
    """The group that a socket joins or leaves. OSError: EINVAL (it is none), ENODEV (on an interface of the program's choice)."""
    if family == "inet":
        if len(data) < _MEMBERSHIP.size:
            raise _failure(errno.EINVAL)
        chosen = any(data[_ADDRESS : _MEMBERSHIP_AT.size])
        address, is_group = data[:_ADDRESS], data[0] >> 4 == 0xE
    else:
        if len(data) < _MEMBERSHIP6.size:
            raise _failure(errno.EINVAL)
        address, interface = _MEMBERSHIP6.unpack_from(data)
        chosen, is_group = interface != ANY_INTERFACE, address[0] == 0xFF
    if not is_group:
        raise _failure(errno.EINVAL)
    if chosen:
        raise _failure(errno.ENODEV)
    return socket.inet_ntop(socket.AF_INET if family == "inet" else socket.AF_INET6, address)


def check_interface(data: bytes, family: Family) -> None:
    """From which datagrams to groups are to go out. OSError: EINVAL, EADDRNOTAVAIL or ENODEV (one of the program's choice)."""
    if len(data) < _ADDRESS:
        raise _failure(errno.EINVAL)
    if family == "inet":
        # An address alone, or what a membership has: there it comes after a group.
        chosen = data[_ADDRESS : _MEMBERSHIP_AT.size] if len(data) >= _MEMBERSHIP.size else data[:_ADDRESS]
        if any(chosen):
            raise _failure(errno.EADDRNOTAVAIL)
    elif any(data[:_ADDRESS]):
        raise _failure(errno.ENODEV)
