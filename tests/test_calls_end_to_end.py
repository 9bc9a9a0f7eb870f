"""Calls into a real enclave: many threads, nesting, large values, host functions from every kind of thread."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import adyton

pytestmark = pytest.mark.sandbox

PROGRAM = """
import asyncio, os, threading
import adyton.trusted as trusted

enclave = trusted.Enclave("calls")
local = threading.local()

@trusted.host_function
def double(number: int) -> int: ...

@trusted.host_function
def descend(depth: int) -> int: ...

@trusted.host_function
def note(text: str) -> None: ...

@enclave.entry
def quadruple(number: int) -> int:
    return double(double(number))

@enclave.entry
def down(depth: int) -> int:
    return 0 if depth == 0 else descend(depth - 1) + 1

@enclave.entry
def echo(data: bytes) -> bytes:
    return data

@enclave.entry
def count_on_this_thread() -> int:
    local.count = getattr(local, "count", 0) + 1
    return local.count

@enclave.entry
def threads() -> int:
    return threading.active_count()

@enclave.entry
def from_own_thread(number: int) -> int:
    found = []
    thread = threading.Thread(target=lambda: found.append(double(number)))
    thread.start()
    thread.join()
    return found[0]

@enclave.entry
async def gather(numbers: list[int]) -> list[int]:
    return [double(number) for number in await asyncio.gather(*(asyncio.sleep(0, n) for n in numbers))]

@enclave.entry
def read(path: str, number: int) -> tuple[str, int]:
    with open(path) as file:
        return file.read(), double(number)

@enclave.on_initialize
def initialize(config: trusted.EnclaveConfig) -> None:
    note("initialize")

@enclave.on_finalize
def finalize(final: trusted.EnclaveFinal) -> None:
    note("finalize")
"""

notes: list[str] = []
loaded: list[adyton.EnclaveClient] = []


def double(number: int) -> int:
    return number * 2


def descend(depth: int) -> int:
    result: int = loaded[-1].call("down", depth)
    return result + 1


def note(text: str) -> None:
    notes.append(text)


def load(**arguments) -> adyton.EnclaveClient:
    Path("calls.py").write_text(PROGRAM)
    client = adyton.load(
        "calls.py", functions=[double, descend, note], allow_call=["double", "descend", "note"], **arguments
    )
    loaded.append(client)
    return client


@pytest.fixture
def calls(workplace):
    with load() as client:
        yield client


def test_sixteen_threads_get_a_hundred_right_answers_each(calls):
    def work(thread: int) -> list[int]:
        return [calls.call("quadruple", thread * 1000 + n) for n in range(100)]

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(work, range(16)))
    assert answers == [[(thread * 1000 + n) * 4 for n in range(100)] for thread in range(16)]
    assert calls.stats()["entry_calls"] == 1600
    assert calls.stats()["host_calls"]["call"] == 3200 + 1  # and the note at initialize


def test_threads_that_read_files_and_call_functions_at_once(workplace):
    (workplace / "data").mkdir()
    for n in range(8):
        (workplace / "data" / str(n)).write_text(f"content of {n}\n" * 1000)
    with load(allow_read=["data"]) as client:

        def work(n: int) -> bool:
            return all(client.call("read", f"data/{n}", n) == [f"content of {n}\n" * 1000, 2 * n] for _ in range(10))

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(work, range(8)))


def test_nesting_twenty_deep_both_ways(calls):
    assert calls.call("down", 20) == 40


def test_a_64_mib_argument_and_result(calls):
    data = bytes(range(256)) * (1 << 18)
    assert calls.call("echo", data) == data


def test_an_enclave_thread_stays_with_its_caller_and_ends_with_it(calls):
    assert [calls.call("count_on_this_thread") for _ in range(3)] == [1, 2, 3]
    before = calls.call("threads")
    counts = []
    thread = threading.Thread(target=lambda: counts.append([calls.call("count_on_this_thread") for _ in range(2)]))
    thread.start()
    thread.join()
    assert counts == [[1, 2]]
    for _ in range(1000):  # the disposal travels behind the calls that come after it
        if calls.call("threads") == before:
            break
    assert calls.call("threads") == before


def test_threads_of_the_enclaves_own_and_async_entries_call_back(calls):
    assert calls.call("from_own_thread", 21) == 42
    assert calls.call("gather", [1, 2, 3]) == [2, 4, 6]


def test_functions_can_be_called_while_initializing_and_finalizing(workplace):
    notes.clear()
    with load():
        assert notes == ["initialize"]
    assert notes == ["initialize", "finalize"]


def test_several_enclaves_at_once_keep_apart(workplace):
    clients = [load() for _ in range(3)]
    try:
        assert [client.call("count_on_this_thread") for client in clients for _ in range(2)] == [1, 2] * 3
    finally:
        for client in clients:
            client.close()


def test_an_enclave_on_a_server_does_the_same(workplace, server):
    with load(on=server, allow_sim=True) as client:
        assert client.call("quadruple", 5) == 20
        assert client.call("down", 5) == 10
        assert client.identity.platform == "sim"
