"""The rules of pairs: the whole table, every state with every action, and both sides against each other."""

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.communicator.pairs import RULES, Action, Innermost, PairTable, PairViolation, Side
from adyton.errors import ResourceLimitError

ACTIONS = typing.get_args(Action)
MIRROR = {"send": "receive", "receive": "send"}


def mirrored(action: str) -> str:
    word, _, rest = action.partition(" ")
    return f"{MIRROR[word]} {rest}"


def test_the_table_has_every_state_of_both_sides():
    assert set(RULES) == set(Side)
    for rules in RULES.values():
        assert set(rules) == set(typing.get_args(Innermost))
        for row in rules.values():
            assert set(row) <= set(ACTIONS)


def test_what_one_side_may_send_the_other_may_receive():
    views = {"none": "none", "sent": "received", "received": "sent"}
    for innermost, row in RULES[Side.CLIENT].items():
        assert {mirrored(action): effect for action, effect in row.items()} == RULES[Side.ENCLAVE][views[innermost]]


def test_in_every_state_just_one_side_may_speak():
    for rules in RULES.values():
        for row in rules.values():
            assert len({action.partition(" ")[0] for action in row}) == 1


@given(st.sampled_from(list(Side)), st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(1, 4)), max_size=40))
def test_a_table_does_what_the_rules_say_and_else_nothing(side, steps):
    table = PairTable(side, pairs=1, nesting=3)
    stack: list[tuple[str, int]] | None = None  # the model: who made each call, and its number
    for action, call in steps:
        innermost = stack[-1][0] if stack else "none"
        effect = RULES[side][innermost].get(action)
        too_deep = effect == "push" and stack is not None and len(stack) == 3
        wrong = effect is None or (effect == "pop" and stack[-1][1] != call) or (effect == "end" and stack is None)
        if wrong or too_deep:
            with pytest.raises(ResourceLimitError if too_deep else PairViolation):
                table.apply(9, action, call)
        else:
            table.apply(9, action, call)
            if effect == "push":
                stack = [*(stack or []), ("sent" if action.startswith("send") else "received", call)]
            elif effect == "pop":
                stack.pop()
            else:
                stack = None
        assert table.depth(9) == len(stack or [])
        assert (9 in table) == (stack is not None)
        assert len(table) == (stack is not None)


def test_the_number_of_pairs_is_bounded():
    table = PairTable(Side.CLIENT, pairs=2, nesting=3)
    table.apply(1, "send call", 1)
    table.apply(2, "send call", 2)
    with pytest.raises(ResourceLimitError):
        table.apply(3, "send call", 3)
    table.apply(2, "receive reply", 2)
    table.apply(2, "send dispose")
    table.apply(3, "send call", 3)
    assert len(table) == 2
