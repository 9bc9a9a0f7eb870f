"""Closing duplicates of the guest's files.

A guest can give a system call a file where a socket belongs, and its supervisor has a duplicate of it before it knows. To close that may
ask the file's server, as each close does (FUSE_FLUSH), and the server is this very process. So a thread of its own closes it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading


class Closer:
    """`start` it before the process's filter is installed, which lets no more threads begin, and covers this one too."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[int] = queue.SimpleQueue()

    def start(self) -> None:
        threading.Thread(target=self._run, name="adyton-closer", daemon=True).start()

    def close(self, descriptor: int) -> None:
        """Close it soon."""
        self._queue.put(descriptor)

    def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # what the file's server said
                os.close(self._queue.get())
