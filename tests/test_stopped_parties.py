"""SIGSTOP of each party in turn: who waits gets an error after the grace, or the answer when it goes on before; nothing is left."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import hurried
import pytest
from command import start, start_server
from parties import descendants, executes, gone, litter, party, processes, stop

import adyton
from adyton.errors import AdytonError, ConnectionLostError, UnreachableError
from adyton.loader import LoadArguments, load_in_process
from adyton.remote import proxy_client
from adyton.stopped import STOPPED_SECONDS
from adyton.trusted import TrustedApplication, entry

# An error comes within 5 seconds unless the machine is loaded. One that came for another reason would have another text, or come never.
SECONDS = 30

pytestmark = [pytest.mark.sandbox, pytest.mark.usefixtures("own_temporary_directory")]

PROGRAM = """
import time

def wait(seconds: float) -> bool:
    time.sleep(seconds)
    return True

def quick() -> int:
    return 1

def size(data: bytes) -> int:
    return len(data)
"""


@pytest.fixture
def program(workplace):
    Path("waiting.py").write_text(PROGRAM)
    return str(Path("waiting.py").absolute())


@pytest.fixture(autouse=True)
def short_grace(request, monkeypatch):
    """Of all that is started, but where a party goes on in time; and this process waits for who is silent no longer than it needs to ask."""
    if "in_time" not in request.function.__name__:
        monkeypatch.setenv("ADYTON_GRACE", "1")
        monkeypatch.setattr("adyton.remote.line.LOST_AFTER", 2.0)


@pytest.fixture
def serving(short_grace):
    """A provision server's process, each of whose enclaves has a relay process of its own, and its URL."""
    process, url = start_server(relay_processes=16)
    yield process, url
    process.send_signal(signal.SIGCONT)
    process.terminate()
    assert process.wait(40) == 0
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture
def hurried_serving(short_grace):
    """The same, whose relay processes are hurried."""
    process = start("serve", "--port", "0", "--remote_proxy", shlex.join(hurried.command("proxy")))
    assert process.stdout is not None
    yield process, "grpc://" + process.stdout.readline().rpartition(" ")[2].strip()
    process.terminate()
    assert process.wait(40) == 0
    process.stdout.close()


def attempt(call, *arguments):
    """What the call raised or returned, and the seconds that it took."""
    started = time.monotonic()
    try:
        result = call(*arguments)
    except AdytonError as error:
        result = error
    return result, time.monotonic() - started


PARTIES = ("relay", "adyton-super", "enclave")


def victims(above, program, on=None):
    """A client for each party, with that party's process and all of its enclave's."""
    chosen = {}
    for victim in PARTIES:
        others = set(descendants(above))
        client = adyton.load(program, on=on, allow_sim=True)
        found = {pid: name for pid, name in descendants(above).items() if pid not in others}
        if victim != "relay":
            pid = party(found, victim)
        elif on is None:
            pid = processes()[party(found, "adyton-zygote")][0]
        else:
            pid = next(pid for pid, name in found.items() if name not in ("adyton-super", "enclave", "enclave-init"))
        chosen[victim] = client, pid, set(found)
    return chosen


def attempt_all(chosen, *arguments):
    """Call all at the same time; what came of it, by victim."""
    with ThreadPoolExecutor(len(chosen)) as threads:
        futures = {name: threads.submit(attempt, client.call, *arguments) for name, (client, _, _) in chosen.items()}
    return {name: future.result() for name, future in futures.items()}


def close_all(chosen):
    with ThreadPoolExecutor(len(chosen)) as threads:
        list(threads.map(attempt, [client.close for client, _, _ in chosen.values()]))


@pytest.mark.parametrize("where", ["local", "server"])
def test_who_waits_for_a_stopped_party_gets_an_error_soon_after_the_grace(program, where, request):
    """Here with a small argument, there with one that cannot be sent as a whole: both must be noticed."""
    process, url = request.getfixturevalue("serving") if where == "server" else (None, None)
    above = process.pid if process else os.getpid()
    call = ("quick",) if where == "server" else ("size", bytes(1 << 24))
    with adyton.load(program, on=url, allow_sim=True) as other:
        chosen = victims(above, program, url)
        for _, pid, _ in chosen.values():
            stop(pid)
        for victim, (outcome, seconds) in attempt_all(chosen, *call).items():
            assert isinstance(outcome, ConnectionLostError), (victim, outcome)
            assert "signal stopped" in str(outcome) or victim != "enclave"
            assert seconds < SECONDS, victim
        assert other.call("quick") == 1
        close_all(chosen)
        for victim, (_, _, found) in chosen.items():
            assert gone(found) == set(), victim
        assert other.call("quick") == 1
    if where == "local":
        assert litter() == set()


def test_a_party_that_goes_on_in_time_is_no_loss(program):
    in_time = False
    for _ in range(5):
        chosen = victims(os.getpid(), program)
        stopped = time.monotonic()
        for _, pid, _ in chosen.values():
            stop(pid)
        waiting = [client.submit("quick") for client, _, _ in chosen.values()]
        done = wait(waiting, 1).done
        for _, pid, _ in chosen.values():
            os.kill(pid, signal.SIGCONT)
        in_time = time.monotonic() - stopped < STOPPED_SECONDS - 0.5
        outcomes = [each.exception(60) or each.result() for each in waiting]
        close_all(chosen)
        if in_time:  # a loaded machine may have held this process up
            break
    assert in_time
    assert not done
    assert outcomes == [1, 1, 1]


def test_a_stopped_provision_server_is_out_of_reach_and_its_enclaves_go_on(program, serving):
    server, url = serving
    with adyton.load(program, on=url, allow_sim=True) as client:
        stop(server.pid)
        outcome, seconds = attempt(lambda: adyton.load(program, on=url, allow_sim=True))
        assert isinstance(outcome, UnreachableError), outcome
        assert seconds < SECONDS
        assert client.call("quick") == 1
        os.kill(server.pid, signal.SIGCONT)
        with adyton.load(program, on=url, allow_sim=True) as again:
            assert again.call("quick") == 1


def test_a_stopped_part_of_the_provision_server_fails_a_load_within_seconds(program):
    servers = {victim: start("serve", "--port", "0") for victim in ("spawner", "adyton-zygote")}

    def stop_and_load(victim):
        server = servers[victim]
        assert server.stdout is not None
        url = "grpc://" + server.stdout.readline().rpartition(" ")[2].strip()
        zygote = party(descendants(server.pid), "adyton-zygote")
        pid = zygote if victim == "adyton-zygote" else processes()[zygote][0]
        stop(pid)
        outcome, seconds = attempt(lambda: adyton.load(program, on=url, allow_sim=True))
        os.kill(pid, signal.SIGCONT)
        assert isinstance(outcome, UnreachableError), outcome
        assert "stopped by a signal" in str(outcome) or "a signal stopped" in str(outcome)
        assert seconds < SECONDS
        with adyton.load(program, on=url, allow_sim=True) as client:
            assert client.call("quick") == 1

    try:
        with ThreadPoolExecutor(len(servers)) as threads:
            list(threads.map(stop_and_load, servers))
    finally:
        for server in servers.values():
            assert server.stdout is not None
            server.terminate()
            server.stdout.close()
        assert [server.wait(40) for server in servers.values()] == [0, 0]


CLIENT = """
import adyton, sys
client = adyton.load(sys.argv[1], on=sys.argv[2], allow_sim=True)
print("loaded", flush=True)
try:
    for line in sys.stdin:
        print(client.call("quick"), flush=True)
except adyton.AdytonError as error:
    print(type(error).__name__, flush=True)
"""


@pytest.mark.long
def test_a_stopped_client_goes_on_or_its_enclave_ends(program, hurried_serving):
    server, url = hurried_serving
    started = {}
    for ending in ("is given up", "is killed", "goes on at once"):
        idle = set(descendants(server.pid))
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, program, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert client.stdout is not None
        assert client.stdout.readline() == "loaded\n"
        started[ending] = client, set(descendants(server.pid)) - idle
        stop(client.pid)

    def goes_on(ending, expected):
        client, found = started[ending]
        client.send_signal(signal.SIGCONT)
        assert client.communicate("call\n")[0] == expected
        assert gone(found) == set()

    goes_on("goes on at once", "1\n")
    client, found = started["is killed"]
    client.kill()
    client.communicate()
    assert gone(found) == set()
    assert gone(started["is given up"][1]) == set()
    goes_on("is given up", "ConnectionLostError\n")


class Idle(TrustedApplication):
    @entry
    def quick(self) -> int:
        return 1


def test_an_idle_session_says_nothing_of_its_own(monkeypatch):
    monkeypatch.setattr(proxy_client, "TICK", 0.05)
    with load_in_process(Idle(), LoadArguments()) as client:
        assert client.call("quick") == 1
        before = client.stats()["bytes_sent"]
        threading.Event().wait(1.2)  # more than pulse.PING_AFTER
        assert client.stats()["bytes_sent"] == before


def test_a_local_proxy_server_that_is_stopped_while_it_starts(program):
    outcome: list[object] = []

    def load() -> None:
        outcome.append(attempt(adyton.load, program))

    before = set(descendants(os.getpid()))
    thread = threading.Thread(target=load)
    thread.start()
    while not (new := {pid for pid in set(descendants(os.getpid())) - before if executes(pid, "proxy")}):
        threading.Event().wait(0.005)
    stop(min(new))
    thread.join(60)
    error, seconds = outcome[0]  # type: ignore[misc]
    assert isinstance(error, UnreachableError), error
    assert "stopped by a signal" in str(error)
    assert seconds < SECONDS
    assert gone(new) == set()
    assert litter() == set()
