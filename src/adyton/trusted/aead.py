"""AeadCryptor for enclave code: `adyton.trusted.AeadCryptor`."""

from __future__ import annotations

from adyton.crypto.aead import AeadCryptor

__all__ = ["AeadCryptor"]
