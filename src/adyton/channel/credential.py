"""What an end of a channel shows in the TLS handshake: a key, and certificates around it, of which nothing is judged here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.crypto.self_signed import PrivateKey, self_signed

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_RSA_BITS = range(2048, 8193)
MAX_CERTIFICATES = 64 << 10  # bytes in DER that an end may show
KINDS = "ECDSA (P-256, P-384, P-521), Ed25519 or RSA (2048 to 8192 bits)"


@dataclass(frozen=True)
class Credential:
    """A private key, and the certificates that are shown with it: its own, then its issuers'. ValueError for a key of another kind than `KINDS`."""

    key: PrivateKey = field(repr=False)
    certificates: tuple[x509.Certificate, ...]

    def __post_init__(self) -> None:
        key_digest(self.certificates[0])

    @property
    def digest(self) -> bytes:
        """See `key_digest`."""
        return key_digest(self.certificates[0])

    @classmethod
    def fresh(cls) -> Credential:
        """A P-256 key that there has never been."""
        key, certificate = self_signed("adyton enclave")
        return cls(key, (certificate,))


def key_digest(certificate: x509.Certificate) -> bytes:
    """SHA-256 of its DER SubjectPublicKeyInfo. ValueError for a key that cannot be read, or of no kind that is taken (`KINDS`)."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"its key cannot be read: {error}") from error
    if not (
        isinstance(key, ed25519.Ed25519PublicKey)
        or (isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES)
        or (isinstance(key, rsa.RSAPublicKey) and key.key_size in _RSA_BITS)
    ):
        raise ValueError(f"its key is none of {KINDS}")
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
