"""What is wrong with evidence: findings, each with what was expected and what was there, and the error that they make together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from adyton.errors import (
    AttestationError,
    BindingError,
    CollateralMissingError,
    EvidenceMalformedError,
    ExpectationError,
    NotGenuineError,
    TcbError,
)

Stage = Literal["malformed", "genuine", "collateral", "tcb", "binding", "expectation"]

# In their order: the earliest stage with a finding decides which error is raised; all findings are in it.
_STAGES: Mapping[Stage, type[AttestationError]] = {
    "malformed": EvidenceMalformedError,
    "genuine": NotGenuineError,
    "collateral": CollateralMissingError,
    "tcb": TcbError,
    "binding": BindingError,
    "expectation": ExpectationError,
}
_ORDER: tuple[Stage, ...] = tuple(_STAGES)
_ADVICE: Mapping[Stage, str] = {
    "malformed": "It is cut short or changed, or of another kind: ask for it again",
    "genuine": "Do not use the enclave; find out who runs it",
    "collateral": "Give what the vendor published for that time: --collateral DIR, or a client that may fetch it",
    "tcb": "Have the machine's firmware updated, or name the state in tcb of [expect] if it is good enough",
    "binding": "It was made for another connection, or earlier: ask for it anew",
    "expectation": "If this is the enclave that you want, change [expect] in the policy; else find out who runs it",
}

# Of what a policy wants, by field: what to do about the first one that is not so.
_ADVICE_ABOUT: Mapping[str, str] = {
    "platform": "If a simulated enclave is good enough, as for tests, accept it with --allow-sim (allow_sim=True); else load it on a server that has such hardware, or name this one in platforms of [expect]",
    "security_version": "Have the newer version loaded, or lower min_version of [expect] if the older one is good enough",
    "debug": "Have the image signed for release (adyton sign --key), or accept debug = true in [expect] where nothing is secret",
    "runtime": "If this is a machine that you trust, name what it measured in runtime of [expect]; adyton attest and adyton verify -v show it",
    "machine": "If this machine is one of yours, name it in machines of [expect]",
}


_ADVICE_ON_KEY = (
    "If a CA certifies the keys of such machines' TPMs, put its root, and the key's certificate if the TPM has none, into the folder that"
    " ADYTON_COLLATERAL names (--collateral of adyton verify); or name the machine in machines, and Unknown in tcb, of [expect]"
)


UNVOUCHED_KEY = "attestation key"  # a field: of a TPM, for which nobody vouches


class Failure(msgspec.Struct, frozen=True):
    """One finding against evidence: what was expected of a field, and what it was."""

    stage: Stage
    field: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.field}: expected {self.expected}, got {self.got}"


def failed(failures: Iterable[Failure]) -> AttestationError:
    """The error of the earliest stage, with all findings in order of stages; at least one."""
    ordered = tuple(sorted(failures, key=lambda failure: _ORDER.index(failure.stage)))
    text = f"the enclave is not to be trusted: {'; '.join(map(str, ordered))}. {advice(ordered[0])}"
    return _STAGES[ordered[0].stage](text, failures=ordered)


def advice(failure: Failure) -> str:
    """What to do about it."""
    if failure.field == UNVOUCHED_KEY:
        return _ADVICE_ON_KEY
    if failure.stage == "genuine" and failure.field.startswith("time of "):
        return (
            "It did not hold at that time: ask for evidence anew, or judge it as of its own time (adyton verify --at)"
        )
    about = _ADVICE_ABOUT.get(failure.field) if failure.stage == "expectation" else None
    return about or _ADVICE[failure.stage]


def refuse(stage: Stage, field: str, expected: str, got: str) -> AttestationError:
    """The error of one finding."""
    return failed((Failure(stage, field, expected, got),))
