"""Keys that sign images: Ed25519 (RFC 8032), whose signatures are deterministic, so that signing keeps images reproducible.

A key file is PKCS #8 PEM without a password, mode 0600; beside it lies KEY.pub, SubjectPublicKeyInfo PEM. A signer's name is the
SHA-256 of the DER of the public key, as "sha256:HEX".
"""

from __future__ import annotations

import functools
import hashlib
import os

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)

from adyton.crypto.digest import digest_of
from adyton.durable import sync_folder_of
from adyton.errors import UsageError

MAX_KEY_FILE = 1 << 16  # bytes
_DEBUG_SEED = b"adyton well-known debug signing key: everybody has it, it proves nothing, it signs debug images only"


class PublicKey:
    """The public half of a signing key. `der`: SubjectPublicKeyInfo; `signer`: its digest."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.signer = digest_of(self.der)

    @classmethod
    def from_der(cls, der: bytes) -> PublicKey:
        """ValueError for anything but the DER of an Ed25519 key, in its one encoding."""
        try:
            key = load_der_public_key(der)
        except Exception as error:  # cryptography raises several kinds for unknown algorithms and broken DER
            raise ValueError(f"not a public key: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("not an Ed25519 public key")  # noqa: TRY004 - a value of bytes, not a type
        public = cls(key)
        if public.der != der:
            raise ValueError("not the DER encoding of its public key")
        return public

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PublicKey:
        """From KEY.pub; UsageError says what is wrong with it."""
        name = os.fspath(path)
        try:
            with open(name, "rb") as file:
                data = file.read(MAX_KEY_FILE)
        except OSError as error:
            raise UsageError(f"the public key {name} cannot be read: {error.strerror}") from error
        try:
            key = load_pem_public_key(data)
        except Exception as error:  # of several kinds, as above
            raise UsageError(f"{name} is no public key in PEM") from error
        if not isinstance(key, Ed25519PublicKey):
            raise UsageError(f"{name} is not an Ed25519 key")
        return cls(key)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` is this key's over `message`."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A private key that signs images."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    def __repr__(self) -> str:
        return f"<SigningKey {self.signer}>"

    @property
    def signer(self) -> str:
        return self.public.signer

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SigningKey:
        """From a key file; UsageError says what is wrong with it."""
        name = os.fspath(path)
        try:
            with open(name, "rb") as file:
                data = file.read(MAX_KEY_FILE)
        except OSError as error:
            raise UsageError(
                f"the signing key {name} cannot be read: {error.strerror}. Make one with `adyton keygen {name}`"
            ) from error
        try:
            key = load_pem_private_key(data, None)
        except Exception as error:
            hint = "; it looks like a public key" if b"PUBLIC KEY" in data else ""
            raise UsageError(
                f"{name} is not an unencrypted private key in PEM{hint}. Make one with `adyton keygen`"
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(
                f"{name} is not an Ed25519 key, and images are signed with such: make one with `adyton keygen`"
            )
        return cls(key)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write PATH (0600) and PATH.pub (0644); UsageError if one of them is there already, and then nothing is written."""
        private = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        name = os.fspath(path)
        made: list[str] = []
        if os.path.lexists(name):
            raise UsageError(f"{name} is there already, and keys are never overwritten: name another file")
        try:
            for target, data, mode in ((f"{name}.pub", public, 0o644), (name, private, 0o600)):
                _create(target, data, mode, made)
            sync_folder_of(name)
        except OSError as error:
            for each in made:
                os.unlink(each)
            if isinstance(error, FileExistsError):
                raise UsageError(
                    f"{target} is there already, and keys are never overwritten: name another file"
                ) from None
            raise UsageError(
                f"the key cannot be written to {target}: {error.strerror}. Name a file in a folder of yours"
            ) from error

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def _create(path: str, data: bytes, mode: int, made: list[str]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    made.append(path)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


@functools.cache
def debug_key() -> SigningKey:
    """The well-known key that signs debug images. Everybody has it: its signature proves nothing."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(_DEBUG_SEED).digest()))
