"""A socket that one thread reads into pages that the supervisor has yet to serve, while the supervisor reads it for another."""

from __future__ import annotations

import socket
import threading

import pytest
from enclave_sockets import enclave

from adyton.errors import ConnectionLostError

pytestmark = pytest.mark.sandbox

# The kernel holds a socket's lock while it copies what `readv` reads. The copy of the descriptor has a number by which the filter
# knows no datagram socket, so the supervisor has no part in that.
PROGRAM = """
import mmap, os, socket, threading
asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asked.sendto(b"hello", ("127.0.0.1", port))
asked.recvfrom(10)
copy = os.dup2(asked.fileno(), 300)
with open(top + "/pages", "r+b") as file:
    pages = mmap.mmap(file.fileno(), 0)
pages.madvise(mmap.MADV_RANDOM)
done = threading.Event()
def look():
    while not done.is_set():
        try:
            asked.recvfrom(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
thread = threading.Thread(target=look)
thread.start()
with memoryview(pages) as view:
    for start in range(0, len(pages), 4096):
        os.readv(copy, [view[start : start + 4096]])
done.set()
thread.join()
asked.close()
os.close(copy)
result = True
"""


def test_a_supervisor_that_waits_for_itself_ends_with_its_guest(tmp_path):
    client = tmp_path / "client"
    client.mkdir()
    (client / "pages").write_bytes(bytes(4096 * 2000))
    ended = threading.Event()

    def answer(sock: socket.socket) -> None:
        _, sender = sock.recvfrom(10)
        while not ended.wait(0.0002):
            sock.sendto(bytes(4096), sender)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=answer, args=(sock,))
        thread.start()
        try:
            with enclave(tmp_path, allow_write=[str(client)], allow_net=["127.0.0.1"]) as found:
                # It ends soon, and is never silent; or it was never in the other's way.
                assert found.run(PROGRAM, top=str(client), port=sock.getsockname()[1]) is True
        except ConnectionLostError as error:
            assert "the enclave has ended" in str(error)  # noqa: PT017 - either may happen
        finally:
            ended.set()
            thread.join()
