"""A stand-in for Intel: a processor's keys and certificates, quotes that its quoting enclave signs, and what Intel publishes of it. Genuine to whoever
trusts its root."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import struct
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

CPU_SVN = bytes([7] * 16)
FMSPC = bytes.fromhex("00a067110000")
INSTANCE = bytes(range(16))
_AUTHENTICATION = bytes(32)
_PCE_SVN, _QE_SVN = 13, 8
_QE_SIGNER = hashlib.sha256(b"the quoting enclave's signer").digest()
_SINCE, _UNTIL = dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
_SGX = "1.2.840.113741.1.13.1"
_ATTRIBUTES = (0x05).to_bytes(8, "little") + (0xE7).to_bytes(8, "little")  # initialized, 64 bits
_TIMES = {"issueDate": "2026-01-01T00:00:00Z", "nextUpdate": "2039-01-01T00:00:00Z"}


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = bytes([len(body)]) if len(body) < 128 else bytes([0x82]) + len(body).to_bytes(2, "big")
    return bytes([tag]) + size + body


def _oid(text: str) -> bytes:
    first, second, *rest = map(int, text.split("."))
    body = bytearray([40 * first + second])
    for number in rest:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(number & 0x7F | 0x80)
        body += bytes(reversed(groups))
    return _der(6, bytes(body))


def _entry(number: str, value: bytes) -> bytes:
    return _der(0x30, _oid(f"{_SGX}.{number}"), value)


def _integer(value: int) -> bytes:
    return _der(2, value.to_bytes(2 if value > 127 else 1, "big"))


def _extension() -> bytes:
    """Of a PCK certificate: Intel's "SGX PCK Certificate and CRL Profile Specification"."""
    tcb = [_entry(f"2.{at + 1}", _integer(svn)) for at, svn in enumerate(CPU_SVN)]
    tcb += [_entry("2.17", _integer(_PCE_SVN)), _entry("2.18", _der(4, CPU_SVN))]
    return _der(
        0x30,
        _entry("1", _der(4, bytes(16))),
        _entry("2", _der(0x30, *tcb)),
        _entry("3", _der(4, bytes(2))),
        _entry("4", _der(4, FMSPC)),
        _entry("5", _der(10, b"\1")),
        _entry("6", _der(4, INSTANCE)),
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def enclave_report(
    mrenclave: bytes, report_data: bytes, signer: bytes = bytes(32), product: int = 0, svn: int = 0
) -> bytes:
    """The body of a REPORT: SDM 3D."""
    return struct.pack(
        "<16sI28x16s32s32x32s96xHH60x64s", CPU_SVN, 0, _ATTRIBUTES, mrenclave, signer, product, svn, report_data
    )


class Intel:
    """One processor's. `root`: in DER, what `dcap_qvl` is to trust."""

    def __init__(self) -> None:
        self._root, self._platform, self._tcb, self._pck, self._attestation = (
            ec.generate_private_key(ec.SECP256R1()) for _ in range(5)
        )
        self._authority = self._issued("Intel SGX Root CA", self._root, "Intel SGX Root CA", self._root, ca=True)
        self._intermediate = self._issued(
            "Intel SGX PCK Platform CA", self._platform, "Intel SGX Root CA", self._root, ca=True
        )
        self._signer = self._issued("Intel SGX TCB Signing", self._tcb, "Intel SGX Root CA", self._root)
        self._certificate = self._issued(
            "Intel SGX PCK Certificate", self._pck, "Intel SGX PCK Platform CA", self._platform, _extension()
        )
        self.root = self._authority.public_bytes(Encoding.DER)

    @staticmethod
    def _issued(name, key, issuer, issuers_key, extension=b"", *, ca=False) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            _name(issuer), _name(name), key.public_key(), x509.random_serial_number(), _SINCE, _UNTIL
        ).add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        usage = x509.KeyUsage(*(not ca, not ca, False, False, False, ca, ca), encipher_only=False, decipher_only=False)
        builder = builder.add_extension(usage, critical=True)
        if extension:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(_SGX), extension)
            builder = builder.add_extension(unknown, critical=False)
        return builder.sign(issuers_key, hashes.SHA256())

    @staticmethod
    def _signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
        return b"".join(
            each.to_bytes(32, "big") for each in decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
        )

    def quote(self, mrenclave: bytes, report_data: bytes) -> bytes:
        """Of version 3: Intel's "ECDSA Quote Library API", appendix A.4."""
        vendor = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
        signed = struct.pack("<HHIHH16s20x", 3, 2, 0, _QE_SVN, _PCE_SVN, vendor) + enclave_report(
            mrenclave, report_data
        )
        numbers = self._attestation.public_key().public_numbers()
        key = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        own = hashlib.sha256(b"the quoting enclave").digest()
        report = enclave_report(own, hashlib.sha256(key + _AUTHENTICATION).digest() + bytes(32), _QE_SIGNER, 1, _QE_SVN)
        chain = b"".join(
            each.public_bytes(Encoding.PEM) for each in (self._certificate, self._intermediate, self._authority)
        )
        data = b"".join(
            (
                self._signature(self._attestation, signed),
                key,
                report,
                self._signature(self._pck, report),
                struct.pack("<H", len(_AUTHENTICATION)) + _AUTHENTICATION,
                struct.pack("<HI", 5, len(chain)),
                chain,
            )
        )
        return signed + struct.pack("<I", len(data)) + data

    def publish(self, folder: Path) -> None:
        """What a verifier needs, as Intel's service has it."""
        tcb = {
            "id": "SGX",
            "version": 3,
            **_TIMES,
            "fmspc": FMSPC.hex().upper(),
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": 17,
            "tcbLevels": [
                {
                    "tcb": {"sgxtcbcomponents": [{"svn": each} for each in CPU_SVN], "pcesvn": _PCE_SVN},
                    "tcbDate": "2025-01-01T00:00:00Z",
                    "tcbStatus": "UpToDate",
                }
            ],
        }
        identity = {
            "id": "QE",
            "version": 2,
            **_TIMES,
            "tcbEvaluationDataNumber": 17,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "05" + "00" * 15,
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": _QE_SIGNER.hex().upper(),
            "isvprodid": 1,
            "tcbLevels": [{"tcb": {"isvsvn": _QE_SVN}, "tcbDate": "2025-01-01T00:00:00Z", "tcbStatus": "UpToDate"}],
        }
        for name, value in (("tcbInfo", tcb), ("enclaveIdentity", identity)):
            text = json.dumps(value, separators=(",", ":"))
            signature = self._signature(self._tcb, text.encode()).hex()
            (folder / f"{name}.json").write_text(f'{{"{name}":{text},"signature":"{signature}"}}')
        for number, each in enumerate((self._authority, self._intermediate, self._signer)):
            (folder / f"{number}.pem").write_bytes(each.public_bytes(Encoding.PEM))
        for name, key in (("Intel SGX Root CA", self._root), ("Intel SGX PCK Platform CA", self._platform)):
            builder = x509.CertificateRevocationListBuilder(_name(name), _SINCE, _UNTIL)
            builder = builder.add_extension(x509.CRLNumber(1), critical=False)
            crl = builder.sign(key, hashes.SHA256())
            (folder / f"{name}.crl").write_bytes(crl.public_bytes(Encoding.DER))
