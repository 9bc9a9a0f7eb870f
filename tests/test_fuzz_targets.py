"""Every fuzz target holds for its seeds and for some hundred mutations of them; `make fuzz` looks further."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path
from typing import get_args

import pytest
from target_enclave_files import RESULTS
from targets import TARGETS

from adyton.hostcall import abi

FUZZ = Path(__file__).parent.parent / "fuzz"
CORPUS = FUZZ / "corpus"
MUTATIONS = 200


def mutated(source: random.Random, seeds: list[bytes]) -> bytes:
    """Some bytes of a seed changed, doubled, taken out, or followed by another seed's."""
    data = bytearray(source.choice(seeds))
    for _ in range(source.randrange(1, 5)):
        at, size = source.randrange(len(data) + 1), source.randrange(1, 9)
        match source.randrange(5):
            case 0:
                data[at : at + size] = source.randbytes(size)
            case 1:
                data[at:at] = data[at : at + size]
            case 2:
                del data[at : at + size]
            case 3:
                data[at:] = source.choice(seeds)[at:]
            case _:
                data[at : at + 1] = bytes([source.choice((0, 1, 0x7F, 0x80, 0xFF))])
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_only_documented_errors_leave(name: str) -> None:
    target = TARGETS[name]
    seeds = [seed.read_bytes() for seed in sorted((CORPUS / name).iterdir())]
    source = random.Random(name)
    for data in (b"", *seeds, *(mutated(source, seeds) for _ in range(MUTATIONS))):
        target(data)


@pytest.mark.parametrize("kept", sorted((FUZZ / "grown").iterdir()), ids=lambda kept: kept.stem)
def test_only_documented_errors_leave_what_earlier_runs_have_grown(kept: Path) -> None:
    target = TARGETS[kept.stem]
    with zipfile.ZipFile(kept) as inputs:
        for name in inputs.namelist():
            target(inputs.read(name))


def test_seeds_are_few_and_small_and_of_a_target() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    for folder in CORPUS.iterdir():
        sizes = [seed.stat().st_size for seed in folder.iterdir()]
        assert 0 < len(sizes) <= 8
        assert max(sizes) <= 10_000


def test_every_host_call_is_drawn() -> None:
    assert set(RESULTS) == set(get_args(abi.Request))
