"""The end of an attested channel that listens."""

from __future__ import annotations

from adyton.attestation.binding import DIALLING_PROGRAM_ROLE, DIALLING_ROLE, ENCLAVE_ROLE, PROGRAM_ROLE
from adyton.channel.credential import Credential
from adyton.channel.events import Closed, Data, Established, Event, EvidenceReceived, EvidenceRequested
from adyton.channel.machine import Channel
from adyton.channel.steps import Part
from adyton.channel.tls import Tls
from adyton.errors import LocalProtocolError

__all__ = ["Closed", "Data", "Established", "Event", "EvidenceReceived", "EvidenceRequested", "ServerChannel"]

_PARTS: dict[tuple[bool, bool], Part | None] = {  # by whether it verifies, and proves
    (True, False): "verifies",
    (False, True): "proves",
    (True, True): "proves, then verifies",
    (False, False): None,
}


class ServerChannel(Channel):
    """Of an enclave, which proves to its client what it is; or of who verifies the enclaves that dial it; or both.

    Events: EvidenceRequested, which the owner answers with `provide`; EvidenceReceived, which it judges against `report_data` before it
    calls `accept`; Established, if it proves only; then Data; Closed.
    """

    def __init__(
        self,
        identity_digest: bytes | None = None,
        *,
        verifies: bool = False,
        credential: Credential | None = None,
        nonce: bytes | None = None,
        programs: bool = False,
    ) -> None:
        """As of `ClientChannel`. Without a `credential` it has a fresh key."""
        proves = identity_digest is not None
        if proves and credential is not None:
            raise LocalProtocolError("who proves what it is has a key that no other connection ever has")
        tls = Tls.server(credential, must_have_key=verifies)
        roles = (PROGRAM_ROLE, DIALLING_PROGRAM_ROLE) if programs else (ENCLAVE_ROLE, DIALLING_ROLE)
        super().__init__(tls, _PARTS[verifies, proves], roles, identity_digest, nonce)
