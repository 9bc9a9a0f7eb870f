"""The code of `make bench-communicator`, `bench-hops`, `bench-paths` and `soak`, with little of everything: that it measures what it says."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

import bare_calls
import bare_stream
import communicator
import hops
import paths
import peer_calls
import processes
import pytest
import soak
from delay_proxy import Carried, delayed

sandboxed = pytest.mark.sandbox
BODY = b"x" * 64


# -- references -----------------------------------------------------------------------------------------------------------


def test_the_echoes_to_compare_with_answer_each_call():
    with bare_calls.server("sync") as port:
        assert len(bare_calls.stream_echo(port, BODY, 5)) == 5
        assert bare_calls.unary_rate(port, BODY, 2, 0.05) > 0
    with bare_calls.server("aio") as port:
        assert len(bare_calls.aio_echo(port, BODY, 5)) == 5


@pytest.mark.parametrize("kind", ["rpyc", "pyro"])
def test_a_peer_that_is_installed_answers_each_call(kind):
    if not peer_calls.there({"pyro": "Pyro5"}.get(kind, kind)):
        pytest.skip("not installed: make bench-communicator does it")
    ask = {"rpyc": peer_calls.rpyc_calls, "pyro": peer_calls.pyro_calls}[kind]
    with peer_calls.server(kind) as port:
        assert len(ask(port, 5)) == 5


@pytest.mark.parametrize(("size", "piece"), [(0, 4), (3, 4), (4, 4), (10, 4)])
def test_pieces_are_as_many_bytes_as_were_asked_for(size, piece):
    found = list(bare_stream.pieces(size, piece))
    assert sum(map(len, found)) == size
    assert all(0 < len(each) <= piece for each in found)


# -- the proxy that cuts --------------------------------------------------------------------------------------------------


def test_a_cut_resets_a_connection_at_both_ends_and_leaves_others_alone():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = []
        for _ in range(2):
            ours = socket.create_connection(listener.getsockname())
            ends.append((ours, listener.accept()[0]))
        carried = Carried()
        with carried.holding(ends[0][1]):
            carried.cut()
        carried.cut()  # nothing is held any more
        for sock in ends[0]:
            with pytest.raises(OSError):  # ECONNRESET at the far end, ENOTCONN at the one that was cut
                sock.recv(1)
        ends[1][0].sendall(b"x")
        assert ends[1][1].recv(1) == b"x"
        for sock in (*ends[0], *ends[1]):
            sock.close()


def test_the_proxy_cuts_what_it_carries_and_takes_new_connections():
    with bare_calls.server("sync") as target, delayed(target, 0, cut=0.2) as port:
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port)) as sock, pytest.raises(ConnectionResetError):
                collections.deque(
                    iter(lambda: sock.recv(1 << 16), b""), 0
                )  # what gRPC says first, in one piece or in two


# -- rows -----------------------------------------------------------------------------------------------------------------


@sandboxed
def test_rows_have_their_figures_their_references_and_go_into_a_file(tmp_path, capfd):
    results = tmp_path / "results" / "communicator.json"
    only = "threads, argument, idle"
    communicator.main(["--tiny", "--only", only, "--delays", "0", "--results", str(results)])
    rows = {row["name"]: row for row in json.loads(results.read_text())["rows"]}
    calls, argument = rows["empty calls a second, 4 threads"], rows["argument, 1 MiB"]
    assert calls["figure"] == pytest.approx(calls["share"] * calls["references"]["unary"])
    assert calls["met"] == (calls["share"] >= 5)
    assert argument["references"]["bare stream"] > 0
    assert set(argument["more"]["peak_over_idle"]) == {"client", "proxy", "supervisor", "guest"}
    idle = rows["1000 idle sessions on one server, from 2"]["more"]
    assert idle["sessions"] == 2
    assert set(idle["bytes"]) == set(idle["percent"]) == {"proxy", "supervisor", "guest", "others"}
    assert "argument, 1 MiB" in capfd.readouterr().out


@sandboxed
def test_asyncio_calls_and_calls_beside_a_transfer_are_counted():
    bench = communicator.Bench(communicator.TINY)
    (tasks,), (beside,) = communicator.tasks(bench, 0), communicator.beside(bench, 0)
    assert tasks.figure is not None
    assert tasks.figure > 0
    assert beside.figure is not None
    assert beside.share == pytest.approx(beside.figure / beside.references["alone"])


def test_a_row_that_cannot_be_had_says_why_and_its_references_are_measured_all_the_same():
    row = communicator.Row("a row", 0, "µs", "")

    def once() -> float:
        raise TypeError("streams are not carried\nyet")

    assert list(communicator.Bench(communicator.Sizes(rounds=2)).rounds(row, once)) == [0, 1]
    assert (row.figure, row.said) == (None, "not there: streams are not carried")


def test_a_row_that_nobody_knows_is_refused(capfd):
    with pytest.raises(SystemExit):
        communicator.main(["--only", "emtpy"])
    assert "nothing is named emtpy: there are empty, threads" in capfd.readouterr().err


def test_what_a_process_has_and_whose_it_is():
    mine = os.getpid()
    assert processes.peak(mine) >= processes.resident(mine) > processes.MIB
    assert processes.proportional(mine) > 0
    assert processes.processor_seconds(mine) > 0
    assert mine in processes.descendants(os.getppid())
    assert processes.available() > 0
    with open(os.devnull) as held:
        before = processes.descriptors(mine)
        held.close()
        assert processes.descriptors(mine) == before - 1


# -- hops -----------------------------------------------------------------------------------------------------------------

# Thread 7 wakes 8, which runs 3 µs later, for 20 µs, in which it waits for a lock.
TRACE = """
    7     1.000010000:       sched:sched_wakeup: comm=b pid=8 prio=120 target_cpu=001
    0     1.000013000:       sched:sched_switch: prev_comm=swapper/1 prev_pid=0 prev_prio=120 prev_state=R ==> next_comm=b next_pid=8 next_prio=120
    8     1.000020000:   raw_syscalls:sys_enter: NR 202 (7f00, 189, 0, 0, 0, 0)
    8     1.000033000:       sched:sched_switch: prev_comm=b prev_pid=8 prev_prio=120 prev_state=S ==> next_comm=swapper/1 next_pid=0 next_prio=120
    7     9.000010000:       sched:sched_wakeup: comm=b pid=8 prio=120 target_cpu=001
"""


class NamedThreads(dict[int, str]):
    process: dict[int, str]


def test_hops_are_told_from_what_perf_wrote(monkeypatch):
    monkeypatch.setitem(hops._SYSCALL_NAMES, 202, "futex")
    threads = NamedThreads({7: "one/0", 8: "two/0"})
    threads.process = {7: "one", 8: "two"}
    (hop,), used = hops.follow(TRACE.splitlines(), [(1_000_000_000, 1_000_100_000)], threads)
    assert (hop.waker, hop.woken) == ("one/0", "two/0")
    assert (hop.at, hop.late, hop.ran, list(hop.did)) == ([10.0], [3.0], [20.0], ["futex-wait"])
    assert (used["two"].system_calls, used["two"].futex_waits, used["two"].lock_waits) == (1, 1, 0)


def test_what_the_kernel_counts_of_a_process_is_told_for_one_call():
    parties = hops.Parties("me", lambda: sum(range(20_000)), {"client": os.getpid()})
    microseconds, used = hops.counted(parties, 20)
    assert used["client"].running > 0
    assert microseconds > 0


def test_functions_that_are_called_for_a_call_are_counted_for_each_thread():
    found = hops.steps(5)
    assert found["MainThread"]["most"]["client.EnclaveClient.call"] == 1
    assert found["adyton-in-process-supervisor"]["python"] > 10
    assert found["adyton-in-process-guest"]["c"] > 10


# -- paths ----------------------------------------------------------------------------------------------------------------


def serving(number: int) -> list[str]:
    """The processes of a variant's server."""
    command = f"{paths.__file__}\0--variant\0{number}\0--serve".encode()
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            if command in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.mark.parametrize(
    "name",
    [
        "bare echo: sync",
        "bare echo: aio",
        "bare echo: caller and queue, iomgr",
        "relay: aio, iomgr",
        "with TLS and sessions: grpcio's threads in both",
        "with TLS and sessions: caller, queue, iomgr in both",
        "client: reader; relay: queue, iomgr",
        "… spin 20 µs",
        "… poll",
    ],
)
def test_each_kind_of_path_carries_calls(name):
    (number,) = (number for number, path in enumerate(paths.PATHS) if path.name == name)
    median, late = paths.measured(number, 10)
    assert 0 < median <= late
    deadline = time.monotonic() + 10
    while left := serving(number):  # its parties end when they see the relay's end
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


# -- soak -----------------------------------------------------------------------------------------------------------------


def test_a_ledger_tells_what_was_lost_and_what_ran_twice():
    ledger = soak.Ledger()
    for caller in range(3):
        ledger.answered(caller, b"abc", 2, soak.result(caller, 0, b"abc", 2))
    ledger.failed(2, TimeoutError("slow"))
    assert list(ledger.against({0: 1, 1: 1, 2: 2})) == []
    assert list(ledger.against({0: 1, 1: 2, 2: 1})) == ["caller 1: 1 calls were answered, 0 may have run, 2 ran"]
    assert list(ledger.against({0: 0, 1: 1, 2: 3, 5: 1})) == [
        "caller 0: 1 calls were answered, 0 may have run, 0 ran",
        "caller 2: 1 calls were answered, 1 may have run, 3 ran",
        "caller 5: 0 calls were answered, 0 may have run, 1 ran",
    ]
    for wrong in (soak.result(1, 0, b"abc", 2), soak.result(2, 2, b"abc", 2), soak.result(1, 3, b"abd", 2), b""):
        ledger.answered(1, b"abc", 2, wrong)
    assert ledger.wrong == [f"call {number} of caller 1 was answered with another's result" for number in range(1, 5)]


@pytest.mark.parametrize(
    ("early", "late", "grown"),
    [(100, 101, []), (100, 150, ["a: descriptors went from 100 to 150"]), (10, 20, [])],
)
def test_what_grows_is_told(early, late, grown):
    watch = soak.Watch({})
    for count in [early] * 4 + [late] * 4:
        watch.looks.append({"a": {"resident": 1, "descriptors": count, "threads": 1}})
    assert list(watch.grown()) == grown


@pytest.mark.parametrize(
    ("resident", "grown"),
    [
        ((200, 204, 208, 212), "went up steadily"),
        ((200, 200, 200, 250), "went from"),
        ((200, 216, 216, 216), ""),  # once
        ((200, 215, 219, 220), ""),  # to a plateau
        ((200, 230, 200, 230), ""),  # comes and goes
        ((200, 300), ""),  # there were not all pauses
    ],
)
def test_what_is_resident_while_nobody_calls_is_not_to_grow(resident, grown):
    watch = soak.Watch({})
    watch.quiet = [{"a": {"resident": each * processes.MIB, "descriptors": 9, "threads": 1}} for each in resident]
    watch.looks = watch.quiet
    found = list(watch.grown())
    assert [grown in each for each in found] == [True] * bool(grown)


def test_all_callers_pause_and_go_on():
    ledger, pace = soak.Ledger(), soak.Pace()
    client = _AnsweringClient()
    thread = threading.Thread(target=soak.run_threads, args=(client, ledger, range(2), pace))
    thread.start()
    assert client.called.wait(60)
    pace.goes_on.clear()
    before = -1
    while before != ledger.done.total() or ledger.calling:  # for ever, if they did not
        before = ledger.done.total()
        time.sleep(0.1)
    client.called.clear()
    pace.goes_on.set()
    assert client.called.wait(60)
    pace.end()
    thread.join()
    assert not ledger.errors


class _AnsweringClient:
    def __init__(self):
        self.called = threading.Event()

    def call(self, _name, caller, number, data, size):
        self.called.set()
        return soak.result(caller, number, data, size)


class _FailingClient:
    def call(self, *_):
        raise TypeError


def test_a_caller_that_fails_in_any_way_fails_the_soak():
    ledger, pace = soak.Ledger(), soak.Pace()
    soak.run_threads(_FailingClient(), ledger, range(2), pace)
    assert ledger.errors == {"TypeError: ": ledger.unknown.total()}
    assert pace.ends.is_set()


@sandboxed
def test_a_soak_without_cuts_loses_nothing():
    found = soak.soak(1, threads=3, tasks=5, cut=0, every=0.1)
    assert [
        each for each in found["failures"] if "went from" not in each
    ] == []  # in a second, what is kept is not made yet
    assert found["calls"] > 8
    assert set(found["looks"][0]) == {"client", "proxy", "supervisor", "guest", "init"}


def test_a_program_for_the_soak_counts_calls_of_each_caller(monkeypatch):
    import soak_program

    monkeypatch.setattr(soak_program, "_next", {})
    monkeypatch.setattr(soak_program, "_wrong", [])
    for number in (0, 1, 1, 3):
        assert soak_program.work(7, number, b"abc", 2) == soak_program.result(7, number, b"abc", 2)
    assert soak_program.ledger() == ({7: 2}, ["call 1 of caller 7 ran twice", "call 3 of caller 7 came when 2 had not"])
