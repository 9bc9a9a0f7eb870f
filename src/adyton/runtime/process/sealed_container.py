"""The container of an enclave's sealed files on this server's disk: a descriptor that its supervisor has from the start, and nobody else of its enclave.

Who starts the enclave opens and locks it, for the supervisor sees no file of the server's. The lock ends with the last descriptor.
"""

from __future__ import annotations

import fcntl
import os

from adyton.errors import PlatformError

_descriptor: int | None = None


def open_container(path: str) -> int | None:
    """Open it, in a folder that is made if need be; None: another enclave has it. PlatformError."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PlatformError(f"the server cannot open the container of sealed files: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def connect(descriptor: int | None) -> None:
    """Let this process, a new supervisor, have it; None: there is none."""
    global _descriptor  # noqa: PLW0603 - as there is one zygote
    _descriptor = descriptor


def taken() -> int | None:
    """What `connect` was given."""
    return _descriptor
