"""Which tests are run, and in which order they are begun: those of modules with long ones first in each worker's part, and none is lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby

import pytest
from conftest import long_first
from hypothesis import given
from hypothesis import strategies as st
from thorough import half_of_variants


@dataclass(frozen=True)
class Item:
    """As much of a pytest.Item as matters."""

    path: int
    number: int
    long: bool

    def get_closest_marker(self, name: str) -> bool:
        return self.long and name == "long"


def items_of(modules: list[list[bool]]) -> list[Item]:
    return [Item(path, number, long) for path, each in enumerate(modules) for number, long in enumerate(each)]


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=5), max_size=12), st.integers(1, 4))
def test_none_is_lost_and_each_module_keeps_its_order(modules, workers):
    items = items_of(modules)
    ordered = long_first(items, workers)
    assert Counter(ordered) == Counter(items)
    for path in range(len(modules)):
        assert [item for item in ordered if item.path == path] == [item for item in items if item.path == path]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_worker_begins_with_its_share_of_the_long_modules(workers):
    modules = [[False] * 10, [False, True], [False] * 10, [True], [False] * 10, [True, False, False]]
    items = items_of(modules)
    ordered = long_first(items, workers)
    parts = [
        ordered[len(items) * each // workers : len(items) * (each + 1) // workers] for each in range(workers)
    ]  # as pytest-xdist makes them, if they can be divided
    long = {1, 3, 5}
    for part in parts:
        begun = [path for path, _ in groupby(item.path for item in part)]
        assert begun[0] in long
        assert not long & set(begun[len(long & set(begun)) :])


@dataclass(frozen=True)
class Variant:
    """As much of a pytest.Item as matters."""

    name: str
    markers: frozenset[str]
    path: str = "test_some.py"
    callspec: object = None

    def get_closest_marker(self, name: str) -> bool:
        return name in self.markers


def variants(name: str, count: int, *markers: str) -> list[Variant]:
    return [Variant(f"{name}[{number}]", frozenset(markers)) for number in range(count)]


def test_every_other_variant_is_run_and_in_another_run_the_others():
    tests = variants("test_a", 5, "sandbox") + variants("test_b", 2, "netns")
    runs = [half_of_variants(tests, seed) for seed in (1, 2)]
    for chosen, left_out in runs:
        assert sorted(chosen + left_out, key=tests.index) == tests
        for name in ("test_a", "test_b"):
            assert any(each.name.startswith(name) for each in chosen)
    assert runs[0] == runs[1][::-1]


def test_what_starts_no_enclave_has_one_variant_or_shows_each_by_itself_is_run():
    tests = [
        *variants("test_a", 4),
        *variants("test_b", 1, "sandbox"),
        *variants("test_c", 3, "sandbox", "each_variant"),
    ]
    for seed in range(4):
        assert half_of_variants(tests, seed) == (tests, [])
