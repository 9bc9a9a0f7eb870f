"""How an enclave's supervisor is handed the connections of its client, one after the other: each is a socket that is sent to it.

    relay ── control socket (SEQPACKET): CONNECTION + a descriptor, for each ──► supervisor

The end of the control socket is the end of the enclave; that of a connection is not.
"""

from __future__ import annotations

import socket

CONNECTION = b"connection"
_BUFFER = (
    1 << 19
)  # bytes between relay and supervisor, about as many as either reads at once; or as much as the system allows


def control_pair() -> tuple[socket.socket, socket.socket]:
    """The relay's end, and the supervisor's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def connect(control: socket.socket) -> socket.socket:
    """A new connection to the supervisor behind the control socket. OSError: it is gone."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        for each in (ours, theirs):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        try:
            socket.send_fds(control, [CONNECTION], [theirs.fileno()], socket.MSG_DONTWAIT)
        except OSError:
            ours.close()
            raise
    return ours


def accept(control: socket.socket) -> socket.socket | None:
    """What came, on the supervisor's end, which can be read; None: the control socket has ended."""
    message, descriptors, _, _ = socket.recv_fds(control, 64, 1)
    if message != CONNECTION or len(descriptors) != 1:
        return None
    return socket.socket(fileno=descriptors[0])
