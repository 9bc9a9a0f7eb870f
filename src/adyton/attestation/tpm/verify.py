"""Is a TPM's quote genuine, and whose it is."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.attestation.certificates import chain_failures, is_issued_by, name_of
from adyton.attestation.claims import Claims, digest_of_measured
from adyton.attestation.collateral import Collateral
from adyton.attestation.evidence import decode
from adyton.attestation.findings import Failure, failed
from adyton.attestation.tpm.abi import PublicArea, Signature, parse_public, parse_quote, parse_signature

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_LONGEST_CHAIN = 4


class TpmReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What adyton's attester puts together: a quote, its signature, the key that made it, and the PCRs' values by bank and number.

    All as the TPM writes them (TPMS_ATTEST, TPMT_SIGNATURE, TPMT_PUBLIC). `report_data`: what the quote's extra data is the SHA-256 of.
    """

    quote: bytes
    signature: bytes
    key: bytes
    pcrs: dict[str, dict[int, bytes]]
    report_data: Annotated[bytes, msgspec.Meta(max_length=64)]


def verify(data: bytes, collateral: Collateral, at: dt.datetime) -> Claims:
    """What a report proves at a time. Only AttestationErrors leave: EvidenceMalformedError, NotGenuineError.

    Without a certificate of the key nobody has said yet that it is a TPM's: `tcb` is "Unknown" then, and it is genuine only for a policy
    that names it among its machines.
    """
    # (1) All of it is well-formed.
    report = decode(data, TpmReport)
    quoted, signature, area = parse_quote(report.quote), parse_signature(report.signature), parse_public(report.key)
    # (2) The key signed the quote.
    failures = (
        []
        if _signs(area, signature, quoted.raw)
        else [Failure("genuine", "signature of the quote", "one of its key", "another")]
    )
    # (3) The values are those of the PCRs that were quoted; the report data is what the quote was asked to sign along.
    values = b"".join(
        report.pcrs.get(bank, {}).get(number, b"") for bank, numbers in quoted.selected for number in numbers
    )
    digest = hashlib.new(signature.hash, values).digest()
    if not hmac.compare_digest(digest, quoted.digest):
        failures.append(Failure("genuine", "digest of the PCRs", quoted.digest.hex(), digest.hex()))
    extra = hashlib.sha256(report.report_data).digest()
    if not hmac.compare_digest(extra, quoted.extra):
        failures.append(Failure("genuine", "extra data of the quote", extra.hex(), quoted.extra.hex() or "none"))
    # (4) Who vouches for the key.
    chain = _chain_of(area, collateral)
    failures += chain_failures(chain, at)
    if failures:
        raise failed(failures)
    registers = {
        f"{bank}:{number}": report.pcrs[bank][number] for bank, numbers in quoted.selected for number in numbers
    }
    return Claims(
        platform="tpm",
        runtime=digest_of_measured("tpm", registers),
        measured={name: value.hex() for name, value in registers.items()},
        report_data=report.report_data,
        debug=False,
        machine=area.name.hex(),
        tcb="UpToDate" if chain else "Unknown",
        more={
            "firmware": f"{quoted.firmware:#x}",
            "resets": quoted.resets,
            "restarts": quoted.restarts,
            "key_certified_by": name_of(chain[-1]) if chain else "",
        },
    )


def _signs(area: PublicArea, signature: Signature, data: bytes) -> bool:
    if area.scheme != signature.scheme:
        return False
    digest = _HASHES[signature.hash]
    try:
        if isinstance(area.key, ec.EllipticCurvePublicKey):
            area.key.verify(encode_dss_signature(*signature.point), data, ec.ECDSA(digest))
        elif signature.scheme == "rsapss":
            area.key.verify(signature.value, data, padding.PSS(padding.MGF1(digest), padding.PSS.AUTO), digest)
        else:
            area.key.verify(signature.value, data, padding.PKCS1v15(), digest)
    except (InvalidSignature, ValueError):
        return False
    return True


def _chain_of(area: PublicArea, collateral: Collateral) -> list[x509.Certificate]:
    """From the key's certificate to one that is its own issuer; empty: there is none."""
    wanted = _der(area.key)
    chain = [each for each in collateral.certificates if _der(each.public_key()) == wanted][:1]
    while chain and len(chain) < _LONGEST_CHAIN and chain[-1].issuer != chain[-1].subject:
        above = [each for each in collateral.issued_to(chain[-1].issuer) if is_issued_by(chain[-1], each)]
        if not above:
            return []
        chain.append(above[0])
    return chain


def _der(key: object) -> bytes:
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        return b""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
