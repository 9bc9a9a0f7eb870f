"""The platforms' root keys, from which sealing keys are derived: a table, `_ROOTS`, of how each is opened.

A root is the same for all enclaves of a machine, so no supervisor has one: it is opened in the process that also asks the hardware for reports
(`runtime.process.attester`). A platform that has none is no hindrance to enclaves that seal nothing: `open_root` then returns one that raises a
PlatformError when it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

from adyton.attestation.identity import Platform
from adyton.errors import AdytonError, IntegrityError, PlatformError


class Root(Protocol):
    """Of one platform, for what it has measured. `tcb`: the state of the platform's firmware now, "" where there is none. PlatformError: there is no key."""

    @property
    def tcb(self) -> bytes: ...

    def key(self, tcb: bytes) -> bytes:
        """The root key of that state, at least 16 bytes. IntegrityError: it is not to be had here, and what to do. PlatformError: there is none.

        That of `tcb` is there at once; for another one, the platform may have to be asked, which may take as long as a report. Thread-safe."""
        ...


class SimulatedRoot:
    """SIMULATION: everybody has this key. What is sealed with it is protected from nobody; it only goes the way of what is."""

    tcb = b""

    def key(self, tcb: bytes) -> bytes:
        if tcb:
            raise IntegrityError(
                "the sealed data does not open: a simulation has no firmware, and the header names a state of one. Take another copy of it"
            )
        return hashlib.sha256(b"adyton SIMULATION sealing root 1: public, worth nothing").digest()


class NoRoot:
    """Of a platform without a key of its own. `reason`: and what to do."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    @property
    def tcb(self) -> bytes:
        raise PlatformError(self._reason)

    def key(self, tcb: bytes) -> bytes:  # noqa: ARG002
        raise PlatformError(self._reason)


def _sgx() -> Root:
    from adyton.attestation.dcap.sealing_key import GramineRoot

    return GramineRoot.open()


def _sev_snp() -> Root:
    from adyton.attestation.sev_snp.sealing_key import GuestDeviceRoot

    return GuestDeviceRoot.open()


def _tpm() -> Root:
    from adyton.attestation.tpm.sealing_key import TpmRoot

    return TpmRoot.open()


def _none(platform: str) -> Callable[[], Root]:
    return lambda: NoRoot(
        f"nothing can be sealed here: {platform} has no key of its own for that. Have a broker release one to the enclave for its evidence"
        " (`adyton broker`, trusted.secret), and encrypt with that what is to outlast it (trusted.AeadCryptor)"
    )


_ROOTS: dict[Platform, Callable[[], Root]] = {
    "sim": SimulatedRoot,
    "sgx": _sgx,
    "sev-snp": _sev_snp,
    "tdx": _none("tdx"),
    "nitro": _none("nitro"),
    "tpm": _tpm,
}


def open_root(platform: Platform) -> Root:
    """The root of the platform that this process runs on. Nothing is raised: see the module."""
    try:
        return _ROOTS[platform]()
    except (AdytonError, OSError) as error:
        return NoRoot(f"nothing can be sealed here: {error}")
