"""Numbered items, handed on in the order of their numbers however they arrive. Sans-IO."""

from __future__ import annotations

from typing import Generic, TypeVar

from adyton.errors import RemoteProtocolError

T = TypeVar("T")


class Sequence(Generic[T]):
    """`limit`: how many may wait for those before them; `bytes_limit`: how many bytes they may have together."""

    def __init__(self, limit: int, bytes_limit: int) -> None:
        self._limit = limit
        self._bytes_limit = bytes_limit
        self._bytes = 0
        self._next = 0
        self._waiting: dict[int, tuple[T, int]] = {}

    def arrived(self, number: int, item: T, size: int = 0) -> list[T]:
        """What is due now; `size` in bytes. RemoteProtocolError for a number that was there already, or if too much waits."""
        if number < self._next or number in self._waiting or len(self._waiting) >= self._limit:
            raise RemoteProtocolError(
                f"the peer numbered a call {number}, after {self._next} others and {len(self._waiting)} ahead"
            )
        self._waiting[number] = item, size
        self._bytes += size
        due = []
        while self._next in self._waiting:
            found, length = self._waiting.pop(self._next)
            self._bytes -= length
            self._next += 1
            due.append(found)
        if self._bytes > self._bytes_limit:
            raise RemoteProtocolError(f"the peer numbered calls of {self._bytes} bytes ahead of one that has not come")
        return due
