"""What is done with a duplicate of a guest's socket whose thread has gone meanwhile."""

from __future__ import annotations

import errno
import os

import pytest
from fake_kernel import raises

from adyton.runtime.process.supervisor.notifications import GoneError, Listener, Note

NOTE = Note(1, os.getpid(), 0, 0, (0,) * 6)


def test_it_is_closed() -> None:
    fetched, other = os.pipe()
    nobody = os.open(os.devnull, os.O_RDONLY)  # no listener: nobody waits
    listener = Listener(nobody, lambda _thread, _descriptor: fetched)
    with pytest.raises(GoneError):
        listener.fetch(NOTE, 3)
    with raises(errno.EBADF):
        os.fstat(fetched)
    for each in (other, nobody):
        os.close(each)


def test_a_thread_that_is_gone_waits_no_more() -> None:
    def fetch(_thread: int, _descriptor: int) -> int:
        raise ProcessLookupError(errno.ESRCH, "gone")

    nobody = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(GoneError):
        Listener(nobody, fetch).fetch(NOTE, 3)
    os.close(nobody)
