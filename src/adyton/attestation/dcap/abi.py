"""A quote: bytes to fields, and nothing else.

header (48 bytes) ‖ [version 5: kind and size of the body] ‖ body ‖ size of the signature's data ‖ that data
"""

from __future__ import annotations

import struct
from typing import Literal, NamedTuple

from adyton.attestation.findings import refuse

MAX_SIZE = 1 << 16  # bytes
_HEADER = struct.Struct("<HHIHH16s20s")
_KIND = struct.Struct("<HI")  # of a body, in version 5
_SIZE = struct.Struct("<I")
_SGX, _TDX = 0x00, 0x81  # of what TEE
_ECDSA_P256 = 2
LEAST_ZEROS = 32  # bytes behind a quote; what was met has 65 or more
_INTEL = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")  # the quoting enclave's vendor

# A body: cpu_svn, misc_select, attributes, MRENCLAVE, MRSIGNER, product, security version, report data.
_SGX_BODY = struct.Struct("<16sI28x16s32s32x32s96xHH60x64s")
# tee_tcb_svn, mrseam, mrsignerseam, attributes of the SEAM, of the TD, xfam, mrtd, mrconfigid, mrowner, mrownerconfig, rtmr0 to 3, report data.
_TD_BODY = struct.Struct("<16s48s48s8s8s8s48s48s48s48s48s48s48s48s64s")
_SGX_ATTRIBUTES, _TD_ATTRIBUTES = 48, 120  # where they begin in a body
_SGX_DEBUG = 0x02
_TD_BYTE, _TD_SEPT_VE_DISABLE = 3, 0x10
_TD_DEBUG = 0x01  # TUD.DEBUG; whatever else is in that byte is reserved

# What a version says of its body: kind → size of it. Versions 3 and 4 name none.
_BODIES_OF_5 = {1: _SGX_BODY.size, 2: _TD_BODY.size, 3: _TD_BODY.size + 64}


class Quote(NamedTuple):
    """`registers`: what is measured, by the vendor's names. `raw`: the quote, without the zeros that may follow one of TDX. `signed`: so many of its first bytes
    the enclave's key has signed; `attributes_at`: where they are in it."""

    raw: bytes
    platform: Literal["sgx", "tdx"]
    version: int
    registers: dict[str, bytes]
    attributes: bytes
    debug: bool
    report_data: bytes
    product: int
    security_version: int
    signed: int
    attributes_at: int

    @property
    def may_fault(self) -> bool:
        """A TD whose host may have its pages fault: SEPT_VE_DISABLE is not set."""
        return self.platform == "tdx" and not self.attributes[_TD_BYTE] & _TD_SEPT_VE_DISABLE

    def with_plain_attributes(self) -> bytes:
        """What is signed, as if it were not in debug mode, and no TD that may fault."""
        found, at = bytearray(self.raw[: self.signed]), self.attributes_at
        if self.platform == "sgx":
            found[at] &= ~_SGX_DEBUG & 0xFF
        else:
            found[at] &= ~_TD_DEBUG & 0xFF
            found[at + _TD_BYTE] |= _TD_SEPT_VE_DISABLE
        return bytes(found)


def parse(data: bytes) -> Quote:
    """Of hostile bytes. Only EvidenceMalformedError leaves."""
    if len(data) > MAX_SIZE:
        raise refuse("malformed", "size of the quote", f"at most {MAX_SIZE} bytes", str(len(data)))
    _expect_more(data, _HEADER.size, "header")
    version, key_type, tee, _qe_svn, _pce_svn, vendor, _ = _HEADER.unpack_from(data)
    platforms: dict[tuple[int, int], Literal["sgx", "tdx"]] = {(3, _SGX): "sgx", (4, _TDX): "tdx", (5, _TDX): "tdx"}
    platform = platforms.get((version, tee))
    if platform is None:
        wanted = "SGX of version 3, TDX of version 4 or 5"
        raise refuse("malformed", "kind of quote", wanted, f"TEE {tee:#x} of version {version}")
    if key_type != _ECDSA_P256:
        raise refuse("malformed", "kind of key", "2 (ECDSA P-256)", str(key_type))
    if vendor != _INTEL:
        raise refuse("genuine", "vendor of the quoting enclave", _INTEL.hex(), vendor.hex())
    at, size = _HEADER.size, _SGX_BODY.size if platform == "sgx" else _TD_BODY.size
    if version == 5:
        _expect_more(data, at + _KIND.size, "body")
        kind, told = _KIND.unpack_from(data, at)
        at, size = at + _KIND.size, _BODIES_OF_5.get(kind, 0)
        if kind == 1 or size == 0 or told != size:
            raise refuse("malformed", "kind of body", "2 of 584 bytes or 3 of 648", f"{kind} of {told}")
    end = at + size
    _expect_more(data, end + _SIZE.size, "body")
    (signature,) = _SIZE.unpack_from(data, end)
    whole = end + _SIZE.size + signature
    _expect_more(data, whole, "signature")
    # A TDX quote comes in its kernel's or service's buffer, with zeros behind it; Intel's library says of an SGX quote how long it is.
    rest = len(data) - whole
    if any(data[whole:]) or (rest and (platform == "sgx" or rest < LEAST_ZEROS)):
        wanted = "none" if platform == "sgx" else f"none, or {LEAST_ZEROS} zeros or more"
        raise refuse("malformed", "bytes behind the quote", wanted, f"{rest} of them")
    return _sgx(data[:whole], at, end) if platform == "sgx" else _td(data[:whole], version, at, end)


def _sgx(raw: bytes, at: int, end: int) -> Quote:
    _cpu, _misc, attributes, enclave, signer, product, svn, report_data = _SGX_BODY.unpack_from(raw, at)
    debug = bool(attributes[0] & _SGX_DEBUG)
    registers = {"mrenclave": enclave, "mrsigner": signer}
    return Quote(raw, "sgx", 3, registers, attributes, debug, report_data, product, svn, end, at + _SGX_ATTRIBUTES)


def _td(raw: bytes, version: int, at: int, end: int) -> Quote:
    # fmt: off
    (
        _tcb, seam, seam_signer, _seam_attributes, attributes, _xfam,
        td, config, owner, owner_config, rtmr0, rtmr1, rtmr2, rtmr3, report_data,
    ) = _TD_BODY.unpack_from(raw, at)
    # fmt: on
    registers = {
        "mrtd": td,
        "rtmr0": rtmr0,
        "rtmr1": rtmr1,
        "rtmr2": rtmr2,
        "rtmr3": rtmr3,
        "mrconfigid": config,
        "mrowner": owner,
        "mrownerconfig": owner_config,
        "mrseam": seam,
        "mrsignerseam": seam_signer,
    }
    debug = bool(attributes[0] & _TD_DEBUG)
    return Quote(raw, "tdx", version, registers, attributes, debug, report_data, 0, 0, end, at + _TD_ATTRIBUTES)


def _expect_more(data: bytes, size: int, what: str) -> None:
    if len(data) < size:
        raise refuse("malformed", f"the quote's {what}", f"{size} bytes up to its end", str(len(data)))
