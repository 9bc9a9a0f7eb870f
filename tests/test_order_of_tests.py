"""In which order tests are begun: those of modules with long ones first in each worker's part, and none is lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby

import pytest
from conftest import long_first
from hypothesis import given
from hypothesis import strategies as st


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
