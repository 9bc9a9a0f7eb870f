"""A TCP proxy that delays, and cuts, in user space: what a distance does to a connection, without privileges. A process of its own.

    python bench/delay_proxy.py --to HOST:PORT --delay MILLISECONDS [--cut SECONDS [--after SECONDS]]

It prints the port that it listens on, and ends when its standard input does. With `--cut`, all connections are reset at once, again and again,
so many seconds after one another on the average, half as many at least, and one in three again while the next connection is being made;
what was under way is lost, wherever it was.

Each direction delays by half of that, so a round trip costs all of it. The bandwidth is not limited, and what was written arrives in order;
at most BUFFER bytes are under way in one direction, enough for a window of 1 GiB/s at 100 ms, then who sends must wait. No loss, no jitter:
what is measured through it is latency alone. The kernel's own TCP windows are at both of its ends, where the round trip is short.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import servers

PIECE = 1 << 20
BUFFER = 1 << 27
AGAIN = 0.02, 0.2  # seconds after a cut, in which a client dials and joins
_LIBC = ctypes.CDLL(None)


class _Pipe:
    """One direction: a thread that reads and one that writes when it is due."""

    def __init__(self, source: socket.socket, target: socket.socket, delay: float) -> None:
        """`delay`: seconds."""
        self._source = source
        self._target = target
        self._delay = delay
        self._due: collections.deque[tuple[float, bytes]] = collections.deque()
        self._size = 0
        self._changed = threading.Condition()
        steps = [self._read, self._write] if delay else [self._pass]
        self._threads = [threading.Thread(target=step, daemon=True) for step in steps]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _pass(self) -> None:
        """No delay: no queue, and no second thread."""
        with contextlib.suppress(OSError):
            while data := self._source.recv(PIECE):
                self._target.sendall(data)
        self._end()

    def _read(self) -> None:
        while True:
            try:
                data = self._source.recv(PIECE)
            except OSError:
                data = b""
            due = time.monotonic() + self._delay
            with self._changed:
                while self._size >= BUFFER:
                    self._changed.wait()
                self._size += len(data)
                self._due.append((due, data))
                self._changed.notify()
            if not data:
                return

    def _write(self) -> None:
        while True:
            with self._changed:
                while not self._due:
                    self._changed.wait()
                due, data = self._due.popleft()
                self._size -= len(data)
                self._changed.notify()
            if (left := due - time.monotonic()) > 0:
                time.sleep(left)
            if not data:
                self._end()
                return
            try:
                self._target.sendall(data)
            except OSError:
                with contextlib.suppress(OSError):
                    self._source.shutdown(socket.SHUT_RD)  # nobody takes it any more

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)


class Carried:
    """Sockets of all connections, to be cut in the order given: who hears of its peer's end first would see an end, and no reset."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: dict[socket.socket, None] = {}

    @contextlib.contextmanager
    def holding(self, *sockets: socket.socket) -> Iterator[None]:
        """Until the end of this block they may be cut."""
        with self._lock:
            self._sockets.update(dict.fromkeys(sockets))
        try:
            yield
        finally:
            with self._lock:
                for sock in sockets:
                    del self._sockets[sock]

    def cut(self) -> None:
        """Reset all connections."""
        with self._lock:
            for sock in self._sockets:
                # connect(2): an address of AF_UNSPEC dissolves a connection; a TCP peer is sent a reset.
                _LIBC.connect(sock.fileno(), bytes(16), 16)

    def cut_often(self, seconds: float, after: float) -> None:
        """For ever, so many seconds after one another on the average; and one in three again when what was cut is being made anew.
        Not in the first `after` seconds.
        """
        time.sleep(after)
        while True:
            time.sleep(random.uniform(0.5, 1.5) * seconds)
            self.cut()
            if not random.randrange(3):
                time.sleep(random.uniform(*AGAIN))
                self.cut()


CARRIED = Carried()


def carry(near: socket.socket, target: tuple[str, int], delay: float) -> None:
    """One connection, until both of its directions have ended."""
    with (
        near,
        contextlib.suppress(OSError),
        socket.create_connection(target) as far,
        CARRIED.holding(near, far),
    ):
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pipes = [_Pipe(near, far, delay / 2), _Pipe(far, near, delay / 2)]
        for pipe in pipes:
            pipe.start()
        for pipe in pipes:
            pipe.join()


def serve(listener: socket.socket, target: tuple[str, int], delay: float) -> None:
    """Connections of `listener` to `target`, each with a round trip that is longer by `delay` seconds."""
    while True:
        near, _ = listener.accept()
        threading.Thread(target=carry, args=(near, target, delay), daemon=True).start()


def delayed(port: int, milliseconds: float, cut: float = 0.0, after: float = 0.0) -> AbstractContextManager[int]:
    """A proxy process before a port of this machine; its own port. `cut`: seconds, on the average, after which connections are reset, but none
    in the first `after` seconds.
    """
    command = [sys.executable, __file__, "--to", f"127.0.0.1:{port}", "--delay", str(milliseconds)]
    return servers.running([*command, "--cut", str(cut), "--after", str(after)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="of a round trip")
    parser.add_argument("--cut", type=float, default=0.0, metavar="SECONDS", help="between cuts; 0: never")
    parser.add_argument("--after", type=float, default=0.0, metavar="SECONDS", help="without a cut, at first")
    options = parser.parse_args()
    host, _, port = options.to.rpartition(":")
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=serve, args=(listener, (host, int(port)), options.delay / 1000), daemon=True).start()
    if options.cut:
        threading.Thread(target=CARRIED.cut_often, args=(options.cut, options.after), daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
