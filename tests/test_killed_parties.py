"""kill -9 of each party in turn: callers get an error within seconds, and nothing is left running or lying about."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command import start
from parties import PROGRAM, descendants, gone, litter, party, relay_of, stop

import adyton
from adyton.errors import AdytonError, ConnectionLostError, DeadlineError

# An error comes within 5 seconds unless the machine is loaded; the calls that it ends would take 60.
SECONDS = 30

pytestmark = [pytest.mark.sandbox, pytest.mark.usefixtures("own_temporary_directory")]


@pytest.fixture
def program(workplace):
    Path("waiting.py").write_text(PROGRAM)
    return str(Path("waiting.py").absolute())


@pytest.mark.parametrize("victim", ["relay", "adyton-super", "enclave", "adyton-zygote"])
def test_a_killed_party_of_a_local_enclave(program, victim):
    others = set(descendants(os.getpid()))
    client = adyton.load(program)
    found = {pid: name for pid, name in descendants(os.getpid()).items() if pid not in others}
    pid = relay_of(found, party(found, "adyton-zygote")) if victim == "relay" else party(found, victim)
    errors: list[AdytonError] = []

    def call() -> None:
        try:
            client.call("wait", 60.0)
        except AdytonError as error:
            errors.append(error)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    assert client.call("quick") == 1
    started = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    for caller in callers:
        caller.join(60)
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


def test_a_killed_client_leaves_nothing(program):
    code = f"import adyton\nclient = adyton.load({program!r})\nprint('loaded', flush=True)\nclient.call('wait', 60.0)"
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    assert client.stdout.readline() == "loaded\n"
    found = descendants(client.pid)
    assert len(found) >= 4
    client.kill()
    client.wait()
    client.stdout.close()
    assert gone(set(found)) == set()
    assert litter() == set()


@pytest.mark.parametrize("victim", ["relay", "adyton-super", "enclave", "client"])
def test_the_provision_server_outlives_what_it_started(program, victim, workplace):
    server = start("serve", "--port", "0")
    assert server.stdout is not None
    url = "grpc://" + server.stdout.readline().rpartition(" ")[2].strip()
    idle = descendants(server.pid)
    code = (
        f"import adyton\nclient = adyton.load({program!r}, on={url!r}, allow_sim=True)\nprint('loaded', flush=True)\n"
        "try:\n    client.call('wait', 60.0)\nexcept adyton.AdytonError as error:\n    print(type(error).__name__, flush=True)"
    )
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    assert client.stdout.readline() == "loaded\n"
    found = {pid: name for pid, name in descendants(server.pid).items() if pid not in idle}
    if victim == "client":
        client.kill()
    else:
        pid = (
            party(found, victim)
            if victim != "relay"
            else next(pid for pid, name in found.items() if name not in ("adyton-super", "enclave"))
        )
        started = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        assert client.stdout.readline() == "ConnectionLostError\n"
        assert time.monotonic() - started < SECONDS
    client.wait(60)
    client.stdout.close()
    assert gone(set(found)) == set()
    with adyton.load(program, on=url, allow_sim=True) as again:
        assert again.call("quick") == 1
    assert gone(set(descendants(server.pid)) - set(idle)) == set()
    server.terminate()
    assert server.wait(40) == 0
    server.stdout.close()
    assert gone(set(idle)) == set()
    assert litter() == set()


def test_a_killed_provision_server_leaves_nothing(program):
    server = start("serve", "--port", "0")
    assert server.stdout is not None
    url = "grpc://" + server.stdout.readline().rpartition(" ")[2].strip()
    client = adyton.load(program, on=url, allow_sim=True)
    found = descendants(server.pid)
    server.kill()
    server.wait()
    server.stdout.close()
    assert gone(set(found)) == set()
    with pytest.raises(AdytonError):
        client.call("quick")
    with pytest.raises(AdytonError):
        client.close()
    assert litter() == set()


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
