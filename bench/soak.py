"""`make soak SECONDS=3600`: calls from many threads and asyncio tasks through connections that are cut all the time.

Each caller numbers its calls; a ledger in the enclave against the client's shows that each ran exactly once. Memory, descriptors and
threads of all processes are watched. What is resident goes up and down by how many large values wait, so that it is judged where none does: four
times all callers pause, until what is free again has been given back. Exit status 1: a call was lost, ran twice or failed, or something grows.
Prints a line now and then, and writes bench/results/soak.json.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import processes
from delay_proxy import delayed
from processes import MIB
from soak_program import DATA, result

import adyton
from adyton.allocator import give_back_freed_memory
from adyton.errors import AdytonError
from adyton.runtime.process.supervisor.serve import TIDY_SECONDS

HERE = Path(__file__).parent
PROGRAM = str(HERE / "soak_program.py")
# Bytes of an argument or a result, and how often: most calls are small.
SIZES, WEIGHTS = (0, 64, 1000, 20_000, 300_000), (40, 40, 15, 4, 1)
LIMIT = 120.0  # seconds that one call may take: longer than a session outlives its connection
LOADED = 10.0  # seconds without a cut: an upload that is cut is an error of the load's
QUARTERS = 4
REST = TIDY_SECONDS + 10  # seconds without a call, until all that is free has been given back
LONG_ENOUGH = 600.0  # seconds, for what is resident to mean something: before, what is kept is being made
# What is more at the last pause than at the first one, or of descriptors and threads in the last quarter than in the second; and beyond what comes and goes.
GROWTH = {"resident": 1.2, "descriptors": 1.1, "threads": 1.1}
GROWN = {"resident": 16 * MIB, "descriptors": 16, "threads": 16}
# From each pause to the next: what comes to a plateau slows down. Of an hour's 18 million calls and 720 cuts, 0.7 bytes a call, 17 KB a cut.
STEADY = 3 * MIB


@dataclass
class Ledger:
    """The client's. `done`: calls that were answered, by caller; `errors`: what others raised, and how often."""

    done: collections.Counter[int] = field(default_factory=collections.Counter)
    unknown: collections.Counter[int] = field(default_factory=collections.Counter)  # calls that may have run
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    calling: set[int] = field(default_factory=set)  # callers

    def answered(self, caller: int, data: bytes, size: int, answer: bytes) -> None:
        self.done[caller] += 1
        self.calling.discard(caller)
        if answer != result(caller, self.done[caller] - 1, data, size):
            self.wrong.append(f"call {self.done[caller] - 1} of caller {caller} was answered with another's result")

    def failed(self, caller: int, error: Exception) -> None:
        self.unknown[caller] += 1
        self.calling.discard(caller)
        self.errors[f"{type(error).__name__}: {str(error)[:120].partition(chr(10))[0]}"] += 1

    def against(self, theirs: dict[int, int]) -> Iterator[str]:
        """What of the enclave's ledger does not fit."""
        for caller in sorted({*self.done, *theirs, *self.unknown}):
            least, ran = self.done[caller], theirs.get(caller, 0)
            if not least <= ran <= least + self.unknown[caller]:
                yield f"caller {caller}: {least} calls were answered, {self.unknown[caller]} may have run, {ran} ran"


def _call(source: random.Random) -> tuple[bytes, int]:
    """A call's data, and the size of its result."""
    size, answer = source.choices(SIZES, WEIGHTS, k=2)
    start = source.randrange(len(DATA) - size)
    return DATA[start : start + size], answer


class Pace:
    """When callers call: while it `goes_on`, until it `ends`."""

    def __init__(self) -> None:
        self.ends, self.goes_on = threading.Event(), threading.Event()
        self.goes_on.set()

    def end(self) -> None:
        self.ends.set()
        self.goes_on.set()


def run_threads(client: adyton.EnclaveClient, ledger: Ledger, callers: Sequence[int], pace: Pace) -> None:
    def work(caller: int) -> None:
        source = random.Random(caller)
        while pace.goes_on.wait() and not pace.ends.is_set():
            data, size = _call(source)
            ledger.calling.add(caller)
            try:
                ledger.answered(caller, data, size, client.call("work", caller, ledger.done[caller], data, size))
            except Exception as error:  # noqa: BLE001 - of whatever kind, it was to be none
                ledger.failed(caller, error)
                pace.end()

    threads = [threading.Thread(target=work, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def run_tasks(client: adyton.EnclaveClient, ledger: Ledger, callers: Sequence[int], pace: Pace) -> None:
    async def work(caller: int) -> None:
        source = random.Random(caller)
        while not pace.ends.is_set():
            if not pace.goes_on.is_set():
                await asyncio.sleep(0.5)
                continue
            data, size = _call(source)
            ledger.calling.add(caller)
            try:
                ledger.answered(caller, data, size, await client.acall("work", caller, ledger.done[caller], data, size))
            except Exception as error:  # noqa: BLE001 - of whatever kind, it was to be none
                ledger.failed(caller, error)
                pace.end()

    await asyncio.gather(*map(work, callers))


class Watch:
    """Looks at processes, again and again."""

    def __init__(self, parties: dict[str, int]) -> None:
        self._parties = parties
        self.looks: list[dict[str, dict[str, int]]] = []
        self.quiet: list[dict[str, dict[str, int]]] = []

    def look(self) -> dict[str, dict[str, int]]:
        give_back_freed_memory()  # of ours, who are the client: as an application may, and a supervisor does
        found = {}
        for name, pid in self._parties.items():
            with contextlib.suppress(OSError):  # it has ended
                found[name] = {
                    "resident": processes.resident(pid),
                    "descriptors": processes.descriptors(pid),
                    "threads": processes.threads(pid),
                }
        self.looks.append(found)
        return found

    def grown(self) -> Iterator[str]:
        """What has become more since the first quarter of the time, in which all that is kept is made: by much, or steadily."""
        size = len(self.looks) // QUARTERS
        for name in self.looks[0] if self.looks else ():
            for what in ("descriptors", "threads"):
                each = [
                    [look[name][what] for look in looks if name in look]
                    for looks in (self.looks[size : 2 * size], self.looks[-size:])
                ]
                if all(each):  # else it ended, and that is told otherwise
                    yield from _more(f"{name}: {what}", what, *map(statistics.median, each))
            resident = [look[name]["resident"] for look in self.quiet if name in look]
            if len(resident) == QUARTERS:
                yield from _more(f"{name}: resident", "resident", resident[0], resident[-1])
                if min(after - before for before, after in itertools.pairwise(resident)) > STEADY:
                    yield f"{name}: resident went up steadily, from pause to pause: {resident}"


def _more(named: str, what: str, before: float, after: float) -> Iterator[str]:
    if after > max(GROWTH[what] * before, before + GROWN[what]):
        yield f"{named} went from {before:,.0f} to {after:,.0f}"


def soak(seconds: float, threads: int, tasks: int, cut: float, every: float) -> dict[str, Any]:
    """JSON's types only; "failures" is empty if all is well."""
    command = [sys.executable, "-m", "adyton.cli", "proxy", "--listen", "127.0.0.1:0"]
    ledger, pace, failures = Ledger(), Pace(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        try:
            port = int(proxy.stdout.readline().rpartition(":")[2])
            with delayed(port, 0, cut, LOADED) as far:
                client = adyton.load(PROGRAM, on=f"grpc://127.0.0.1:{far}", allow_sim=True).options(timeout=LIMIT)
                parties = {name: report.stat.pid for name, report in client.processes().items()}
                supervisor, guest = parties["supervisor"], parties["guest"]
                (init,) = set(processes.descendants(supervisor)) - {supervisor, guest}
                watch = Watch({"client": os.getpid(), **parties, "init": init})
                callers = range(threads + tasks)
                start = time.monotonic()
                works = [
                    threading.Thread(target=run_threads, args=(client, ledger, callers[:threads], pace)),
                    threading.Thread(target=lambda: asyncio.run(run_tasks(client, ledger, callers[threads:], pace))),
                ]
                for work in works:
                    work.start()
                pauses = [start + seconds * part / QUARTERS for part in range(1, QUARTERS + 1)]
                while not pace.ends.wait(min(every, max(0.01, pauses[0] - time.monotonic()))):
                    _show(start, ledger, watch.look())
                    if time.monotonic() > pauses[0]:
                        del pauses[0]
                        if seconds >= LONG_ENOUGH:
                            _pause(pace, ledger)
                            watch.quiet.append(watch.look())
                            _show(start, ledger, watch.quiet[-1])
                            pace.goes_on.set()
                        if not pauses:
                            break
                pace.end()
                for work in works:
                    work.join()
                took = time.monotonic() - start
                try:
                    theirs, wrong = client.call("ledger")
                    failures += [*wrong, *ledger.against(theirs)]
                    client.close()
                except AdytonError as error:
                    failures.append(f"the session was lost: {str(error).splitlines()[0]}")
                    with contextlib.suppress(AdytonError):
                        client.close()
        finally:
            proxy.terminate()
    failures += ledger.wrong + [f"{count} calls: {error}" for error, count in ledger.errors.items()]
    failures += watch.grown()
    calls = ledger.done.total()
    return {
        "seconds": took,
        "calls": calls,
        "calls_per_second": calls / took,
        "failures": failures,
        "looks": watch.looks,
        "quiet": watch.quiet,
    }


def _pause(pace: Pace, ledger: Ledger) -> None:
    """Until nobody calls, and what is free has been given back."""
    pace.goes_on.clear()
    until = time.monotonic() + LIMIT
    while ledger.calling and time.monotonic() < until and not pace.ends.wait(0.5):
        pass
    pace.ends.wait(REST)


def _show(start: float, ledger: Ledger, look: dict[str, dict[str, int]]) -> None:
    parties = "; ".join(
        f"{name} {each['resident'] // MIB} MiB {each['descriptors']} fds {each['threads']} threads"
        for name, each in look.items()
    )
    print(f"{time.monotonic() - start:7.0f} s  {ledger.done.total():>12,} calls  {parties}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--cut", type=float, default=5, help="seconds between cuts, on the average; 0: none")
    parser.add_argument("--every", type=float, default=10, help="seconds between looks")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "soak.json")
    options = parser.parse_args(arguments)
    os.environ["PYTHONWARNINGS"] = "ignore"
    found = soak(options.seconds, options.threads, options.tasks, options.cut, options.every)
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{found['calls']:,} calls in {found['seconds']:.0f} s, {found['calls_per_second']:,.0f} a second")
    for failure in found["failures"][:20]:
        print(f"FAILED: {failure}")
    sys.exit(1 if found["failures"] else 0)


if __name__ == "__main__":
    main()
