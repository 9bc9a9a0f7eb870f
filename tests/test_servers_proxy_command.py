"""`adyton serve --remote_proxy COMMAND`: what the server starts for each enclave."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import start
from parties import descendants, gone

import adyton
from adyton.errors import UnreachableError
from adyton.loader import LoadArguments, load_enclave
from adyton.provision.client import RemoteProvision

pytestmark = pytest.mark.sandbox
PROXY = f"{shlex.quote(sys.executable)} -m adyton.cli proxy"


@contextlib.contextmanager
def serving(command: str) -> Iterator[str]:
    server = start("serve", "--port", "0", "--remote_proxy", command)
    assert server.stdout is not None
    with server.stdout:
        yield "grpc://" + server.stdout.readline().rpartition(" ")[2].strip()
        found = set(descendants(server.pid))
        server.terminate()
        assert server.wait(60) == 0
        assert gone(found) == set()


@pytest.fixture
def program(workplace: Path) -> str:
    Path("prog.py").write_text("def double(number: int) -> int:\n    return 2 * number\n")
    return str(workplace / "prog.py")


@pytest.mark.parametrize("ending", ["exec ", ""], ids=["in its place", "below it"])
def test_the_command_is_started_for_each_enclave_and_ends_with_it(program, ending, monkeypatch):
    command = f"sh -c {shlex.quote(f'echo started >>{os.getcwd()}/told; {ending}{PROXY}; exit')}"
    with serving(command) as url:
        with adyton.load(program, on=url, allow_sim=True) as client:
            assert client.call("double", 2) == 4
        monkeypatch.setenv("ADYTON_ALLOW_SIM", "1")
        back = RemoteProvision.instantiate(url).dialled_back("127.0.0.1:0")
        with load_enclave(adyton.loader.open_image(program), back, LoadArguments()) as client:
            assert client.call("double", 3) == 6
    assert Path("told").read_text() == "started\n" * 2


def test_a_command_that_starts_no_proxy_server_is_named_and_the_server_lives(program):
    with serving("true") as url:
        for _ in range(2):
            with pytest.raises(UnreachableError, match="does its --remote_proxy not end up in adyton proxy: true"):
                adyton.load(program, on=url, allow_sim=True)
