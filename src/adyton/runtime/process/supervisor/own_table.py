"""A table of descriptors of a thread's own, without /dev/fuse.

A thread that waits for what this process is to serve cannot be ended: not by SIGKILL, as long as somebody has that device. The others end, and
close it, if it is theirs alone; then what the thread waits for fails.
"""

from __future__ import annotations

import threading
from collections.abc import Collection

from adyton.errors import PlatformError
from adyton.runtime.process.libc import system_call

_UNSHARE_FILES = 0x400  # CLONE_FILES, linux/sched.h
_LAST_DESCRIPTOR = 0xFFFFFFFF


def keep_only(descriptors: Collection[int]) -> None:
    """Have a table with those alone, for this thread and those that it begins."""
    system_call("unshare", _UNSHARE_FILES)
    kept = sorted(descriptors)
    for first, last in zip(
        [0, *(each + 1 for each in kept)], [*(each - 1 for each in kept), _LAST_DESCRIPTOR], strict=True
    ):
        if first <= last:
            system_call("close_range", first, last, 0)


class Apart:
    """Whether a thread has a table of its own: it says so, or ends, and who began it waits for that."""

    def __init__(self, what: str) -> None:
        """`what` cannot be had without it."""
        self._what = what
        self._told = threading.Event()
        self._is = False

    def tell(self, *, apart: bool) -> None:
        self._is = apart
        self._told.set()

    def wait(self) -> None:
        """PlatformError."""
        self._told.wait()
        if not self._is:
            raise PlatformError(f"{self._what}: its thread has no table of descriptors of its own")
