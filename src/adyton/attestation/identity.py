"""What evidence says about an enclave. The digest of it is part of what binds evidence to a channel, so its form is fixed."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, get_args

import msgspec

Platform = Literal["sim", "sgx", "tdx", "sev-snp", "nitro", "tpm"]
PLATFORMS: tuple[Platform, ...] = get_args(Platform)
PLATFORMS_HERE = ("auto", "sim")  # what this version can be asked for
CONFIGS: dict[str, Platform] = {"sgx": "sgx", "sgx-sim": "sim"}  # by the names that the original's --config has

Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
DigestOrNone = Annotated[str, msgspec.Meta(pattern=r"^(sha256:[0-9a-f]{64})?\Z")]
Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]

_LABEL = b"adyton enclave identity 1"


class EnclaveIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who an enclave is: its image, who signed it, what runs it, and where.

    `measurement`: of the image. `signer`: of the signature that was chosen, or "" (unsigned). `runtime`: of what executes the
    image. `machine`: the chip or instance, or "" where the platform names none.
    """

    platform: Platform
    measurement: Digest
    signer: DigestOrNone
    product_id: Number
    security_version: Number
    debug: bool
    runtime: DigestOrNone
    machine: Annotated[str, msgspec.Meta(max_length=256)]

    def digest(self) -> bytes:
        """SHA-256 over a label and every field in order; each has its length before it, so no two identities read alike."""
        fields = (
            _LABEL,
            self.platform.encode(),
            self.measurement.encode(),
            self.signer.encode(),
            self.product_id.to_bytes(8, "big"),
            self.security_version.to_bytes(8, "big"),
            bytes([self.debug]),
            self.runtime.encode(),
            self.machine.encode(),
        )
        return hashlib.sha256(b"".join(length_prefixed(field) for field in fields)).digest()


def length_prefixed(field: bytes) -> bytes:
    """The field after its length in four bytes, big-endian: concatenations of such fields are unambiguous."""
    return len(field).to_bytes(4, "big") + field
