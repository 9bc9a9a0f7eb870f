"""A quote as other programs write it: its signature behind it, or beside it; the key, of which a quote says little, beside it too.

    TPMS_ATTEST ‖ TPMT_SIGNATURE       the two files of tpm2_quote (-m, -s), one after the other; or the first alone
    TPM2B_ATTEST ‖ TPMT_SIGNATURE      what TPM2_Quote answers

In place of TPMT_SIGNATURE the signature alone may stand, as other libraries have it (tpm2_quote -f plain): RSA's number, or ECDSA's two in DER.
Beside it, among the collateral, whatever the files' names: the key (PEM, DER, TPMT_PUBLIC, TPM2B_PUBLIC) or a certificate of it; the signature, if it
is not behind; the PCRs' values, one after the other (tpm2_quote -o, --pcrs_format values), which it is judged without, too.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import NamedTuple, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

from adyton.attestation.collateral import Collateral
from adyton.attestation.findings import refuse
from adyton.attestation.tpm.abi import (
    MAGIC,
    SIZES,
    Key,
    PublicArea,
    Quoted,
    Reader,
    Signature,
    parse_public,
    parse_quote,
    parse_signature,
    split_quote,
)
from adyton.attestation.tpm.report import Shown
from adyton.attestation.tpm.signatures import is_signed_by
from adyton.attestation.tpm.trust import fingerprint, key_of
from adyton.errors import EvidenceMalformedError

_T = TypeVar("_T")
_PLAIN_HASHES = ("sha256", "sha384", "sha512")


class _Candidate(NamedTuple):
    key: Key
    scheme: str = ""
    attributes: int | None = None
    name: bytes = b""


def of_raw(data: bytes, collateral: Collateral) -> Shown:
    """Hostile bytes. EvidenceMalformedError; CollateralMissingError: there is no key."""
    quoted, behind = _split(data)
    blobs = (behind,) if behind else collateral.others
    candidates = _candidates(collateral)
    signatures = _all(parse_signature, blobs)
    pairs = [*product(signatures, candidates), *_plain(blobs, candidates)]
    if not signatures and not pairs:
        if behind:
            parse_signature(behind)  # says what is wrong with it
        raise refuse(
            "malformed", "signature of the quote", "a TPMT_SIGNATURE behind it, or among the collateral", "none"
        )
    if not candidates:
        wanted = "its public part (PEM, DER, TPM2B_PUBLIC) or its certificate among the collateral"
        raise refuse("collateral", "the attestation key", wanted, "none")
    fitting = (each for each in pairs if is_signed_by(each[1].key, each[0], quoted.raw))
    signature, found = next(fitting, pairs[0])  # the one that did not sign is found to be so by who verifies
    return Shown(
        quoted,
        signature,
        found.key,
        found.scheme or signature.scheme,
        found.attributes,
        found.name.hex() or fingerprint(found.key),
        _values(quoted, signature, collateral.others),
        quoted.extra,
        quoted.extra,
    )


def _split(data: bytes) -> tuple[Quoted, bytes]:
    if data[: len(MAGIC)] == MAGIC:
        return split_quote(data)
    reader = Reader(data, "the quote")
    return parse_quote(reader.sized()), reader.rest()


def _all(parse: Callable[[bytes], _T], blobs: Iterable[bytes]) -> list[_T]:
    """Of those that are any."""
    found = []
    for blob in blobs:
        try:
            found.append(parse(blob))
        except EvidenceMalformedError:
            continue
    return found


def _candidates(collateral: Collateral) -> list[_Candidate]:
    """Those first of which most is known."""
    areas = [*_all(parse_public, collateral.others), *_all(_sized_public, collateral.others)]
    keys = _all(_plain_key, collateral.others)
    keys += [key for each in collateral.certificates if (key := key_of(each)) is not None]
    return [*(_Candidate(each.key, each.scheme, each.attributes, each.name) for each in areas), *map(_Candidate, keys)]


def _plain(blobs: Iterable[bytes], candidates: Iterable[_Candidate]) -> Iterator[tuple[Signature, _Candidate]]:
    """Signatures that do not say of which scheme and hash they are, with each that they may be of."""
    for blob, candidate in product(blobs, candidates):
        value, point = b"", (0, 0)
        schemes: tuple[str, ...] = ("ecdsa",)
        if isinstance(candidate.key, rsa.RSAPublicKey):
            if len(blob) != candidate.key.key_size // 8:
                continue
            value, schemes = blob, (candidate.scheme,) if candidate.scheme else ("rsassa", "rsapss")
        else:
            try:
                point = decode_dss_signature(blob)
            except ValueError:
                continue
        for scheme, digest in product(schemes, _PLAIN_HASHES):
            yield Signature(scheme, digest, value, point), candidate


def _sized_public(blob: bytes) -> PublicArea:
    reader = Reader(blob, "the attestation key")
    area = parse_public(reader.sized())
    reader.end()
    return area


def _plain_key(blob: bytes) -> Key:
    load = load_pem_public_key if b"-----BEGIN " in blob else load_der_public_key
    try:
        key = load(blob)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise refuse("malformed", "the attestation key", "a public key", str(error)[:100]) from error
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise refuse("malformed", "the attestation key", "RSA or ECC", type(key).__name__)
    return key


def _values(quoted: Quoted, signature: Signature, blobs: Iterable[bytes]) -> dict[tuple[str, int], bytes] | None:
    """Those that the quote is of, if they are there."""
    registers = quoted.registers
    size = sum(SIZES[bank] for bank, _ in registers)
    for blob in blobs:
        if len(blob) == size and hmac.compare_digest(hashlib.new(signature.hash, blob).digest(), quoted.digest):
            reader = Reader(blob, "values of the PCRs")
            return {(bank, number): reader.take(SIZES[bank]) for bank, number in registers}
    return None
