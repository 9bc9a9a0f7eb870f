"""What every platform's attester is: it asks the hardware for a report over 64 bytes, and has what helps to verify that.

The classes are `sev_snp.attest.SevSnp`, `dcap.attest.Tdx` and `Sgx`, `nitro.attest.Nitro` and `tpm.attest.Tpm`; which there are for a platform says `attesters`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class HardwareReport(NamedTuple):
    """`report`: as the platform made it. `certificates`: in DER, the issuer's behind each; they came from the host, and may be anything."""

    report: bytes
    certificates: tuple[bytes, ...] = ()


class Attester(Protocol):
    """Owns what it has opened. Not thread-safe."""

    def report(self, report_data: bytes) -> HardwareReport:
        """Of 64 bytes. PlatformError: the platform gave none. May take seconds, where a host limits how often it may be asked."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...
