"""What a store asks of the disk that holds its container: one file that is read and written at offsets.

What is asked is a generator's to yield; `Steps` of it are sent the result, or thrown a StorageError. Whoever carries it out may be hostile, so
what it says is checked by the generator, but for its type. What is remembered of a store is asked of another party than the disk's, if there is one.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Size:
    """How many bytes the container has, 0 if it is not there: an int."""


@dataclass(frozen=True, slots=True)
class Read:
    """What is at each (offset, size): as many bytes, fewer only at the end of the container: a list of bytes."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Write:
    """(offset, data): put there, in any order, and not durable yet: None."""

    parts: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class Resize:
    """Cut the container to so many bytes: None."""

    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """All that was written before is durable when it is answered: None."""


@dataclass(frozen=True, slots=True)
class Release:
    """The container may be another enclave's from now on, and nothing more is asked: None."""


@dataclass(frozen=True, slots=True)
class Recall:
    """What is remembered of the store of that name (see `memory`): its note; or b"", nothing. `store`: b"" of an empty container, whose store nobody knows."""

    store: bytes


@dataclass(frozen=True, slots=True)
class Remember:
    """Remember `note` in the place of `known`: None when it is durable. StorageError, ESTALE: by now another one is remembered than either."""

    known: bytes
    note: bytes


Request = Size | Read | Write | Resize | Sync | Release | Recall | Remember
Steps = Generator[Request, Any, _R]


class StorageError(Exception):
    """The disk did not do it, or there is no room for it. `number`: an errno."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class Storage(Protocol):
    """What carries requests out one by one. StorageError."""

    def serve(self, request: Request) -> Any:
        """The result of the request, see there."""
        ...


def run(steps: Steps[_R], storage: Storage) -> _R:
    """Carry out all that `steps` ask for; their result."""
    try:
        request = next(steps)
        while True:
            try:
                result = storage.serve(request)
            except StorageError as error:
                request = steps.throw(error)
            else:
                request = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
