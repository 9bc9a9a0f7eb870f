"""The guest's open files and directories, by the number that the kernel, and for its own files the client, knows them by."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from adyton.hostcall import abi
from adyton.runtime.process.supervisor.fuse_abi import FileError
from adyton.runtime.process.supervisor.private import File
from adyton.runtime.process.supervisor.tree import Node
from adyton.runtime.process.supervisor.view import ask

STANDARD_INPUT_HANDLE = 0  # of the one file that is not in the table


@dataclass(slots=True)
class OpenFile:
    """`private`: the private file that it is, else it is open on the client. `append`: the client appends whatever the offset.

    `locked`: the owners that took locks through it.
    """

    number: int
    node: Node
    access: abi.OpenMode
    append: bool = False
    private: File | None = None
    positional: int | None = None  # one more handle on the client, of an appending one: for writes that have a place
    locked: set[int] = field(default_factory=set)


@dataclass(slots=True)
class OpenDirectory:
    """A listing as far as it has been got. `names`: what is listed, with inode number and type bits; `seen`: the same, as a set.

    `cookie`: where the client's listing goes on; None: it is complete. `fresh`: nothing of it was read by the guest. `state`: what the
    cache knew of the directory when it began (Cache.state_of_names).
    """

    number: int
    node: Node
    names: list[tuple[str, int, int]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    cookie: int | None = None
    fresh: bool = True
    state: object = None


_R = TypeVar("_R")
_H = TypeVar("_H", OpenFile, OpenDirectory)


class Handles:
    """At most abi.HANDLE_LIMIT at a time (ENFILE)."""

    def __init__(self) -> None:
        self._open: dict[int, OpenFile | OpenDirectory] = {}
        self._reserved: set[int] = set()
        self._next = 0

    def __len__(self) -> int:
        return len(self._open) + len(self._reserved)

    def reserve(self) -> int:
        """A number for what is about to be opened; ENFILE."""
        if len(self) >= abi.HANDLE_LIMIT:
            raise FileError(errno.ENFILE)
        while True:
            self._next = (self._next + 1) % (1 << 32)
            if (
                self._next != STANDARD_INPUT_HANDLE
                and self._next not in self._open
                and self._next not in self._reserved
            ):
                self._reserved.add(self._next)
                return self._next

    def release(self, number: int) -> None:
        """A reserved number is not in use any more."""
        self._reserved.discard(number)

    def add(self, opened: OpenFile | OpenDirectory) -> None:
        """What was reserved is open."""
        self._reserved.discard(opened.number)
        self._open[opened.number] = opened
        opened.node.handles.add(opened.number)

    def file(self, number: int) -> OpenFile:
        """EBADF."""
        return self._get(number, OpenFile)

    def directory(self, number: int) -> OpenDirectory:
        """EBADF."""
        return self._get(number, OpenDirectory)

    def _get(self, number: int, kind: type[_H]) -> _H:
        found = self._open.get(number)
        if not isinstance(found, kind):
            raise FileError(errno.EBADF)
        return found

    def remove(self, opened: OpenFile | OpenDirectory) -> None:
        """It is closed."""
        del self._open[opened.number]
        opened.node.handles.discard(opened.number)

    def files_of(self, node: Node) -> Iterator[OpenFile]:
        """What is open of the node's file."""
        for number in node.handles:
            opened = self._open[number]
            if isinstance(opened, OpenFile):
                yield opened

    def on_client(self, node: Node, *, writable: bool = False) -> int | None:
        """A handle that the client has of the node's file; None if there is none."""
        for opened in self.files_of(node):
            if opened.private is None and not (writable and opened.access == "read"):
                return opened.number
        return None

    def ask_open(
        self, node: Node, request: Callable[[int], abi.Request], expected: type[_R], *, writable: bool = False
    ) -> Generator[abi.Request, abi.Result, _R | None]:
        """What the client says by a handle that it has of the node's file; None if it has none.

        Another process of the guest may close it meanwhile, and the client may see to that first: then by another one.
        """
        while (handle := self.on_client(node, writable=writable)) is not None:
            try:
                return (yield from ask(request(handle), expected))
            except FileError as error:
                if error.number != errno.EBADF or handle in node.handles:
                    raise
        return None
