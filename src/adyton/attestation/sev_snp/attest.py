"""Reports of an SEV-SNP guest, through the kernel."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from adyton.attestation.hardware import HardwareReport
from adyton.attestation.sev_snp.certificate_table import parse
from adyton.attestation.tsm import REPORTS, TsmReports
from adyton.errors import EvidenceMalformedError

PROVIDER = "sev_guest"


class SevSnp:
    """See `hardware.Attester`. PlatformError: this is no such guest, or its kernel gives no reports."""

    def __init__(self, folder: str = REPORTS, pause: Callable[[float], None] = time.sleep) -> None:
        self._reports = TsmReports(PROVIDER, folder, pause)

    def report(self, report_data: bytes) -> HardwareReport:
        """With what certificates the host has. Without them a verifier gets the chip's from AMD."""
        report, table = self._reports.report(report_data)
        try:
            certificates = parse(table)
        except EvidenceMalformedError:
            certificates = ()  # no more than a host that has none
        return HardwareReport(report, certificates)

    def close(self) -> None:
        """Idempotent."""
        self._reports.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
