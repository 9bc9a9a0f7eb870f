"""What a TPM and its machine's firmware write, made with keys of the test's own: quotes, signatures, keys, event logs, certificates."""

from __future__ import annotations

import datetime as dt
import hashlib
import struct

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from adyton.attestation.tpm.report import TpmReport

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
REPORT_DATA = bytes(range(64))
EXTRA = hashlib.sha256(REPORT_DATA).digest()
HASHES = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
CURVES = {"secp256r1": 3, "secp384r1": 4, "secp521r1": 5}
ATTRIBUTES = 0x00050472  # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign
KEY = ec.derive_private_key(0x41 << 64, ec.SECP256R1())  # signing differs each time; the key does not
RSA_KEY = rsa.generate_private_key(65537, 2048)
PCRS = {("sha256", number): hashlib.sha256(b"PCR %d" % number).digest() for number in range(16)}


def sized(data):
    return struct.pack(">H", len(data)) + data


def selection(pcrs):
    """Of registers in an order that has each bank's together."""
    banks = list(dict.fromkeys(bank for bank, _ in pcrs))
    found = struct.pack(">I", len(banks))
    for bank in banks:
        bits = sum(1 << number for of, number in pcrs if of == bank)
        found += struct.pack(">HB", HASHES[bank], 3) + bits.to_bytes(3, "little")
    return found


def quote(values=PCRS, extra=EXTRA, selected=None, digest=None, by="sha256"):
    """A TPMS_ATTEST over PCRs' values."""
    head = b"\xffTCG" + struct.pack(">H", 0x8018) + sized(b"\x00\x0b" + bytes(32)) + sized(extra)
    clock = struct.pack(">QIIBQ", 77, 3, 1, 1, 0x20260101)
    if digest is None:
        digest = hashlib.new(by, b"".join(values.values())).digest()
    return head + clock + (selection(values) if selected is None else selected) + sized(digest)


def signature(data, key=KEY, scheme=None, by="sha256"):
    """A TPMT_SIGNATURE."""
    digest = {"sha1": hashes.SHA1(), "sha256": hashes.SHA256(), "sha384": hashes.SHA384()}[by]
    scheme = scheme or ("ecdsa" if isinstance(key, ec.EllipticCurvePrivateKey) else "rsassa")
    head = struct.pack(">HH", {"rsassa": 0x14, "rsapss": 0x16, "ecdsa": 0x18}[scheme], HASHES[by])
    if scheme == "ecdsa":
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
        size = (key.curve.key_size + 7) // 8
        return head + sized(r.to_bytes(size, "big")) + sized(s.to_bytes(size, "big"))
    pad = padding.PKCS1v15() if scheme == "rsassa" else padding.PSS(padding.MGF1(digest), digest.digest_size)
    return head + sized(key.sign(data, pad, digest))


def public_area(key=KEY, attributes=ATTRIBUTES, scheme=None, name_hash="sha256"):
    """A TPMT_PUBLIC."""
    numbers = key.public_key().public_numbers()
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.curve.key_size + 7) // 8
        unique = sized(numbers.x.to_bytes(size, "big")) + sized(numbers.y.to_bytes(size, "big"))
        rest = struct.pack(">HHHH", 0x18, 0x0B, CURVES[key.curve.name], 0x10) + unique
    else:
        modulus = numbers.n.to_bytes(key.key_size // 8, "big")
        rest = struct.pack(">HHHI", 0x16 if scheme == "rsapss" else 0x14, 0x0B, key.key_size, 0) + sized(modulus)
    kind = 0x23 if isinstance(key, ec.EllipticCurvePrivateKey) else 0x01
    return struct.pack(">HHIHH", kind, HASHES[name_hash], attributes, 0, 0x10) + rest


def name_of(area):
    """By which a TPM knows a key, in hex."""
    return "000b" + hashlib.sha256(area).hexdigest()


def report(key=KEY, /, values=PCRS, **changed):
    """A TpmReport; `changed`: fields that are other ones."""
    quoted = changed.get("quote", quote(values))
    pcrs = {}
    for (bank, number), value in values.items():
        pcrs.setdefault(bank, {})[number] = value
    fields = {
        "quote": quoted,
        "signature": signature(quoted, key),
        "key": public_area(key),
        "pcrs": pcrs,
        "report_data": REPORT_DATA,
    }
    return msgspec.json.encode(TpmReport(**fields | changed))


# -- event logs -----------------------------------------------------------------------------------------------------------


def spec_id(banks=("sha1", "sha256")):
    """The first event of a log."""
    sizes = b"".join(struct.pack("<HH", HASHES[bank], hashlib.new(bank).digest_size) for bank in banks)
    data = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks)) + sizes + b"\0"
    return struct.pack("<II20sI", 0, 3, b"", len(data)) + data


def event(pcr, data, kind=4, banks=("sha1", "sha256")):
    """A later one: of the data, which is what the PCR is extended with."""
    digests = b"".join(struct.pack("<H", HASHES[bank]) + hashlib.new(bank, data).digest() for bank in banks)
    return struct.pack("<III", pcr, kind, len(banks)) + digests + struct.pack("<I", len(data)) + data


def extended(*data, since=bytes(32)):
    """What a PCR of SHA-256 is when it was extended with these."""
    for each in data:
        since = hashlib.sha256(since + hashlib.sha256(each).digest()).digest()
    return since


# -- certificates ---------------------------------------------------------------------------------------------------------

ATTESTATION_KEY = x509.ObjectIdentifier("2.23.133.8.3")
CLIENT = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.2")


class Authority:
    """A CA that certifies attestation keys, and others below it."""

    def __init__(self, name="TPM CA", above=None, path_length=None, until=NOW + dt.timedelta(days=900)):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.above = above or self
        builder = self.above.builder(self.name, self.key.public_key(), until)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        self.certificate = builder.sign(self.above.key, hashes.SHA256())

    def builder(self, subject, key, until):
        return x509.CertificateBuilder(
            *(self.name, subject, key, x509.random_serial_number(), NOW - dt.timedelta(days=100), until)
        )

    def certified(self, key, use=ATTESTATION_KEY, until=NOW + dt.timedelta(days=100)):
        """A certificate of a public key, with a critical name as TPM vendors write it, which nobody else reads."""
        builder = self.builder(x509.Name([]), key, until)
        vendor = x509.Name([x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.1"), "id:57454300")])
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DirectoryName(vendor)]), critical=True)
        if use is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def revoking(self, certificate):
        """Its revocation list."""
        revoked = x509.RevokedCertificateBuilder(certificate.serial_number, NOW - dt.timedelta(days=1)).build()
        builder = x509.CertificateRevocationListBuilder(self.name, NOW, NOW + dt.timedelta(days=30))
        return builder.add_revoked_certificate(revoked).sign(self.key, hashes.SHA256())
