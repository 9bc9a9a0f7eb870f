"""The root of sealing keys of a machine with a TPM: an HMAC by a key that the TPM makes of its owner's seed, and uses only while PCRs 0 to 15 are as they were.

The PCRs' values are part of the key's policy, and the policy is part of what the key is made from (part 1, "Primary Object"): the same machine in the same state
has the same key at each start, without anything that is kept; in another state the TPM makes another one, and refuses to use this. TPM2_Clear gives the
owner another seed, and all is lost; so does another TPM.

The key is used once, when the root is opened. Its answer crosses the wires between processor and TPM in the clear: as with all that a TPM
proves, who holds the machine in hand is not kept out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os

from adyton.attestation.tpm import commands
from adyton.attestation.tpm.attest import ATTEMPTS, DEVICE, PCRS, Tpm
from adyton.attestation.tpm.commands import TpmError
from adyton.errors import IntegrityError, PlatformError

_LABEL = b"adyton sealing root 1"
_KEY_SIZE = 32
_NONCE_SIZE = 16
# TPM_RC_VALUE of PolicyPCR's first parameter, and TPM_RC_PCR_CHANGED: they were extended since they were read, or since the session began
_CHANGED = (0x1C4, 0x128)


class TpmRoot:
    """See the module. `tcb`: SHA-256 of the values of PCRs 0 to 15, one after the other. The TPM is needed while it is opened only."""

    def __init__(self, tpm: Tpm) -> None:
        """PlatformError: it makes no key, or does not use it."""
        for attempt in range(1, ATTEMPTS + 1):
            self.tcb = hashlib.sha256(b"".join(tpm.pcr_values())).digest()
            try:
                self._key = _derived(tpm, self.tcb)
                break
            except TpmError as error:
                if error.response not in _CHANGED or attempt == ATTEMPTS:
                    raise
        if len(self._key) != _KEY_SIZE:
            raise PlatformError(f"the TPM answered TPM2_HMAC with {len(self._key)} bytes, not {_KEY_SIZE}")

    @classmethod
    def open(cls, device: str = DEVICE) -> TpmRoot:
        """PlatformError."""
        with Tpm.open(device, event_log=os.devnull) as tpm:
            return cls(tpm)

    def key(self, tcb: bytes) -> bytes:
        """The root, which is the present state's only. IntegrityError: of another one."""
        if tcb != self.tcb:
            raise IntegrityError(
                f"the sealed data does not open: it was sealed when PCRs 0 to 15 had the digest {tcb.hex()}, and now they have {self.tcb.hex()}: start"
                " the machine as it was then, with the same firmware, settings, boot loader and system"
            )
        return self._key


def _derived(tpm: Tpm, digest: bytes) -> bytes:
    template = commands.keyed_hash(commands.policy_of_pcrs(digest, PCRS))
    with tpm.loaded(template, commands.OWNER) as (handle, _):
        session = tpm.ask(commands.start_policy_session(os.urandom(_NONCE_SIZE)))
        try:
            tpm.ask(commands.policy_pcr(session, digest, PCRS))
            return tpm.ask(commands.hmac_of(handle, session, _LABEL))
        except BaseException:
            with contextlib.suppress(PlatformError):
                tpm.ask(commands.flush_context(session))
            raise
