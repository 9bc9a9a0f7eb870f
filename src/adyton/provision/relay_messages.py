"""What a spawner and the relay processes that it has started say to each other, over a SEQPACKET socket. Without grpc.

    spawner ── Carry + the enclave's control socket, for each ──► relay process
            ◄── Ready, or Failed; then Carried or Missed for each, and Finished when it is over; Leaving

The end of the socket is the end of the relay process, and of the enclaves whose relays it has.
"""

from __future__ import annotations

import socket
from typing import Any

import msgspec

MESSAGE_SIZE = 1 << 16
ENCLAVES = 256  # of one process, which costs 22 MiB and some 20 wake-ups a second when all are idle; what kills it ends them all


class Dial(msgspec.Struct, frozen=True):
    """A client that waits for its proxy server. `target` as gRPC takes it; `certificate` in PEM, empty for none."""

    target: str
    session: bytes
    certificate: bytes


class Carry(msgspec.Struct, frozen=True, tag=True):
    """Relay between an enclave, whose control socket (see `handing_over`) comes with this, and its client.

    `kept`: another process has its client, and nobody joins it here: it is asked for evidence, now and then.
    """

    number: int
    supervisor: int  # its process id
    session: bytes  # its secret
    dial: Dial | None  # instead of listening
    kept: bool = False


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The first message: it listens at that port; 0: it dials."""

    port: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The first message: it cannot listen."""


class Carried(msgspec.Struct, frozen=True, tag=True):
    """The client may come, or has been reached."""

    number: int


class Missed(msgspec.Struct, frozen=True, tag=True):
    """The client has not been reached."""

    number: int
    why: str


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The enclave has ended, and its client been told."""

    number: int


class Leaving(msgspec.Struct, frozen=True, tag=True):
    """A signal ends it, when those that it has are over; it is to be given no more."""


_TO_RELAYS = msgspec.msgpack.Decoder(Carry)
_FROM_RELAYS: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    Ready | Failed | Carried | Missed | Finished | Leaving
)


def say(sock: socket.socket, message: msgspec.Struct) -> None:
    """OSError: the other end is gone."""
    sock.send(msgspec.msgpack.encode(message))


def order(sock: socket.socket, carry: Carry, control: int) -> None:
    """Give it one more; `control`: descriptor of the enclave's control socket. OSError: it is gone, or stands still."""
    socket.send_fds(sock, [msgspec.msgpack.encode(carry)], [control], socket.MSG_DONTWAIT)


def ordered(sock: socket.socket) -> tuple[Carry, socket.socket] | None:
    """The next one; None: the spawner has ended."""
    try:
        message, descriptors, _, _ = socket.recv_fds(sock, MESSAGE_SIZE, 1)
    except ConnectionError:  # it was killed, and had not read all
        return None
    if not message:
        return None
    (control,) = descriptors
    return _TO_RELAYS.decode(message), socket.socket(fileno=control)


def answered(sock: socket.socket) -> Any:
    """The relay process's next message; None: it has ended."""
    try:
        message = sock.recv(MESSAGE_SIZE)
    except ConnectionError:
        return None
    return _FROM_RELAYS.decode(message) if message else None
