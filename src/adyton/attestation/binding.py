"""What evidence is bound to: the 64 bytes that a platform signs along with an enclave's identity.

    SHA-512( label ‖ version ‖ SHA-512( role ‖ nonce ‖ exporter ‖ SHA-256 of the server's key ) ‖ digest of the identity )

with each field after its length; what is of the connection is a digest of its own, so that who vouches for the identity need not know it. A binding to the key alone can be replayed, relayed and diverted; each field closes one way:
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
    connection = connection_digest(role=role, nonce=nonce, exporter=exporter, key_digest=key_digest)
    return bound_to(connection, identity_digest)


def connection_digest(*, role: bytes, nonce: bytes, exporter: bytes, key_digest: bytes) -> bytes:
    """What of it is the connection's: 64 bytes."""
    return _hashed(role, nonce, exporter, key_digest)


def bound_to(connection: bytes, identity_digest: bytes) -> bytes:
    """The 64 bytes, of what is the connection's and who shows evidence there."""
    return _hashed(_LABEL, VERSION.to_bytes(4, "big"), connection, identity_digest)


def _hashed(*fields: bytes) -> bytes:
    return hashlib.sha512(b"".join(length_prefixed(field) for field in fields)).digest()
