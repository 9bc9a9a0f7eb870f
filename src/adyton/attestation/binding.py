"""What evidence is bound to: the 64 bytes that a platform signs along with an enclave's identity.

    SHA-512( label ‖ version ‖ role ‖ nonce ‖ exporter ‖ SHA-256 of the prover's key ‖ SHA-256 of the verifier's ‖ digest of the identity )

with each field after its length. A binding to the key alone can be replayed, relayed and diverted; each field closes one way:
`nonce` (32 bytes, the verifier's, used once) makes the evidence fresh; the TLS exporter (RFC 8446 section 7.5) ties it to this very
connection, the keys to the ones that the two saw of each other (the exporter does not cover a TLS client's); the role keeps what one end
proves from being returned to it as the other's, label and version from being taken for anything else; the identity's digest ties it to
what the evidence claims.
"""

from __future__ import annotations

import hashlib

from adyton.attestation.identity import length_prefixed

VERSION = 2  # of the channel's messages and of this binding
NONCE_SIZE = 32
EXPORTER_LABEL = b"EXPORTER-adyton"
EXPORTER_SIZE = 32
# Who shows evidence; also the exporter's context, so that not even that is the same for both.
ENCLAVE_ROLE = b"enclave"  # TLS server
DIALLING_ROLE = b"enclave that dials"  # TLS client
# The same for a channel that the enclave's program ends itself, with keys of its own: its supervisor never proves its own channels as these.
PROGRAM_ROLE = b"enclave program"
DIALLING_PROGRAM_ROLE = b"enclave program that dials"

_LABEL = b"adyton attested channel"


def report_data(
    *,
    role: bytes,
    nonce: bytes,
    exporter: bytes,
    key_digest: bytes,
    identity_digest: bytes,
    verifier_key_digest: bytes = b"",
) -> bytes:
    """The 64 bytes. `key_digest`: SHA-256 of the DER SubjectPublicKeyInfo of the prover's certificate; `verifier_key_digest`: of the other's, b"" if it has none."""
    fields = (
        _LABEL,
        VERSION.to_bytes(4, "big"),
        role,
        nonce,
        exporter,
        key_digest,
        verifier_key_digest,
        identity_digest,
    )
    return hashlib.sha512(b"".join(length_prefixed(field) for field in fields)).digest()
