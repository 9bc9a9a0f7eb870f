"""A disk for sealed files that can be cut at any request, and then has any part of what was written since the last sync."""

from __future__ import annotations

import errno
import random

from adyton.errors import IntegrityError
from adyton.sealed_files.storage import Read, Recall, Remember, Request, Resize, Size, StorageError, Sync, Write

SECTOR = 512


class Keys:
    """Of one enclave; what is in no header that begins with `label` is another one's."""

    def __init__(self, key: bytes = bytes(range(32)), label: bytes = b"header") -> None:
        self._key = key
        self._label = label

    def new(self) -> tuple[bytes, bytes]:
        return self._label + b" of a key", self._key

    def key(self, header: bytes) -> bytes:
        if not header.startswith(self._label):
            raise IntegrityError("it is another enclave's")
        return self._key


class Cut(Exception):
    """The power went."""


class SimulatedDisk:
    """`data`: what is read; `durable`: what is left for sure. `left`: requests until the power goes. `fails`: kinds of requests that do.

    `remembered`: the note that somebody else has of the last commit, whatever becomes of the disk.
    """

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.durable = bytearray(data)
        self.left: int | None = None
        self.limit: int | None = None  # bytes that there is room for
        self.fails: set[type] = set()
        self.remembered = b""
        self.requests: list[Request] = []
        self._pending: list[tuple[int, bytes] | int] = []

    def serve(self, request: Request):
        if self.left is not None:
            if self.left == 0:
                raise Cut
            self.left -= 1
        self.requests.append(request)
        if type(request) in self.fails:
            raise StorageError(errno.EIO, "it fails")
        match request:
            case Size():
                return len(self.data)
            case Read(ranges):
                return [bytes(self.data[offset : offset + size]) for offset, size in ranges]
            case Write(parts):
                for offset, data in parts:
                    if self.limit is not None and offset + len(data) > self.limit:
                        raise StorageError(errno.ENOSPC, "it is full")
                    self._pending.append((offset, data))
                    put(self.data, offset, data)
            case Resize(size):
                self._pending.append(size)
                del self.data[size:]
            case Sync():
                self.durable = bytearray(self.data)
                self._pending.clear()
            case Recall():
                return self.remembered
            case Remember(known, note):
                if self.remembered not in (known, note):
                    raise StorageError(errno.ESTALE, "another one is remembered")
                self.remembered = note
        return None

    def crash(self, seed: int) -> SimulatedDisk:
        """What is there afterwards: some of what was not synced, in any order, sector by sector."""
        chance = random.Random(seed)
        kept = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        sectors: list[tuple[int, bytes] | int] = []
        for each in self._pending:
            if isinstance(each, int):
                sectors.append(each)
            else:
                offset, data = each
                sectors += [(offset + at, data[at : at + SECTOR]) for at in range(0, len(data), SECTOR)]
        sectors = [each for each in sectors if chance.random() < kept]
        if chance.random() < 0.5:
            chance.shuffle(sectors)
        after = SimulatedDisk(self.durable)
        for each in sectors:
            if isinstance(each, int):
                del after.data[each:]
            else:
                put(after.data, *each)
        after.durable = bytearray(after.data)
        after.remembered, after.limit = self.remembered, self.limit
        return after


def put(data: bytearray, offset: int, part: bytes) -> None:
    data.extend(bytes(max(0, offset - len(data))))
    data[offset : offset + len(part)] = part
