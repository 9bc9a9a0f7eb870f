"""The list of tests that are expected to differ in an enclave: expected.toml, read strictly."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tests by their ids, in which * stands for anything, and why they differ. `python`: the versions where they do; empty: all.

    `sometimes`: by how fast things happen, or what is installed, they do not differ.
    """

    tests: list[str]
    reason: str
    python: list[str] = []
    sometimes: bool = False

    def has(self, test: str) -> bool:
        return any(re.fullmatch(fnmatch.translate(each.replace("[", "[[]")), test) for each in self.tests)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    expected: list[Rule] = []


class Expected:
    """The rules that hold for one version of Python."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = list(rules)

    @classmethod
    def read(cls, path: Path, version: Sequence[str]) -> Expected:
        """ValueError for what is no such list."""
        try:
            rules = msgspec.toml.decode(path.read_bytes(), type=_File).expected
        except msgspec.MsgspecError as error:
            raise ValueError(f"{path}: {error}") from None
        for rule in rules:
            if not rule.tests or not rule.reason.strip():
                raise ValueError(f"{path}: a rule without tests, or without a reason: {rule}")
        return cls(rule for rule in rules if not rule.python or ".".join(version) in rule.python)

    def rule_of(self, test: str) -> Rule | None:
        """The first one that has the test."""
        return next((rule for rule in self.rules if rule.has(test)), None)

    def stale(self, failing: Iterable[str], ran: Iterable[str]) -> list[Rule]:
        """Rules of which tests ran, and of whose patterns one or more had no test that differs any more."""
        failing, ran = list(failing), list(ran)
        found = []
        for rule in self.rules:
            if rule.sometimes:
                continue
            left = [pattern for pattern in rule.tests if _any(pattern, ran) and not _any(pattern, failing)]
            if left:
                found.append(msgspec.structs.replace(rule, tests=left))
        return found


def _any(pattern: str, tests: Iterable[str]) -> bool:
    rule = Rule([pattern], "")
    return any(rule.has(test) for test in tests)
