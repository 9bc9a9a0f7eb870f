"""A second reference for throughput: the hops of an enclave's bytes, and nothing else. It shows what they cost by themselves.

A bare grpcio stream to a relay, which is a process of its own as in `bare_stream`; from there a unix socket to the end, a third process; TLS 1.3
over memory from the client to that end, of which the relay sees ciphertext. No sessions, files or FUSE.
`python bench/relayed_stream.py` prints the port, and ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bare_stream
import grpc
from bare_stream import Room, pieces

from adyton.channel.tls import Tls

READ = 1 << 19
SIZE = 8  # bytes of a size, before what is asked for


class _Wire:
    """One end of TLS over whatever carries bytes."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._lock = threading.Lock()

    def sealed(self, data: bytes = b"") -> bytes:
        with self._lock:
            if data:
                self._tls.send(data)
            return self._tls.data_to_send()

    def opened(self, data: bytes) -> bytes:
        with self._lock:
            return self._tls.receive(data)

    @property
    def ready(self) -> bool:
        return self._tls.finished


# -- the relay and the end ------------------------------------------------------------------------------------------------


def _relay(requests: Iterator[bytes], _context: Any) -> Iterator[bytes]:
    ours, theirs = socket.socketpair()
    with theirs:
        end = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()])

    def pump() -> None:
        with contextlib.suppress(Exception):  # the client is gone
            for each in requests:
                ours.sendall(each)
        ours.shutdown(socket.SHUT_WR)

    threading.Thread(target=pump, daemon=True).start()
    with ours:
        while data := ours.recv(READ):
            yield data
    end.wait()


def _end(descriptor: int) -> None:
    """Do what the client asks for: take so many bytes, send so many, or send back so many."""
    with socket.socket(fileno=descriptor) as sock:
        wire = _Wire(Tls.server())

        def arriving() -> Iterator[bytes]:
            while data := sock.recv(READ):
                plain = wire.opened(data)
                if answer := wire.sealed():
                    sock.sendall(answer)
                if plain:
                    yield plain

        source = arriving()
        for asked in source:
            way, size, first = asked[:1], int.from_bytes(asked[1 : SIZE + 1], "big"), asked[SIZE + 1 :]
            if way == b"d":
                for piece in pieces(size):
                    sock.sendall(wire.sealed(piece))
                continue
            got = 0
            for data in itertools.chain([first], source):
                got += len(data)
                if way == b"e" and data:
                    sock.sendall(wire.sealed(data))
                if got == size:
                    break
            if way == b"u":
                sock.sendall(wire.sealed(b"."))


def main() -> None:
    if len(sys.argv) > 1:
        _end(int(sys.argv[1]))
        return
    served = grpc.server(ThreadPoolExecutor(4))
    method = grpc.stream_stream_rpc_method_handler(_relay)
    served.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Relayed", {"run": method}),))
    print(served.add_insecure_port("127.0.0.1:0"), flush=True)
    served.start()
    sys.stdin.read()


# -- the client -----------------------------------------------------------------------------------------------------------


server = functools.partial(bare_stream.server, __file__)


def seconds(port: int, way: str, warm: int, size: int) -> float:
    """For `size` bytes, after `warm` bytes on the same connection."""
    wire = _Wire(Tls.client())
    due: queue.SimpleQueue[Iterator[bytes] | None] = queue.SimpleQueue()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        arriving = channel.stream_stream("/Relayed/run")(itertools.chain.from_iterable(iter(due.get, None)))
        while not wire.ready:
            due.put(iter([wire.sealed()]))
            wire.opened(next(arriving))
        due.put(iter([wire.sealed()]))
        _transfer(wire, due, arriving, way, warm)
        start = time.perf_counter()
        _transfer(wire, due, arriving, way, size)
        took = time.perf_counter() - start
        due.put(None)
        return took


def _transfer(wire: _Wire, due: queue.SimpleQueue[Any], arriving: Iterator[bytes], way: str, size: int) -> None:
    room = Room()
    sent = {"up": pieces(size), "down": iter(()), "echo": room.paced(size)}[way]
    due.put(map(wire.sealed, itertools.chain([way[:1].encode() + size.to_bytes(SIZE, "big")], sent)))
    while room.got < (1 if way == "up" else size):
        room.came(len(wire.opened(next(arriving))))


if __name__ == "__main__":
    main()
