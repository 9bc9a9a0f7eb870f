"""Who is given what: evidence and a name in, a decision and its reasons out. No clock, file or socket."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from adyton.attestation.collateral import Collateral
from adyton.attestation.expectation import Expectation
from adyton.attestation.findings import Failure
from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.verify import binding_failures, verify
from adyton.errors import AttestationError, PlatformError


class Secret(Protocol):
    """`expect` says who is given it."""

    @property
    def expect(self) -> Expectation: ...
    @property
    def view(self) -> memoryview: ...


@dataclass(frozen=True)
class Standing:
    """What a peer's evidence says; `findings`: why it is worth nothing. `identity`: None where it is not even genuine."""

    identity: EnclaveIdentity | None
    tcb: str
    findings: tuple[Failure, ...]
    register: str = ""


@dataclass(frozen=True)
class Decision:
    """`secret`: None where it is refused, for these reasons; they are for the log, and never for the peer."""

    secret: memoryview | None
    findings: tuple[Failure, ...]


def standing(
    evidence: bytes, report_data: Callable[[bytes], bytes], collateral: Collateral, at: dt.datetime
) -> Standing:
    """Of hostile evidence, shown on a connection; `report_data`: what evidence of an identity's digest must be bound to there."""
    try:
        verified = verify(evidence, collateral, at)
    except AttestationError as error:
        found = tuple(each for each in error.failures if isinstance(each, Failure))
        return Standing(None, "", found or (Failure("malformed", "the evidence", "well-formed evidence", str(error)),))
    except PlatformError as error:  # what a stranger shows must not be what this broker cannot judge
        return Standing(None, "", (Failure("genuine", "evidence", "of a platform that is judged here", str(error)),))
    findings = [*verified.failures, *binding_failures(verified, report_data(verified.identity_digest))]
    if not verified.identity_digest:
        findings.append(
            Failure("binding", "evidence", "adyton's, which says of which image it is", "a platform's alone")
        )
    return Standing(verified.identity, verified.tcb, tuple(findings), verified.register)


def decide(secrets: Mapping[str, Secret], stands: Standing, name: str) -> Decision:
    """Whether a peer is given the secret of that name."""
    if stands.identity is None or stands.findings:
        return Decision(None, stands.findings)
    secret = secrets.get(name)
    if secret is None:
        return Decision(None, (Failure("expectation", "secret", "one that there is", "none of that name"),))
    secret.expect.check()
    findings = tuple(secret.expect.compare(stands.identity, stands.tcb, stands.register))
    return Decision(None if findings else secret.view, findings)
