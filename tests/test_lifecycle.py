"""An enclave's life: what is taken in which state, with which codes, and what a load or a finalize that fails leaves behind."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import re
import signal
import tempfile
import threading
from pathlib import Path

import pytest
from command import start
from hypothesis import given
from hypothesis import strategies as st
from sandbox import children, wait_until_ended

from adyton import (
    EnclaveFinal,
    EnclaveInput,
    EnclaveLoadConfig,
    EnclaveManager,
    EnclaveManagerOptions,
    FakeEnclaveLoader,
    RemoteProvision,
    RemoteProxyClientConfig,
    remote_load_config,
)
from adyton.attestation.verify import verify
from adyton.communicator.messages import RUN, EnterRequest, Raised, decode, encode
from adyton.errors import (
    CANONICAL_CODES,
    ClosedError,
    ConnectionLostError,
    EnclaveError,
    ExpectationError,
    NameInUseError,
    UnknownEntryError,
    UnreachableError,
    UsageError,
)
from adyton.loader import LoadArguments, load_in_process
from adyton.proto.enclave import EnclaveConfig, EnclaveOutput, user_message
from adyton.runtime.process.guest.application import Application, Refused
from adyton.runtime.process.guest.lifecycle import TABLE, Input, Lifecycle, State
from adyton.trusted import Enclave, TrustedApplication, host_function

# -- the table --------------------------------------------------------------------------------------------------------

# The shortest way to each state, from the beginning.
WAYS = {
    State.UNINITIALIZED: [],
    State.INITIALIZING: [Input.LOAD],
    State.RUNNING: [Input.LOAD, Input.LOADED],
    State.FINALIZING: [Input.LOAD, Input.LOADED, Input.FINALIZE],
    State.FINALIZED: [Input.LOAD, Input.LOADED, Input.FINALIZE, Input.FINALIZE_ENDED],
}


@pytest.mark.parametrize(("state", "what"), list(itertools.product(State, Input)), ids=lambda each: each.name.lower())
def test_every_state_takes_or_refuses_every_input(state, what):
    life = Lifecycle()
    for step in WAYS[state]:
        life.apply(step)
    assert life.state is state
    if what in TABLE[state]:
        life.apply(what)
        assert life.state is TABLE[state][what]
    else:
        with pytest.raises(ClosedError) as refused:
            life.apply(what)
        assert refused.value.code == "FAILED_PRECONDITION"
        assert life.state is state


@given(st.lists(st.sampled_from(Input), max_size=12))
def test_calls_are_only_taken_between_a_load_and_a_finalize(inputs):
    life, taken = Lifecycle(), []
    for what in inputs:
        try:
            life.apply(what)
        except ClosedError:
            continue
        taken.append(what)
    order = [Input.LOAD, Input.LOADED, Input.ENTER, Input.FINALIZE, Input.FINALIZE_ENDED]
    assert taken == [Input.LOAD, Input.LOAD_FAILED] or taken == sorted(taken, key=order.index)
    assert all(taken.count(what) <= 1 for what in Input if what is not Input.ENTER)


class _Probe(TrustedApplication):
    """Asks its own Application for everything, in the middle of initialize and finalize."""

    application: Application
    seen: dict[str, list[str]]

    def initialize(self, config):
        self.seen["initializing"] = attempts(self.application)

    def finalize(self, final):
        self.seen["finalizing"] = attempts(self.application)


def attempts(application: Application) -> list[str]:
    """What the application says to a load, an entry, a run and a finalize."""
    said = []
    for step in (
        lambda: application.load(_Probe(), "p", [], b""),
        lambda: application.enter(encode(EnterRequest("nothing", b"\x92\x90\x80"))),
        lambda: application.run(encode(EnterRequest(RUN, b""))),
        lambda: application.finalize(b""),
    ):
        try:
            step()
            said.append("done")
        except Refused as refused:
            said.append(refused.raised.kind)
        except UsageError:
            said.append("ran")
    return said


def test_an_application_refuses_what_its_state_does_not_allow():
    probe, application = _Probe(), Application(debug=False)
    probe.application, probe.seen = application, {}
    assert attempts_without_load(application) == ["state"] * 3
    application.load(probe, "p", [], b"")
    assert application.finalize(b"") == b""
    assert probe.seen == {"initializing": ["state"] * 4, "finalizing": ["state"] * 4}
    assert attempts(application) == ["state"] * 4


def attempts_without_load(application: Application) -> list[str]:
    said = []
    for method, body in ((application.enter, b""), (application.run, b""), (application.finalize, b"")):
        with pytest.raises(Refused) as refused:
            method(body)
        said.append(refused.value.raised.kind)
    return said


@pytest.mark.parametrize("method", ["load", "run", "finalize"])
def test_a_malformed_message_is_refused_before_any_code_runs(method):
    application = Application(debug=False)
    if method != "load":
        application.load(Enclave("e"), "e", [], b"")
    calls = {
        "load": lambda: application.load(Enclave("e"), "e", [], b"\xff"),
        "run": lambda: application.run(encode(EnterRequest(RUN, b"\xff"))),
        "finalize": lambda: application.finalize(b"\xff"),
    }
    with pytest.raises(Refused) as refused:
        calls[method]()
    assert decode(application.raised(refused.value), Raised).kind == "type"


# -- statuses ---------------------------------------------------------------------------------------------------------


class _WithStatus(TrustedApplication):
    def run(self, enclave_input):
        output = EnclaveOutput()
        output.status.code = int(enclave_input.Extensions[user_message])
        output.status.error_message = "as it was asked"
        return output


@pytest.fixture
def manager():
    yield EnclaveManager.instance()
    EnclaveManager.configure(EnclaveManagerOptions())


def fake(application: TrustedApplication) -> None:
    EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(application)))


def test_a_status_that_is_not_ok_is_raised_with_its_code(manager):
    fake(_WithStatus())
    with manager.load_enclave(EnclaveLoadConfig(name="status")) as client:
        for number in (*range(17), 99, -1):
            message = EnclaveInput()
            message.Extensions[user_message] = str(number)
            if number == 0:
                assert client.enter_and_run(message).status.error_message == "as it was asked"
                continue
            code = CANONICAL_CODES[number] if 0 < number < 17 else "UNKNOWN"
            with pytest.raises(EnclaveError, match="as it was asked") as raised:
                client.enter_and_run(message)
            assert (raised.value.code, raised.value.type, raised.value.exit_code) == (code, code, 50)
    assert EnclaveError.code == "UNKNOWN"


# -- names ------------------------------------------------------------------------------------------------------------

app = Enclave("app")
moment: dict[str, object] = {}


@host_function
def now() -> None: ...


@app.on_initialize
def initialize(config: EnclaveConfig) -> None:
    moment["initialize"] = EnclaveManager.instance().get_client("app")
    if any(each.name == "FAIL" for each in config.environment_variables):
        raise ValueError("told to fail")


@app.on_finalize
def finalize(final: EnclaveFinal) -> None:
    manager = EnclaveManager.instance()
    with pytest.raises(NameInUseError):
        manager.load_enclave(EnclaveLoadConfig(name="app"))
    with pytest.raises(ClosedError):
        moment["client"].call("add", 1, 2)
    with pytest.raises(ClosedError):
        manager.destroy_enclave(moment["client"], EnclaveFinal())
    moment["finalize"] = True
    raise LookupError("finalize failed")


@app.entry
def add(a: int, b: int) -> int:
    return a + b


def test_names_from_the_load_to_after_the_destroy(manager):
    fake(app)
    assert manager.get_client("app") is None
    client = moment["client"] = manager.load_enclave(EnclaveLoadConfig(name="app"))
    assert moment["initialize"] is None
    assert manager.get_client("app") is client
    assert manager.get_name(client.options(timeout=30)) == "app"
    with pytest.raises(NameInUseError) as used:
        manager.load_enclave(EnclaveLoadConfig(name="app"))
    assert used.value.code == "ALREADY_EXISTS"
    with pytest.raises(LookupError, match="finalize failed"):
        manager.destroy_enclave(client.options(timeout=30), EnclaveFinal())
    assert moment["finalize"] is True
    assert (manager.get_client("app"), manager.get_name(client)) == (None, "")
    for use in (
        lambda: client.call("add", 1, 2),
        lambda: client.enter_and_run(EnclaveInput()),
        lambda: client.submit("add", 1, 2),
        lambda: manager.destroy_enclave(client, EnclaveFinal()),
    ):
        with pytest.raises(ClosedError) as closed:
            use()
        assert closed.value.code == "FAILED_PRECONDITION"
    client.close()
    manager.destroy_enclave(None, EnclaveFinal())
    again = manager.load_enclave(EnclaveLoadConfig(name="app"))
    manager.destroy_enclave(again, EnclaveFinal(), skip_finalize=True)


def test_a_foreign_client_is_not_destroyed(manager):
    with load_in_process(Enclave("other"), LoadArguments()) as foreign:
        assert manager.get_name(foreign) == ""
        with pytest.raises(ClosedError):
            manager.destroy_enclave(foreign, EnclaveFinal())
        with pytest.raises(UnknownEntryError):
            foreign.call("nothing")


@pytest.mark.parametrize(
    ("use", "text"),
    [
        (lambda manager: manager.get_name("app"), "it is str: give what load_enclave or get_client returned"),
        (
            lambda manager: manager.destroy_enclave("app", EnclaveFinal()),
            "give what load_enclave or get_client returned",
        ),
        (lambda manager: manager.load_enclave("app"), "load_enclave takes an EnclaveLoadConfig, not str"),
        (
            lambda manager: manager.load_enclave(
                EnclaveLoadConfig(name="app"), remote_proxy_config=RemoteProvision.instantiate()
            ),
            "make one with RemoteProxyClientConfig.create",
        ),
        (lambda _: EnclaveManager.configure(None), "configure takes EnclaveManagerOptions, not NoneType"),
    ],
    ids=["name of a name", "destroy a name", "load a name", "a provision as configuration", "configure nothing"],
)
def test_what_is_no_such_object_is_said_at_once(manager, use, text):
    with pytest.raises(UsageError, match=re.escape(text)) as wrong:
        use(manager)
    assert wrong.value.code == "INVALID_ARGUMENT"
    assert manager.get_client("app") is None


# -- loads that fail --------------------------------------------------------------------------------------------------


def threads() -> set[str]:
    return {each.name for each in threading.enumerate() if each.name.startswith("adyton-")}


def settled(find, wanted, rounds=3000):
    """What `find` gives, once it is as wanted; threads and processes take a moment to end."""
    for _ in range(rounds):
        if find() == wanted:
            break
        threading.Event().wait(0.01)
    return find()


def wrong() -> None: ...


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"functions": [wrong, wrong]}, NameInUseError),
        ({"allow": {"read": ["/usr"]}}, UsageError),
        ({"expect": {"platfrom": []}}, UsageError),
        ({"environment": ["LD_PRELOAD"]}, UsageError),
        ({"environment": ["FAIL"]}, ValueError),
    ],
    ids=["functions", "paths", "expectation", "environment", "initialize"],
)
def test_a_load_that_fails_leaves_no_name_and_no_thread(manager, more, kind):
    fake(app)
    gc.collect()
    before = threads()
    config = EnclaveLoadConfig(name="app")
    for name in more.get("environment", []):
        config.config.environment_variables.add(name=name, value="x")
    with pytest.raises(kind):
        manager.load_enclave(config, **{key: value for key, value in more.items() if key != "environment"})
    assert manager.get_client("app") is None
    assert settled(lambda: threads() - before, set()) == set()
    client = manager.load_enclave(EnclaveLoadConfig(name="app"))
    assert client.call("add", 1, 2) == 3
    manager.destroy_enclave(client, EnclaveFinal(), skip_finalize=True)


PROGRAM = """
import os
import adyton.trusted as trusted

enclave = trusted.Enclave("half")

@enclave.on_initialize
def initialize(config: trusted.EnclaveConfig) -> None:
    if os.environ.get("FAIL") == "raise":
        raise ValueError("told to fail")
    if os.environ.get("FAIL") == "exit":
        os._exit(3)

@enclave.on_finalize
def finalize(final: trusted.EnclaveFinal) -> None:
    raise LookupError("finalize failed")

@enclave.entry
def add(a: int, b: int) -> int:
    return a + b
"""


@pytest.fixture
def half(workplace, monkeypatch):
    """A program, and a folder for temporary files that is to be empty afterwards."""
    Path("half.py").write_text(PROGRAM)
    with tempfile.TemporaryDirectory(prefix="h", dir="/tmp") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield directory


def half_config(fail: str = "") -> EnclaveLoadConfig:
    config = EnclaveLoadConfig(name="half")
    config.Extensions[remote_load_config].sgx_load_config.file_enclave_config.enclave_path = "half.py"
    if fail:
        config.config.environment_variables.add(name="FAIL", value=fail)
    return config


def nothing_is_left(directory: str, before: set[int]) -> bool:
    return wait_until_ended(children(os.getpid()) - before) == set() and os.listdir(directory) == []


@pytest.mark.sandbox
def test_a_real_load_that_fails_at_any_point_leaves_nothing_and_works_again(manager, half, monkeypatch):
    before = children(os.getpid())
    cases = (
        (half_config("raise"), {}, ValueError),
        (half_config("exit"), {}, ConnectionLostError),
        (half_config(), {"expect": {"measurement": ["sha256:" + "0" * 64]}}, ExpectationError),
        (half_config(), {"functions": [wrong, wrong]}, NameInUseError),
        (half_config(), {"remote_proxy_config": proxy_config("/bin/false")}, UnreachableError),
    )
    for config, more, kind in cases:
        with pytest.raises(kind):
            manager.load_enclave(config, **more)
        assert manager.get_client("half") is None
        assert nothing_is_left(half, before), kind
    # and a proxy server that dies in the middle of a load
    for wait in (lambda: None, wait_until_nobody_reads):
        with monkeypatch.context() as patch:
            patch.setattr(
                "adyton.remote.proxy_client.verify",
                lambda evidence, collateral, wait=wait: kill(before) or wait() or verify(evidence, collateral),
            )
            with pytest.raises(ConnectionLostError):
                manager.load_enclave(half_config())
        assert nothing_is_left(half, before)
    client = manager.load_enclave(half_config())
    assert client.call("add", 1, 2) == 3
    with pytest.raises(LookupError, match="finalize failed"):
        manager.destroy_enclave(client, EnclaveFinal())
    assert manager.get_client("half") is None
    assert nothing_is_left(half, before)


def kill(before: set[int]) -> None:
    for pid in children(os.getpid()) - before:
        with contextlib.suppress(ProcessLookupError):  # it ended with one that was killed before
            os.kill(pid, signal.SIGKILL)


def wait_until_nobody_reads() -> None:
    for each in threading.enumerate():
        if each.name == "adyton-reader":
            each.join(60)


def proxy_config(command: str | None = None) -> RemoteProxyClientConfig:
    return RemoteProxyClientConfig.defaults_with_provision(RemoteProvision.instantiate(remote_proxy=command))


@pytest.mark.sandbox
def test_one_proxy_config_serves_any_number_of_loads(manager, half):
    """And a load that fails does not end another's proxy server."""
    before = children(os.getpid())
    shared = proxy_config()
    first = manager.load_enclave(half_config(), remote_proxy_config=shared)
    second = half_config()
    second.name = "second"
    failing = half_config("raise")
    failing.name = "failing"
    other = manager.load_enclave(second, remote_proxy_config=shared)
    with pytest.raises(ValueError, match="told to fail"):
        manager.load_enclave(failing, remote_proxy_config=shared)
    assert [client.call("add", 1, 2) for client in (first, other)] == [3, 3]
    for client in (first, other):
        manager.destroy_enclave(client, EnclaveFinal(), skip_finalize=True)
    assert nothing_is_left(half, before)


@pytest.mark.sandbox
def test_a_load_that_fails_leaves_nothing_on_a_server_either(manager, half, monkeypatch):
    process = start("serve", "--port", "0")
    assert process.stdout is not None
    try:
        monkeypatch.setenv("ADYTON_ON", "grpc://" + process.stdout.readline().rpartition(" ")[2].strip())
        idle = children(process.pid)
        with pytest.raises(ExpectationError):  # simulated, which nobody allowed
            manager.load_enclave(half_config())
        monkeypatch.setenv("ADYTON_ALLOW_SIM", "1")
        with pytest.raises(ValueError, match="told to fail"):
            manager.load_enclave(half_config("raise"))
        with pytest.raises(ConnectionLostError):
            manager.load_enclave(half_config("exit"))
        with pytest.raises(NameInUseError):
            manager.load_enclave(half_config(), functions=[wrong, wrong])
        assert manager.get_client("half") is None
        client = manager.load_enclave(half_config())
        assert client.call("add", 1, 2) == 3
        manager.destroy_enclave(client, EnclaveFinal(), skip_finalize=True)
        assert wait_until_ended(children(process.pid) - idle) == set()
    finally:
        process.terminate()
        assert process.wait(40) == 0
        process.stdout.close()
    assert os.listdir(half) == []
