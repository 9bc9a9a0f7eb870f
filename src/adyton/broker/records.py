"""The log's lines, without IO: signed records, each with the digest of the line before; and whether lines are that, whatever they are.

A line is `{"record":{…},"signature":"…"}`: the signature (Ed25519) is over the record's very bytes behind a label, and the digest of a line covers both.
So no line can be changed, left out, put in or moved without the key. That no line is missing at the end says the head, a signed statement of
the last line's number and digest, which lies beside the log.

Bytes that are no record (a crash cut the last line, or a full disk did) stay where they are: the next record is then a `Healed` one, which
says how many they are and their digest.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from adyton.attestation.expectation import Expectation
from adyton.attestation.findings import Failure
from adyton.attestation.identity import Digest, DigestOrNone, EnclaveIdentity, length_prefixed
from adyton.crypto.digest import digest_of
from adyton.crypto.keys import PublicKey, SigningKey

MAX_LINE = 1 << 20  # bytes, its end included: what starts a broker with some thousand secrets
MAX_FINDINGS = 64
MAX_TEXT = 256  # characters of a finding, which a stranger may have written
_RECORD_LABEL = b"adyton broker log record 1"
_HEAD_LABEL = b"adyton broker log head 1"

_Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="event", kw_only=True):
    """`number`: from 1; `time`: by the broker's clock, in UTC; `before`: the digest of the line before, "" of the first."""

    number: _Number
    time: dt.datetime
    before: DigestOrNone


class Started(_Record, frozen=True, tag="started"):
    """A broker began: its key's digest, and by which policies it gives which secrets."""

    key: Digest
    policies: dict[str, Expectation]


class Decided(_Record, frozen=True, tag="decided", omit_defaults=True):
    """A stranger was given a secret, or refused one. `secret`: the name that was asked for; "": it did not get as far as that.

    `identity`: None where evidence was not genuine. `evidence`: its digest. "released": it has left, or was about to.
    """

    decision: Literal["released", "refused"]
    peer: str
    evidence: Digest
    secret: str = ""
    identity: EnclaveIdentity | None = None
    tcb: str = ""
    findings: tuple[Failure, ...] = ()


class Healed(_Record, frozen=True, tag="healed"):
    """The bytes between the record before and this one are none."""

    bytes: _Number
    digest: Digest


class Stopped(_Record, frozen=True, tag="stopped"):
    """The broker ended in good order."""


Record = Started | Decided | Healed | Stopped


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last line: its number, its digest, and where it is in the file. Number 0: there is none."""

    number: _Number
    digest: DigestOrNone
    begin: _Number
    end: _Number


class _Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    record: msgspec.Raw
    signature: str


class NoRecordError(Exception):
    """Why a line is not the record that is due."""


def bounded(findings: Iterable[Failure]) -> tuple[Failure, ...]:
    """The findings as the log keeps them."""
    return tuple(
        msgspec.structs.replace(each, expected=each.expected[:MAX_TEXT], got=each.got[:MAX_TEXT])
        for each in list(findings)[:MAX_FINDINGS]
    )


def record_line(record: Record, key: SigningKey) -> bytes:
    """The line, with its end."""
    return _line(msgspec.json.encode(record), _RECORD_LABEL, key)


def head_line(head: Head, key: SigningKey) -> bytes:
    """The same for a head."""
    return _line(msgspec.json.encode(head), _HEAD_LABEL, key)


def read_head(line: bytes, key: PublicKey) -> Head:
    """The head in hostile bytes; NoRecordError."""
    head: Head = _convert(_signed(line, _HEAD_LABEL, key), Head)
    return head


def _line(body: bytes, label: bytes, key: SigningKey) -> bytes:
    signature = base64.b64encode(key.sign(_message(label, body))).decode()
    return msgspec.json.encode(_Signed(msgspec.Raw(body), signature)) + b"\n"


def _message(label: bytes, body: bytes) -> bytes:
    return length_prefixed(label) + length_prefixed(body)


def _signed(line: bytes, label: bytes, key: PublicKey) -> bytes:
    """What was signed. NoRecordError."""
    if not line.endswith(b"\n"):
        raise NoRecordError("is cut off")
    signed = _convert(line, _Signed)
    try:
        signature = base64.b64decode(signed.signature, validate=True)
    except (ValueError, binascii.Error):
        raise NoRecordError("has a signature that cannot be read") from None
    body = bytes(signed.record)
    if not key.verifies(signature, _message(label, body)):
        raise NoRecordError("has a signature that does not hold")
    # One spelling only, so that nothing outside of what was signed can be changed either.
    canonical = _Signed(signed.record, base64.b64encode(signature).decode())
    if msgspec.json.encode(canonical) + b"\n" != line:
        raise NoRecordError("is not spelt as it was written")
    return body


def _convert(text: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
        raise NoRecordError(f"cannot be read: {error}") from None


@dataclass
class Place:
    """Behind which line one is: what the next record must say."""

    number: int = 0
    digest: str = ""

    def next(self, line: bytes, key: PublicKey) -> Record:
        """The record that is due, in hostile bytes; the place is behind it then. NoRecordError says why it is none."""
        record: Record = _convert(_signed(line, _RECORD_LABEL, key), Record)
        if record.number != self.number + 1:
            raise NoRecordError(f"has number {record.number}, where {self.number + 1} is due")
        if record.before != self.digest:
            raise NoRecordError("does not follow the one before")
        self.number, self.digest = record.number, digest_of(line)
        return record


@dataclass
class Gap:
    """Bytes that are no record. `why`: of the first line of them. `foreign`: of the first one that no crash leaves."""

    size: int = 0  # bytes
    why: str = ""
    foreign: str = ""
    _digest: Any = field(default_factory=hashlib.sha256)

    def add(self, line: bytes, why: str) -> None:
        self.size += len(line)
        self.why = self.why or why
        if not self.foreign and not _cut_by_a_crash(line):
            self.foreign = f"{why}, and no crash leaves such a line: somebody has written it"
        self._digest.update(line)

    @property
    def digest(self) -> str:
        return f"sha256:{self._digest.hexdigest()}"


class Reader:
    """Lines in, records out, in order, from a place on. `gap`: what has come since the last record that is none; `problems`: what is wrong.

    Only what leaves no doubt counts: the beginning of a record is a gap until a Healed one owns up to it, and then it is none of `problems`
    but counted in `healed`. Any other line is a problem, whoever owns up to it.
    """

    def __init__(self, key: PublicKey, place: Place | None = None) -> None:
        self.place = place or Place()
        self.gap = Gap()
        self.healed = 0
        self.problems: list[str] = []
        self._key = key

    def read(self, line: bytes) -> Record | None:
        """A line with its end, or what is left without one; None if it is no record, or not the one that is due."""
        try:
            record = self.place.next(line, self._key)
        except NoRecordError as error:
            self.gap.add(line, f"the line behind record {self.place.number} {error}")
            return None
        gap, self.gap = self.gap, Gap()
        if gap.foreign:
            self.problems.append(gap.foreign)
        said = (record.bytes, record.digest) if isinstance(record, Healed) else (0, Gap().digest)
        if said == (gap.size, gap.digest):
            self.healed += bool(gap.size)
        elif gap.size:
            self.problems.append(f"{gap.why}, and record {record.number} does not own up to it")
        else:
            self.problems.append(f"{said[0]} bytes are missing before record {record.number}, which tells of them")
        return record


_BEGINNING = b'{"record":{"event":"'


def _cut_by_a_crash(line: bytes) -> bool:
    """Whether a line that is no record may be the beginning of one, or zeros that a file system has put there."""
    text = line.removesuffix(b"\n").strip(b"\0")
    if line == b"\n" or not (text.startswith(_BEGINNING) or _BEGINNING.startswith(text)):
        return False
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return True
    return not line.endswith(b"\n")  # all but its end


def lines_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines with their ends, from pieces of any size; one that is too long is cut into several, none of which is a record."""
    rest = b""
    for piece in pieces:
        rest += piece
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield from _cut(line + b"\n")
        if len(rest) > MAX_LINE:
            yield from _cut(rest)
            rest = b""
    if rest:
        yield from _cut(rest)


def _cut(line: bytes) -> Iterator[bytes]:
    for start in range(0, len(line), MAX_LINE):
        yield line[start : start + MAX_LINE]
