"""Who moves an enclave's sockets: a thread, or for a moment the one that brings a message. What is done with them is done under one lock.

A message is taken by the thread that brings it, if the thread of the sockets has nothing else to do: handing it over would cost more.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

Step = Callable[[], None]


class SocketThread:
    """See the module. Thread-safe; the thread begins with the first thing to do, as most enclaves have no sockets.

    `ready`: a socket that `selector` has, by its data, is ready for these events. `release`: close all sockets, at the end. `failed`: this
    program has a defect, and nothing is done any more. `ready` and `release` are called under the lock.
    """

    selector: selectors.BaseSelector  # once there was something to do

    def __init__(self, ready: Callable[[int, int], None], release: Step, failed: Callable[[Exception], None]) -> None:
        self._ready = ready
        self._release_all = release
        self._failed = failed
        self._inbox: deque[Step] = deque()
        self._awake = False  # or about to be: there are steps to take
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # of the inbox
        self._moving = threading.Lock()  # of the sockets; comes before the other
        self._released = False
        self.closed = False

    def do(self, step: Step) -> None:
        """Do it: here, or after what came before."""
        if not self._do_here(step):
            self.put(step)

    def _do_here(self, step: Step) -> bool:
        """Do it in this thread; False: not while the other is at work, or has steps that came before."""
        if not self._moving.acquire(blocking=False):
            return False
        try:
            with self._lock:
                if self._inbox or self._thread is None or self.closed:
                    return False
            step()
        except Exception as error:  # noqa: BLE001 - the enclave would wait for ever
            self.close()
            self._failed(error)
        finally:
            self._moving.release()
        return True

    def put(self, step: Step) -> None:
        """Have the thread do it, after what came before."""
        with self._lock:
            if self._released or (self.closed and self._thread is None):
                return
            asleep, self._awake = not self._awake, True
            self._inbox.append(step)
            if self._thread is None:
                self._start()
            if asleep:  # else it is on its way to what is there
                with suppress(BlockingIOError):
                    self._wake.send(b"x")

    def close(self) -> None:
        """Close all sockets, and end. Idempotent."""
        self.closed = True
        if self._thread is not None:
            self.put(lambda: None)

    def _start(self) -> None:  # under the lock of the inbox
        self.selector = selectors.DefaultSelector()
        self._woken, self._wake = socket.socketpair()
        for end in (self._woken, self._wake):
            end.setblocking(False)
        self.selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="adyton-sockets", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._move()
        except Exception as error:  # noqa: BLE001 - the enclave would wait for ever
            self.closed = True
            self._failed(error)
        finally:
            self._release()

    def _move(self) -> None:
        while not self.closed:
            for key, events in self.selector.select():
                if key.fileobj is self._woken:
                    with suppress(BlockingIOError):
                        self._woken.recv(4096)
                    self._take_steps()
                    continue
                with self._moving:
                    self._ready(key.data, events)

    def _take_steps(self) -> None:
        while not self.closed:
            with self._moving:
                with self._lock:
                    if not self._inbox:
                        return
                    step = self._inbox.popleft()
                    self._awake = bool(self._inbox)
                step()

    def _release(self) -> None:
        with self._moving:
            self._release_all()
            self.selector.close()
        with self._lock:
            self._released = True
            for end in (self._woken, self._wake):
                end.close()
