"""Registered functions: called by name if the policy says so, with types checked both ways."""

from __future__ import annotations

import msgspec
import pytest

from adyton.errors import EnclaveTypeError, NameInUseError, UsageError
from adyton.hostcall import abi
from adyton.hostcall.client.executor import Executor, FunctionRaised
from adyton.hostcall.client.functions import HostFunctions
from adyton.hostcall.client.policy import HostCallPolicy
from adyton.proto.values import encode_arguments


def lookup(word: str, times: int = 1) -> str:
    return word * times


def fails(word: str) -> str:
    raise KeyError(word)


def executor(functions, allowed, lines=None):
    policy = HostCallPolicy.create(call=allowed, base="/")
    lines = [] if lines is None else lines
    return Executor(policy, functions, denied=lines.append, output=lambda _output: None)


def call(name, *positional, **keywords):
    return abi.Call(name, encode_arguments(name, positional, keywords))


def test_an_allowed_function_is_called():
    with executor([lookup], ["lookup"]) as made:
        assert made.execute(call("lookup", "ab", times=2)) == abi.Value(msgspec.msgpack.encode("abab"))
        assert made.counts == {"call": 1}


def test_a_function_that_the_policy_does_not_name_is_not_called():
    lines = []
    with executor([lookup, fails], ["fails"], lines) as made:
        assert made.execute(call("lookup", "ab")) == abi.Failed("EACCES")
        assert made.execute(call("none", "ab")) == abi.Failed("EACCES")
        assert made.denied == {"call": 2}
    assert lines == [f"denied: call {name} (add --allow-call {name})" for name in ("lookup", "none")]


def test_what_it_raises_is_raised():
    with executor([fails], ["fails"]) as made, pytest.raises(FunctionRaised) as caught:
        made.execute(call("fails", "x"))
    assert caught.value.kind == "raised"
    assert isinstance(caught.value.error, KeyError)
    assert caught.value.__cause__ is caught.value.error


@pytest.mark.parametrize(
    "arguments", [call("lookup", 1).arguments, call("lookup").arguments, call("lookup", "a", "b").arguments,
                  call("lookup", "a", no=1).arguments, b"", b"\xc1", b"\x93\x01\x02\x03", b"\x91" * 5000]
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused_before_it_runs(arguments):
    with executor([lookup], ["lookup"]) as made, pytest.raises(FunctionRaised) as caught:
        made.execute(abi.Call("lookup", arguments))
    assert caught.value.kind == "type"
    assert isinstance(caught.value.error, EnclaveTypeError)


def test_a_result_that_cannot_be_sent_is_a_type_error():
    with executor({"unsendable": lambda: object}, ["unsendable"]) as made, pytest.raises(FunctionRaised) as caught:
        made.execute(call("unsendable"))
    assert caught.value.kind == "type"


def test_an_allowed_name_that_nobody_registered():
    with executor([lookup], ["other"]) as made, pytest.raises(FunctionRaised, match="functions="):
        made.execute(call("other"))


def test_an_interrupt_is_the_clients_own():
    def interrupted() -> None:
        raise KeyboardInterrupt

    with executor([interrupted], ["interrupted"]) as made, pytest.raises(KeyboardInterrupt):
        made.execute(call("interrupted"))


def test_a_function_may_close_the_executor_that_runs_it():
    def close() -> None:
        made.close()

    made = executor([close], ["close"])
    assert isinstance(made.execute(call("close")), abi.Value)
    assert made.execute(call("close")) == abi.Failed("EIO")


def test_what_cannot_be_registered():
    async def later() -> None: ...

    with pytest.raises(NameInUseError):
        HostFunctions([lookup, lookup])
    with pytest.raises(UsageError, match="lambda"):
        HostFunctions([lambda: 1])
    with pytest.raises(UsageError, match="async"):
        HostFunctions([later])
    with pytest.raises(UsageError):
        HostFunctions([1])
    with pytest.raises(UsageError):
        HostFunctions({"lookup": 1})
    assert HostFunctions([lookup, fails]).names == {"lookup", "fails"}
