"""Evidence for channels that the guest's program opens. The guest is hostile here: it says to which connection of its own, and with nothing more. See guest.proofs."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from adyton.attestation.evidence import Bound
from adyton.channel.events import EvidenceRequested
from adyton.errors import RemoteProtocolError
from adyton.runtime.process.guest.proofs import GIVEN, NONE, Binding
from adyton.runtime.process.supervisor.guest_sockets import Answer, GuestSockets, Hear
from adyton.runtime.process.supervisor.loop import Callback, Loop
from adyton.runtime.process.supervisor.proving import Prove

MOST = 32  # proofs at a time; of more, the newest is not made
_MAX_BINDING = 512  # bytes
_DECODER: msgspec.msgpack.Decoder[Binding] = msgspec.msgpack.Decoder(Binding)


def requested(message: bytes, identity_digest: bytes) -> EvidenceRequested:
    """The evidence that a guest's message is about, of who it is. RemoteProtocolError: no guest of this runtime says that."""
    try:
        binding = _DECODER.decode(message)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"malformed binding of a program's channel: {error}") from error
    return EvidenceRequested.of(Bound(**msgspec.structs.asdict(binding)), identity_digest)


def proof_links(
    loop: Loop, guarded: Callable[[Callback], Callback], identity_digest: bytes, prove: Prove
) -> GuestSockets:
    """The sockets on which the guest has evidence made, once on each."""

    def begin() -> Hear:
        asked = False

        def hear(message: bytes, answer: Answer) -> None:
            nonlocal asked
            if asked:
                raise RemoteProtocolError("its guest asks twice where evidence is made once")
            asked = True
            wanted = requested(message, identity_digest)
            prove(loop, wanted, lambda evidence: answer(NONE if evidence is None else GIVEN + evidence))

        return hear

    return GuestSockets(loop, guarded, begin, MOST, _MAX_BINDING)
