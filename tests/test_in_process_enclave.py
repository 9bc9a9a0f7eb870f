"""A FakeEnclaveLoader runs an application of this process behind the real communicator, channel and type checks."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

import adyton
from adyton import EnclaveLoader, EnclaveManager, EnclaveManagerOptions, FakeEnclaveLoader
from adyton.errors import (
    ClosedError,
    DeadlineError,
    EnclaveError,
    EnclaveTypeError,
    NameInUseError,
    UnknownEntryError,
    UsageError,
)
from adyton.proto.enclave import (
    EnclaveConfig,
    EnclaveFinal,
    EnclaveInput,
    EnclaveLoadConfig,
    EnclaveOutput,
    user_message,
)
from adyton.runtime import in_process
from adyton.trusted import Enclave, TrustedApplication, entry, host_function


@dataclass
class Point:
    x: int
    y: int


app = Enclave("app")
release = threading.Event()
client_of: dict[str, adyton.EnclaveClient] = {}


@app.entry
def add(a: int, b: int = 1) -> int:
    return a + b


@app.entry
def mirror(point: Point, labels: list[str]) -> dict[str, Point]:
    return {label: Point(point.y, point.x) for label in labels}


@app.entry
def fail(kind: str) -> None:
    if kind == "file":
        raise FileNotFoundError(2, "no such thing", "x")
    if kind == "unicode":
        b"\xff".decode()
    raise KeyError(kind)


@app.entry
async def later(text: str) -> str:
    return text.upper()


@app.entry
def thread_name() -> int:
    return threading.get_ident()


@app.entry
def wait() -> bool:
    return release.wait(30)


@app.entry
def echo(data: bytes) -> bytes:
    return data


@host_function
def lookup(word: str) -> str: ...


@host_function
def descend(depth: int) -> int: ...


@app.entry
def ask(word: str) -> str:
    return lookup(word) + "!"


@app.entry
def down(depth: int) -> int:
    return 0 if depth == 0 else descend(depth - 1) + 1


@host_function
def impatient() -> None: ...


outcomes: list[str] = []


@app.entry
def ask_an_impatient_one() -> None:
    try:
        impatient()
    except TimeoutError as error:
        outcomes.append(str(error))


@app.entry
def unsendable() -> object:
    return object()


@pytest.fixture
def manager():
    EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(app)))
    yield EnclaveManager.instance()
    EnclaveManager.configure(EnclaveManagerOptions())


def client_lookup(word: str) -> str:
    if word == "bad":
        raise LookupError("no such word")
    return word[::-1]


def client_descend(depth: int) -> int:
    return client_of["app"].call("down", depth) + 1


interrupts: list[BaseException] = []


def client_impatient() -> None:
    if interrupts:
        raise interrupts.pop()
    client_of["app"].options(timeout=0.05).call("wait")


client_impatient.__name__ = "impatient"
client_lookup.__name__, client_descend.__name__ = "lookup", "descend"


@pytest.fixture
def client(manager):
    config = EnclaveLoadConfig(name="app")
    with manager.load_enclave(
        config,
        allow={"call": ["lookup", "descend", "impatient"]},
        functions=[client_lookup, client_descend, client_impatient],
    ) as client:
        client_of["app"] = client
        yield client


def test_arguments_and_results_are_typed(client):
    assert client.call("add", 2) == 3
    assert client.call(add, 2, b=5) == 7
    assert client.call(mirror, Point(1, 2), ["p"]) == {"p": Point(2, 1)}
    assert client.call("mirror", Point(1, 2), ["p"]) == {"p": {"x": 2, "y": 1}}
    assert client.call(later, "x") == "X"


def test_wrong_arguments_are_refused_before_the_entry_runs(client):
    for arguments in (("2",), (1, 2, 3), (), (2.5,), (uuid.uuid4(),)):
        with pytest.raises(EnclaveTypeError):
            client.call("add", *arguments)
    with pytest.raises(EnclaveTypeError, match="cannot be sent"):
        client.call("add", object())
    with pytest.raises(EnclaveTypeError, match="cannot be sent"):
        client.call("unsendable")
    with pytest.raises(UnknownEntryError, match="add"):
        client.call("ad", 1)
    assert isinstance(EnclaveTypeError("x"), TypeError)


def test_exceptions_are_of_the_built_in_kind_that_was_raised(client):
    with pytest.raises(FileNotFoundError) as caught:
        client.call("fail", "file")
    assert isinstance(caught.value, EnclaveError)
    assert caught.value.errno == 2
    assert caught.value.type == "FileNotFoundError"
    assert "in fail" in caught.value.traceback
    assert caught.value.exit_code == 50
    with pytest.raises(KeyError) as missing:
        client.call("fail", "key")
    assert str(missing.value) == "KeyError: 'key'"
    with pytest.raises(EnclaveError) as other:
        client.call("fail", "unicode")
    assert other.value.type == "UnicodeDecodeError"


def test_host_functions_are_executed_by_the_calling_thread(client):
    assert client.call(ask, "abc") == "cba!"
    with pytest.raises(LookupError) as caught:
        client.call(ask, "bad")
    assert "no such word" in str(caught.value)
    assert client.stats()["host_calls"] == {"call": 2}


def test_calls_nest_in_both_directions(client):
    assert client.call("down", 20) == 40


def test_a_function_that_the_policy_does_not_name_is_denied(manager, capfd):
    with manager.load_enclave(EnclaveLoadConfig(name="denied"), functions=[client_lookup]) as client:
        with pytest.raises(PermissionError) as caught:
            client.call(ask, "abc")
        assert caught.value.exit_code == 30
        assert client.stats()["denied"] == {"call": 1}
    assert "denied: call lookup (add --allow-call lookup)\n" in capfd.readouterr().err


def test_each_client_thread_has_an_enclave_thread_of_its_own(client):
    mine = [client.call(thread_name) for _ in range(3)]
    assert len(set(mine)) == 1
    with ThreadPoolExecutor(4) as threads:
        barrier = threading.Barrier(4)

        def call(_: int) -> int:
            barrier.wait(60)
            return client.call(thread_name)

        others = set(threads.map(call, range(4)))
    assert len(others | set(mine)) == 5


def test_many_threads_get_their_own_answers(client):
    def call(number: int) -> bool:
        return all(client.call("ask", f"{number}.{i}") == f"{number}.{i}"[::-1] + "!" for i in range(20))

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(call, range(16)))


def test_submit_and_acall(client):
    import asyncio

    assert [future.result() for future in [client.submit(add, n) for n in range(5)]] == [1, 2, 3, 4, 5]

    async def gather() -> list[int]:
        return await asyncio.gather(*(client.acall(add, n, 0) for n in range(5)))

    assert asyncio.run(gather()) == [0, 1, 2, 3, 4]


def test_a_deadline_ends_the_waiting_and_the_thread_can_go_on(client):
    release.clear()
    with pytest.raises(DeadlineError):
        client.options(timeout=0.05).call(wait)
    assert client.call(add, 1) == 2
    release.set()
    with pytest.raises(UsageError):
        client.options(timeout=0)


def wait_for_outcomes(client):
    deadline = time.monotonic() + 60
    while not outcomes and time.monotonic() < deadline:
        client.call(add, 1)


def test_a_deadline_inside_a_host_function_leaves_no_enclave_thread_behind(client):
    release.clear()
    outcomes.clear()
    with pytest.raises(DeadlineError):
        client.call(ask_an_impatient_one)
    assert client.call(add, 1) == 2  # on a pair of its own
    assert outcomes == []
    release.set()  # now the abandoned pair's innermost call ends, then the host call around it, then the entry
    wait_for_outcomes(client)
    assert outcomes == ["the client's thread no longer waits for this call"]


def test_an_interrupt_inside_a_host_function_is_the_clients_and_the_enclave_goes_on(client):
    outcomes.clear()
    interrupts.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        client.call(ask_an_impatient_one)
    wait_for_outcomes(client)
    assert outcomes == ["the client's thread no longer waits for this call"]


def test_large_values(client):
    data = bytes(range(256)) * (1 << 16)  # 16 MiB
    assert client.call(echo, data) == data


def test_names_are_taken_once_and_freed(manager):
    client = manager.load_enclave(EnclaveLoadConfig(name="one"))
    with pytest.raises(NameInUseError):
        manager.load_enclave(EnclaveLoadConfig(name="one"))
    assert manager.get_client("one") is client
    assert manager.get_name(client) == "one"
    manager.destroy_enclave(client, EnclaveFinal())
    assert manager.get_client("one") is None
    assert manager.get_name(client) == ""
    with pytest.raises(ClosedError):
        client.call("add", 1)
    with pytest.raises(ClosedError):
        manager.destroy_enclave(client, EnclaveFinal())
    with pytest.raises(UsageError):
        manager.load_enclave(EnclaveLoadConfig())


def test_what_ends_a_block_is_not_hidden_by_what_finalize_says(manager):
    class Odd(TrustedApplication):
        def finalize(self, final):
            raise RuntimeError("finalize")

    EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(Odd)))
    with pytest.raises(KeyError, match="block"), manager.load_enclave(EnclaveLoadConfig(name="one")):
        raise KeyError("block")
    with pytest.raises(RuntimeError, match="finalize"), manager.load_enclave(EnclaveLoadConfig(name="one")):
        pass


@pytest.mark.parametrize("name", ["", 3, None])
def test_an_enclave_has_a_name(name):
    with pytest.raises(UsageError, match="give it a name"):
        Enclave(name)


class Careless(EnclaveLoader):
    def load(self, order):
        return 5


def test_what_is_no_loader_or_final_or_application_is_said_at_once(manager):
    client = manager.load_enclave(EnclaveLoadConfig(name="one"))
    for final in (None, "x", EnclaveInput()):
        with pytest.raises(UsageError, match="takes an EnclaveFinal"):
            manager.destroy_enclave(client, final)
    assert client.call("add", 1) == 2
    manager.destroy_enclave(client, EnclaveFinal())
    for wrong in (5, Careless, "loader"):
        with pytest.raises(UsageError, match="give an EnclaveLoader"):
            EnclaveManagerOptions(loader=wrong)
    with pytest.raises(UsageError, match="5 is no application"):
        FakeEnclaveLoader(5)
    EnclaveManager.configure(EnclaveManagerOptions(loader=Careless()))
    for _ in range(2):  # the name is free again
        with pytest.raises(UsageError, match=r"Careless\.load returned 5: it must return an EnclaveClient"):
            manager.load_enclave(EnclaveLoadConfig(name="one"))
    assert manager.get_client("one") is None


class Demo(TrustedApplication):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def initialize(self, config: EnclaveConfig) -> None:
        if any(each.name == "FAIL" for each in config.environment_variables):
            raise ValueError("told to fail")
        self.seen.append("initialize")

    def run(self, enclave_input: EnclaveInput) -> EnclaveOutput | None:
        if not enclave_input.HasExtension(user_message):
            return None
        output = EnclaveOutput()
        output.Extensions[user_message] = enclave_input.Extensions[user_message].upper()
        return output

    def finalize(self, final: EnclaveFinal) -> None:
        raise RuntimeError("finalize failed")

    @entry
    def history(self) -> list[str]:
        return self.seen


def test_the_original_interface_runs_a_trusted_application():
    EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(Demo())))
    try:
        manager = EnclaveManager.instance()
        client = manager.load_enclave(EnclaveLoadConfig(name="demo"))
        message = EnclaveInput()
        message.Extensions[user_message] = "asylo rocks"
        assert client.enter_and_run(message).Extensions[user_message] == "ASYLO ROCKS"
        assert client.enter_and_run(EnclaveInput()) == EnclaveOutput()
        assert client.call("history") == ["initialize"]
        with pytest.raises(RuntimeError, match="finalize failed"):
            manager.destroy_enclave(client, EnclaveFinal())
        assert manager.get_client("demo") is None

        failing = EnclaveLoadConfig(name="demo")
        failing.config.environment_variables.add(name="FAIL", value="1")
        with pytest.raises(ValueError, match="told to fail"):
            manager.load_enclave(failing)
        assert manager.get_client("demo") is None

        client = manager.load_enclave(EnclaveLoadConfig(name="demo"))
        manager.destroy_enclave(client, EnclaveFinal(), skip_finalize=True)
    finally:
        EnclaveManager.configure(EnclaveManagerOptions())


def test_evidence_of_a_fake_enclave_says_that_it_is_simulated(client):
    assert client.identity.platform == "sim"
    assert client.identity.debug
    assert b"sim" in client.evidence


def test_an_entry_still_runs_here():
    assert add(1, 2) == 3
    with pytest.raises(ClosedError, match="no enclave"):
        lookup("x")


def test_a_guest_that_is_slow_to_begin_is_waited_for(monkeypatch, manager):
    begin = threading.Event()

    class Slow(threading.Thread):
        def run(self) -> None:
            if self.name == "adyton-in-process-guest":
                begin.wait(30)
            super().run()

    manager.load_enclave(EnclaveLoadConfig(name="first")).close()  # so that the next one's load comes at once
    monkeypatch.setattr(in_process, "threading", SimpleNamespace(Thread=Slow))
    later = threading.Timer(0.2, begin.set)  # long after the client has asked for its load
    later.start()
    config = EnclaveLoadConfig(name="slow")
    with manager.load_enclave(config) as client:
        assert client.call("add", 1) == 2
    later.join()
