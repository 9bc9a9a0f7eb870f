"""Reading small files of a proc file system, whole and in one call: what they say belongs to one moment."""

from __future__ import annotations

import os

_SIZE = 1 << 14  # bytes; those that are read here have less than a half


def read(path: str) -> bytes:
    """OSError; ProcessLookupError if the process ended after the file was opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _SIZE)
    finally:
        os.close(descriptor)
