"""Digests as they are written everywhere in adyton: "sha256:" and 64 lower-case hex digits; of hardware also "sha384:" and 96."""

from __future__ import annotations

import hashlib
import re

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REGISTER = re.compile(r"sha384:[0-9a-f]{96}")


def digest_of(data: bytes) -> str:
    """The digest of the bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def is_digest(text: str) -> bool:
    """Whether the text is a digest, in the one spelling that there is."""
    return _DIGEST.fullmatch(text) is not None


def is_register(text: str) -> bool:
    """Whether the text is what a register of hardware with 48 bytes has measured."""
    return _REGISTER.fullmatch(text) is not None
