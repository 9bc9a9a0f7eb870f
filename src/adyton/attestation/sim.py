"""SIMULATION: evidence that is signed with a key that everybody knows, so it proves nothing.

It goes through the same steps as a platform's, which is what it is for, and it is accepted only where "sim" is expected by name.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adyton.attestation.evidence import REPORT_DATA_SIZE, Envelope, decode, seal
from adyton.attestation.findings import Failure, refuse
from adyton.attestation.identity import EnclaveIdentity, length_prefixed
from adyton.errors import LocalProtocolError, NotGenuineError

_LABEL = b"adyton SIMULATION evidence 1"
_SIMULATION_SEED = hashlib.sha256(b"adyton SIMULATION attestation key 1: public, worth nothing").digest()


class SimulatedClaims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a simulated enclave says about itself. `report_data`: 64 bytes."""

    identity: EnclaveIdentity
    report_data: Annotated[bytes, msgspec.Meta(min_length=REPORT_DATA_SIZE, max_length=REPORT_DATA_SIZE)]


class SimulatedBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of the envelope: `claims` is the JSON that was signed, byte for byte."""

    claims: bytes
    signature: bytes


def simulation_key() -> Ed25519PrivateKey:
    """The well-known development key. Whoever has read this module can sign with it."""
    return Ed25519PrivateKey.from_private_bytes(_SIMULATION_SEED)


def attest(identity: EnclaveIdentity, report_data: bytes) -> bytes:
    """Evidence of a simulated enclave, bound to 64 bytes of report data."""
    if identity.platform != "sim" or len(report_data) != REPORT_DATA_SIZE:
        raise LocalProtocolError("simulated evidence is made for the platform sim, over 64 bytes of report data")
    claims = msgspec.json.encode(SimulatedClaims(identity, report_data))
    return seal("sim", SimulatedBody(claims, simulation_key().sign(_signed(claims))))


def open_simulated(envelope: Envelope) -> SimulatedClaims:
    """The claims, once their signature holds. EvidenceMalformedError, NotGenuineError."""
    # (1) The body is a claim and a signature.
    body = decode(envelope.body, SimulatedBody)
    # (2) The signature is the development key's.
    try:
        simulation_key().public_key().verify(body.signature, _signed(body.claims))
    except InvalidSignature:
        finding = Failure("genuine", "signature", "one of the simulation's development key", "another")
        raise NotGenuineError(f"the evidence is not genuine: {finding}", failures=(finding,)) from None
    # (3) The claims are well-formed, and of the platform that the envelope says.
    claims = decode(body.claims, SimulatedClaims)
    if claims.identity.platform != "sim":
        finding = Failure("genuine", "platform", "sim", claims.identity.platform)
        raise NotGenuineError(f"the simulation's key signs for no other platform: {finding}", failures=(finding,))
    if not claims.identity.measurement:
        raise refuse("malformed", "measurement", "an image's", "none")
    return claims


def _signed(claims: bytes) -> bytes:
    return length_prefixed(_LABEL) + length_prefixed(claims)
