"""What an enclave must be before it is trusted with anything: the `[expect]` table of a policy.

All that an expectation names must hold. It has to name platforms, and the image: by measurement, or by signer and product id. One
that names too little is an error and never a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from adyton.attestation.claims import UNVOUCHED
from adyton.attestation.findings import UNVOUCHED_KEY, Failure
from adyton.attestation.identity import PLATFORMS, EnclaveIdentity, Number
from adyton.crypto.digest import is_digest
from adyton.errors import UsageError


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[expect]` table. Empty lists and None: not named. `debug`: accept enclaves in debug too.

    `runtime` are reference values of what hardware measured, and `tcb` the states of it that are good enough: no hardware passes
    without them. A simulated enclave has no hardware: there `tcb` does not count, and `runtime` only if it is named.
    """

    platforms: Sequence[str] = ()
    measurement: Sequence[str] = ()
    signer: Sequence[str] = ()
    product_id: Number | None = None
    min_version: Number = 0
    debug: bool = False
    runtime: Sequence[str] = ()
    tcb: Sequence[str] = ("UpToDate",)
    machines: Sequence[str] = ()

    def check(self, *, raw: bool = False) -> None:
        """UsageError unless this expectation is complete and well-formed, with every reason. `raw`: for evidence that says nothing of an image."""
        problems = [problem for condition, problem in self._conditions(raw=raw) if not condition]
        if problems:
            raise UsageError(f"the expectation cannot be used: {'; '.join(problems)}. Complete its [expect] table")

    def _conditions(self, *, raw: bool) -> list[tuple[bool, str]]:
        conditions = [
            (bool(self.platforms), f"platforms is empty: name some of {' '.join(PLATFORMS)}"),
            (
                raw or bool(self.measurement) or (bool(self.signer) and self.product_id is not None),
                "no image is named: give measurement, or signer and product_id",
            ),
        ]
        conditions += [
            (not isinstance(values, str), f"{field} must be a list, not the text {values!r}")
            for field, values in msgspec.structs.asdict(self).items()
        ]
        conditions += [(platform in PLATFORMS, f"there is no platform {platform!r}") for platform in self.platforms]
        for field, values in (("measurement", self.measurement), ("signer", self.signer), ("runtime", self.runtime)):
            conditions += [
                (is_digest(value), f'{field} has {value!r}, not "sha256:" and 64 hex digits') for value in values
            ]
        return conditions

    def check_names(self) -> None:
        """UsageError unless it names something, and nothing but whom: what `names` looks at."""
        given = {field for field in self.__struct_fields__ if getattr(self, field) != _DEFAULTS[field]}
        if not given or given - _NAMING.keys():
            named = ", ".join(sorted(given - _NAMING.keys())) or "nothing"
            raise UsageError(f"an exclusion names whom not to accept, by {', '.join(_NAMING)}; this one names {named}")

    def names(self, identity: EnclaveIdentity) -> bool:
        """Whether the identity is one of those that it names; `debug` and states do not matter."""
        return all(
            getattr(identity, of) in (want if isinstance(want, list | tuple) else [want])
            for field, of in _NAMING.items()
            if (want := getattr(self, field)) != _DEFAULTS[field]
        )

    def compare(self, identity: EnclaveIdentity, tcb: str) -> list[Failure]:
        """Every finding against an identity and the state of its TCB ("" for a simulated one)."""
        failures = [
            Failure("expectation", field, expected(self), got(identity))
            for field, holds, expected, got in _RULES
            if not holds(self, identity)
        ]
        if identity.platform != "sim" and tcb not in self.tcb:
            failures.append(Failure("tcb", "tcb", _one_of(self.tcb), tcb or "none"))
        if tcb == UNVOUCHED and identity.machine not in self.machines:
            wanted = (
                "a certificate of it by a CA whose root is in the collateral, or its machine among machines of [expect]"
            )
            failures.append(
                Failure("genuine", UNVOUCHED_KEY, wanted, f"the key of {identity.machine}, which nobody vouches for")
            )
        return failures


_DEFAULTS = msgspec.structs.asdict(Expectation())
# What says whom, and not in which state: the field of an expectation, and the identity's.
_NAMING = {
    "platforms": "platform",
    "measurement": "measurement",
    "signer": "signer",
    "product_id": "product_id",
    "runtime": "runtime",
    "machines": "machine",
}


def _one_of(values: Sequence[str]) -> str:
    return " or ".join(values) or "none"


_Rule = tuple[
    str,
    Callable[[Expectation, EnclaveIdentity], bool],
    Callable[[Expectation], str],
    Callable[[EnclaveIdentity], str],
]

# A row: the field, whether it holds, and both sides of it as a finding shows them.
_RULES: tuple[_Rule, ...] = (
    (
        "platform",
        lambda want, is_: is_.platform in want.platforms,
        lambda want: _one_of(want.platforms),
        lambda is_: is_.platform + (" (a simulated enclave: not confidential)" if is_.platform == "sim" else ""),
    ),
    (
        "measurement",
        lambda want, is_: is_.measurement in want.measurement or not want.measurement,
        lambda want: _one_of(want.measurement),
        lambda is_: is_.measurement or "none: the evidence says nothing of an image",
    ),
    (
        "signer",
        lambda want, is_: is_.signer in want.signer or not want.signer,
        lambda want: _one_of(want.signer),
        lambda is_: is_.signer or "no signature",
    ),
    (
        "product_id",
        lambda want, is_: want.product_id is None or is_.product_id == want.product_id,
        lambda want: str(want.product_id),
        lambda is_: str(is_.product_id),
    ),
    (
        "security_version",
        lambda want, is_: is_.security_version >= want.min_version,
        lambda want: f"{want.min_version} or later",
        lambda is_: str(is_.security_version),
    ),
    (
        "debug",
        lambda want, is_: want.debug or not is_.debug,
        lambda _: "false",
        lambda is_: str(is_.debug).lower(),
    ),
    (
        "runtime",
        lambda want, is_: is_.runtime in want.runtime or (is_.platform == "sim" and not want.runtime),
        lambda want: _one_of(want.runtime) if want.runtime else "a reference value that [expect] names",
        lambda is_: is_.runtime or "none",
    ),
    (
        "machine",
        lambda want, is_: is_.machine in want.machines or not want.machines,
        lambda want: _one_of(want.machines),
        lambda is_: is_.machine or "none",
    ),
)
