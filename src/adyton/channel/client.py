"""The end of an attested channel that dials."""

from __future__ import annotations

from adyton.attestation.binding import DIALLING_PROGRAM_ROLE, DIALLING_ROLE, ENCLAVE_ROLE, PROGRAM_ROLE
from adyton.channel.credential import Credential
from adyton.channel.events import Closed, Data, Established, Event, EvidenceReceived, EvidenceRequested
from adyton.channel.machine import Channel
from adyton.channel.steps import Part
from adyton.channel.tls import Tls
from adyton.errors import LocalProtocolError

__all__ = ["ClientChannel", "Closed", "Data", "Established", "Event", "EvidenceReceived", "EvidenceRequested"]

_PARTS: dict[tuple[bool, bool], Part | None] = {  # by whether it verifies, and proves
    (True, False): "verifies",
    (False, True): "proves",
    (True, True): "verifies, then proves",
    (False, False): None,
}


class ClientChannel(Channel):
    """Of a client, which verifies the enclave that it dials; or of an enclave that dials, and proves what it is; or both.

    Events: EvidenceReceived, which the owner judges against `report_data` before it calls `accept`; EvidenceRequested, which it answers
    with `provide`; Established, if it proves; then Data; Closed.
    """

    def __init__(
        self,
        *,
        verifies: bool = True,
        identity_digest: bytes | None = None,
        credential: Credential | None = None,
        nonce: bytes | None = None,
        programs: bool = False,
    ) -> None:
        """`identity_digest`: of the identity that our evidence will carry, 32 bytes; None: we prove nothing.

        `credential`: what who proves nothing is known by to the other end, if by anything; who does has a fresh one. `nonce`: 32 random bytes
        that are never used again; None: from the operating system.
        `programs`: both ends are enclaves' programs, and not their supervisors.
        """
        proves = identity_digest is not None
        if proves and credential is not None:
            raise LocalProtocolError("who proves what it is has a key that no other connection ever has")
        tls = Tls.client(Credential.fresh() if proves else credential)
        roles = (DIALLING_PROGRAM_ROLE, PROGRAM_ROLE) if programs else (DIALLING_ROLE, ENCLAVE_ROLE)
        super().__init__(tls, _PARTS[verifies, proves], roles, identity_digest, nonce)
