"""Who vouches for an attestation key: a CA whose root the verifier's own collateral has. There is no root of all TPMs that adyton could know."""

from __future__ import annotations

import datetime as dt
import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from adyton.attestation.certificates import UNREADABLE, chain_failures, is_issued_by, name_of
from adyton.attestation.collateral import Collateral
from adyton.attestation.findings import Failure
from adyton.attestation.tpm.abi import Key

_LONGEST = 4  # certificates above the key's
_IS_ATTESTATION_KEY = x509.ObjectIdentifier("2.23.133.8.3")  # TCG: tcg-kp-AIKCertificate
_USES = {_IS_ATTESTATION_KEY, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
_ANY = (
    verification.ExtensionPolicy.permit_all()
)  # a TPM's certificate says in critical extensions what nobody else knows
_CA = _ANY.require_present(x509.BasicConstraints, verification.Criticality.AGNOSTIC, None)


def chain_of(key: Key, collateral: Collateral, at: dt.datetime) -> tuple[list[x509.Certificate], list[Failure]]:
    """From the key's certificate to a root of the verifier's; empty where nobody vouches. And what is wrong with it."""
    failures: list[Failure] = []
    wanted = der_of(key)
    for leaf in collateral.certificates:
        if _der_of_certificate(leaf) != wanted or leaf.issuer == leaf.subject:
            continue
        chain = _path(leaf, collateral)
        if not chain:
            continue
        found = [*_use_failures(leaf), *(chain_failures(chain, at) or _path_failures(leaf, collateral, at))]
        if not found:
            return chain, []
        failures = failures or found
    return [], failures


def der_of(key: Key) -> bytes:
    """SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: Key) -> str:
    """By which a key is known of which the TPM's own name is not."""
    return f"sha256:{hashlib.sha256(der_of(key)).hexdigest()}"


def key_of(certificate: x509.Certificate) -> Key | None:
    """Of the kinds that TPMs have."""
    key = certificate.public_key()
    return key if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) else None


def _der_of_certificate(certificate: x509.Certificate) -> bytes:
    key = key_of(certificate)
    return b"" if key is None else der_of(key)


def _path(leaf: x509.Certificate, collateral: Collateral) -> list[x509.Certificate]:
    """Upwards to a root of the verifier's; empty: there is none. What came with the evidence may be between, and costs no more than a look."""
    chain = [leaf]
    while len(chain) <= _LONGEST:
        above = [each for each in collateral.issued_to(chain[-1].issuer) if is_issued_by(chain[-1], each)]
        roots = [each for each in above if each in collateral.roots]
        if roots:
            return [*chain, roots[0]]
        if not above:
            break
        chain.append(above[0])
    return []


def _use_failures(leaf: x509.Certificate) -> list[Failure]:
    """A certificate that says what it is for must say that it is for this."""
    try:
        uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return []
    if _USES & set(uses):
        return []
    got = " ".join(use.dotted_string for use in uses)
    return [
        Failure("genuine", f"use of {name_of(leaf)}", f"{_IS_ATTESTATION_KEY.dotted_string} (attestation key)", got)
    ]


def _path_failures(leaf: x509.Certificate, collateral: Collateral, at: dt.datetime) -> list[Failure]:
    """By all of RFC 5280: constraints on paths and names, algorithms."""
    policy = (
        verification.PolicyBuilder()
        .store(verification.Store(list(collateral.roots)))
        .time(at)
        .max_chain_depth(_LONGEST)
    )
    verifier = policy.extension_policies(ca_policy=_CA, ee_policy=_ANY).build_client_verifier()
    try:
        verifier.verify(leaf, list(collateral.certificates))
    except (verification.VerificationError, *UNREADABLE) as error:
        return [Failure("genuine", f"certificate of {name_of(leaf)}", "one that its root allows", str(error)[:200])]
    return []
