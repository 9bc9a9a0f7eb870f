"""A quote, its signature and a public key as a TPM writes them: bytes to fields, and nothing else. TPM 2.0 Library, part 2.

Numbers are big-endian; what has a variable size has that before it, in two bytes.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from adyton.attestation.findings import refuse

MAX_SIZE = 1 << 14  # bytes, of any of them
_MAGIC, _QUOTE = 0xFF544347, 0x8018
_SHA1, _SHA256, _SHA384, _SHA512 = 0x0004, 0x000B, 0x000C, 0x000D
HASHES = {_SHA1: "sha1", _SHA256: "sha256", _SHA384: "sha384", _SHA512: "sha512"}
_RSASSA, _RSAPSS, _ECDSA, _NULL = 0x0014, 0x0016, 0x0018, 0x0010
SCHEMES = {_RSASSA: "rsassa", _RSAPSS: "rsapss", _ECDSA: "ecdsa"}
_RSA, _ECC = 0x0001, 0x0023
_CURVES: dict[int, type[ec.EllipticCurve]] = {0x0003: ec.SECP256R1, 0x0004: ec.SECP384R1, 0x0005: ec.SECP521R1}
_RESTRICTED, _SIGN, _DECRYPT = 1 << 16, 1 << 18, 1 << 17
_FIXED = 1 << 1 | 1 << 4 | 1 << 5  # fixedTPM, fixedParent, sensitiveDataOrigin


class Quoted(NamedTuple):
    """`selected`: the PCRs, by bank. `digest`: of their values, one after the other."""

    raw: bytes
    signer: bytes
    extra: bytes
    resets: int
    restarts: int
    firmware: int
    selected: tuple[tuple[str, tuple[int, ...]], ...]
    digest: bytes


class Signature(NamedTuple):
    """`value`: of RSA. `point`: r and s of ECDSA."""

    scheme: str
    hash: str
    value: bytes
    point: tuple[int, int]


class PublicArea(NamedTuple):
    """An attestation key. `name`: by which the TPM knows it: its hash's number and its digest."""

    name: bytes
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    scheme: str


class _Reader:
    """Bytes in order; what is not there is malformed."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = data, 0, what
        if len(data) > MAX_SIZE:
            raise refuse("malformed", what, f"at most {MAX_SIZE} bytes", str(len(data)))

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise refuse("malformed", self._what, f"{end} bytes at least", str(len(self._data)))
        found = self._data[self._at : end]
        self._at = end
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        return self.take(self.number(2))

    def end(self) -> None:
        if self._at != len(self._data):
            raise refuse("malformed", self._what, "no more bytes", f"{len(self._data) - self._at} behind it")

    def one_of(self, table: dict[int, str], field: str) -> str:
        number = self.number(2)
        if number not in table:
            raise refuse("malformed", field, " or ".join(table.values()), f"{number:#06x}")
        return table[number]


def parse_quote(data: bytes) -> Quoted:
    """A TPMS_ATTEST of hostile bytes. Only EvidenceMalformedError leaves."""
    reader = _Reader(data, "the quote")
    magic, kind = reader.number(4), reader.number(2)
    if (magic, kind) != (_MAGIC, _QUOTE):
        raise refuse("malformed", "the quote", "a TPM's TPM_ST_ATTEST_QUOTE", f"magic {magic:#x}, kind {kind:#x}")
    signer, extra = reader.sized(), reader.sized()
    _clock, resets, restarts, _safe, firmware = struct.unpack(">QIIBQ", reader.take(25))
    count = reader.number(4)
    if not 0 < count <= len(HASHES):
        raise refuse("malformed", "PCR banks", f"1 to {len(HASHES)}", str(count))
    selected = []
    for _ in range(count):
        bank = reader.one_of(HASHES, "PCR bank")
        bits = int.from_bytes(reader.take(reader.number(1)), "little")
        selected.append((bank, tuple(number for number in range(bits.bit_length()) if bits >> number & 1)))
    digest = reader.sized()
    reader.end()
    return Quoted(bytes(data), signer, extra, resets, restarts, firmware, tuple(selected), digest)


def parse_signature(data: bytes) -> Signature:
    """A TPMT_SIGNATURE of hostile bytes. Only EvidenceMalformedError leaves."""
    reader = _Reader(data, "the signature")
    scheme, digest = reader.one_of(SCHEMES, "signature's scheme"), reader.one_of(HASHES, "signature's hash")
    if digest == "sha1":
        raise refuse("malformed", "signature's hash", "sha256 or longer", "sha1")
    value, point = b"", (0, 0)
    if scheme == "ecdsa":
        point = int.from_bytes(reader.sized(), "big"), int.from_bytes(reader.sized(), "big")
    else:
        value = reader.sized()
    reader.end()
    return Signature(scheme, digest, value, point)


def parse_public(data: bytes) -> PublicArea:
    """A TPMT_PUBLIC of hostile bytes: of a restricted signing key that cannot leave its TPM. EvidenceMalformedError, NotGenuineError."""
    reader = _Reader(data, "the attestation key")
    kind = reader.number(2)
    name_hash = reader.number(2)
    attributes = reader.number(4)
    reader.sized()  # the policy that it is used by
    if reader.number(2) != _NULL:
        raise refuse("malformed", "the attestation key", "no symmetric algorithm", "one")
    number = reader.number(2)
    scheme = SCHEMES.get(number, "")
    if not scheme:
        raise refuse("malformed", "scheme of the attestation key", " or ".join(SCHEMES.values()), f"{number:#06x}")
    reader.one_of(HASHES, "hash of the attestation key")
    if kind == _RSA:
        bits, exponent = reader.number(2), reader.number(4) or 65537
        modulus = int.from_bytes(reader.sized(), "big")
        if bits < 2048 or modulus.bit_length() != bits:
            raise refuse("malformed", "the attestation key", "RSA of 2048 bits or more", f"{modulus.bit_length()} bits")
        key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey = _made(
            lambda: rsa.RSAPublicNumbers(exponent, modulus).public_key()
        )
    elif kind == _ECC:
        curve = _CURVES.get(reader.number(2))
        if curve is None or reader.number(2) != _NULL:
            raise refuse("malformed", "the attestation key", "a NIST curve, and no derivation", "another")
        x, y = int.from_bytes(reader.sized(), "big"), int.from_bytes(reader.sized(), "big")
        key = _made(lambda: ec.EllipticCurvePublicNumbers(x, y, curve()).public_key())
    else:
        raise refuse("malformed", "the attestation key", "RSA or ECC", f"{kind:#06x}")
    reader.end()
    if attributes & (_RESTRICTED | _SIGN | _FIXED) != _RESTRICTED | _SIGN | _FIXED or attributes & _DECRYPT:
        raise refuse(
            "genuine",
            "the attestation key",
            "one that signs what its TPM says only, and stays there",
            f"attributes {attributes:#x}",
        )
    if name_hash not in HASHES:
        raise refuse("malformed", "name of the attestation key", " or ".join(HASHES.values()), f"{name_hash:#06x}")
    name = name_hash.to_bytes(2, "big") + hashlib.new(HASHES[name_hash], data).digest()
    return PublicArea(name, key, scheme)


def _made(make: object) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    try:
        return make()  # type: ignore[operator,no-any-return]
    except ValueError as error:
        raise refuse("malformed", "the attestation key", "a public key", str(error)[:100]) from error
