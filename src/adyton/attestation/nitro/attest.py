"""Attestation documents of a Nitro enclave, from its secure module, by messages in CBOR over an ioctl: include/uapi/linux/nsm.h, and AWS's
"aws-nitro-enclaves-nsm-api"."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable
from typing import Any, Self

import cbor2

from adyton.attestation.evidence import REPORT_DATA_SIZE
from adyton.attestation.hardware import HardwareReport
from adyton.errors import ClosedError, LocalProtocolError, PlatformError

DEVICE = "/dev/nsm"
MAX_RESPONSE = 0x3000  # bytes
_RAW = struct.Struct("=QQQQ")  # address and length of the request, and of the room for the response
NSM_IOCTL_RAW = 3 << 30 | _RAW.size << 16 | 0x0A << 8 | 0  # _IOWR(NSM_MAGIC, 0, struct nsm_raw)

Ioctl = Callable[[int, int, bytearray], int]


class Nitro:
    """See `hardware.Attester`. PlatformError: this is no Nitro enclave, or the module cannot be opened."""

    def __init__(self, device: str = DEVICE, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._ioctl = ioctl
        try:
            self._device = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PlatformError(f"{device}: {error.strerror}") from error

    def report(self, report_data: bytes) -> HardwareReport:
        """The document, with the report data as its user data."""
        if len(report_data) != REPORT_DATA_SIZE:
            raise LocalProtocolError(f"report data has {REPORT_DATA_SIZE} bytes, not {len(report_data)}")
        if self._device < 0:
            raise ClosedError("this attester is closed")
        answer = self._asked({"Attestation": {"user_data": report_data, "nonce": None, "public_key": None}})
        found = answer.get("Attestation") if isinstance(answer, dict) else None
        document = found.get("document") if isinstance(found, dict) else None
        if not isinstance(document, bytes) or not document:
            raise PlatformError(f"the Nitro secure module gave no document, but {str(answer)[:80]}")
        return HardwareReport(document)

    def _asked(self, request: dict[str, Any]) -> Any:
        message = cbor2.dumps(request)
        sent = ctypes.create_string_buffer(message, len(message))
        room = ctypes.create_string_buffer(MAX_RESPONSE)
        raw = bytearray(_RAW.pack(ctypes.addressof(sent), len(message), ctypes.addressof(room), len(room)))
        try:
            self._ioctl(self._device, NSM_IOCTL_RAW, raw)
        except OSError as error:
            raise PlatformError(f"the Nitro secure module did not answer: {error.strerror}") from error
        size = _RAW.unpack(raw)[3]
        try:
            return cbor2.loads(room.raw[:size])
        except Exception as error:  # cbor2 documents CBORDecodeError, and lets others out for some inputs
            raise PlatformError(f"the Nitro secure module's answer cannot be read: {error}") from error

    def close(self) -> None:
        """Idempotent."""
        if self._device >= 0:
            os.close(self._device)
            self._device = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
