"""What the launcher says to an enclave that it has started, and hears from it, before the relay has its control socket.

    launcher ── TOKEN_SIZE random bytes, on standard input ──► enclave
             ◄── the port that it listens at, a line on standard output ──
             ── a TCP connection, which begins with the token, and is the control socket; Order ──►
             ◄── READY or FAILED, as a zygote says them ──

Nothing of it is secret, or believed: the enclave verifies the image that it is handed, and the client the enclave.
"""

from __future__ import annotations

import socket
import struct

import msgspec

from adyton.errors import RemoteProtocolError

TOKEN_SIZE = 32  # bytes
MAX_ORDER = 1 << 29  # bytes; twice as much is in the enclave's memory for a moment
MAX_ANSWER = 1 << 13
_LENGTH = struct.Struct("<Q")


class Order(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`manifest`: of the image, as OCI has it; `blobs`: its config and layers, in any order; `grace`: see LaunchRequest."""

    manifest: bytes
    signatures: list[bytes]
    blobs: list[bytes]
    grace: float


def say(sock: socket.socket, message: bytes) -> None:
    """OSError."""
    sock.sendall(_LENGTH.pack(len(message)))
    sock.sendall(message)


def hear(sock: socket.socket, most: int) -> bytearray:
    """The next message; b"" at the end. OSError; RemoteProtocolError: it has more than `most` bytes."""
    head = exactly(sock, _LENGTH.size)
    if not head:
        return head
    (length,) = _LENGTH.unpack(head)
    if length > most:
        raise RemoteProtocolError(f"a message of {length} bytes; at most {most} are taken")
    return exactly(sock, length)


def exactly(sock: socket.socket, size: int) -> bytearray:
    """So many bytes; b"" if the end comes before. OSError."""
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = sock.recv_into(rest)
        if not count:
            return bytearray()
        rest = rest[count:]
    return data
