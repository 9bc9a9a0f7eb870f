"""The relays of a provision server's many enclaves share processes: what they do not share, and what ends with such a process."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import types
from pathlib import Path

import pytest
from command import start_server
from parties import PROGRAM, descendants, gone, is_relays, stop

import adyton
from adyton.errors import AdytonError, ConnectionLostError, UnreachableError
from adyton.handing_over import accept, control_pair
from adyton.loader import LoadArguments, load_enclave
from adyton.provision import relay_processes
from adyton.provision.client import RemoteProvision
from adyton.provision.relay_processes import RelayProcesses, RelaySettings
from adyton.remote.grpc_transport import GrpcTransport

pytestmark = pytest.mark.sandbox
WAIT = 60  # seconds until a test gives up
SECONDS = 30  # an error comes within 5 unless the machine is loaded


@pytest.fixture
def program(workplace) -> str:
    Path("waiting.py").write_text(PROGRAM)
    return str(Path("waiting.py").absolute())


@pytest.fixture
def serving():
    """A provision server's process, which shares its first relay process, and its URL."""
    process, url = start_server(relay_processes=1)
    yield process, url
    process.terminate()
    assert process.wait(80) == 0
    assert process.stdout is not None
    process.stdout.close()


def relays(server) -> list[int]:
    return [pid for pid in descendants(server.pid) if is_relays(pid)]


def until(condition) -> None:
    """It holds in time."""
    until = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < until
        threading.Event().wait(0.01)


def load(program: str, url: str) -> adyton.EnclaveClient:
    return adyton.load(program, on=url, allow_sim=True)


def test_two_enclaves_share_a_process_and_each_ends_alone(program, serving):
    server, url = serving
    with load(program, url) as first:
        with load(program, url) as second:
            assert first.call("quick") + second.call("quick") == 2
            (shared,) = relays(server)
            assert {each.processes()["proxy"].stat.pid for each in (first, second)} == {shared}
            assert first.processes()["guest"].stat.pid != second.processes()["guest"].stat.pid
        third = load(program, url)
        os.kill(third.processes()["supervisor"].stat.pid, signal.SIGKILL)
        with pytest.raises(ConnectionLostError):
            third.call("quick")
        with pytest.raises(AdytonError):
            third.close()
        assert first.call("quick") == 1
        assert relays(server) == [shared]
    assert gone({shared}) == set()


def test_the_end_of_the_process_is_told_to_all_whose_relays_it_had_and_the_server_goes_on(program, serving):
    _, url = serving
    clients = [load(program, url) for _ in range(2)]
    back = load_enclave(
        program, RemoteProvision.instantiate(url).dialled_back("127.0.0.1:0"), LoadArguments(allow_sim=True)
    )
    (shared,) = {each.processes()["proxy"].stat.pid for each in clients}
    enclaves = {each.processes()[name].stat.pid for each in clients for name in ("supervisor", "guest")}
    waiting = [each.submit("wait", 60.0) for each in clients]
    started = time.monotonic()
    os.kill(shared, signal.SIGKILL)
    assert [type(each.exception(WAIT)) for each in waiting] == [ConnectionLostError] * 2
    assert time.monotonic() - started < SECONDS
    assert gone(enclaves) == set()
    for each in clients:
        with pytest.raises(AdytonError):
            each.close()
    with back, load(program, url) as again:  # that one dials from a process of its own
        assert back.call("quick") + again.call("quick") == 2


def test_a_process_that_is_stopped_while_it_starts_is_given_up_soon():
    settings = RelaySettings(remote_proxy="sh -c 'kill -STOP $$'")
    before, started = descendants(os.getpid()), time.monotonic()
    with pytest.raises(UnreachableError, match="was stopped while it was started"):
        relay_processes._Process(settings, listens=True, changed=lambda _: None)
    assert time.monotonic() - started < relay_processes.START_SECONDS
    assert gone(set(descendants(os.getpid())) - set(before)) == set()


def test_a_process_that_is_stopped_when_it_gets_an_enclave_is_given_up_soon():
    process = relay_processes._Process(RelaySettings(), listens=True, changed=lambda _: None)
    mine, other = socket.socketpair()
    with mine, other:
        stop(process.pid)
        number, started = process.reserve(lambda: None), time.monotonic()
        with pytest.raises(UnreachableError, match="it was stopped"):
            process.carry(number, types.SimpleNamespace(pid=os.getpid(), socket=mine), bytes(16), None)
        assert time.monotonic() - started < relay_processes.START_SECONDS
        assert not process.shares
        process.kill()
    assert gone({process.pid}) == set()


def test_nothing_is_left_of_enclaves_that_have_ended(program, serving):
    server, url = serving
    with load(program, url) as client:
        for _ in range(2):
            load(program, url).close()
        (shared,) = relays(server)

        def has() -> tuple[int, int]:
            return len(os.listdir(f"/proc/{shared}/fd")), len(os.listdir(f"/proc/{shared}/task"))

        before = has()
        for _ in range(24):
            with load(program, url) as other:
                assert other.call("quick") == 1
        until(lambda: has() <= before)
        assert client.call("quick") == 1


def test_who_shows_one_sessions_token_gets_to_that_enclave_alone(program, serving):
    _, url = serving
    with load(program, url) as first, load(program, url) as second:
        one, other = (each._core.proxy._transport for each in (first, second))
        assert isinstance(one, GrpcTransport)
        assert str(one._target) == str(other._target)
        assert one._metadata != other._metadata
        found = [each.processes(WAIT)["supervisor"].stat.pid for each in (one, other)]
        assert found == [each.processes()["supervisor"].stat.pid for each in (first, second)]
        assert len(set(found)) == 2


class Enclave:
    """What a spawner knows of one; its supervisor is the test."""

    def __init__(self) -> None:
        self.theirs, self.socket = control_pair()
        self.pid = os.getpid()
        self.finished = threading.Event()


@pytest.fixture
def hosts(monkeypatch):
    monkeypatch.setattr(relay_processes, "ENCLAVES", 2)
    made = []

    def make(**settings) -> RelayProcesses:
        made.append(RelayProcesses(RelaySettings(**{"grace": 60.0, "processes": 1, **settings})))
        return made[-1]

    yield make
    for each in made:
        each.close()


def carried(hosts: RelayProcesses) -> tuple[Enclave, int]:
    """An enclave, and the port of its relay."""
    enclave = Enclave()
    port = hosts.carry(enclave, os.urandom(32), None, enclave.finished.set)
    enclave.socket.close()
    return enclave, port


def test_where_there_is_no_room_another_process_is_started_and_ends_when_it_is_empty(hosts):
    shared = hosts()
    enclaves, ports = zip(*(carried(shared) for _ in range(3)), strict=True)
    assert ports[0] == ports[1] != ports[2]
    assert len(shared._processes) == 2
    for each in enclaves[:2]:
        each.theirs.close()
        assert each.finished.wait(WAIT)
    until(lambda: len(shared._processes) == 1)
    again, port = carried(shared)
    assert port == ports[2]
    for each in (enclaves[2], again):
        each.theirs.close()
        assert each.finished.wait(WAIT)
    until(lambda: not shared._processes)


def test_the_first_enclaves_have_a_process_each_and_more_go_where_there_are_the_fewest(hosts):
    shared = hosts(processes=2)
    enclaves, ports = zip(*(carried(shared) for _ in range(3)), strict=True)
    assert ports[0] != ports[1]
    fewest = 1 - ports.index(ports[2])
    fourth, port = carried(shared)
    assert port == ports[fewest]
    for each in (*enclaves, fourth):
        each.theirs.close()


def test_each_process_takes_a_port_of_the_range(hosts):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        shared = hosts(ports=(first, min(first + 200, 65535)))
        enclaves, ports = zip(*(carried(shared) for _ in range(3)), strict=True)
    assert first < ports[0] == ports[1] < ports[2]
    for each in enclaves:
        each.theirs.close()


def test_a_process_that_was_stopped_is_given_nothing_more(hosts):
    shared = hosts()
    first, port = carried(shared)
    pid = shared._processes[0].pid
    stop(pid)
    second, other = carried(shared)
    assert other != port
    os.kill(pid, signal.SIGCONT)
    for each in (first, second):
        each.theirs.close()
        assert each.finished.wait(WAIT)


def test_a_process_that_is_told_to_end_takes_nothing_more_and_ends_when_it_is_empty(hosts):
    shared = hosts()
    enclave, port = carried(shared)
    (process,) = shared._processes
    os.kill(process.pid, signal.SIGTERM)
    until(lambda: process.leaving)
    other, another = carried(shared)
    assert another != port
    enclave.theirs.close()
    assert enclave.finished.wait(WAIT)
    assert gone({process.pid}) == set()
    other.theirs.close()


def test_a_supervisors_end_before_its_client_came_is_seen(hosts):
    enclave, _ = carried(hosts())
    enclave.theirs.settimeout(0.01)
    with pytest.raises(TimeoutError):
        accept(enclave.theirs)
    enclave.theirs.close()
    assert enclave.finished.wait(WAIT)
