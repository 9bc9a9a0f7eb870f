"""X.509 certificates and revocation lists of vendors, as hostile bytes: reading them, and whether one was issued by another at a time.

Vendors' hierarchies have one way from a key to the root, so a chain is a list; there is no path to be found.
"""

from __future__ import annotations

import datetime as dt
import itertools
import warnings
from collections.abc import Iterable, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from adyton.attestation.findings import Failure, refuse

MAX_CERTIFICATE = 1 << 14  # bytes of DER
# What hostile certificates and lists raise, some of it when they are looked at: these have no base but Exception.
UNREADABLE = (
    TypeError,
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


def look_at(certificate: x509.Certificate) -> x509.Certificate:
    """The same, of which nothing more can be unreadable; else UNREADABLE."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # AMD's have the serial number 0; hostile ones, names of wrong lengths
        _ = certificate.extensions, certificate.public_key(), certificate.subject, certificate.issuer
    return certificate


def read_certificate(der: bytes, what: str) -> x509.Certificate:
    """EvidenceMalformedError, which says `what` it is to be."""
    if len(der) > MAX_CERTIFICATE:
        raise refuse("malformed", what, f"a certificate of at most {MAX_CERTIFICATE} bytes", f"{len(der)} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # AMD's have the serial number 0; hostile ones, names of wrong lengths
            certificate = look_at(x509.load_der_x509_certificate(der))
    except UNREADABLE as error:
        raise refuse("malformed", what, "a certificate", f"what cannot be read: {error}") from error
    if certificate.public_bytes(Encoding.DER) != der:
        raise refuse("malformed", what, "a certificate alone", "more bytes behind it")
    return certificate


def name_of(certificate: x509.Certificate) -> str:
    """As people know it."""
    common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    if common:
        return str(common[0].value)
    return certificate.subject.rfc4514_string() or f"the certificate with serial number {certificate.serial_number:x}"


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the issuer, a CA, signed it."""
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False
    return constraints.ca and _may_sign_certificates(issuer)


def _may_sign_certificates(issuer: x509.Certificate) -> bool:
    try:
        return issuer.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        return True


def chain_failures(chain: Sequence[x509.Certificate], at: dt.datetime) -> list[Failure]:
    """What is wrong with a chain, from the key that signed to a root that is trusted, at a time."""
    failures = []
    for certificate, issuer in itertools.pairwise(chain):
        if not is_issued_by(certificate, issuer):
            failures.append(Failure("genuine", f"issuer of {name_of(certificate)}", name_of(issuer), "another"))
    for certificate in chain:
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not first <= at <= last:
            failures.append(
                Failure(
                    "genuine", f"time of {name_of(certificate)}", f"{first:%FT%TZ} to {last:%FT%TZ}", f"{at:%FT%TZ}"
                )
            )
    return failures


def revocation_failures(
    chain: Sequence[x509.Certificate], lists: Iterable[x509.CertificateRevocationList], at: dt.datetime
) -> tuple[list[Failure], set[str]]:
    """What the lists say of a chain at a time; and the names of the issuers whose list there was. A list that is out of date is none."""
    failures, checked = [], set[str]()
    for certificate, issuer in itertools.pairwise(chain):
        for each in lists:
            if each.issuer != issuer.subject or not is_list_of(each, issuer):
                continue
            if each.last_update_utc > at or (each.next_update_utc is not None and each.next_update_utc < at):
                continue
            checked.add(name_of(issuer))
            found = each.get_revoked_certificate_by_serial_number(certificate.serial_number)
            if found is not None and found.revocation_date_utc <= at:
                failures.append(
                    Failure(
                        "tcb", f"revocation of {name_of(certificate)}", "none", f"{found.revocation_date_utc:%FT%TZ}"
                    )
                )
    return failures, checked


def is_list_of(found: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """Whether the issuer signed it."""
    try:
        return found.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
