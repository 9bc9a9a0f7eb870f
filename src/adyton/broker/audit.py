"""The log's two files: LOG, which only grows, and LOG.head, which says where it ends. See `records` for what is in them.

What is appended is on the disk, and so is the head, when `append` returns: only then may an answer leave. A broker that finds its log shorter than
the head says, or other than it says, does not start; nor does one that finds neither, unless it is told to begin.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from adyton.broker.records import (
    MAX_LINE,
    Decided,
    Head,
    Healed,
    NoRecordError,
    Place,
    Reader,
    Record,
    head_line,
    lines_of,
    read_head,
    record_line,
)
from adyton.crypto.digest import digest_of
from adyton.crypto.keys import PublicKey, SigningKey
from adyton.durable import sync_folder_of
from adyton.errors import IntegrityError, UsageError

HEAD = ".head"  # behind the log's name
_SLOT = 1024  # bytes of the head's file: two slots; the one that is not being written has the head before, until the new one is durable
_PIECE = 1 << 20
_MOST_PROBLEMS = 100

Make = Callable[[int, dt.datetime, str], Record]  # number, time, digest of the line before → the record


class AuditLog:
    """The log of one broker, which alone may have it open. After a failed append nothing is appended any more, as nothing may be answered."""

    def __init__(
        self,
        path: str,
        key: SigningKey,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        *,
        begins: bool = False,
    ) -> None:
        """`begins`: the key has signed none before, or somebody says that there is to be a new one; then there may be none, and else there must be.

        UsageError: the files cannot be used. IntegrityError: the log is not the one that its head speaks of, or is gone.
        """
        self._path = path
        self._key = key
        self._now = now
        self._failed = False
        self._log = self._head = -1
        try:
            try:
                self._require(begins=begins)
                self._log = _open(path, os.O_APPEND)
                fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._head = _open(path + HEAD)
                if os.fstat(self._head).st_size < _SLOT and not os.fstat(self._log).st_size:
                    self._begin()
                self._last, self._slot = self._resume()
            except BlockingIOError:
                raise UsageError(f"the log {path} is another broker's at the moment: give each its own") from None
            except OSError as error:
                raise UsageError(
                    f"the log {path} cannot be opened: {error.strerror}: {error.filename or path}"
                ) from error
        except BaseException:
            self.close()
            raise

    @property
    def head(self) -> Head:
        """The last line."""
        return self._last

    def close(self) -> None:
        """Give up the files."""
        for descriptor in (self._log, self._head):
            if descriptor >= 0:
                os.close(descriptor)
        self._log = self._head = -1

    def append(self, makes: Sequence[Make]) -> None:
        """Append records, and have them on the disk. OSError: it is not known whether they are, and this log takes no more."""
        if self._failed:
            raise OSError(None, "the log could not be written before")
        self._failed = True
        lines, last = [], self._last
        if os.fstat(self._log).st_size != last.end:
            raise OSError(None, "somebody else has changed the log's size", self._path)
        for make in makes:
            line = record_line(make(last.number + 1, self._now(), last.digest), self._key)
            if len(line) > MAX_LINE:
                raise OSError(
                    None,
                    f"a record has {len(line)} bytes, and at most {MAX_LINE} are taken: name fewer secrets",
                    self._path,
                )
            lines.append(line)
            last = Head(last.number + 1, digest_of(line), last.end, last.end + len(line))
        _write_all(self._log, b"".join(lines))
        os.fdatasync(self._log)
        self._write_head(last)
        self._failed = False

    def _require(self, *, begins: bool) -> None:
        """Before anything is made."""
        if not begins and not any(map(_has_something, (self._path, self._path + HEAD))):
            raise IntegrityError(
                f"the log {self._path} is gone, and its head is, though a key of this broker was there before: somebody has removed them, or its first start was "
                "cut off, or the key was brought along. Bring the log back; or, to begin a new one, start once with --new-log"
            )

    def _begin(self) -> None:
        """An empty log, in a folder that knows its files."""
        self._slot = 1
        self._write_head(Head(0, "", 0, 0))
        sync_folder_of(self._path)

    def _write_head(self, head: Head) -> None:
        self._slot = 1 - self._slot
        line = head_line(head, self._key)
        self._put_slot(self._slot, line[:-1].ljust(_SLOT - 1) + b"\n")
        os.fdatasync(self._head)
        # Else whoever has the files as they are now has an older head, too, and can have the log end there.
        self._put_slot(1 - self._slot, bytes(_SLOT))
        self._last = head

    def _put_slot(self, slot: int, data: bytes) -> None:
        if os.pwrite(self._head, data, slot * _SLOT) != len(data):
            raise OSError(None, "its head was not written whole", self._path + HEAD)

    def _resume(self) -> tuple[Head, int]:
        """Where to go on, once what is behind the head is in order. IntegrityError."""
        public = self._key.public
        head, self._slot = _read_heads(os.pread(self._head, 2 * _SLOT, 0), public, self._path)
        size = os.fstat(self._log).st_size
        line = os.pread(self._log, head.end - head.begin, head.begin) if head.end - head.begin <= MAX_LINE else b""
        if head.end > size or (head.number and digest_of(line) != head.digest):
            raise _damaged(
                self._path, f"its head tells of record {head.number}, and that is not there, or is another one"
            )
        self._last = head
        reader = Reader(public, Place(head.number, head.digest))
        end = head.end
        for read in lines_of(_pieces(self._log, head.end)):
            each = read
            if not each.endswith(b"\n") and end + len(each) == size:
                _write_all(self._log, b"\n")  # what was cut off just there is whole again
                each += b"\n"
            begin, end = end, end + len(each)
            if reader.read(each) is not None:
                self._last = Head(reader.place.number, reader.place.digest, begin, end)
        if reader.problems:
            raise _damaged(self._path, reader.problems[0])
        os.fdatasync(self._log)
        if reader.gap.size:
            gap, last = reader.gap, self._last
            self._last = Head(last.number, last.digest, last.begin, end)
            self.append(
                [
                    lambda number, time, before: Healed(
                        number=number, time=time, before=before, bytes=gap.size, digest=gap.digest
                    )
                ]
            )
        else:
            self._write_head(self._last)
        return self._last, self._slot


@dataclass
class Report:
    """What a log is worth. `problems`: each of them means that somebody, or a failing disk, has been at it."""

    head: Head = field(
        default_factory=lambda: Head(0, "", 0, 0)
    )  # as the log has it: what to keep elsewhere, and compare the next time
    released: int = 0
    refused: int = 0
    healed: int = 0  # times that a crash had cut a line
    cut: int = 0  # bytes behind the last record, as a crash leaves them, or a broker that is at work
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_log(path: str, key: PublicKey, known: tuple[int, str] | None = None) -> Report:
    """Look through the whole log, which a broker may be writing. `known`: number and digest of a head that was seen earlier, and kept elsewhere.

    UsageError: it cannot be read.
    """
    report = Report()
    reader = Reader(key)
    wanted: dict[int, tuple[str, str]] = {}
    if known is not None:
        wanted[known[0]] = known[1], "the head that was kept elsewhere"
    try:
        head = _known_head(path, key)
        if wanted.setdefault(head.number, (head.digest, "the head"))[0] != head.digest:
            report.problems.append(f"the head that was kept elsewhere is not the one in {path}{HEAD}")
    except FileNotFoundError:
        head = None
        report.problems.append(f"there is no {path}{HEAD}: whether lines are missing at the end, nobody can say")
    except IntegrityError as error:
        head = None
        report.problems.append(str(error))
    except OSError as error:
        raise UsageError(f"{path}{HEAD} cannot be read: {error.strerror}") from error
    end = 0
    try:
        with open(path, "rb") as file:
            for line in lines_of(iter(lambda: file.read(_PIECE), b"")):
                begin, end = end, end + len(line)
                record = reader.read(line)
                if record is None:
                    continue
                report.head = Head(record.number, reader.place.digest, begin, end)
                if isinstance(record, Decided):
                    report.released += record.decision == "released"
                    report.refused += record.decision == "refused"
                due = wanted.pop(record.number, None)
                if due is not None and due[0] != reader.place.digest:
                    report.problems.append(f"record {record.number} is another one than {due[1]} says")
    except OSError as error:
        raise UsageError(f"the log {path} cannot be read: {error.strerror}") from error
    report.healed, report.cut = reader.healed, reader.gap.size
    report.problems += reader.problems
    if reader.gap.foreign:
        report.problems.append(reader.gap.foreign)
    for number, (_, what) in wanted.items():
        if number:
            why = f"; {reader.gap.why}" if reader.gap.size else ""
            report.problems.append(
                f"records from {reader.place.number + 1} to {number}, of which {what} tells, are missing or changed{why}"
            )
    del report.problems[_MOST_PROBLEMS:]
    return report


def _read_heads(slots: bytes, key: PublicKey, path: str) -> tuple[Head, int]:
    """The newest head, and its slot. IntegrityError: there is none that is right."""
    found: list[tuple[Head, int]] = []
    for slot in range(2):
        data = slots[slot * _SLOT : (slot + 1) * _SLOT]
        if len(data) == _SLOT:
            try:
                found.append((read_head(data.rstrip() + b"\n", key), slot))
            except NoRecordError:
                continue
    if not found:
        raise _damaged(path, f"{path}{HEAD} is not there, or is damaged, or another key has signed it")
    return max(found, key=lambda each: each[0].number)


def _known_head(path: str, key: PublicKey) -> Head:
    """As the file has it, which a broker may be writing: of two looks, one is between two changes of it. IntegrityError, OSError."""
    for last in (False, True):
        with open(path + HEAD, "rb") as file:
            slots = file.read(2 * _SLOT)
        try:
            return _read_heads(slots, key, path)[0]
        except IntegrityError:
            if last:
                raise
    raise AssertionError


def _damaged(path: str, why: str) -> IntegrityError:
    return IntegrityError(
        f"the log {path} has been changed: {why}. See `adyton broker verify {path}`; move both files away for an inquiry, and begin a new log (--new-log)"
    )


def _has_something(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:
        return False


def _open(path: str, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _pieces(descriptor: int, start: int) -> Iterator[bytes]:
    while piece := os.pread(descriptor, _PIECE, start):
        start += len(piece)
        yield piece
