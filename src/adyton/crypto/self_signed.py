"""Certificates that nobody signs: whoever is to check one knows its key by other means, and it is never kept."""

from __future__ import annotations

import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

NAME = "launch.adyton.invalid"  # the same for all launches; it is the certificate itself that tells them apart
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
_BEGIN = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)  # clocks of the two machines may differ by any amount
_END = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)  # RFC 5280, 4.1.2.5: no expiration date


def self_signed(common_name: str, dns_name: str = "") -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A fresh P-256 key and its certificate, valid at all times; for a `dns_name` if one is given."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key, certificate_around(key, common_name, dns_name)


def certificate_around(key: PrivateKey, common_name: str, dns_name: str = "") -> x509.Certificate:
    """A certificate that a key signs for itself, valid at all times."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), _BEGIN, _END)
    if dns_name:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(dns_name)]), critical=False)
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def launch_certificate() -> tuple[bytes, bytes]:
    """For one launch: a private key (PKCS #8) and its certificate for NAME, both PEM."""
    key, certificate = self_signed(NAME, NAME)
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate.public_bytes(Encoding.PEM),
    )
