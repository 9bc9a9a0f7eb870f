"""What is shown of a TPM: adyton's own report, which has all that there is, or what other programs write (`raw`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import msgspec

from adyton.attestation.evidence import REPORT_DATA_SIZE, decode
from adyton.attestation.findings import refuse
from adyton.attestation.tpm.abi import (
    MAX_SIZE,
    SIZES,
    Key,
    Quoted,
    Signature,
    parse_public,
    parse_quote,
    parse_signature,
)
from adyton.attestation.tpm.event_log import MAX_LOG

_Structure = Annotated[bytes, msgspec.Meta(max_length=MAX_SIZE)]


class TpmReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A quote, its signature, the key that made it, and the PCRs' values by bank and number: all as the TPM writes them (TPMS_ATTEST, TPMT_SIGNATURE, TPMT_PUBLIC).

    `report_data`: what the quote's extra data is the SHA-256 of, since a TPM need not take more. `event_log`: as the firmware wrote it.
    `certificate`: of the key, in DER, if the TPM has one.
    """

    quote: _Structure
    signature: _Structure
    key: _Structure
    pcrs: dict[str, dict[int, bytes]]
    report_data: Annotated[bytes, msgspec.Meta(min_length=REPORT_DATA_SIZE, max_length=REPORT_DATA_SIZE)]
    event_log: Annotated[bytes, msgspec.Meta(max_length=MAX_LOG)] = b""
    certificate: _Structure = b""


class Shown(NamedTuple):
    """What there is to judge. `attributes`: of the key, None where nobody has said. `machine`: the key's name. `values`: of the PCRs, if they came along.

    `extra`: what the quote's extra data must be for `report_data`.
    """

    quoted: Quoted
    signature: Signature
    key: Key
    scheme: str
    attributes: int | None
    machine: str
    values: Mapping[tuple[str, int], bytes] | None
    report_data: bytes
    extra: bytes
    event_log: bytes = b""
    certificate: bytes = b""


def of_report(data: bytes) -> Shown:
    """Hostile bytes of a TpmReport. Only EvidenceMalformedError leaves."""
    report = decode(data, TpmReport)
    quoted, area = parse_quote(report.quote), parse_public(report.key)
    values = {(bank, number): value for bank, of_bank in report.pcrs.items() for number, value in of_bank.items()}
    if set(values) != set(quoted.registers) or any(len(value) != SIZES[bank] for (bank, _), value in values.items()):
        raise refuse("malformed", "values of the PCRs", f"those of {quoted.selection}", f"others, {len(values)}")
    return Shown(
        quoted,
        parse_signature(report.signature),
        area.key,
        area.scheme,
        area.attributes,
        area.name.hex(),
        values,
        report.report_data,
        hashlib.sha256(report.report_data).digest(),
        report.event_log,
        report.certificate,
    )
