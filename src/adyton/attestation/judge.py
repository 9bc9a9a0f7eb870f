"""Evidence and a policy, all at once: what `adyton verify` says of a file, where nothing may be left unsaid.

On a connection `verify` and `validate` do the same, and raise.
"""

from __future__ import annotations

import datetime as dt
import hmac
from typing import Literal

import msgspec

from adyton.attestation.acl import Acl
from adyton.attestation.collateral import Collateral
from adyton.attestation.findings import Failure, failed
from adyton.attestation.verify import Verified, verify
from adyton.errors import AttestationError

Binding = Literal["ok", "not checked"]


class Judgement(msgspec.Struct, frozen=True):
    """`verified`: None where evidence is not even genuine. `binding`: whether what it is bound to was known. `failures`: every finding."""

    verified: Verified | None
    binding: Binding
    failures: tuple[Failure, ...]

    @property
    def ok(self) -> bool:
        """Genuine, and as expected."""
        return not self.failures

    @property
    def error(self) -> AttestationError:
        """Of the findings, if there are any."""
        return failed(self.failures)


def judge(
    evidence: bytes, expectation: Acl, collateral: Collateral, at: dt.datetime, report_data: bytes | None = None
) -> Judgement:
    """Every finding against evidence. `report_data`: what it is to be bound to; None: what it says itself, if it does.

    UsageError for an expectation that names too little.
    """
    expectation.check(raw=True)
    try:
        verified = verify(evidence, collateral, at)
    except AttestationError as error:
        failures = tuple(each for each in error.failures if isinstance(each, Failure))
        return Judgement(
            None, "not checked", failures or (Failure("malformed", "the evidence", "well-formed evidence", str(error)),)
        )
    expectation.check(raw=not verified.identity.measurement)
    failures_of_binding, binding = _binding(verified, report_data)
    found = [
        *verified.failures,
        *failures_of_binding,
        *expectation.compare(verified.identity, verified.tcb, verified.register),
    ]
    order = failed(found).failures if found else ()
    return Judgement(verified, binding, tuple(each for each in order if isinstance(each, Failure)))


def _binding(verified: Verified, report_data: bytes | None) -> tuple[list[Failure], Binding]:
    """Raw evidence need not be bound to anything that we know; what a runtime says of an image counts only where report data vouches for it."""
    wanted = report_data
    if wanted is None and verified.bound is not None:
        wanted = verified.bound.report_data(verified.identity_digest)
    got = verified.report_data
    if wanted is None:
        if not verified.identity.measurement or verified.identity.platform == "sim":
            return [], "not checked"
        return [
            Failure("binding", "report_data", "what binds the image to it", "nothing: give --report-data")
        ], "not checked"
    if not any(wanted):  # empty, or what is there where nothing was put: that binds to nothing
        return [Failure("binding", "report_data", "some that is not all zeros", wanted.hex() or "none")], "not checked"
    if hmac.compare_digest(got, wanted):
        return [], "ok"
    return [Failure("binding", "report_data", wanted.hex(), got.hex() or "none")], "not checked"
