"""Locks that an enclave asks for are the client's kernel's: between its owners, and towards other programs here."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from executing import Client, furnished

from adyton.hostcall import abi
from adyton.hostcall.client import lock_calls

AGAIN = abi.Failed("EAGAIN")
OTHER = """
import fcntl, sys
file = open(sys.argv[1], "r+")
for line in sys.stdin:
    try:
        result = eval(line)
    except OSError as error:
        result = type(error).__name__
    print(result, flush=True)
"""


@pytest.fixture
def client(tmp_path):
    client = Client(furnished(tmp_path))
    (client.home / "write/file").write_bytes(b"0123456789")
    with client.executor:
        client.open("write/file", 1, access="read-write")
        yield client


@contextmanager
def other_program(client: Client) -> Iterator:
    """A program on the client that has the file open: what an expression gives there."""
    command = [sys.executable, "-c", OTHER, client.path("write/file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def evaluate(expression: str) -> str:
            process.stdin.write(expression + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        yield evaluate
        process.stdin.close()
        assert process.wait(60) == 0


def test_owners_stand_in_each_others_way_by_one_handle_as_by_two(client):
    client.open("write/file", 2, access="read-write")
    assert client(abi.Lock(1, 7, "write", 0, 4)) == abi.Done()
    assert client(abi.Lock(2, 7, "write", 2, 6)) == abi.Done(), "its own"
    for handle in (1, 2):
        assert client(abi.Lock(handle, 8, "read", 6, 6)) == AGAIN
        assert client(abi.GetLock(handle, 8, "read", 0, None)) == abi.Conflict("write", 0, 6)
    assert client(abi.GetLock(1, 7, "write", 0, None)) == abi.Conflict("none")
    assert client(abi.Lock(1, 8, "read", 7, 9)) == abi.Done()
    assert client(abi.Lock(1, 7, "none", 0, 4)) == abi.Done()
    assert client(abi.Lock(1, 8, "write", 0, 4)) == abi.Done()
    assert client.executor.counts["fcntl"] == 10


def test_other_programs_meet_them(client):
    with other_program(client) as other:
        assert client(abi.Lock(1, 7, "write", 2, 3)) == abi.Done()
        assert other("fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 4)") == "BlockingIOError"
        assert other("fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 2)") == "None"
        assert client(abi.Lock(1, 7, "read", 0, 0)) == AGAIN
        assert client(abi.GetLock(1, 7, "read", 0, None)) == abi.Conflict("write", 0, 1)
        assert client(abi.Flock(1, 9, "read")) == abi.Done()
        assert other("fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)") == "BlockingIOError"
        assert other("fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)") == "None"
        assert client(abi.Flock(1, 9, "write")) == AGAIN


@pytest.mark.parametrize("end", ["unlock", "close the handle", "close the executor"])
def test_they_end_with_what_they_were_taken_by(client, end):
    assert client(abi.Lock(1, 7, "write")) == client(abi.Flock(1, 9, "write")) == abi.Done()
    with other_program(client) as other:
        if end == "unlock":
            client(abi.Lock(1, 7, "none"))
            client(abi.Flock(1, 9, "none"))
        elif end == "close the handle":
            client(abi.Close(1))
        else:
            client.executor.close()
        assert other("fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)") == "None"
        assert other("fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)") == "None"


def test_one_owner_may_have_locks_of_both_kinds(client):
    """An open file with OFD locks and a flock is one owner."""
    with other_program(client) as other:
        assert client(abi.Lock(1, 7, "write")) == client(abi.Flock(1, 7, "write")) == abi.Done()
        assert client(abi.Flock(1, 7, "none")) == abi.Done()
        assert other("fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)") == "BlockingIOError"
        assert client(abi.Flock(1, 7, "write")) == client(abi.Lock(1, 7, "none", 0, 5)) == abi.Done()
        assert client(abi.Lock(1, 7, "none")) == abi.Done()
        assert other("fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)") == "BlockingIOError"
        assert other("fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)") == "None"
    assert client(abi.Flock(1, 7, "none")) == abi.Done()
    assert not client.executor._locks._descriptions


def test_a_handle_that_is_closed_during_a_wait_gets_no_lock(client):
    client.open("write/file", 2, access="read-write")
    assert client(abi.Lock(2, 7, "write")) == abi.Done()
    thread, results = waiting(client, abi.Lock(1, 8, "write", wait=5))
    while not client.executor._locks._waits:
        time.sleep(0.001)
    assert client(abi.Close(1)) == client(abi.Close(2)) == abi.Done()
    thread.join(60)
    assert results == [abi.Failed("EBADF")]


def waiting(client: Client, request: abi.Request) -> tuple[threading.Thread, list[abi.Result]]:
    results: list[abi.Result] = []
    thread = threading.Thread(target=lambda: results.append(client(request)))
    thread.start()
    return thread, results


@pytest.mark.parametrize("request_", [abi.Lock(1, 8, "read", 0, 1, wait=5), abi.Flock(1, 8, "read", wait=5)])
def test_a_wait_ends_when_the_lock_is_given_back(client, request_):
    kind = type(request_)
    assert client(kind(1, 7, "write")) == abi.Done()
    thread, results = waiting(client, request_)
    while not client.executor._locks._waits:
        time.sleep(0.001)
    assert client(kind(1, 7, "none")) == abi.Done()
    thread.join(60)
    assert results == [abi.Done()]
    assert client(kind(1, 7, "write")) == AGAIN


def test_a_wait_for_another_program_ends_when_that_ends(client):
    with other_program(client) as other:
        assert other("fcntl.lockf(file, fcntl.LOCK_EX)") == "None"
        thread, results = waiting(client, abi.Lock(1, 7, "write", wait=1))
    thread.join(60)
    assert results == [abi.Done()]


@pytest.mark.parametrize("end", ["stop", "stopped before it began", "close"])
def test_a_wait_can_be_stopped(client, end):
    assert client(abi.Lock(1, 7, "write")) == abi.Done()
    if end == "stopped before it began":
        assert client(abi.StopWaiting(5)) == abi.Done()
    thread, results = waiting(client, abi.Lock(1, 8, "write", wait=5))
    if end == "stop":
        assert client(abi.StopWaiting(5)) == abi.Done()
    elif end == "close":
        client.executor.close()
    thread.join(60)
    assert results[0] in (abi.Failed("EINTR"), abi.Failed("EIO"))


def test_how_many_wait_is_bounded(client, monkeypatch):
    monkeypatch.setattr(abi, "MAX_LOCK_WAITS", 1)
    assert client(abi.Lock(1, 7, "write")) == abi.Done()
    thread, results = waiting(client, abi.Lock(1, 8, "write", wait=5))
    while not client.executor._locks._waits:
        time.sleep(0.001)
    assert client(abi.Lock(1, 9, "write", wait=5)) == abi.Failed("EINVAL")
    assert client(abi.Lock(1, 9, "write", wait=6)) == abi.Failed("ENOLCK")
    assert client(abi.StopWaiting(5)) == abi.Done()
    thread.join(60)
    assert results == [abi.Failed("EINTR")]


def test_stops_of_nothing_do_not_pile_up(client):
    for number in range(3000):
        client(abi.StopWaiting(number))
    assert len(client.executor._locks._stopped) == lock_calls._REMEMBERED


def test_what_no_kernel_takes_is_invalid(client):
    assert client(abi.Lock(1, 7, "write", 5, 4)) == client(abi.GetLock(1, 7, "write", 5, 4)) == abi.Failed("EINVAL")
    assert client(abi.Lock(2, 7, "write")) == client(abi.Flock(2, 7, "write")) == abi.Failed("EBADF")
    largest = (1 << 63) - 1
    assert client(abi.Lock(1, 7, "write", 0, largest)) == client(abi.Lock(1, 7, "read", largest)) == abi.Done()
    client.open("read/file", 2)
    assert client(abi.Lock(2, 7, "write")) == abi.Failed("EBADF")
    assert client(abi.Lock(2, 7, "read")) == abi.Done()


def test_how_much_is_locked_is_bounded(client, monkeypatch):
    monkeypatch.setattr(abi, "MAX_LOCKS", 3)
    assert client(abi.Flock(1, 9, "read")) == abi.Done()
    for start in (0, 10):
        assert client(abi.Lock(1, 7, "write", start, start)) == abi.Done()
    assert client(abi.Lock(1, 7, "write", 20, 20)) == client(abi.Flock(1, 8, "read")) == abi.Failed("ENOLCK")
    assert client(abi.Lock(1, 7, "none", 0, 10)) == abi.Done()
    assert client(abi.Lock(1, 7, "write", 20, 20)) == abi.Done()
