"""What evidence is bound to: the 64 bytes that a platform signs along with an enclave's identity.

    SHA-512( label ‖ version ‖ connection ‖ digest of the identity )
    connection = SHA-512( role ‖ nonce ‖ exporter ‖ SHA-256 of the prover's key ‖ SHA-256 of the verifier's )

with each field after its length; the connection has a digest of its own, so that who vouches for the identity need not know it. A binding to the key alone can be replayed, relayed and diverted; each field closes one way:
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
    connection = connection_digest(
        role=role, nonce=nonce, exporter=exporter, key_digest=key_digest, verifier_key_digest=verifier_key_digest
    )
    return bound_to(connection, identity_digest)


def connection_digest(
    *, role: bytes, nonce: bytes, exporter: bytes, key_digest: bytes, verifier_key_digest: bytes = b""
) -> bytes:
    """What of it is the connection's: 64 bytes."""
    return _hashed(role, nonce, exporter, key_digest, verifier_key_digest)


def bound_to(connection: bytes, identity_digest: bytes) -> bytes:
    """The 64 bytes, of what is the connection's and who shows evidence there."""
    return _hashed(_LABEL, VERSION.to_bytes(4, "big"), connection, identity_digest)


def _hashed(*fields: bytes) -> bytes:
    return hashlib.sha512(b"".join(length_prefixed(field) for field in fields)).digest()
