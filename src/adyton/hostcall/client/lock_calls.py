"""Host calls on locks: true locks of this machine's kernel, which other programs here see.

All owners of an enclave's locks are one process here. So that they stand in each other's way as they should, each owner has an open file
description of its own for each file that it locks, and holds its locks as those of that description: F_OFD_SETLK, flock. A description
goes with its last lock, or with a handle that the owner locked by. Who waits tries again and again: a thread that blocks in the kernel
could not be told to stop. Sources: fcntl(2), fcntl_locking(2), flock(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from adyton.hostcall import abi
from adyton.hostcall.client.handlers import Handlers
from adyton.hostcall.client.open_files import OpenFile, OpenFiles
from adyton.hostcall.client.openat import by_descriptor
from adyton.hostcall.lock_ranges import LAST, LockRanges

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05  # seconds between two tries
_REMEMBERED = 4 * abi.MAX_LOCK_WAITS  # of waits that are to end
# struct flock of 64-bit Linux: type, whence, start, length (0: without an end), pid
_FLOCK = struct.Struct("hhqqi4x")
_OFD_GETLK, _OFD_SETLK = 36, 37  # asm-generic/fcntl.h; in Python's fcntl from 3.9 on some builds only
_TYPES = {"read": fcntl.F_RDLCK, "write": fcntl.F_WRLCK, "none": fcntl.F_UNLCK}
_KINDS: dict[int, abi.LockKind] = {fcntl.F_RDLCK: "read", fcntl.F_WRLCK: "write", fcntl.F_UNLCK: "none"}
_FLOCKS = {"read": fcntl.LOCK_SH, "write": fcntl.LOCK_EX, "none": fcntl.LOCK_UN}
_ACCESS = {"read": os.O_RDONLY, "write": os.O_WRONLY, "read-write": os.O_RDWR}
_Key = tuple[int, int, int]  # device, inode, owner


def may_wait(request: abi.Request) -> bool:
    """Whether it may wait for what other programs do."""
    if isinstance(request, abi.Compound):
        return any(may_wait(each) for each in request.requests)
    return isinstance(request, abi.Lock | abi.Flock) and request.wait is not None


@dataclass
class _Description:
    """An open file description of one owner, and what it holds locked: ranges, and by flock the file."""

    descriptor: int
    ranges: LockRanges = field(default_factory=LockRanges)
    flocked: bool = False

    def __len__(self) -> int:
        return len(self.ranges) + self.flocked

    def note(self, request: abi.Lock | abi.Flock) -> None:
        """The kernel has done what was asked."""
        if isinstance(request, abi.Flock):
            self.flocked = request.kind != "none"
        else:
            end = LAST if request.end is None else request.end
            self.ranges.set(request.owner, request.kind, request.start, end)


class LockCalls:
    """See the module. Thread-safe."""

    def __init__(self, files: OpenFiles) -> None:
        self._files = files
        self._changed = threading.Condition()  # a lock of this enclave's went, or somebody is to stop waiting
        self._descriptions: dict[_Key, _Description] = {}
        self._waits: set[int] = set()
        self._stopped: dict[int, None] = {}  # the oldest first; some are over, and some are yet to begin
        self._closed = False

    @property
    def handlers(self) -> Handlers:
        return {
            abi.Lock: ("fcntl", self._lock),
            abi.GetLock: ("fcntl", self._get_lock),
            abi.Flock: ("flock", self._flock),
            abi.StopWaiting: ("fcntl", self._stop_waiting),
        }

    # -- life ---------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Nobody waits any more, or will: EINTR."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """Give all locks back, when nobody is at work on any."""
        with self._changed:
            for description in self._descriptions.values():
                os.close(description.descriptor)
            self._descriptions.clear()

    def forget(self, file: OpenFile) -> None:
        """A handle was closed: the owners that locked by it have no locks on its file any more."""
        with self._changed:
            for key in file.locks:
                self._drop(key)
            file.locks.clear()

    def _drop(self, key: _Key) -> None:
        description = self._descriptions.pop(key, None)
        if description is not None:
            os.close(description.descriptor)
            self._changed.notify_all()

    # -- requests -----------------------------------------------------------------------------------------------------

    def _lock(self, request: abi.Lock) -> abi.Result:
        packed = _packed(request)
        self._set(request, lambda descriptor: fcntl.fcntl(descriptor, _OFD_SETLK, packed))
        return abi.Done()

    def _flock(self, request: abi.Flock) -> abi.Result:
        kind = _FLOCKS[request.kind] | fcntl.LOCK_NB
        self._set(request, lambda descriptor: fcntl.flock(descriptor, kind))
        return abi.Done()

    def _get_lock(self, request: abi.GetLock) -> abi.Result:
        asked = _packed(request)
        with self._files.using(request.handle) as file, self._changed:
            known = self._descriptions.get(_key(file, request.owner))
            descriptor = _opened(file) if known is None else known.descriptor
            try:
                answer = fcntl.fcntl(descriptor, _OFD_GETLK, asked)
            finally:
                if known is None:
                    os.close(descriptor)
        kind, _, start, length, _ = _FLOCK.unpack(answer)
        if kind == fcntl.F_UNLCK:
            return abi.Conflict("none")
        return abi.Conflict(_KINDS[kind], start, None if length == 0 else start + length - 1)

    def _stop_waiting(self, request: abi.StopWaiting) -> abi.Result:
        with self._changed:
            self._stopped[request.wait] = None  # it may overtake the wait, which another thread begins
            while len(self._stopped) > _REMEMBERED:
                del self._stopped[next(iter(self._stopped))]
            self._changed.notify_all()
        return abi.Done()

    # -- taking and waiting -------------------------------------------------------------------------------------------

    def _set(self, request: abi.Lock | abi.Flock, apply: Callable[[int], object]) -> None:
        with self._files.using(request.handle) as file, self._changed:
            key = _key(file, request.owner)
            if request.kind == "none":
                description = self._descriptions.get(key)
                if description is not None:
                    apply(description.descriptor)
                    description.note(request)
                    self._changed.notify_all()
                    if not len(description):
                        self._drop(key)
                return
            if not self._try(file, key, request, apply):
                if request.wait is None:
                    raise BlockingIOError(errno.EAGAIN, "the file is locked")
                self._wait(request.wait, lambda: self._try(file, key, request, apply))

    def _try(self, file: OpenFile, key: _Key, request: abi.Lock | abi.Flock, apply: Callable[[int], object]) -> bool:
        """Whether the lock is taken. A description that holds nothing yet does not stay without it."""
        if file.closed:
            raise OSError(errno.EBADF, "the handle was closed meanwhile")
        if sum(map(len, self._descriptions.values())) >= abi.MAX_LOCKS:
            raise OSError(errno.ENOLCK, "too many locks")
        description = self._descriptions.get(key)
        descriptor = _opened(file) if description is None else description.descriptor
        try:
            apply(descriptor)
        except OSError as error:
            if description is None:
                os.close(descriptor)
            if error.errno in {errno.EAGAIN, errno.EACCES}:  # fcntl_locking(2)
                return False
            raise
        if description is None:
            description = self._descriptions[key] = _Description(descriptor)
        description.note(request)
        file.locks.add(key)
        return True

    def _wait(self, wait: int, attempt: Callable[[], bool]) -> None:
        if wait in self._waits:
            raise OSError(errno.EINVAL, "that wait is under way")
        if len(self._waits) >= abi.MAX_LOCK_WAITS:
            raise OSError(errno.ENOLCK, "too many wait for locks")
        self._waits.add(wait)
        pause = _FIRST_PAUSE
        try:
            while not self._closed and wait not in self._stopped:
                self._changed.wait(pause)
                if attempt():
                    return
                pause = min(pause * 2, _LONGEST_PAUSE)
            raise InterruptedError(errno.EINTR, "nobody waits for the lock any more")
        finally:
            self._waits.discard(wait)
            self._stopped.pop(wait, None)


def _packed(request: abi.Lock | abi.GetLock) -> bytes:
    """As the kernel takes it."""
    end = LAST if request.end is None else request.end
    if end < request.start:
        raise OSError(errno.EINVAL, "a lock that ends before it starts")
    length = 0 if end == LAST else end - request.start + 1
    return _FLOCK.pack(_TYPES[request.kind], os.SEEK_SET, request.start, length, 0)


def _key(file: OpenFile, owner: int) -> _Key:
    status = os.fstat(file.descriptor)
    return status.st_dev, status.st_ino, owner


def _opened(file: OpenFile) -> int:
    """A new open file description of an open file, for locks of both kinds if it can be had so."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    path = by_descriptor(file.descriptor)
    if file.writable:
        try:
            return os.open(path, flags | os.O_RDWR)
        except OSError:
            pass  # its permissions: as it is open, then
    return os.open(path, flags | _ACCESS[file.access])
