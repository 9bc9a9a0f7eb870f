"""Expectations put together: all of some, any of some, not one. Anything of them is an `Acl`, as one expectation is.

    AnyOf(Expectation(signer=[ours], product_id=1, …), AllOf(Expectation(…), Not(Expectation(measurement=[withdrawn], …))))

None is ever empty: what names nothing is an error, and never a pass.
"""

from __future__ import annotations

from typing import Protocol

from adyton.attestation.findings import Failure
from adyton.attestation.identity import EnclaveIdentity
from adyton.errors import UsageError


class Acl(Protocol):
    """Whom to accept."""

    def check(self, *, raw: bool = False) -> None:
        """UsageError unless it is complete and well-formed. `raw`: for evidence that says nothing of an image."""

    def compare(self, identity: EnclaveIdentity, tcb: str) -> list[Failure]:
        """Every finding against an identity and the state of its TCB; none: it is accepted."""


class _Several:
    """Some, at least one."""

    def __init__(self, *parts: Acl) -> None:
        self.parts = parts

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"

    def check(self, *, raw: bool = False) -> None:
        if not self.parts:
            raise UsageError(f"{type(self).__name__}() is empty, and would say nothing: give it expectations")
        for part in self.parts:
            part.check(raw=raw)


class AllOf(_Several):
    """Each of them must hold."""

    def compare(self, identity: EnclaveIdentity, tcb: str) -> list[Failure]:
        return [failure for part in self.parts for failure in part.compare(identity, tcb)]


class AnyOf(_Several):
    """One of them must hold. If none does, the findings are all of theirs, each with its number."""

    def compare(self, identity: EnclaveIdentity, tcb: str) -> list[Failure]:
        found = [part.compare(identity, tcb) for part in self.parts]
        if not all(found):
            return []
        return [
            Failure(failure.stage, f"alternative {number}: {failure.field}", failure.expected, failure.got)
            for number, failures in enumerate(found, 1)
            for failure in failures
        ]


class Not:
    """It must not hold."""

    def __init__(self, part: Acl) -> None:
        self.part = part

    def __repr__(self) -> str:
        return f"Not({self.part!r})"

    def check(self, *, raw: bool = False) -> None:
        self.part.check(raw=raw)

    def compare(self, identity: EnclaveIdentity, tcb: str) -> list[Failure]:
        if self.part.compare(identity, tcb):
            return []
        return [Failure("expectation", "exclusion", f"none that is {self.part!r}", f"{identity.measurement or identity.runtime}, which is one")]
