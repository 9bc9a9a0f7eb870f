"""What is under a descriptor's number, looked at from beside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest
from descriptors import held, nothing_more_than

from adyton.runtime.process.supervisor import links
from adyton.runtime.process.supervisor.links import Links


def nothing() -> None:
    """It still waits."""


def test_a_socket_is_told_from_what_else_there_is() -> None:
    looks, me = Links(lambda thread: thread, "/proc"), os.getpid()
    with socket.socket() as sock, open(os.devnull) as file:
        for _ in range(2):
            assert looks.is_socket(me, sock.fileno(), nothing) is True
            assert looks.is_socket(me, file.fileno(), nothing) is False
            assert looks.is_socket(threading.get_native_id(), sock.fileno(), nothing) is True
            assert looks.is_socket(me, 1 << 20, nothing) is None


def test_nothing_is_told_of_a_thread_whose_number_is_not_known() -> None:
    assert Links(lambda _thread: None, "/proc").is_socket(os.getpid(), 0, nothing) is None


def test_who_gets_the_number_of_one_that_has_ended_is_looked_for_anew() -> None:
    with socket.socket() as sock:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            inside = [child.pid]
            looks = Links(lambda _thread: inside[0], "/proc")
            found = looks.is_socket(7, sock.fileno(), nothing)
            child.kill()
        inside[0] = os.getpid()
        assert found is None
        assert looks.is_socket(7, sock.fileno(), nothing) is True


def test_what_is_found_of_one_that_has_gone_meanwhile_is_not_kept() -> None:
    class Gone(Exception):
        pass

    def check() -> None:
        raise Gone

    looks = Links(lambda thread: thread, "/proc")
    before = held()
    with pytest.raises(Gone):
        looks.is_socket(os.getpid(), 0, check)
    assert not looks._kept
    nothing_more_than(before)


def test_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "KEPT", 2)
    looks, before = Links(lambda _thread: os.getpid(), "/proc"), held()
    for thread in range(5):
        looks.is_socket(thread, 0, nothing)
    assert sum(count for path, count in (held() - before).items() if path.startswith("/proc/")) == 2
