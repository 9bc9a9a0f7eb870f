"""The Python interface as its users read it: what is imported when, what arguments mean, what errors are."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import adyton
from adyton import (
    EnclaveFinal,
    EnclaveInput,
    EnclaveLoadConfig,
    EnclaveManager,
    EnclaveManagerOptions,
    EnclaveOutput,
    FakeEnclaveLoader,
    RemoteProvision,
    RemoteProxyClientConfig,
    remote_load_config,
    trusted,
    user_message,
)
from adyton.errors import AdytonError, ExpectationError, PlatformError, UsageError

PROGRAM = """
import os

def read(path: str) -> str:
    with open(path) as file:
        return file.read()

def nothing() -> None:
    pass
"""


@pytest.fixture
def program(workplace) -> str:
    Path("prog.py").write_text(PROGRAM)
    Path("file.txt").write_text("content")
    return "prog.py"


def test_importing_loads_no_grpc():
    code = (
        "import sys, adyton, adyton.trusted as trusted\n"
        "enclave = trusted.Enclave('e')\n"
        "@enclave.entry\ndef f(x: int) -> int: return x\n"
        "@trusted.host_function\ndef g(x: int) -> int: ...\n"
        "print([name for name in sys.modules if name.startswith('grpc')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_load_takes_what_it_is_said_to_take():
    parameters = inspect.signature(adyton.load).parameters
    expected = {
        "on": None,
        "policy": None,
        "expect": None,
        **dict.fromkeys(("allow_read", "allow_write", "allow_net", "allow_listen", "allow_env", "allow_call"), ()),
        "functions": (),
        "allow_sim": False,
        "platform": "auto",
        **dict.fromkeys(("tls", "token", "name", "timeout")),
    }
    assert {name: parameters[name].default for name in expected} == expected
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in expected)


def test_user_message_is_extension_1000_of_input_and_output():
    enclave_input, enclave_output = EnclaveInput(), EnclaveOutput()
    enclave_input.Extensions[user_message] = enclave_output.Extensions[user_message] = "hi"
    assert user_message.number == 1000
    assert enclave_input.SerializeToString() == enclave_output.SerializeToString() == b"\xc2\x3e\x02hi"


def test_every_error_has_a_code_and_an_exit_code():
    def tree(kind: type[AdytonError]) -> list[type[AdytonError]]:
        return [kind, *(found for each in kind.__subclasses__() for found in tree(each))]

    for kind in tree(AdytonError):
        assert kind.code == kind.code.upper()
        assert kind.exit_code in (1, 2, 10, 11, 20, 21, 22, 23, 24, 25, 30, 31, 40, 41, 50)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"timeout": 0}, UsageError, "seconds above 0"),
        ({"timeout": -1}, UsageError, "seconds above 0"),
        ({"platform": "sxg"}, UsageError, "no platform 'sxg'"),
        ({"platform": "tdx"}, PlatformError, "tdx"),
        ({"stats": "missing/stats"}, UsageError, "missing/stats"),
        ({"expect": {"platfrms": ["sim"]}}, UsageError, "platforms"),
        ({"allow_read": "file.txt"}, UsageError, "must be a list"),
        ({"allow_read": ["/usr/share"]}, UsageError, "/usr is the enclave's own"),
        ({"allow_env": ["PYTHONPATH"]}, UsageError, "PYTHONPATH"),
        ({"name": 5}, UsageError, "name=5: give a text"),
        ({"token": b"secret"}, UsageError, "give a text"),
        ({"platform": 5}, UsageError, "platform=5: give a text"),
        ({"remote_proxy": ["adyton", "proxy"]}, UsageError, "give a command"),
        ({"allow_sim": "no"}, UsageError, "allow_sim='no': give True or False"),
        ({"policy": {"allow": {}}}, UsageError, "give the path of a policy file"),
        ({"tls": {"ca": "ca.pem"}}, UsageError, "tls= is for a server, and none is named"),
        ({"tls": "ca.pem", "on": "grpcs://h"}, UsageError, r"give adyton\.TLS"),
        ({"token": "secret"}, UsageError, "token= is for a server, and none is named"),
        ({"on": "grpc://h:0"}, UsageError, "no server has port 0"),
        ({"on": "grpcs://unix:/s"}, UsageError, "a unix socket is written unix:/s, and is without TLS"),
        ({"allow_read": [3]}, UsageError, "allow_read: 3 is no path"),
        ({"on": 4321}, UsageError, "4321 is no address"),
        ({"functions": len}, UsageError, r"functions=\[len\]"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_starts(program, arguments, kind, text, capfd):
    with pytest.raises(kind, match=text):
        adyton.load(program, **arguments)
    assert capfd.readouterr() == ("", "")


def test_an_address_to_wait_at_is_a_text():
    with pytest.raises(UsageError, match="dial_back=5 is no address"):
        RemoteProxyClientConfig.create(RemoteProvision.instantiate(), dial_back=5)


class Reader(trusted.TrustedApplication):
    """Its policy's paths are the client's business alone, so nothing of it has to read."""


def load_config(name: str) -> EnclaveLoadConfig:
    config = EnclaveLoadConfig(name=name)
    config.Extensions[remote_load_config].sgx_load_config.file_enclave_config.enclave_path = "prog.py"
    return config


def test_the_environments_policy_holds_for_a_manager_too(program, monkeypatch):
    orders = []

    class Loader(FakeEnclaveLoader):
        def load(self, order):
            orders.append(order)
            return super().load(order)

    Path("policy.toml").write_text('[allow]\nread = ["file.txt"]\nenv = ["TZ"]\n')
    monkeypatch.setenv("ADYTON_POLICY", "policy.toml")
    monkeypatch.setenv("ADYTON_ALLOW_CALL", "lookup other")
    monkeypatch.setenv("ADYTON_ALLOW_WRITE", "ignored")
    EnclaveManager.configure(EnclaveManagerOptions(loader=Loader(Reader())))
    manager = EnclaveManager.instance()
    try:
        client = manager.load_enclave(load_config("reader"), allow={"write": ["out"]})
        manager.destroy_enclave(client, EnclaveFinal())
        with pytest.raises(UsageError, match="did you mean read"):
            manager.load_enclave(load_config("reader"), allow={"raed": []})
    finally:
        EnclaveManager.configure(EnclaveManagerOptions())
    (order,) = orders
    here = str(Path.cwd())
    assert order.policy.allow.read == (f"{here}/file.txt",)
    assert order.policy.allow.write == (f"{here}/out",)
    assert order.policy.allow.call == ("lookup", "other")
    assert order.policy.allow.env == ("TZ",)


@pytest.mark.sandbox
def test_one_line_says_that_nothing_is_confidential(program, capfd):
    with adyton.load(program, allow_read=["file.txt"]) as client:
        assert client.call("read", "file.txt") == "content"
        assert client.name == "prog"
        assert client.identity.platform == "sim"
    assert capfd.readouterr() == ("", "adyton: simulated enclave: NOT CONFIDENTIAL\n")


@pytest.mark.sandbox
def test_a_denial_is_one_line_and_a_permission_error(program, capfd):
    with adyton.load(program) as client:
        for _ in range(2):
            with pytest.raises(PermissionError) as raised:
                client.call("read", "file.txt")
    error = raised.value
    assert isinstance(error, AdytonError)
    assert (error.exit_code, error.errno, error.strerror) == (30, 13, "Permission denied")
    assert error.filename is None
    path = Path.cwd() / "file.txt"
    assert capfd.readouterr().err.splitlines()[1:] == [f"denied: read {path} (add --allow-read {path})"]


@pytest.mark.sandbox
def test_an_expectation_may_leave_platforms_out(program):
    with pytest.raises(ExpectationError) as raised:
        adyton.load(program, expect={"measurement": ["sha256:" + "0" * 64], "debug": True})
    assert [failure.field for failure in raised.value.failures] == ["measurement"]
    with adyton.load(program, expect={"debug": True}) as client:
        client.call("nothing")
    with pytest.raises(ExpectationError) as raised:
        adyton.load(program, expect={"platforms": ["tdx"], "debug": True})
    assert [failure.field for failure in raised.value.failures] == ["platform"]


@pytest.mark.sandbox
def test_leave_to_simulate_is_leave_to_debug(program, server):
    with pytest.raises(ExpectationError):
        adyton.load(program, on=server, expect={"platforms": ["sim"]})
    with adyton.load(program, on=server, expect={"platforms": ["sim"]}, allow_sim=True) as client:
        client.call("nothing")
