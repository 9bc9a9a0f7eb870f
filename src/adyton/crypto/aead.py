"""Sealing of messages: AES-GCM-SIV (RFC 8452) and AES-GCM (NIST SP 800-38D), with random nonces, as one value of bytes.

    sealed = nonce (12 bytes) ‖ ciphertext (as long as the plaintext) ‖ tag (16 bytes)

Random nonces of 96 bits collide, so a key is good for a bounded number of messages: 2^32 with AES-GCM, where one repeated nonce
gives away the authentication key (SP 800-38D, 8.3); 2^48 with AES-GCM-SIV, where it only shows that two messages were equal
(RFC 8452, 9). A cryptor counts its own messages; several cryptors of one key share the bound, and only their user can add them up.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV

from adyton.errors import IntegrityError, PlatformError, ResourceLimitError, UsageError

NONCE_SIZE = 12
TAG_SIZE = 16
OVERHEAD = NONCE_SIZE + TAG_SIZE
MAX_MESSAGE = 1 << 30  # bytes of a plaintext, and of its additional data
MAX_MESSAGES_GCM = 1 << 32
MAX_MESSAGES_GCM_SIV = 1 << 48

Bytes = bytes | bytearray | memoryview


class _Cipher(Protocol):
    def encrypt(self, nonce: bytes, data: Bytes, associated_data: Bytes | None, /) -> bytes: ...
    def decrypt(self, nonce: bytes, data: Bytes, associated_data: Bytes | None, /) -> bytes: ...


class AeadCryptor:
    """Seals and opens messages under one key; made by `aes_gcm_siv` or `aes_gcm`. Safe to use from several threads."""

    def __init__(self, name: str, cipher: _Cipher, max_messages: int) -> None:
        self.name = name
        self.max_message_size = MAX_MESSAGE
        self.max_sealed_messages = max_messages
        self._cipher = cipher
        self._sealed = 0
        self._lock = threading.Lock()

    @classmethod
    def aes_gcm_siv(cls, key: Bytes) -> AeadCryptor:
        """AES-GCM-SIV with a key of 16 or 32 bytes: the one to take where there is no reason for another."""
        try:
            return cls("AES-GCM-SIV", AESGCMSIV(_checked(key)), MAX_MESSAGES_GCM_SIV)
        except UnsupportedAlgorithm as error:
            raise PlatformError(
                "AES-GCM-SIV needs OpenSSL 3.2 or newer under `cryptography`: install its wheel"
            ) from error

    @classmethod
    def aes_gcm(cls, key: Bytes) -> AeadCryptor:
        """AES-GCM with a key of 16 or 32 bytes."""
        return cls("AES-GCM", AESGCM(_checked(key)), MAX_MESSAGES_GCM)

    def __repr__(self) -> str:
        return f"<AeadCryptor {self.name}, {self._sealed} sealed>"

    def seal(self, plaintext: Bytes, aad: Bytes = b"") -> bytes:
        """Nonce ‖ ciphertext ‖ tag; `aad` is authenticated along with it, and not part of the result.

        ResourceLimitError: too long, or this cryptor has sealed as many messages as its key is good for.
        """
        for what, data in (("the message", plaintext), ("the additional data", aad)):
            if memoryview(data).nbytes > self.max_message_size:
                raise ResourceLimitError(
                    f"{what} is longer than the {self.max_message_size} bytes that can be sealed: split it"
                )
        with self._lock:
            if self._sealed >= self.max_sealed_messages:
                raise ResourceLimitError(
                    f"{self.name}: {self._sealed} messages were sealed under this key: take a new key"
                )
            self._sealed += 1
        nonce = os.urandom(NONCE_SIZE)
        return nonce + self._cipher.encrypt(nonce, plaintext, aad)

    def open(self, sealed: Bytes, aad: Bytes = b"") -> bytes:
        """The plaintext; IntegrityError if a bit of `sealed` or `aad` differs from what was sealed, or the key is another."""
        size = memoryview(sealed).nbytes
        if size < OVERHEAD:
            raise IntegrityError(f"{size} bytes are no sealed message: nonce and tag alone are {OVERHEAD}")
        if size - OVERHEAD > self.max_message_size or memoryview(aad).nbytes > self.max_message_size:
            raise ResourceLimitError(
                f"the sealed message is longer than the {self.max_message_size} bytes that can be sealed"
            )
        view = memoryview(sealed).cast("B")
        try:
            return self._cipher.decrypt(bytes(view[:NONCE_SIZE]), view[NONCE_SIZE:], aad)
        except InvalidTag:
            raise IntegrityError(
                f"{self.name}: the sealed message does not open: it or its additional data was changed, or the key is another"
            ) from None


def _checked(key: Bytes) -> bytes:
    if not isinstance(key, bytes | bytearray | memoryview):
        raise UsageError(f"a key is 16 or 32 bytes, not {type(key).__name__}")
    if len(bytes(key)) not in (16, 32):
        raise UsageError(
            f"a key is 16 or 32 bytes, not {len(bytes(key))}: derive it with a key derivation function, do not pad it"
        )
    return bytes(key)
