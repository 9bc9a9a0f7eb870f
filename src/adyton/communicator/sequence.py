"""Numbered items, handed on in the order of their numbers however they arrive. Sans-IO."""

from __future__ import annotations

from typing import Generic, TypeVar

from adyton.errors import RemoteProtocolError

T = TypeVar("T")


class Sequence(Generic[T]):
    """`limit`: how many may wait for those before them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._next = 0
        self._waiting: dict[int, T] = {}

    def arrived(self, number: int, item: T) -> list[T]:
        """What is due now. RemoteProtocolError for a number that was there already, or if too many wait."""
        if number < self._next or number in self._waiting or len(self._waiting) >= self._limit:
            raise RemoteProtocolError(
                f"the peer numbered a call {number}, after {self._next} others and {len(self._waiting)} ahead"
            )
        self._waiting[number] = item
        due = []
        while self._next in self._waiting:
            due.append(self._waiting.pop(self._next))
            self._next += 1
        return due
