"""Socket addresses of Linux, as system calls carry them, and the ABI's endpoints. Pure; for every architecture of the table.

Source: linux/in.h (sockaddr_in), linux/in6.h (sockaddr_in6), inet(3). The scope of a link-local address is dropped: it numbers an interface
of the client's, which the enclave does not know.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from adyton.hostcall.sockets import Endpoint, Family

UNSPECIFIED = 0  # AF_UNSPEC: "no peer any more", in connect
MAX_LENGTH = 128  # sizeof(struct sockaddr_storage)

_FAMILY = struct.Struct("=H")
_INET = struct.Struct("=H2s4s8x")
_INET6 = struct.Struct("=H2s4x16s4x")
_LEAST_INET6 = 24  # SIN6_LEN_RFC2133: the scope may be missing
_NUMBERS: dict[Family, int] = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
ANY: dict[Family, Endpoint] = {"inet": Endpoint("0.0.0.0", 0), "inet6": Endpoint("::", 0)}  # noqa: S104 - not bound here


def family_of(data: bytes) -> int:
    """The family that an address says it is of; OSError EINVAL."""
    if len(data) < _FAMILY.size:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return int(_FAMILY.unpack_from(data)[0])


def parse(data: bytes, family: Family) -> Endpoint:
    """The endpoint of an address of `family`. OSError: EINVAL (too short), EAFNOSUPPORT (of another family)."""
    layout, least = (_INET, _INET.size) if family == "inet" else (_INET6, _LEAST_INET6)
    if family_of(data) != _NUMBERS[family]:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    if len(data) < least:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    _, port, host = layout.unpack_from(data.ljust(layout.size, b"\0"))
    return Endpoint(socket.inet_ntop(_NUMBERS[family], host), int.from_bytes(port, "big"))


def pack(endpoint: Endpoint, family: Family) -> bytes:
    """The address of an endpoint whose host is of `family`."""
    layout = _INET if family == "inet" else _INET6
    number = _NUMBERS[family]
    return layout.pack(number, endpoint.port.to_bytes(2, "big"), socket.inet_pton(number, endpoint.host))
