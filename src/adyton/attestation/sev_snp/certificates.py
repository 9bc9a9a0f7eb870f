"""AMD's certificates: of the key that a report is signed with (VCEK: a chip's, VLEK: a cloud's), and the way from it to AMD's root.

    ARK (root of a product) ─► ASK ─► VCEK, of one chip and one version of its firmware
                            └► ASVK ─► VLEK, of one cloud and one version of the firmware

Source: AMD 57230, VCEK certificate definition. The roots and the ASKs lie in `trust`.
"""

from __future__ import annotations

import functools
import importlib.resources
from typing import NamedTuple, get_args

from cryptography import x509

from adyton.attestation.findings import refuse
from adyton.attestation.sev_snp.abi import Product, Tcb

_AMD = "1.3.6.1.4.1.3704.1."
_PRODUCT_NAME, _CHIP, _CLOUD = _AMD + "2", _AMD + "4", _AMD + "5"
_TCB = {
    "bootloader": _AMD + "3.1",
    "tee": _AMD + "3.2",
    "snp": _AMD + "3.3",
    "microcode": _AMD + "3.8",
    "fmc": _AMD + "3.9",
}
_INTEGER, _IA5_STRING, _OCTET_STRING = 0x02, 0x16, 0x04


class Endorsement(NamedTuple):
    """What a VCEK or VLEK says. `chip`: its id, None in a VLEK; `cloud`: the other way round."""

    product: Product
    tcb: Tcb
    chip: bytes | None
    cloud: str | None


def endorsement_of(certificate: x509.Certificate) -> Endorsement:
    """EvidenceMalformedError for what has not all of it."""
    values = {
        each.oid.dotted_string: each.value.value
        for each in certificate.extensions
        if isinstance(each.value, x509.UnrecognizedExtension)
    }
    name = _text(values.get(_PRODUCT_NAME, b"")).partition("-")[0]
    if name not in get_args(Product):
        raise refuse("genuine", "product of the key's certificate", " or ".join(get_args(Product)), name or "none")
    versions = {part: _number(values.get(oid, b"")) for part, oid in _TCB.items() if part != "fmc" or oid in values}
    chip = values.get(_CHIP)
    if chip is not None and chip[:1] == bytes([_OCTET_STRING]) and len(chip) == 2 + chip[1]:
        chip = chip[2:]
    cloud = _text(values[_CLOUD]) if _CLOUD in values else None
    return Endorsement(name, Tcb(**{"fmc": 0, **versions}), chip, cloud)  # type: ignore[arg-type]


def _number(der: bytes) -> int:
    """A DER INTEGER of one byte's worth."""
    if len(der) < 3 or der[0] != _INTEGER or der[1] != len(der) - 2 or int.from_bytes(der[2:], "big") > 255:
        raise refuse("malformed", "versions in the key's certificate", "numbers below 256", der.hex() or "none")
    return int.from_bytes(der[2:], "big")


def _text(der: bytes) -> str:
    if len(der) < 2 or der[0] != _IA5_STRING or der[1] != len(der) - 2 or not der.isascii():
        return ""
    return der[2:].decode()


@functools.cache
def roots() -> dict[Product, tuple[x509.Certificate, x509.Certificate]]:
    """AMD's root key and the key that signs chips' keys, of each product."""
    folder = importlib.resources.files("adyton.attestation.sev_snp") / "trust"
    found = {}
    for product in get_args(Product):
        pem = (folder / f"{product.lower()}.pem").read_bytes()
        ark, ask = x509.load_pem_x509_certificates(pem)
        found[product] = ark, ask
    return found
