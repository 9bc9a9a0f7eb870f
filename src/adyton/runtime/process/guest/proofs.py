"""The guest's side of proving what it is on a channel of its own: it tells what binds the evidence to that, and is given the evidence.

    guest → supervisor    Binding(role, nonce, exporter, digests of the two keys)
    supervisor → guest    GIVEN ‖ evidence, or NONE

Each proof has a socket of its own (SEQPACKET), so any thread may ask at any time. The supervisor makes the 64 bytes of report data itself, from that and the
identity that it knows, and takes no role but a program's: a program cannot have evidence made that speaks for its supervisor.
"""

from __future__ import annotations

import socket
import sys
from typing import Annotated, Any, Literal

import msgspec

from adyton.attestation.evidence import MAX_EVIDENCE, Bound
from adyton.attestation.identity import EnclaveIdentity
from adyton.errors import ClosedError, PlatformError, ResourceLimitError
from adyton.runtime.process.guest.conversation import Conversation
from adyton.runtime.process.root import CHANNEL_LIBRARIES

PROVE = b"prove"  # guest → supervisor, on the control socket: a socket for one proof, attached
GIVEN, NONE = b"\0", b"\1"
MAX_PACKET = 1 + MAX_EVIDENCE

Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Binding(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """See adyton.attestation.binding. The roles: its PROGRAM_ROLE and DIALLING_PROGRAM_ROLE."""

    role: Literal["enclave program", "enclave program that dials"]
    nonce: Bytes32
    exporter: Bytes32
    key_digest: Bytes32
    verifier_key_digest: Bytes32


class SupervisorProver:
    """A trusted.proving.Prover, by the supervisor at the other end of `control`."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._identity: EnclaveIdentity | None = None
        self.own_keys: set[bytes] = set()

    @property
    def identity(self) -> EnclaveIdentity:
        if self._identity is None:
            raise ClosedError("the enclave is not loaded")
        return self._identity

    @identity.setter
    def identity(self, identity: EnclaveIdentity | None) -> None:
        self._identity = identity

    def prepare(self) -> None:
        # An image that brings pyOpenSSL has its own, which is found first.
        sys.path.append(CHANNEL_LIBRARIES)
        try:
            import adyton.channel.client
            import adyton.channel.server  # noqa: F401
        finally:
            sys.path.remove(CHANNEL_LIBRARIES)

    def prove(self, bound: Bound, seconds: float) -> bytes:
        role: Any = bound.role
        binding = Binding(role, bound.nonce, bound.exporter, bound.key_digest, bound.verifier_key_digest)
        with Conversation(self._control, PROVE) as proof:
            answer = proof.exchange(msgspec.msgpack.encode(binding), MAX_PACKET, seconds)
        if not answer:
            raise ResourceLimitError(
                "the enclave has evidence made for as many connections as it may, or is ending: open fewer at once"
            )
        if answer[:1] != GIVEN:
            raise PlatformError("the enclave's platform gave no evidence: its server's standard error says why")
        return answer[1:]
