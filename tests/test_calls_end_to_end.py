"""Calls into a real enclave, whoever dialled: many threads, nesting, large values, host functions from every kind of thread."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import DIRECTIONS, dialling

import adyton
from adyton import EnclaveFinal, EnclaveLoadConfig, EnclaveManager, remote_load_config

pytestmark = pytest.mark.sandbox

PROGRAM = """
import asyncio, os, threading
import adyton.trusted as trusted

enclave = trusted.Enclave("calls")
local = threading.local()
over = threading.Event()

@trusted.host_function
def double(number: int) -> int: ...

@trusted.host_function
def descend(depth: int) -> int: ...

@trusted.host_function
def note(text: str) -> None: ...

@trusted.host_function
def stamp(thread: int, number: int) -> int: ...

@trusted.host_function
def client_fibonacci(n: int) -> int: ...

ledger = []  # append is atomic

@enclave.entry
def record(thread: int, number: int) -> tuple[int, int]:
    if getattr(local, "owner", thread) != thread:
        raise AssertionError(f"the thread of {local.owner} was entered by {thread}")
    local.owner = thread
    local.calls = getattr(local, "calls", 0) + 1
    answer = stamp(thread, number)
    ledger.append((thread, number))
    return local.calls, answer

@enclave.entry
def recorded() -> list[tuple[int, int]]:
    return ledger

@enclave.entry
def fibonacci(n: int) -> int:
    return n if n < 2 else client_fibonacci(n - 1) + client_fibonacci(n - 2)

@enclave.entry
def wait() -> bool:
    return over.wait(250)

@enclave.entry
def end_wait() -> None:
    over.set()

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


stamps: list[tuple[int, int]] = []
threads_here = threading.local()


def stamp(thread: int, number: int) -> int:
    assert threads_here.number == thread  # its own caller executes it
    stamps.append((thread, number))
    return thread * 1000 + number


def client_fibonacci(n: int) -> int:
    result: int = loaded[-1].call("fibonacci", n)
    return result


FUNCTIONS = [double, descend, note, stamp, client_fibonacci]


def load(folder: Path | str = ".", **arguments) -> adyton.EnclaveClient:
    path = Path(folder, "calls.py")
    path.write_text(PROGRAM)
    names = [function.__name__ for function in FUNCTIONS]
    client = adyton.load(str(path), functions=FUNCTIONS, allow_call=names, **arguments)
    loaded.append(client)
    return client


# What takes long is called in each direction, but not over each family.
at_length = pytest.mark.parametrize("direction", ["dialled", "ipv4"], indirect=True)


@pytest.fixture(scope="module", params=DIRECTIONS)
def shared(request, tmp_path_factory) -> Iterator[tuple[adyton.EnclaveClient, int]]:
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as sockets:
        with dialling(request.param, sockets):  # this load, not those of other tests meanwhile
            client = load(tmp_path_factory.mktemp("calls"))
        with client:
            yield client, client.call("threads")


@pytest.fixture
def calls(shared) -> Iterator[adyton.EnclaveClient]:
    """An enclave of each direction. Each test leaves as many threads in it as there were."""
    client, threads = shared
    loaded.append(client)  # whom host functions call back
    yield client
    assert settled(lambda: client.call("threads"), threads) == threads


THREADS = 64


@pytest.mark.long
@pytest.mark.parametrize(("direction", "count"), [("dialled", 256), ("ipv4", 32)], indirect=["direction"])
def test_64_threads_of_256_calls_beside_one_that_lasts_as_long_as_all(workplace, direction, count):
    """None lost, none doubled, each on the enclave thread of its caller, which ends with it. (Threads are the same matter whoever dialled.)"""
    stamps.clear()
    barrier = threading.Barrier(THREADS)
    answers: dict[int, list[list[int]]] = {}
    with load() as calls:
        before = calls.call("threads")
        slow = calls.submit("wait")

        def work(thread: int) -> None:
            threads_here.number = thread
            barrier.wait(100)
            answers[thread] = [calls.call("record", thread, number) for number in range(count)]

        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(250)
        every = sorted((thread, number) for thread in range(THREADS) for number in range(count))
        for thread in range(THREADS):
            assert answers[thread] == [[number + 1, thread * 1000 + number] for number in range(count)]
        assert sorted(stamps) == every
        assert sorted(map(tuple, calls.call("recorded"))) == every
        assert calls.stats()["host_calls"]["call"] == THREADS * count + 1  # and the note at initialize
        assert not slow.done()
        calls.call("end_wait")
        assert slow.result(60) is True
        one_more = before + 1  # of the thread that `submit` uses, which stays
        assert settled(lambda: calls.call("threads"), one_more) == one_more


def settled(find, wanted):
    """What `find` gives, once it is as wanted: the end of a thread travels behind the calls that come after it."""
    until = time.monotonic() + 30
    while (found := find()) != wanted and time.monotonic() < until:
        pass
    return found


def test_fibonacci_nested_across_both_sides_on_20_threads(calls):
    with ThreadPoolExecutor(20) as threads:
        numbers = [3 + n % 7 for n in range(20)]
        assert list(threads.map(lambda n: calls.call("fibonacci", n), numbers)) == [
            {3: 2, 4: 3, 5: 5, 6: 8, 7: 13, 8: 21, 9: 34}[n] for n in numbers
        ]


def test_threads_that_read_files_and_call_functions_at_once(workplace, direction):
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


def memory_available() -> int:
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))


@pytest.mark.skipif(memory_available() < 2 << 30, reason="LESS THAN 2 GiB OF MEMORY: client and guest take 1")
@pytest.mark.parametrize(("direction", "mebibytes"), [("dialled", 256), ("ipv4", 64)], indirect=["direction"])
def test_a_256_mib_argument_and_result(workplace, direction, mebibytes):
    """In pieces, which are as large whoever dialled: less of them is enough in the other direction."""
    data = bytes(range(256)) * (mebibytes << 12)
    with load() as calls:
        assert calls.call("echo", data) == data
        assert calls.call("quadruple", 1) == 4


def test_an_enclave_thread_stays_with_its_caller_and_ends_with_it(calls):
    assert [calls.call("count_on_this_thread") for _ in range(3)] == [1, 2, 3]
    before = calls.call("threads")
    counts = []
    thread = threading.Thread(target=lambda: counts.append([calls.call("count_on_this_thread") for _ in range(2)]))
    thread.start()
    thread.join()
    assert counts == [[1, 2]]
    assert settled(lambda: calls.call("threads"), before) == before


def test_threads_of_the_enclaves_own_and_async_entries_call_back(calls):
    assert calls.call("from_own_thread", 21) == 42
    assert calls.call("gather", [1, 2, 3]) == [2, 4, 6]


def test_functions_can_be_called_while_initializing_and_finalizing(workplace, direction):
    notes.clear()
    with load():
        assert notes == ["initialize"]
    assert notes == ["initialize", "finalize"]


@at_length
def test_ten_enclaves_at_once_in_one_manager(workplace, direction, request):
    """Here, and on a server that dials back."""
    if direction != "dialled":
        request.getfixturevalue("on_the_server")
    Path("calls.py").write_text(PROGRAM)
    manager = EnclaveManager.instance()
    names = [f"enclave-{number}" for number in range(10)]

    def start(name: str) -> adyton.EnclaveClient:
        config = EnclaveLoadConfig(name=name)
        config.Extensions[remote_load_config].sgx_load_config.file_enclave_config.enclave_path = "calls.py"
        return manager.load_enclave(config, functions=[note, double], allow={"call": ["note", "double"]})

    with ThreadPoolExecutor(10) as threads:
        clients = list(threads.map(start, names))
        try:
            assert [manager.get_client(name) for name in names] == clients
            assert list(threads.map(lambda client: client.call("quadruple", 5), clients)) == [20] * 10
            for turns, client in enumerate(clients, 1):  # each keeps its own state
                assert [client.call("count_on_this_thread") for _ in range(turns)][-1] == turns
        finally:
            list(threads.map(lambda client: manager.destroy_enclave(client, EnclaveFinal()), clients))
    assert [manager.get_client(name) for name in names] == [None] * 10


def test_an_enclave_on_a_server_does_the_same(workplace, server, direction):
    with load(on=server, allow_sim=True) as client:
        assert client.call("quadruple", 5) == 20
        assert client.call("down", 5) == 10
        assert client.identity.platform == "sim"
