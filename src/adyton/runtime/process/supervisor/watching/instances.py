"""inotify instances, without IO: watches by number, and the queue of events, as the kernel's.

An event is the bytes of a struct inotify_event: one is a packet that a program reads. Equal ones that follow each other
are one as long as they are unread; of too many, one event says that some are missing. Source: inotify(7), linux/inotify.h, fs/notify/inotify.
"""

from __future__ import annotations

import errno
import itertools
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import Generic, TypeVar


class Mask(IntFlag):
    """IN_…"""

    ACCESS = 0x1
    MODIFY = 0x2
    ATTRIB = 0x4
    CLOSE_WRITE = 0x8
    CLOSE_NOWRITE = 0x10
    OPEN = 0x20
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    UNMOUNT = 0x2000
    OVERFLOW = 0x4000
    IGNORED = 0x8000
    ONLYDIR = 0x01000000
    DONT_FOLLOW = 0x02000000
    EXCL_UNLINK = 0x04000000
    MASK_CREATE = 0x10000000
    MASK_ADD = 0x20000000
    ISDIR = 0x40000000
    ONESHOT = 0x80000000


_ALL = sum(Mask)
EVENTS = 0xFFF
_KEPT = EVENTS | Mask.EXCL_UNLINK | Mask.ONESHOT

_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name with its padding
_NOBODYS = -1  # the watch of an OVERFLOW
MAX_QUEUED = 16384  # events of one instance: /proc/sys/fs/inotify/max_queued_events
MAX_QUEUED_TOGETHER = 65536
MAX_WATCHES = 8192  # of an enclave: /proc/sys/fs/inotify/max_user_watches
MAX_INSTANCES = 128  # max_user_instances


def check_mask(mask: int) -> None:
    """OSError EINVAL."""
    if mask & ~_ALL or not mask & _ALL or (mask & Mask.MASK_ADD and mask & Mask.MASK_CREATE):
        raise OSError(errno.EINVAL, "no event of a file, or bits that there are not")


def pack(watch: int, mask: int, cookie: int, name: bytes) -> bytes:
    """A struct inotify_event; the name has at least one NUL behind it, and up to a multiple of the struct's size."""
    padded = name.ljust((len(name) // _EVENT.size + 1) * _EVENT.size, b"\0") if name else b""
    return _EVENT.pack(watch, mask, cookie, len(padded)) + padded


T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Watch(Generic[T]):
    """`mask`: what is told. `watched`: what it is of."""

    number: int
    instance: Instance[T]
    mask: int
    watched: T


class Budget:
    """What all instances of an enclave have together."""

    def __init__(self) -> None:
        self.queued = 0
        self.watches = 0


class Instance(Generic[T]):
    """See the module. `unread`: whether something that was taken off the queue has not been read by the program."""

    def __init__(self, budget: Budget, unread: Callable[[], bool] = lambda: False) -> None:
        self.watches: dict[int, Watch[T]] = {}
        self.queue: deque[bytes] = deque()
        self._numbers = itertools.count(1)
        self._budget = budget
        self._unread = unread
        self._last = b""
        self._overflowed = False

    # -- watches ------------------------------------------------------------------------------------------------------

    def add(self, watched: T, mask: int) -> Watch[T]:
        """A new watch. OSError ENOSPC."""
        if self._budget.watches >= MAX_WATCHES:
            raise OSError(errno.ENOSPC, "too many watches")
        self._budget.watches += 1
        number = next(self._numbers)
        watch = self.watches[number] = Watch(number, self, mask & _KEPT, watched)
        return watch

    @staticmethod
    def change(watch: Watch[T], mask: int) -> None:
        """The mask of a watch that is there already. OSError EEXIST."""
        if mask & Mask.MASK_CREATE:
            raise OSError(errno.EEXIST, "it is watched")
        watch.mask = mask & _KEPT | (watch.mask if mask & Mask.MASK_ADD else 0)

    def remove(self, watch: Watch[T]) -> None:
        """It is told that nothing more will be."""
        del self.watches[watch.number]
        self._budget.watches -= 1
        self._put(pack(watch.number, Mask.IGNORED, 0, b""))

    # -- events -------------------------------------------------------------------------------------------------------

    def tell(self, watch: Watch[T], mask: int, cookie: int = 0, name: bytes = b"") -> None:
        """Something happened to what is watched."""
        event = pack(watch.number, mask, cookie, name)
        if event != self._last or cookie or not (self.queue or self._unread()):
            self._put(event)

    def lost(self) -> None:
        """Something happened that is not known."""
        if not self._overflowed:
            self._overflowed = True
            self._append(pack(_NOBODYS, Mask.OVERFLOW, 0, b""))

    def _put(self, event: bytes) -> None:
        if len(self.queue) >= MAX_QUEUED or self._budget.queued >= MAX_QUEUED_TOGETHER:
            self.lost()
        else:
            self._append(event)

    def _append(self, event: bytes) -> None:
        self._last = event
        self.queue.append(event)
        self._budget.queued += 1

    def taken(self) -> None:
        """The first event of the queue is on its way to the program."""
        event = self.queue.popleft()
        self._budget.queued -= 1
        if _EVENT.unpack_from(event)[0] == _NOBODYS:
            self._overflowed = False

    def clear(self) -> None:
        """Nobody will read what is queued."""
        self._budget.queued -= len(self.queue)
        self.queue.clear()

    def close(self) -> None:
        """The program has no descriptor of it any more."""
        self.clear()
        self._budget.watches -= len(self.watches)
        self.watches.clear()
