"""What a channel tells its owner."""

from __future__ import annotations

from typing import Self

import msgspec

from adyton.attestation.evidence import Bound


class EvidenceReceived(msgspec.Struct, frozen=True):
    """To a verifier: the peer's evidence, hostile until verified and validated; then `accept`, or `close`."""

    evidence: bytes


class EvidenceRequested(msgspec.Struct, frozen=True):
    """To a prover: make evidence over these 64 bytes, and `provide` it. `connection`: what of them is the connection's, see `binding`."""

    report_data: bytes
    connection: bytes

    @classmethod
    def of(cls, bound: Bound, identity_digest: bytes) -> Self:
        """Over what binds evidence of that identity to a connection."""
        return cls(bound.report_data(identity_digest), bound.connection())


class Established(msgspec.Struct, frozen=True):
    """To a prover: the peer accepts the evidence, and nothing else is to be proven; from now on data may be sent."""


class Data(msgspec.Struct, frozen=True, gc=False):
    """Bytes from the peer, in order; where they are cut means nothing."""

    data: bytes


class Closed(msgspec.Struct, frozen=True):
    """The peer ended the channel in good order."""


Event = EvidenceReceived | EvidenceRequested | Established | Data | Closed
