"""The root of sealing keys under SGX: the enclave's seal key, as Gramine gives it in /dev/attestation/keys/_sgx_mrenclave.

Gramine derives it (EGETKEY, SEAL_KEY) from MRENCLAVE, the enclave's attributes, debug among them, and the *present* versions of the processor's
microcode and of the enclave. So after an update of microcode what was sealed before cannot be opened, and says so: seal it under a released key before. The
key that Gramine binds to MRSIGNER is not used: `[expect] runtime` names measurements, and one signer of runtimes may sign any. A manifest of adyton's must
not use the key for encrypted mounts as well.

Not met hardware yet: tested against a stand-in of Gramine's files.
"""

from __future__ import annotations

from adyton.attestation.dcap.gramine import FOLDER, Read, Write, read, write
from adyton.errors import IntegrityError, PlatformError

_KEY = "keys/_sgx_mrenclave"
_KEY_SIZE = 16  # bytes
_REPORT_SIZE = 432  # bytes of an EREPORT
_CPU_SVN, _ISV_SVN = slice(0, 16), slice(258, 260)  # SDM 3D, REPORT


class GramineRoot:
    """See the module. `tcb`: CPUSVN and the enclave's ISVSVN, 18 bytes. Everything is read when it is opened."""

    def __init__(self, key: bytes, tcb: bytes) -> None:
        self._key = key
        self.tcb = tcb

    @classmethod
    def open(cls, read: Read = read, write: Write = write) -> GramineRoot:
        """PlatformError: this is no SGX enclave under Gramine. Not while another thread makes reports: the files are the process's."""
        try:
            write("target_info", read("my_target_info"))
            write("user_report_data", bytes(64))
            report = read("report")
            key = read(_KEY)
        except OSError as error:
            raise PlatformError(
                f"{FOLDER} cannot be used ({error.strerror}): is this an SGX enclave under Gramine?"
            ) from error
        if len(report) != _REPORT_SIZE or len(key) != _KEY_SIZE or not any(key):
            raise PlatformError(
                f"{FOLDER} gives a report of {len(report)} bytes and a key of {len(key)}: this is not Gramine's"
            )
        return cls(key, report[_CPU_SVN] + report[_ISV_SVN])

    def key(self, tcb: bytes) -> bytes:
        """The root, which is the present one's only. IntegrityError: of another state."""
        if tcb != self.tcb:
            raise IntegrityError(
                f"the sealed data does not open: it was sealed under CPUSVN and ISVSVN {tcb.hex()}, and this enclave has {self.tcb.hex()}, whose keys"
                " alone Gramine derives. Open it on a machine in that state, and keep it under a released key"
            )
        return self._key
