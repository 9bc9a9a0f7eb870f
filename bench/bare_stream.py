"""The reference for throughput: bytes over a bare grpcio stream, with no options but those it has by itself.

The client dials, as adyton's does; "up" are bytes to the server (what an enclave reads), "down" from it (what an enclave writes), "echo" there and back.
Its server is a process of its own: `python bench/bare_stream.py` prints the port, and ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

PIECE = 1 << 18
AHEAD = 16  # pieces that are queued for the stream


def _up(requests: Iterator[bytes], _context: Any) -> Iterator[bytes]:
    size = sum(len(each) for each in requests)
    yield str(size).encode()


def _down(requests: Iterator[bytes], _context: Any) -> Iterator[bytes]:
    for each in requests:
        yield from pieces(*map(int, each.split()))


def _echo(requests: Iterator[bytes], _context: Any) -> Iterator[bytes]:
    yield from requests


@contextlib.contextmanager
def server(program: str = __file__) -> Iterator[int]:
    """Its port."""
    with server_process(program) as (_, port):
        yield port


@contextlib.contextmanager
def server_process(program: str = __file__) -> Iterator[tuple[int, int]]:
    """Its process, and its port."""
    with subprocess.Popen(
        [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(10)


def seconds(port: int, way: str, warm: int, size: int, piece: int = PIECE) -> float:
    """For `size` bytes, after `warm` bytes on the same connection. `piece`: bytes of a message; an echo's are of PIECE."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        _transfer(channel, way, warm, piece)
        start = time.perf_counter()
        _transfer(channel, way, size, piece)
        return time.perf_counter() - start


def _transfer(channel: grpc.Channel, way: str, size: int, piece: int) -> None:
    call = channel.stream_stream(f"/Bare/{way}")
    if way == "down":
        got = sum(len(each) for each in call(iter([b"%d %d" % (size, piece)])))
        assert got == size
    elif way == "up":
        (answer,) = call(pieces(size, piece))
        assert int(answer) == size
    else:
        room = Room()
        for each in call(room.paced(size)):
            room.came(len(each))
        assert room.got == size


class Room:
    """What is sent is paced by what comes back, so that neither side holds more than AHEAD pieces. `got`: bytes that came back."""

    def __init__(self) -> None:
        self.got = 0
        self._free = threading.Semaphore(AHEAD)

    def paced(self, size: int) -> Iterator[bytes]:
        """As `pieces`, each when there is room for it."""
        for piece in pieces(size):
            self._free.acquire()
            yield piece

    def came(self, size: int) -> None:
        """So many bytes came back."""
        before, self.got = self.got, self.got + size
        for _ in range(self.got // PIECE - before // PIECE):
            self._free.release()


def pieces(size: int, piece: int = PIECE) -> Iterator[bytes]:
    """So many bytes."""
    whole = bytes(piece)
    for start in range(0, size, piece):
        yield whole[: size - start]


def main() -> None:
    handlers = {
        name: grpc.stream_stream_rpc_method_handler(step)
        for name, step in (("up", _up), ("down", _down), ("echo", _echo))
    }
    served = grpc.server(ThreadPoolExecutor(4))
    served.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bare", handlers),))
    print(served.add_insecure_port("127.0.0.1:0"), flush=True)
    served.start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
