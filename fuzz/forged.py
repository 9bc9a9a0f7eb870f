"""Evidence of the right form that no hardware has made: signed by keys of our own, where it is signed. For seeds, and for tests that trust those keys."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import json
import struct
from dataclasses import dataclass, field
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

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


def revocations(
    issuer: str, signer: Key, *serials: int, at: dt.datetime = AT, digest: HashAlgorithm | None = None
) -> bytes:
    """A list of what is revoked, in DER; as of a month around `at`."""
    month = dt.timedelta(days=30)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)])
    builder = x509.CertificateRevocationListBuilder(name, at - month, at + month)
    builder = builder.add_extension(x509.CRLNumber(1), critical=False)
    for serial in serials:
        builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder(serial, at - month).build())
    return builder.sign(signer, digest or SHA384()).public_bytes(Encoding.DER)


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


LEFT_OUT = object()  # a document's field that is not there


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
        payload = {name: value for name, value in payload.items() if value is not LEFT_OUT}
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


_SGX_EXTENSION = "1.2.840.113741.1.13.1"
_ARC = bytes.fromhex("2a864886f84d010d01")  # the same, in DER
_ATTRIBUTES = {
    "sgx": bytes((5,)).ljust(16, b"\0"),
    "tdx": bytes((0, 0, 0, 0x10)).ljust(8, b"\0"),
}  # a TD's: SEPT_VE_DISABLE
Curve = ec.EllipticCurvePrivateKey


def _p256() -> Curve:
    return ec.generate_private_key(ec.SECP256R1())


def _tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = bytes((len(body),)) if len(body) < 128 else bytes((0x82, len(body) >> 8, len(body) & 255))
    return bytes((tag,)) + size + body


def _pair(*arc: int, value: bytes) -> bytes:
    return _tlv(0x30, _tlv(0x06, _ARC, bytes(arc)), value)


def _signed_raw(key: Curve, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _point(key: Curve) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


@dataclass
class Intel:
    """Intel, a processor, and its quoting enclave. `since`, `until`: of its certificates."""

    since: dt.datetime = SINCE
    until: dt.datetime = UNTIL
    fmspc: bytes = bytes.fromhex("00a067110000")
    root: Curve = field(default_factory=_p256)
    authority: Curve = field(default_factory=_p256)
    signer: Curve = field(default_factory=_p256)
    pck: Curve = field(default_factory=_p256)
    attestation: Curve = field(default_factory=_p256)

    @functools.cached_property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """Of the processor's key, who signed it, the root; and who signs collateral."""
        svns = [_pair(2, number, value=_tlv(2, b"\0")) for number in range(1, 18)]
        extension = _tlv(
            0x30,
            _pair(1, value=_tlv(4, b"\7" * 16)),
            _pair(2, value=_tlv(0x30, *svns, _pair(2, 18, value=_tlv(4, bytes(16))))),
            _pair(3, value=_tlv(4, bytes(2))),
            _pair(4, value=_tlv(4, self.fmspc)),
            _pair(5, value=_tlv(10, b"\1")),
            _pair(6, value=_tlv(4, b"\x08" * 16)),
            _pair(7, value=_tlv(0x30, *(_pair(7, number, value=_tlv(1, b"\xff")) for number in (1, 2, 3)))),
        )
        root, authority = "Intel SGX Root CA", "Intel SGX PCK Platform CA"

        def issued(name: str, key: Curve, issuer: str, by: Curve, **more: object) -> x509.Certificate:
            return certificate(name, key, issuer, by, digest=SHA256(), since=self.since, until=self.until, **more)  # type: ignore[arg-type]

        return (
            issued(
                "Intel SGX PCK Certificate",
                self.pck,
                authority,
                self.authority,
                extensions={_SGX_EXTENSION: extension},
                serial=9,
            ),
            issued(authority, self.authority, root, self.root, ca=True, serial=7),
            issued(root, self.root, root, self.root, ca=True),
            issued("Intel SGX TCB Signing", self.signer, root, self.root, serial=8),
        )

    def collateral(
        self, platform: str = "sgx", *, at: dt.datetime = AT, status: str = "UpToDate", revoked: tuple[int, ...] = ()
    ) -> bytes:
        """As a client of PCS writes it, of a month around `at`."""
        month = dt.timedelta(days=30)
        times = {
            "issueDate": f"{at - month:%FT%TZ}",
            "nextUpdate": f"{at + month:%FT%TZ}",
            "tcbEvaluationDataNumber": 17,
        }
        zeros = [{"svn": 0}] * 16
        level = {"sgxtcbcomponents": zeros, "pcesvn": 0, **({"tdxtcbcomponents": zeros} if platform == "tdx" else {})}
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        dated = {"tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": status}
        tcb = {
            "id": platform.upper(),
            "version": 3,
            **times,
            "fmspc": self.fmspc.hex().upper(),
            "pceId": "0000",
            "tcbType": 0,
        }
        tcb |= {"tdxModule": module, "tdxModuleIdentities": []} if platform == "tdx" else {}
        tcb["tcbLevels"] = [{"tcb": level, **dated}]
        enclave = {
            "id": "TD_QE" if platform == "tdx" else "QE",
            "version": 2,
            **times,
            "miscselect": "00" * 4,
            "miscselectMask": "FF" * 4,
        }
        enclave |= {
            "attributes": "11" + "00" * 15,
            "attributesMask": "FB" + "FF" * 7 + "00" * 8,
            "mrsigner": "03" * 32,
            "isvprodid": 1,
        }
        enclave["tcbLevels"] = [{"tcb": {"isvsvn": 1}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "UpToDate"}]
        texts = [json.dumps(each, separators=(",", ":")) for each in (tcb, enclave)]
        signatures = [_signed_raw(self.signer, text.encode()).hex() for text in texts]
        _, authority, root, signer = (found.public_bytes(Encoding.PEM).decode() for found in self.chain)
        return json.dumps(
            {
                "pck_crl_issuer_chain": authority + root,
                "root_ca_crl": revocations("Intel SGX Root CA", self.root, at=at, digest=SHA256()).hex(),
                "pck_crl": revocations(
                    "Intel SGX PCK Platform CA", self.authority, *revoked, at=at, digest=SHA256()
                ).hex(),
                "tcb_info_issuer_chain": signer + root,
                "tcb_info": texts[0],
                "tcb_info_signature": signatures[0],
                "qe_identity_issuer_chain": signer + root,
                "qe_identity": texts[1],
                "qe_identity_signature": signatures[1],
            }
        ).encode()

    def answers(self, platform: str = "sgx", **changes: Any) -> tuple[bytes, ...]:
        """The same as PCS answers, each by itself: TCB info, identity of the quoting enclave, lists, and the certificates that its headers have."""
        together = json.loads(self.collateral(platform, **changes))
        answers = [
            f'{{"{name}":{together[text]},"signature":"{together[text + "_signature"]}"}}'.encode()
            for name, text in (("tcbInfo", "tcb_info"), ("enclaveIdentity", "qe_identity"))
        ]
        lists = [bytes.fromhex(together[name]) for name in ("root_ca_crl", "pck_crl")]
        return (*answers, *lists, together["tcb_info_issuer_chain"].encode())

    def quote(
        self,
        version: int,
        *,
        kind: int = 2,
        attributes: bytes | None = None,
        certified: int = 5,
        service: bytes = b"",
        report_data: bytes = bytes(64),
    ) -> bytes:
        """A quote of SGX (version 3) or TDX (4, 5: `kind` 2 or 3), signed. `certified`: the type of its certification data; `service`: MRSERVICETD of kind 3."""
        platform = "sgx" if version == 3 else "tdx"
        unsigned = quote(version, kind=kind, report_data=report_data)
        signed = bytearray(unsigned[: len(unsigned) - 604])
        at = 48 + 48 if version == 3 else 48 + (6 if version == 5 else 0) + 120
        attributes = _ATTRIBUTES[platform] if attributes is None else attributes
        signed[at : at + len(attributes)] = attributes
        if service:
            signed[-48:] = service
        beside = bytes(range(32))
        about = hashlib.sha256(_point(self.attestation) + beside).digest().ljust(64, b"\0")
        enclave = (
            bytes(48)
            + b"\x11".ljust(16, b"\0")
            + b"\4" * 32
            + bytes(32)
            + b"\3" * 32
            + bytes(96)
            + struct.pack("<HH", 1, 1)
            + bytes(60)
            + about
        )
        chain = b"".join(found.public_bytes(Encoding.PEM) for found in self.chain[:3])
        certificates = chain if certified == 5 else b"\5" * 404
        endorsed = (
            enclave
            + _signed_raw(self.pck, enclave)
            + struct.pack("<H", len(beside))
            + beside
            + struct.pack("<HI", certified, len(certificates))
            + certificates
        )
        if version > 3:
            endorsed = struct.pack("<HI", 6, len(endorsed)) + endorsed
        signature = _signed_raw(self.attestation, bytes(signed)) + _point(self.attestation) + endorsed
        return bytes(signed) + struct.pack("<I", len(signature)) + signature


def p256_certificate() -> bytes:
    """One of an ordinary kind."""
    key = ec.generate_private_key(ec.SECP256R1())
    return der(certificate("tee.example", key, digest=SHA256()))
