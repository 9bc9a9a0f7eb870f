"""What evidence says about an enclave. The digest of it is part of what binds evidence to a channel, so its form is fixed."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, get_args

import msgspec

Platform = Literal["sim", "sgx", "tdx", "sev-snp", "nitro", "tpm"]
PLATFORMS: tuple[Platform, ...] = get_args(Platform)
CONFIGS: dict[str, Platform] = {"sgx": "sgx", "sgx-sim": "sim"}  # by the names that the original's --config has

Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
DigestOrNone = Annotated[str, msgspec.Meta(pattern=r"^(sha256:[0-9a-f]{64})?\Z")]
Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]

_LABEL = b"adyton enclave identity 2"

Voucher = Literal["hardware", "runtime", "nobody"]


class EnclaveIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who an enclave is: its image, who signed it, what runs it, and where.

    `measurement`: of the image, or "" in a vendor's raw evidence, which says nothing of one. `signer`: of the signature that was chosen, or ""
    (unsigned). `runtime`: of what executes the image. `machine`: the chip or instance, or "" where the platform names none. `debug`: of the
    image or of the hardware.
    """

    platform: Platform
    measurement: DigestOrNone
    signer: DigestOrNone
    product_id: Number
    security_version: Number
    debug: bool
    runtime: DigestOrNone
    machine: Annotated[str, msgspec.Meta(max_length=256)]

    def digest(self) -> bytes:
        """SHA-256 over a label and what the runtime says of its image; each field has its length before it, so no two identities read alike.

        What the hardware says of the runtime and of the machine is not in it: the runtime need not know that.
        """
        fields = (
            _LABEL,
            self.platform.encode(),
            self.measurement.encode(),
            self.signer.encode(),
            self.product_id.to_bytes(8, "big"),
            self.security_version.to_bytes(8, "big"),
            bytes([self.debug]),
        )
        return hashlib.sha256(b"".join(length_prefixed(field) for field in fields)).digest()

    @property
    def vouchers(self) -> dict[str, Voucher]:
        """Who vouches for each claim: the hardware measured the runtime, and the runtime the image; of a simulation, nobody."""
        if self.platform == "sim":
            return dict.fromkeys(self.__struct_fields__, "nobody")
        image: Voucher = "runtime" if self.measurement else "nobody"
        by_runtime = dict.fromkeys(("measurement", "signer", "product_id", "security_version"), image)
        return {**dict.fromkeys(self.__struct_fields__, "hardware"), **by_runtime}


def length_prefixed(field: bytes) -> bytes:
    """The field after its length in four bytes, big-endian: concatenations of such fields are unambiguous."""
    return len(field).to_bytes(4, "big") + field
