"""Duplicates of a guest's sockets: which way they are had, and what is done with one whose thread has gone meanwhile."""

from __future__ import annotations

import errno
import os

import pytest
from fake_kernel import raises

from adyton.runtime.process.supervisor.notifications import GoneError, Listener, Note
from adyton.runtime.process.table import DATAGRAM_DESCRIPTORS, number


class Fetching:
    """Gives a descriptor, or fails; `ways`: in which way it was asked."""

    def __init__(self, found: int | OSError) -> None:
        self.found = found
        self.ways: list[str] = []

    def fetch(self, _thread: int, _descriptor: int) -> int:
        return self._give("by the thread")

    def fetch_at_once(self, _thread: int, _descriptor: int) -> int:
        return self._give("at once")

    def fetch_of_waiting(self, _thread: int, _descriptor: int, _check: object) -> int:
        return self._give("after a look")

    def _give(self, way: str) -> int:
        self.ways.append(way)
        if isinstance(self.found, OSError):
            raise self.found
        return self.found


@pytest.fixture
def nobody():
    """No listener: nobody waits."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def note(call: str) -> Note:
    return Note(1, os.getpid(), number(call), 0, (0,) * 6)


def test_it_is_closed(nobody: int) -> None:
    fetched, other = os.pipe()
    with pytest.raises(GoneError):
        Listener(nobody, Fetching(fetched)).fetch(note("connect"), 3)
    with raises(errno.EBADF):
        os.fstat(fetched)
    os.close(other)


def test_a_thread_that_is_gone_waits_no_more(nobody: int) -> None:
    with pytest.raises(GoneError):
        Listener(nobody, Fetching(ProcessLookupError(errno.ESRCH, "gone"))).fetch(note("connect"), 3)


def test_who_has_waited_and_is_gone_is_not_asked(nobody: int) -> None:
    """Another may have its number, that cannot be asked: in the middle of an execve."""
    fetching = Fetching(OSError(errno.EBADF, "nothing"))
    with pytest.raises(GoneError):
        Listener(nobody, fetching).fetch(note("accept"), 3, later=True)
    assert not fetching.ways


@pytest.mark.parametrize(
    ("call", "descriptor", "way"),
    [
        ("recvfrom", DATAGRAM_DESCRIPTORS[0], "at once"),
        ("recvfrom", DATAGRAM_DESCRIPTORS[0] - 1, "after a look"),
        ("sendmmsg", DATAGRAM_DESCRIPTORS[-1], "at once"),
        ("fcntl", DATAGRAM_DESCRIPTORS[0], "after a look"),
        ("getsockopt", DATAGRAM_DESCRIPTORS[0], "after a look"),
    ],
)
def test_what_each_datagram_needs_is_had_at_once(nobody: int, call: str, descriptor: int, way: str) -> None:
    fetching = Fetching(OSError(errno.EBADF, "nothing"))
    with raises(errno.EBADF):
        Listener(nobody, fetching).fetch(note(call), descriptor)
    assert fetching.ways == [way]
