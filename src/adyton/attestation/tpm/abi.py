"""A quote, its signature and a public key as a TPM writes them: bytes to fields, and nothing else. TPM 2.0 Library, part 2.

Numbers are big-endian; what has a variable size has that before it, in two bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from adyton.attestation.findings import refuse

MAX_SIZE = 1 << 14  # bytes, of any of them
MAGIC = b"\xffTCG"
_QUOTE = 0x8018
SHA1, SHA256, SHA384, SHA512 = 0x0004, 0x000B, 0x000C, 0x000D
HASHES = {SHA1: "sha1", SHA256: "sha256", SHA384: "sha384", SHA512: "sha512"}
SIZES = {name: hashlib.new(name).digest_size for name in HASHES.values()}  # bytes
RSASSA, RSAPSS, ECDSA, NULL = 0x0014, 0x0016, 0x0018, 0x0010
SCHEMES = {RSASSA: "rsassa", RSAPSS: "rsapss", ECDSA: "ecdsa"}
RSA, ECC, KEYED_HASH = 0x0001, 0x0023, 0x0008
HMAC = 0x0005
P256 = 0x0003
_CURVES: dict[int, type[ec.EllipticCurve]] = {P256: ec.SECP256R1, 0x0004: ec.SECP384R1, 0x0005: ec.SECP521R1}
_RSA_BITS = (2048, 3072, 4096)
_BITMAP = (3, 4)  # bytes that say which PCRs are selected: a PC's TPM has 24

FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN = 1 << 1, 1 << 4, 1 << 5
USER_WITH_AUTH, NO_DA = 1 << 6, 1 << 10
RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18

Key = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class Quoted(NamedTuple):
    """`selected`: the PCRs, by bank, in the order of their values in what `digest` is of. `extra`: what its caller had signed along."""

    raw: bytes
    extra: bytes
    resets: int
    restarts: int
    firmware: int
    selected: tuple[tuple[str, tuple[int, ...]], ...]
    digest: bytes

    @property
    def registers(self) -> list[tuple[str, int]]:
        """The PCRs, in that order."""
        return [(bank, number) for bank, numbers in self.selected for number in numbers]

    @property
    def selection(self) -> str:
        """As people write it: "sha256:0,1,2"."""
        return "+".join(f"{bank}:{','.join(map(str, numbers))}" for bank, numbers in self.selected)


class Signature(NamedTuple):
    """`value`: of RSA. `point`: r and s of ECDSA."""

    scheme: str
    hash: str
    value: bytes
    point: tuple[int, int]


class PublicArea(NamedTuple):
    """A signing key. `name`: by which the TPM knows it: the number of a hash, and that of the whole area."""

    name: bytes
    key: Key
    scheme: str
    attributes: int


class Reader:
    """Bytes in order; what is not there is malformed. Only EvidenceMalformedError leaves."""

    def __init__(
        self, data: bytes, what: str, order: Literal["big", "little"] = "big", *, most: int = MAX_SIZE
    ) -> None:
        self._data, self._at, self._what, self._order = bytes(data), 0, what, order
        if len(data) > most:
            raise refuse("malformed", what, f"at most {most} bytes", str(len(data)))

    def __bool__(self) -> bool:
        """Whether there are bytes left."""
        return self._at < len(self._data)

    @property
    def read(self) -> bytes:
        """All that was taken."""
        return self._data[: self._at]

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise refuse("malformed", self._what, f"{end} bytes at least", str(len(self._data)))
        found = self._data[self._at : end]
        self._at = end
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), self._order)

    def sized(self) -> bytes:
        return self.take(self.number(2))

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        if self:
            raise refuse("malformed", self._what, "no more bytes", f"{len(self._data) - self._at} behind it")

    def one_of(self, table: Mapping[int, str], field: str) -> str:
        number = self.number(2)
        if number not in table:
            raise refuse("malformed", field, " or ".join(table.values()), f"{number:#06x}")
        return table[number]


def parse_quote(data: bytes) -> Quoted:
    """A TPMS_ATTEST of hostile bytes. Only EvidenceMalformedError leaves."""
    quoted, behind = split_quote(data)
    if behind:
        raise refuse("malformed", "the quote", "no more bytes", f"{len(behind)} behind it")
    return quoted


def split_quote(data: bytes) -> tuple[Quoted, bytes]:
    """The same, and the bytes behind it."""
    reader = Reader(data, "the quote")
    magic, kind = reader.take(4), reader.number(2)
    if (magic, kind) != (MAGIC, _QUOTE):
        raise refuse("malformed", "the quote", "a TPM's TPM_ST_ATTEST_QUOTE", f"magic {magic.hex()}, kind {kind:#x}")
    reader.sized()  # the qualified name of the key, which says where in the TPM it is
    extra = reader.sized()
    _clock, resets, restarts, safe, firmware = struct.unpack(">QIIBQ", reader.take(25))
    if safe > 1:
        raise refuse("malformed", "clock of the quote", "safe, or not", str(safe))
    count = reader.number(4)
    if not 0 < count <= len(HASHES):
        raise refuse("malformed", "PCR banks", f"1 to {len(HASHES)}", str(count))
    selected = tuple(_selection(reader) for _ in range(count))
    digest = reader.sized()
    return Quoted(reader.read, extra, resets, restarts, firmware, selected, digest), reader.rest()


def _selection(reader: Reader) -> tuple[str, tuple[int, ...]]:
    bank = reader.one_of(HASHES, "PCR bank")
    size = reader.number(1)
    if size not in _BITMAP:
        raise refuse("malformed", "selection of PCRs", " or ".join(f"{each} bytes" for each in _BITMAP), str(size))
    bits = int.from_bytes(reader.take(size), "little")
    return bank, tuple(number for number in range(bits.bit_length()) if bits >> number & 1)


def parse_signature(data: bytes) -> Signature:
    """A TPMT_SIGNATURE of hostile bytes. Only EvidenceMalformedError leaves."""
    reader = Reader(data, "the signature")
    scheme, digest = reader.one_of(SCHEMES, "scheme of the signature"), reader.one_of(HASHES, "hash of the signature")
    value, point = b"", (0, 0)
    if scheme == "ecdsa":
        point = int.from_bytes(reader.sized(), "big"), int.from_bytes(reader.sized(), "big")
    else:
        value = reader.sized()
    reader.end()
    return Signature(scheme, digest, value, point)


def parse_public(data: bytes) -> PublicArea:
    """A TPMT_PUBLIC of hostile bytes, of a key that signs by one scheme. Only EvidenceMalformedError leaves."""
    reader = Reader(data, "the attestation key")
    kind = reader.number(2)
    if kind not in (RSA, ECC):
        raise refuse("malformed", "the attestation key", "RSA or ECC", f"{kind:#06x}")
    number = reader.number(2)
    if number not in HASHES:
        raise refuse("malformed", "name of the attestation key", " or ".join(HASHES.values()), f"{number:#06x}")
    attributes = reader.number(4)
    reader.sized()  # the policy that it is used by
    if reader.number(2) != NULL:
        raise refuse("malformed", "the attestation key", "no symmetric algorithm", "one")
    schemes = {each: name for each, name in SCHEMES.items() if (name == "ecdsa") == (kind == ECC)}
    scheme = reader.one_of(schemes, "scheme of the attestation key")
    reader.one_of(HASHES, "hash of the attestation key")
    key = _rsa(reader) if kind == RSA else _ecc(reader)
    reader.end()
    name = number.to_bytes(2, "big") + hashlib.new(HASHES[number], data).digest()
    return PublicArea(name, key, scheme, attributes)


def _rsa(reader: Reader) -> Key:
    bits, exponent = reader.number(2), reader.number(4) or 65537
    modulus = int.from_bytes(reader.sized(), "big")
    if bits not in _RSA_BITS or modulus.bit_length() != bits:
        raise refuse(
            "malformed", "the attestation key", f"RSA of one of {_RSA_BITS} bits", f"{modulus.bit_length()} bits"
        )
    return _made(lambda: rsa.RSAPublicNumbers(exponent, modulus).public_key())


def _ecc(reader: Reader) -> Key:
    curve = _CURVES.get(reader.number(2))
    if curve is None or reader.number(2) != NULL:
        raise refuse("malformed", "the attestation key", "a NIST curve, and no derivation", "another")
    x, y = int.from_bytes(reader.sized(), "big"), int.from_bytes(reader.sized(), "big")
    return _made(lambda: ec.EllipticCurvePublicNumbers(x, y, curve()).public_key())


def _made(make: Callable[[], Key]) -> Key:
    try:
        return make()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise refuse("malformed", "the attestation key", "a public key", str(error)[:100]) from error
