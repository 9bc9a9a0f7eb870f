"""Fuzz target of the door of an SGX enclave: names that are told, and connections that begin with some, in any order and pieces."""

from __future__ import annotations

from draw import Draw

from adyton.handing_over import NAME_SIZE
from adyton.runtime.sgx.door import Admission


def door(data: bytes) -> None:
    """Nobody is let in whose name was not told, and nobody by a name twice."""
    draw, admission = Draw(data), Admission()
    told, used, waiting = b"", [], {}
    for number in range(400):
        if not draw:
            break
        if draw.often():
            name = bytes([draw.below(16)]) * NAME_SIZE
            admitted, dropped = admission.began(number, name)
            waiting[number] = name
            now = [number] * admitted
            if dropped is not None:
                del waiting[dropped]
        else:
            piece = bytes([draw.below(16)]) * NAME_SIZE if draw.often() else draw.blob()
            told += piece
            now = admission.told(piece)
        used += [waiting.pop(each) for each in now]
    names = [told[at : at + NAME_SIZE] for at in range(0, len(told) - NAME_SIZE + 1, NAME_SIZE)]
    for name in set(used):
        assert used.count(name) <= names.count(name)
