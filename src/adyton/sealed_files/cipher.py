"""The keys of a store, and its blocks.

A block of 4096 bytes is as long sealed: its nonce and tag are in the pointer to it, which whatever leads to it holds. So only the one
version of it opens that its pointer was made with.

    pointer = slot (4 bytes, little-endian) ‖ nonce (12) ‖ tag (16); all zeros: a hole, which reads as zeros

Blocks are sealed by AES-256-GCM under random nonces, and not under counters: a disk may give us an old state at any start, in which a counter would begin
anew where it was, and one nonce used twice gives GCM's authentication key away. Random ones of 96 bits are good for 2^32 blocks under a key (NIST SP
800-38D, 8.3), which are 16 TiB written; each store has a random secret of its own for them, and counts, as far as it can: what is set back, or was never
committed, is not in the count. The secret is in the superblock, which is sealed by
AES-256-GCM-SIV under the enclave's sealing key: that may be another one at each start (a newer version, newer firmware) while the blocks stay as they are.
"""

from __future__ import annotations

import os
import struct
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from adyton.crypto.aead import AeadCryptor
from adyton.errors import IntegrityError, UsageError

BLOCK = 4096
POINTER = 32
HOLE = bytes(POINTER)
KEY_SIZE = 32
NONCE_SIZE = 12
MAX_SEALED = 1 << 32  # blocks under one key
_SLOT = struct.Struct("<I")


def slot_of(pointer: bytes | bytearray) -> int:
    """Where in the container the block is; 0: a hole."""
    return int(_SLOT.unpack_from(pointer)[0])


class Keys(Protocol):
    """Where the sealing keys of an enclave come from. A key has a header, which is in the clear, and by which it is had again."""

    def new(self) -> tuple[bytes, bytes]:
        """Header and key of what is sealed from now on. PlatformError: there is none to be had."""
        ...

    def key(self, header: bytes) -> bytes:
        """The key of a header of hostile origin. IntegrityError: it is not this enclave's."""
        ...


class BlockCipher:
    """Of one store. `secret`: its own 32 random bytes."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(derived(secret, b"blocks"))

    def seal(self, slot: int, block: bytes | bytearray) -> tuple[bytes, bytes]:
        """The pointer to the block in that slot, and what is to be there."""
        nonce = os.urandom(NONCE_SIZE)
        place = _SLOT.pack(slot)
        sealed = self._cipher.encrypt(nonce, block, place)
        return place + nonce + sealed[BLOCK:], sealed[:BLOCK]

    def open(self, pointer: bytes | bytearray, sealed: bytes) -> bytes:
        """The block; IntegrityError if it is not the one that the pointer was made with."""
        if len(sealed) == BLOCK:
            try:
                return self._cipher.decrypt(bytes(pointer[4:16]), sealed + pointer[16:], bytes(pointer[:4]))
            except InvalidTag:
                pass
        offset = slot_of(pointer) * BLOCK
        raise IntegrityError(
            f"the sealed files were changed outside of the enclave, cut off or set back: what their container has at byte {offset} is "
            "not what was last written there. Restore the container as it was"
        )


def superblock_cipher(key: bytes) -> AeadCryptor:
    """For the superblocks of a store. `key`: a sealing key, of 32 bytes. PlatformError: AES-GCM-SIV is missing here."""
    return AeadCryptor.aes_gcm_siv(derived(key, b"superblocks"))


def derived(key: bytes, purpose: bytes) -> bytes:
    """A key for that purpose only. `key`: of 32 bytes."""
    if len(key) != KEY_SIZE:
        raise UsageError(f"the key of sealed files is {KEY_SIZE} bytes, not {len(key)}")
    return HKDF(SHA256(), KEY_SIZE, salt=None, info=b"adyton sealed files 1 " + purpose).derive(key)
