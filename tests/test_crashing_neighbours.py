"""Enclaves that crash in every way, and peers that send garbage, beside enclaves that must go on answering."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest
from command import adyton as adyton_command
from command import start
from parties import descendants, gone

import adyton
from adyton.errors import AdytonError, ConnectionLostError
from adyton.provision.relay_processes import PROCESSES

pytestmark = pytest.mark.sandbox

HEALTHY = 10

PROGRAM = """
import ctypes
import os
import sys

import adyton.trusted as trusted

enclave = trusted.Enclave("crash")

@enclave.entry
def quick() -> int:
    return 1

@enclave.entry
def segfault() -> int:
    return ctypes.string_at(0)[0]

@enclave.entry
def leave(status: int) -> None:
    os._exit(status)

@enclave.entry
def exit(status: int) -> None:
    sys.exit(status)

@enclave.entry
def exhaust() -> int:
    held = []
    while True:
        held.append(bytearray(1 << 20))

@enclave.entry
def recurse(depth: int) -> int:
    return recurse(depth + 1)

@enclave.entry
def fork_bomb() -> int:
    children = 0
    try:
        while True:
            if os.fork() == 0:
                import time
                time.sleep(600)
            children += 1
    except OSError:
        return children
"""
PROJECT = """
[tool.adyton.enclave.crash]
entry = "crash:enclave"
sources = ["crash.py"]
limits = { memory = "256MiB", threads = 32 }
"""

# entry, its arguments, and whether its enclave is gone afterwards
CRASHES = {
    "segfault": ("segfault", (), True),
    "os._exit": ("leave", (3,), True),
    "sys.exit": ("exit", (3,), False),
    "memory": ("exhaust", (), False),
    "recursion": ("recurse", (0,), False),
    "forks": ("fork_bomb", (), False),
    "SIGKILL": ("quick", (), True),
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A server, its URL, ten enclaves that answer, and the program."""
    folder = tmp_path_factory.mktemp("crash")
    (folder / "crash.py").write_text(PROGRAM)
    (folder / "pyproject.toml").write_text(PROJECT)
    built = adyton_command("build", cwd=folder)
    assert built.returncode == 0, built.stderr
    program = folder / "build" / "crash.enclave"
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        process = start("serve", "--port", "0", env={**os.environ, "TMPDIR": directory})
        assert process.stdout is not None
        url = "grpc://" + process.stdout.readline().rpartition(" ")[2].strip()
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(adyton.load(str(program), on=url, allow_sim=True)) for _ in range(HEALTHY)]
            yield process, url, clients, str(program)
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()


def all_answer(clients):
    return [client.call("quick") for client in clients] == [1] * HEALTHY


@pytest.mark.parametrize("how", CRASHES)
def test_a_crash_is_its_own_enclaves_alone(healthy, how):
    server, url, clients, program = healthy
    entry, arguments, fatal = CRASHES[how]
    before = set(descendants(server.pid))
    crashing = adyton.load(program, on=url, allow_sim=True)
    found = {pid: name for pid, name in descendants(server.pid).items() if pid not in before}
    if how == "SIGKILL":
        os.kill(next(pid for pid, name in found.items() if name == "enclave"), signal.SIGKILL)
    if how == "forks":
        assert crashing.call(entry) < 32  # fork fails, or is refused, below the limit of the image
        fatal = False
    else:
        _expect(crashing, entry, arguments, fatal)
    assert all_answer(clients)
    if not fatal:
        assert crashing.call("quick") == 1
    with contextlib.suppress(AdytonError):
        crashing.close()
    assert gone(set(found)) == set()
    assert all_answer(clients)


def _expect(crashing, entry, arguments, fatal):
    with pytest.raises(AdytonError) as caught:
        crashing.call(entry, *arguments)
    assert isinstance(caught.value, ConnectionLostError) == fatal, caught.value


def address_of(url):
    host, _, port = url.removeprefix("grpc://").rpartition(":")
    return host, int(port)


GARBAGE = {
    "random": random.Random(5).randbytes(4096),
    "HTTP/1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512),
    "half a frame": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x40\x00\x04\x00\x00",
    "endless settings": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" * 5000,
    "nothing": b"",
}


def listening_ports(pid):
    """TCP ports that the process listens at; none if it has just ended."""
    inodes = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(f"/proc/{pid}/fd/{name}"))
        tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    except OSError:
        return []
    lines = [line for table in tables for line in table.splitlines()[1:]]
    rows = [line.split() for line in lines]
    return [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_on_any_port_disturbs_nobody(healthy, kind):
    server, _, clients, _ = healthy
    until = time.monotonic() + 30  # for relays of enclaves that another test has just ended
    ports: list[int] = []
    expected = 1 + min(HEALTHY, PROCESSES)  # the server's own, and one for each relay process
    while len(ports) != expected and time.monotonic() < until:
        relays = [pid for pid, name in descendants(server.pid).items() if not name.startswith(("adyton-", "enclave"))]
        ports = [port for pid in [server.pid, *relays] for port in listening_ports(pid)]
    assert len(ports) == expected
    with contextlib.ExitStack() as stack:
        for port in ports:
            for _ in range(3):
                peer = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                with contextlib.suppress(OSError):
                    peer.sendall(GARBAGE[kind])
        assert all_answer(clients)
    assert all_answer(clients)


def test_two_hundred_connections_that_say_nothing(healthy):
    _, url, clients, program = healthy
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(address_of(url)))
        assert all_answer(clients)
        with adyton.load(program, on=url, allow_sim=True) as client:
            assert client.call("quick") == 1


def test_enclaves_that_crash_all_at_once(healthy):
    server, url, clients, program = healthy
    before = set(descendants(server.pid))
    outcomes: list[str] = []

    def crash() -> None:
        client = adyton.load(program, on=url, allow_sim=True)
        for step in (lambda: client.call("segfault"), client.close):
            try:
                step()
            except AdytonError as error:
                outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=crash) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outcomes.count("ConnectionLostError") >= 5
    assert all_answer(clients)
    assert gone(set(descendants(server.pid)) - before) == set()
