"""Numbered items come out in the order of their numbers, however they arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.communicator.sequence import Sequence
from adyton.errors import RemoteProtocolError


@given(st.permutations(range(12)))
def test_any_order_of_arrival_gives_the_order_of_numbers(order: list[int]) -> None:
    sequence: Sequence[int] = Sequence(12, 0)
    due = [each for number in order for each in sequence.arrived(number, number)]
    assert due == list(range(12))


def test_a_number_twice_or_too_many_ahead_is_a_breach() -> None:
    sequence: Sequence[str] = Sequence(2, 10)
    assert sequence.arrived(0, "a") == ["a"]
    assert sequence.arrived(2, "c") == []
    for number in (0, 2):
        with pytest.raises(RemoteProtocolError, match="numbered"):
            sequence.arrived(number, "again")
    assert sequence.arrived(3, "d") == []
    with pytest.raises(RemoteProtocolError, match="2 ahead"):
        sequence.arrived(4, "e")


def test_the_bytes_that_wait_are_bounded() -> None:
    sequence: Sequence[str] = Sequence(100, 10)
    assert sequence.arrived(0, "a", 1000) == ["a"]
    assert sequence.arrived(2, "c", 10) == []
    with pytest.raises(RemoteProtocolError, match="20 bytes ahead"):
        sequence.arrived(3, "d", 10)
