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
    """`attester`: "module:what opens it", relative to this package; "": there is none, and `lacking` says why. `device`: without it this is not such a place, a
    `place`. `extra`: of adyton, without which it cannot be asked. `automatic`: taken where nobody names a platform. `met`: how far it was tried."""

    attester: str
    device: str
    place: str
    met: str
    extra: str = ""
    automatic: bool = True
    lacking: str = ""


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
        *("", "/dev/sgx_enclave", "a machine with Intel SGX", "has not met hardware"),
        lacking="evidence of SGX enclaves is verified, but none can be started: the process runtime needs a whole Linux inside (docs/platforms.md)",
    ),
}


def open_attester(platform: Platform) -> Attester:
    """The attester of hardware. PlatformError says in a sentence why there is none here."""
    row = ROWS.get(platform)
    if row is None:
        raise PlatformError(f"platform {platform} has no hardware that could be asked for a report")
    if not row.attester:
        raise PlatformError(row.lacking if os.path.exists(row.device) else _absent(row))
    module, _, name = row.attester.partition(":")
    try:
        opened = operator.attrgetter(name)(importlib.import_module(f"{__package__}.{module}"))
        return cast("Callable[[], Attester]", opened)()
    except ImportError as error:
        if not os.path.exists(row.device):
            raise PlatformError(_absent(row)) from error
        missing = f"{error.name} is missing" if error.name else str(error)
        raise PlatformError(f"{missing}: install adyton[{row.extra}] on this machine") from error
    except PlatformError as error:
        if os.path.exists(row.device):
            raise
        raise PlatformError(_absent(row)) from error


def _absent(row: Row) -> str:
    return f"this is not {row.place}: there is no {row.device}"


class Look(NamedTuple):
    """Whether a platform is here, and a sentence that says which, or why not."""

    here: bool
    detail: str


def look(platform: Platform) -> Look:
    """Opens it, and closes it again: nothing less says that it works."""
    if platform == "sim":
        return Look(here=True, detail="simulated enclaves, which prove nothing: NOT CONFIDENTIAL")
    try:
        open_attester(platform).close()
    except PlatformError as error:
        return Look(here=False, detail=error.message)
    row = ROWS[platform]
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
