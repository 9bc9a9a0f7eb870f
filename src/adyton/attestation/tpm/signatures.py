"""Whether a key made a TPM's signature."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from adyton.attestation.tpm.abi import Key, Signature

_HASHES: dict[str, hashes.HashAlgorithm] = {  # SHA-1 is none: two quotes could have one signature
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


def is_signed_by(key: Key, signature: Signature, data: bytes) -> bool:
    """Of hostile values."""
    digest = _HASHES.get(signature.hash)
    if digest is None or (signature.scheme == "ecdsa") != isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(encode_dss_signature(*signature.point), data, ec.ECDSA(digest))
        elif signature.scheme == "rsapss":
            key.verify(signature.value, data, padding.PSS(padding.MGF1(digest), padding.PSS.AUTO), digest)
        else:
            key.verify(signature.value, data, padding.PKCS1v15(), digest)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True
