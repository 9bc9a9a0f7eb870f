"""What evidence is bound to: the 64 bytes that a platform signs along with an enclave's identity.

    SHA-512( label ‖ version ‖ role ‖ nonce ‖ exporter ‖ SHA-256 of the server's key ‖ digest of the identity )

with each field after its length. A binding to the key alone can be replayed, relayed and diverted; each field closes one way:
`nonce` (32 bytes, the client's, used once) makes the evidence fresh; the TLS exporter (RFC 8446 section 7.5) ties it to this very
connection, the server's key to the one that the client saw; label, version and role keep it from being taken for anything else;
the identity's digest ties it to what the evidence claims.
"""

from __future__ import annotations

import hashlib

from adyton.attestation.identity import length_prefixed

VERSION = 1  # of the channel's messages and of this binding
NONCE_SIZE = 32
EXPORTER_LABEL = b"EXPORTER-adyton"
EXPORTER_SIZE = 32
ENCLAVE_ROLE = b"enclave"  # who shows evidence; also the exporter's context

_LABEL = b"adyton attested channel"


def report_data(*, role: bytes, nonce: bytes, exporter: bytes, key_digest: bytes, identity_digest: bytes) -> bytes:
    """The 64 bytes. `key_digest`: SHA-256 of the DER SubjectPublicKeyInfo of the server's certificate."""
    fields = (_LABEL, VERSION.to_bytes(4, "big"), role, nonce, exporter, key_digest, identity_digest)
    return hashlib.sha512(b"".join(length_prefixed(field) for field in fields)).digest()
