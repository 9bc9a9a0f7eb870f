"""`make bench-hops`: where the microseconds of an empty call go: which thread wakes which, how soon it runs, and how long.

Nothing in the product knows of it. What the kernel counts of each process (/proc) is read around calls that nobody looks at; then `perf`
notes the kernel's wake-ups, switches and system calls for some more of them, which makes these slower by about a tenth. The clock is one
for all processes of a machine. The same for a bare grpcio stream echo of the same size, in turns. Prints tables, and writes
bench/results/hops.json. Without perf, or the right to use it, there are only the counts.
"""

from __future__ import annotations

import argparse
import bisect
import collections
import contextlib
import json
import os
import queue
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bare_stream
import grpc

import adyton
from adyton import EnclaveLoadConfig, EnclaveManager, EnclaveManagerOptions, FakeEnclaveLoader, trusted
from adyton.runtime.process.table import ROWS

HERE = Path(__file__).parent
BODY = b"x" * 64
PROGRAM = """
def empty(data: bytes) -> bytes:
    return data
"""
SELDOM = 0.15  # of all calls: what happens less often is no hop of theirs
_FUTEX_WAITS = (0, 9)  # operations: linux/futex.h
_SYSCALL_NAMES = {row.number("x86_64" if os.uname().machine == "x86_64" else "aarch64"): row.name for row in ROWS}


# -- what is called -------------------------------------------------------------------------------------------------------


@dataclass
class Parties:
    """Something that can be called, and the processes that take part: name → id."""

    name: str
    call: Callable[[], object]
    processes: Mapping[str, int]


@contextlib.contextmanager
def enclave(directory: str) -> Iterator[Parties]:
    program = Path(directory, "empty.py")
    program.write_text(PROGRAM)
    with adyton.load(str(program)) as client:
        processes = {name: report.stat.pid for name, report in client.processes().items()}
        yield Parties("adyton", lambda: client.call("empty", BODY), {"client": os.getpid(), **processes})


@contextlib.contextmanager
def echo(_directory: str) -> Iterator[Parties]:
    with bare_stream.server_process() as (server, port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        responses = channel.stream_stream("/Bare/echo")(iter(requests.get, None))

        def call() -> None:
            requests.put(BODY)
            next(responses)

        yield Parties("bare grpcio stream", call, {"client": os.getpid(), "server": server})
        requests.put(None)


# -- counts of the kernel -------------------------------------------------------------------------------------------------


@dataclass
class Used:
    """By one process, for one call: microseconds on a processor, and ready for one that was taken; how often it slept, and was put aside."""

    running: float
    ready: float
    slept: float
    preempted: float
    system_calls: float | None = None
    futex_waits: float | None = None
    lock_waits: float | None = None  # of these, on what several of its threads wait for: the GIL


def _counts(pid: int) -> tuple[int, int, int, int]:
    totals = [0, 0, 0, 0]
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread has ended
            status = (task / "status").read_text()
            running, ready, _ = (task / "schedstat").read_text().split()
            switches = re.findall(r"voluntary_ctxt_switches:\s+(\d+)", status)
            for place, number in enumerate((running, ready, *switches)):
                totals[place] += int(number)
    return totals[0], totals[1], totals[2], totals[3]


def counted(parties: Parties, calls: int) -> tuple[float, dict[str, Used]]:
    """The median of microseconds, and what each process used."""
    for _ in range(calls // 5):
        parties.call()
    before = {name: _counts(pid) for name, pid in parties.processes.items()}
    spans = [(end - start) / 1e3 for start, end in _timed(parties.call, calls)]
    used = {}
    for name, pid in parties.processes.items():
        running, ready, slept, preempted = (
            (now - then) / calls for now, then in zip(_counts(pid), before[name], strict=True)
        )
        used[name] = Used(running / 1e3, ready / 1e3, slept, preempted)
    return statistics.median(spans), used


def _timed(call: Callable[[], object], calls: int) -> list[tuple[int, int]]:
    """Nanoseconds of the monotonic clock."""
    spans = []
    for _ in range(calls):
        start = time.monotonic_ns()
        call()
        spans.append((start, time.monotonic_ns()))
    return spans


# -- what Python does -----------------------------------------------------------------------------------------------------


def steps(calls: int) -> dict[str, Any]:
    """Functions that each thread calls for one call, of Python and of C, and those of Python that it calls most: a machine's load does not
    change them. Of an enclave in this process, on threads, whose transport is a socket: there is no gRPC and no relay in it."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    counting = False

    def look(frame: Any, event: str, called: Any) -> None:
        if counting and event == "call":
            counts[threading.current_thread().name][
                f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_qualname}"
            ] += 1
        elif counting and event == "c_call":
            counts[threading.current_thread().name][f"C {getattr(called, '__qualname__', called)}"] += 1

    program = trusted.Enclave("hops")

    @program.entry
    def empty(data: bytes) -> bytes:
        return data

    threading.setprofile(look)
    try:
        EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(program)))
        with EnclaveManager.instance().load_enclave(EnclaveLoadConfig(name="hops")) as client:
            client.call(empty, BODY)
            sys.setprofile(look)
            counting = True
            for _ in range(calls):
                client.call(empty, BODY)
            counting = False
            sys.setprofile(None)
    finally:
        threading.setprofile(None)  # type: ignore[arg-type] # what typeshed does not know
        EnclaveManager.configure(EnclaveManagerOptions())
    found = {}
    for name, counted_ in counts.items():
        python = {function: count / calls for function, count in counted_.items() if not function.startswith("C ")}
        most = sorted(python, key=lambda function: -python[function])[:6]
        of_c = (counted_.total() - sum(python.values()) * calls) / calls
        found[name] = {"python": sum(python.values()), "c": of_c, "most": {each: python[each] for each in most}}
    return found


# -- what perf sees -------------------------------------------------------------------------------------------------------


@dataclass
class Hop:
    """One thread wakes another, which then runs. Microseconds."""

    waker: str
    woken: str
    at: list[float] = field(default_factory=list)  # after the call began
    late: list[float] = field(default_factory=list)  # until it ran
    ran: list[float] = field(default_factory=list)
    did: collections.Counter[str] = field(default_factory=collections.Counter)


_LINE = re.compile(r"\s*(\d+)\s+(\d+)\.(\d{9}):\s+(\w+):(\w+): (.*)")
_SWITCH = re.compile(r".*prev_pid=(\d+) .*next_pid=(\d+) ")
_WAKEUP = re.compile(r".* pid=(\d+) ")
_CALL = re.compile(r"NR (\d+) \((\w+), (\w+)")


class Threads:
    """Names for the threads of all processes."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._known: dict[int, str] = {}
        self.process: dict[int, str] = {}
        mine = {thread.native_id: thread.name for thread in threading.enumerate()}
        for name, pid in processes.items():
            for number, task in enumerate(sorted(map(int, os.listdir(f"/proc/{pid}/task")))):
                own = Path(f"/proc/{pid}/task/{task}/comm").read_text().strip()
                title = mine.get(task) or ("" if own.startswith(("python", "adyton")) else own)
                self._known[task] = f"{name}/{number}{' ' + title if title else ''}"
                self.process[task] = name

    def __contains__(self, task: int) -> bool:
        return task in self._known

    def __getitem__(self, task: int) -> str:
        return self._known.get(task, "others")

    def __iter__(self) -> Iterator[int]:
        return iter(self._known)


def seen(parties: Parties, calls: int, directory: str) -> tuple[list[Hop], dict[str, Used], float] | str:
    """The hops of a call, in the order in which they happen, system calls of each process, and the median of microseconds; or why there are none."""
    perf = shutil.which("perf")
    if perf is None:
        return "perf is not there"
    threads = Threads(parties.processes)
    path = f"{directory}/perf.data"
    ours = " || ".join(f"common_pid == {task}" for task in threads)
    command = [perf, "record", "-q", "-a", "-k", "CLOCK_MONOTONIC", "-m", "4M", "-o", path]
    command += [
        "-e",
        "sched:sched_switch",
        "-e",
        "sched:sched_wakeup",
        "-e",
        "raw_syscalls:sys_enter",
        "--filter",
        ours,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(0.7)  # it says nothing when it begins
        if process.poll() is not None:
            assert process.stderr is not None
            return f"perf: {' '.join(process.stderr.read().split())[:120]}"
        spans = _timed(parties.call, calls)
        process.send_signal(2)
        process.wait(30)
    script = [perf, "script", "-i", path, "--ns", "-F", "tid,time,event,trace"]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        hops, used = follow(process.stdout, spans, threads)
    return hops, used, statistics.median((end - start) / 1e3 for start, end in spans)


def follow(lines: Any, spans: Sequence[tuple[int, int]], threads: Threads) -> tuple[list[Hop], dict[str, Used]]:
    hops: dict[tuple[str, str], Hop] = {}
    starts = [start for start, _ in spans]
    woken: dict[int, tuple[int, str, int]] = {}  # thread → when, by whom, in which call
    running: dict[int, tuple[int, Hop | None, list[str]]] = {}
    entered: collections.Counter[str] = collections.Counter()
    waits: collections.Counter[tuple[str, str]] = collections.Counter()  # process and address
    waiters: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
    for line in lines:
        found = _LINE.match(line)
        if found is None:
            continue
        task, when = int(found[1]), int(found[2]) * 1_000_000_000 + int(found[3])
        number = bisect.bisect(starts, when) - 1
        if number < 0 or when > spans[number][1]:
            number = -1
        match found[5]:
            case "sched_wakeup":
                target = int(_WAKEUP.match(found[6])[1])  # type: ignore[index]
                if target in threads and number >= 0:
                    woken[target] = when, threads[task], number
            case "sched_switch":
                before, after = map(int, _SWITCH.match(found[6]).groups())  # type: ignore[union-attr]
                if before in running:
                    since, hop, did = running.pop(before)
                    if hop is not None:
                        hop.ran.append((when - since) / 1e3)
                        hop.did[" ".join(did)] += 1
                if after in threads:
                    cause = woken.pop(after, None)
                    hop = None
                    if cause is not None:
                        at, waker, call = cause
                        hop = hops.setdefault((waker, threads[after]), Hop(waker, threads[after]))
                        hop.at.append((at - starts[call]) / 1e3)
                        hop.late.append((when - at) / 1e3)
                    running[after] = when, hop, []
            case "sys_enter" if task in threads and number >= 0:
                call_number, *arguments = _CALL.match(found[6]).groups()  # type: ignore[union-attr]
                name = _SYSCALL_NAMES.get(int(call_number), str(call_number))
                process = threads.process[task]
                entered[process] += 1
                if name == "futex" and int(arguments[1], 16) & 0x7F in _FUTEX_WAITS:
                    waits[process, arguments[0]] += 1
                    waiters[process, arguments[0]].add(task)
                    name = "futex-wait"
                if task in running:
                    running[task][2].append(name)
            case _:
                pass
    kept = [hop for hop in hops.values() if len(hop.at) >= SELDOM * len(spans)]
    used = {}
    for process in set(threads.process.values()):
        mine = {key: count for key, count in waits.items() if key[0] == process}
        shared = sum(count for key, count in mine.items() if len(waiters[key]) > 1)
        calls = len(spans)
        used[process] = Used(0, 0, 0, 0, entered[process] / calls, sum(mine.values()) / calls, shared / calls)
    return sorted(kept, key=lambda hop: statistics.median(hop.at)), used


# -- the run --------------------------------------------------------------------------------------------------------------


def measure(calls: int, rounds: int, traced: int) -> list[dict[str, Any]]:
    """What was found of each kind of parties, JSON's types only."""
    found = []
    with tempfile.TemporaryDirectory() as directory:
        medians: dict[str, list[float]] = collections.defaultdict(list)
        uses: dict[str, list[dict[str, Used]]] = collections.defaultdict(list)
        views: dict[str, Any] = {}
        for _ in range(rounds):
            for kind in (echo, enclave):
                with kind(directory) as parties:
                    median, used = counted(parties, calls)
                    medians[parties.name].append(median)
                    uses[parties.name].append(used)
                    views[parties.name] = seen(parties, traced, directory)
        for name, all_used in uses.items():
            view = views[name]
            used = {each: _middle([round_[each] for round_ in all_used]) for each in all_used[0]}
            if not isinstance(view, str):
                for process, more in view[1].items():
                    mine = used[process]
                    mine.system_calls, mine.futex_waits = more.system_calls, more.futex_waits
                    mine.lock_waits = more.lock_waits
            found.append(
                {
                    "name": name,
                    "microseconds": medians[name],
                    "processes": {process: vars(each) for process, each in used.items()},
                    "said": view if isinstance(view, str) else "",
                    "traced_microseconds": None if isinstance(view, str) else view[2],
                    "hops": [] if isinstance(view, str) else [_described(hop, traced) for hop in view[0]],
                }
            )
    return found


def _middle(each: Sequence[Used]) -> Used:
    return Used(
        *(statistics.median(getattr(one, name) for one in each) for name in ("running", "ready", "slept", "preempted"))
    )


def _described(hop: Hop, calls: int) -> dict[str, Any]:
    return {
        "at": statistics.median(hop.at),
        "waker": hop.waker,
        "woken": hop.woken,
        "times": len(hop.at) / calls,
        "late": statistics.median(hop.late),
        "ran": statistics.median(hop.ran) if hop.ran else None,
        "system_calls": hop.did.most_common(1)[0][0] if hop.did else "",
    }


def show(found: Sequence[Mapping[str, Any]], functions: Mapping[str, Any]) -> None:
    print(
        "\nfunctions called for one call, on each thread of an enclave in this process: Python's, C's, those called most"
    )
    for name, each in functions.items():
        most = ", ".join(f"{count:.0f} {function}" for function, count in each["most"].items() if count >= 1.5)
        print(f"  {name:34} {each['python']:>6.0f} {each['c']:>6.0f}  {most}")
    for each in found:
        rounds = ", ".join(f"{one:.0f}" for one in each["microseconds"])
        print(f"\n{each['name']}: {statistics.median(each['microseconds']):.0f} µs a call (rounds: {rounds})")
        print(
            f"  {'for one call':12} {'runs':>8} {'ready':>8} {'sleeps':>7} {'put aside':>9} {'system calls':>12} {'futex waits':>11} {'the GIL':>8}"
        )
        for name, used in each["processes"].items():
            more = [used[key] for key in ("system_calls", "futex_waits", "lock_waits")]
            texts = ["" if one is None else f"{one:.1f}" for one in more]
            print(
                f"  {name:12} {used['running']:>5.0f} µs {used['ready']:>5.0f} µs {used['slept']:>7.1f} {used['preempted']:>9.1f} "
                f"{texts[0]:>12} {texts[1]:>11} {texts[2]:>8}"
            )
        if each["said"]:
            print(f"  no hops: {each['said']}")
            continue
        print(f"  with perf looking on, {each['traced_microseconds']:.0f} µs a call; medians of µs:")
        print(f"  {'at':>5}  {'':58} {'a call':>6} {'runs after':>10} {'for':>5}  system calls meanwhile")
        for hop in each["hops"]:
            ran = "" if hop["ran"] is None else f"{hop['ran']:.0f}"
            wakes = f"{hop['waker']} → {hop['woken']}"
            print(
                f"  {hop['at']:>5.0f}  {wakes:58} {hop['times']:>6.2f} {hop['late']:>10.0f} {ran:>5}  {hop['system_calls'][:110]}"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--traced", type=int, default=300, help="calls that perf looks at")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "hops.json")
    options = parser.parse_args(arguments)
    os.environ["PYTHONWARNINGS"] = "ignore"
    found = measure(options.calls, options.rounds, options.traced)
    functions = steps(options.traced)
    show(found, functions)
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(json.dumps({"parties": found, "functions": functions}, indent=2) + "\n")


if __name__ == "__main__":
    main()
