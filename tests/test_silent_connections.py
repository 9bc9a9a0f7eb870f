"""Ten thousand connections that say nothing, or never come to an end: others are served meanwhile, and what it costs is bounded."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hurried
import pytest
from bad_network import BadNetwork
from command import start

import adyton
from adyton.errors import UnreachableError

pytestmark = [pytest.mark.sandbox, pytest.mark.long]
MANY = 10_000
LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
WAIT = 60  # seconds until a test gives up on something that takes a few
EACH = 40 << 10  # bytes of the server's memory; 13 to 17 KiB as it is

GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
HALF_A_TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
SAID = (b"", GREETING[:10], GREETING)


def frame(kind: int, flags: int, stream: int, data: bytes) -> bytes:
    """Of HTTP/2: RFC 9113, 4.1."""
    return len(data).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + data


def header(name: bytes, value: bytes) -> bytes:
    """RFC 7541, 6.2.2."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> str:
    path: Path = tmp_path_factory.mktemp("silent") / "quick.py"
    path.write_text("def quick(number: int) -> int:\n    return number\n")
    return str(path)


class Server:
    """A provision server, or a proxy server for one client that comes through `network`."""

    def __init__(self, kind: str, *, start: Callable[..., subprocess.Popen[str]] = start, **attributes: object) -> None:
        arguments = ("serve", "--port", "0") if kind == "serve" else ("proxy", "--listen", "127.0.0.1:0")
        self.process = start(*arguments, **attributes)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(":")[2])
        self.network = BadNetwork(self.port)

    def load(self, program: str) -> adyton.EnclaveClient:
        port = self.network.port if self.network is not None else self.port
        return adyton.load(program, on=f"grpc://127.0.0.1:{port}", allow_sim=True)

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def memory(self) -> int:
        """Bytes."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    def until(self, least: int, most: int) -> None:
        """It has so many descriptors."""
        until = time.monotonic() + WAIT
        while not least <= self.descriptors <= most:
            assert time.monotonic() < until, self.descriptors
            threading.Event().wait(0.02)

    def close(self) -> None:
        self.network.close()
        with self.process:
            self.process.kill()


@contextlib.contextmanager
def server(kind: str, **attributes: object) -> Iterator[Server]:
    with contextlib.closing(Server(kind, **attributes)) as made:
        yield made


@contextlib.contextmanager
def silent(port: int, count: int, said: tuple[bytes, ...] = SAID) -> Iterator[list[socket.socket]]:
    """So many connections, each of which has said one of these."""
    with contextlib.ExitStack() as stack:
        held = []
        for number in range(count):
            held.append(stack.enter_context(socket.create_connection(("127.0.0.1", port))))
            with contextlib.suppress(OSError):  # one that was turned away
                held[-1].sendall(said[number % len(said)])
        yield held


@pytest.fixture
def descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if LIMIT < MANY + 3000:
        pytest.skip(f"NOT {MANY + 3000} DESCRIPTORS HERE (ulimit -Hn: {LIMIT}): so many connections cannot be had")
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("descriptors")
def test_ten_thousand_silent_connections_to_a_provision_server_shut_nobody_out(program, record_property):
    with server("serve") as there, there.load(program) as live:
        with there.load(program) as first:
            assert first.call("quick", 1) == 1
        before, memory = there.descriptors, there.memory
        with silent(there.port, MANY):
            there.until(before + MANY // 2, before + MANY + 20)  # some have been given up, if it took long
            with there.load(program) as client:
                assert client.call("quick", 2) == 2
            assert live.call("quick", 3) == 3
            each = (there.memory - memory) / MANY
        record_property("bytes for each connection", each)
        assert each < EACH
        there.until(0, before + 5)


@pytest.mark.usefixtures("descriptors")
def test_ten_thousand_silent_connections_to_a_proxy_server_keep_no_client_from_joining_again(program, record_property):
    with server("proxy") as there, there.load(program) as client:
        assert client.call("quick", 1) == 1
        before, memory = there.descriptors, there.memory
        with silent(there.port, MANY):
            there.until(before + MANY // 2, before + MANY + 20)
            accepted = there.network.accepted
            assert client.call("quick", 2) == 2
            assert there.network.accepted == accepted
            there.network.cut()
            assert client.call("quick", 3) == 3
            assert there.network.accepted > accepted
            each = (there.memory - memory) / MANY
        record_property("bytes for each connection", each)
        assert each < EACH
        there.until(0, before + 5)


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))


def test_a_server_that_has_as_many_connections_as_it_takes_says_so_and_serves_when_they_have_gone(program):
    """Where a process may have few descriptors. Who has joined is served all the time, and waits to join again no longer than the others stay."""
    with server("proxy", preexec_fn=few_descriptors) as there, there.load(program) as client:
        with silent(there.port, 800, (b"",)):
            there.until(500, 600)
            assert client.call("quick", 1) == 1
            with pytest.raises(UnreachableError, match="as many connections as it takes"):
                there.load(program)
            there.network.cut()
            waiting = client.submit("quick", 2)
        assert waiting.result(WAIT) == 2


def ended(sockets: list[socket.socket]) -> bool:
    """Whether the server has ended them all in time."""
    until = time.monotonic() + WAIT
    for each in sockets:
        poller = select.poll()
        poller.register(each, select.POLLIN)
        with contextlib.suppress(ConnectionError):
            while True:
                if not poller.poll(max(0.0, until - time.monotonic()) * 1000):
                    return False
                if not each.recv(1 << 16):
                    break
    return True


def test_who_does_not_come_to_the_end_of_a_greeting_is_given_up(program):
    with server("proxy", start=hurried.start) as there, there.load(program) as client:
        with silent(there.port, 9, (b"", GREETING[:10], HALF_A_TLS_HELLO)) as held:
            over = threading.Event()

            def drip() -> None:
                rest = iter(GREETING)
                while not over.wait(0.2):
                    with contextlib.suppress(OSError):
                        held[0].sendall(bytes([next(rest)]))

            thread = threading.Thread(target=drip)
            thread.start()
            assert ended(held)
            over.set()
            thread.join()
        assert client.call("quick", 1) == 1


def test_headers_without_end_cost_bounded_memory_and_hold_nobody_up(program):
    """More than 200 MB of them, on each of two connections."""
    begin = GREETING + frame(
        1, 0, 1, header(b":method", b"POST") + header(b":path", b"/adyton.Communicator/Communicate")
    )
    fields = b"".join(header(b"x-%04d" % number, bytes(range(97, 122)) * 4) for number in range(100))
    more = frame(9, 0, 1, fields) * 20
    longest = frame(9, 0, 1, b"\0\1h\x7f\x81\xff\xff\xff\x03") + frame(9, 0, 1, b"a" * 16_000) * 15  # one of a gibibyte
    with server("proxy") as there, there.load(program) as client:
        memory = there.memory
        for each in (more, longest):
            with socket.create_connection(("127.0.0.1", there.port)) as peer, contextlib.suppress(ConnectionError):
                peer.settimeout(WAIT)
                peer.sendall(begin)
                for number in range(1000):
                    peer.sendall(each)
                    if number % 200 == 0:
                        assert client.call("quick", number) == number
        assert there.memory - memory < 256 << 20
        assert client.call("quick", 1) == 1
