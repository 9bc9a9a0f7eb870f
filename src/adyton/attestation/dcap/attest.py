"""Quotes of a TDX guest, through the kernel. The certificates that a verifier needs are in them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from adyton.attestation.dcap.abi import parse
from adyton.attestation.hardware import HardwareReport
from adyton.attestation.tsm import REPORTS, TsmReports
from adyton.errors import AttestationError, PlatformError

PROVIDER = "tdx_guest"


class Tdx:
    """See `hardware.Attester`. PlatformError: this is no such guest, or its kernel gives no quotes."""

    def __init__(self, folder: str = REPORTS, pause: Callable[[float], None] = time.sleep) -> None:
        self._reports = TsmReports(PROVIDER, folder, pause)

    def report(self, report_data: bytes) -> HardwareReport:
        """Linux looks once a second whether the host's quoting enclave has answered, so it takes one."""
        quote = self._reports.report(report_data).report
        try:
            return HardwareReport(parse(quote).raw)  # without what fills the kernel's buffer
        except AttestationError as error:
            raise PlatformError(f"{PROVIDER} gave what is no quote that can be verified: {error}") from error

    def close(self) -> None:
        """Idempotent."""
        self._reports.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
