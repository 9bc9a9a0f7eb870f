"""Descriptors of a guest: sockets are had, and files never where they would have to be closed by who serves them."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from enclave_sockets import EVERYWHERE, PATIENCE, enclave
from fake_kernel import raises
from sandbox import children, wait_until_ended

from adyton.config import Policy
from adyton.errors import AdytonError, ConnectionLostError, PlatformError, RemoteProtocolError
from adyton.runtime.process.supervisor import fetching
from adyton.runtime.process.supervisor.fetching import Fetcher, NotSocketError
from adyton.runtime.process.supervisor.links import Links
from adyton.runtime.process.supervisor.looks import looks


@pytest.fixture
def fetcher():
    made = Fetcher(os.getpid())
    made.start()
    yield made
    made.close()


def test_a_socket_is_had(fetcher):
    one, other = socket.socketpair()
    with one, other, socket.socket(fileno=fetcher.fetch(os.getpid(), one.fileno())) as found:
        assert os.fstat(found.fileno()).st_ino == os.fstat(one.fileno()).st_ino
        assert not os.get_inheritable(found.fileno())
        one.close()
        found.send(b"x")
        assert other.recv(2) == b"x"


def test_a_socket_has_no_copies_that_are_left(fetcher):
    one, other = socket.socketpair()
    for _ in range(3):
        os.close(fetcher.fetch(threading.get_native_id(), one.fileno()))
    one.close()
    other.settimeout(PATIENCE)
    assert other.recv(1) == b""
    other.close()


def test_what_is_no_socket_is_said(fetcher):
    reads, writes = os.pipe()
    with pytest.raises(NotSocketError):
        fetcher.fetch(os.getpid(), reads)
    os.close(reads)
    with raises(errno.EBADF):
        fetcher.fetch(os.getpid(), reads)
    with raises(errno.ESRCH):
        fetcher.fetch(1 << 22, 0)  # no number is as high
    while not hung_up(writes):  # in a moment nobody has the other end
        time.sleep(0.001)
    os.close(writes)


def hung_up(pipe: int) -> bool:
    poller = select.poll()
    poller.register(pipe, 0)
    return bool(poller.poll(0))


def test_a_file_that_was_fetched_at_once_is_a_breach(fetcher, monkeypatch):
    one, other = socket.socketpair()
    with one, other:
        os.close(fetcher.fetch_at_once(os.getpid(), one.fileno()))
    reads, writes = os.pipe()
    monkeypatch.setattr(fetcher, "_fetched", lambda _thread, descriptor: descriptor)
    with pytest.raises(RemoteProtocolError, match=f"descriptor {reads} "):
        fetcher.fetch_at_once(os.getpid(), reads)
    for each in (reads, writes):
        os.close(each)  # it was not: that might have to be waited for


def test_without_a_table_of_its_own_it_does_not_begin(monkeypatch):
    def keep_only(_descriptors):
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(fetching, "keep_only", keep_only)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    fetcher = Fetcher(os.getpid())
    with pytest.raises(PlatformError, match="table of descriptors"):
        fetcher.start()
    fetcher.close()


PROGRAM = """
file = os.open(path, os.O_RDWR)
listener = socket.create_server(("127.0.0.1", 0))
there = listener.getsockname()
kept = os.dup(listener.fileno())

def accept():
    try:
        listener.accept()
    except OSError:  # there is a file
        pass

threading.Thread(target=accept, daemon=True).start()
time.sleep(0.3)  # so it waits, and what it waits for is not looked at before it is fetched again
os.dup2(file, listener.fileno(), inheritable=False)
os.pwrite(file, b"written", 0)  # what a close of it waits for
connection = socket.create_connection(there)
time.sleep(60)  # no file is waited for but by that close
"""


@pytest.mark.sandbox
def test_a_supervisor_killed_while_it_closes_a_file_that_it_serves_ends_with_all_of_its_enclave(tmp_path, monkeypatch):
    (tmp_path / "client").mkdir()
    path = tmp_path / "client/file"
    path.write_bytes(b"x")
    policy = Policy.parse(f'[[mount]]\npath = "{path.parent}"\ncoherence = "close-to-open"\n', name="test", base="/")
    asked, answer = threading.Event(), threading.Event()
    monkeypatch.setattr(os, "pwrite", lambda *_: asked.set() or answer.wait(PATIENCE))  # the client's
    with (
        suppress(AdytonError),
        enclave(tmp_path, policy=policy, allow_write=[str(path)], **EVERYWHERE) as at_work,
    ):  # at its end there is no enclave any more
        try:
            at_work.start(PROGRAM, path=str(path))
            assert asked.wait(PATIENCE)
            (supervisor,) = [each for each in children(os.getpid()) if name_of(each) == "adyton-super"]
            processes = {supervisor, *children(supervisor)}
            if os.geteuid() == 0:  # others are not told
                wait_until_it_closes(supervisor)
            os.kill(supervisor, signal.SIGKILL)
            assert wait_until_ended(processes) == set()
        finally:
            answer.set()


@pytest.mark.sandbox
def test_an_enclave_that_gives_a_file_for_datagrams_ends_with_the_reason(tmp_path):
    (tmp_path / "client").mkdir()
    path = tmp_path / "client/file"
    path.write_bytes(b"x")
    code = """
    with open(path, "r+b") as file:
        os.dup2(file.fileno(), 900)
    import ctypes
    ctypes.CDLL(None).recv(900, ctypes.create_string_buffer(10), 10, 0)
    """
    lost = pytest.raises(ConnectionLostError, match="descriptor 900")
    with suppress(AdytonError), enclave(tmp_path, allow_write=[str(path)]) as at_work, lost:
        at_work.run(code, path=str(path))


def wait_until_it_closes(supervisor: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while "request_wait_answer" not in waits_of(supervisor):
        assert time.monotonic() < deadline, "it closes nothing"
        time.sleep(0.01)


def waits_of(process: int) -> set[str]:
    """What the kernel's functions are called in which its threads wait."""
    return {(thread / "wchan").read_text() for thread in Path(f"/proc/{process}/task").iterdir()}


def name_of(process: int) -> str:
    with open(f"/proc/{process}/comm") as file:
        return file.read().strip()


def test_the_alarm_is_set_meanwhile(fetcher, monkeypatch):
    """By it somebody attends to a fetch that does not end, as one of a process that is in the middle of an execve; see `rescue`."""
    left = []
    monkeypatch.setattr(looks, "alarm_after", PATIENCE)

    def fetched(*_):
        left.append(signal.getitimer(signal.ITIMER_REAL)[0])
        raise OSError(errno.EBADF, "nothing")

    monkeypatch.setattr(fetcher, "_fetched", fetched)
    for fetch in (fetcher.fetch, fetcher.fetch_at_once, lambda *at: fetcher.fetch_of_waiting(*at, lambda: None)):
        with raises(errno.EBADF):
            fetch(os.getpid(), 0)
        assert 0 < left.pop() <= PATIENCE


def test_what_waits_is_looked_at_before_it_is_fetched(fetcher, monkeypatch):
    found = Fetcher(os.getpid(), Links(lambda thread: thread, "/proc"))
    found.start()
    one, other = socket.socketpair()
    with one, other, open(os.devnull) as file:
        os.close(found.fetch_of_waiting(os.getpid(), one.fileno(), lambda: None))
        monkeypatch.setattr(found, "_fetched", None)  # nothing is fetched, so that nothing has to be closed
        with pytest.raises(NotSocketError):
            found.fetch_of_waiting(os.getpid(), file.fileno(), lambda: None)
    found.close()
    os.close(fetcher.fetch_of_waiting(os.getpid(), fetcher._asks.fileno(), lambda: None))  # who cannot look, asks


def test_too_many_descriptors_under_way_stop_a_fetch_and_no_other(fetcher, monkeypatch):
    def send_fds(*_):
        raise OSError(errno.ETOOMANYREFS, "too many")

    one, other = socket.socketpair()
    with one, other:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "send_fds", send_fds)
            with raises(errno.ETOOMANYREFS):
                fetcher.fetch(os.getpid(), one.fileno())
        os.close(fetcher.fetch(os.getpid(), one.fileno()))
