"""Differential: what adyton and OpenSSL's command line, on bytes cut out by hand, think of the same evidence, changed at random.

Whatever adyton accepts, OpenSSL accepts; whatever adyton says to be signed wrongly, OpenSSL says so too. (What adyton refuses for other reasons, such as
bytes that must be zero, may well be signed rightly.) TPM quotes: `tpm2_checkquote`, in test_tpm_attester.py.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import forged
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from thorough import few_or

from adyton.attestation.collateral import Collateral, read_blobs
from adyton.attestation.findings import Failure
from adyton.attestation.verify import verify
from adyton.errors import AttestationError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="NO INDEPENDENT VERIFIER HERE: install openssl")
ROUNDS = few_or(20, 60)
OF_SIGNATURES = ("signature", "issuer", "root of the certificates")


class Signed(NamedTuple):
    """`key`: of whom; r and s one after the other."""

    data: bytes
    signature: bytes
    key: bytes


class Subject(NamedTuple):
    """Evidence, and the root that it is genuine under. Of any bytes: `cut`: what is signed in them; `chain`: the certificates of the key and its
    issuers, PEM, in order (IndexError, ValueError: it is not there)."""

    evidence: bytes
    collateral: Collateral
    root: x509.Certificate
    cut: Callable[[bytes], list[Signed]]
    chain: Callable[[bytes], bytes]


def pem_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def run(*arguments: str) -> bool:
    return subprocess.run(["openssl", *arguments], capture_output=True, check=False).returncode == 0


def is_signed(found: Signed, folder: Path, digest: str) -> bool:
    half = len(found.signature) // 2
    r, s = (int.from_bytes(part, "big") for part in (found.signature[:half], found.signature[half:]))
    for name, content in (("data", found.data), ("key", found.key), ("signature", encode_dss_signature(r, s))):
        (folder / name).write_bytes(content)
    files = [str(folder / name) for name in ("key", "signature", "data")]
    return run("dgst", f"-{digest}", "-verify", files[0], "-signature", files[1], files[2])


def leads_to(root: x509.Certificate, chain: bytes, folder: Path) -> bool:
    for name, content in (("root", root.public_bytes(Encoding.PEM)), ("chain", chain)):
        (folder / name).write_bytes(content)
    at = ("-attime", str(int(forged.AT.timestamp())))
    return run(
        "verify", *at, "-CAfile", str(folder / "root"), *("-untrusted", str(folder / "chain")), str(folder / "chain")
    )


def pems(*chain: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in chain)


# -- what is signed, by the vendors' documents ----------------------------------------------------------------------------


def sev_snp(patch) -> Subject:
    amd = forged.Amd()
    patch("adyton.attestation.sev_snp.verify.roots", lambda: {amd.product: amd.chain})
    key = amd.endorsement()

    def cut(data: bytes) -> list[Signed]:
        r, s = data[0x2A0 : 0x2A0 + 72], data[0x2E8 : 0x2E8 + 72]
        return [Signed(data[:0x2A0], r[::-1] + s[::-1], pem_of(key))]

    ark, ask = amd.chain
    return Subject(amd.report(), read_blobs((forged.der(key),)), ark, cut, lambda _: pems(key, ask))


def nitro(patch) -> Subject:
    aws = forged.Aws()
    patch("adyton.attestation.nitro.verify.root", lambda: aws.root_certificate)
    evidence = aws.document()
    leaf = x509.load_der_x509_certificate(certificate_in(evidence))

    def cut(data: bytes) -> list[Signed]:
        """84, a map's head, a bstr's; see RFC 9052, 4.4: the strings are signed as they stand there."""
        at = 1
        found = []
        for _ in range(2):
            at, start = at + size_of_string(data, at), at
            found.append(data[start:at])
            at += data[at] == 0xA0
        signature = data[at:]
        if data[0] != 0x84 or signature[:2] != b"\x58\x60":
            raise ValueError(data[:1])
        return [Signed(b"\x84\x6aSignature1" + found[0] + b"\x40" + found[1], signature[2:], pem_of(leaf))]

    return Subject(evidence, Collateral(), aws.root_certificate, cut, lambda _: pems(leaf))


def size_of_string(data: bytes, at: int) -> int:
    """Of a CBOR byte string, with its head."""
    heads = {0x58: 1, 0x59: 2, 0x5A: 4}
    if 0x40 <= data[at] < 0x58:
        return 1 + data[at] - 0x40
    width = heads[data[at]] if data[at] in heads else data.index(b"no string")
    return 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "big")


def certificate_in(document: bytes) -> bytes:
    at = document.index(b"certificate") + len(b"certificate")
    return document[at + 3 : at + size_of_string(document, at)]


def quotes(version: int, kind: int) -> Callable[..., Subject]:
    platform = "sgx" if version == 3 else "tdx"
    body = {3: 384, 4: 584, 5: 6 + {2: 584, 3: 648}.get(kind, 0)}[version]

    def subject(patch) -> Subject:
        pytest.importorskip("dcap_qvl", reason="NO VERIFIER OF QUOTES HERE: pip install adyton[attest]")
        intel = forged.Intel()
        patch("adyton.attestation.dcap.verify.ROOT", forged.der(intel.chain[2]))

        def cut(data: bytes) -> list[Signed]:
            end = 48 + body
            at = end + 4 + 128 + (6 if version > 3 else 0)
            key, report = data[end + 68 : end + 132], data[at : at + 384]
            beside = data[at + 450 : at + 450 + int.from_bytes(data[at + 448 : at + 450], "little")]
            if hashlib.sha256(key + beside).digest() != report[320:352]:
                raise ValueError("the attestation key is none of the quoting enclave's")
            return [
                Signed(data[:end], data[end + 4 : end + 68], pem_of_point(key)),
                Signed(report, data[at + 384 : at + 448], pem_of(intel.chain[0])),
            ]

        def chain(data: bytes) -> bytes:
            return data[data.index(b"-----BEGIN") :]

        evidence = intel.quote(version, kind=kind)
        return Subject(evidence, read_blobs((intel.collateral(platform),)), intel.chain[2], cut, chain)

    return subject


def pem_of_point(point: bytes) -> bytes:
    curve = forged.ec.SECP256R1()
    key = forged.ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\4" + point)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


SUBJECTS = {
    "sev-snp": (sev_snp, "sha384"),
    "nitro": (nitro, "sha384"),
    "sgx": (quotes(3, 0), "sha256"),
    "tdx-4": (quotes(4, 0), "sha256"),
    "tdx-5": (quotes(5, 3), "sha256"),
}


def changed(evidence: bytes, random_: random.Random) -> bytes:
    """A bit, a byte, some bytes' places, or the end of it."""
    found = bytearray(evidence)
    at = random_.randrange(len(found))
    match random_.randrange(4):
        case 0:
            found[at] ^= 1 << random_.randrange(8)
        case 1:
            found[at] = random_.randrange(256)
        case 2:
            found[at : at + 8] = found[at : at + 8][::-1]
        case _:
            del found[at:]
    return bytes(found)


@pytest.mark.parametrize("name", SUBJECTS)
def test_openssl_and_adyton_agree_on_what_is_signed(name, monkeypatch, tmp_path):
    make, digest = SUBJECTS[name]
    subject = make(monkeypatch.setattr)

    def by_openssl(data: bytes) -> bool:
        try:
            signed = all(is_signed(each, tmp_path, digest) for each in subject.cut(data))
            return signed and leads_to(subject.root, subject.chain(data), tmp_path)
        except (IndexError, ValueError):
            return False

    verify(subject.evidence, subject.collateral, forged.AT)
    assert by_openssl(subject.evidence)
    random_, refused = random.Random(name), 0
    for _ in range(ROUNDS):
        data = changed(subject.evidence, random_)
        try:
            verify(data, subject.collateral, forged.AT)
        except AttestationError as error:
            refused += 1
            fields = [each.field for each in error.failures if isinstance(each, Failure)]
            assert not any(field.startswith(OF_SIGNATURES) for field in fields) or not by_openssl(data), fields
        else:
            assert by_openssl(data)
    assert refused > ROUNDS // 2
