"""Expectations put together: all of some, any of some, not one. Anything of them is an `Acl`, as one expectation is.

    AnyOf(Expectation(platforms=["tdx"], signer=[ours], product_id=1, …), AllOf(Expectation(…), Not(Expectation(measurement=[withdrawn]))))

Nothing is ever accepted for want of words: what names nothing is an error, and `Not` only takes away from what something else accepts.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from adyton.attestation.findings import Failure
from adyton.attestation.identity import EnclaveIdentity
from adyton.errors import UsageError


@runtime_checkable
class Acl(Protocol):
    """Whom to accept."""

    def check(self, *, raw: bool = False) -> None:
        """UsageError unless it is complete and well-formed. `raw`: for evidence that says nothing of an image."""

    def compare(self, identity: EnclaveIdentity, tcb: str, register: str = "") -> list[Failure]:
        """Every finding against an identity, the state of its TCB, and what else names its runtime; none: it is accepted."""

    def check_names(self) -> None:
        """UsageError unless `names` can be asked."""

    def names(self, identity: EnclaveIdentity) -> bool:
        """Whether it is one of those meant, whatever state it is in."""


class _Several:
    """Some, at least one."""

    def __init__(self, *parts: Acl) -> None:
        self.parts = parts

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"

    def _check_parts(self) -> None:
        if not self.parts:
            raise UsageError(f"{type(self).__name__}() is empty, and would say nothing: give it expectations")
        for part in self.parts:
            if not isinstance(part, Acl):
                raise UsageError(f"{part!r} is no expectation: give Expectation(…), AllOf, AnyOf or Not of some")

    def check_names(self) -> None:
        """See `Acl`."""
        self._check_parts()
        for part in self.parts:
            part.check_names()


class AllOf(_Several):
    """Each of them must hold. One at least says whom to accept; others may be `Not`."""

    def check(self, *, raw: bool = False) -> None:
        """See `Acl`."""
        self._check_parts()
        if all(isinstance(part, Not) for part in self.parts):
            raise UsageError(f"{self!r} says only whom not to accept: add an Expectation of whom to accept")
        for part in self.parts:
            if isinstance(part, Not):
                part.check_names()
            else:
                part.check(raw=raw)

    def compare(self, identity: EnclaveIdentity, tcb: str, register: str = "") -> list[Failure]:
        """See `Acl`."""
        return [failure for part in self.parts for failure in part.compare(identity, tcb, register)]

    def names(self, identity: EnclaveIdentity) -> bool:
        """See `Acl`."""
        return all(part.names(identity) for part in self.parts)


class AnyOf(_Several):
    """One of them must hold. If none does, the findings are all of theirs, each with its number."""

    def check(self, *, raw: bool = False) -> None:
        """See `Acl`."""
        self._check_parts()
        for part in self.parts:
            part.check(raw=raw)

    def compare(self, identity: EnclaveIdentity, tcb: str, register: str = "") -> list[Failure]:
        """See `Acl`."""
        found = [part.compare(identity, tcb, register) for part in self.parts]
        if not all(found):
            return []
        return [
            Failure(failure.stage, f"alternative {number}: {failure.field}", failure.expected, failure.got)
            for number, failures in enumerate(found, 1)
            for failure in failures
        ]

    def names(self, identity: EnclaveIdentity) -> bool:
        """See `Acl`."""
        return any(part.names(identity) for part in self.parts)


class Not:
    """None that it names: images, signers, products, machines. What state those are in does not matter."""

    def __init__(self, part: Acl) -> None:
        self.part = part

    def __repr__(self) -> str:
        return f"Not({self.part!r})"

    def check(self, *, raw: bool = False) -> None:  # noqa: ARG002
        """Never complete alone."""
        raise UsageError(f"{self!r} says only whom not to accept: write AllOf(Expectation(…), {self!r})")

    def compare(self, identity: EnclaveIdentity, tcb: str, register: str = "") -> list[Failure]:  # noqa: ARG002
        """See `Acl`."""
        if not self.part.names(identity):
            return []
        got = f"{identity.measurement or identity.runtime}, which is one"
        return [Failure("expectation", "exclusion", f"none of {self.part!r}", got)]

    def check_names(self) -> None:
        """See `Acl`."""
        if not isinstance(self.part, Acl):
            raise UsageError(f"{self.part!r} is no expectation: give Not an Expectation(…)")
        self.part.check_names()

    def names(self, identity: EnclaveIdentity) -> bool:
        """See `Acl`."""
        return not self.part.names(identity)
