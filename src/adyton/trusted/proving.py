"""How a program proves what it is, on a channel of its own: its runtime makes the evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from adyton.trusted.connection import Connection

if TYPE_CHECKING:
    from adyton.attestation.evidence import Bound
    from adyton.attestation.identity import EnclaveIdentity


class Prover(Protocol):
    """Of one enclave. `identity`: as far as its runtime knows it. `own_keys`: digests of keys of channels that it has open: who shows one is itself."""

    @property
    def identity(self) -> EnclaveIdentity: ...
    @property
    def own_keys(self) -> set[bytes]: ...
    def prepare(self) -> None:
        """Make `adyton.channel` importable."""

    def prove(self, bound: Bound, seconds: float) -> bytes:
        """Evidence. PlatformError, ResourceLimitError: there is none; TimeoutError: nor was it there within so many seconds."""


connection: Connection[Prover] = Connection()
