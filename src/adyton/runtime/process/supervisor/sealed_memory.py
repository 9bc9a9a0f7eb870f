"""Who remembers the last commit of sealed files: whoever does not hold their container. See `adyton.sealed_files.memory` for the notes.

    container on        remembered by     with
    the client's disk   this server       OwnMemory: one file for all enclaves of an owner, open before this process was walled in
    the server's disk   the client        ClientMemory: a file of its own for each server and owner

A file of this server's consists of records of 256 bytes, one for each store. A record has two halves, written in turn, so that a crash leaves the note before:

    half    note (72 bytes) ‖ the first 16 of its SHA-256 ‖ zeros
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from typing import Any, Protocol

from adyton.hostcall import abi
from adyton.runtime.process.supervisor.calls import Calls
from adyton.runtime.process.supervisor.sealed_storage import Do, Served, known_error
from adyton.runtime.process.supervisor.view import errno_of
from adyton.sealed_files.memory import NOTE_SIZE, STORE_SIZE, counter_of
from adyton.sealed_files.storage import Recall, Remember, StorageError

HALF = 128
RECORD = 2 * HALF
MAX_RECORDS = 1 << 16
_SUM_SIZE = 16
_PIECE = RECORD << 10
_BRANCHED = "another enclave has gone on with a copy of these sealed files: load this one again"


class Memory(Protocol):
    """See the module."""

    def serve(self, request: Recall | Remember) -> Served:
        """The request's result. StorageError."""
        ...


class OwnMemory:
    """`descriptor`: of the file, which other enclaves have open, too."""

    def __init__(self, descriptor: int, do: Do) -> None:
        self._descriptor = descriptor
        self._do = do

    def serve(self, request: Recall | Remember) -> Served:
        """Waits for nothing but the disk, and for other enclaves that are at it."""
        try:
            return (yield self._do(lambda: self._serve(request))).result()
        except OSError as error:
            number = error.errno or errno.EIO
            raise StorageError(
                known_error(number), f"what the server remembers of them: {os.strerror(number)}"
            ) from error

    def _serve(self, request: Recall | Remember) -> bytes | None:
        with self._locked():
            if isinstance(request, Remember):
                self._remember(request.known, request.note)
                return None
            return self._find(request.store)[1] if request.store else b""

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _remember(self, known: bytes, note: bytes) -> None:
        offset, there, next_half = self._find(note[:STORE_SIZE])
        if there == note:
            return
        if there != known:
            raise StorageError(errno.EIO, _BRANCHED)
        if offset >= MAX_RECORDS * RECORD:
            raise StorageError(
                errno.ENOSPC,
                f"the server remembers {MAX_RECORDS} containers of such enclaves, and no more: it has to forget some",
            )
        half = (note + hashlib.sha256(note).digest()[:_SUM_SIZE]).ljust(HALF, b"\0")
        if os.pwrite(self._descriptor, half, offset + next_half * HALF) != HALF:
            raise OSError(errno.ENOSPC, "a record was not written")
        os.fsync(self._descriptor)

    def _find(self, store: bytes) -> tuple[int, bytes, int]:
        """Where the store's record is, or is to be; its note; and in which half the next one goes."""
        size = -(-os.fstat(self._descriptor).st_size // RECORD) * RECORD  # the last record may have its first half only
        for start in range(0, size, _PIECE):
            piece = os.pread(self._descriptor, min(_PIECE, size - start), start)
            for at in range(0, len(piece), RECORD):
                notes = [_note(piece[at + half : at + half + HALF], store) for half in (0, HALF)]
                if any(notes):
                    last = max((0, 1), key=lambda half: (bool(notes[half]), counter_of(notes[half])))
                    return start + at, notes[last], 1 - last
        return size, b"", 0


def _note(half: bytes, store: bytes) -> bytes:
    """The store's note, if that is there, and whole."""
    note = half[:NOTE_SIZE]
    whole = half[NOTE_SIZE : NOTE_SIZE + _SUM_SIZE] == hashlib.sha256(note).digest()[:_SUM_SIZE]
    return note if note[:STORE_SIZE] == store and whole else b""


class ClientMemory:
    """`owner`: under what the client is to remember it."""

    def __init__(self, calls: Calls, owner: abi.Owned) -> None:
        self._calls = calls
        self._owner = owner

    def serve(self, request: Recall | Remember) -> Served:
        """Waits for the client."""
        if isinstance(request, Recall):
            recalled = yield self._calls.send(abi.Recall(self._owner))
            return _of(recalled, abi.Data).data
        _of((yield self._calls.send(abi.Remember(self._owner, request.known, request.note))), abi.Done)
        return None


def _of(result: Any, expected: type[Any]) -> Any:
    if isinstance(result, expected):
        return result
    number = errno_of(result)
    if number == errno.ESTALE:
        raise StorageError(errno.EIO, _BRANCHED)
    raise StorageError(
        known_error(number),
        f"what the client remembers of them cannot be read or written: {os.strerror(number)} (XDG_STATE_HOME names the folder; docs/sealed-files.md)",
    )
