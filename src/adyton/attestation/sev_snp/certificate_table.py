"""The certificates that a host gives along with a report, beside it or behind it. AMD 56421 (GHCB), "SNP Extended Guest Request".

    entries of 24 bytes (GUID, offset, length), up to one of zeros ‖ the certificates

It is the host's, so anything may be in it. The GUIDs have the order of RFC 9562.
"""

from __future__ import annotations

import struct
from uuid import UUID

from adyton.attestation.findings import refuse
from adyton.attestation.sev_snp.abi import SIZE

_ENTRY = struct.Struct("<16sII")
MAX_ENTRIES = 32
MAX_CERTIFICATE = 1 << 13  # bytes

# What is of use, in the order in which an issuer's follows. The ASVK, a VLEK's issuer, comes as the ASK.
_OF_USE = tuple(
    UUID(text).bytes
    for text in (
        "63da758d-e664-4564-adc5-f4b93be8accd",  # VCEK
        "a8074bc2-a25a-483e-aae6-39c045a0b8a1",  # VLEK
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",  # ASK
        "c0b406a4-a803-4952-9743-3fb6014cd0ae",  # ARK
    )
)


def split(data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """A report, and the certificates of the table behind it, if there is one: as programs write the two into one file. EvidenceMalformedError."""
    report, table = data[:SIZE], data[SIZE:]
    if 0 < len(table) < _ENTRY.size:
        raise refuse("malformed", "size of the report", f"{SIZE} bytes, and a table of certificates", str(len(data)))
    return report, parse(table)


def parse(table: bytes) -> tuple[bytes, ...]:
    """The certificates, as they are there (DER, or PEM, as some hosts have it). Only EvidenceMalformedError leaves."""
    if not any(table):
        return ()
    found: dict[bytes, bytes] = {}
    for number in range(MAX_ENTRIES):
        at = number * _ENTRY.size
        if at + _ENTRY.size > len(table):
            break
        guid, offset, length = _ENTRY.unpack_from(table, at)
        if not any(table[at : at + _ENTRY.size]):
            return tuple(found[each] for each in _OF_USE if each in found)
        if guid not in _OF_USE or not length:
            continue
        if length > MAX_CERTIFICATE or offset + length > len(table):
            wanted = f"within {len(table)} bytes, and of at most {MAX_CERTIFICATE}"
            raise refuse("malformed", "a certificate of the host's table", wanted, f"{length} at {offset}")
        if guid in found:
            raise refuse("malformed", "the host's table of certificates", "one of each kind", "two")
        found[guid] = table[offset : offset + length]
    raise refuse("malformed", "the host's table of certificates", "an entry of zeros at its end", "none")
