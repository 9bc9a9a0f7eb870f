"""A stand-in for AMD: keys and certificates like a chip's, and reports that such a chip signs. Genuine to whoever trusts its root."""

from __future__ import annotations

import ctypes
import datetime as dt
import functools
import hashlib
import struct
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from adyton.attestation.sev_snp.sealing_key import GET_DERIVED_KEY, GET_REPORT

CHIP = bytes(range(64))
MEASUREMENT = bytes(range(48))
TCB = bytes([4, 0, 0, 0, 0, 0, 0x20, 0xDB])  # Milan: bootloader, TEE, and at the end SNP and microcode
_AMD = "1.3.6.1.4.1.3704.1."
_SINCE, _UNTIL = dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), padding.PSS.DIGEST_LENGTH)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _integer(value: int) -> bytes:
    body = value.to_bytes(2 if value > 127 else 1, "big")
    return bytes([2, len(body)]) + body


class Amd:
    """One chip's. `roots`: what `sev_snp.certificates.roots` is to give."""

    def __init__(self) -> None:
        root, signer = (rsa.generate_private_key(65537, 2048) for _ in range(2))
        self._key = ec.generate_private_key(ec.SECP384R1())
        self.ark = self._issued("ARK-Milan", root.public_key(), "ARK-Milan", root, ca=True)
        self.ask = self._issued("SEV-Milan", signer.public_key(), "ARK-Milan", root, ca=True)
        extensions = {
            "2": bytes([0x16, 8]) + b"Milan-B0",
            "3.1": _integer(TCB[0]),
            "3.2": _integer(TCB[1]),
            "3.3": _integer(TCB[6]),
            "3.8": _integer(TCB[7]),
            "4": CHIP,
        }
        self.vcek = self._issued("SEV-VCEK", self._key.public_key(), "SEV-Milan", signer, extensions)
        self.roots = {"Milan": (self.ark, self.ask)}

    @staticmethod
    def _issued(name, key, issuer, issuers_key, extensions=None, *, ca=False) -> x509.Certificate:
        builder = x509.CertificateBuilder(_name(issuer), _name(name), key, 1, _SINCE, _UNTIL)
        if ca:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        for number, value in (extensions or {}).items():
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(_AMD + number), value)
            builder = builder.add_extension(unknown, critical=False)
        return builder.sign(issuers_key, hashes.SHA384(), rsa_padding=_PSS)

    def report(self, report_data: bytes, measurement: bytes = MEASUREMENT) -> bytes:
        """Of version 2: AMD 56860, "ATTESTATION_REPORT Structure"."""
        report = bytearray(0x4A0)
        struct.pack_into("<IIQ", report, 0, 2, 0, 1 << 17)  # version, guest's version, policy
        struct.pack_into("<II", report, 0x30, 0, 1)  # VMPL, ECDSA P-384 with SHA-384
        for at, value in ((0x38, TCB), (0x50, report_data), (0x90, measurement), (0x180, TCB), (0x1A0, CHIP)):
            report[at : at + len(value)] = value
        r, s = decode_dss_signature(self._key.sign(bytes(report[:0x2A0]), ec.ECDSA(hashes.SHA384())))
        report[0x2A0 : 0x2A0 + 48], report[0x2E8 : 0x2E8 + 48] = r.to_bytes(48, "little"), s.to_bytes(48, "little")
        return bytes(report)

    @functools.cached_property
    def table(self) -> bytes:
        """What its host gives along."""
        vcek, ask = (each.public_bytes(Encoding.DER) for each in (self.vcek, self.ask))
        guids = (UUID("63da758d-e664-4564-adc5-f4b93be8accd"), UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"))
        heads = struct.pack("<16sII", guids[0].bytes, 72, len(vcek))
        heads += struct.pack("<16sII", guids[1].bytes, 72 + len(vcek), len(ask))
        return heads + bytes(24) + vcek + ask


COMMITTED = b"\3\0\0\0\0\0\x08\x73"


def report_of(vmpl: int, committed: bytes) -> bytes:
    """A report of version 2, unsigned: AMD 56860, ATTESTATION_REPORT."""
    report = bytearray(0x4A0)
    struct.pack_into("<IIQ", report, 0, 2, 0, 0x30000)
    struct.pack_into("<II", report, 0x30, vmpl, 1)
    report[0x1E0:0x1E8] = committed
    return bytes(report)


class Firmware:
    """The ioctls of linux/sev-guest.h, byte for byte; a guest at `vmpl`, on a machine that has committed to that TCB. `asked`: of each, number and request.

    `measured`: what the chip mixes into its keys along with what it is asked to."""

    def __init__(
        self, vmpl: int = 0, committed: bytes = COMMITTED, status: int = 0, measured: bytes = MEASUREMENT
    ) -> None:
        self.vmpl = vmpl
        self.committed = committed
        self.status = status
        self.measured = measured
        self.asked: list[tuple[int, bytes]] = []

    def __call__(self, descriptor: int, number: int, argument: bytearray) -> int:
        """In the caller's own memory."""
        assert descriptor == 42
        assert len(argument) == number >> 16 & 0x3FFF == 32
        version, request, response, errors = struct.unpack("<B7xQQQ", argument)
        assert (version, errors) == (1, 0)
        size, room = self.sizes(number)
        answer = self.answer(number, ctypes.string_at(request, size))
        assert len(answer) == room
        ctypes.memmove(response, answer, room)
        return 0

    @staticmethod
    def sizes(number: int) -> tuple[int, int]:
        """Bytes of a request and of its answer."""
        return {GET_REPORT: (96, 4000), GET_DERIVED_KEY: (32, 64)}[number]

    def answer(self, number: int, asked: bytes) -> bytes:
        self.asked.append((number, asked))
        return self.report(asked) if number == GET_REPORT else self.derived(asked)

    def report(self, asked: bytes) -> bytes:
        data, vmpl, rest = struct.unpack("<64sI28s", asked)
        assert not any(data + rest)
        if vmpl < self.vmpl:
            return struct.pack("<II", 0x16, 0).ljust(4000, b"\0")
        report = report_of(vmpl, self.committed)
        return (struct.pack("<II24x", 0, len(report)) + report).ljust(4000, b"\0")

    def derived(self, asked: bytes) -> bytes:
        root, reserved, fields, vmpl, svn, tcb = struct.unpack("<IIQIIQ", asked)
        assert (root, reserved, svn) == (0, 0, 0)
        too_new = any(part > most for part, most in zip(struct.pack("<Q", tcb), self.committed, strict=True))
        status = self.status or (0x16 if vmpl < self.vmpl or too_new else 0)
        mixed = struct.pack("<QIQ", fields, vmpl, tcb) + self.measured
        key = hashlib.sha256(b"chip's secret" + mixed).digest() if not status else bytes(32)
        return struct.pack("<I28x", status) + key
