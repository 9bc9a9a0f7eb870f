"""How much of what could be tried is tried: a part, in each run of the tests another one; all of it where THOROUGH=1, as in `make repeat`."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

THOROUGH = os.environ.get("THOROUGH", "0") != "0"
T = TypeVar("T")


def part_of(all_of_them: Sequence[T], one_in: int) -> Sequence[T]:
    """Each so-manieth, beginning where the seed of the run says (pytest-randomly's)."""
    return all_of_them if THOROUGH else all_of_them[random.randrange(one_in) :: one_in]


def few_or(few: int, many: int) -> int:
    """How often something is tried that is drawn anew each time."""
    return many if THOROUGH else few
