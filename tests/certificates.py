"""Certificates for tests, good and bad, with fixed dates: files of PEM in one folder."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

LONG_AGO, PAST = dt.datetime(2023, 1, 1, tzinfo=dt.UTC), dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
FUTURE, FAR = dt.datetime(2090, 1, 1, tzinfo=dt.UTC), dt.datetime(2091, 1, 1, tzinfo=dt.UTC)
CLIENT = "client@example.org"


def write(folder: Path, server: str = "127.0.0.1") -> None:
    """ca.pem and other.pem, two CAs; NAME.pem and NAME.key of certificates for the server's address and for clients.

    By the first CA: server, server-expired, server-early, server-elsewhere (for tee.example), server-nameless
    (no subjectAltName), client, client-expired, client-early;
    by the other: server-other, client-other. `self`: signed by itself; `ed25519`: so, of a kind that gRPC does not take. Then what
    is none: empty.pem, damaged.pem, text.pem, client.der, client-encrypted.key, and the folder `directory`; ca-expired.pem.
    """
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other.pem")
    expired, early = {"not_before": LONG_AGO, "not_after": PAST}, {"not_before": FUTURE, "not_after": FAR}
    for name, authority, identity, dates in (
        ("server", ca, server, {}),
        ("server-expired", ca, server, expired),
        ("server-early", ca, server, early),
        ("server-elsewhere", ca, "tee.example", {}),
        ("server-nameless", ca, None, {}),
        ("server-other", other, server, {}),
        ("client", ca, CLIENT, {}),
        ("client-expired", ca, CLIENT, expired),
        ("client-early", ca, CLIENT, early),
        ("client-other", other, CLIENT, {}),
    ):
        issued = authority.issue_cert(*filter(None, [identity]), common_name=identity or server, **dates)
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    for name, key, dates in (
        ("self", ec.generate_private_key(ec.SECP256R1()), (LONG_AGO, FAR)),
        ("ed25519", ed25519.Ed25519PrivateKey.generate(), (LONG_AGO, FAR)),
        ("ca-expired", ec.generate_private_key(ec.SECP256R1()), (LONG_AGO, PAST)),
    ):
        _self_signed(folder, name, key, *dates)
    client = (folder / "client.pem").read_bytes()
    (folder / "client.der").write_bytes(x509.load_pem_x509_certificate(client).public_bytes(serialization.Encoding.DER))
    (folder / "client-encrypted.key").write_bytes(
        serialization.load_pem_private_key((folder / "client.key").read_bytes(), None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    (folder / "damaged.pem").write_bytes(client.replace(b"MII", b"MIA", 1))
    (folder / "empty.pem").touch()
    (folder / "text.pem").write_text("nothing of the kind\n")
    (folder / "directory").mkdir()
    (folder / "token").write_text("a secret\n")
    (folder / "guess").write_text("a guess\n")


def _self_signed(folder: Path, name: str, key, since: dt.datetime, until: dt.datetime) -> None:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, None if name == "ed25519" else hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / f"{name}.key").write_bytes(key.private_bytes(*form))
