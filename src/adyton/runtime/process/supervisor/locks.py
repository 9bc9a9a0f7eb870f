"""Operations on locks: fcntl's on ranges, by processes (POSIX) or by open files (OFD), and flock's. Operations: see `view`.

Locks on the client's files are the client's, where its other programs meet them; those on private files are kept here. The kernel names
an owner of locks by a number: a process, or an open file for OFD locks and flock's. A process's locks go when it closes any descriptor
of the file (FLUSH), those of an open file with that (RELEASE).

Where the client holds a file for the enclave, its locks are kept here, too. Of the client's other locks there is a copy here: who of this enclave holds what, for F_GETLK to name the process, and to see a circle of
waiters, which the client cannot (EDEADLK). The client alone grants.

Sources: fcntl_locking(2), flock(2), include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Generator
from dataclasses import dataclass, field

from adyton.hostcall import abi
from adyton.hostcall.lock_ranges import LAST, Held, LockRanges
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.caching.cache import Cache
from adyton.runtime.process.supervisor.fuse_abi import FileError, Header
from adyton.runtime.process.supervisor.handles import STANDARD_INPUT_HANDLE, Handles, OpenFile
from adyton.runtime.process.supervisor.view import PARK, Park, Steps, View, ask

_KINDS: dict[int, abi.LockKind] = {fcntl.F_RDLCK: "read", fcntl.F_WRLCK: "write", fcntl.F_UNLCK: "none"}
_TYPES = {kind: number for number, kind in _KINDS.items()}
_Waits = Generator["abi.Request | Park", abi.Result, None]


@dataclass
class _FileLocks:
    """Of one file. `users`: operations under way.

    `closing`: handles that took locks and whose end the client has not confirmed: until then they may be held.
    """

    ranges: LockRanges = field(default_factory=LockRanges)
    flocks: LockRanges = field(default_factory=LockRanges)  # each of the whole file
    users: int = 0
    closing: int = 0

    def of(self, *, flock: bool) -> LockRanges:
        return self.flocks if flock else self.ranges


@dataclass(frozen=True)
class _Wish:
    """A lock that somebody waits for."""

    ranges: LockRanges
    owner: int
    kind: abi.LockKind
    start: int
    end: int


class LockOperations:
    """See the module."""

    def __init__(self, view: View, handles: Handles, cache: Cache) -> None:
        self._view = view
        self._cache = cache
        self._handles = handles
        self._files: dict[int, _FileLocks] = {}  # by inode number
        self._wishes: dict[int, _Wish] = {}  # by the number of the wait
        self._waits = 0

    # -- operations -------------------------------------------------------------------------------------------------

    def setlk(self, _header: Header, body: fuse_abi.Lock) -> Steps:
        """A lock or nothing: EAGAIN. Or an unlock."""
        return self._set(body, wait=False)

    def setlkw(self, _header: Header, body: fuse_abi.Lock) -> Steps:
        """A lock, whenever it can be had: EINTR, EDEADLK."""
        return self._set(body, wait=True)

    def getlk(self, _header: Header, body: fuse_abi.Lock) -> Steps:
        """A lock in the way of this one; F_UNLCK if there is none."""
        opened, kind = self._asked(body)
        if kind == "none":
            raise FileError(errno.EINVAL)
        locks = self._files.get(_number(opened))
        if locks is not None:
            for held in locks.ranges.in_the_way(body.owner, kind, body.start, body.end):
                return fuse_answers.pack_lock(held.start, held.end, _TYPES[held.kind], held.process)
        if self._is_asked(opened):
            request = abi.GetLock(opened.number, body.owner, kind, body.start, _end(body))
            found = yield from ask(request, abi.Conflict)
            if found.kind != "none":
                end = LAST if found.end is None else found.end
                return fuse_answers.pack_lock(found.start, end, _TYPES[found.kind], 0)
        return fuse_answers.pack_lock(body.start, body.end, fcntl.F_UNLCK, 0)

    def flush(self, _header: Header, body: fuse_abi.Flush) -> Steps:
        """A descriptor was closed: its process has no locks on the file any more."""
        if body.handle == STANDARD_INPUT_HANDLE:
            return b""
        opened = self._handles.file(body.handle)
        if not self._has_locked(opened, body.owner):
            return b""
        number = _number(opened)
        if self._is_asked(opened):
            yield from ask(abi.Lock(opened.number, body.owner, "none"), abi.Done)
        for each in self._handles.files_of(opened.node):
            each.locked.discard(body.owner)
        self._dropped(number, body.owner)
        return b""

    # -- with the last descriptor -------------------------------------------------------------------------------------

    def released(self, opened: OpenFile) -> None:
        """A private file was closed: what is left of its locks is its own."""
        for owner in opened.locked:
            self._dropped(_number(opened), owner)

    def release(self, opened: OpenFile) -> Steps:
        """The same for a client's file; until the client has closed it nobody of this enclave asks for its locks."""
        number = _number(opened)
        locks = self._files.setdefault(number, _FileLocks())
        locks.closing += 1
        try:
            yield from ask(abi.Close(opened.number), abi.Done)
        finally:
            locks.closing -= 1
            for owner in opened.locked:
                self._dropped(number, owner)
        return b""

    def _dropped(self, number: int, owner: int) -> None:
        locks = self._files.get(number)
        if locks is not None:
            locks.ranges.drop(owner)
            locks.flocks.drop(owner)
            self._given_back(number, locks)

    def _given_back(self, number: int, locks: _FileLocks) -> None:
        self._view.freed = True
        if not (len(locks.ranges) or len(locks.flocks) or locks.closing or locks.users):
            self._files.pop(number, None)

    # -- taking -----------------------------------------------------------------------------------------------------

    def _asked(self, body: fuse_abi.Lock) -> tuple[OpenFile, abi.LockKind]:
        opened = self._handles.file(body.handle)
        kind = _KINDS.get(body.type)
        if kind is None or not body.start <= body.end <= LAST:
            raise FileError(errno.EINVAL)
        return opened, kind

    def _set(self, body: fuse_abi.Lock, *, wait: bool) -> Steps:
        opened, kind = self._asked(body)
        number = _number(opened)
        locks = self._files.setdefault(number, _FileLocks())
        ranges = locks.of(flock=bool(body.flags & fuse_abi.LOCK_FLOCK))
        locks.users += 1
        try:
            while locks.closing:
                yield PARK
            if kind != "none":
                if sum(len(each.ranges) + len(each.flocks) for each in self._files.values()) >= abi.MAX_LOCKS:
                    raise FileError(errno.ENOLCK)
                yield from self._take(opened, ranges, body, kind, wait=wait)
                opened.locked.add(body.owner)
            elif self._is_asked(opened) and self._has_locked(opened, body.owner):
                yield from ask(_request(opened, body, kind, None), abi.Done)
            ranges.set(body.owner, kind, body.start, body.end, body.process)
        finally:
            locks.users -= 1
            self._given_back(number, locks)
        return b""

    def _is_asked(self, opened: OpenFile) -> bool:
        """Whether the client has the say: not where it keeps other programs' locks off for the enclave."""
        return opened.private is None and not self._cache.opening.holds(opened.number)

    def _has_locked(self, opened: OpenFile, owner: int) -> bool:
        return any(owner in each.locked for each in self._handles.files_of(opened.node))

    def _take(
        self, opened: OpenFile, ranges: LockRanges, body: fuse_abi.Lock, kind: abi.LockKind, *, wait: bool
    ) -> _Waits:
        wish = _Wish(ranges, body.owner, kind, body.start, body.end)
        if wait and not body.flags & fuse_abi.LOCK_FLOCK and self._is_circle(wish):
            raise FileError(errno.EDEADLK)
        self._waits += 1
        waiting = self._waits
        if wait:
            self._wishes[waiting] = wish
        try:
            if self._is_asked(opened):
                yield from ask(_request(opened, body, kind, waiting if wait else None), abi.Done)
                return
            while any(ranges.in_the_way(body.owner, kind, body.start, body.end)):
                if not wait:
                    raise FileError(errno.EAGAIN)
                yield PARK
        finally:
            self._wishes.pop(waiting, None)

    def _is_circle(self, wish: _Wish) -> bool:
        """Whether somebody in the way waits, or waits for somebody who waits, for the owner's own locks."""
        seen: set[int] = set()
        waiting = [wish]
        while waiting:
            for held in _in_the_way(waiting.pop()):
                if held.owner == wish.owner:
                    return True
                if held.owner not in seen:
                    seen.add(held.owner)
                    waiting += [each for each in self._wishes.values() if each.owner == held.owner]
        return False


def _in_the_way(wish: _Wish) -> list[Held]:
    return list(wish.ranges.in_the_way(wish.owner, wish.kind, wish.start, wish.end))


def _number(opened: OpenFile) -> int:
    """The file's inode number: the client's identity of it, or one of ours."""
    if opened.private is not None:
        return opened.private.number
    assert opened.node.attributes is not None
    return opened.node.attributes.identity


def _end(body: fuse_abi.Lock) -> int | None:
    return None if body.end == LAST else body.end


def _request(opened: OpenFile, body: fuse_abi.Lock, kind: abi.LockKind, wait: int | None) -> abi.Request:
    if body.flags & fuse_abi.LOCK_FLOCK:
        return abi.Flock(opened.number, body.owner, kind, wait)
    return abi.Lock(opened.number, body.owner, kind, body.start, _end(body), wait)
