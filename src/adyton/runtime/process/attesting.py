"""How a supervisor asks for reports of the hardware, and for its sealing keys.

    supervisor, before its guest starts ── the identity, and a socket ──► attester (see there)
    on that socket                      ◄── what state the platform is in, of which sealing keys are now; or why there are none
                                        ── 64 bytes of a connection, and a socket for the answer ──►
                                        ◄── a report over both, or nothing ──
                                        ── the header of what is sealed, and a socket for the answer ──►
                                        ◄── its key, or why it has none

With the first it gives away the socket that it was started with: whoever takes it over from its guest has no reports made for another image's identity
than the one that it had verified, and no keys of another's. A guest has none of these sockets.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adyton.attestation.identity import EnclaveIdentity

MAX_MESSAGE = 1024  # bytes: an identity, in MessagePack
CONNECTION_SIZE = 64  # bytes, see binding.connection_digest
MAX_ANSWER = 1 << 18  # bytes: a HardwareReport in MessagePack; in one message, for which a socket must have room


def enrol(asking: socket.socket, identity: EnclaveIdentity) -> socket.socket:
    """Where reports and keys for this identity can be asked for; closes `asking`. OSError: the attester has ended."""
    import msgspec  # which the zygote has later than this

    with asking:
        return _sent(asking, msgspec.msgpack.encode(identity))


def ask(enrolled: socket.socket, question: bytes) -> socket.socket:
    """Ask for a report over a connection, or for the key of a header: where it will come; nothing does if there is none. Never waits. OSError."""
    return _sent(enrolled, question)


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
