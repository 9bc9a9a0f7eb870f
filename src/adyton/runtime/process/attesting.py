"""How a supervisor asks for reports of the hardware.

    supervisor, before its guest starts ── digest of the identity, and a socket ──► attester (see there)
    on that socket                      ── 64 bytes of a connection, and a socket for the answer ──►
                                        ◄── a report over both, or nothing ──

With the first it gives away the socket that it was started with: whoever takes it over from its guest has no reports made for another image's identity
than the one that it had verified. A guest has none of these sockets.
"""

from __future__ import annotations

import socket

DIGEST_SIZE = 32  # bytes, of an identity
CONNECTION_SIZE = 64  # bytes, see binding.connection_digest
MAX_ANSWER = 1 << 18  # bytes: a HardwareReport in MessagePack; in one message, for which a socket must have room


def enrol(asking: socket.socket, identity_digest: bytes) -> socket.socket:
    """Where reports for this identity can be asked for; closes `asking`. OSError: the attester has ended."""
    with asking:
        return _sent(asking, identity_digest)


def ask(enrolled: socket.socket, connection: bytes) -> socket.socket:
    """Ask for a report: where it will come; nothing does if there is none. Never waits. OSError."""
    return _sent(enrolled, connection)


def _sent(to: socket.socket, message: bytes) -> socket.socket:
    """The other end of a socket that goes along."""
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_ANSWER)
            socket.send_fds(to, [message], [other.fileno()], socket.MSG_DONTWAIT)
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
