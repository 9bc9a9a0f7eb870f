"""An attestation report: bytes to fields, and nothing else. AMD 56860, table "ATTESTATION_REPORT Structure"."""

from __future__ import annotations

import struct
from typing import Literal, NamedTuple

from adyton.attestation.findings import refuse

SIZE = 0x4A0  # bytes
SIGNED = 0x2A0  # of them, from the start
VERSIONS = range(2, 6)
Product = Literal["Milan", "Genoa", "Turin"]

_HEAD = struct.Struct("<IIQ16s16sII8sQI4x64s48s32s48s48s32s32s8sBBB21x64s8sBBBxBBBx8s")
_ECDSA_P384_SHA384 = 1
_COMPONENT = 72  # bytes of r and of s, little-endian
_P384 = 48

# Bits of `policy`, and of the flags behind it.
_DEBUG, _MIGRATE, _SMT, _ONE = 1 << 19, 1 << 18, 1 << 16, 1 << 17
_MASKED = 1 << 1
_SIGNED_BY: tuple[Literal["VCEK", "VLEK"], ...] = ("VCEK", "VLEK")

# What CPUID calls a product: family, lowest and highest model.
_PRODUCTS: tuple[tuple[int, int, int, Product], ...] = (
    (0x19, 0x00, 0x0F, "Milan"),
    (0x19, 0x10, 0x1F, "Genoa"),
    (0x19, 0xA0, 0xAF, "Genoa"),  # Bergamo and Siena, which have Genoa's keys
    (0x1A, 0x00, 0x11, "Turin"),
)


class Tcb(NamedTuple):
    """Security versions of the parts of a chip's firmware. `fmc`: Turin's alone, else 0."""

    fmc: int
    bootloader: int
    tee: int
    snp: int
    microcode: int

    @classmethod
    def of(cls, data: bytes, product: Product) -> Tcb:
        """Of eight bytes: Turin has them in another order."""
        if product == "Turin":
            return cls(data[0], data[1], data[2], data[3], data[7])
        return cls(0, data[0], data[1], data[6], data[7])

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self._asdict().items())


class Report(NamedTuple):
    """`raw`: all of it; `tcb_…`: eight bytes, see `Tcb.of`. `product`: None before version 3, which does not say. `signature`: r and s."""

    raw: bytes
    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    tcb_current: bytes
    platform_info: int
    author_key_enabled: bool
    chip_masked: bool
    signed_by: Literal["VCEK", "VLEK"]
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    tcb_reported: bytes
    product: Product | None
    chip_id: bytes
    tcb_committed: bytes
    firmware: tuple[int, int, int]
    tcb_launch: bytes
    signature: tuple[int, int]

    @property
    def debug(self) -> bool:
        """The host may read and change the guest's memory."""
        return bool(self.policy & _DEBUG)

    @property
    def may_migrate(self) -> bool:
        """A migration agent may take the guest elsewhere."""
        return bool(self.policy & _MIGRATE)

    @property
    def may_share_cores(self) -> bool:
        """Simultaneous multithreading is allowed."""
        return bool(self.policy & _SMT)

    @property
    def signed(self) -> bytes:
        """What the signature is over."""
        return self.raw[:SIGNED]


def parse(data: bytes) -> Report:
    """Of hostile bytes. Only EvidenceMalformedError leaves."""
    if len(data) != SIZE:
        raise refuse("malformed", "size of the report", f"{SIZE} bytes", str(len(data)))
    # fmt: off
    (
        version, guest_svn, policy, family, image, vmpl, algorithm, current, platform_info, flags,
        report_data, measurement, host_data, id_key, author_key, report_id, _migration_id, reported,
        cpu_family, cpu_model, _stepping, chip, committed,
        build, minor, major, _committed_build, _committed_minor, _committed_major, launch,
    ) = _HEAD.unpack_from(data)
    # fmt: on
    if version not in VERSIONS:
        raise refuse("malformed", "version of the report", f"{VERSIONS[0]} to {VERSIONS[-1]}", str(version))
    if algorithm != _ECDSA_P384_SHA384:
        raise refuse("malformed", "signature's algorithm", "1 (ECDSA P-384 with SHA-384)", str(algorithm))
    if not policy & _ONE:
        raise refuse("malformed", "bit 17 of the guest's policy", "1", "0")
    key = flags >> 2 & 7
    if key >= len(_SIGNED_BY):
        raise refuse("genuine", "the report's key", " or ".join(_SIGNED_BY), "none" if key == 7 else f"number {key}")
    r, s, rest = (
        data[SIGNED : SIGNED + _COMPONENT],
        data[SIGNED + _COMPONENT : SIGNED + 2 * _COMPONENT],
        data[SIGNED + 2 * _COMPONENT :],
    )
    if any(r[_P384:]) or any(s[_P384:]) or any(rest):
        raise refuse("malformed", "bytes behind the signature", "zero", "others")
    return Report(
        raw=bytes(data),
        version=version,
        guest_svn=guest_svn,
        policy=policy,
        family_id=family,
        image_id=image,
        vmpl=vmpl,
        tcb_current=current,
        platform_info=platform_info,
        author_key_enabled=bool(flags & 1),
        chip_masked=bool(flags & _MASKED),
        signed_by=_SIGNED_BY[key],
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        id_key_digest=id_key,
        author_key_digest=author_key,
        report_id=report_id,
        tcb_reported=reported,
        product=_product(version, cpu_family, cpu_model),
        chip_id=chip,
        tcb_committed=committed,
        firmware=(major, minor, build),
        tcb_launch=launch,
        signature=(int.from_bytes(r, "little"), int.from_bytes(s, "little")),
    )


def _product(version: int, family: int, model: int) -> Product | None:
    if version < 3:
        return None
    for its_family, lowest, highest, product in _PRODUCTS:
        if family == its_family and lowest <= model <= highest:
            return product
    raise refuse("genuine", "the processor", "a Milan, Genoa or Turin", f"family {family:#x}, model {model:#x}")
