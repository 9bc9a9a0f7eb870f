"""Large bytes as arguments and results: the same values under the same annotations, and held whole at no more places than their ends."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any

import msgspec
import pytest

import adyton
from adyton import EnclaveLoadConfig, EnclaveManager, EnclaveManagerOptions, FakeEnclaveLoader
from adyton.communicator import session as communicator
from adyton.config import Policy
from adyton.errors import AdytonError, ConnectionLostError, DeadlineError, EnclaveTypeError, RemoteProtocolError
from adyton.loader import LoadArguments, load_in_process
from adyton.proto.values import BULK, MAX_BULK, Bulk, Signature, decode_result, encode_arguments, encode_or_bulk
from adyton.remote.client_pairs import result_of
from adyton.runtime.process.guest import link as protocol
from adyton.trusted import Enclave, host_function

LARGE = bytes(range(256)) * (BULK // 256)
MIB = 1 << 20

# -- values --------------------------------------------------------------------------------------------------------------


def entry(a: bytes, b: int = 0, *more: bytes | None, c: Any = None, **named: bytearray) -> None: ...


def carried(function, *positional, **keywords):
    bulk: list[bytes] = []
    encoded = encode_arguments("entry", positional, keywords, [], bulk)
    return Signature(function, streams=True).decode_arguments(encoded, "msgpack", lambda *_: None, bulk), bulk, encoded


def test_large_bytes_among_arguments_are_not_encoded():
    (positional, keywords), bulk, encoded = carried(entry, LARGE, 1, None, LARGE, b"small", c=LARGE, d=bytearray(LARGE))
    assert positional == (LARGE, 1, None, LARGE, b"small")
    assert keywords == {"c": LARGE, "d": LARGE}
    assert type(keywords["d"]) is bytearray
    assert len(encoded) < 100
    assert all(each is LARGE for each in bulk[:3])
    assert positional[0] is LARGE


def test_what_may_change_meanwhile_is_copied():
    data = bytearray(LARGE)
    bulk: list[bytes] = []
    encode_arguments("entry", [data, memoryview(data)], {}, [], bulk)
    data[:] = bytes(len(data))
    assert bulk == [LARGE, LARGE]
    with pytest.raises(EnclaveTypeError):
        encode_arguments("entry", [memoryview(data)[::2]], {}, [], [])


def test_more_than_there_may_be_are_encoded():
    (positional, _), bulk, _ = carried(lambda *all: None, *[LARGE] * (MAX_BULK + 2))
    assert positional == (LARGE,) * (MAX_BULK + 2)
    assert len(bulk) == MAX_BULK


@pytest.mark.parametrize(
    "annotation", [str, int, list[int], Annotated[bytes, msgspec.Meta(max_length=9)], Iterator[int]]
)
def test_a_wrong_one_is_told_as_a_small_one_is(annotation):
    def entry(a): ...

    entry.__annotations__["a"] = annotation
    texts = []
    for value in (LARGE, LARGE[:100]):
        with pytest.raises(EnclaveTypeError) as raised:
            carried(entry, value)
        texts.append(str(raised.value))
    assert texts[0] == texts[1]
    texts.clear()
    if annotation is not Iterator[int]:
        for body in (encode_or_bulk("entry", LARGE), encode_or_bulk("entry", LARGE[:100])):
            with pytest.raises(EnclaveTypeError) as raised:
                decode_result("entry", body, annotation)
            texts.append(str(raised.value))
        assert texts[0] == texts[1]


@pytest.mark.parametrize("sizes", [(BULK - 1,), (protocol.MAX_MESSAGE + 1,), (BULK, BULK), (-1,)])
def test_a_guest_announces_no_bulk_that_there_cannot_be(sizes):
    for right, wrong in (
        (protocol.Return(True, b"", sizes=(BULK,)), protocol.Return(True, b"", sizes=sizes)),
        (protocol.Items(1, b"", (BULK,)), protocol.Items(1, b"", sizes)),
    ):
        reader = protocol.Reader(protocol.ToSupervisor)
        assert reader.receive(protocol.encode(right)) == [right]
        with pytest.raises(RemoteProtocolError):
            protocol.Reader(protocol.ToSupervisor).receive(protocol.encode(wrong))


@pytest.mark.parametrize("data", [b"", b"\0", b"\2", b"\1\1"])
def test_bulk_that_did_not_come_is_an_error(data):
    encoded = msgspec.msgpack.encode(([msgspec.msgpack.Ext(2, data)], {}))
    with pytest.raises(EnclaveTypeError, match="bulk"):
        Signature(lambda a: None).decode_arguments(encoded, bulk=[LARGE])


def test_a_reply_is_a_value_or_bulk():
    assert result_of(communicator.Replied(1, True, b"\1", 1)) == b"\1"
    assert result_of(communicator.Replied(1, True, b"", 1, (LARGE,))) == Bulk(LARGE)
    for body, bulk in ((b"\1", (LARGE,)), (b"", (LARGE, LARGE))):
        with pytest.raises(RemoteProtocolError):
            result_of(communicator.Replied(1, True, body, 1, bulk))


# -- enclaves ------------------------------------------------------------------------------------------------------------

app = Enclave("large")


@app.entry
def echo(data: bytes) -> bytes:
    return data


@app.entry
async def echo_async(data: bytes, *, more: bytes = b"") -> bytes:
    return data + more


@app.entry
def as_other(data: bytes) -> memoryview:
    return memoryview(data)


@app.entry
def lengths(datas: list[bytes], data: bytes) -> list[int]:
    return [len(each) for each in (*datas, data)]


@app.entry
def doubled(words: list[str]) -> list[str]:
    return words + words


@app.entry
def cut(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@app.entry
def anything(value: Any) -> str:
    return type(value).__name__


@pytest.fixture(scope="module")
def fake():
    EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(app)))
    with EnclaveManager.instance().load_enclave(EnclaveLoadConfig(name="large")) as client:
        yield client
    EnclaveManager.configure(EnclaveManagerOptions())


@pytest.mark.parametrize("size", [0, BULK - 1, BULK, BULK + 1, 5 * MIB + 3])
def test_whatever_its_size_a_value_comes_back(fake, size):
    data = (LARGE * (size // BULK + 1))[:size]
    assert fake.call("echo", data) == data
    assert fake.call("echo", bytearray(data)) == data
    assert fake.call(as_other, data) == data
    assert fake.call("lengths", [data, data], data) == [size] * 3
    assert fake.call("anything", data) == "bytes"
    assert b"".join(fake.call("cut", data, MIB)) == data
    assert asyncio.run(fake.acall("echo", data)) == data
    assert asyncio.run(fake.acall("echo_async", data, more=data)) == data + data
    assert fake.call("echo_async", data, more=data) == data + data
    assert fake.submit("echo", data).result() == data


@pytest.mark.parametrize("count", [0, 1, BULK, 3 * BULK])
def test_large_values_that_are_no_bytes_come_back(fake, count):
    words = ["word"] * count
    assert fake.call(doubled, words) == words + words
    assert asyncio.run(fake.acall(doubled, words)) == words + words
    assert fake.call("anything", words) == "list"
    assert fake.call("lengths", [LARGE] * (count // BULK), LARGE) == [BULK] * (count // BULK + 1)
    encoded = fake.call_encoded("doubled", json.dumps([[words], {}]).encode(), "json")
    assert msgspec.msgpack.decode(encoded) == words + words


def test_calls_go_on_after_a_large_one_was_refused(fake):
    with pytest.raises(EnclaveTypeError):
        fake.call("anything", LARGE, LARGE)
    assert fake.call("echo", LARGE) == LARGE


def test_many_threads_with_large_values_at_once(fake):
    found = []

    def run(number):
        data = bytes([number]) * (BULK * (1 + 5 * number))
        found.extend(fake.call("echo", data) == data for _ in range(3))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == [True] * 24


def doubled_on_client(data: bytes, *, more: bytes = b"") -> bytes:
    return data + data + more


def repeated_on_client(words: list[str]) -> list[str]:
    return words + words


def kinds_on_client(*values: Any) -> str:
    return " ".join(type(each).__name__ for each in values)


calling = Enclave("calling")
twice = host_function(doubled_on_client)
repeated = host_function(repeated_on_client)


@host_function
def kinds(*values: Any) -> str: ...


@calling.entry
def through(data: bytes, *, more: bytes = b"") -> bytes:
    return twice(data, more=more)


@calling.entry
async def through_async(data: bytes) -> bytes:
    return twice(data)


@calling.entry
def through_words(words: list[str]) -> list[str]:
    return repeated(words)


@calling.entry
def large_and_small(data: bytes, words: list[str]) -> str:
    return kinds(data, words, 1, bytearray(data), memoryview(data), b"x")


@pytest.fixture(scope="module")
def with_functions():
    functions = {
        "doubled_on_client": doubled_on_client,
        "repeated_on_client": repeated_on_client,
        "kinds": kinds_on_client,
    }
    arguments = LoadArguments(functions=functions, policy=Policy().extended(call=list(functions)))
    with load_in_process(calling, arguments) as client:
        yield client


@pytest.mark.parametrize("size", [0, BULK // 2, BULK - 1, BULK, BULK + 1, 5 * MIB + 3])
def test_whatever_its_size_a_value_gets_to_a_function_of_the_client_and_back(with_functions, size):
    data = (LARGE * (size // BULK + 1))[:size]
    client = with_functions
    assert client.call("through", data) == data + data
    assert client.call("through", data, more=LARGE) == data + data + LARGE
    assert client.call("through_async", data) == data + data
    assert asyncio.run(client.acall("through", data)) == data + data
    assert asyncio.run(client.acall("through_async", data)) == data + data


def test_large_values_that_are_no_bytes_get_to_a_function_of_the_client(with_functions):
    words = ["word"] * BULK
    assert with_functions.call("through_words", words) == words + words
    assert with_functions.call("large_and_small", LARGE, words) == "bytes list int bytes bytes bytes"


def test_many_large_results_of_tasks_at_once_are_each_its_own(with_functions, fake):
    async def all_of_them() -> list[bool]:
        datas = [bytes([number]) * (BULK + number * 4096) for number in range(40)]
        entries = [("echo", "echo_async")[number % 2] for number in range(40)]
        made = [fake.acall(entry, data) for entry, data in zip(entries, datas, strict=True)]
        small = [fake.acall("echo_async", b"x") for _ in range(40)]
        found = await asyncio.gather(*made, *small)
        return [*map(bytes.__eq__, found, (*datas, *[b"x"] * 40))]

    assert asyncio.run(all_of_them()) == [True] * 80


@pytest.mark.parametrize("how", ["cancelled", "late", "late of a thread"])
def test_what_is_given_up_in_the_midst_of_a_large_host_call_leaves_nothing(with_functions, how):
    client, data = with_functions, bytes(4 * MIB)
    session = client._core.proxy._session

    async def given_up(seconds: float) -> None:
        call = client if how == "cancelled" else client.options(timeout=seconds)
        with suppress(TimeoutError, DeadlineError, asyncio.CancelledError):
            async with asyncio.timeout(seconds if how == "cancelled" else None):
                await call.acall("through", data)

    async def all_of_them() -> None:
        await asyncio.gather(*(given_up(0.0005 * number) for number in range(1, 60)))

    if how == "late of a thread":
        for number in range(1, 60):
            with suppress(DeadlineError):
                client.options(timeout=0.0005 * number).call("through", data)
    else:
        asyncio.run(all_of_them())
    assert client.call("through", LARGE) == LARGE + LARGE
    until = time.monotonic() + 40
    while (session._sent_calls or session._received_calls or session.pending_bytes) and time.monotonic() < until:
        time.sleep(0.01)
    assert not session._sent_calls
    assert not session._received_calls
    assert not session._arriving
    assert not session.pending_bytes


PROGRAM = """
from adyton.trusted import host_function

@host_function
def taken(data: bytes) -> int: ...

@host_function
def given(size: int) -> bytes: ...

def call_with(size: int) -> int:
    return taken(bytes(size))

def call_for(size: int) -> int:
    return len(given(size))

def take(data: bytes) -> int:
    return len(data)

def give(size: int) -> bytes:
    return bytes(size)

async def give_async(size: int) -> bytes:
    return bytes(size)

def whole(parts: list[bytes]) -> list[bytes]:
    return parts
"""

MEASURE = """
import asyncio, json, sys
import adyton

def peaks(client):
    found = {name: report.status.vm_hwm for name, report in client.processes().items()}
    with open("/proc/self/status") as file:
        found["client"] = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    return found

def taken(data: bytes) -> int:
    return len(data)

def given(size: int) -> bytes:
    return bytes(size)

async def length(client, entry, size):
    return len(await client.acall(entry, size))  # not the task's own result, which asyncio.run would show

size, data = int(sys.argv[2]), bytes(int(sys.argv[2]))
sum(data[::4096])  # all of it is there
with adyton.load(sys.argv[1], functions=[taken, given], allow_call=["taken", "given"]) as client:
    assert client.call("take", data[:1 << 20]) == len(client.call("give", 1 << 20))
    first = peaks(client)
    assert client.call("take", data) == size
    second = peaks(client)
    assert len(client.call("give", size)) == size
    third = peaks(client)
    assert client.call("call_with", size) == client.call("call_for", size) == size
    for entry in ("give", "give_async"):
        assert asyncio.run(length(client, entry, size)) == size
    others = peaks(client)
    del data
    assert len(client.call("whole", [bytes(size)])[0]) == size
    fourth = peaks(client)
pairs = ((first, second), (second, third), (others, fourth), (third, others))
print(json.dumps([{name: (b[name] - a[name]) * 1024 / size for name in a} for a, b in pairs]))
"""


@pytest.mark.sandbox
def test_only_the_ends_have_a_large_value_whole_and_once(tmp_path):
    (tmp_path / "large.py").write_text(PROGRAM)
    (tmp_path / "measure.py").write_text(MEASURE)
    command = [sys.executable, str(tmp_path / "measure.py"), str(tmp_path / "large.py"), str(128 * MIB)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=200)
    argument, result, encoded, others = json.loads(done.stdout)
    assert {name: round(times, 1) for name, times in argument.items()} == {
        "client": pytest.approx(0, abs=0.2),
        "proxy": pytest.approx(0, abs=0.2),
        "supervisor": pytest.approx(0, abs=0.2),
        "guest": pytest.approx(1, abs=0.2),
    }
    assert result["client"] < 1.3
    assert max(result["proxy"], result["supervisor"], result["guest"]) < 0.2
    assert max(encoded["proxy"], encoded["supervisor"]) < 0.2
    assert max(others.values()) < 0.3, others  # functions of the client and tasks: no more than that


BREAKS = """
import socket, threading, time
from adyton.trusted import host_function
from adyton.runtime.process.guest import link

def result() -> bytes:
    link.GuestLink.send_bulk = breaks
    return bytes(1 << 20)

def breaks(self, message, bulk):
    self._socket.sendall(link.encode(message))
    self._socket.sendall(bulk[:100])
    self._socket.shutdown(socket.SHUT_RDWR)

@host_function
def taken(data: bytes) -> int: ...

def calls() -> int:
    link.GuestLink.send_bulk = breaks
    return taken(bytes(1 << 20))

def calls_in_a_thread() -> int:
    link.GuestLink.send_bulk = breaks
    thread = threading.Thread(target=taken, args=(bytes(1 << 20),))
    thread.start()
    thread.join()
    time.sleep(1000)
    return 1
"""


@pytest.mark.sandbox
@pytest.mark.parametrize("entry", ["result", "calls", "calls_in_a_thread"])
def test_a_guest_that_breaks_a_large_message_off_ends_its_enclave(tmp_path, entry):
    (tmp_path / "breaks.py").write_text(BREAKS)
    with (
        suppress(AdytonError),
        adyton.load(str(tmp_path / "breaks.py"), functions={"taken": len}, allow_call=["taken"]) as client,
        pytest.raises(ConnectionLostError, match=r"closed its link|exited with status 0"),
    ):
        client.call(entry)


LIMITED = """
from adyton.trusted import host_function

@host_function
def given(size: int) -> bytes: ...

@host_function
def taken(data: bytes, more: bytes) -> int: ...

def too_much_comes() -> str:
    try:
        given((1 << 30) + 1)
    except ValueError as error:
        return str(error)

def too_much_goes() -> str:
    try:
        taken(bytes(1 << 29), bytes((1 << 29) + 1))
    except RecursionError as error:
        return str(error)
"""


@pytest.mark.sandbox
def test_too_large_a_value_of_a_function_is_an_error_in_the_enclave_and_no_more(tmp_path):
    (tmp_path / "limited.py").write_text(LIMITED)

    def given(size: int) -> bytes:
        return bytes(size)

    functions = {"given": given, "taken": lambda data, more: len(data) + len(more)}
    with adyton.load(str(tmp_path / "limited.py"), functions=functions, allow_call=list(functions)) as client:
        assert "the result is too large" in client.call("too_much_comes")
        assert "at most 1073741824 are carried" in client.call("too_much_goes")
        assert "the result is too large" in client.call("too_much_comes")
