"""`adyton attest` of enclaves whose clients were dialled: the server listens for whoever asks for evidence, and for nobody else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from command import adyton as run
from parties import descendants, executes, gone

from adyton import EnclaveFinal
from adyton.attestation.verify import verify
from adyton.errors import ClosedError, ConnectionLostError, NotFoundError, UnreachableError
from adyton.handing_over import accept, control_pair
from adyton.loader import LoadArguments, load_enclave
from adyton.provision.client import RemoteProvision
from adyton.remote.evidence_query import evidence_of
from adyton.remote.relay import Relays

LONG = 10_000.0  # seconds


@pytest.fixture(autouse=True)
def _program(workplace):
    Path("prog.py").write_text("def quick() -> int:\n    return 1\n")


@pytest.fixture
def provision(server):
    return RemoteProvision.instantiate(server).dialled_back("[::]:0")


def load(provision):
    return load_enclave("prog.py", provision, LoadArguments(allow_sim=True))


def evidence(provision, enclave):
    return evidence_of(provision.find(enclave.enclave_id), 60)


@pytest.fixture
def own_server():
    """A provision server's process and its URL."""
    command = [sys.executable, "-m", "adyton.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, "grpc://" + process.stdout.readline().rpartition(" ")[2].strip()
        process.terminate()


@pytest.mark.sandbox
def test_an_enclave_whose_client_was_dialled_can_be_asked_again_and_again(provision, server, tmp_path):
    with load(provision) as enclave:
        bound = set()
        for _ in range(6):  # more than connect at a time
            found = evidence(provision, enclave)
            assert verify(found).identity == enclave.identity
            bound.add(json.loads(found)["bound"]["nonce"])
        assert len(bound) == 6
        done = run("attest", enclave.enclave_id, "--on", server)
        assert (done.returncode, done.stderr) == (0, "")
        policy = tmp_path / "policy.toml"
        policy.write_text(
            f'[expect]\nplatforms = ["sim"]\ndebug = true\nmeasurement = ["{enclave.identity.measurement}"]\n'
        )
        (tmp_path / "evidence").write_text(done.stdout)
        assert run("verify", str(tmp_path / "evidence"), "--policy", str(policy)).returncode == 0
        assert enclave.call("quick") == 1


@pytest.mark.sandbox
def test_one_that_has_ended_is_not_found(provision):
    with load(provision) as enclave:
        assert evidence(provision, enclave)
        name = enclave.enclave_id
    with pytest.raises((NotFoundError, ClosedError)):  # the latter in the moment of its end
        evidence_of(provision.find(name), 60)


@pytest.mark.sandbox
def test_what_listens_for_askers_is_not_what_the_enclave_lives_by(own_server):
    process, url = own_server
    provision = RemoteProvision.instantiate(url).dialled_back("[::]:0")
    with load(provision) as enclave:
        dialling = relays(process.pid)
        assert len(dialling) == 1
        assert evidence(provision, enclave)
        (listening,) = relays(process.pid) - dialling
        os.kill(listening, signal.SIGKILL)
        assert not gone({listening})
        assert enclave.call("quick") == 1
        found = None
        while found is None:  # the server notices in a moment
            with suppress(UnreachableError, ConnectionLostError):
                found = evidence(provision, enclave)
        assert enclave.call("quick") == 1


@pytest.mark.sandbox
def test_what_dials_is_what_it_lives_by_though_another_process_has_its_socket(own_server):
    process, url = own_server
    provision = RemoteProvision.instantiate(url).dialled_back("[::]:0")
    enclave = load(provision)
    (dialling,) = relays(process.pid)
    assert evidence(provision, enclave)
    supervisors = {pid for pid, name in descendants(process.pid).items() if name == "adyton-super"}
    os.kill(dialling, signal.SIGKILL)
    assert not gone(supervisors)
    enclave.finalize(EnclaveFinal(), skip=True)


def relays(server: int) -> set[int]:
    return {pid for pid in descendants(server) if executes(pid, "adyton.provision.relay_process")}


def test_a_relay_for_askers_waits_for_no_client():
    relays, controls = Relays(), []
    for kept in (False, True):
        supervisors, ours = control_pair()
        controls.append(supervisors)
        relays.attach(ours, bytes([kept]) * 32, kept=kept)
    with relays._changed:
        relays._look(LONG)
        held = [relay.kept for relay in relays._controls.values()]
    assert held == [True]
    relays.close()
    for control in controls:
        control.settimeout(60)
        assert accept(control) is None
        control.close()
