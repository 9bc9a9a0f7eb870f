"""Reports of a confidential VM, by the kernel's configfs-tsm (Linux 6.7): Documentation/ABI/testing/configfs-tsm-report.

    mkdir NAME ─► write inblob ─► read outblob and auxblob ─► rmdir

Each report has a folder of its own, so that nobody else's is taken for it; its `generation`, which counts what was written there, says whether that
was so. What is written to inblob counts once it is closed, and whether it did, only the generation says (fs/configfs/file.c). What is made there is
root's.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple, Self

from adyton.attestation.evidence import REPORT_DATA_SIZE
from adyton.errors import ClosedError, LocalProtocolError, PlatformError

REPORTS = "/sys/kernel/config/tsm/report"
MAX_REPORT = 1 << 15  # bytes; Intel's quotes have 8 KiB
MAX_CERTIFICATES = 1 << 15  # bytes; sev-guest gives 16 KiB
_MAX_TEXT = 64
ATTEMPTS = 8
FIRST_PAUSE = 0.05  # seconds; each is twice as long as the one before: 6 s in all
_BUSY = (errno.EBUSY, errno.EWOULDBLOCK)  # EBUSY of TDX: the host has not answered what was asked before


class Blobs(NamedTuple):
    """`more`: what the platform gives along with a report; b"": nothing."""

    report: bytes
    more: bytes


class _ChangedError(Exception):
    """Somebody else wrote to our folder, or our own write did not count."""


class TsmReports:
    """The reports of one provider. `report`: 64 bytes in, see `Blobs`."""

    def __init__(self, provider: str, folder: str = REPORTS, pause: Callable[[float], None] = time.sleep) -> None:
        """`provider`: as the kernel names it, such as "tdx_guest". `pause`: waits so many seconds. PlatformError: it is not to be had here."""
        self._provider = provider
        self._pause = pause
        try:
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise PlatformError(f"{folder}: {error.strerror}: mount configfs there (Linux 6.7 or newer)") from error
        try:
            self._check_provider(folder)
        except BaseException:
            self.close()
            raise

    def _check_provider(self, folder: str) -> None:
        try:
            instance = _Instance(self._folder)
            try:
                provider = instance.text("provider")
            finally:
                instance.remove()
        except OSError as error:
            who = ": only root may ask for reports" if error.errno in (errno.EACCES, errno.EPERM) else ""
            raise PlatformError(f"{folder}: no report can be asked for there ({error.strerror}){who}") from error
        if provider != self._provider:
            raise PlatformError(f"{folder}: the reports are those of {provider[:40]!r}, not of {self._provider}")

    def report(self, data: bytes) -> Blobs:
        """Over 64 bytes. PlatformError: the kernel gave none, whatever was tried."""
        if len(data) != REPORT_DATA_SIZE:
            raise LocalProtocolError(f"report data has {REPORT_DATA_SIZE} bytes, not {len(data)}")
        if self._folder < 0:
            raise ClosedError("this attester is closed")
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._pause(FIRST_PAUSE * 2 ** (attempt - 1))
            try:
                return self._attempt(data)
            except _ChangedError as error:
                reason = str(error)
            except OSError as error:
                reason = error.strerror or str(error)
                if error.errno not in _BUSY:
                    break
        raise PlatformError(f"{self._provider} gave no report: {reason}")

    def _attempt(self, data: bytes) -> Blobs:
        instance = _Instance(self._folder)
        try:
            before = instance.generation()
            instance.write("inblob", data)
            written = instance.generation()
            if written != before + 1:
                raise _ChangedError(f"what was written made generation {written} of {before}")
            blobs = Blobs(instance.read("outblob", MAX_REPORT), instance.read_if_there("auxblob", MAX_CERTIFICATES))
            if (after := instance.generation()) != written:
                raise _ChangedError(f"the generation is {after}, and was {written}: somebody else writes there")
        finally:
            instance.remove()
        if not blobs.report:
            raise _ChangedError("it was empty")
        return blobs

    def close(self) -> None:
        """Idempotent."""
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Instance:
    """One folder of ours. All raises OSError, but `remove`."""

    def __init__(self, reports: int) -> None:
        self._reports = reports
        self._name = f"adyton-{os.getpid()}-{secrets.token_hex(8)}"
        os.mkdir(self._name, 0o700, dir_fd=reports)

    def remove(self) -> None:
        try:
            os.rmdir(self._name, dir_fd=self._reports)
        except OSError:
            pass  # somebody else has, or it stays: a few bytes of the kernel's

    def write(self, attribute: str, data: bytes) -> None:
        """In one piece. What counts of it is seen once it is closed."""
        descriptor = self._open(attribute, os.O_WRONLY)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.EIO, f"{attribute} took a part only")
        finally:
            os.close(descriptor)

    def read(self, attribute: str, limit: int) -> bytes:
        """All of it. EFBIG if that is more than `limit` bytes."""
        descriptor = self._open(attribute, os.O_RDONLY)
        try:
            parts, size = [], 0
            while part := os.read(descriptor, limit + 1 - size):
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise OSError(errno.EFBIG, f"{attribute} has more than {limit} bytes")
        finally:
            os.close(descriptor)
        return b"".join(parts)

    def read_if_there(self, attribute: str, limit: int) -> bytes:
        """The same; b"" where the provider has no such attribute."""
        try:
            return self.read(attribute, limit)
        except FileNotFoundError:
            return b""

    def text(self, attribute: str) -> str:
        return self.read(attribute, _MAX_TEXT).decode("ascii", "replace").strip()

    def generation(self) -> int:
        text = self.text("generation")
        if not text.isdecimal():
            raise OSError(errno.EIO, f"the generation is {text!r}")
        return int(text)

    def _open(self, attribute: str, flags: int) -> int:
        return os.open(f"{self._name}/{attribute}", flags | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._reports)
