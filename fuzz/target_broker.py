"""Fuzz targets of the broker: its log's lines, the messages at both ends, and what a guest says that has one asked."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Any

from draw import Draw, packed

from adyton.attestation import sim
from adyton.attestation.identity import EnclaveIdentity
from adyton.broker.protocol import Given, Refused, Request, answers, encode_answer, encode_request, requests
from adyton.broker.records import Head as LogHead
from adyton.broker.records import (
    Healed,
    NoRecordError,
    Place,
    Reader,
    Stopped,
    head_line,
    lines_of,
    read_head,
    record_line,
)
from adyton.crypto.keys import debug_key
from adyton.runtime.process.guest.secrets import GIVEN, MORE, REFUSED, Ask
from adyton.runtime.process.supervisor.secrets import Question

_KEY = debug_key()
_HASH = "sha256:" + "7" * 64
_TIME = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_WORDS = ("database", _HASH, "a.b", "-", "é")
_IDENTITY = EnclaveIdentity("sim", _HASH, "", 0, 0, debug=True, runtime="", machine="")


def broker_log(data: bytes) -> None:
    """Lines as a broker writes them, cut, spoilt, left out and healed; and heads. What no one touched is no problem."""
    draw = Draw(data)
    if draw.below(4) == 0:
        rest = draw.rest()
        assert not any(map(Reader(_KEY.public).read, lines_of([rest])))
        for each in (rest, rest + b"\n"):
            try:
                read_head(each, _KEY.public)
            except NoRecordError:
                pass
        return
    place, text, touched = Place(), b"", False
    while draw:
        number, before = place.number + 1, place.digest
        line = record_line(Stopped(number=number, time=_TIME, before=before), _KEY)
        if draw.below(4) == 3:
            gap = line[: 1 + draw.below(len(line) - 2)] + b"\n"  # of a record that a crash has cut
            digest = "sha256:" + hashlib.sha256(gap).hexdigest()
            healed = Healed(number=number, time=_TIME, before=before, bytes=len(gap), digest=digest)
            line = record_line(healed, _KEY)
            text += gap
        place.next(line, _KEY.public)
        changed = b"" if draw.below(16) == 15 else draw.spoilt(line)
        touched = touched or changed != line
        text += changed
    reader = Reader(_KEY.public)
    for line in lines_of(text[start : start + 100] for start in range(0, len(text), 100)):
        reader.read(line)
    assert reader.place.number <= place.number
    if not touched:
        assert reader.place == place
        assert not reader.problems
        assert not reader.gap.size
    line = head_line(LogHead(place.number, place.digest, 0, len(text)), _KEY)
    spoilt = draw.spoilt(line)
    try:
        read_head(spoilt, _KEY.public)
        assert spoilt == line
    except NoRecordError:
        assert spoilt != line


def broker_message(data: bytes) -> None:
    """What either end is told once the channel is attested, in pieces."""
    draw = Draw(data, _WORDS)
    reader: Any = draw.pick((answers(), requests()))
    text = draw.pick((encode_answer(None), encode_answer(memoryview(b"secret")), encode_request("database"), b""))
    if draw.below(2):
        body = packed(draw.struct(draw.pick((Request, Given, Refused))))
        text = len(body).to_bytes(4, "little") + body
    text = draw.spoilt(bytes(text)) + draw.blob()
    while text:
        size = 1 + draw.below(200) * 40
        message = reader.receive(text[:size])
        assert message is None or isinstance(message, Request | Given | Refused)
        text = text[size:]
    reader.wipe()


def guest_question(data: bytes) -> None:
    """What a guest says that has a broker asked."""
    draw = Draw(data, _WORDS)
    question = Question(_IDENTITY.digest())
    message = packed(draw.struct(Ask)) if draw.often() else draw.blob()
    while True:
        answer = question.receive(draw.spoilt(message))
        if answer is None:
            assert question.wanted is not None
            answer = question.proved(sim.attest(_IDENTITY, question.wanted.report_data) if draw.below(2) else None)
        assert bytes(answer[:1]) in (MORE, GIVEN, REFUSED)
        if not draw:
            return
        message = draw.pick((b"\0", b"\1", b"")) + draw.blob()
