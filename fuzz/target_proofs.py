"""Fuzz target of what a guest says that has evidence made for a channel of its program's."""

from __future__ import annotations

import msgspec
from draw import Draw, packed

from adyton.attestation.binding import DIALLING_PROGRAM_ROLE, DIALLING_ROLE, ENCLAVE_ROLE, PROGRAM_ROLE
from adyton.attestation.evidence import Bound
from adyton.runtime.process.guest.proofs import Binding
from adyton.runtime.process.supervisor.proofs import requested

_PROGRAMS = (PROGRAM_ROLE.decode(), DIALLING_PROGRAM_ROLE.decode())
_WORDS = (*_PROGRAMS, ENCLAVE_ROLE.decode(), DIALLING_ROLE.decode(), "")
_IDENTITY = bytes(32)


def guest_proof(data: bytes) -> None:
    """Evidence is made for a program's roles alone, over what it says and nothing else."""
    draw = Draw(data, _WORDS)
    fields = [draw.pick(_WORDS), *(draw.take(32).ljust(32, b"\0") for _ in range(4))]
    message = draw.spoilt(packed([Binding.__name__, *fields])) if draw.often() else draw.blob()
    made = requested(message, _IDENTITY).report_data
    said = msgspec.msgpack.decode(message)
    assert said[1] in _PROGRAMS
    assert made == Bound(*said[1:]).report_data(_IDENTITY)
