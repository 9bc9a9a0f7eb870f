"""Metrics of real enclaves, local and on a provision server: three processes, plausible values, one root for several enclaves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import adyton
from adyton import (
    EnclaveFinal,
    EnclaveLoadConfig,
    EnclaveManager,
    RemoteProvision,
    RemoteProxyClientConfig,
    remote_load_config,
)
from adyton.errors import AdytonError, ClosedError, UnauthenticatedError
from adyton.remote.connection import SESSION_METADATA

pytestmark = pytest.mark.sandbox

PROGRAM = """
import time

def compute(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(1000))

def hold(size: int) -> None:
    global held
    held = b"x" * size
"""
NAMES = {"proxy", "supervisor", "guest"}
Metrics = dict[str, dict[tuple[str, str], float]]


PLACES = ["local", "server", "local-dials", "server-dials"]


@pytest.fixture(params=PLACES[:2])
def place(request, monkeypatch):
    """Each test with a proxy server of this machine, and with a provision server's; where it dials, the address at which the client waits."""
    if request.param.startswith("server"):
        monkeypatch.setenv("ADYTON_ON", request.getfixturevalue("server"))
        monkeypatch.setenv("ADYTON_ALLOW_SIM", "1")
    return "127.0.0.1:0" if request.param.endswith("dials") else None


@pytest.fixture
def load(workplace, place):
    """Load under a name and a root, through the manager."""
    Path("prog.py").write_text(PROGRAM)
    loaded = []

    def load(name: str, provider: MeterProvider, root: str = "app") -> adyton.EnclaveClient:
        config = EnclaveLoadConfig(name=name)
        config.Extensions[remote_load_config].sgx_load_config.file_enclave_config.enclave_path = "prog.py"
        proxy_config = RemoteProxyClientConfig.create(RemoteProvision.instantiate(), dial_back=place)
        proxy_config.enable_opentelemetry_metrics(granularity=0.05, view_name_root=root, meter_provider=provider)
        loaded.append(EnclaveManager.instance().load_enclave(config, remote_proxy_config=proxy_config))
        return loaded[-1]

    yield load
    for client in loaded:
        if EnclaveManager.instance().get_name(client):
            EnclaveManager.instance().destroy_enclave(client, EnclaveFinal(), skip_finalize=True)


@pytest.fixture
def provider():
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    meters.reader = reader
    yield meters
    meters.shutdown()


def read(provider) -> Metrics:
    """name below the root → (enclave, process) → value"""
    data = provider.reader.get_metrics_data()
    return {
        metric.name.removeprefix("app/proc/stat/"): {
            (point.attributes["enclave"], point.attributes["process"]): point.value for point in metric.data.data_points
        }
        for resource in (data.resource_metrics if data else [])
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def eventually(provider, holds: Callable[[Metrics], bool]) -> Metrics:
    """The first metrics of which it holds."""
    deadline = time.monotonic() + 60
    while not holds(found := read(provider)):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_the_processes_of_an_enclave(load, provider):
    client = load("pay", provider)
    everything = {("pay", name) for name in NAMES}
    first = eventually(provider, lambda found: set(found.get("rss", ())) == everything)
    assert len(first) == 14
    assert all(set(points) == everything for points in first.values())
    assert all(value > 1 << 20 for name in ("rss", "vsize") for value in first[name].values())
    assert all(first["vsize"][key] >= first["rss"][key] for key in everything)
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert all(uptime - 300 < value <= uptime for value in first["starttime"].values())

    client.call("compute", 0.4)
    guest = ("pay", "guest")

    def busy(found: Metrics) -> float:
        return found["utime"][guest] + found["stime"][guest] if "utime" in found else 0

    second = eventually(provider, lambda found: busy(found) >= busy(first) + 0.3)
    assert second["starttime"] == first["starttime"]
    client.call("hold", 64 << 20)
    eventually(provider, lambda found: "rss" in found and found["rss"][guest] > first["rss"][guest] + (60 << 20))

    client.close()
    assert read(provider) == {}
    with pytest.raises(ClosedError):
        client.processes()


def test_the_raw_values(load, provider):
    client = load("pay", provider)
    reports = client.processes()
    assert set(reports) == NAMES
    for name, report in reports.items():
        stat, status = report.stat, report.status
        assert report.error == ""
        kernel = Path(f"/proc/{stat.pid}/stat").read_text().rpartition(") ")[2].split()
        assert (stat.ppid, stat.starttime) == (int(kernel[1]), int(kernel[19])), name
        assert stat.sc_clk_tck == os.sysconf("SC_CLK_TCK")
        assert stat.comm == status.name
        assert (status.pid, status.ppid) == (stat.pid, stat.ppid)
        assert status.vm_hwm > 1 << 10
        assert status.threads >= 1
        assert stat.startcode == stat.arg_start == 0
    supervisor, guest = reports["supervisor"], reports["guest"]
    assert (supervisor.stat.comm, guest.stat.comm) == ("adyton-super", "enclave")
    assert guest.stat.ppid == supervisor.stat.pid
    assert guest.status.ns_pid == [guest.stat.pid, 2]
    assert (guest.status.seccomp, guest.status.cap_eff, guest.status.no_new_privs) == (2, 0, True)
    if os.geteuid() == 0:
        assert supervisor.status.uid.real == guest.status.uid.real != 0


def test_several_enclaves_with_one_root(load, provider):
    clients = [load(name, provider) for name in ("one", "two")]
    keys = {(name, process) for name in ("one", "two") for process in NAMES}
    found = eventually(provider, lambda found: set(found.get("starttime", ())) == keys)
    reports = {client.name: client.processes() for client in clients}
    for (name, process), value in found["starttime"].items():
        stat = reports[name][process].stat
        assert value == stat.starttime / stat.sc_clk_tck
    pids = {report.stat.pid for each in reports.values() for report in each.values()}
    assert len(pids) == 6
    clients[0].close()
    assert {name for name, _ in read(provider)["rss"]} == {"two"}


def test_a_wrong_token_is_told_nothing(load, provider):
    transport = load("pay", provider)._core.proxy._transport
    transport._metadata = ((SESSION_METADATA, b"guessed" * 5),)
    with pytest.raises(UnauthenticatedError, match="token"):
        transport.processes(30)


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_an_enclave_that_is_killed_shows_nothing_and_harms_nothing(load, provider):
    client, other = load("killed", provider), load("other", provider)
    eventually(provider, lambda found: len(found.get("rss", ())) == 6)
    os.kill(client.processes()["supervisor"].stat.pid, 9)
    eventually(provider, lambda found: {name for name, _ in found.get("rss", ())} == {"other"})
    with pytest.raises(AdytonError):
        client.processes()
    with pytest.raises(AdytonError):
        client.close()
    assert set(other.processes()) == NAMES


def test_the_example_of_the_documentation(workplace, server):
    root = Path(__file__).parent.parent
    (code,) = re.findall(r"```python\n(.*?)```", (root / "docs" / "metrics.md").read_text(), re.DOTALL)
    for environment in ({}, {"ADYTON_ON": server, "ADYTON_ALLOW_SIM": "1"}):
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=root / "examples" / "pay",
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        for process in ("proxy", "supervisor", "guest"):
            assert re.search(rf"^demo/proc/stat/rss {process} \d+ By$", run.stdout, re.MULTILINE)
        assert re.search(r"^user id of the guest: \d+$", run.stdout, re.MULTILINE)
