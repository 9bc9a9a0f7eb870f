"""The reference for host calls: RPyC, the program at one end and each of its operations done at the other, through the delay proxy.

Its server, on what is the client's machine for adyton: `python bench/rpyc_reference.py` prints the port, and ends when its standard input
does. As each operation is a round trip, a workload is run for BUDGET seconds at most, and its time told from how far it came.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import servers

BUDGET = 3.0  # seconds
BLOCK = 4096


def extrapolated(steps: Iterator[int], total: int) -> tuple[float, int]:
    """Seconds for all, and requests that were sent for it: `steps` does some of it at a time and gives how many requests that took."""
    start = time.perf_counter()
    done = trips = 0
    for each in steps:
        done += 1
        trips += each
        if time.perf_counter() - start > BUDGET:
            break
    scale = total / done
    return (time.perf_counter() - start) * scale, round(trips * scale)


def read_file(port: int, path: str, size: int) -> tuple[float, int]:
    with connected(port) as remote:
        descriptor, pread = remote.os.open(path, 0), remote.os.pread
        result = extrapolated(
            _each(pread, ((descriptor, BLOCK, each) for each in range(0, size, BLOCK))), size // BLOCK
        )
        remote.os.close(descriptor)
    return result


def write_file(port: int, path: str, size: int) -> tuple[float, int]:
    data = bytes(BLOCK)
    with connected(port) as remote:
        descriptor, pwrite = remote.os.open(path, 0o102, 0o644), remote.os.pwrite
        steps = _each(pwrite, ((descriptor, data, each) for each in range(0, size, BLOCK)))
        result = extrapolated(steps, size // BLOCK)
        remote.os.fsync(descriptor)
        remote.os.close(descriptor)
    return result


def walk(port: int, top: str, directories: int, each: int) -> tuple[float, int]:
    """`each` files in every one of so many directories."""
    with connected(port) as remote:
        listdir, stat, opened, read, close = (
            getattr(remote.os, name) for name in ("listdir", "stat", "open", "read", "close")
        )

        def here(names: Any) -> list[str]:
            """A list of texts, brought over as one."""
            found: list[str] = json.loads(remote.json.dumps(names))
            return found

        def steps() -> Iterator[int]:
            for name in here(listdir(top)):
                names = here(listdir(f"{top}/{name}"))
                yield 3
                for file in names:
                    path = f"{top}/{name}/{file}"
                    size = stat(path)[6]
                    descriptor = opened(path, 0)
                    read(descriptor, size)
                    close(descriptor)
                    yield 5

        return extrapolated(steps(), directories * (each + 1))


def sqlite(port: int, path: str, inserts: int, updates: int, queries: int) -> tuple[float, int]:
    with connected(port) as remote:
        base = remote.sqlite3.connect(path, isolation_level=None)
        execute = base.execute
        execute("create table item (key integer primary key, name text, number integer)")
        execute("begin")
        statements = (
            ("insert into item values (?, ?, ?)", (key, f"name of {key}", key * key % 977)) for key in range(inserts)
        )
        adding = extrapolated(_each(execute, statements), inserts)
        execute("commit")
        statement = "update item set number = number + 1 where key = ?"
        changing = extrapolated(
            _each(execute, ((statement, (each * 97 % inserts,)) for each in range(updates))), updates
        )

        def asking() -> Iterator[int]:
            for each in range(queries):
                execute("select name from item where key = ?", (each * 31 % inserts,)).fetchall()
                yield 3

        found = extrapolated(asking(), queries)
        base.close()
    return adding[0] + changing[0] + found[0], adding[1] + changing[1] + found[1]


def _each(function: Callable[..., Any], arguments: Iterator[tuple[Any, ...]]) -> Iterator[int]:
    for each in arguments:
        function(*each)
        yield 1


@contextlib.contextmanager
def connected(port: int) -> Iterator[Any]:
    """The other end's modules."""
    import rpyc

    connection = rpyc.classic.connect_stream(rpyc.SocketStream.connect("127.0.0.1", port, nodelay=True))
    try:
        yield connection.modules
    finally:
        connection.close()


def server() -> AbstractContextManager[int]:
    """Its port."""
    return servers.running([sys.executable, __file__])


def main() -> None:
    import rpyc
    from rpyc.utils.server import ThreadedServer

    served = ThreadedServer(rpyc.SlaveService, hostname="127.0.0.1", port=0)
    served.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted ones inherit it
    print(served.port, flush=True)
    threading.Thread(target=served.start, daemon=True).start()
    sys.stdin.read()
    served.close()


if __name__ == "__main__":
    main()
