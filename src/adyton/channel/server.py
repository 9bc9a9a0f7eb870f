"""The enclave's end of an attested channel."""

from __future__ import annotations

from adyton.attestation.binding import ENCLAVE_ROLE, VERSION, bound_to, connection_digest
from adyton.attestation.evidence import MAX_EVIDENCE
from adyton.channel import messages
from adyton.channel.events import Closed, Data, Established, Event, EvidenceRequested
from adyton.channel.machine import SERVER_STEPS, Channel
from adyton.channel.tls import Tls
from adyton.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["Closed", "Data", "Established", "Event", "EvidenceRequested", "ServerChannel"]


class ServerChannel(Channel):
    """Events: EvidenceRequested, which the owner answers with `provide`; Established; then Data; Closed."""

    def __init__(self, identity_digest: bytes) -> None:
        """`identity_digest`: of the identity that the evidence will carry, 32 bytes."""
        super().__init__(Tls.server(), SERVER_STEPS)
        self._identity_digest = identity_digest

    def provide(self, evidence: bytes) -> None:
        """Send evidence, unless the channel has ended meanwhile. LocalProtocolError if it was not asked for, or is empty or too large."""
        if not 0 < len(evidence) <= MAX_EVIDENCE:
            raise LocalProtocolError(f"evidence has 1 to {MAX_EVIDENCE} bytes, not {len(evidence)}")
        self._say("provide", messages.Evidence(evidence))

    def _handshake_finished(self) -> None:
        pass  # the client asks first

    def _message_received(self, message: messages.Message) -> Event:
        if not isinstance(message, messages.AttestRequest):
            return Established()
        if message.version != VERSION:
            raise RemoteProtocolError(
                f"the client speaks version {message.version} of the attested channel, and this enclave version {VERSION}: "
                "use the same release on both sides"
            )
        connection = connection_digest(
            role=ENCLAVE_ROLE,
            nonce=message.nonce,
            exporter=self._tls.exporter(ENCLAVE_ROLE),
            key_digest=self._tls.own_key_digest(),
        )
        return EvidenceRequested(bound_to(connection, self._identity_digest), connection)
