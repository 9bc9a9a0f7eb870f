"""How much of what could be tried is tried: a part, in each run of the tests another one; all of it where THOROUGH=1, as in `make repeat`."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

import pytest

THOROUGH = os.environ.get("THOROUGH", "0") != "0"
T = TypeVar("T")
Test = TypeVar("Test", bound=pytest.Item)


def part_of(all_of_them: Sequence[T], one_in: int) -> Sequence[T]:
    """Each so-manieth, beginning where the seed of the run says (pytest-randomly's)."""
    return all_of_them if THOROUGH else all_of_them[random.randrange(one_in) :: one_in]


def few_or(few: int, many: int) -> int:
    """How often something is tried that is drawn anew each time."""
    return many if THOROUGH else few


def half_of_variants(tests: Sequence[Test], seed: int) -> tuple[list[Test], list[Test]]:
    """Which of the tests are run, in their order, and which are not: of one that starts enclaves with each of its parameters, every other one.

    Of those marked `each_variant`, all: what each of them shows is shown by no other.
    """
    variants: dict[tuple[str, str], list[str]] = {}
    for test in tests:
        if hasattr(test, "callspec") and (test.get_closest_marker("sandbox") or test.get_closest_marker("netns")):
            variants.setdefault(_function(test), []).append(test.name)
    left_out = {
        (function, name)
        for function, names in variants.items()
        if len(names) > 1
        for name in sorted(names)[1 - (seed + len(function[1])) % 2 :: 2]
    }
    chosen: list[Test] = []
    others: list[Test] = []
    for test in tests:
        is_chosen = test.get_closest_marker("each_variant") or (_function(test), test.name) not in left_out
        (chosen if is_chosen else others).append(test)
    return chosen, others


def _function(test: pytest.Item) -> tuple[str, str]:
    return str(test.path), test.name.partition("[")[0]
