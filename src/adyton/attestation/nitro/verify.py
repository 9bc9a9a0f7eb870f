"""Is an attestation document genuine: by the steps that AWS describes."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import importlib.resources

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from adyton.attestation.certificates import chain_failures, name_of, read_certificate
from adyton.attestation.claims import Claims, digest_of_measured
from adyton.attestation.findings import Failure, failed
from adyton.attestation.nitro.abi import parse

SIGNED_WITHIN = dt.timedelta(minutes=5)  # of the time at which a document is looked at, clocks may differ
REFERENCE = (0, 1, 2)  # the PCRs that say what runs: the image, its kernel and boot, its application
_LARGEST = 48


def verify(data: bytes, at: dt.datetime) -> Claims:
    """What a document proves at a time. Only AttestationErrors leave: EvidenceMalformedError, NotGenuineError."""
    # (1) The document is well-formed, and so are its certificates.
    document = parse(data)
    chain = [read_certificate(der, "a certificate of the document") for der in document.chain]
    # (2) They lead to AWS's root, and are valid at that time.
    failures = [*_root_failures(chain[-1]), *chain_failures(chain, at)]
    # (3) The first one's key signed the document, while it was valid, not later than now.
    failures += _signature_failures(chain[0], document.signed, document.signature)
    signed_at = dt.datetime.fromtimestamp(document.milliseconds / 1000, dt.UTC)
    if signed_at > at + SIGNED_WITHIN:
        failures.append(Failure("genuine", "time of the document", f"not after {at:%FT%TZ}", f"{signed_at:%FT%TZ}"))
    if failures:
        raise failed(failures)
    # (4) What is measured; an enclave in debug mode has zeros.
    registers = {f"pcr{number}": value for number, value in document.pcrs.items() if any(value) or number in REFERENCE}
    return Claims(
        platform="nitro",
        runtime=digest_of_measured("nitro", {f"pcr{number}": document.pcrs[number] for number in REFERENCE}),
        measured={name: value.hex() for name, value in registers.items()},
        report_data=document.user_data,
        debug=not any(any(document.pcrs[number]) for number in REFERENCE),
        machine=document.module,
        tcb="UpToDate",  # AWS keeps its hypervisors so, and says nothing of it
        more={
            "signed_at": f"{signed_at:%FT%TZ}",
            "nonce": document.nonce.hex(),
            "public_key": document.public_key.hex(),
        },
        register=f"sha384:{document.pcrs[0].hex()}" if len(document.pcrs[0]) == 48 else "",
    )


@functools.cache
def root() -> x509.Certificate:
    """AWS's."""
    path = importlib.resources.files("adyton.attestation.nitro") / "trust" / "root.pem"
    return x509.load_pem_x509_certificate(path.read_bytes())


def _root_failures(found: x509.Certificate) -> list[Failure]:
    wanted = root()
    if found.public_bytes(Encoding.DER) == wanted.public_bytes(Encoding.DER):
        return []
    return [Failure("genuine", "root of the certificates", _fingerprint(wanted), _fingerprint(found))]


def _fingerprint(certificate: x509.Certificate) -> str:
    return f"{name_of(certificate)} (SHA-256 {hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()})"


def _signature_failures(certificate: x509.Certificate, signed: bytes, signature: bytes) -> list[Failure]:
    failure = Failure("genuine", "signature of the document", f"one of {name_of(certificate)}", "another")
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return [Failure("genuine", "key of the document", "one of P-384", type(key).__name__)]
    r, s = int.from_bytes(signature[:_LARGEST], "big"), int.from_bytes(signature[_LARGEST:], "big")
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA384()))
    except InvalidSignature:
        return [failure]
    return []
