"""Which platforms are here, and what asks each of them for a report. ROWS is the whole truth about that."""

from __future__ import annotations

import functools
import importlib
import operator
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

from adyton.attestation.hardware import Attester
from adyton.attestation.identity import Platform
from adyton.errors import PlatformError


class Row(NamedTuple):
    """`attester`: "module:what opens it", relative to this package. `device`: without it this is not such a place, a `place`. `extra`: of adyton, without
    which it cannot be asked. `automatic`: taken where nobody names a platform. `met`: how far it was tried. `outside`: "module:function" that raises
    PlatformError where no enclave can be started; "": the attester is opened, to see whether it works, as it is in no enclave itself."""

    attester: str
    device: str
    place: str
    met: str
    extra: str = ""
    automatic: bool = True
    outside: str = ""


_STAND_IN = "has not met hardware: tried with a stand-in for its kernel interface"

# In the order in which one is chosen.
ROWS: Mapping[Platform, Row] = {
    "sev-snp": Row("sev_snp.attest:SevSnp", "/dev/sev-guest", "an AMD SEV-SNP guest", _STAND_IN),
    "tdx": Row("dcap.attest:Tdx", "/dev/tdx_guest", "an Intel TDX guest", _STAND_IN),
    "nitro": Row("nitro.attest:Nitro", "/dev/nsm", "an AWS Nitro enclave", _STAND_IN, extra="attest"),
    "tpm": Row(
        *("tpm.attest:Tpm.open", "/dev/tpmrm0", "a machine with a TPM 2.0", "has met swtpm, and no chip"),
        automatic=False,  # it proves what was booted, and does not keep the machine's owner out
    ),
    "sgx": Row(
        *("dcap.attest:Sgx", "/dev/sgx_enclave", "a machine with Intel SGX"),
        "has not met hardware: tried with a stand-in for Gramine; programs have no files or sockets of the client, and no sandbox",
        automatic=False,  # which most programs need
        outside="dcap.gramine:check",
    ),
}


def open_attester(platform: Platform) -> Attester:
    """The attester of hardware. PlatformError says in a sentence why there is none here."""
    row = ROWS.get(platform)
    if row is None:
        raise PlatformError(f"platform {platform} has no hardware that could be asked for a report")
    try:
        return cast("Callable[[], Attester]", _named(row.attester))()
    except ImportError as error:
        if not os.path.exists(row.device):
            raise PlatformError(_absent(row)) from error
        missing = f"{error.name} is missing" if error.name else str(error)
        raise PlatformError(f"{missing}: install adyton[{row.extra}] on this machine") from error
    except PlatformError as error:
        if os.path.exists(row.device):
            raise
        raise PlatformError(_absent(row)) from error


def _named(what: str) -> Callable[[], object]:
    module, _, name = what.partition(":")
    return cast("Callable[[], object]", operator.attrgetter(name)(importlib.import_module(f"{__package__}.{module}")))


def _absent(row: Row) -> str:
    return f"this is not {row.place}: there is no {row.device}"


class Look(NamedTuple):
    """Whether a platform is here, and a sentence that says which, or why not."""

    here: bool
    detail: str


def look(platform: Platform) -> Look:
    """Opens it, and closes it again: nothing less says that it works; but for a platform that is met inside of enclaves only."""
    if platform == "sim":
        return Look(here=True, detail="simulated enclaves, which prove nothing: NOT CONFIDENTIAL")
    row = ROWS[platform]
    try:
        if row.outside:
            _named(row.outside)()
        else:
            open_attester(platform).close()
    except PlatformError as error:
        return Look(here=False, detail=error.message)
    return Look(here=True, detail=f"{row.place} ({row.met})")


def chosen(wanted: str) -> Platform:
    """The platform that a name means: "auto" is the hardware that is here, else "sim". PlatformError: it is not here, and why."""
    if wanted == "auto":
        return _automatic()
    platform = cast("Platform", wanted)
    found = look(platform)
    if not found.here:
        raise PlatformError(f"platform {wanted} is not to be had here: {found.detail}")
    return platform


@functools.cache
def _automatic() -> Platform:
    return next((platform for platform, row in ROWS.items() if row.automatic and look(platform).here), "sim")
