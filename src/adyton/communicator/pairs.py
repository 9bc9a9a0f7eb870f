"""Pairs: a client thread and the enclave thread that runs its calls. One of the two runs at a time, and only that one may speak.

The calls under way on a pair are a stack. The client made the first, the enclave the second (from inside the first), and so on;
who received the innermost call runs, and either makes another call or replies to that one. On an idle pair the client runs.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Literal

from adyton.errors import ResourceLimitError


class Side(enum.Enum):
    """Which end of a session this is."""

    CLIENT = "client"
    ENCLAVE = "enclave"


Innermost = Literal["none", "sent", "received"]  # call of the stack, as this side sees it
Action = Literal["send call", "receive call", "send reply", "receive reply", "send dispose", "receive dispose"]
Effect = Literal["push", "pop", "end"]

# side → the pair's innermost call → what happens → what becomes of the stack. What is missing is a violation.
RULES: Mapping[Side, Mapping[Innermost, Mapping[Action, Effect]]] = {
    Side.CLIENT: {
        "none": {"send call": "push", "send dispose": "end"},
        "sent": {"receive call": "push", "receive reply": "pop"},
        "received": {"send call": "push", "send reply": "pop"},
    },
    Side.ENCLAVE: {
        "none": {"receive call": "push", "receive dispose": "end"},
        "sent": {"receive call": "push", "receive reply": "pop"},
        "received": {"send call": "push", "send reply": "pop"},
    },
}


class PairViolation(Exception):  # noqa: N818 - whose error it is, only the session knows
    """An action that the rules do not have for the pair's state."""


class PairTable:
    """The pairs of one side of a session, by number. Nothing changes when a method raises."""

    def __init__(self, side: Side, pairs: int, nesting: int) -> None:
        """`pairs`: how many there may be at once; `nesting`: how many calls may be under way on one."""
        rules = RULES[side]
        # The client makes the first call, so the depth says whose the innermost is: odd depths are the client's.
        self._idle = rules["none"]
        self._odd = rules["sent" if side is Side.CLIENT else "received"]
        self._even = rules["received" if side is Side.CLIENT else "sent"]
        self._pairs = pairs
        self._nesting = nesting
        self._stacks: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._stacks)

    def __contains__(self, pair: int) -> bool:
        return pair in self._stacks

    def depth(self, pair: int) -> int:
        """How many calls are under way on the pair."""
        return len(self._stacks.get(pair, ()))

    def received(self, pair: int) -> int | None:
        """The innermost call, if it is the other side's."""
        stack = self._stacks.get(pair)
        if not stack:
            return None
        rules = self._odd if len(stack) & 1 else self._even
        return stack[-1] if "send reply" in rules else None

    def apply(self, pair: int, action: Action, call: int = 0) -> None:
        """Do what the rules say. PairViolation; ResourceLimitError for one pair, or one call inside another, too many."""
        stack = self._stacks.get(pair)
        depth = len(stack) if stack else 0
        rules = self._idle if not depth else self._odd if depth & 1 else self._even
        effect = rules.get(action)
        if effect == "push":
            if stack is None:
                if len(self._stacks) >= self._pairs:
                    raise ResourceLimitError(
                        f"more than {self._pairs} threads call the enclave: end some of them, or use a pool of threads"
                    )
                self._stacks[pair] = [call]
                return
            if depth >= self._nesting:
                raise ResourceLimitError(
                    f"{self._nesting} calls between client and enclave are nested in one another, and no more may be"
                )
            stack.append(call)
        elif effect == "pop" and stack and stack[-1] == call:
            stack.pop()
        elif effect == "end" and stack is not None:
            del self._stacks[pair]
        else:
            raise PairViolation(f"{action} on pair {pair}, {_described(depth, call, stack)}")


def _described(depth: int, call: int, stack: list[int] | None) -> str:
    if stack is None:
        return "which does not exist"
    if not depth:
        return "which is idle"
    return f"{depth} calls deep: out of turn" if stack[-1] == call else f"whose innermost call is another than {call}"
