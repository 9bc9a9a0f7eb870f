"""What happens to calls when the connection is lost: nothing, while another one can be had; else each caller is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import hurried
import pytest
from bad_network import BadNetwork
from conftest import dialling
from ledgers import LEDGER, server
from parties import stop
from sandbox import children, guest_of, wait_until_ended

import adyton
from adyton.errors import ConnectionLostError, UnreachableError

pytestmark = pytest.mark.sandbox

PROGRAM = (
    LEDGER
    + """
import adyton.trusted as trusted

@trusted.host_function
def told(number: int, data: bytes) -> int: ...

def take(number: int, data: bytes) -> int:
    note(number)
    return len(data)

def tell(number: int, data: bytes) -> int:
    return told(number, data)

@trusted.host_function
def swapped(data: bytes) -> bytes: ...

def swap(data: bytes) -> bytes:
    return swapped(data)

async def swap_async(data: bytes) -> bytes:
    return swapped(data)

def give(size: int) -> bytes:
    return bytes(size)

def copy(source: str, target: str) -> None:
    with open(source, "rb") as read, open(target, "wb") as written:
        while data := read.read(4096):
            written.write(data)
"""
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("lost") / "ledger.py"
    path.write_text(PROGRAM)
    return str(path)


def cut_until(network: BadNetwork, over: threading.Event, pause: float = 0.05) -> int:
    """Again and again, after so many seconds."""
    cuts = 0
    while not over.wait(pause):
        cuts += network.cut()
    return cuts


def test_each_call_takes_effect_once_however_often_the_connection_is_lost(program):
    told: list[int] = []

    def on_client(number: int, data: bytes) -> int:
        told.append(number)
        return len(data)

    on_client.__name__ = "told"
    with server() as there:
        client = there.load(program, functions=[on_client], allow_call=["told"])
        over, numbers = threading.Event(), iter(range(1 << 30))
        cutter = ThreadPoolExecutor(1).submit(cut_until, there.network, over)
        sizes = [0, 100, 20_000, 300_000]

        def work() -> list[int]:
            mine = []
            while cutter.running() and there.network.accepted < 12:
                number = next(numbers)
                size = sizes[number % 4]
                entry = "tell" if number % 3 == 0 else "take"
                assert client.call(entry, number, bytes(size)) == size
                mine.append(number)
            return mine

        with ThreadPoolExecutor(6) as threads:
            done = [number for each in [threads.submit(work) for _ in range(6)] for number in each.result()]
        over.set()
        assert cutter.result() >= 10
        assert sorted(told) == sorted(number for number in done if number % 3 == 0)
        assert client.call("ledger") == {number: 1 for number in done if number % 3}
        client.close()
        assert there.process.wait(30) == 0


INITIALIZES = """
import adyton.trusted as trusted

enclave = trusted.Enclave("initializes")
times = 0

@trusted.host_function
def beginning() -> int: ...

@enclave.on_initialize
def initialize(config: trusted.EnclaveConfig) -> None:
    global times
    times += beginning()

@enclave.entry
def initialized() -> int:
    return times
"""


def test_a_load_goes_on_over_a_lost_connection(tmp_path):
    (tmp_path / "initializes.py").write_text(INITIALIZES)
    cuts = []

    def beginning() -> int:
        cuts.append(there.network.cut())
        return 1

    with server() as there:
        client = there.load(str(tmp_path / "initializes.py"), functions=[beginning], allow_call=["beginning"])
        with client:
            assert client.call("initialized") == 1
        assert len(cuts) == 1
        assert there.process.wait(60) == 0


@pytest.mark.parametrize("size", [1, 700, 2_000, 3_500, 4_200, 4_600, 4_800, 5_000, 5_500])
def test_a_connection_that_is_lost_anywhere_while_it_is_made_is_an_error_at_once_or_no_loss(program, size):
    """4700 to 5000 bytes of both directions are the handshakes and the evidence: whose connection is lost before, has lost nothing yet."""
    with server("--grace", "1", start=hurried.start) as there:
        before = children(there.process.pid)
        there.network.limits[2] = size  # the first one is for provisioning
        began = time.monotonic()
        try:
            with there.load(program) as client:
                assert client.call("take", 1, b"") == 0
                assert client.call("ledger") == {1: 1}
        except (ConnectionLostError, UnreachableError):
            assert size < 5_500
        assert time.monotonic() - began < 30  # not until gRPC, or the grace, has an end
        started = children(there.process.pid) - before
        assert there.process.wait(60) == 0
        assert wait_until_ended(started) == set()


def test_files_are_read_and_written_over_lost_connections(program, tmp_path):
    content = os.urandom(24 << 20)
    (tmp_path / "source").write_bytes(content)
    with server() as there:
        client = there.load(program, allow_read=[str(tmp_path)], allow_write=[str(tmp_path)])
        over = threading.Event()
        cutter = ThreadPoolExecutor(1).submit(cut_until, there.network, over, 0.3)
        client.call("copy", str(tmp_path / "source"), str(tmp_path / "target"))
        client.call("take", 1, b"")
        over.set()
        assert cutter.result()
        assert (tmp_path / "target").read_bytes() == content
        client.close()


def test_large_values_of_functions_and_results_of_tasks_arrive_once_over_cuts(program):
    told: list[bytes] = []

    def swapped(data: bytes) -> bytes:
        told.append(data)
        return data[::-1]

    data = os.urandom(4 << 20)
    with server() as there, there.load(program, functions=[swapped], allow_call=["swapped"]) as client:
        over = threading.Event()
        with ThreadPoolExecutor(3) as threads:
            cutter = threads.submit(cut_until, there.network, over, 0.2)
            try:
                paired = threads.submit(client.call, "swap", data)
                asked = threads.submit(lambda: asyncio.run(_swapped(client, data)))
                assert data[::-1] == paired.result(200)
                assert asked.result(200)
                while there.network.accepted < 5:
                    assert client.call("swap", data[:70_000]) == data[:70_000][::-1]
                    told.pop()
            finally:
                over.set()
            assert cutter.result() >= 3
        assert [each == data for each in told] == [True] * 3


async def _swapped(client: adyton.EnclaveClient, data: bytes) -> bool:
    return await client.acall("swap", data) == await client.acall("swap_async", data) == data[::-1]


@pytest.mark.parametrize("size", [10, 20 << 20])
def test_a_result_that_was_under_way_arrives(program, size):
    with server() as there, there.load(program) as client, ThreadPoolExecutor(1) as thread:
        there.network.down()
        result = thread.submit(client.call, "give", size)
        there.network.up()
        assert result.result(60) == bytes(size)


def test_who_waits_for_a_call_waits_on_while_the_network_is_down(program):
    with server() as there, there.load(program) as client, ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(client.call, "wait")
        there.network.down()
        before = there.network.accepted
        while there.network.accepted < before + 3:  # it tries, and tries again
            time.sleep(0.01)
        assert not waiting.done()
        there.network.up()
        client.call("go_on")
        assert waiting.result(60) == "over"


def test_a_timeout_holds_while_the_network_is_down(program):
    with server() as there, there.load(program) as client:
        there.network.down()
        with pytest.raises(adyton.errors.DeadlineError):
            client.options(timeout=0.2).call("take", 1, b"")
        there.network.up()
        assert client.call("take", 2, b"") == 0


def test_a_connection_on_which_nothing_comes_is_given_up_and_another_one_made(program):
    with server() as there, there.load(program) as client:
        there.network.swallow()
        assert client.call("take", 1, b"x") == 1
        assert client.call("ledger") == {1: 1}


def test_bytes_that_were_changed_on_the_way_cost_a_connection_and_nothing_else(program):
    with server() as there, there.load(program) as client:
        there.network.corrupt()
        assert client.call("take", 1, bytes(1 << 20)) == 1 << 20
        assert there.network.accepted > 2  # provisioning has its own
        assert client.call("ledger") == {1: 1}


def test_after_the_grace_each_who_waits_is_told_once_and_both_sides_clean_up(program):
    before = children(os.getpid())
    with server("--grace", "0.5") as there:
        client = there.load(program)
        started = children(os.getpid()) - before
        with ThreadPoolExecutor(3) as threads:
            waiting = [threads.submit(client.call, "wait") for _ in range(3)]
            client.call("take", 1, b"")
            there.network.down()
            for each in waiting:
                with pytest.raises(
                    ConnectionLostError, match=r"within 0.5 s; the outcome of calls under way is unknown"
                ):
                    each.result(60)
        with pytest.raises(ConnectionLostError, match="Load it again"):
            client.call("take", 2, b"")
        assert there.process.wait(60) == 0
        assert wait_until_ended(started) == set()
        with pytest.raises(ConnectionLostError):
            client.close()


def test_without_a_grace_a_lost_connection_is_the_end(program):
    with server("--grace", "0") as there:
        client = there.load(program)
        there.network.cut()
        with pytest.raises(ConnectionLostError, match=r"the connection to .* was lost"):
            client.call("take", 1, b"")
        assert there.process.wait(60) == 0
        with pytest.raises(ConnectionLostError):
            client.close()


def test_an_enclave_that_was_killed_is_told_at_once(program):
    with server() as there:
        client = there.load(program)
        (supervisor,) = (pid for pid in children(there.process.pid) if name(pid) == "adyton-super")
        os.kill(supervisor, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(ConnectionLostError, match="the enclave has ended"):
            client.call("take", 1, b"")
        assert time.monotonic() - began < 10
        with pytest.raises(ConnectionLostError):
            client.close()


def test_an_enclave_that_was_killed_is_told_at_once_by_a_server_that_dials(program):
    before = children(os.getpid())
    with dialling("ipv4", ""):
        client = adyton.load(program)
    started = children(os.getpid()) - before
    (supervisor,) = (pid for pid in started if name(pid) == "adyton-super")
    os.kill(supervisor, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(ConnectionLostError, match="the enclave has ended"):
        client.call("take", 1, b"")
    assert time.monotonic() - began < 20  # the grace is a minute
    with pytest.raises(ConnectionLostError):
        client.close()
    assert wait_until_ended(started) == set()


def test_a_server_that_is_gone_is_noticed_long_before_the_grace_is_over(program):
    with server() as there:
        client = adyton.load(program, on=f"grpc://127.0.0.1:{there.port}", allow_sim=True)
        there.process.kill()
        with pytest.raises(ConnectionLostError, match=r"nobody listens any more .* so it has ended"):
            client.call("take", 1, b"")
        with pytest.raises(ConnectionLostError):
            client.close()


def test_a_server_that_was_restarted_is_not_taken_for_the_old_one(program):
    with server() as old, server() as new:
        client = old.load(program)
        other = new.load(program)
        old.network.target = new.port
        old.network.cut()
        with pytest.raises(adyton.AdytonError, match="no session of that token"):
            client.call("take", 1, b"")
        assert other.call("ledger") == {}
        other.close()
        with pytest.raises(adyton.AdytonError):
            client.close()


def test_each_stopped_party_is_waited_for(program):
    """All at the same time, each of a session of its own."""
    with contextlib.ExitStack() as stack:
        victims, noted, clients = {}, {}, {}
        for party in ("relay", "supervisor", "guest"):
            there = stack.enter_context(server())
            clients[party] = client = stack.enter_context(there.load(program))
            (supervisor,) = (pid for pid in children(there.process.pid) if name(pid) == "adyton-super")
            found = {"relay": there.process.pid, "supervisor": supervisor, "guest": guest_of(supervisor)}
            victims[party] = found[party]
        for pid in victims.values():
            stop(pid)
        with ThreadPoolExecutor(len(victims)) as threads:
            for party, client in clients.items():
                noted[party] = threads.submit(client.call, "take", 1, b"")
            # Longer than it takes to give a connection up, or who is stopped without a grace.
            assert not wait(noted.values(), 5).done
            for pid in victims.values():
                os.kill(pid, signal.SIGCONT)
            assert {party: each.result(60) for party, each in noted.items()} == dict.fromkeys(victims, 0)
        assert {party: client.call("ledger") for party, client in clients.items()} == {
            party: {1: 1} for party in victims
        }


def test_a_client_that_was_stopped_goes_on(program, tmp_path):
    code = f"""
import sys, adyton
with adyton.load({program!r}, on=sys.argv[1], allow_sim=True) as client:
    print("loaded", flush=True)
    sys.stdin.readline()
    print(client.call("take", 1, b"x"), client.call("ledger"), flush=True)
"""
    with server() as there:
        process = subprocess.Popen(
            [sys.executable, "-c", code, f"grpc://127.0.0.1:{there.network.port}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "loaded\n"
            process.send_signal(signal.SIGSTOP)
            there.network.cut()  # meanwhile
            process.send_signal(signal.SIGCONT)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "1 {1: 1}\n"


def test_a_client_that_was_killed_leaves_nothing_after_the_grace(program):
    code = f"""
import os, sys, adyton
client = adyton.load({program!r}, on=sys.argv[1], allow_sim=True)
os.kill(os.getpid(), 9)
"""
    with server("--grace", "0.5") as there:
        subprocess.run(
            [sys.executable, "-c", code, f"grpc://127.0.0.1:{there.network.port}"], check=False, capture_output=True
        )
        assert there.process.wait(60) == 0


def name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


class Interrupt(Exception):
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it may come while storage dies
def test_calls_that_are_interrupted_at_any_moment_leave_calls_possible(program):
    def interrupt(*_: object) -> None:
        raise Interrupt

    def call(number: int) -> int:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00002, 0.002))
            return client.call("take", number, b"x" * random.choice([10, 10, 300_000]))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    random.seed(1)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with server() as there:
            client = there.load(program)
            for number in range(100):
                with contextlib.suppress(Interrupt):
                    call(number)
            seen = client.call("ledger")
            assert set(seen.values()) <= {1}
            assert set(seen) <= set(range(100))
            assert client.call("take", 100, b"x") == 1
            client.close()
    finally:
        signal.signal(signal.SIGALRM, before)
