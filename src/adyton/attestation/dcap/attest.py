"""Quotes of a TDX guest, through the kernel, and of an SGX enclave, through Gramine. The certificates that a verifier needs are in them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from adyton.attestation.dcap import gramine
from adyton.attestation.dcap.abi import Quote, parse
from adyton.attestation.evidence import REPORT_DATA_SIZE
from adyton.attestation.hardware import HardwareReport
from adyton.attestation.tsm import REPORTS, TsmReports
from adyton.errors import AttestationError, LocalProtocolError, PlatformError

PROVIDER = "tdx_guest"


class Tdx:
    """See `hardware.Attester`. PlatformError: this is no such guest, or its kernel gives no quotes."""

    def __init__(self, folder: str = REPORTS, pause: Callable[[float], None] = time.sleep) -> None:
        self._reports = TsmReports(PROVIDER, folder, pause)

    def report(self, report_data: bytes) -> HardwareReport:
        """Linux looks once a second whether the host's quoting enclave has answered, so it takes one."""
        quote = self._reports.report(report_data).report
        return HardwareReport(_parsed(quote, PROVIDER).raw)  # without what fills the kernel's buffer

    def close(self) -> None:
        """Idempotent."""
        self._reports.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sgx:
    """Of the enclave that this process is. See `hardware.Attester`. PlatformError: it is none under Gramine that may ask for quotes."""

    def __init__(self, read: gramine.Read = gramine.read, write: gramine.Write = gramine.write) -> None:
        self._read, self._write = read, write
        try:
            kind = read("attestation_type").strip()
        except OSError as error:
            raise PlatformError(
                f"{gramine.FOLDER} cannot be used ({error.strerror}): is this an SGX enclave under Gramine?"
            ) from error
        if kind != b"dcap":
            raise PlatformError(f"Gramine gives no quotes here: its sgx.remote_attestation is {kind[:40]!r}")

    def report(self, report_data: bytes) -> HardwareReport:
        """By the quoting enclave of the machine, in some tens of milliseconds."""
        if len(report_data) != REPORT_DATA_SIZE:
            raise LocalProtocolError(f"report data has {REPORT_DATA_SIZE} bytes, not {len(report_data)}")
        try:
            self._write("user_report_data", report_data)
            quote = _parsed(self._read("quote"), "Gramine")
        except OSError as error:
            raise PlatformError(f"Gramine gave no quote ({error.strerror}): does aesmd run?") from error
        if quote.platform != "sgx" or quote.report_data != report_data:
            raise PlatformError("Gramine gave a quote over something else: another thread asks, too")
        return HardwareReport(quote.raw)

    def close(self) -> None:
        """There is nothing."""


def _parsed(quote: bytes, whose: str) -> Quote:
    try:
        return parse(quote)
    except AttestationError as error:
        raise PlatformError(f"{whose} gave what is no quote that can be verified: {error}") from error
