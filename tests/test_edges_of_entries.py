"""What cannot be an entry, an argument or an output is refused in words, before anything is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from adyton import EnclaveLoadConfig, EnclaveManager, EnclaveManagerOptions, FakeEnclaveLoader
from adyton.errors import ClosedError, EnclaveError, EnclaveTypeError, UsageError
from adyton.proto.enclave import EnclaveInput, EnclaveOutput, user_message
from adyton.proto.values import Signature
from adyton.trusted import Enclave, TrustedApplication, entry


@pytest.fixture
def load():
    """load(application) → its client."""
    manager = EnclaveManager.instance()
    clients = []

    def load(application):
        EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(application)))
        clients.append(manager.load_enclave(EnclaveLoadConfig(name=f"edge-{len(clients)}")))
        return clients[-1]

    yield load
    for client in clients:
        client.close()
    EnclaveManager.configure(EnclaveManagerOptions())


def unknown_name(a: NoSuchType) -> None: ...  # noqa: F821


def broken_annotation(a: int.nothing) -> None: ...  # type: ignore[name-defined]


def stream_in(a: Iterator[int]) -> None: ...


def stream_out() -> AsyncIterator[int]: ...


def bare_stream(a: Iterator) -> None: ...


def unsendable(a: str | bytes) -> None: ...


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (unknown_name, r"unknown_name\(\): its annotations cannot be resolved: name 'NoSuchType' is not defined"),
        (broken_annotation, "its annotations cannot be resolved"),
        (stream_in, r"stream_in\(\): a is a stream .*; use a list"),
        (stream_out, r"stream_out\(\): return is a stream"),
        (bare_stream, "a is a stream"),
        (unsendable, r"unsendable\(\): the annotation of a cannot be sent"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_annotations_that_nothing_can_be_sent_by(function, text):
    with pytest.raises(EnclaveTypeError, match=text):
        Signature(function)


def test_a_signature_reads_like_its_function():
    def add(a: int, *, b: str = "x") -> str: ...

    assert str(Signature(add)) == "add(a: 'int', *, b: 'str' = 'x') -> 'str'"


def test_two_entries_of_one_name():
    enclave = Enclave("twice")
    enclave.entry(unsendable)
    with pytest.raises(UsageError, match=r"Enclave\('twice'\) has an entry unsendable\(\) already"):
        enclave.entry(unsendable)


def test_a_program_without_run_says_how_it_is_entered(load):
    class Adder(TrustedApplication):
        @entry
        def add(self, a: int) -> int:
            return a + 1

    client = load(Adder())
    assert client.call("add", 1) == 2
    with pytest.raises(EnclaveError, match=r"Adder has no run\(\): override it, or call one of its entries"):
        client.enter_and_run(EnclaveInput())
    with pytest.raises(EnclaveTypeError, match="takes an EnclaveInput, not EnclaveOutput"):
        client.enter_and_run(EnclaveOutput())


def test_a_run_that_returns_nothing_is_an_empty_output(load):
    class Silent(TrustedApplication):
        def run(self, enclave_input: EnclaveInput) -> None: ...

    assert load(Silent()).enter_and_run(EnclaveInput()) == EnclaveOutput()


def test_a_closed_enclave_takes_nothing_and_says_at_once_that_it_is_gone(load):
    enclave = Enclave("closing")
    client = load(enclave)
    called = []
    client.on_close(lambda: called.append("then"))
    client.close()
    assert called == ["then"]
    client.on_close(lambda: called.append("at once"))
    assert called == ["then", "at once"]
    with pytest.raises(ClosedError):
        client.submit("anything")
    with pytest.raises(ClosedError):
        client.call("anything")
    with pytest.raises(ClosedError):
        client.processes()
    client.close()


def test_the_same_enclave_with_other_options(load):
    client, other = load(Enclave("one")), load(Enclave("two"))
    assert client.is_same(client.options(timeout=5))
    assert not client.is_same(other)


def test_user_message_is_an_extension_of_inputs_and_outputs_alike():
    output = EnclaveOutput()
    assert user_message not in output.Extensions
    output.Extensions[user_message] = "hello"
    assert output.Extensions[user_message] == "hello"
    assert user_message in output.Extensions
    assert output.HasExtension(user_message)
    assert len(output.Extensions) == 1
    assert [each.number for each in output.Extensions] == [1000]
    assert EnclaveOutput.FromString(output.SerializeToString()).Extensions[user_message] == "hello"
    output.ClearExtension(user_message)
    assert not output.HasExtension(user_message)
    output.Extensions[user_message] = "again"
    del output.Extensions[user_message]
    assert user_message not in output.Extensions
