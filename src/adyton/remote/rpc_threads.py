"""RPCs whose threads have ended before Python's exit kills them where they stand.

gRPC runs a stream on two daemon threads of its own: one takes the requests, one handles what happens. Both go on for a moment after the
RPC is over. If the exit kills one of them while it holds the RPC's lock, then the RPC's finaliser, which takes it, never returns, and
the process stays. So at exit we wait for those of RPCs that are over. Those of an RPC that nobody ended wait themselves, without a lock.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

EXIT_SECONDS = 2.0  # they need less than a millisecond, unless the machine is busy


class _Threads:
    """Those of one RPC, as far as they have shown themselves."""

    def __init__(self) -> None:
        self._seen: list[threading.Thread] = []
        self._over = threading.Event()

    def requests(self, outgoing: Iterator[Any]) -> Iterator[Any]:
        self._seen.append(threading.current_thread())
        yield from outgoing

    def begun(self, call: Any) -> None:
        self._call = weakref.ref(call)
        if not call.add_callback(self._on_end):  # over already
            self._over.set()

    def _on_end(self) -> None:
        """On the thread that handles events, which still has some to handle."""
        self._seen.append(threading.current_thread())
        self._over.set()

    @property
    def ended(self) -> bool:
        return self._over.is_set() and not any(thread.is_alive() for thread in self._seen)

    def wait(self, until: float) -> None:
        call = self._call()
        if call is not None and call.is_active():
            return  # nobody ended it
        self._over.wait(max(0.0, until - time.monotonic()))
        for thread in self._seen:
            thread.join(max(0.0, until - time.monotonic()))


_running: set[_Threads] = set()


def begin(stub: Any, outgoing: Iterator[Any], metadata: Any) -> Any:
    """`stub(outgoing, metadata=metadata)`, a call with a stream in each direction."""
    for each in list(_running):
        if each.ended:
            _running.discard(each)
    threads = _Threads()
    call = stub(threads.requests(outgoing), metadata=metadata)
    threads.begun(call)
    _running.add(threads)
    return call


@atexit.register
def _wait() -> None:
    until = time.monotonic() + EXIT_SECONDS
    for each in list(_running):
        each.wait(until)


os.register_at_fork(after_in_child=_running.clear)  # a fork has none of the threads


class ThreadEach(Executor):
    """Of a server: a thread for each RPC, which ends with it, and with the process: an application that closes nothing must still be able to exit."""

    def __init__(self, name: str) -> None:
        self._name = name

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Future[Any]:
        """See Executor."""
        future: Future[Any] = Future()

        def run() -> None:
            future.set_running_or_notify_cancel()
            try:
                future.set_result(function(*arguments, **keywords))
            except BaseException as error:  # noqa: BLE001 - the future's owner decides
                future.set_exception(error)

        threading.Thread(target=run, name=self._name, daemon=True).start()
        return future
