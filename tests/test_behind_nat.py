"""The examples with their client behind NAT and their server on another host, by TLS with client certificates; and all that may be wrong."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import certificates
import network
import pytest
from command import ROOT
from network import Host, Network

from adyton.trusted import AeadCryptor

pytestmark = [pytest.mark.netns, pytest.mark.sandbox]
EXAMPLES = ROOT / "examples"
LISTENS = "import socket, sys; s = socket.create_server((sys.argv[1], 0)); print(s.getsockname()[1], flush=True); "


@pytest.fixture(scope="module")
def hosts() -> Iterator[Network]:
    if network.missing():
        pytest.skip(network.missing())
    with network.behind_nat() as made:
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("certificates")
    certificates.write(path, network.SERVER)
    return path


@contextmanager
def started(command: list[str], **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process and the first line that it prints; interrupted at the end, it must end by itself."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            process.wait(80)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(hosts, folder) -> Iterator[str]:
    """HOST:PORT of a provision server that knows its clients by their certificates."""
    files = [f"--{option}={folder / file}" for option, file in SERVES.items()]
    serve = hosts.server.python("-m", "adyton.cli", "serve", "--host", network.SERVER, "--port", "0", *files)
    with started(serve) as (_, line):
        assert line.startswith(f"adyton provision server listening on {network.SERVER}:"), line
        yield line.rpartition(" ")[2].strip()


SERVES = {"ssl_cert": "server.pem", "ssl_key": "server.key", "client-ca": "ca.pem"}


@pytest.fixture(scope="module")
def expired_server(hosts, folder) -> Iterator[str]:
    """HOST:PORT of a server whose certificate has expired since it was started: ours would not start."""
    program = (
        "import grpc, signal, sys, threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "pair = tuple(open(path, 'rb').read() for path in sys.argv[1:3])\n"
        "server = grpc.server(ThreadPoolExecutor(1))\n"
        "port = server.add_secure_port(sys.argv[3] + ':0', grpc.ssl_server_credentials([pair]))\n"
        "over = threading.Event()\n"
        "signal.signal(signal.SIGTERM, lambda *_: over.set())\n"
        "server.start()\n"
        "print(sys.argv[3], port, sep=':', flush=True)\n"
        "over.wait()\n"
        "server.stop(None).wait()\n"
    )
    pair = str(folder / "server-expired.key"), str(folder / "server-expired.pem")
    with started(hosts.server.python("-c", program, *pair, network.SERVER), GRPC_VERBOSITY="NONE") as (_, line):
        yield line.strip()


PROGRAMS = {
    "quickstart": [sys.executable, "-m", "adyton.cli", "run", "quickstart", "--", "--message", "behind NAT"],
    "edge": [sys.executable, str(EXAMPLES / "edge" / "run.py")],
    "circles": [sys.executable, str(EXAMPLES / "bouncing_circles" / "run.py")],
}
SAYS = {"quickstart": "demo_driver", "edge": "edge", "circles": "bouncing_circles"}  # before its errors


def environment(on: str, folder: Path, **files: str | None) -> dict[str, str]:
    """ADYTON_ variables for that server: bare HOST:PORT, so it is by TLS. `files`: instead of those that are right."""
    given = {"CA": "ca.pem", "CERT": "client.pem", "KEY": "client.key", **files}
    paths = {f"ADYTON_{name}": str(folder / file) for name, file in given.items() if file}
    return {"ADYTON_ON": on, "ADYTON_ALLOW_SIM": "1", **paths}


def run(name: str, host: Host, tmp_path: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """An example in its folder (a copy, in which it may build)."""
    folder = EXAMPLES
    if name == "quickstart":
        folder = tmp_path / "quickstart"
        shutil.copytree(EXAMPLES / "quickstart", folder, ignore=shutil.ignore_patterns("build"))
    return subprocess.run(
        host.command(*PROGRAMS[name]),
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_client_is_behind_nat(hosts):
    """The server sees the router's address, and cannot reach the client's."""
    with started(hosts.server.python("-c", LISTENS + "print(s.accept()[1][0])", network.SERVER)) as (listener, port):
        dial = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)"
        subprocess.run(hosts.client.python("-c", dial, network.SERVER, port), check=True)
        assert listener.stdout is not None
        assert listener.stdout.readline().strip() == network.OUTSIDE
    with started(hosts.client.python("-c", LISTENS + "s.accept()", network.CLIENT)) as (_, port):
        back = subprocess.run(
            hosts.server.python("-c", dial, network.CLIENT, port), capture_output=True, text=True, check=False
        )
        assert "Network is unreachable" in back.stderr


def test_the_quickstart_runs(hosts, server, folder, tmp_path):
    done = run("quickstart", hosts.client, tmp_path, environment(server, folder))
    assert done.returncode == 0, done.stderr
    line, encrypted = done.stdout.splitlines()
    assert line == "Encrypted message:"
    assert AeadCryptor.aes_gcm_siv(bytes(range(16))).open(bytes.fromhex(encrypted)) == b"behind NAT"


def test_edge_runs(hosts, server, folder, tmp_path):
    """A file of the client's is read from the enclave, though the server cannot dial the client."""
    done = run("edge", hosts.client, tmp_path, environment(server, folder))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"The longest pause between two heartbeats: \d+\.\d+ s\n", done.stdout)


def test_bouncing_circles_runs(hosts, server, folder):
    """Four enclaves on the server, and the web page at its usual port, which is free in a network of one's own."""
    variables = environment(server, folder)
    with started(hosts.client.command(*PROGRAMS["circles"], "--allow-sim"), **variables) as (_, line):
        assert line == "bouncing_circles listening on http://127.0.0.1:8888/\n"
        fetch = (
            "import sys, urllib.request as r; [print(r.urlopen(u, timeout=60).read().decode()) for u in sys.argv[1:]]"
        )
        site = "http://127.0.0.1:8888"
        pages = [f"{site}/circles", f"{site}/start?width=700&height=500", *[f"{site}/calc?unique_id={n}" for n in "12"]]
        fetched = subprocess.run(
            hosts.client.python("-c", fetch, *pages), capture_output=True, text=True, timeout=100, check=False
        )
        assert fetched.returncode == 0, fetched.stderr
        first, second = (line for line in fetched.stdout.splitlines() if line.startswith("<?xml"))
        assert first.count("<CIRCLE>") == second.count("<CIRCLE>") == 4
        assert first != second


WRONG = {  # files instead of those that are right; exit code; what is said of the server, or of our own file
    "wrong-ca": ({"CA": "other.pem"}, 10, r"{on} is not trusted: its certificate is not signed by the CA of --ca \("),
    "expired": ({"CERT": "client-expired.pem", "KEY": "client-expired.key"}, 2, r"expired on 2024-01-01 00:00 UTC"),
    "foreign": (
        {"CERT": "client-other.pem", "KEY": "client-other.key"},
        10,
        r"{on} does not accept our client certificate \(.*client-other.pem\)",
    ),
    "none": ({"CERT": None, "KEY": None}, 10, r"{on} wants a client certificate: give --cert and --key"),
}


def refused(name: str, done: subprocess.CompletedProcess[str], status: int, said: str) -> None:
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(f"{SAYS[name]}: ")]
    assert len(lines) == 1, done.stderr
    assert re.search(said, lines[0]), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", PROGRAMS)
def test_it_says_what_is_wrong(hosts, server, folder, tmp_path, name, wrong):
    files, status, said = WRONG[wrong]
    done = run(name, hosts.client, tmp_path, environment(server, folder, **files))
    refused(name, done, status, said.format(on=re.escape(server)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_servers_certificate_that_expired(hosts, expired_server, folder, tmp_path, name):
    done = run(name, hosts.client, tmp_path, environment(expired_server, folder))
    refused(name, done, 10, r"is not trusted: its certificate expired on 2024-01-01 00:00 UTC")


def test_a_port_that_a_firewall_drops(hosts, folder, tmp_path):
    done = run("edge", hosts.client, tmp_path, environment(f"{network.SERVER}:9", folder))
    refused("edge", done, 10, rf"cannot reach {network.SERVER}:9: no packet gets there and back")


@pytest.mark.skipif(bool(network.missing()), reason=network.missing() or "nothing")
def test_nothing_is_left():
    def fail_with_a_process_in_it() -> None:
        with network.behind_nat() as made:
            names.extend(host.name for host in (made.client, made.router, made.server))
            left.append(subprocess.Popen(made.server.python("-c", LISTENS + "s.accept()", network.SERVER)))
            while not made.server.processes():
                assert left[0].poll() is None
            raise RuntimeError("failed")

    names: list[str] = []
    left: list[subprocess.Popen[bytes]] = []
    with pytest.raises(RuntimeError, match="failed"):
        fail_with_a_process_in_it()
    assert left[0].wait(30) == -signal.SIGKILL
    assert not {*names} & {*subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout.split()}
