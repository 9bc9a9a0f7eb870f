"""`make bench-communicator`: what calls of an enclave cost, beside bare gRPC and other ways to call what is elsewhere, in one run.

Each row is measured without delay and through the delay proxy, its references in the same run and in turns with it, so that a slow minute
of the machine hits all. Figures are medians over all rounds. A row that needs what this version has not says so. Prints a table, and writes
bench/results/communicator.json.

    make bench-communicator ONLY=empty,threads DELAYS=0,20
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bare_calls
import bare_stream
import peer_calls
import processes
import report
from delay_proxy import delayed
from processes import MIB

import adyton
from adyton.errors import AdytonError

HERE = Path(__file__).parent
PROGRAM, STREAMS = str(HERE / "communicator_program.py"), str(HERE / "stream_program.py")
BODY = b"x" * 64
LIMIT = 600.0  # seconds that one call may take
PIECE = MIB  # of a stream
PEAK = 64 * MIB  # over idle, that a process may have for a stream
SESSIONS = 1000  # that shares are told for
ROOM = 3 << 30  # bytes of this machine that no idle session may take


@dataclass(frozen=True)
class Sizes:
    """How much of everything; the defaults are what the goals are about."""

    calls: int = 1000
    seconds: float = 3.0  # that a rate is taken for
    threads: int = 32
    tasks: int = 1000
    large: int = (1 << 30) - 4096  # a message may have 1 GiB, and says what it is besides
    stream: int = 1 << 30
    warm: int = 16 * MIB  # moved before, on the same connection, so that its windows are open
    beside: int = 500  # small calls
    sessions: int = SESSIONS
    idle: float = 10.0  # seconds
    rounds: int = 3


TINY = Sizes(20, 0.1, 4, 20, MIB, 2 * MIB, MIB // 4, 10, 2, 0.2, 1)


@dataclass
class Row:
    """`figure` and what it is compared with, in `unit`; `share`: by which the goal is judged. None: not measured. `said`: more, or why not."""

    name: str
    delay: float  # milliseconds of a round trip
    unit: str
    goal: str
    figure: float | None = None
    references: dict[str, float] = field(default_factory=dict)
    share: float | None = None
    met: bool | None = None
    said: str = ""
    rounds: list[float] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def judged(self, share: float, *, met: bool, said: str = "") -> None:
        self.share, self.met, self.said = share, met, said


class Bench:
    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.missing: dict[str, str] = {}  # peers, and why

    @contextlib.contextmanager
    def enclave(self, delay: float, program: str = PROGRAM) -> Iterator[adyton.EnclaveClient]:
        """A client, and its enclave, which is `delay` milliseconds away."""
        command = [sys.executable, "-m", "adyton.cli", "proxy", "--listen", "127.0.0.1:0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
            assert proxy.stdout is not None
            try:
                port = int(proxy.stdout.readline().rpartition(":")[2])
                with (
                    away(port, delay) as far,
                    adyton.load(program, on=f"grpc://127.0.0.1:{far}", allow_sim=True) as client,
                ):
                    yield client.options(timeout=LIMIT)
            finally:
                proxy.terminate()

    def rounds(self, row: Row, once: Callable[[], float]) -> Iterator[int]:
        """Measure the row as often as there are rounds, and its references in between; or say why it cannot be had."""
        for number in range(self.sizes.rounds):
            if not row.said:
                try:
                    row.rounds.append(once())
                except (AdytonError, OSError, TypeError, MemoryError) as error:
                    row.said = f"not there: {(str(error) or type(error).__name__).splitlines()[0][:160]}"
            yield number
        if row.rounds:
            row.figure = statistics.median(row.rounds)


@contextlib.contextmanager
def away(port: int, delay: float) -> Iterator[int]:
    """The port itself, or a proxy's before it."""
    if not delay:
        yield port
        return
    with delayed(port, delay) as far:
        yield far


def middle(samples: Sequence[float]) -> float:
    """In microseconds."""
    return statistics.median(samples) * 1e6


# -- small calls ----------------------------------------------------------------------------------------------------------


def empty(bench: Bench, delay: float) -> list[Row]:
    row = Row("empty call, one thread", delay, "µs", "≤ 1.0 of the sync echo, ≤ 1.3 of the best")
    others = Row("empty call beside others' calls", delay, "µs", "less than each")
    calls = bench.sizes.calls if not delay else max(10, bench.sizes.calls // 10)

    def once() -> float:
        with bench.enclave(delay) as client:
            return middle(bare_calls.sampled(lambda: client.call("empty", BODY), calls))

    found: dict[str, list[float]] = {}
    peers = {"RPyC": ("rpyc", peer_calls.rpyc_calls), "Pyro5": ("Pyro5", peer_calls.pyro_calls)}
    for number in bench.rounds(row, once):
        for name, kind, step in (
            ("sync echo", "sync", bare_calls.stream_echo),
            ("aio echo", "aio", bare_calls.aio_echo),
        ):
            with bare_calls.server(kind) as port, away(port, delay) as far:
                found.setdefault(name, []).append(middle(step(far, BODY, calls)))
        for name, (library, ask) in peers.items():
            if not peer_calls.there(library):
                bench.missing[name] = "not installed"
                continue
            with peer_calls.server(library.lower().rstrip("5")) as port, away(port, delay) as far:
                found.setdefault(name, []).append(middle(ask(far, calls)))
        if not delay and not number:  # a cluster of its own, started once
            _ray(bench, found, calls)
    medians = {name: statistics.median(each) for name, each in found.items()}
    row.references = {name: medians.pop(name) for name in ("sync echo", "aio echo")}
    others.references, others.figure, others.rounds = medians, row.figure, row.rounds
    others.said = "; ".join(f"{name} {why}" for name, why in bench.missing.items())
    if row.figure is not None:
        sync, best = row.figure / row.references["sync echo"], row.figure / min(row.references.values())
        row.judged(sync, met=sync <= 1.0 and best <= 1.3, said=f"{best:.2f} of the best echo")
        if medians:
            ratio = row.figure / min(medians.values())
            others.judged(ratio, met=ratio < 1, said=others.said)
    return [row, others]


def _ray(bench: Bench, found: dict[str, list[float]], calls: int) -> None:
    if not peer_calls.there("ray"):
        bench.missing["Ray"] = "not installed"
        return
    try:
        found["Ray"] = [middle(peer_calls.ray_calls(calls))]
    except subprocess.SubprocessError as error:
        bench.missing["Ray"] = f"did not run: {type(error).__name__}"


def threads(bench: Bench, delay: float) -> list[Row]:
    count, seconds = bench.sizes.threads, bench.sizes.seconds
    row = Row(f"empty calls a second, {count} threads", delay, "/s", "≥ 5 times unary")

    def once() -> float:
        with bench.enclave(delay) as client:
            return bare_calls.rate(lambda: client.call("empty", BODY), count, seconds)

    _beside_unary(bench, row, once, count, 5)
    return [row]


def tasks(bench: Bench, delay: float) -> list[Row]:
    count = bench.sizes.tasks
    row = Row(f"empty calls a second, asyncio, {count} in flight", delay, "/s", "≥ 8 times unary")

    async def run(client: adyton.EnclaveClient) -> float:
        done, ends = itertools.count(), False

        async def one() -> None:
            while not ends:
                await client.acall("empty", BODY)
                next(done)

        running = [asyncio.create_task(one()) for _ in range(count)]
        await asyncio.sleep(bench.sizes.seconds / 4)
        before, start = next(done), time.perf_counter()
        await asyncio.sleep(bench.sizes.seconds)
        found = (next(done) - before - 1) / (time.perf_counter() - start)
        ends = True
        await asyncio.gather(*running)
        return found

    def once() -> float:
        with bench.enclave(delay) as client:
            return asyncio.run(run(client))

    _beside_unary(bench, row, once, count, 8)
    return [row]


def _beside_unary(bench: Bench, row: Row, once: Callable[[], float], callers: int, times: float) -> None:
    found = []
    for _ in bench.rounds(row, once):
        with bare_calls.server("sync") as port, away(port, row.delay) as far:
            found.append(bare_calls.unary_rate(far, BODY, bench.sizes.threads, bench.sizes.seconds))
    row.references["unary"] = statistics.median(found)
    if row.figure is not None:
        share = row.figure / row.references["unary"]
        row.judged(share, met=share >= times)
        if row.delay and callers * 1000 / row.delay < times * row.references["unary"]:
            row.met, row.said = (
                None,
                f"{callers} callers that wait make {callers * 1000 / row.delay:,.0f} a second at most there",
            )


# -- large ones -----------------------------------------------------------------------------------------------------------


def argument(bench: Bench, delay: float) -> list[Row]:
    data = bytes(bench.sizes.large)

    def move(client: adyton.EnclaveClient, size: int) -> int:
        return int(client.call("take", data if size == len(data) else bytes(size)))

    return [_large(bench, delay, "argument", "up", bench.sizes.large, PROGRAM, move)]


def result(bench: Bench, delay: float) -> list[Row]:
    def move(client: adyton.EnclaveClient, size: int) -> int:
        return len(client.call("give", size))

    return [_large(bench, delay, "result", "down", bench.sizes.large, PROGRAM, move)]


def stream(bench: Bench, delay: float) -> list[Row]:
    def up(client: adyton.EnclaveClient, size: int) -> int:
        return int(client.call("take", bare_stream.pieces(size, PIECE)))

    def down(client: adyton.EnclaveClient, size: int) -> int:
        return sum(len(each) for each in client.call("give", size, PIECE))

    size = bench.sizes.stream
    rows = [
        _large(bench, delay, "stream of arguments", "up", size, STREAMS, up),
        _large(bench, delay, "stream of results", "down", size, STREAMS, down),
    ]
    for row in rows:
        row.goal += ", ≤ 64 MiB over idle"
        peaks = row.more.get("peak_over_idle", {})
        if row.met and any(each is None or each > PEAK for each in peaks.values()):
            row.met = False
    return rows


def _large(
    bench: Bench,
    delay: float,
    name: str,
    way: str,
    size: int,
    program: str,
    move: Callable[[adyton.EnclaveClient, int], int],
) -> Row:
    row = Row(f"{name}, {size // MIB} MiB", delay, "MiB/s", "≥ 0.9 of a bare stream")

    def once() -> float:
        with bench.enclave(delay, program) as client:
            assert move(client, bench.sizes.warm) == bench.sizes.warm
            parties = {"client": os.getpid(), **{key: each.stat.pid for key, each in client.processes().items()}}
            before = {key: _begin(pid) for key, pid in parties.items()}
            start = time.perf_counter()
            assert move(client, size) == size
            seconds = time.perf_counter() - start
            row.more["peak_over_idle"] = {
                key: None if idle is None else processes.peak(parties[key]) - idle for key, idle in before.items()
            }
            return size / MIB / seconds

    found = []
    for _ in bench.rounds(row, once):
        with bare_stream.server() as port, away(port, delay) as far:
            found.append(size / MIB / bare_stream.seconds(far, way, bench.sizes.warm, size, PIECE))
    row.references["bare stream"] = statistics.median(found)
    if row.figure is not None:
        share = row.figure / row.references["bare stream"]
        peaks = " ".join(
            f"{key} {'?' if each is None else each // MIB}" for key, each in row.more["peak_over_idle"].items()
        )
        row.judged(share, met=share >= 0.9, said=f"MiB over idle: {peaks}")
    return row


def _begin(pid: int) -> int | None:
    """What it has now, from which its peak is told; None: it is somebody else's."""
    try:
        processes.forget_peak(pid)
    except OSError:
        return None
    return processes.resident(pid)


def beside(bench: Bench, delay: float) -> list[Row]:
    """Small calls one after the other, alone, and while a large argument and then a large result are moved."""
    row = Row("a small call's p99 during a large transfer", delay, "µs", "≤ 5 times alone")
    data = bytes(bench.sizes.large)
    count = bench.sizes.beside if not delay else max(10, bench.sizes.beside // 5)
    alone: list[float] = []
    reached: list[int] = []

    def once() -> float:
        with bench.enclave(delay) as client:
            alone.append(_p99(bare_calls.sampled(lambda: client.call("empty", BODY), count)))
            ends = threading.Event()

            def large() -> None:
                try:
                    client.call("take", data)
                    client.call("give", len(data))
                except AdytonError as error:
                    row.said = f"not there: {str(error).splitlines()[0][:160]}"
                finally:
                    ends.set()

            mover = threading.Thread(target=large)
            mover.start()
            samples: list[float] = []
            while not (samples and ends.is_set()):
                start = time.perf_counter()
                client.call("empty", BODY)
                samples.append(time.perf_counter() - start)
            mover.join()
            reached.append(len(samples))
            return _p99(samples)

    for _ in bench.rounds(row, once):
        pass
    if row.figure is not None and not row.said:
        row.references["alone"] = statistics.median(alone)
        share = row.figure / row.references["alone"]
        row.judged(share, met=share <= 5, said=f"of {min(reached)} calls and more a round")
    return [row]


def _p99(samples: Sequence[float]) -> float:
    """In microseconds."""
    return sorted(samples)[int(len(samples) * 0.99)] * 1e6


# -- idle sessions --------------------------------------------------------------------------------------------------------


def idle(bench: Bench, delay: float) -> list[Row]:
    """All of a server's processes, while its clients do nothing."""
    wanted = bench.sizes.sessions
    row = Row(f"{SESSIONS} idle sessions on one server, from {wanted}", delay, "% of a core", "≤ 1")
    command = [sys.executable, "-m", "adyton.cli", "serve", "--port", "0"]
    with contextlib.ExitStack() as ends:
        server = ends.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        ends.callback(server.terminate)
        assert server.stdout is not None
        url = "grpc://" + server.stdout.readline().rpartition(" ")[2].strip()
        clients: list[adyton.EnclaveClient] = []
        try:
            while len(clients) < wanted and processes.available() > ROOM:
                client = adyton.load(PROGRAM, on=url, allow_sim=True, name=f"idle{len(clients)}")
                ends.push(client)
                clients.append(client)
        except (AdytonError, OSError, RuntimeError) as error:
            row.said = str(error).splitlines()[0][:120]
        if len(clients) < wanted:
            row.said = f"{len(clients)} of them: {row.said or 'the memory of this machine is no more'}"
        if not clients:
            return [row]
        kinds: dict[int, str] = {}
        for client in clients:
            kinds |= {report.stat.pid: name for name, report in client.processes().items()}
        everyone = processes.descendants(server.pid)
        time.sleep(min(5.0, bench.sizes.idle))  # what follows a load is over
        before = {pid: _seconds(pid) for pid in (*everyone, os.getpid())}
        start = time.perf_counter()
        time.sleep(bench.sizes.idle)
        took = time.perf_counter() - start
        percent = {pid: 100 * (_seconds(pid) - seconds) / took for pid, seconds in before.items()}
        shares, memory = collections.Counter[str](), collections.Counter[str]()
        for pid in everyone:
            kind = kinds.get(pid, "others")
            shares[kind] += percent[pid] / len(clients) * SESSIONS  # type: ignore[assignment] # a Counter of floats
            memory[kind] += _proportional(pid) / len(clients)  # type: ignore[assignment]
        row.figure = sum(shares.values())
        row.references["its clients"] = percent[os.getpid()] / len(clients) * SESSIONS
        row.more = {"sessions": len(clients), "percent": shares, "bytes": memory}
        parts = "; ".join(f"{kind} {shares[kind]:.1f} %, {memory[kind] / MIB:.1f} MiB each" for kind in shares)
        row.judged(row.figure, met=row.figure <= 1, said=f"{row.said + '; ' if row.said else ''}{parts}")
    return [row]


def _seconds(pid: int) -> float:
    try:
        return processes.processor_seconds(pid)
    except OSError:  # it has ended
        return 0.0


def _proportional(pid: int) -> int:
    try:
        return processes.proportional(pid)
    except OSError:
        return 0


ROWS: Mapping[str, Callable[[Bench, float], list[Row]]] = {
    "empty": empty,
    "threads": threads,
    "tasks": tasks,
    "argument": argument,
    "result": result,
    "stream": stream,
    "beside": beside,
    "idle": idle,
}
NEAR = {"idle"}  # measured without delay only


# -- the run --------------------------------------------------------------------------------------------------------------


def measure(sizes: Sizes, delays: Sequence[float], only: Sequence[str]) -> list[Row]:
    """All rows, each printed as soon as it is there."""
    bench = Bench(sizes)
    rows: list[Row] = []
    report.line(("", "ms", "adyton", "÷", "references", "goal", ""), WIDTHS, LEFT)
    for name in only:
        for delay in [0.0] if name in NEAR else delays:
            for row in ROWS[name](bench, delay):
                show(row)
                rows.append(row)
    return rows


WIDTHS = (50, 4, 16, 6, 66, 42, 60)
LEFT = (0, 4, 5, 6)


def show(row: Row) -> None:
    references = ", ".join(f"{name} {each:,.5g}" for name, each in row.references.items())
    figure = "" if row.figure is None else f"{row.figure:,.5g} {row.unit}"
    share = "" if row.share is None else f"{row.share:.2f}"
    texts = (
        *(row.name, f"{row.delay:g}", figure, share, references, row.goal),
        f"{report.VERDICT[row.met]} {row.said}".strip(),
    )
    report.line(texts, WIDTHS, LEFT)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help=f"some of {','.join(ROWS)}")
    parser.add_argument("--delays", default="", help="milliseconds of a round trip; default 0,20,50")
    parser.add_argument("--rounds", type=int, default=Sizes.rounds)
    parser.add_argument("--large", type=int, default=Sizes.large // MIB, metavar="MIB", help="of what is large")
    parser.add_argument("--sessions", type=int, default=Sizes.sessions)
    parser.add_argument("--tiny", action="store_true", help="of everything a little, to see that it works")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "communicator.json")
    options = parser.parse_args(arguments)
    only = report.chosen(parser, options.only, ROWS)
    delays = [float(each) for each in (options.delays or "0,20,50").split(",")]
    large = min(options.large * MIB, Sizes.large)
    sizes = (
        TINY
        if options.tiny
        else Sizes(rounds=options.rounds, large=large, stream=options.large * MIB, sessions=options.sessions)
    )
    os.environ["PYTHONWARNINGS"] = "ignore"
    rows = measure(sizes, delays, only)
    report.write(rows, sizes, options.results)


if __name__ == "__main__":
    main()
