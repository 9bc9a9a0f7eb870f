"""Where the container of sealed files lies: on this server's disk, or on the client's, through host calls. Both may lie about all but the types of what they answer.

    disk       the container
    OwnDisk    a file that was open before this process was walled in
    ClientDisk a file of the client's, opened by a host call

A disk carries out one request of `sealed_files.storage` at a time, as a generator that yields what is waited for.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from adyton.attestation.sealing.header import To, decode
from adyton.attestation.sealing.keys import Sealing
from adyton.errors import IntegrityError
from adyton.hostcall import abi
from adyton.runtime.process.supervisor.calls import Calls, OwnPending, Pending
from adyton.runtime.process.supervisor.view import errno_of
from adyton.sealed_files import storage
from adyton.sealed_files.cipher import KEY_SIZE, superblock_cipher
from adyton.sealed_files.storage import StorageError

_R = TypeVar("_R")
_OWNER = 1  # of the lock that keeps other enclaves off the container
Served = Generator[Pending, Any, Any]
Do = Callable[
    [Callable[[], Any]], OwnPending
]  # call what waits for this server's disk, behind all before it; the result is `Ended`


@dataclass(frozen=True, slots=True)
class Ended:
    """What a function has returned, or raised."""

    value: Any
    error: Exception | None = None

    def result(self) -> Any:
        """That."""
        if self.error is not None:
            raise self.error
        return self.value


def tried(function: Callable[[], Any]) -> Ended:
    """How it ends."""
    try:
        return Ended(function())
    except Exception as error:  # noqa: BLE001 - whoever waits for it gets it
        return Ended(None, error)


def at_once(function: Callable[[], Any]) -> OwnPending:
    """Where nobody minds how long it takes: see Do."""
    pending = OwnPending()
    pending.finish(tried(function))
    return pending


class FileKeys:
    """The sealing keys of an enclave for its files: see `sealed_files.cipher.Keys`. `to`: whom they belong to."""

    def __init__(self, sealing: Sealing, to: To) -> None:
        self._sealing = sealing
        self._to: To = to

    def check(self) -> None:
        """PlatformError: there are no keys here, or nothing to use them with. UsageError: nothing can be sealed to this image's signer."""
        superblock_cipher(bytes(KEY_SIZE))
        self._sealing.header(self._to, "files")

    def new(self) -> tuple[bytes, bytes]:
        """UsageError, PlatformError."""
        header = self._sealing.header(self._to, "files")
        return header, self._sealing.key(header, "files")

    def key(self, header: bytes) -> bytes:
        """IntegrityError; also for files that belong to the signer, where this image's belong to its measurement: what it wrote would be lost to its next version."""
        to = decode(header)[0].to
        if to != self._to:
            raise IntegrityError(f"it was sealed to the {to}, and this image's files are sealed to the {self._to}")
        return self._sealing.key(header, "files")


class Disk(Protocol):
    """See the module."""

    def serve(self, request: storage.Request) -> Served:
        """The request's result. StorageError; EBUSY: another enclave has the container."""
        ...


class OwnDisk:
    """`descriptor`: of the container, open to be read and written, and locked."""

    def __init__(self, descriptor: int, do: Do) -> None:
        self._descriptor = descriptor
        self._do = do

    def serve(self, request: storage.Request) -> Served:
        """Waits for nothing but the disk."""
        try:
            return (yield self._do(lambda: self._serve(request))).result()
        except OSError as error:
            raise StorageError(
                known_error(error.errno or errno.EIO), f"the server's disk: {os.strerror(error.errno or 0)}"
            ) from error

    def _serve(self, request: storage.Request) -> Any:
        match request:
            case storage.Size():
                return os.fstat(self._descriptor).st_size
            case storage.Read(ranges):
                return [self._read(offset, size) for offset, size in ranges]
            case storage.Write(parts):
                for offset, data in parts:
                    self._write(offset, data)
            case storage.Resize(size):
                os.ftruncate(self._descriptor, size)
            case storage.Sync():
                os.fsync(self._descriptor)
            case storage.Release():
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return None

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size and (more := os.pread(self._descriptor, size - len(data), offset + len(data))):
            data += more
        return data

    def _write(self, offset: int, data: bytes) -> None:
        left = memoryview(data)
        while left:
            written = os.pwrite(self._descriptor, left, offset)
            left, offset = left[written:], offset + written


class ClientDisk:
    """`path`: the client's, of the container; `number`: of a handle for it, which nothing else has."""

    def __init__(self, calls: Calls, path: str, number: int) -> None:
        self._calls = calls
        self._path = path
        self._number = number

    def serve(self, request: storage.Request) -> Served:
        """Waits for the client. The first one opens the container."""
        match request:
            case storage.Size():
                return (yield from self._open())
            case storage.Read(ranges):
                return (yield from self._read(ranges))
            case storage.Write(parts):
                cut = [
                    abi.Write(self._number, offset + at, data[at : at + abi.MAX_BLOCK])
                    for offset, data in parts
                    for at in range(0, len(data), abi.MAX_BLOCK)
                ]
                sent = [(each, self._calls.send(each, ordered=True)) for each in cut]
                for each, pending in sent:
                    written = _of((yield pending), abi.Written)
                    if written.size != len(each.data):
                        raise StorageError(errno.ENOSPC, "the client's disk did not take all of a block")
            case storage.Resize(size):
                request_ = abi.SetAttributes(self._path, self._number, size)
                _of((yield self._calls.send(request_, ordered=True)), abi.Attributes)
            case storage.Sync():
                _of((yield self._calls.send(abi.Sync(self._number, data_only=False), ordered=True)), abi.Done)
            case storage.Release():
                _of((yield self._calls.send(abi.Flock(self._number, _OWNER, "none"))), abi.Done)
        return None

    def _open(self) -> Served:
        opening = abi.Open(self._path, self._number, "read-write", create=True, mode=0o600)
        _of((yield self._calls.send(opening)), abi.Attributes)
        locked = yield self._calls.send(abi.Flock(self._number, _OWNER, "write"))
        if isinstance(locked, abi.Failed) and locked.errno == "EAGAIN":
            raise StorageError(errno.EBUSY, "another enclave has the sealed files: load this one when that has ended")
        _of(locked, abi.Done)
        return _of((yield self._calls.send(abi.Stat(self._path, self._number))), abi.Attributes).size

    def _read(self, ranges: tuple[tuple[int, int], ...]) -> Served:
        sent = [
            [
                (at, self._calls.send(abi.Read(self._number, at, min(abi.MAX_BLOCK, offset + size - at))))
                for at in range(offset, offset + size, abi.MAX_BLOCK)
            ]
            for offset, size in ranges
        ]
        found: list[bytes] = []
        for pieces in sent:
            parts: list[bytes] = []
            for _, pending in pieces:
                parts.append(_of((yield pending), abi.Data).data)
            found.append(b"".join(parts))
        return found


def _of(result: abi.Result, expected: type[_R]) -> _R:
    if isinstance(result, expected):
        return result
    number = errno_of(result)
    raise StorageError(known_error(number), f"the client's disk: {os.strerror(number)}")


def known_error(number: int) -> int:
    """What a program is told of an error of the disk's: what it can do something about as it is, all else as EIO."""
    return number if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBUSY) else errno.EIO
