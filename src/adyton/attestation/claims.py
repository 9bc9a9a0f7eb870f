"""What a platform's evidence says once it is genuine: the part of an enclave's identity for which hardware vouches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from adyton.attestation.findings import Failure
from adyton.attestation.identity import Platform, length_prefixed

UNVOUCHED = "Unknown"  # a `tcb`: nobody has said that the key is a platform's: it is one's only for a policy that names its machine


class Claims(msgspec.Struct, frozen=True):
    """`runtime`: one digest of all that is measured, "sha256:HEX", see `digest_of_measured`. `measured`: the registers that it is of, in hex.

    `register`: the one of them, of 48 bytes, by which vendors' tools name what runs: MRTD, the launch digest, PCR 0; "sha384:HEX" or "".

    `tcb`: the vendor's word for the state of the platform's firmware, "" where there is none (sim). `report_data`: what the platform signed
    along, as long as it was. `failures`: what is wrong although the evidence is genuine, such as a certificate that was revoked;
    `failures_of_runtime`: what else is wrong if a runtime of adyton's is to have asked for it.
    """

    platform: Platform
    runtime: str
    measured: Mapping[str, str]
    report_data: bytes
    debug: bool
    machine: str
    tcb: str
    advisories: tuple[str, ...] = ()
    more: Mapping[str, Any] = msgspec.field(default_factory=dict)  # for people: firmware versions, policies
    failures: tuple[Failure, ...] = ()
    failures_of_runtime: tuple[Failure, ...] = ()
    register: str = ""


def digest_of_measured(platform: Platform, registers: Mapping[str, bytes]) -> str:
    """The reference value of what hardware measured: SHA-256 over a label, the platform, and each register's name and bytes, in order.

    One register of 32 bytes (MRENCLAVE) is such a digest already, and stays what it is.
    """
    (first, *others) = registers.values()
    if not others and len(first) == hashlib.sha256().digest_size:
        return f"sha256:{first.hex()}"
    fields = [b"adyton reference value 1", platform.encode()]
    for name, value in registers.items():
        fields += [name.encode(), value]
    return "sha256:" + hashlib.sha256(b"".join(map(length_prefixed, fields))).hexdigest()
