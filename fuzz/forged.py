"""Evidence of the right form that no hardware has made: signed by keys of our own, where it is signed. For seeds, and for tests that trust those keys."""

from __future__ import annotations

import datetime as dt
import functools
import struct
from dataclasses import dataclass, field

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

SINCE, AT, UNTIL = (dt.datetime(year, 6, 1, tzinfo=dt.UTC) for year in (2024, 2025, 2026))
_AMD = "1.3.6.1.4.1.3704.1."
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def certificate(
    name: str,
    key: Key,
    issuer: str | None = None,
    signer: Key | None = None,
    *,
    ca: bool = False,
    extensions: dict[str, bytes] | None = None,
    since: dt.datetime = SINCE,
    until: dt.datetime = UNTIL,
    digest: HashAlgorithm | None = None,
    serial: int = 1,
) -> x509.Certificate:
    """Of a key, by another one, or by itself. `extensions`: by OID."""

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    builder = x509.CertificateBuilder(named(issuer or name), named(name), key.public_key(), serial, since, until)
    builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    for oid, value in (extensions or {}).items():
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False)
    signer = signer or key
    if isinstance(signer, rsa.RSAPrivateKey):  # as AMD signs
        return builder.sign(signer, SHA384(), rsa_padding=padding.PSS(padding.MGF1(SHA384()), 48))
    return builder.sign(signer, digest or SHA384())


def revocations(issuer: str, signer: Key, *serials: int, at: dt.datetime = AT) -> bytes:
    """A list of what is revoked, in DER; as of a month around `at`."""
    month = dt.timedelta(days=30)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)])
    builder = x509.CertificateRevocationListBuilder(name, at - month, at + month)
    for serial in serials:
        builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder(serial, at - month).build())
    return builder.sign(signer, SHA384()).public_bytes(Encoding.DER)


def der(found: x509.Certificate) -> bytes:
    """Its bytes."""
    return found.public_bytes(Encoding.DER)


# -- SEV-SNP --------------------------------------------------------------------------------------------------------------

CPUS = {"Milan": (0x19, 0x01), "Genoa": (0x19, 0x11), "Turin": (0x1A, 0x02)}
TCB = {"Milan": bytes((4, 0, 0, 0, 0, 0, 0x20, 0xDB)), "Genoa": bytes((9, 0, 0, 0, 0, 0, 0x20, 0x54))}
TCB["Turin"] = bytes((1, 2, 3, 0x10, 0, 0, 0, 0x50))


@dataclass
class Amd:
    """AMD, a chip of its, and a cloud's key."""

    product: str = "Milan"
    chip: bytes = bytes(range(64))
    root: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))
    between: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))

    @functools.cached_property
    def chain(self) -> tuple[x509.Certificate, x509.Certificate]:
        """The root, and who signs chips' keys."""
        return (
            certificate(f"ARK-{self.product}", self.root, ca=True),
            certificate(f"SEV-{self.product}", self.between, f"ARK-{self.product}", self.root, ca=True, serial=7),
        )

    @functools.cached_property
    def clouds(self) -> x509.Certificate:
        """Who signs clouds' keys."""
        return certificate(f"SEV-VLEK-{self.product}", self.between, f"ARK-{self.product}", self.root, ca=True)

    def endorsement(self, *, vlek: bool = False, tcb: bytes | None = None, **changes: dt.datetime) -> x509.Certificate:
        """Of the key that signs reports."""
        tcb = TCB[self.product] if tcb is None else tcb
        parts = ("3.1", "3.2", "3.3", "3.8")
        at = (0, 1, 6, 7)
        if self.product == "Turin":
            parts, at = ("3.9", *parts), (0, 1, 2, 3, 7)

        def number(value: int) -> bytes:
            return bytes((2, 1, value)) if value < 128 else bytes((2, 2, 0, value))

        def text(value: bytes) -> bytes:
            return bytes((0x16, len(value))) + value

        found = {_AMD + oid: number(tcb[place]) for oid, place in zip(parts, at, strict=True)}
        found[_AMD + "2"] = text(self.product.encode() + (b"" if vlek else b"-B0"))
        chip = self.chip[:8] if self.product == "Turin" else self.chip
        found |= {_AMD + "5": text(b"a cloud")} if vlek else {_AMD + "4": chip}
        issuer = f"SEV-VLEK-{self.product}" if vlek else f"SEV-{self.product}"
        name = "SEV-VLEK" if vlek else "SEV-VCEK"
        return certificate(name, self.key, issuer, self.between, extensions=found, serial=9, **changes)  # type: ignore[arg-type]

    def report(
        self,
        version: int = 3,
        *,
        vlek: bool = False,
        policy: int = 0x30000,
        report_data: bytes = bytes(64),
        measurement: bytes = b"\1" * 48,
        tcb: bytes | None = None,
        vmpl: int = 0,
        masked: bool = False,
        cpu: tuple[int, int] | None = None,
    ) -> bytes:
        """A report, signed by that key. `policy`: bit 19 is debug."""
        tcb = TCB[self.product] if tcb is None else tcb
        family, model = cpu or CPUS[self.product]
        chip = self.chip[:8].ljust(64, b"\0") if self.product == "Turin" else self.chip
        flags = (vlek << 2) | (masked << 1)
        head = struct.pack("<IIQ16s16sII8sQII", version, 0, policy, b"", b"", vmpl, 1, tcb, 0, flags, 0)
        head += report_data + measurement + bytes(32 + 48 + 48 + 32) + b"\xff" * 32 + tcb
        head += bytes((family, model, 0) if version > 2 else 3).ljust(24, b"\0")
        head += (bytes(64) if masked or vlek else chip) + tcb + bytes((1, 55, 1, 0, 1, 55, 1, 0)) + tcb
        signed = head.ljust(0x2A0, b"\0")
        r, s = decode_dss_signature(self.key.sign(signed, ec.ECDSA(SHA384())))
        return signed + (r.to_bytes(72, "little") + s.to_bytes(72, "little")).ljust(0x200, b"\0")


# -- Nitro ----------------------------------------------------------------------------------------------------------------


@dataclass
class Aws:
    """AWS, and an enclave's key."""

    root: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))

    @functools.cached_property
    def root_certificate(self) -> x509.Certificate:
        """Of AWS."""
        return certificate("aws.nitro-enclaves", self.root, ca=True)

    def document(
        self, *, user_data: bytes | None = bytes(64), pcr: bytes = b"\1" * 48, at: dt.datetime = AT, **more: object
    ) -> bytes:
        """A document, signed."""
        leaf = certificate("an enclave", self.key, "aws.nitro-enclaves", self.root)
        payload = {
            "module_id": "i-0-enc0",
            "timestamp": int(at.timestamp() * 1000),
            "digest": "SHA384",
            "pcrs": {number: pcr if number < 3 else bytes(48) for number in range(16)},
            "certificate": der(leaf),
            "cabundle": [der(self.root_certificate)],
            "public_key": None,
            "user_data": user_data,
            "nonce": None,
            **more,
        }
        protected, body = cbor2.dumps({1: -35}), cbor2.dumps(payload)
        signed = cbor2.dumps(["Signature1", protected, b"", body])
        r, s = decode_dss_signature(self.key.sign(signed, ec.ECDSA(SHA384())))
        return cbor2.dumps([protected, {}, body, r.to_bytes(48, "big") + s.to_bytes(48, "big")])


# -- SGX and TDX ----------------------------------------------------------------------------------------------------------

_INTEL = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")


def quote(
    version: int, *, kind: int = 2, debug: bool = False, report_data: bytes = bytes(64), signature: bytes = bytes(600)
) -> bytes:
    """A quote of SGX (version 3) or TDX (4, 5: `kind` 2 or 3), signed by nobody."""
    head = struct.pack("<HHIHH16s20s", version, 2, 0 if version == 3 else 0x81, 1, 1, _INTEL, b"")
    if version == 3:
        body = bytes(48) + bytes([5 | debug << 1]).ljust(16, b"\0") + b"\1" * 32 + bytes(32) + b"\2" * 32 + bytes(160)
        body = body[:320] + report_data
    else:
        body = bytes(16 + 48 + 48 + 8) + bytes([debug]).ljust(8, b"\0") + bytes(8) + b"\1" * 48 + bytes(144)
        body += b"\2" * 192 + report_data
        body += bytes(64) if version == 5 and kind == 3 else b""
    about = struct.pack("<HI", kind, len(body)) if version == 5 else b""
    return head + about + body + struct.pack("<I", len(signature)) + signature


def p256_certificate() -> bytes:
    """One of an ordinary kind."""
    key = ec.generate_private_key(ec.SECP256R1())
    return der(certificate("tee.example", key, digest=SHA256()))
