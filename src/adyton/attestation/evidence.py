"""The envelope of evidence: JSON that says its version and platform, around what the platform made; and which vendor's raw evidence is which.

    {"adyton_evidence": 1, "platform": "sim", "body": …}

Of hardware, the body is what the hardware signed, what the runtime says of its image (which the signed report data is bound to), and certificates
that help to verify it. Evidence in a file also has what it is bound to, which on a connection both ends know.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec

from adyton.attestation.binding import bound_to, connection_digest
from adyton.attestation.identity import PLATFORMS, Digest, DigestOrNone, EnclaveIdentity, Number, Platform
from adyton.errors import EvidenceMalformedError

VERSION = 1
MAX_EVIDENCE = 1 << 18  # bytes; the event log of a TPM has up to 1 << 17, in base64 twice
REPORT_DATA_SIZE = 64  # bytes: what every platform can sign along

_T = TypeVar("_T")


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Evidence before anything of it is believed. `body` is JSON as the platform's module reads it."""

    adyton_evidence: int
    platform: Platform
    body: msgspec.Raw
    bound: Bound | None = None


class ImageClaims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a runtime says of the image that it executes."""

    measurement: Digest
    signer: DigestOrNone
    product_id: Number
    security_version: Number
    debug: bool

    @classmethod
    def of(cls, identity: EnclaveIdentity) -> ImageClaims:
        return cls(*(getattr(identity, field) for field in cls.__struct_fields__))

    def on(self, platform: Platform) -> EnclaveIdentity:
        """The identity as far as the runtime knows it."""
        return EnclaveIdentity(platform=platform, **msgspec.structs.asdict(self), runtime="", machine="")


class Bound(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What report data was made of, besides the identity: see `adyton.attestation.binding`."""

    role: Annotated[str, msgspec.Meta(max_length=32)]
    nonce: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    exporter: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    key_digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    verifier_key_digest: Annotated[bytes, msgspec.Meta(max_length=32)] = b""

    def connection(self) -> bytes:
        """What of the report data is the connection's: 64 bytes."""
        return connection_digest(
            role=self.role.encode(),
            nonce=self.nonce,
            exporter=self.exporter,
            key_digest=self.key_digest,
            verifier_key_digest=self.verifier_key_digest,
        )

    def report_data(self, identity_digest: bytes) -> bytes:
        """The 64 bytes, for evidence that says to be of an identity."""
        return bound_to(self.connection(), identity_digest)


class HardwareBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`report`: as the platform made it. `certificates`: in DER, the issuer's behind each; not believed, but tried."""

    report: Annotated[bytes, msgspec.Meta(max_length=MAX_EVIDENCE)]
    image: ImageClaims
    certificates: Annotated[list[bytes], msgspec.Meta(max_length=16)] = []


class _Head(msgspec.Struct, frozen=True):
    """What tells evidence of a later version from no evidence at all."""

    adyton_evidence: int
    platform: str


def seal(platform: Platform, body: Any) -> bytes:
    """Evidence around a platform's body."""
    return msgspec.json.encode(Envelope(VERSION, platform, msgspec.Raw(msgspec.json.encode(body))))


def with_bound(evidence: bytes, bound: Bound) -> bytes:
    """Evidence that came on a connection, with what it is bound to there, to be judged elsewhere. EvidenceMalformedError."""
    return msgspec.json.encode(msgspec.structs.replace(open_envelope(evidence), bound=bound))


def open_envelope(evidence: bytes) -> Envelope:
    """The envelope of hostile bytes; EvidenceMalformedError says why it is none."""
    if len(evidence) > MAX_EVIDENCE:
        raise EvidenceMalformedError(
            f"the evidence has {len(evidence)} bytes, and no more than {MAX_EVIDENCE} are read: it is no evidence of adyton's"
        )
    head = decode(evidence, _Head)
    if head.adyton_evidence != VERSION:
        raise EvidenceMalformedError(
            f"the evidence has version {head.adyton_evidence}, and this adyton reads version {VERSION}: use the same release on both sides"
        )
    if head.platform not in PLATFORMS:
        raise EvidenceMalformedError(
            f"the evidence is of platform {head.platform[:32]!r}, which is none of {' '.join(PLATFORMS)}"
        )
    return decode(evidence, Envelope)


def decode(text: bytes | msgspec.Raw, kind: type[_T]) -> _T:
    """A part of hostile evidence, strictly; EvidenceMalformedError for anything but a well-formed one."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise EvidenceMalformedError(f"the evidence cannot be read: {error}") from error


# -- vendors' raw evidence ------------------------------------------------------------------------------------------------

_HEX = re.compile(rb"(?:[0-9a-fA-F]{2}\s*)+")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\s-]+={0,2}\s*")  # with either alphabet, padded or not
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_INTEL = bytes.fromhex(
    "939a7233f79c4ca9940a0db3957f0607"
)  # behind the version, the kind of key and of TEE, and two numbers
_TEES: dict[int, Platform] = {0x00: "sgx", 0x81: "tdx"}
_TPM_MAGIC = b"\xffTCG"


def _is_intels(data: bytes) -> Platform | None:
    return _TEES.get(*struct.unpack_from("<4xI", data)) if data[12:28] == _INTEL else None


def _is_amds(data: bytes) -> Platform | None:
    if len(data) < 0x38:
        return None
    version, algorithm = struct.unpack_from("<I48xI", data)
    return "sev-snp" if 0 < version < 256 and algorithm == 1 else None


def _is_nitros(data: bytes) -> Platform | None:
    return "nitro" if data[:1] == b"\x84" or data[:2] == b"\xd2\x84" else None


def _is_tpms(data: bytes) -> Platform | None:
    return "tpm" if _TPM_MAGIC in (data[:4], data[2:6]) else None


_KINDS: tuple[Callable[[bytes], Platform | None], ...] = (_is_intels, _is_amds, _is_nitros, _is_tpms)


def raw_kind(data: bytes) -> tuple[Platform, bytes] | None:
    """Which platform's raw evidence these hostile bytes look like, and the bytes, which may be written in hex or base64; None: no one's."""
    for plain in (data, *_decoded(data)):
        for kind in _KINDS:
            if (platform := kind(plain)) is not None:
                return platform, plain
    return None


def _decoded(text: bytes) -> list[bytes]:
    found = []
    digits = text.strip().removeprefix(b"0x")
    if _HEX.fullmatch(digits):
        found.append(bytes.fromhex(digits.decode()))
    if _BASE64.fullmatch(text):
        digits = b"".join(text.split()).translate(_URL_SAFE).rstrip(b"=")
        try:
            found.append(base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True))
        except binascii.Error:
            pass
    return found
