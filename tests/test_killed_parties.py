"""kill -9 of each party in turn: callers get an error within seconds, and nothing is left running or lying about."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import start
from parties import PROGRAM, descendants, gone, litter, party, relay_of, stop

import adyton
from adyton.client import EnclaveClient
from adyton.errors import AdytonError, ConnectionLostError, DeadlineError
from adyton.loader import LoadArguments, load_enclave
from adyton.provision.client import RemoteProvision

# An error comes within 5 seconds unless the machine is loaded; the calls that it ends would take 60.
SECONDS = 30

pytestmark = [pytest.mark.sandbox, pytest.mark.usefixtures("own_temporary_directory")]


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    """Of all that is started; and as long does a client wait for a server that dials it to do so again."""
    monkeypatch.setenv("ADYTON_GRACE", "1")
    monkeypatch.setattr("adyton.remote.dial_back.AGAIN_SECONDS", 1.0)


@pytest.fixture
def program(workplace):
    Path("waiting.py").write_text(PROGRAM)
    return str(Path("waiting.py").absolute())


# Whoever dials: where the client waits for the proxy server, if it does.
either_way = pytest.mark.parametrize("dial_back", ["", "127.0.0.1:0"], ids=["dialled", "dials back"])


def load(program: str, dial_back: str, url: str | None = None) -> EnclaveClient:
    if not dial_back:
        return adyton.load(program, on=url, allow_sim=True)
    provision = RemoteProvision.instantiate(url).dialled_back(dial_back)
    return load_enclave(program, provision, LoadArguments(allow_sim=True))


CLIENT = """
import sys
import adyton
from adyton.loader import LoadArguments, load_enclave
from adyton.provision.client import RemoteProvision
from adyton.remote import dial_back as waiting

waiting.AGAIN_SECONDS = 1.0
program, dial_back, url = sys.argv[1:]
if dial_back:
    provision = RemoteProvision.instantiate(url or None).dialled_back(dial_back)
    client = load_enclave(program, provision, LoadArguments(allow_sim=True))
else:
    client = adyton.load(program, on=url or None, allow_sim=True)
print("loaded", flush=True)
try:
    client.call("wait", 60.0)
except adyton.AdytonError as error:
    print(type(error).__name__, flush=True)
"""


@contextmanager
def client_process(program: str, dial_back: str, url: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that has loaded it, and waits in a call."""
    command = [sys.executable, "-c", CLIENT, program, dial_back, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        try:
            assert client.stdout.readline() == "loaded\n"
            yield client
        finally:
            client.kill()


@either_way
@pytest.mark.parametrize("victim", ["relay", "adyton-super", "enclave", "adyton-zygote"])
def test_a_killed_party_of_a_local_enclave(program, victim, dial_back):
    others = set(descendants(os.getpid()))
    client = load(program, dial_back)
    found = {pid: name for pid, name in descendants(os.getpid()).items() if pid not in others}
    pid = relay_of(found, party(found, "adyton-zygote")) if victim == "relay" else party(found, victim)
    waiting = [client.submit("wait", 60.0) for _ in range(3)]
    assert client.call("quick") == 1
    started = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    errors = [each.exception(60) for each in waiting]
    assert time.monotonic() - started < SECONDS
    assert [type(error) for error in errors] == [ConnectionLostError] * 3
    if victim == "enclave":
        assert "SIGKILL" in str(errors[0])
    with pytest.raises(AdytonError):
        client.call("quick")
    with pytest.raises(AdytonError):
        client.close()
    assert gone(set(found)) == set()
    assert litter() == set()


def test_of_a_guest_that_was_killed_before_it_had_read_all_the_signal_is_said(program):
    """Its sockets are reset then, not just closed."""
    others = set(descendants(os.getpid()))
    client = adyton.load(program)
    found = {pid: name for pid, name in descendants(os.getpid()).items() if pid not in others}
    stop(party(found, "enclave"))
    with pytest.raises(DeadlineError):
        client.options(timeout=0.3).call("quick")
    os.kill(party(found, "enclave"), signal.SIGKILL)
    with pytest.raises(ConnectionLostError, match="SIGKILL"):
        client.call("quick")
    with pytest.raises(AdytonError):
        client.close()
    assert gone(set(found)) == set()


@either_way
def test_a_killed_client_leaves_nothing(program, dial_back):
    with client_process(program, dial_back) as client:
        found = descendants(client.pid)
        assert len(found) >= 4
        client.kill()
        client.wait()
        assert gone(set(found)) == set()
    assert litter() == set()


@contextmanager
def provision_server(status: int) -> Iterator[tuple[subprocess.Popen[str], str, dict[int, str]]]:
    """Its process, its URL, and the processes below it, which end with it and leave nothing. `status`: what it ends with."""
    with start("serve", "--port", "0") as server:
        assert server.stdout is not None
        url = "grpc://" + server.stdout.readline().rpartition(" ")[2].strip()
        idle = descendants(server.pid)
        try:
            yield server, url, idle
        finally:
            server.terminate()
            assert server.wait(80) == status
    assert gone(set(idle)) == set()
    assert litter() == set()


@either_way
def test_the_provision_server_outlives_what_it_started(program, dial_back):
    with provision_server(0) as (server, url, idle):
        for victim in ("relay", "adyton-super", "enclave", "client"):
            with client_process(program, dial_back, url) as client:
                found = {pid: name for pid, name in descendants(server.pid).items() if pid not in idle}
                if victim == "client":
                    pid = client.pid
                elif victim == "relay":
                    pid = next(pid for pid, name in found.items() if name not in ("adyton-super", "enclave"))
                else:
                    pid = party(found, victim)
                started = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                if victim != "client":
                    assert client.stdout.readline() == "ConnectionLostError\n", victim
                    assert time.monotonic() - started < SECONDS, victim
                assert gone(set(found)) == set(), victim
            with load(program, dial_back, url) as again:
                assert again.call("quick") == 1
            assert gone(set(descendants(server.pid)) - set(idle)) == set(), victim


@either_way
def test_a_killed_provision_server_leaves_nothing(program, dial_back):
    with provision_server(-signal.SIGKILL) as (server, url, _):
        client = load(program, dial_back, url)
        waiting = client.submit("wait", 60.0)
        found = descendants(server.pid)
        started = time.monotonic()
        server.kill()
        assert isinstance(waiting.exception(60), ConnectionLostError)
        assert time.monotonic() - started < SECONDS
        assert gone(set(found)) == set()
        with pytest.raises(AdytonError):
            client.call("quick")
        with pytest.raises(AdytonError):
            client.close()


def test_a_proxy_server_that_never_starts(program, monkeypatch):
    for command, expected in (
        ("/nonexistent/proxy", "cannot be started"),
        ("false", "ended with status 1"),
        ("echo hello", "hello"),
    ):
        with pytest.raises(AdytonError) as caught:
            adyton.load(program, remote_proxy=command)
        assert caught.value.exit_code == 10
        assert expected in str(caught.value)


def test_a_server_that_is_not_there(program):
    started = time.monotonic()
    with pytest.raises(AdytonError) as caught:
        adyton.load(program, on="grpc://127.0.0.1:1")
    assert caught.value.exit_code == 10
    assert time.monotonic() - started < SECONDS
