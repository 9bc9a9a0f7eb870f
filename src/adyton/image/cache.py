"""The cache of this user: images of single files, layers of dependencies, locks of single files; each folder with a bound of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from adyton.errors import UsageError

LEFT_SECONDS = 24 * 3600.0
MAX_CACHE = 4 << 30  # bytes that each of the folders keeps


def cache_folder(name: str) -> Path:
    """A folder of the cache, which is made if need be; UsageError."""
    from platformdirs import user_cache_path

    folder = user_cache_path("adyton") / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the cache {folder} cannot be made: {error.strerror}. Set XDG_CACHE_HOME to a folder of yours"
        ) from error
    return folder


def make_room(folder: Path, size: int) -> None:
    """Let the files go that were not used for longest, until there is room for another one of so many bytes.

    A folder in there is somebody's workplace; one that is old has been left by a process that was killed.
    """
    files = []
    for each in folder.iterdir():
        with contextlib.suppress(OSError):  # another process removes them, too
            found = each.stat()
            if each.is_file():
                files.append((max(found.st_atime_ns, found.st_mtime_ns), found.st_size, each))
            elif found.st_mtime < time.time() - LEFT_SECONDS:
                shutil.rmtree(each, ignore_errors=True)
    excess = sum(each[1] for each in files) + size - MAX_CACHE
    for _, length, path in sorted(files):
        if excess <= 0:
            return
        excess -= length
        with contextlib.suppress(OSError):
            path.unlink()


def used(path: Path) -> None:
    """A file of the cache is being used now."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
