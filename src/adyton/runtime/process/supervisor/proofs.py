"""Evidence for channels that the guest's program opens. The guest is hostile here: it says to which connection of its own, and with nothing more. See guest.proofs."""

from __future__ import annotations

import socket
from collections.abc import Callable

import msgspec

from adyton.attestation.evidence import Bound
from adyton.errors import RemoteProtocolError
from adyton.runtime.process.guest.proofs import GIVEN, MAX_PACKET, NONE, Binding
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.proving import Prove

MOST = 32  # proofs at a time; of more, the newest is not made
_MAX_BINDING = 512  # bytes
_DECODER: msgspec.msgpack.Decoder[Binding] = msgspec.msgpack.Decoder(Binding)


def report_data(message: bytes, identity_digest: bytes) -> bytes:
    """What a guest's message has evidence bound to, along with who it is. RemoteProtocolError: no guest of this runtime says that."""
    try:
        binding = _DECODER.decode(message)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"malformed binding of a program's channel: {error}") from error
    return Bound(**msgspec.structs.asdict(binding)).report_data(identity_digest)


class ProofLinks:
    """The sockets on which the guest has evidence made. `guarded`: what an error in a step does."""

    def __init__(
        self,
        loop: Loop,
        identity_digest: bytes,
        prove: Prove,
        guarded: Callable[[Callable[[], None]], Callable[[], None]],
    ) -> None:
        self._loop = loop
        self._identity_digest = identity_digest
        self._prove = prove
        self._guarded = guarded
        self._sockets: set[socket.socket] = set()

    def take(self, sock: socket.socket) -> None:
        """Make one proof on it."""
        if len(self._sockets) >= MOST:
            sock.close()  # its own trouble
            return
        self._sockets.add(sock)
        self._loop.read(sock, self._guarded(lambda: self._from(sock)))

    def _from(self, sock: socket.socket) -> None:
        try:
            message = sock.recv(_MAX_BINDING, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        self._loop.forget(sock)  # it says nothing more, and whether it waits for the answer does not matter
        if not message:
            self._drop(sock)
            return
        bound = report_data(message, self._identity_digest)
        self._prove(self._loop, bound, lambda evidence: self._answer(sock, evidence))

    def _answer(self, sock: socket.socket, evidence: bytes | None) -> None:
        if sock not in self._sockets:
            return
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_PACKET)
            sock.send(NONE if evidence is None else GIVEN + evidence, socket.MSG_DONTWAIT)
        except OSError:
            pass  # it is gone, or does not take its answers
        self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        self._sockets.discard(sock)
        sock.close()

    def close(self) -> None:
        for sock in self._sockets:
            self._loop.forget(sock)
            sock.close()
        self._sockets.clear()
