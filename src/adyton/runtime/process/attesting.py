"""How a supervisor asks for a report of the hardware: on a socket that it was started with, of which its guest has nothing.

supervisor ── 64 bytes, and a socket for the answer ──► attester (see there) ──► hardware
           ◄───────── a report, or nothing ────────────
"""

from __future__ import annotations

import socket

MAX_ANSWER = 1 << 17  # bytes: a HardwareReport in MessagePack


def ask(asking: socket.socket, report_data: bytes) -> socket.socket:
    """Ask for a report: where it will come; nothing does if there is none. Never waits. OSError."""
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with other:
            socket.send_fds(asking, [report_data], [other.fileno()], socket.MSG_DONTWAIT)
    except BaseException:
        mine.close()
        raise
    return mine


_asking: socket.socket | None = None


def connect(asking: socket.socket | None) -> None:
    """Let this process, a new supervisor, ask there; None: its enclave is simulated."""
    global _asking  # noqa: PLW0603 - there is one enclave
    _asking = asking


def client() -> socket.socket | None:
    """What `connect` was given."""
    return _asking
