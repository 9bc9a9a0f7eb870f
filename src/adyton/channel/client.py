"""The client's end of an attested channel."""

from __future__ import annotations

import os

from adyton.attestation.evidence import Bound
from adyton.attestation.binding import ENCLAVE_ROLE, NONCE_SIZE, VERSION, report_data
from adyton.channel import messages
from adyton.channel.events import Closed, Data, Event, EvidenceReceived
from adyton.channel.machine import CLIENT_STEPS, Channel
from adyton.channel.tls import Tls
from adyton.errors import LocalProtocolError

__all__ = ["ClientChannel", "Closed", "Data", "Event", "EvidenceReceived"]


class ClientChannel(Channel):
    """Events: EvidenceReceived, which the owner judges against `report_data` before it calls `accept`; then Data; Closed."""

    def __init__(self, *, nonce: bytes | None = None) -> None:
        """`nonce`: 32 random bytes that are never used again; None: from the operating system."""
        if nonce is not None and len(nonce) != NONCE_SIZE:
            raise LocalProtocolError(f"a nonce has {NONCE_SIZE} bytes, not {len(nonce)}")
        super().__init__(Tls.client(), CLIENT_STEPS)
        self._nonce = nonce or os.urandom(NONCE_SIZE)
        self._exporter = b""
        self._key_digest = b""

    @property
    def awaits_evidence(self) -> bool:
        """The enclave was asked for it, on a connection that works, and has not answered."""
        return self._state == "evidence"

    def report_data(self, identity_digest: bytes) -> bytes:
        """What the evidence of an enclave of this identity must be bound to (64 bytes), once the handshake is over."""
        if not self._exporter:
            raise LocalProtocolError("there is nothing to bind evidence to before the handshake is over")
        return report_data(
            role=ENCLAVE_ROLE,
            nonce=self._nonce,
            exporter=self._exporter,
            key_digest=self._key_digest,
            identity_digest=identity_digest,
        )

    @property
    def bound(self) -> Bound:
        """The same parts of it, for evidence that is to be judged elsewhere."""
        if not self._exporter:
            raise LocalProtocolError("there is nothing to bind evidence to before the handshake is over")
        return Bound(ENCLAVE_ROLE.decode(), self._nonce, self._exporter, self._key_digest)

    def accept(self) -> None:
        """The evidence has been verified and validated: data may flow, unless the channel has ended meanwhile.

        LocalProtocolError if there is no evidence to accept.
        """
        self._say("accept", messages.Accept())

    def _handshake_finished(self) -> None:
        self._exporter = self._tls.exporter(ENCLAVE_ROLE)
        self._key_digest = self._tls.peer_key_digest()
        self._tls.send(messages.encode(messages.AttestRequest(VERSION, self._nonce)))

    def _message_received(self, message: messages.Message) -> Event:
        assert isinstance(message, messages.Evidence)
        return EvidenceReceived(message.evidence)
