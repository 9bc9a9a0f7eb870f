"""What an enclave must be before it is trusted with anything: the `[expect]` table of a policy.

All that an expectation names must hold. It has to name platforms, and the image: by measurement, or by signer and product id. One
that names too little is an error and never a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from adyton.attestation.claims import UNVOUCHED
from adyton.attestation.findings import UNVOUCHED_KEY, Failure
from adyton.attestation.identity import PLATFORMS, EnclaveIdentity, Number
from adyton.crypto.digest import is_digest, is_register
from adyton.errors import UsageError


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """The `[expect]` table. Empty lists and None: not named. `debug`: accept enclaves in debug too.

    `runtime` are reference values of what hardware measured, and `tcb` the states of it that are good enough: no hardware passes
    without them; "sha384:…" in `runtime` is the one register that names it (see `Claims`). A simulated enclave has no hardware: there `tcb`
    does not count, and `runtime` only if it is named. Nor does `runtime` have to be named for raw evidence, on which no image is loaded.
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
        for field, values in (("measurement", self.measurement), ("signer", self.signer)):
            conditions += [
                (is_digest(value), f'{field} has {value!r}, not "sha256:" and 64 hex digits') for value in values
            ]
        conditions += [
            (
                is_digest(value) or is_register(value),
                f'runtime has {value!r}, not "sha256:" and 64 hex digits, nor "sha384:" and 96',
            )
            for value in self.runtime
        ]
        return conditions

    def check_names(self) -> None:
        """UsageError unless it names something, and nothing but whom: what `names` looks at."""
        given = {field for field in self.__struct_fields__ if getattr(self, field) != _DEFAULTS[field]}
        if not given or given - _NAMING.keys():
            named = ", ".join(sorted(given - _NAMING.keys())) or "nothing"
            raise UsageError(f"an exclusion names whom not to accept, by {', '.join(_NAMING)}; this one names {named}")
        for value in self.runtime:
            if not is_digest(value):
                raise UsageError(f'an exclusion names a runtime by "sha256:" and 64 hex digits, not by {value!r}')

    def names(self, identity: EnclaveIdentity) -> bool:
        """Whether the identity is one of those that it names; `debug` and states do not matter."""
        return all(
            not _names_of(identity, of).isdisjoint(want if isinstance(want, list | tuple) else [want])
            for field, of in _NAMING.items()
            if (want := getattr(self, field)) != _DEFAULTS[field]
        )

    def compare(self, identity: EnclaveIdentity, tcb: str, register: str = "") -> list[Failure]:
        """Every finding against an identity, the state of its TCB ("" for a simulated one), and what else names its runtime."""
        failures = [
            Failure("tcb" if check.field == "tcb" else "expectation", check.field, check.expected, check.got)
            for check in self.checks(identity, tcb, register)
            if not check.holds
        ]
        if tcb == UNVOUCHED and identity.machine not in self.machines:
            wanted = (
                "a certificate of it by a CA whose root is in the collateral, or its machine among machines of [expect]"
            )
            failures.append(
                Failure("genuine", UNVOUCHED_KEY, wanted, f"the key of {identity.machine}, which nobody vouches for")
            )
        return failures

    def checks(self, identity: EnclaveIdentity, tcb: str, register: str = "") -> list[Check]:
        """What it names, line by line; `compare` is those that do not hold."""
        spelled = identity if register not in self.runtime else msgspec.structs.replace(identity, runtime=register)
        found = [
            Check(field, holds(self, spelled), expected(self), got(spelled))
            for field, named, holds, expected, got in _RULES
            if named(self) or not holds(self, spelled)
        ]
        if identity.platform != "sim":
            found.append(Check("tcb", tcb in self.tcb, _one_of(self.tcb), tcb or "none"))
        return found


class Check(NamedTuple):
    """One thing that is wanted, and what is there."""

    field: str
    holds: bool
    expected: str
    got: str


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


def _names_of(identity: EnclaveIdentity, field: str) -> set[object]:
    """What a policy may call that claim: a Nitro enclave runs on an instance, whose id AWS has put before the enclave's own."""
    value = getattr(identity, field)
    return {value, value.partition("-enc")[0]} if field == "machine" and identity.platform == "nitro" else {value}


def _one_of(values: Sequence[str]) -> str:
    return " or ".join(values) or "none"


_Rule = tuple[
    str,
    Callable[[Expectation], bool],
    Callable[[Expectation, EnclaveIdentity], bool],
    Callable[[Expectation], str],
    Callable[[EnclaveIdentity], str],
]

# A row: the field, whether it is named, whether it holds, and both sides of it as a finding shows them.
_RULES: tuple[_Rule, ...] = (
    (
        "platform",
        lambda _: True,
        lambda want, is_: is_.platform in want.platforms,
        lambda want: _one_of(want.platforms),
        lambda is_: is_.platform + (" (a simulated enclave: not confidential)" if is_.platform == "sim" else ""),
    ),
    (
        "measurement",
        lambda want: bool(want.measurement),
        lambda want, is_: is_.measurement in want.measurement or not want.measurement,
        lambda want: _one_of(want.measurement),
        lambda is_: is_.measurement or "none: the evidence says nothing of an image",
    ),
    (
        "signer",
        lambda want: bool(want.signer),
        lambda want, is_: is_.signer in want.signer or not want.signer,
        lambda want: _one_of(want.signer),
        lambda is_: is_.signer or "no signature",
    ),
    (
        "product_id",
        lambda want: want.product_id is not None,
        lambda want, is_: want.product_id is None or is_.product_id == want.product_id,
        lambda want: str(want.product_id),
        lambda is_: str(is_.product_id),
    ),
    (
        "security_version",
        lambda want: want.min_version > 0,
        lambda want, is_: is_.security_version >= want.min_version,
        lambda want: f"{want.min_version} or later",
        lambda is_: str(is_.security_version),
    ),
    (
        "debug",
        lambda _: True,
        lambda want, is_: want.debug or not is_.debug,
        lambda want: "true or false" if want.debug else "false",
        lambda is_: str(is_.debug).lower(),
    ),
    (
        "runtime",
        lambda want: bool(want.runtime),
        lambda want, is_: (
            is_.runtime in want.runtime or (not want.runtime and (is_.platform == "sim" or not is_.measurement))
        ),
        lambda want: _one_of(want.runtime) if want.runtime else "a reference value that [expect] names",
        lambda is_: is_.runtime or "none",
    ),
    (
        "machine",
        lambda want: bool(want.machines),
        lambda want, is_: not _names_of(is_, "machine").isdisjoint(want.machines) or not want.machines,
        lambda want: _one_of(want.machines),
        lambda is_: is_.machine or "none",
    ),
)
