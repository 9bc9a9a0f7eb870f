"""Names that a crash of the machine does not take: a file is durable by fsync(2), its name only by one of the folder that it is in."""

from __future__ import annotations

import errno
import os


def sync_folder_of(path: str) -> None:
    """All names beside `path`, and its own. OSError."""
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_folder(folder)
    finally:
        os.close(folder)


def sync_folder(descriptor: int) -> None:
    """All names in an open folder. OSError; nothing where the file system knows no such thing (EINVAL, fsync(2))."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def make_folder(path: str) -> None:
    """A folder that nobody else can look into, and those above it, where they are not there. OSError."""
    _make(os.path.abspath(path), 0o700)


def _make(path: str, mode: int) -> None:
    if os.path.isdir(path):
        return
    _make(os.path.dirname(path), 0o777)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    sync_folder_of(path)
