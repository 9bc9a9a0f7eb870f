"""How an enclave's supervisor is handed the connections of its client, one after the other: each is a socket that is sent to it.

    relay ── control socket (SEQPACKET): CONNECTION + a descriptor, for each ──► supervisor

One that no descriptor can be sent to (in an SGX enclave) is told a name, and dialled:

    relay ── control socket (TCP, over loopback): NAME_SIZE random bytes, for each ──► supervisor's door
          ── a new one, to the same address, which begins with those ──►

The names keep apart whom the relay lets in, and whoever else is on the machine; who the client is, the channel says.
The end of the control socket is the end of the enclave; that of a connection is not.
"""

from __future__ import annotations

import os
import socket

CONNECTION = b"connection"
NAME_SIZE = 16  # bytes
_BUFFER = (
    1 << 19
)  # bytes between relay and supervisor, about as many as either reads at once; or as much as the system allows
_DIAL_SECONDS = 5.0


def control_pair() -> tuple[socket.socket, socket.socket]:
    """The relay's end, and the supervisor's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def connect(control: socket.socket) -> socket.socket:
    """A new connection to the supervisor behind the control socket. OSError: it is gone."""
    if control.family != socket.AF_UNIX:
        return _dial(control)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        for each in (ours, theirs):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        try:
            hand_over(control, theirs)
        except OSError:
            ours.close()
            raise
    return ours


def hand_over(control: socket.socket, connection: socket.socket) -> None:
    """A connection that there is already. OSError."""
    socket.send_fds(control, [CONNECTION], [connection.fileno()], socket.MSG_DONTWAIT)


def _dial(control: socket.socket) -> socket.socket:
    name = os.urandom(NAME_SIZE)
    control.send(name, socket.MSG_DONTWAIT)
    connection = socket.create_connection(control.getpeername(), _DIAL_SECONDS)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(name)
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


def accept(control: socket.socket) -> socket.socket | None:
    """What came, on the supervisor's end, which can be read; None: the control socket has ended."""
    message, descriptors, _, _ = socket.recv_fds(control, 64, 1)
    if message != CONNECTION or len(descriptors) != 1:
        return None
    return socket.socket(fileno=descriptors[0])
