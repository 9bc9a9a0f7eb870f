"""Fuzz targets of what a TPM and its machine's firmware have written: quotes, signatures, keys, event logs, and answers to commands."""

from __future__ import annotations

import datetime as dt
import hashlib
import struct

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from draw import Draw

from adyton.attestation.collateral import Collateral, read_blobs
from adyton.attestation.tpm import commands
from adyton.attestation.tpm.abi import (
    ECC,
    ECDSA,
    NULL,
    P256,
    SHA256,
    parse_public,
    parse_quote,
    parse_signature,
    split_quote,
)
from adyton.attestation.tpm.event_log import MAX_EVENTS, explain, parse, replay
from adyton.attestation.tpm.report import TpmReport
from adyton.attestation.tpm.verify import verify
from adyton.errors import EvidenceMalformedError

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
REPORT_DATA = bytes(64)
_KEY = ec.derive_private_key(7 << 100, ec.SECP256R1())
_ATTRIBUTES = 0x00050472


def sized(data: bytes) -> bytes:
    """After its length."""
    return struct.pack(">H", len(data)) + data


def _area() -> bytes:
    point = _KEY.public_key().public_numbers()
    head = struct.pack(">HHIHHHHHH", ECC, SHA256, _ATTRIBUTES, 0, NULL, ECDSA, SHA256, P256, NULL)
    return head + sized(point.x.to_bytes(32, "big")) + sized(point.y.to_bytes(32, "big"))


AREA = _area()


def signed(data: bytes) -> bytes:
    """A TPMT_SIGNATURE of the key of AREA: what is behind a true signature is reached only so."""
    r, s = decode_dss_signature(_KEY.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    return struct.pack(">HH", ECDSA, SHA256) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))


def quoted(selection: bytes, digest: bytes, extra: bytes = hashlib.sha256(REPORT_DATA).digest()) -> bytes:
    """A TPMS_ATTEST. `selection`: a TPML_PCR_SELECTION."""
    clock = struct.pack(">QIIBQ", 7, 1, 1, 1, 0x20260101)
    return b"\xffTCG\x80\x18" + sized(bytes(34)) + sized(extra) + clock + selection + sized(digest)


def tpm_quote(data: bytes) -> None:
    """Alone, and with a signature that is true, as others write it and in adyton's report: what is read is what was signed."""
    quote, behind = split_quote(data)
    assert quote.raw + behind == data
    assert len(quote.registers) <= 4 * 32
    claims = verify(quote.raw + signed(quote.raw), read_blobs((AREA,)), NOW)
    assert claims.report_data == quote.extra
    assert parse_quote(quote.raw) == quote
    values: dict[str, dict[int, bytes]] = {}
    for bank, number in quote.registers:
        values.setdefault(bank, {})[number] = bytes(hashlib.new(bank).digest_size)
    report = TpmReport(quote.raw, signed(quote.raw), AREA, values, REPORT_DATA)
    assert verify(msgspec.json.encode(report), Collateral(), NOW).runtime == claims.runtime


def tpm_signature(data: bytes) -> None:
    """Never a true one."""
    parse_signature(data)
    quote = quoted(struct.pack(">IHBBBB", 1, SHA256, 3, 1, 0, 0), bytes(32))
    verify(quote + data, read_blobs((AREA,)), NOW)
    assert data[4:] == signed(quote)[4:]


def tpm_public(data: bytes) -> None:
    """A key, whose name is of all its bytes."""
    area = parse_public(data)
    assert (
        area.name[2:] == hashlib.new({4: "sha1", 11: "sha256", 12: "sha384", 13: "sha512"}[area.name[1]], data).digest()
    )


def tpm_event_log(data: bytes) -> None:
    """Bytes; or events that are nearly right."""
    draw = Draw(data)
    log = draw.rest() if draw.below(2) == 0 else _log(draw)
    found = parse(log)
    assert len(found.events) <= MAX_EVENTS
    values = {
        (bank, number): bytes(hashlib.new(bank).digest_size) for bank in ("sha256", "sha384") for number in range(24)
    }
    explained = explain(log, values)
    assert len(explained.whole) + len(explained.further) + len(explained.failures) == len(values)
    for bank in found.banks:
        led_to = {(bank, number): value for number, value in replay(found.events, bank).items()}
        assert len(explain(log, led_to).whole) == len(led_to)


def _log(draw: Draw) -> bytes:
    banks = draw.pick(((0x0B,), (0x04, 0x0B), (0x0B, 0x0C), (0x12, 0x0B)))
    sizes = {0x04: 20, 0x0B: 32, 0x0C: 48, 0x12: 32}
    head = b"Spec ID Event03\0" + bytes(8) + struct.pack("<I", len(banks))
    head += b"".join(struct.pack("<HH", bank, sizes[bank]) for bank in banks) + b"\0"
    log = struct.pack("<II20sI", 0, 3, b"", len(head)) + head
    while draw:
        pcr, kind, text = draw.below(26), draw.pick((1, 3, 4, 0x80000006)), draw.spoilt(draw.take(draw.below(40)))
        digests = b"".join(struct.pack("<H", bank) + draw.take(sizes[bank]).ljust(sizes[bank], b"\0") for bank in banks)
        log += draw.spoilt(struct.pack("<III", pcr, kind, len(banks)) + digests + struct.pack("<I", len(text)) + text)
    return log


COMMANDS = (
    commands.create_primary(AREA),
    commands.flush_context(1),
    commands.read_public(1),
    commands.quote(1, b"", (0,)),
    commands.pcr_read((0,)),
    commands.nv_read_public(1),
    commands.nv_read(1, 1, 8, 0),
    commands.start_policy_session(bytes(16)),
    commands.policy_pcr(1, bytes(32), (0,)),
    commands.hmac_of(1, 2, b""),
)


def tpm_answer(data: bytes) -> None:
    """To any of the commands; with a head that is right, or not."""
    draw = Draw(data)
    command = COMMANDS[draw.below(len(COMMANDS))]
    raw = draw.below(8) == 0
    body = draw.rest()
    command.answered(body if raw else commands.HEADER.pack(0x8001, commands.HEADER.size + len(body), 0) + body)


def tpm_report(data: bytes) -> None:
    """adyton's report in JSON; or what lies beside a raw quote."""
    draw = Draw(data)
    if draw.below(2) == 0:
        verify(b"{" + draw.rest(), Collateral(), NOW)
        return
    quote = quoted(struct.pack(">IHBBBB", 1, SHA256, 3, 1, 0, 0), bytes(32))
    beside = read_blobs((draw.take(draw.below(256)), draw.rest()))
    try:
        found = verify(quote + signed(quote), beside + read_blobs((AREA,)), NOW)
    except EvidenceMalformedError as error:
        raise AssertionError("what lies beside evidence does not make it malformed") from error
    assert found.tcb == "Unknown"
