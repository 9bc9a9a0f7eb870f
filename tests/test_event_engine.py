"""A proxy server has gRPC run without its EventEngine, unless its operator or gRPC's version wants it otherwise; nobody sees anything of that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from adyton.remote import event_engine

VARIABLE = "GRPC_EXPERIMENTS"
SERVES = """
from concurrent.futures import ThreadPoolExecutor
from adyton.remote import event_engine
event_engine.keep_off()
import grpc
server = grpc.server(ThreadPoolExecutor(1))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    grpc.channel_ready_future(channel).result(60)
server.stop(None).wait()
"""
STARTS = """
import os, socket, sys
from adyton.provision import proxy, relay_process

def served(*_):
    print(os.environ.get("GRPC_EXPERIMENTS"), "grpc" in sys.modules)

proxy.serve_alone = relay_process.listen = served
spawner = socket.socketpair()
os.dup2(spawner[0].fileno(), 0)
sys.argv[1:] = sys.argv[1].split()
"""
PROXY = "from adyton.cli import main; main()"
RELAY = "from adyton.provision.relay_process import main; main(sys.argv[1:])"


def python(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**environment, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )


def test_this_version_of_grpcio_knows_what_it_is_told_and_says_nothing_about_it():
    assert event_engine._grpcio_version() <= event_engine._LAST, (
        "does this version of grpcio know the experiments? Then say so in event_engine._LAST"
    )
    assert python(SERVES).stderr == ""


@pytest.mark.parametrize(
    ("code", "arguments"),
    [(PROXY, "proxy --listen 127.0.0.1:0"), (RELAY, "0 60 127.0.0.1 0 0")],
    ids=["proxy", "relay"],
)
def test_proxy_servers_tell_grpc_before_they_import_it(code, arguments):
    said = python(STARTS + code, arguments).stdout
    assert said == f"{event_engine._OFF} False\n"


def test_an_operator_has_the_last_word():
    assert python(STARTS + PROXY, "proxy --listen 127.0.0.1:0", **{VARIABLE: "wanted"}).stdout == "wanted False\n"


@pytest.mark.parametrize(("version", "expected"), [((1, 85), event_engine._OFF), ((1, 86), None), ((2, 0), None)])
def test_a_version_that_may_not_know_is_left_alone(monkeypatch, version, expected):
    monkeypatch.setattr(event_engine, "_grpcio_version", lambda: version)
    monkeypatch.setattr(os, "environ", {})
    event_engine.keep_off()
    assert os.environ.get(VARIABLE) == expected
