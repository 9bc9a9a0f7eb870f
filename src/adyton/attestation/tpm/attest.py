"""A report of this machine's TPM: a quote over PCRs by an attestation key, with all that helps to judge it.

Through a descriptor: it writes and reads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple, Self, TypeVar

import msgspec

from adyton.attestation.evidence import REPORT_DATA_SIZE
from adyton.attestation.hardware import HardwareReport
from adyton.attestation.tpm import commands
from adyton.attestation.tpm.abi import MAX_SIZE, RESTRICTED, SIGN, parse_public, parse_quote, parse_signature
from adyton.attestation.tpm.commands import HEADER, MAX_RESPONSE, MOST_DIGESTS, MOST_NV, RETRY, Command, TpmError
from adyton.attestation.tpm.event_log import MAX_LOG, is_agile
from adyton.attestation.tpm.report import TpmReport
from adyton.errors import EvidenceMalformedError, LocalProtocolError, PlatformError

DEVICE = "/dev/tpmrm0"  # the kernel's resource manager: what one process loads, others neither see nor crowd out
EVENT_LOG = "/sys/kernel/security/tpm0/binary_bios_measurements"
BANK = "sha256"
# 0 to 7: the firmware, its settings, and what it started; 8 to 15: the operating system's, by its own rules.
PCRS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
ATTEMPTS = 8  # at a command, and at values that are those which were quoted

_T = TypeVar("_T")


class Provisioned(NamedTuple):
    """Where a cloud puts its virtual TPMs' attestation key: at a handle, or a template for it at an NV index; and the key's certificate."""

    certificate: int
    handle: int = 0
    template: int = 0


PROVISIONED = (
    Provisioned(certificate=0x01C101D0, handle=0x81000003),  # Azure
    Provisioned(certificate=0x01C10002, template=0x01C10003),  # Google: ECC, then RSA
    Provisioned(certificate=0x01C10000, template=0x01C10001),
)


class _AttestationKey(NamedTuple):
    handle: int
    public: bytes
    certificate: bytes


class Tpm:
    """A TPM behind a descriptor, which it owns, and the event log of the machine's start (b"": there is none that says anything)."""

    def __init__(self, descriptor: int, event_log: bytes = b"") -> None:
        self._descriptor = descriptor
        self._turn = threading.Lock()  # an answer is of whoever asked last
        self.event_log = event_log if is_agile(event_log) and len(event_log) <= MAX_LOG else b""

    @classmethod
    def open(cls, path: str = DEVICE, event_log: str = EVENT_LOG) -> Tpm:
        """PlatformError: there is none, or it may not be used."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            advice = (
                "may this user open it?"
                if error.errno in (errno.EACCES, errno.EPERM)
                else "has this machine a TPM 2.0?"
            )
            raise PlatformError(f"the TPM {path} cannot be opened ({error.strerror}): {advice}") from error
        log = b""
        with contextlib.suppress(OSError), open(event_log, "rb") as file:  # root's; without it a quote says as much
            log = file.read(MAX_LOG + 1)
        return cls(descriptor, log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Twice does no harm."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def report(self, report_data: bytes) -> HardwareReport:
        """See `hardware.Attester`."""
        return HardwareReport(attest(report_data, self))

    def ask(self, command: Command[_T]) -> _T:
        """TpmError: it refuses; PlatformError: it does not work."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._turn:
                    answer = self._exchange(command.data)
                return command.answered(answer)
            except OSError as error:
                raise PlatformError(f"the TPM does not work: {error.strerror}") from error
            except TpmError as error:  # the kernel waits and repeats what its devices want so; an emulated TPM behind a socket has nobody
                if error.response != RETRY or attempt == ATTEMPTS:
                    raise
        raise AssertionError

    def pcr_values(self) -> list[bytes]:
        """Of PCRS, now. PlatformError."""
        groups = [PCRS[at : at + MOST_DIGESTS] for at in range(0, len(PCRS), MOST_DIGESTS)]
        values = [value for group in groups for value in self.ask(commands.pcr_read(group))]
        if len(values) != len(PCRS):
            raise PlatformError("the TPM has no PCRs of SHA-256: switch that bank on in the machine's firmware")
        return values

    @contextlib.contextmanager
    def loaded(self, template: bytes, hierarchy: int = commands.ENDORSEMENT) -> Iterator[tuple[int, bytes]]:
        """A key that it makes of its own seed: handle and public area. PlatformError."""
        handle, public = self.ask(commands.create_primary(template, hierarchy))
        try:
            yield handle, public
        finally:
            self.ask(commands.flush_context(handle))

    def _exchange(self, data: bytes) -> bytes:
        """A device takes a command whole, and gives an answer whole; a socket to an emulated one need not."""
        while data:
            data = data[os.write(self._descriptor, data) :]
        answer, wanted = b"", HEADER.size
        while len(answer) < wanted:
            piece = os.read(self._descriptor, MAX_RESPONSE)
            if not piece:
                raise PlatformError(f"the TPM ended its answer after {len(answer)} bytes of {wanted}")
            answer += piece
            if len(answer) >= HEADER.size:
                wanted = min(HEADER.unpack_from(answer)[1], MAX_RESPONSE)
        return answer


def attest(report_data: bytes, tpm: Tpm) -> bytes:
    """A TpmReport in JSON, bound to 64 bytes: the body's `report` of the envelope. PlatformError: it is not to be had."""
    if len(report_data) != REPORT_DATA_SIZE:
        raise LocalProtocolError(f"report data has {REPORT_DATA_SIZE} bytes, not {len(report_data)}")
    extra = hashlib.sha256(report_data).digest()
    with _attestation_key(tpm) as key:
        for _ in range(ATTEMPTS):
            quote, signature = tpm.ask(commands.quote(key.handle, extra, PCRS))
            values = tpm.pcr_values()
            if _is_of(quote, signature, values):
                pcrs = {BANK: dict(zip(PCRS, values, strict=True))}
                report = TpmReport(quote, signature, key.public, pcrs, report_data, tpm.event_log, key.certificate)
                return msgspec.json.encode(report)
    raise PlatformError(f"the PCRs of the TPM were changed during each of {ATTEMPTS} attempts at a quote: try again")


def _is_of(quote: bytes, signature: bytes, values: list[bytes]) -> bool:
    """They may have been extended between the quote and now."""
    try:
        digest = hashlib.new(parse_signature(signature).hash, b"".join(values)).digest()
        return digest == parse_quote(quote).digest
    except EvidenceMalformedError as error:
        raise PlatformError(f"the TPM quotes what cannot be read: {error}") from error


@contextlib.contextmanager
def _attestation_key(tpm: Tpm) -> Iterator[_AttestationKey]:
    """One that a cloud certifies, if there is one; else adyton's own, which a policy has to name."""
    for place in PROVISIONED:
        certificate = _certificate(tpm, place.certificate)
        if certificate and place.handle and (public := _usable(tpm, place.handle)):
            yield _AttestationKey(place.handle, public, certificate)
            return
        if certificate and place.template and (template := _nv(tpm, place.template)):
            with tpm.loaded(template) as (handle, public):
                yield _AttestationKey(handle, public, certificate)
            return
    with tpm.loaded(commands.OWN_KEY) as (handle, public):
        yield _AttestationKey(handle, public, b"")


def _usable(tpm: Tpm, handle: int) -> bytes:
    """The public area of a key that quotes; b"": there is none."""
    try:
        public = tpm.ask(commands.read_public(handle))
        return public if parse_public(public).attributes & (RESTRICTED | SIGN) == RESTRICTED | SIGN else b""
    except (TpmError, EvidenceMalformedError):
        return b""


def _nv(tpm: Tpm, index: int) -> bytes:
    """What an index holds; b"": it is not there, or not for us."""
    try:
        found = tpm.ask(commands.nv_read_public(index))
        if not found.reader or found.size > MAX_SIZE:
            return b""
        sizes = ((at, min(MOST_NV, found.size - at)) for at in range(0, found.size, MOST_NV))
        return b"".join(tpm.ask(commands.nv_read(index, found.reader, size, at)) for at, size in sizes)
    except TpmError:
        return b""


def _certificate(tpm: Tpm, index: int) -> bytes:
    """In DER, without what fills the index behind it."""
    held = _nv(tpm, index)
    return held[: 4 + int.from_bytes(held[2:4], "big")] if held[:2] == b"\x30\x82" else b""
