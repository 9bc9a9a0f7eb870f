"""The workloads of `make bench-hostcalls`: plain Python, which runs as it is on the client and in an enclave. Each tells its own seconds."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sqlite3
import time

BLOCK = 4096


def read_file(path: str) -> tuple[int, float]:
    """All of a file in reads of BLOCK; bytes and seconds."""
    start = time.perf_counter()
    size = 0
    with open(path, "rb", buffering=0) as file:
        while data := file.read(BLOCK):
            size += len(data)
    return size, time.perf_counter() - start


def write_file(path: str, size: int) -> tuple[int, float]:
    """A new file of so many bytes in writes of BLOCK, then fsync; bytes and seconds."""
    data = bytes(range(256)) * (BLOCK // 256)
    start = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        write = file.write
        for _ in range(size // BLOCK):
            write(data)
        os.fsync(file.fileno())
    return size, time.perf_counter() - start


def walk(top: str) -> tuple[int, int, float]:
    """Stat and read every file below a directory; files, bytes and seconds."""
    start = time.perf_counter()
    files = size = 0
    for above, _, names in os.walk(top):
        for name in names:
            path = os.path.join(above, name)
            expected = os.stat(path).st_size
            with open(path, "rb") as file:
                data = file.read()
            assert len(data) == expected
            files += 1
            size += expected
    return files, size, time.perf_counter() - start


def sqlite(path: str, inserts: int, updates: int, queries: int) -> tuple[str, float]:
    """A database made in one transaction, updated in many, queried by key; a digest of its content, and seconds."""
    start = time.perf_counter()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as base:
        base.execute("create table item (key integer primary key, name text, number integer)")
        base.execute("begin")
        for key in range(inserts):
            base.execute("insert into item values (?, ?, ?)", (key, f"name of {key}", key * key % 977))
        base.execute("commit")
        for each in range(updates):
            base.execute("update item set number = number + 1 where key = ?", (each * 97 % inserts,))
        found = 0
        for each in range(queries):
            found += len(base.execute("select name from item where key = ?", (each * 31 % inserts,)).fetchall())
        assert found == queries
    seconds = time.perf_counter() - start
    return database_digest(path), seconds


def database_digest(path: str) -> str:
    """What a database holds, however its pages lie."""
    digest = hashlib.sha256()
    with contextlib.closing(sqlite3.connect(path)) as base:
        for line in base.iterdump():
            digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def cached(path: str, times: int) -> float:
    """Stat and pread, one after the other, of a file that has just been read; seconds of each pair."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.pread(descriptor, BLOCK, 0)
        os.stat(path)
        start = time.perf_counter()
        for _ in range(times):
            os.stat(path)
            os.pread(descriptor, BLOCK, 0)
        return (time.perf_counter() - start) / times
    finally:
        os.close(descriptor)


def answered(path: str, times: int) -> float:
    """Operations on a private file, which the supervisor answers by itself, each of them; seconds of each."""
    with open(path, "wb"):
        pass
    start = time.perf_counter()
    for _ in range(times):
        os.chmod(path, 0o600)
    seconds = (time.perf_counter() - start) / times
    os.unlink(path)
    return seconds


def echo(host: str, port: int, size: int) -> tuple[int, float]:
    """So many bytes through a socket to a peer that sends them back; bytes and seconds."""
    data = bytes(1 << 16)
    got, left = 0, size
    with socket.create_connection((host, port)) as sock:
        sock.setblocking(False)
        start = time.perf_counter()
        while got < size:
            if left:
                with contextlib.suppress(BlockingIOError):
                    left -= sock.send(data[: min(left, len(data))])
            try:
                got += len(sock.recv(1 << 18))
            except BlockingIOError:
                _wait(sock, writing=left > 0)
    return got, time.perf_counter() - start


def _wait(sock: socket.socket, *, writing: bool) -> None:
    import select

    select.select([sock], [sock] if writing else [], [])
