"""Steps that must not be broken off between two of their lines. The main thread has signals, whose handlers may raise at any moment: another
thread takes its steps, one after the other. That costs nothing where it would have another one send anyway, see `GrpcTransport.wake`.
"""

from __future__ import annotations

import contextvars
import functools
import queue
import sys
import threading
from collections.abc import Callable

_steps: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
_threads: list[threading.Thread] = []  # one, or none yet


def _work() -> None:
    while True:
        step = _steps.get()
        try:
            step()
        except Exception:  # noqa: BLE001 - a defect, told as that of any thread; who waits for the next step must not wait for ever
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
        del step  # and what it holds


def take(step: Callable[[], None]) -> None:
    """Have a step taken, which raises nothing: at once, or, of the main thread's, in order and soon. That one must hold no lock that it takes."""
    if threading.current_thread() is not threading.main_thread():
        step()
        return
    _steps.put(step)
    if not (_threads and _threads[-1].is_alive()):  # or that was a parent process's
        thread = threading.Thread(target=_work, name="adyton-steps", daemon=True)
        _threads[:] = [thread]
        thread.start()


def take_and_wait(step: Callable[[], None]) -> None:
    """The same in the context here, and it has been taken, or will be if something is raised here; raises what the step does."""
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def noted() -> None:
        try:
            step()
        except BaseException as error:  # noqa: BLE001 - for who waits
            done.put(error)
        else:
            done.put(None)

    take(functools.partial(contextvars.copy_context().run, noted))
    error = done.get()
    if error is not None:
        raise error
