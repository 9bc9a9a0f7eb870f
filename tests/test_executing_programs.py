"""A program that executes another with files and sockets open, while its supervisor has to do with the sockets."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress

import pytest
from enclave_sockets import EVERYWHERE, enclave, server

pytestmark = pytest.mark.sandbox

FILES = 100
EXCLUSIVE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock: all of a file


@pytest.fixture
def directory(tmp_path):
    made = tmp_path / "client"
    made.mkdir()
    return made


RESTARTING = """
import fcntl
child = os.fork()
if not child:
    sock = socket.create_connection(("127.0.0.1", port))
    files = [os.open(f"{directory}/{number}", os.O_RDWR | os.O_CREAT) for number in range(count)]
    for each in files:
        fcntl.lockf(each, fcntl.LOCK_EX)
        os.write(each, b"x")
    sock.send(b"x")
    os.execv(sys.executable, [sys.executable, "-c", "pass"])
result = os.waitpid(child, 0)[1]
"""


def test_a_connection_may_be_lost_while_files_are_closed(tmp_path, directory):
    """To show the loss, the supervisor fetches a descriptor of a process that waits for it: each close gives a lock back."""

    def reset_at_the_first_close(connection):
        connection.recv(1)
        with open(directory / "0", "r+b") as file:
            fcntl.fcntl(file, fcntl.F_OFD_SETLKW, EXCLUSIVE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    allowed = {"allow_write": [str(directory)], **EVERYWHERE}
    with server(reset_at_the_first_close) as port, enclave(tmp_path, **allowed) as at_work:
        assert at_work.run(RESTARTING, directory=str(directory), port=port, count=FILES) == 0
        assert {(directory / str(number)).read_bytes() for number in range(FILES)} == {b"x"}
        for number in range(FILES):
            with open(directory / str(number), "r+b") as file:
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, EXCLUSIVE)  # the lock is given back


LISTENING = """
import builtins
builtins.listener = socket.create_server(("127.0.0.1", 0))
result = listener.getsockname()[1]
"""
EXECUTING = """
import mmap
child = os.fork()
if not child:
    files = [os.open(f"{directory}/{number}", os.O_RDWR | os.O_CREAT) for number in range(count)]
    for each in files:
        os.write(each, b"x")
    maps = [mmap.mmap(each, 1) for each in files if mapped]
    busy = threading.Event()
    def begin():
        for each in maps:
            each[0] = ord("y")
        busy.wait()
        os.execv(sys.executable, [sys.executable, "-c", "pass"])
    threading.Thread(target=begin).start()
    while True:
        listener.accept()[0].close()
        busy.set()
result = os.waitpid(child, 0)[1]
"""


@pytest.mark.parametrize("mapped", [False, True])
def test_another_thread_may_be_in_a_call_on_a_socket(tmp_path, directory, mapped):
    """The new program has the number of that one, which its supervisor may be about to answer. What it has mapped is written first."""
    with enclave(tmp_path, allow_write=[str(directory)], **EVERYWHERE) as at_work:
        port = at_work.run(LISTENING)
        done = at_work.start(EXECUTING, directory=str(directory), count=FILES, mapped=mapped)
        while not done.done():
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0) as peer:
                peer.settimeout(0.01)
                peer.recv(1)  # until it has been accepted, and the next is waited for; or there is nobody any more
        assert done.result() == 0
        assert {(directory / str(number)).read_bytes() for number in range(FILES)} == {b"y" if mapped else b"x"}
