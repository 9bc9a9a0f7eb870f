"""The guest's standard input: a file that the kernel reads without cache or position, each read answered by the client. Sans-IO.

Nothing is read ahead: the client is asked when a read waits, for no more than that read wants, and one read at a time. A read that a
signal interrupts does not take back what the client was asked for: the next read gets it.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import NamedTuple

from adyton.hostcall import abi


class Answered(NamedTuple):
    """A read's end: an errno (0: none), and what it gets."""

    unique: int
    errno: int
    data: bytes


class StandardInput:
    """See the module. Without `open` it is at its end.

    `unique`: the kernel's number of a read. `wanted` is what the client is to be asked for next, if anything: the caller asks, and
    hands the result to `receive`.
    """

    def __init__(self) -> None:
        self._open = False
        self._kept = b""
        self._asked = False
        self._waiting: deque[tuple[int, int]] = deque()

    def open(self) -> None:
        """The client has a standard input for the guest."""
        self._open = True

    def read(self, unique: int, size: int) -> list[Answered]:
        """The kernel's read of at most `size` bytes."""
        if not self._open or not size:
            return [Answered(unique, 0, b"")]
        self._waiting.append((unique, size))
        return self._serve()

    @property
    def is_waited_for(self) -> bool:
        """Whether a read of the kernel's has no answer."""
        return bool(self._waiting)

    def wanted(self) -> abi.ReadInput | None:
        """What to ask the client for now; it counts as asked."""
        if self._asked or not self._waiting:
            return None
        self._asked = True
        return abi.ReadInput(min(self._waiting[0][1], abi.MAX_BLOCK))

    def receive(self, result: abi.Result, number: int) -> list[Answered]:
        """The client's answer; `number`: the errno of a failure. The end is one read's: a terminal's input goes on after it."""
        self._asked = False
        if isinstance(result, abi.Data) and result.data:
            self._kept = result.data
            return self._serve()
        if not self._waiting:
            return []
        unique, _ = self._waiting.popleft()
        return [Answered(unique, 0 if isinstance(result, abi.Data) else number, b"")]

    def interrupt(self, unique: int) -> list[Answered]:
        """A signal came for the thread that reads."""
        return self._give_up(unique, errno.EINTR)

    def abort(self) -> list[Answered]:
        """Nobody will answer any more."""
        return [each for unique, _ in list(self._waiting) for each in self._give_up(unique, errno.EIO)]

    def _give_up(self, unique: int, number: int) -> list[Answered]:
        for each in self._waiting:
            if each[0] == unique:
                self._waiting.remove(each)
                return [Answered(unique, number, b"")]
        return []

    def _serve(self) -> list[Answered]:
        answers = []
        while self._waiting and self._kept:
            unique, size = self._waiting.popleft()
            answers.append(Answered(unique, 0, self._kept[:size]))
            self._kept = self._kept[size:]
        return answers
