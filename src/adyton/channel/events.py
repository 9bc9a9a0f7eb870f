"""What a channel tells its owner."""

from __future__ import annotations

import msgspec


class EvidenceReceived(msgspec.Struct, frozen=True):
    """To a verifier: the peer's evidence, hostile until verified and validated; then `accept`, or `close`."""

    evidence: bytes


class EvidenceRequested(msgspec.Struct, frozen=True):
    """To a prover: make evidence over these 64 bytes, and `provide` it."""

    report_data: bytes


class Established(msgspec.Struct, frozen=True):
    """To a prover: the peer accepts the evidence, and nothing else is to be proven; from now on data may be sent."""


class Data(msgspec.Struct, frozen=True, gc=False):
    """Bytes from the peer, in order; where they are cut means nothing."""

    data: bytes


class Closed(msgspec.Struct, frozen=True):
    """The peer ended the channel in good order."""


Event = EvidenceReceived | EvidenceRequested | Established | Data | Closed
