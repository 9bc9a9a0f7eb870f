"""Is evidence genuine (`verify`), and is it of the enclave that was wanted, on this connection (`validate`).

Neither alone says anything: genuine evidence of another enclave is worthless, and so is expected evidence that nobody signed.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping

import msgspec

from adyton.attestation.evidence import REPORT_DATA_SIZE, Envelope, open_envelope
from adyton.attestation.expectation import Expectation, Failure, Stage
from adyton.attestation.identity import EnclaveIdentity, Platform
from adyton.attestation.sim import open_simulated
from adyton.errors import (
    AttestationError,
    BindingError,
    CollateralMissingError,
    EvidenceMalformedError,
    ExpectationError,
    LocalProtocolError,
    NotGenuineError,
    TcbError,
)


class Verified(msgspec.Struct, frozen=True):
    """What genuine evidence says. `tcb`: the state of the platform's TCB; "" for a simulated one, which has none."""

    identity: EnclaveIdentity
    report_data: bytes
    tcb: str = ""


# The earliest stage with a finding decides which error is raised; all findings are in it.
_STAGES: Mapping[Stage, type[AttestationError]] = {
    "malformed": EvidenceMalformedError,
    "genuine": NotGenuineError,
    "collateral": CollateralMissingError,
    "tcb": TcbError,
    "binding": BindingError,
    "expectation": ExpectationError,
}


def verify(evidence: bytes) -> Verified:
    """What hostile bytes prove. Only AttestationErrors leave: EvidenceMalformedError, NotGenuineError."""
    envelope = open_envelope(evidence)
    verifier = _VERIFIERS.get(envelope.platform)
    if verifier is None:
        finding = Failure("genuine", "platform", " or ".join(_VERIFIERS), envelope.platform)
        raise NotGenuineError(
            f"evidence of platform {envelope.platform} cannot be verified by this adyton, and is not believed",
            failures=(finding,),
        )
    return verifier(envelope)


def validate(verified: Verified, expectation: Expectation, report_data: bytes) -> EnclaveIdentity:
    """The identity, if it is what was expected and bound to `report_data` (64 bytes).

    UsageError for an expectation that names too little. TcbError, BindingError or ExpectationError with every finding.
    """
    if len(report_data) != REPORT_DATA_SIZE:
        raise LocalProtocolError(f"report data has {REPORT_DATA_SIZE} bytes, not {len(report_data)}")
    # (1) The expectation is complete.
    expectation.check()
    # (2) The evidence was made for this connection, just now.
    failures = []
    if not hmac.compare_digest(verified.report_data, report_data):
        failures.append(Failure("binding", "report_data", report_data.hex(), verified.report_data.hex()))
    # (3) The enclave is the expected one.
    failures += expectation.compare(verified.identity, verified.tcb)
    if failures:
        raise failed(failures)
    return verified.identity


def failed(failures: list[Failure]) -> AttestationError:
    """The error of the earliest stage, with all findings in order of stages."""
    order = list(_STAGES)
    failures = sorted(failures, key=lambda failure: order.index(failure.stage))
    return _STAGES[failures[0].stage](
        f"the enclave is not to be trusted: {'; '.join(map(str, failures))}. "
        "If this is the enclave that you want, change [expect] in the policy; else find out who runs it",
        failures=tuple(failures),
    )


def _simulated(envelope: Envelope) -> Verified:
    claims = open_simulated(envelope)
    return Verified(claims.identity, claims.report_data)


_VERIFIERS: Mapping[Platform, Callable[[Envelope], Verified]] = {"sim": _simulated}
