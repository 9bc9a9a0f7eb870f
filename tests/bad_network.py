"""A network between a client and its server that does what the test wants: a TCP forwarder of this process."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable


class BadNetwork:
    """Forwards connections from `port` to another port of this machine. `close` it."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0  # connections
        self.limits: dict[int, int] = {}  # of those numbered so, from 1: bytes of both directions after which they end
        self._connections: set[_Connection] = set()
        self._swallowing: set[_Connection] = set()
        self._lock = threading.Lock()
        self._takes = True
        self.change: Callable[[bytes], bytes] | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave nothing."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        with self._lock:
            connections = self._connections | self._swallowing
        for each in connections:
            each.end()
        for each in connections:
            each.join()

    def cut(self) -> int:
        """End all connections that pass something on; how many there were."""
        with self._lock:
            connections = {each for each in self._connections if each.alive}
            self._connections.clear()
        for each in connections:
            each.end()
        for each in connections:
            each.join()
        return len(connections)

    def down(self) -> None:
        """End all connections, and each one that comes, until `up`."""
        self._takes = False
        self.cut()

    def up(self) -> None:
        """Be a good network again."""
        self._takes = True

    def swallow(self) -> None:
        """Keep the connections there are, and pass nothing on any more; those that come later are good."""
        with self._lock:
            self._swallowing |= self._connections
            for each in self._connections:
                each.passes.clear()
            self._connections.clear()

    def corrupt(self) -> None:
        """Change a byte of the next large piece that the server gets, far behind what belongs to HTTP/2."""

        def change(data: bytes) -> bytes:
            if len(data) < 2000:
                return data
            self.change = None
            return data[:1500] + bytes([data[1500] ^ 1]) + data[1501:]

        self.change = change

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.accepted += 1
                if not self._takes:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    near.close()
                    continue
                connection = _Connection(self, near, far, self.limits.get(self.accepted))
                connection.begin()
                with self._lock:
                    self._connections.add(connection)


class _Connection:
    def __init__(self, network: BadNetwork, near: socket.socket, far: socket.socket, left: int | None) -> None:
        self._left = left
        self._counting = threading.Lock()
        self.passes = threading.Event()
        self.passes.set()
        self._network = network
        self._near, self._far = near, far
        self._ends = itertools.count(1)
        self._threads = [
            threading.Thread(target=self._pump, args=(near, far, True), daemon=True),
            threading.Thread(target=self._pump, args=(far, near, False), daemon=True),
        ]

    def begin(self) -> None:
        for each in self._threads:
            each.start()

    def end(self) -> None:
        self.passes.set()
        for each in (self._near, self._far):
            with contextlib.suppress(OSError):  # closed
                each.shutdown(socket.SHUT_RDWR)

    @property
    def alive(self) -> bool:
        return any(each.is_alive() for each in self._threads)

    def join(self) -> None:
        for each in self._threads:
            each.join()

    def _allowed(self, data: bytes) -> bytes:
        """As much of it as still passes."""
        if self._left is None:
            return data
        with self._counting:
            data = data[: self._left]
            self._left -= len(data)
        return data

    def _pump(self, source: socket.socket, target: socket.socket, upwards: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.passes.wait()
                change = self._network.change if upwards else None
                target.sendall(self._allowed(data if change is None else change(data)))
                if self._left == 0:
                    break
        self.end()
        if next(self._ends) == 2:
            self._near.close()
            self._far.close()
