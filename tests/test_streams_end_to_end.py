"""Streams, tasks and cancelling in real enclaves: through all processes, in bounded memory, and told by the command line."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from command import adyton as run
from conftest import DIRECTIONS, dialling

import adyton
from adyton.errors import ConnectionLostError

pytestmark = pytest.mark.sandbox

LIMIT = 60.0  # seconds until a test gives up on something that takes milliseconds
MOST = 64 << 10  # KiB over idle

PROGRAM = """
import asyncio, os, signal, threading
from collections.abc import AsyncIterator, Iterator
import adyton.trusted as trusted

enclave = trusted.Enclave("streams")
waiting = []
together_now = asyncio.Event()

@trusted.host_function
def double(number: int) -> int: ...

@enclave.entry
def count(numbers: int) -> Iterator[int]:
    '''Prints each.'''
    for number in range(numbers):
        print(f"item {number}")
        yield number

@enclave.entry
def total(numbers: Iterator[int]) -> int:
    return sum(numbers)

@enclave.entry
async def doubled(numbers: AsyncIterator[int]) -> AsyncIterator[int]:
    async for number in numbers:
        yield double(number)

@enclave.entry
def blocks(size: int, number: int) -> Iterator[bytes]:
    block = bytes(size)
    for _ in range(number):
        yield block

@enclave.entry
def lengths(blocks: Iterator[bytes]) -> int:
    return sum(map(len, blocks))

@enclave.entry
def dies() -> Iterator[int]:
    yield 1
    os.kill(os.getpid(), signal.SIGKILL)

@enclave.entry
async def together(wanted: int) -> int:
    waiting.append(1)
    if len(waiting) == wanted:
        together_now.set()
    await together_now.wait()
    return threading.active_count()

@enclave.entry
def main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()

@enclave.entry
def streamed_by_main_thread() -> Iterator[bool]:
    yield threading.current_thread() is threading.main_thread()

@enclave.entry
def fork_in_an_entry() -> int:
    child = os.fork()
    if not child:
        raise SystemExit(5)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def double(number: int) -> int:
    return 2 * number


def load(folder: Path, **arguments) -> adyton.EnclaveClient:
    path = folder / "streams.py"
    path.write_text(PROGRAM)
    return adyton.load(str(path), functions=[double], allow_call=["double"], **arguments)


@pytest.fixture(scope="module", params=DIRECTIONS)
def client(request, tmp_path_factory) -> Iterator[adyton.EnclaveClient]:
    folder = tmp_path_factory.mktemp("streams")
    with dialling(request.param, str(folder)):
        client = load(folder)
    with client:
        yield client


def test_streams_both_ways(client):
    assert client.call("total", (n for n in range(50_000))) == sum(range(50_000))
    assert list(client.call("count", 3)) == [0, 1, 2]
    assert list(client.call("doubled", iter(range(200)))) == [2 * n for n in range(200)]


def test_a_thousand_tasks_that_wait_for_each_other(tmp_path):
    async def main(client: adyton.EnclaveClient) -> None:
        threads = await asyncio.gather(*(client.acall("together", 1000) for _ in range(1000)))
        assert max(threads) <= 2  # the program's main thread, and that of the loop

    with load(tmp_path) as client:
        asyncio.run(main(client))


def test_tasks_stream_both_ways(client):
    async def numbers() -> AsyncIterator[int]:
        for number in range(500):
            yield number

    async def main() -> None:
        assert [each async for each in await client.acall("doubled", numbers())] == [2 * n for n in range(500)]
        assert await client.acall("total", numbers()) == sum(range(500))

    asyncio.run(main())


def test_the_main_thread_of_a_program_is_no_streams(tmp_path):
    with load(tmp_path) as client:
        assert list(client.call("streamed_by_main_thread")) == [False]
        assert asyncio.run(client.acall("main_thread")) is False
        assert client.call("main_thread") is True


def test_a_process_that_an_entry_without_a_pair_forks_ends_as_a_program_does(client):
    assert asyncio.run(client.acall("fork_in_an_entry")) == 5
    assert client.call("total", [1, 2]) == 3


def test_an_enclave_that_ends_in_the_middle_of_streams_says_so_to_each(tmp_path):
    client = load(tmp_path)
    others = [client.call("blocks", 10, 10**9) for _ in range(3)]
    for each in others:
        assert next(each) == bytes(10)
    items = client.call("dies")
    assert next(items) == 1
    for each in (items, *others):
        with pytest.raises(ConnectionLostError, match="SIGKILL"):
            list(each)
        assert list(each) == []
    with pytest.raises(ConnectionLostError):
        client.close()


def test_tasks_of_an_enclave_that_may_have_no_more_threads_are_told_so(tmp_path):
    code = """
import threading
import adyton.trusted as trusted

enclave = trusted.Enclave("full")
over = threading.Event()

@enclave.entry
def fill() -> int:
    threads = []
    while True:
        thread = threading.Thread(target=over.wait)
        try:
            thread.start()
        except RuntimeError:
            return len(threads)
        threads.append(thread)

@enclave.entry
def free() -> None:
    over.set()

@enclave.entry
def plain() -> int:
    return 1

@enclave.entry
async def task() -> int:
    return 2
"""
    (tmp_path / "full.py").write_text(code)
    (tmp_path / "pyproject.toml").write_text(
        '[tool.adyton.enclave.full]\nentry = "full:enclave"\nlimits = { threads = 24 }\n'
    )
    assert run("build", cwd=tmp_path).returncode == 0

    with adyton.load(str(tmp_path / "build" / "full.enclave")) as client:
        assert client.call("plain") == 1
        assert asyncio.run(client.acall("plain")) == 1
        assert client.call("fill") > 0
        with pytest.raises(RuntimeError, match="thread"):
            asyncio.run(client.acall("task"))
        assert asyncio.run(client.acall("plain")) == 1  # of the one thread that there is
        client.call("free")


# -- memory ------------------------------------------------------------------------------------------------------------

MEASURE = """
import json, sys
import adyton

def peaks(client):
    found = {name: report.status.vm_hwm for name, report in client.processes().items()}
    with open("/proc/self/status") as file:
        found["client"] = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    return found

size, number = 1 << 20, int(sys.argv[3])
with adyton.load(sys.argv[1]) as client:
    assert client.call("lengths", iter([b"a"])) == 1
    assert list(client.call("blocks", 1, 1)) == [bytes(1)]
    before = peaks(client)
    if sys.argv[2] == "results":
        assert sum(map(len, client.call("blocks", size, number))) == size * number
    else:
        assert client.call("lengths", (bytes(size) for _ in range(number))) == size * number
    after = peaks(client)
print(json.dumps({name: after[name] - before[name] for name in before}))
"""


@pytest.mark.long
@pytest.mark.parametrize("which", ["results", "arguments"])
def test_no_process_holds_much_of_a_stream_of_256_mib(tmp_path, which):
    (tmp_path / "streams.py").write_text(PROGRAM)
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    command = [sys.executable, str(script), str(tmp_path / "streams.py"), which, "256"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=280)
    grown = json.loads(done.stdout)
    assert set(grown) == {"client", "proxy", "supervisor", "guest"}
    assert all(size <= MOST for size in grown.values()), grown


# -- the command line --------------------------------------------------------------------------------------------------


def test_a_stream_is_printed_item_by_item(tmp_path):
    (tmp_path / "streams.py").write_text(PROGRAM)
    path = str(tmp_path / "streams.py")
    done = run("call", path, "count", "3")
    assert (done.returncode, done.stdout) == (0, "0\n1\n2\n")
    assert [line for line in done.stderr.splitlines() if line.startswith("item")] == ["item 0", "item 1", "item 2"]
    assert run("call", path, "total", "[1, 2, 3]").stdout == "6\n"
    described = json.loads(run("inspect", "--json", path).stdout)["entries"]
    assert {entry["name"]: entry["stream"] for entry in described}["count"] is True


def test_a_command_whose_output_nobody_reads_any_more_ends(tmp_path):
    (tmp_path / "streams.py").write_text(PROGRAM)
    path = str(tmp_path / "streams.py")
    command = f"{sys.executable} -m adyton.cli call {path} blocks 10 1000000000 | head -n 2"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=LIMIT * 3, check=False)
    assert done.stdout == '"AAAAAAAAAAAAAA=="\n' * 2
