"""The root of sealing keys on SEV-SNP: a key that the security processor derives for this guest, over /dev/sev-guest (linux/sev-guest.h).

Derived from the chip's own key (of a cloud's chips together, where they have a VLEK), and from what `_FIELDS` selects: the guest's launch measurement; its
policy, so that the same guest launched so that its host may debug it has another key; and a version of the firmware. That may be any up to the one that the
platform has committed to, below which it cannot go back: so keys of older firmware stay derivable after an update, and those of newer firmware are not
to be had on older. (AMD 56860, MSG_KEY_REQ.) Image and family ids and the guest's SVN are not selected: who launches a guest sets them as they please.

Not met hardware yet: tested against a stand-in of the ioctl.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable

from adyton.attestation.sev_snp import abi
from adyton.errors import AttestationError, IntegrityError, PlatformError

DEVICE = "/dev/sev-guest"
# _IOWR('S', 0 and 1, struct snp_guest_request_ioctl)
GET_REPORT = 0xC0205300
GET_DERIVED_KEY = 0xC0205301

_REQUEST = struct.Struct(
    "<B7xQQQ"
)  # snp_guest_request_ioctl: version of the message, addresses of request and response, errors
_REPORT_REQUEST = struct.Struct("<64sI28x")  # snp_report_req: report data, VMPL
_KEY_REQUEST = struct.Struct("<IIQIIQ")  # snp_derived_key_req: root key, reserved, fields, VMPL, SVN of the guest, TCB
_REPORT_RESPONSE, _KEY_RESPONSE = 4000, 64  # bytes
_PAYLOAD = 32  # offset of the report, and of the key; its status is at 0
_KEY_SIZE = 32
_GUEST_POLICY, _MEASUREMENT, _TCB_VERSION = 1 << 0, 1 << 3, 1 << 5
_FIELDS = _GUEST_POLICY | _MEASUREMENT | _TCB_VERSION
_TCB_SIZE = 8
_INVALID = 0x16  # status: a VMPL above the guest's own, or a TCB above the committed one
_VMPLS = range(4)
_MOST_KEPT = 8

Ioctl = Callable[[int, int, bytearray], object]  # descriptor, request, snp_guest_request_ioctl; OSError


def _ioctl(descriptor: int, request: int, argument: bytearray) -> object:
    return fcntl.ioctl(descriptor, request, argument, True)


class GuestDeviceRoot:
    """See the module. `tcb`: eight bytes, as in a report. Owns the descriptor."""

    def __init__(self, descriptor: int, ioctl: Ioctl = _ioctl) -> None:
        """PlatformError: the security processor gives no report, or no key."""
        self._descriptor = descriptor
        self._ioctl = ioctl
        self._keys: dict[bytes, bytes] = {}  # of older firmware
        report = self._report()
        self._vmpl = report.vmpl
        self.tcb = report.tcb_committed
        self._present = self._derived(self.tcb)

    @classmethod
    def open(cls, device: str = DEVICE) -> GuestDeviceRoot:
        """PlatformError: there is no such device, or it is not one."""
        try:
            descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PlatformError(f"{device} cannot be opened ({error.strerror}): is this an SEV-SNP guest?") from error
        try:
            return cls(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def key(self, tcb: bytes) -> bytes:
        """The root of that version of the firmware. IntegrityError: it is newer than this machine's. PlatformError: no key is given."""
        if len(tcb) != _TCB_SIZE:
            raise IntegrityError(
                "the sealed data does not open: its header names no TCB of SEV-SNP. Take another copy of it"
            )
        if tcb == self.tcb:
            return self._present
        key = self._keys.get(tcb)
        if key is None:
            key = self._derived(tcb)
            if len(self._keys) >= _MOST_KEPT:
                self._keys.clear()
            self._keys[tcb] = key
        return key

    def _derived(self, tcb: bytes) -> bytes:
        request = _KEY_REQUEST.pack(0, 0, _FIELDS, self._vmpl, 0, int.from_bytes(tcb, "little"))
        status, payload = self._ask(GET_DERIVED_KEY, request, _KEY_RESPONSE)
        if status == _INVALID:
            raise IntegrityError(
                f"the sealed data does not open: it was sealed under TCB {tcb.hex()}, and this machine has committed to {self.tcb.hex()} only: update its firmware"
            )
        key = payload[:_KEY_SIZE]
        if status or not any(key):
            raise PlatformError(f"the security processor derives no key: status {status:#x}")
        return key

    def _report(self) -> abi.Report:
        """Of the highest privilege level that this guest has: it is mixed into keys, and those of higher ones are not given."""
        for vmpl in _VMPLS:
            status, payload = self._ask(GET_REPORT, _REPORT_REQUEST.pack(bytes(64), vmpl), _REPORT_RESPONSE)
            if status == 0:
                try:
                    return abi.parse(payload[: abi.SIZE])
                except AttestationError as error:
                    raise PlatformError(f"the security processor's report cannot be read: {error}") from error
            if status != _INVALID:
                break
        raise PlatformError(f"the security processor gives no report: status {status:#x}")

    def _ask(self, what: int, request: bytes, size: int) -> tuple[int, bytes]:
        """Status and payload. PlatformError: no answer."""
        asked, answer = ctypes.create_string_buffer(request, len(request)), ctypes.create_string_buffer(size)
        argument = bytearray(_REQUEST.pack(1, ctypes.addressof(asked), ctypes.addressof(answer), 0))
        try:
            self._ioctl(self._descriptor, what, argument)
        except OSError as error:
            *_, errors = _REQUEST.unpack(argument)
            raise PlatformError(
                f"{DEVICE} does not answer: {error.strerror} (firmware {errors & 0xFFFFFFFF:#x}, hypervisor {errors >> 32:#x})"
            ) from error
        return int.from_bytes(answer.raw[:4], "little"), answer.raw[_PAYLOAD:]
