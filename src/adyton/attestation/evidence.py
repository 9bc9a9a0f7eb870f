"""The envelope of evidence: JSON that says its version and platform, around what the platform made.

{"adyton_evidence": 1, "platform": "sim", "body": …}
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from adyton.attestation.identity import PLATFORMS, Platform
from adyton.errors import EvidenceMalformedError

VERSION = 1
MAX_EVIDENCE = 1 << 16  # bytes
REPORT_DATA_SIZE = 64  # bytes: what every platform can sign along

_T = TypeVar("_T")


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Evidence before anything of it is believed. `body` is JSON as the platform's module reads it."""

    adyton_evidence: int
    platform: Platform
    body: msgspec.Raw


class _Head(msgspec.Struct, frozen=True):
    """What tells evidence of a later version from no evidence at all."""

    adyton_evidence: int
    platform: str


def seal(platform: Platform, body: Any) -> bytes:
    """Evidence around a platform's body."""
    return msgspec.json.encode(Envelope(VERSION, platform, msgspec.Raw(msgspec.json.encode(body))))


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
