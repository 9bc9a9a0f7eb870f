"""Requests that are taken while who serves them waits for a process in the middle of an execve: which are answered then, and what becomes of all."""

from __future__ import annotations

import errno
import os
import shutil
import socket

import pytest

from adyton.runtime.process.supervisor import fuse_abi, fuse_answers, fuse_device
from adyton.runtime.process.supervisor.fuse_abi import Opcode
from adyton.runtime.process.supervisor.fuse_device import FuseDevice

EXECUTING, AT_WORK, ENDING = 7, 8, 9  # processes
STATM = {EXECUTING: "34 1 0 0 0 34 0", AT_WORK: "2900 800 400 1 0 300 0", ENDING: "0 0 0 0 0 0 0"}


@pytest.fixture
def kernel():
    """The kernel's end of a device that keeps messages apart."""
    ours, _ = pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    yield pair
    for end in pair:
        end.close()


@pytest.fixture
def told():
    return []


@pytest.fixture
def device(kernel, told, tmp_path):
    for process, text in STATM.items():
        (tmp_path / str(process)).mkdir()
        (tmp_path / str(process) / "statm").write_text(text + "\n")
    device = FuseDevice(kernel[1].detach(), lambda: told.append(1), str(tmp_path))
    yield device
    device.close()


def flush(unique, process):
    return fuse_abi.encode(Opcode.FLUSH, unique, 2, fuse_abi.Flush(1, 0), pid=process)


def read(unique, process):
    return fuse_abi.encode(Opcode.READ, unique, 2, fuse_abi.Read(1, 0, 4096), pid=process)


def page(unique, process=0):
    return fuse_abi.encode(
        Opcode.WRITE, unique, 2, fuse_abi.Write(1, 0, 2, fuse_abi.WRITE_CACHE, os.O_RDWR, b"xx"), pid=process
    )


def written(unique):
    body = fuse_answers.pack_written(2)
    return fuse_answers.success(unique, len(body)) + body


def look_up(unique, process=EXECUTING):
    return fuse_abi.encode(Opcode.LOOKUP, unique, 2, fuse_abi.Name(b"x"), pid=process)


def send(kernel, *requests):
    for request in requests:
        kernel[0].send(request)


def answers(kernel):
    found = []
    try:
        while True:
            found.append(kernel[0].recv(4096))
    except BlockingIOError:
        return found


def test_what_an_execve_closes_is_answered_and_served_afterwards(device, kernel, told):
    requests = [look_up(2), flush(4, EXECUTING), flush(6, AT_WORK)]
    send(kernel, *requests)
    device.serve_looks()
    assert answers(kernel) == [fuse_answers.success(4)]
    assert told
    assert device.has_taken
    assert list(device.requests()) == requests
    assert not device.has_taken


def test_a_page_that_the_look_itself_is_to_read_cannot_be_had(device, kernel):
    send(kernel, read(4, 0), read(6, EXECUTING))
    device.serve_looks()
    assert answers(kernel) == [fuse_answers.failure(4, errno.EIO)]
    assert list(device.requests()) == [read(6, EXECUTING)]


def test_a_close_of_an_execve_that_is_being_served_is_answered_once(device, kernel):
    """It may wait for the client."""
    send(kernel, flush(4, EXECUTING), flush(6, AT_WORK), flush(8, EXECUTING))
    assert len(list(device.requests())) == 3
    device.write([fuse_answers.failure(8, errno.EIO)])
    for _ in range(2):
        device.serve_looks()
    assert answers(kernel) == [fuse_answers.failure(8, errno.EIO), fuse_answers.success(4)]
    device.write([fuse_answers.success(6)])
    assert not device._closes


def test_a_page_that_an_execve_has_written_is_answered_and_served_afterwards(device, kernel):
    requests = [page(2), page(4, AT_WORK)]
    send(kernel, *requests)
    device.serve_looks()
    assert answers(kernel) == [written(2)]
    assert list(device.requests()) == requests


def test_a_page_that_is_being_written_is_answered_once(device, kernel):
    send(kernel, page(2), page(4), page(6, AT_WORK))
    assert len(list(device.requests())) == 3
    device.write([fuse_answers.failure(4, errno.ENOSPC)])
    for _ in range(2):
        device.serve_looks()
    assert answers(kernel) == [fuse_answers.failure(4, errno.ENOSPC), written(2)]
    assert not device._pages


def test_a_page_that_is_written_where_nobody_executes_a_program_is_waited_for(device, kernel, tmp_path):
    shutil.rmtree(tmp_path / str(EXECUTING))
    send(kernel, page(2))
    assert list(device.requests()) == [page(2)]
    send(kernel, page(4))
    device.serve_looks()
    assert not answers(kernel)


@pytest.mark.parametrize("process", [AT_WORK, ENDING, 10, 0])
def test_who_is_told_what_came_of_a_close_waits_for_it(device, kernel, process):
    send(kernel, flush(4, process))
    device.serve_looks()
    assert not answers(kernel)


def test_what_is_no_request_is_left_to_who_serves_them(device, kernel):
    send(kernel, flush(4, EXECUTING)[:-1], b"\xff")
    device.serve_looks()
    assert not answers(kernel)
    assert list(device.requests()) == [flush(4, EXECUTING)[:-1], b"\xff"]


def test_what_was_taken_comes_before_what_comes_after_it(device, kernel, told):
    send(kernel, look_up(2))
    device.serve_looks()
    send(kernel, look_up(4))
    device.serve_looks()
    send(kernel, look_up(6))
    assert told == [1]
    assert list(device.requests()) == [look_up(2), look_up(4), look_up(6)]


def test_there_is_an_end_to_what_is_taken(device, kernel, monkeypatch):
    monkeypatch.setattr(fuse_device, "MOST_TAKEN", 2 * len(look_up(2)))
    send(kernel, *(look_up(unique) for unique in range(2, 10, 2)))
    device.serve_looks()
    device.wait()
    assert [device._read() for _ in range(2)] == [look_up(2), look_up(4)]
    assert not device.has_taken
    device.serve_looks()
    assert list(device.requests()) == [look_up(6), look_up(8)]


def test_more_than_is_served_at_once_is_left_for_the_next_time(device, kernel, monkeypatch):
    monkeypatch.setattr(fuse_device, "AT_ONCE", 1)
    send(kernel, look_up(2), look_up(4))
    device.serve_looks()
    assert list(device.requests()) == [look_up(2)]
    assert device.has_taken


def test_a_device_that_was_closed_has_no_requests_and_takes_no_answers(device, kernel):
    device.close()
    device.serve_looks()
    device.wait()
    device.write([fuse_answers.success(2)])
    assert not list(device.requests())
    assert not device.is_unmounted
    assert kernel[0].recv(1) == b""


def test_an_end_of_the_file_system_is_told(device, monkeypatch):
    def readv(*_):
        raise OSError(errno.ENODEV, "unmounted")

    monkeypatch.setattr(fuse_device.os, "readv", readv)
    assert not list(device.requests())
    assert device.is_unmounted
