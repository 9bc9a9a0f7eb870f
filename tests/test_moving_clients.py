"""Clients whose address, link or whole host goes while a session lives: no packet says so, as it is with real networks."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import network
import pytest
from hurried import HURRIED, command
from ledgers import LEDGER
from network import Host
from sandbox import children, wait_until_ended

pytestmark = [pytest.mark.netns, pytest.mark.sandbox, pytest.mark.long]
SERVED = 30  # seconds; it takes three or so, where all are hurried. TCP alone takes a quarter of an hour
SERVER, CLIENT, OTHER = "10.78.0.1", "10.78.0.2/24", "10.78.0.3/24"

# Calls what each line says, the waiting call aside; says what came of it.
APPLICATION = f"""
{HURRIED}
import adyton, sys
client = adyton.load(sys.argv[1], on=sys.argv[2], allow_sim=True)
waiting = client.submit("wait")
print("loaded", flush=True)
for line in sys.stdin:
    entry, *numbers = line.split()
    print(waiting.result() if entry == "waited" else client.call(entry, *map(int, numbers)), flush=True)
client.close()
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> str:
    path: Path = tmp_path_factory.mktemp("moving") / "ledger.py"
    path.write_text(LEDGER)
    return str(path)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    if network.missing():
        pytest.skip(network.missing())
    with network.two_hosts() as made:
        yield made


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def serving(host: Host, grace: str = "60") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A proxy server, whose process this is, and its URL."""
    listen = ("--listen", f"{SERVER}:0", "--insecure", "--grace", grace)
    with running(host.command(*command("proxy", *listen))) as process:
        assert process.stdout is not None
        yield process, "grpc://" + process.stdout.readline().rpartition(" ")[2].strip()


class Application:
    """A client of the enclave in a process of its own, on a host that may be moved."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert self._line() == "loaded"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def says_something_within(self, seconds: float) -> bool:
        poller = select.poll()
        assert self.process.stdout is not None
        poller.register(self.process.stdout, select.POLLIN)
        return bool(poller.poll(seconds * 1000))

    def __call__(self, line: str) -> str:
        """What comes of it; it must come in time."""
        assert self.process.stdin is not None
        began = time.monotonic()
        late = threading.Timer(SERVED, self.process.kill)
        late.start()
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self._line()
        late.cancel()
        assert time.monotonic() - began < SERVED
        return answer


@contextlib.contextmanager
def application(host: Host, program: str, url: str) -> Iterator[Application]:
    with running(host.python("-c", APPLICATION, program, url)) as process:
        yield Application(process)


def another_address(client: Host, number: int) -> None:
    there, next_one = (CLIENT, OTHER) if number % 2 else (OTHER, CLIENT)
    client.ip("address", "delete", there, "dev", "eth0")
    client.ip("address", "add", next_one, "dev", "eth0")


def another_link(client: Host, number: int) -> None:
    """As when a cable is pulled, and put in elsewhere, where the address is another one."""
    client.ip("link", "set", "eth0", "down")
    client.ip("address", "flush", "dev", "eth0")
    client.ip("link", "set", "eth0", "name", "wlan0")
    client.ip("link", "set", "wlan0", "name", "eth0")
    client.ip("address", "add", OTHER if number % 2 else CLIENT, "dev", "eth0")
    client.ip("link", "set", "eth0", "up")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize("move", [another_address, another_link], ids=lambda move: move.__name__)
def test_calls_go_on_from_another_address_each_once(hosts, program, move):
    server, client = hosts
    with serving(server) as (proxy, url), application(client, program, url) as call:
        assert call("note 0") == "0"
        before = descriptors(proxy.pid)
        for number in (1, 2):
            move(client, number)
            assert call(f"note {number}") == str(number)
        assert call("ledger") == str(dict.fromkeys(range(3), 1))
        assert call("go_on") == "told"
        assert call("waited") == "over"
        until = time.monotonic() + 60 + SERVED  # pings find out what is left of each; or it is idle for a minute
        most = before + 1  # it always comes to the same number, which on a busy machine it may not have had yet
        while descriptors(proxy.pid) > most and time.monotonic() < until:
            threading.Event().wait(0.05)
        assert descriptors(proxy.pid) <= most
        assert call.process.stdin is not None
        call.process.stdin.close()
        assert call.process.wait(SERVED) == 0
        assert proxy.wait(SERVED) == 0


def test_who_waits_is_answered_though_the_address_changes_meanwhile(hosts, program):
    """Nothing is called after it: the waiting call alone has to find out, and have its connection made again."""
    server, client = hosts
    with serving(server) as (_, url), application(client, program, url) as call:
        assert call("go_on") == "told"
        another_address(client, 1)
        assert call("waited") == "over"


def connected_from(server: Host, address: str) -> bool:
    found = subprocess.run(
        server.command("ss", "-Htn", "state", "established", "dst", address.partition("/")[0]),
        capture_output=True,
        text=True,
        check=True,
    )
    return bool(found.stdout.strip())


def test_a_session_on_which_nothing_is_said_moves_with_its_client_before_its_grace_is_over(hosts, program):
    """Nobody calls or waits, so nobody looks: the enclave would be given up long before its client found that out."""
    server, client = hosts
    with serving(server, "20") as (_, url), application(client, program, url) as call:
        assert call("go_on") == "told"
        assert call("waited") == "over"
        assert connected_from(server, CLIENT)
        another_address(client, 1)
        until = time.monotonic() + SERVED
        while not connected_from(server, OTHER) and time.monotonic() < until:
            threading.Event().wait(0.1)
        assert connected_from(server, OTHER)
        assert call("note 1") == "1"


def test_a_line_that_carries_nothing_for_a_while_is_no_loss(hosts, program):
    server, client = hosts
    with serving(server) as (_, url), application(client, program, url) as call:
        client.ip("link", "set", "eth0", "down")
        assert call.process.stdin is not None
        call.process.stdin.write("note 1\n")
        call.process.stdin.flush()
        assert not call.says_something_within(3.5)  # longer than it takes to give a connection up
        client.ip("link", "set", "eth0", "up")
        assert call("note 2") == "1"
        assert call._line() == "2"
        assert call("ledger") == "{1: 1, 2: 1}"


def test_of_a_client_whose_host_has_vanished_nothing_is_left_after_the_grace(hosts, program):
    """No FIN, no RST: pings find it out, while the enclave works for nobody."""
    server, client = hosts
    with serving(server, "0.5") as (proxy, url), application(client, program, url) as call:
        started = children(proxy.pid)
        client.ip("link", "delete", "eth0")
        call.process.kill()
        assert proxy.wait(SERVED) == 0
        assert wait_until_ended(started) == set()


def test_who_loses_its_server_by_a_dead_line_is_told_after_the_grace(hosts, program):
    server, client = hosts
    with serving(server, "2") as (proxy, url), application(client, program, url) as call:
        server.ip("link", "delete", "eth0")
        assert call("note 1") == ""
        assert call.process.wait(SERVED) == 1
        assert proxy.wait(SERVED) == 0
