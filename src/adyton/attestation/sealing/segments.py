"""What is sealed, segment by segment, so that nobody has to hold all of a large value, or wait for it: the STREAM construction
(Hoang, Reyhanitabar, Rogaway, Vizár: Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance, 2015) over AES-256-GCM-SIV (RFC 8452).

    sealed = header ‖ random (7 bytes) ‖ segments, each: its ciphertext ‖ tag (16 bytes)
    nonce of a segment = random ‖ number of the segment (4 bytes, big-endian) ‖ 1 if it is the last one, else 0

All segments have SEGMENT bytes of the data, but the last, which may have fewer, and has none only where the data is empty. Each authenticates the header and the
additional data. As numbers and the mark of the last one are in the nonces, segments that were swapped, left out, repeated or cut off do not open.
"""

from __future__ import annotations

import hashlib
import os

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from adyton.attestation.identity import length_prefixed
from adyton.errors import IntegrityError, LocalProtocolError, PlatformError

SEGMENT = 1 << 16  # bytes
MAX_DATA = 1 << 26  # bytes of one value
TAG_SIZE = 16
RANDOM_SIZE = 7
_LABEL = b"adyton sealed segments 1"


class Segments:
    """Seals, or opens, the segments of one value in order. `additional`: SHA-256 of the additional data."""

    def __init__(self, key: bytes, header: bytes, random: bytes, additional: bytes) -> None:
        try:
            self._cipher = AESGCMSIV(key)
        except UnsupportedAlgorithm as error:
            raise PlatformError(
                "AES-GCM-SIV needs OpenSSL 3.2 or newer under `cryptography`: install its wheel"
            ) from error
        fields = (_LABEL, header, random, additional)
        self._bound = hashlib.sha256(b"".join(map(length_prefixed, fields))).digest()
        self._random = random
        self._number = 0
        self._ended = False

    def seal(self, data: bytes, *, last: bool) -> bytes:
        """A segment's ciphertext and tag. LocalProtocolError: it is too long or too short, or there is none behind the last."""
        self._check(len(data), last=last)
        return self._cipher.encrypt(self._nonce(last=last), data, self._bound)

    def open(self, sealed: bytes, *, last: bool) -> bytes:
        """A segment's data. IntegrityError: it is not what was sealed, in this place; nothing of the value may be used then, nor before the last is open."""
        try:
            self._check(len(sealed) - TAG_SIZE, last=last)
            return self._cipher.decrypt(self._nonce(last=last), sealed, self._bound)
        except (InvalidTag, LocalProtocolError):
            self._ended = True
            raise IntegrityError(
                "the sealed data does not open: it, its header or the additional data is not what was sealed, or it was sealed on another machine or by another"
                " runtime. Take another copy of it, or open it where it was sealed"
            ) from None

    def _check(self, size: int, *, last: bool) -> None:
        least = SEGMENT if not last else 1 if self._number else 0
        if self._ended or not least <= size <= SEGMENT or self._number * SEGMENT + size > MAX_DATA:
            raise LocalProtocolError(
                f"segment {self._number} of sealed data has {size} bytes, and there is no such one"
            )

    def _nonce(self, *, last: bool) -> bytes:
        nonce = self._random + self._number.to_bytes(4, "big") + bytes([last])
        self._number += 1
        self._ended = last
        return nonce


def new_random() -> bytes:
    return os.urandom(RANDOM_SIZE)
