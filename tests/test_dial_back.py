"""Dial-back with real enclaves: who starts the proxy server, over what it dials, and with which certificates.

What ends one side: test_killed_parties, in both directions.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trustme
from command import adyton, start
from conftest import waiting_address
from network import Host, two_hosts

from adyton import (
    EnclaveFinal,
    EnclaveLoadConfig,
    EnclaveManager,
    RemoteProvision,
    RemoteProxyClientConfig,
    remote_load_config,
)
from adyton.cli.root import run as run_command
from adyton.client import EnclaveClient
from adyton.errors import (
    DeadlineError,
    HostCallDeniedError,
    ImageError,
    PlatformError,
    UnreachableError,
    UsageError,
)
from adyton.loader import LoadArguments, load_enclave
from adyton.provision import client as provision_client
from adyton.provision import local_proxy
from adyton.remote.address import TLS

pytestmark = pytest.mark.sandbox
PROGRAM = """
import adyton.trusted as trusted

@trusted.host_function
def shout(text: str) -> str: ...

def read(path: str) -> str:
    with open(path) as file:
        return shout(file.read())

def size(data: bytes) -> int:
    return len(data)

def quick() -> int:
    return 1
"""
TOKEN = "a token for tests"
LATE = 30.0  # seconds: what is to come within 5 on a machine that is not loaded, and after 60 if nobody notices


def shout(text: str) -> str:
    return text.upper()


@pytest.fixture(autouse=True)
def _program(workplace):
    Path("prog.py").write_text(PROGRAM)
    Path("file.txt").write_text("content")
    Path("token").write_text(TOKEN + "\n")


@pytest.fixture
def short(server, monkeypatch) -> Iterator[str]:
    """A folder whose name is short enough for sockets, and which is empty in the end. (All tests' server keeps its own elsewhere.)"""
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield directory
        _wait_until_empty(directory)
        assert os.listdir(directory) == []


def load(provision: RemoteProvision, **arguments) -> EnclaveClient:
    return load_enclave("prog.py", provision, LoadArguments(allow_sim=True, **arguments))


@pytest.mark.parametrize("family", ["ipv4", "ipv6", "any", "unix"])
@pytest.mark.parametrize("on", ["local", "server"])
def test_the_guides_program_with_dial_back(on, family, short, request, monkeypatch):
    url = request.getfixturevalue("server") if on == "server" else None
    monkeypatch.setenv("ADYTON_ALLOW_SIM", "1")
    proxy_config = RemoteProxyClientConfig.create(
        RemoteProvision.instantiate(url), dial_back=waiting_address(family, short)
    )
    load_config = EnclaveLoadConfig(name=f"dial-back-{on}-{family}")
    remote = load_config.Extensions[remote_load_config]
    remote.sgx_load_config.debug = True
    remote.sgx_load_config.file_enclave_config.enclave_path = "prog.py"
    manager = EnclaveManager.instance()
    client = manager.load_enclave(
        load_config,
        remote_proxy_config=proxy_config,
        allow={"read": ["file.txt"], "call": ["shout"]},
        functions=[shout],
    )
    try:
        assert client.call("read", "file.txt") == "CONTENT"
        assert client.call("size", bytes(3 << 20)) == 3 << 20
        with pytest.raises(HostCallDeniedError):
            client.call("read", "token")
        assert client.identity.platform == "sim"
        assert client.evidence
        for _ in range(2):
            reports = client.processes()
            assert set(reports) == {"proxy", "supervisor", "guest"}
            assert all(report.stat.pid > 0 and not report.error for report in reports.values())
    finally:
        manager.destroy_enclave(client, EnclaveFinal())


def test_one_config_serves_several_enclaves_at_once(server):
    provision = RemoteProvision.instantiate(server).dialled_back("[::]:0")
    with load(provision) as one, load(provision) as other:
        assert [each.call("quick") for each in (one, other, one)] == [1, 1, 1]


# -- started by hand ---------------------------------------------------------------------------------------------------


def free_port(family: str = "ipv4") -> int:
    """Below those that the kernel hands out: of those any process may get one between this look and its use."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = lowest // 2 + secrets.randbelow(lowest // 2)
        with socket.socket(socket.AF_INET6 if family == "ipv6" else socket.AF_INET) as sock, suppress(OSError):
            sock.bind(("::1" if family == "ipv6" else "127.0.0.1", port))
            return port


@contextmanager
def proxy(address: str, *options: str, token: str = "token") -> Iterator[subprocess.Popen[str]]:
    process = start("proxy", "--host_address", address, "--token-file", token, *options, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def awaited(address: str, tls: TLS | None = None) -> RemoteProvision:
    return RemoteProvision.instantiate(token=TOKEN, tls=tls).dialled_back(address)


def by_hand(address: str) -> str:
    family = "ipv6" if address.startswith("[") else "ipv4"
    return address.replace(":0", f":{free_port(family)}") if not address.startswith("unix:") else address


@pytest.mark.parametrize("family", ["ipv4", "ipv6", "unix"])
def test_a_proxy_server_started_by_hand(family, short):
    address = by_hand(waiting_address(family, short))
    with proxy(address) as process:
        with load(awaited(address)) as client:
            assert client.call("quick") == 1
            assert process.stdout.readline() == f"adyton proxy connected to {address}\n"
        assert process.wait(80) == 0, process.stderr.read()
        assert process.stderr.read() == ""


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> tuple[Callable[..., str], str]:
    """(name → the path of a certificate with its key, the CA's path)."""
    directory = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(directory / "other-ca.pem"))

    def issue(*names: str) -> str:
        path = directory / f"{names[0]}.pem"
        ca.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(str(path))
        return str(path)

    return issue, str(directory / "ca.pem")


@pytest.mark.parametrize("mutual", [False, True], ids=["token-only", "mutual"])
def test_by_hand_with_certificates(authority, mutual):
    issue, ca = authority
    mine, its = issue("127.0.0.1"), issue("proxy.example")
    address = by_hand("127.0.0.1:0")
    options = ["--client-ca", ca] + (["--ssl_cert", its, "--ssl_key", its] if mutual else [])
    tls = TLS(ca=ca if mutual else None, cert=mine, key=mine)
    with proxy(address, *options) as process, load(awaited(address, tls)) as client:
        assert client.call("quick") == 1
        client.close()
        assert process.wait(80) == 0


@pytest.mark.parametrize("wrong", ["ca", "name", "none", "no-certificate-of-its-own"])
def test_by_hand_with_the_wrong_certificates(authority, wrong):
    issue, ca = authority
    mine = issue("10.9.9.9" if wrong == "name" else "127.0.0.1")
    tls = TLS(ca=ca if wrong == "no-certificate-of-its-own" else None, cert=mine, key=mine)
    address = by_hand("127.0.0.1:0")
    listener = provision_client.DialBack(provision_client.ListenAddress.parse(address), TOKEN, tls)
    try:
        options = (
            [] if wrong == "none" else ["--client-ca", ca.replace("ca.pem", "other-ca.pem") if wrong == "ca" else ca]
        )
        if wrong in ("ca", "name"):
            process = adyton("proxy", "--host_address", address, "--token-file", "token", *options)
            assert (process.returncode, process.stdout) == (10, "")
            assert "--client-ca" in process.stderr
        else:  # tried again until the client may have come: not waited for
            with proxy(address, *options), pytest.raises(UnreachableError, match="no proxy server came"):
                listener.provisioning(2)
    finally:
        listener.close()


def test_only_the_token_lets_one_in(short):
    Path("wrong").write_text("guess\n")
    address = f"unix:{short}/c"
    loaded: list[EnclaveClient] = []
    waiting = threading.Thread(target=lambda: loaded.append(load(awaited(address))))
    waiting.start()
    with proxy(address, token="wrong") as process:
        assert process.wait(80) == 10
        assert "secret" in process.stderr.read()
        assert process.stdout.read() == ""
    assert waiting.is_alive()
    with proxy(address) as process:
        waiting.join(80)
        with proxy(address) as second:
            assert second.wait(80) == 2
            assert "has its proxy server already" in second.stderr.read()
        assert loaded[0].call("quick") == 1
        loaded[0].close()
        assert process.wait(80) == 0


@pytest.fixture
def refused(capfd) -> Callable[..., str]:
    """What `adyton proxy ARGUMENTS`, with more environment, says of its wrong use; in this process."""

    def call(*arguments: str, **environment: str) -> str:
        with pytest.MonkeyPatch.context() as monkeypatch:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                run_command(["proxy", *arguments])
        out, err = capfd.readouterr()
        assert (ended.value.code, out) == (2, "")
        return err

    return call


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--host_address", "127.0.0.1:1"], "--token-file"),
        (["--host_address", "10.0.0.1:1", "--token-file", "token"], "--client-ca"),
        (["--host_address", "client.example:1", "--token-file", "token"], "--client-ca"),
        (["--host_address", "::1:1", "--token-file", "token"], "brackets"),
        (["--host_address", "[::]:1", "--token-file", "token"], "where a client waits"),
        (["--host_address", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--token-file", "token"], "one of the two"),
        (["--host_address", "unix:/x", "--token-file", "token", "--client-ca", "ca"], "unix:PATH"),
        (["--host_address", "127.0.0.1:1", "--token-file", "token", "--security_type", "ssl"], "--client-ca"),
        (["--host_address", "10.0.0.1:1", "--token-file", "token", "--security_type", "local"], "--client-ca"),
        (["--host_address", "127.0.0.1:1", "--token-file", "token", "--client-ca", "none.pem"], "cannot read"),
    ],
    ids=lambda value: " ".join(value[1:4])[:40] if isinstance(value, list) else None,
)
def test_wrong_use_of_the_proxy_command(refused, arguments, hint):
    assert hint in refused(*arguments)


def test_an_option_beats_the_environment(refused):
    assert "--host_address '::1:1'" in refused("--host_address", "::1:1", ADYTON_LISTEN="127.0.0.1:0")
    assert "--listen x" in refused("--listen", "x", ADYTON_HOST_ADDRESS="127.0.0.1:1")
    assert "one of the two" in refused(ADYTON_LISTEN="127.0.0.1:0", ADYTON_HOST_ADDRESS="127.0.0.1:1")


@pytest.mark.parametrize(
    ("address", "hint"),
    [("127.0.0.1:0", "name one"), ("0.0.0.0:7000", "TLS"), ("[::]:7000", "TLS"), ("10.0.0.1:7000", "TLS")],
)
def test_wrong_use_of_a_client_that_waits_for_one_started_by_hand(address, hint):
    with pytest.raises(UsageError, match=hint):
        load(awaited(address))


def test_a_token_and_a_proxy_to_start_do_not_go_together():
    with pytest.raises(UsageError, match="started by hand"):
        RemoteProvision.instantiate(remote_proxy="adyton proxy", token="x").dialled_back("127.0.0.1:0")


# -- what does not come, or fails --------------------------------------------------------------------------------------


SLEEPS = "sleep 60; true"


def test_a_proxy_server_that_never_comes(monkeypatch, short):
    monkeypatch.setattr(local_proxy, "STOP_TIMEOUT", 0.1)
    in_time = local_proxy.START_TIMEOUT
    for command, expected in (
        (SLEEPS, "within 0.5 s that it has reached 127.0.0.1:"),
        ("/nonexistent/proxy", "cannot be started"),
        ("false", "ended with status 1"),
        ("echo adyton proxy connected to x", "no proxy server came to 127.0.0.1:"),
    ):
        monkeypatch.setattr(local_proxy, "START_TIMEOUT", 0.5 if command == SLEEPS else in_time)
        monkeypatch.setattr(provision_client, "JOIN_TIMEOUT", 0.5)
        with pytest.raises(UnreachableError) as caught:
            load(RemoteProvision.instantiate(remote_proxy=f"sh -c '{command}'").dialled_back("127.0.0.1:0"))
        assert expected in str(caught.value) or "not found" in str(caught.value)


def test_one_started_by_hand_that_never_comes():
    address = by_hand("127.0.0.1:0")
    with pytest.raises(UnreachableError, match="firewall") as caught:
        load(awaited(address), timeout=0.3)
    assert address in str(caught.value)
    assert "--host_address" in str(caught.value)


@pytest.mark.parametrize("way", ["dialled", "dial-back"])
def test_a_loads_timeout_bounds_provisioning(way, short, monkeypatch):
    provision = RemoteProvision.instantiate(remote_proxy="sh -c 'sleep 60'")
    if way == "dial-back":
        provision = provision.dialled_back("127.0.0.1:0")
    monkeypatch.setattr(local_proxy, "STOP_TIMEOUT", 0.1)
    started = time.monotonic()
    with pytest.raises(
        DeadlineError, match=r"had not said .* when the load's 0\.5 s were over: give it a longer timeout"
    ):
        load(provision, timeout=0.5)
    assert time.monotonic() - started < LATE


def test_a_silent_server_is_given_up_at_the_loads_timeout():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"grpc://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=r"within the load's 0\.5 s"):
            load(RemoteProvision.instantiate(url), timeout=0.5)


def test_the_port_to_wait_at_is_in_use(server):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UsageError, match="cannot listen at"):
            load(RemoteProvision.instantiate(server).dialled_back(address))


def test_what_fails_in_the_proxy_server_is_raised_at_the_client(short, monkeypatch):
    with pytest.raises(PlatformError):
        load(RemoteProvision.instantiate().dialled_back("127.0.0.1:0"), platform="tdx")
    monkeypatch.setattr(provision_client, "chunks_of", lambda image, _missing: iter(()))
    monkeypatch.setattr(
        provision_client, "offer_of", lambda image, platform: provision_client.Offer(manifest=b"x", platform="sim")
    )
    with pytest.raises(ImageError, match="digest"):
        load(RemoteProvision.instantiate().dialled_back("127.0.0.1:0"))


def test_a_proxy_server_that_waits_itself_says_so(short):
    process = start("proxy", "--listen", f"unix:{short}/p")
    assert process.stdout is not None
    try:
        process.stdout.readline()
        with pytest.raises(UsageError, match="--host_address"):
            load(RemoteProvision.instantiate(f"unix:{short}/p").dialled_back("127.0.0.1:0"))
    finally:
        process.terminate()
        assert process.wait(80) == 0
        process.stdout.close()


def test_a_program_that_closes_nothing_can_end(short):
    code = (
        "from adyton.loader import LoadArguments, load_enclave\nfrom adyton.provision.client import RemoteProvision\n"
        "client = load_enclave('prog.py', RemoteProvision.instantiate().dialled_back('127.0.0.1:0'), LoadArguments())\n"
        "print(client.call('quick'))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (0, "1\n"), run.stderr
    _wait_until_empty(short)


# -- what ends one side ------------------------------------------------------------------------------------------------


def _wait_until_empty(directory: str) -> None:
    deadline = time.monotonic() + 60
    while os.listdir(directory) and time.monotonic() < deadline:
        threading.Event().wait(0.02)


def test_sigterm_lets_the_session_of_one_started_by_hand_go_on(short):
    address = f"unix:{short}/c"
    with proxy(address) as process:
        client = load(awaited(address))
        process.send_signal(signal.SIGTERM)
        assert client.call("quick") == 1
        client.close()
        assert process.wait(80) == 0


# -- between machines --------------------------------------------------------------------------------------------------


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as both:
        yield both


ONCE = """
from adyton.loader import LoadArguments, load_enclave
from adyton.provision.client import RemoteProvision
import json, sys, adyton
from adyton.remote.address import TLS

token, tls, cases = json.loads(sys.argv[1])
for url, address in cases:
    try:
        provision = RemoteProvision.instantiate(url, token=token, tls=TLS(cert=tls, key=tls) if tls else None).dialled_back(address)
        with load_enclave('prog.py', provision, LoadArguments(allow_sim=True, timeout=40)) as client:
            said = client.call('quick')
    except adyton.AdytonError as error:
        said = f"{type(error).__name__} {error}"
    print(json.dumps(said), flush=True)
"""


def once(on: Host, *cases: tuple[str | None, str], token: str | None = None, tls: str | None = None) -> list[object]:
    """What a client there gets of an enclave, or says of its error, for each (URL, address to wait at)."""
    run = subprocess.run(
        on.python("-c", ONCE, json.dumps([token, tls, cases])),
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.netns
def test_a_provision_server_on_another_machine_dials_back(hosts):
    on_server, on_client = hosts
    command = on_server.python("-m", "adyton.cli", "serve", "--host", "::", "--port", "4321", "--insecure")
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        server.stdout.readline()
        ipv4, ipv6 = "grpc://10.78.0.1", "grpc://[fd78::1]"
        right = [(ipv4, "[::]:0"), (ipv6, "[::]:0"), (ipv4, "10.78.0.2:0"), (ipv6, "[fd78::2]:7777")]
        assert once(on_client, *right) == [1, 1, 1, 1]
        wrong = [(ipv4, address) for address in ("127.0.0.1:0", "[fd78::2]:0", "unix:/tmp/x")]
        *others, family = once(on_client, *wrong, (ipv6, "0.0.0.0:0"))
        assert [said.partition("=")[0] for said in others] == ["UsageError dial_back"] * 3
        assert "give [::] instead" in family
    finally:
        server.terminate()
        assert server.wait(80) == 0
        server.stdout.close()


@pytest.mark.netns
@pytest.mark.parametrize("address", ["10.78.0.2:0", "[fd78::2]:0"], ids=["ipv4", "ipv6"])
def test_one_started_by_the_client_on_another_machine_dials_back(hosts, address, monkeypatch):
    """… by a command such as ssh, which hands the environment on."""
    on_server, on_client = hosts
    monkeypatch.setenv("ADYTON_REMOTE_PROXY", " ".join(on_server.python("-m", "adyton.cli", "proxy")))
    assert once(on_client, (None, address)) == [1]


@pytest.mark.netns
@pytest.mark.parametrize("host", ["10.78.0.2", "fd78::2"], ids=["ipv4", "ipv6"])
def test_one_started_by_hand_on_another_machine_dials_back(hosts, authority, host):
    on_server, on_client = hosts
    issue, ca = authority
    mine = issue("fd78::2", "10.78.0.2")
    there = f"[{host}]:7000" if ":" in host else f"{host}:7000"
    command = ["proxy", "--host_address", there, "--token-file", "token", "--client-ca", ca]
    process = subprocess.Popen(on_server.python("-m", "adyton.cli", *command), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert once(on_client, (None, "[::]:7000"), token=TOKEN, tls=mine) == [1]
        assert process.wait(80) == 0
        assert process.stdout.read() == f"adyton proxy connected to {there}\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
