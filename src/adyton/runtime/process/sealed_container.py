"""What this server's disk has of an enclave's sealed files: descriptors that its supervisor has from the start, and nobody else of its enclave.

    container    the files themselves, of one enclave at a time
    remembered   what is remembered of containers that lie on clients' disks (supervisor.sealed_memory), of all enclaves of that owner

Who starts the enclave opens them, and locks the container, for the supervisor sees no file of the server's. That lock ends with the last descriptor.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from adyton.durable import make_folder, sync_folder_of
from adyton.errors import PlatformError

SealedFile = Literal["container", "memory"]

_taken: tuple[int | None, int | None] = (None, None)


@contextmanager
def sealed_place(folder: str) -> Iterator[dict[SealedFile, int]]:
    """The descriptors, while an enclave is started, of what is in a folder, which is made if need be; no container where another enclave has it; "": nothing. PlatformError."""
    found: dict[SealedFile, int] = {}
    try:
        if folder:
            _open_all(folder, found)
        yield found
    finally:
        for descriptor in found.values():
            os.close(descriptor)


def _open_all(folder: str, found: dict[SealedFile, int]) -> None:
    try:
        make_folder(folder)
        found["memory"] = _open(os.path.join(folder, "remembered"))
        found["container"] = _open(os.path.join(folder, "container"))
        if not all(os.fstat(descriptor).st_size for descriptor in found.values()):
            sync_folder_of(os.path.join(folder, "container"))
        if not _lock(found["container"]):
            os.close(found.pop("container"))
    except OSError as error:
        raise PlatformError(f"the server cannot open its place for sealed files: {error.strerror}") from error


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def connect(container: int | None, memory: int | None) -> None:
    """Let this process, a new supervisor, have them; None: there is none."""
    global _taken  # noqa: PLW0603 - as there is one zygote
    _taken = container, memory


def taken() -> tuple[int | None, int | None]:
    """What `connect` was given."""
    return _taken
