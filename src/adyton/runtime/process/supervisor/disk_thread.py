"""What sealed files ask of this server's disk, beside the loop: a disk may take longer than a client waits for a sign of life.

loop ──► do ──► thread, one after the other, in order ──► the loop finishes each Pending
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from adyton.runtime.process.supervisor.calls import OwnPending
from adyton.runtime.process.supervisor.loop import Callback, Loop
from adyton.runtime.process.supervisor.sealed_storage import Ended, tried


class DiskThread:
    """See the module. For one loop; the thread ends with its process."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[OwnPending, Callable[[], Any]]] = queue.SimpleQueue()
        self._ended: deque[tuple[OwnPending, Ended]] = deque()
        self._woken, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def start(self) -> None:
        """Begin the thread: before the process's filter is installed, which lets no more begin."""
        threading.Thread(target=self._run, name="adyton-disk", daemon=True).start()

    def attach(self, loop: Loop, then: Callback) -> None:
        """Finish in this loop what has been done, and call `then`."""

        def arrived() -> None:
            os.read(self._woken, 4096)
            while self._ended:
                pending, ended = self._ended.popleft()
                pending.finish(ended)
            then()

        loop.read(self._woken, arrived)

    def do(self, function: Callable[[], Any]) -> OwnPending:
        """Have the thread call it; what it waits for is sent `Ended`."""
        pending = OwnPending()
        self._asked.put((pending, function))
        return pending

    def _run(self) -> None:
        while True:
            pending, function = self._asked.get()
            self._ended.append((pending, tried(function)))
            with suppress(BlockingIOError):  # it is told already
                os.write(self._waker, b"\0")
