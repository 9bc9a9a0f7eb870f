"""`make bench-hostcalls`: what an enclave's host calls cost at a distance, beside the same work done otherwise, in one run.

Each workload of hostcall_program runs in an enclave on this machine whose client is as far away as the delay proxy makes it, and, in the
same run, plainly on the client; by RPyC, which does each operation remotely; and its bytes over a bare grpcio stream, and over one with
the hops that an enclave's have (`relayed_stream`). Figures are medians of up to ROUNDS fresh enclaves. A workload that needs what this
version has not says so. Prints a table, and writes bench/results/hostcalls.json.

    make bench-hostcalls ONLY=read,sqlite DELAYS=0,20
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bare_stream
import echo_server
import hostcall_program as program
import relayed_stream
import report
import rpyc_reference
from delay_proxy import delayed

import adyton
from adyton.errors import AdytonError, DeadlineError

HERE = Path(__file__).parent
PROGRAM = str(HERE / "hostcall_program.py")
PANDAS = str(HERE / "pandas_program.py")
LIMIT = 180.0  # seconds that one call may take
PATIENCE = 15.0  # seconds that the rounds of one row may take before there is no further one
MIB = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """How much of everything; the defaults are what the goals are about."""

    file: int = 256 * MIB
    warm: int = 64 * MIB  # moved before, on the same connection, so that its windows are open
    socket: int = 64 * MIB
    directories: int = 50
    files: int = 100  # in each
    inserts: int = 10_000
    updates: int = 100
    queries: int = 1_000
    times: int = 20_000
    rounds: int = 3


TINY = Sizes(MIB, MIB // 4, MIB, 3, 5, 50, 3, 5, 200, 1)


@dataclass
class Row:
    """One workload at one delay (milliseconds of a round trip). Seconds; None: not measured. `said`: a figure that is no time, or why there is none."""

    workload: str
    delay: float
    goal: str
    round_trips: int | None = None
    seconds: float | None = None
    plain: float | None = None
    rpyc: float | None = None
    rpyc_trips: int | None = None
    bare: float | None = None
    relayed: float | None = None
    met: bool | None = None
    said: str = ""
    rounds: int = 0


class Bench:
    """The files of the client, and enclaves as far away as is asked for."""

    def __init__(self, directory: str, sizes: Sizes, traces: str | None = None) -> None:
        """`traces`: where a trace of each enclave goes, numbered as they are started; None: nowhere, for they cost time."""
        self.traces = traces
        self.directory = directory
        self.sizes = sizes
        self._numbers = iter(range(1 << 30))
        self.has_rpyc = importlib.util.find_spec("rpyc") is not None

    def path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def fresh(self, name: str) -> str:
        """A name that nothing has."""
        return self.path(f"{name}{next(self._numbers)}")

    def make_file(self, name: str, size: int) -> str:
        path = self.path(name)
        if not os.path.exists(path):
            with open(path, "wb") as file:
                file.writelines(os.urandom(min(size, MIB)) for _ in range(size // MIB or 1))
        return path

    def make_tree(self) -> str:
        top = self.path("tree")
        for directory in range(self.sizes.directories):
            os.makedirs(f"{top}/d{directory:02}", exist_ok=True)
            for file in range(self.sizes.files):
                with open(f"{top}/d{directory:02}/f{file:03}", "wb") as made:
                    made.write(os.urandom(2048))
        return top

    @contextlib.contextmanager
    def enclave(
        self, delay: float, source: str = PROGRAM, coherence: str = "close-to-open", **allowed: Any
    ) -> Iterator[adyton.EnclaveClient]:
        """A client, and its enclave, which is `delay` milliseconds away."""
        policy = self.path("policy.toml")
        Path(policy).write_text(f'[[mount]]\npath = "{self.directory}"\ncoherence = "{coherence}"\n')
        command = [sys.executable, "-m", "adyton.cli", "proxy", "--listen", "127.0.0.1:0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
            assert proxy.stdout is not None
            try:
                port = int(proxy.stdout.readline().rpartition(":")[2])
                with (
                    delayed(port, delay) as far,
                    adyton.load(
                        source,
                        on=f"grpc://127.0.0.1:{far}",
                        allow_sim=True,
                        policy=policy,
                        allow_write=[self.directory],
                        trace=self.traces and f"{self.traces}/{next(self._numbers):03}.json",
                        **allowed,
                    ) as client,
                ):
                    yield client.options(timeout=LIMIT)
            finally:
                proxy.terminate()

    @contextlib.contextmanager
    def server(self) -> Iterator[str]:
        """The URL of a provision server on this machine."""
        command = [sys.executable, "-m", "adyton.cli", "serve", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                yield "grpc://" + server.stdout.readline().rpartition(" ")[2].strip()
            finally:
                server.terminate()

    def measured(self, row: Row, once: Callable[[], tuple[float, int]]) -> None:
        """Fill in medians of seconds and round trips of what `once` returns; or why it cannot be had."""
        samples: list[tuple[float, int]] = []
        until = time.monotonic() + PATIENCE
        try:
            while len(samples) < self.sizes.rounds and (not samples or time.monotonic() < until):
                samples.append(once())
        except DeadlineError:
            row.met, row.said = False, f"more than {LIMIT:.0f} s"
            return
        except (AdytonError, OSError) as error:
            row.said = f"not there: {str(error).splitlines()[0].replace(self.directory, '…')[:160]}"
            return
        row.seconds = statistics.median(each for each, _ in samples)
        row.round_trips = round(statistics.median(each for _, each in samples))
        row.rounds = len(samples)


def counted(client: adyton.EnclaveClient, entry: str, *arguments: Any) -> tuple[Any, int]:
    """What an entry returns, and the round trips that it made."""
    before = client.stats()["round_trips"]
    result = client.call(entry, *arguments)
    return result, client.stats()["round_trips"] - before


# -- workloads ------------------------------------------------------------------------------------------------------------


def read(bench: Bench, delay: float) -> list[Row]:
    size = bench.sizes.file
    path, warm = bench.make_file("large", size), bench.make_file("warm", bench.sizes.warm)
    row = Row(f"read {size // MIB} MiB by 4 KiB", delay, "≥ 0.8 of a bare stream")

    def once() -> tuple[float, int]:
        with bench.enclave(delay) as client:
            client.call("read_file", warm)
            (got, seconds), trips = counted(client, "read_file", path)
            assert got == size
            return seconds, trips

    bench.measured(row, once)
    row.plain = program.read_file(path)[1]
    _references(bench, row, "up", size, lambda port: rpyc_reference.read_file(port, path, size))
    return [row]


def write(bench: Bench, delay: float) -> list[Row]:
    size = bench.sizes.file
    row = Row(f"write {size // MIB} MiB by 4 KiB, fsync", delay, "≥ 0.8 of a bare stream")

    def once() -> tuple[float, int]:
        path = bench.fresh("written")
        with bench.enclave(delay) as client:
            client.call("write_file", bench.fresh("warm"), bench.sizes.warm)
            (_, seconds), trips = counted(client, "write_file", path, size)
        assert os.path.getsize(path) == size
        os.unlink(path)
        return seconds, trips

    bench.measured(row, once)
    row.plain = program.write_file(bench.path("plain"), size)[1]
    _references(bench, row, "down", size, lambda port: rpyc_reference.write_file(port, bench.path("rpyc"), size))
    return [row]


def walk(bench: Bench, delay: float) -> list[Row]:
    sizes, top = bench.sizes, bench.make_tree()
    files = sizes.directories * sizes.files
    limit = 2 * (sizes.directories + 1) + math.ceil(files / 16)
    row = Row(f"walk {files} files in {sizes.directories} directories", delay, f"≤ {limit} round trips")

    def once() -> tuple[float, int]:
        with bench.enclave(delay) as client:
            (found, size, seconds), trips = counted(client, "walk", top)
        assert (found, size) == (files, 2048 * files)
        return seconds, trips

    bench.measured(row, once)
    row.plain = program.walk(top)[2]
    _rpyc(bench, row, lambda port: rpyc_reference.walk(port, top, sizes.directories, sizes.files))
    if row.round_trips is not None:
        row.met = row.round_trips <= limit
    return [row]


def sqlite(bench: Bench, delay: float) -> list[Row]:
    sizes = bench.sizes
    work = (sizes.inserts, sizes.updates, sizes.queries)
    expected, plain = program.sqlite(bench.fresh("base"), *work)
    rows = []
    for coherence, limit in (("exclusive", 500), ("close-to-open", 3_500)):
        row = Row(f"SQLite {'/'.join(map(str, work))}, {coherence}", delay, f"≤ {limit} round trips", plain=plain)

        def once(coherence: str = coherence) -> tuple[float, int]:
            path = bench.fresh("base")
            with bench.enclave(delay, coherence=coherence) as client:
                (digest, seconds), trips = counted(client, "sqlite", path, *work)
            assert digest == expected == program.database_digest(path), "the database is another one"
            return seconds, trips

        bench.measured(row, once)
        if row.round_trips is not None:
            row.met = row.round_trips <= limit
        rows.append(row)
    _rpyc(bench, rows[0], lambda port: rpyc_reference.sqlite(port, bench.fresh("base"), *work))
    rows[1].rpyc, rows[1].rpyc_trips = rows[0].rpyc, rows[0].rpyc_trips
    return rows


def cached(bench: Bench, delay: float) -> list[Row]:
    path = bench.make_file("small", 4096)
    row = Row("stat + pread of what is cached", delay, "≤ 3 µs")
    _small(bench, row, "cached", path, limit=3e-6)
    row.plain = program.cached(path, bench.sizes.times)
    return [row]


def answered(bench: Bench, delay: float) -> list[Row]:
    """A private file is served only if /tmp is a part of the file server's tree: the client's folder lies below it."""
    rows = []
    every = os.sched_getaffinity(0)
    for name, limit, processors in (("one CPU", 25e-6, {min(every)}), ("any CPU", 120e-6, every)):
        row = Row(f"what the supervisor answers, {name}", delay, f"≤ {limit * 1e6:.0f} µs")
        os.sched_setaffinity(0, processors)  # what is started now inherits it
        try:
            _small(bench, row, "answered", f"/tmp/adyton-bench-private-{os.getpid()}", limit=limit)
        finally:
            os.sched_setaffinity(0, every)
        rows.append(row)
    return rows


def _small(bench: Bench, row: Row, entry: str, path: str, *, limit: float) -> None:
    def once() -> tuple[float, int]:
        with bench.enclave(row.delay) as client:
            return counted(client, entry, path, bench.sizes.times)

    bench.measured(row, once)
    if row.seconds is not None:
        row.met = row.seconds <= limit


def sockets(bench: Bench, delay: float) -> list[Row]:
    size = bench.sizes.socket
    row = Row(f"{size // MIB} MiB through a socket and back", delay, "≥ 0.7 of a bare stream")
    with echo_server.server() as port:

        def once() -> tuple[float, int]:
            with bench.enclave(delay, allow_net=[f"127.0.0.1:{port}"]) as client:
                client.call("echo", "127.0.0.1", port, bench.sizes.warm)
                (got, seconds), trips = counted(client, "echo", "127.0.0.1", port, size)
                assert got == size
                return seconds, trips

        bench.measured(row, once)
        row.plain = program.echo("127.0.0.1", port, size)[1]
    _bare(bench, row, "echo", size, share=0.7)
    return [row]


def pandas(bench: Bench, delay: float) -> list[Row]:
    """Plainly what is imported has been compiled before; so it has on a server that has had the image before."""
    new = Row("import of pandas to first answer, new server", delay, "")
    known = Row("import of pandas to first answer, known image", delay, "≤ 1.3 of plain CPython")

    def first(client: adyton.EnclaveClient) -> tuple[float, int]:
        (mean, seconds), trips = counted(client, "first_answer")
        assert mean == 3.0
        return seconds, trips

    def on_a_new_server() -> tuple[float, int]:
        with bench.enclave(delay, PANDAS) as client:
            return first(client)

    bench.measured(new, on_a_new_server)
    with bench.server() as url:

        def again() -> tuple[float, int]:
            with adyton.load(PANDAS, on=url, allow_sim=True, timeout=LIMIT) as client:
                return first(client)

        with contextlib.suppress(AdytonError):  # which the next one says again
            again()
        bench.measured(known, again)
    if importlib.util.find_spec("pandas") is not None:
        runs = [subprocess.check_output([sys.executable, PANDAS], text=True) for _ in range(4)]
        new.plain = known.plain = statistics.median(map(float, runs[1:]))
    for row in (new, known):
        if row.seconds is not None and row.plain is not None:
            row.said = f"{row.seconds / row.plain:.2f} of plain"
    if known.seconds is not None and known.plain is not None:
        known.met = known.seconds <= 1.3 * known.plain
    return [new, known]


WORKLOADS: Mapping[str, Callable[[Bench, float], list[Row]]] = {
    "read": read,
    "write": write,
    "walk": walk,
    "sqlite": sqlite,
    "cached": cached,
    "answered": answered,
    "socket": sockets,
    "pandas": pandas,
}
NEAR = {"cached", "answered", "pandas"}  # the client has no part in them: measured without delay only


# -- references -----------------------------------------------------------------------------------------------------------


def _references(
    bench: Bench, row: Row, way: str, size: int, remotely: Callable[[int], tuple[float, int]], share: float = 0.8
) -> None:
    _bare(bench, row, way, size, share)
    _rpyc(bench, row, remotely)


def _bare(bench: Bench, row: Row, way: str, size: int, share: float) -> None:
    times = []
    for stream in (bare_stream, relayed_stream):
        with stream.server() as port, delayed(port, row.delay) as far:
            rounds = range(bench.sizes.rounds)
            times.append(statistics.median(stream.seconds(far, way, bench.sizes.warm, size) for _ in rounds))
    row.bare, row.relayed = times
    if row.seconds is not None:
        row.met = row.bare >= share * row.seconds
        row.said = (
            f"{row.bare / row.seconds:.2f} of bare, {row.relayed / row.seconds:.2f} of relayed "
            f"({size / MIB / row.seconds:.0f} MiB/s)"
        )


def _rpyc(bench: Bench, row: Row, remotely: Callable[[int], tuple[float, int]]) -> None:
    if bench.has_rpyc:
        with rpyc_reference.server() as port, delayed(port, row.delay) as far:
            row.rpyc, row.rpyc_trips = remotely(far)


# -- the run --------------------------------------------------------------------------------------------------------------


def measure(sizes: Sizes, delays: Sequence[float], only: Sequence[str], traces: str | None = None) -> list[Row]:
    """All rows, each printed as soon as it is there."""
    directory = tempfile.mkdtemp(prefix="adyton-bench-", dir="/tmp")  # see `answered`
    try:
        bench = Bench(directory, sizes, traces)
        rows: list[Row] = []
        show_head()
        for name in only:
            for delay in [0.0] if name in NEAR else delays:
                for row in WORKLOADS[name](bench, delay):
                    show(row)
                    rows.append(row)
        return rows
    finally:
        shutil.rmtree(directory)


HEAD = ("workload", "ms", "trips", "time", "plain", "RPyC", "its trips", "bare", "relayed", "goal", "")
WIDTHS = (45, 4, 7, 9, 9, 9, 9, 9, 9, 22, 60)
LEFT = (0, 9, 10)


def show_head() -> None:
    report.line(HEAD, WIDTHS, LEFT)


def show(row: Row) -> None:
    met = report.VERDICT[row.met]
    trips = ["" if each is None else f"{each:,}" for each in (row.round_trips, row.rpyc_trips)]
    times = [_time(each) for each in (row.seconds, row.plain, row.rpyc, row.bare, row.relayed)]
    texts = (row.workload, f"{row.delay:g}", trips[0], *times[:3], trips[1], *times[3:], row.goal, f"{met} {row.said}")
    report.line(texts, WIDTHS, LEFT)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return (
        f"{seconds:.2f} s"
        if seconds >= 0.1
        else f"{seconds * 1e3:.1f} ms"
        if seconds >= 1e-3
        else f"{seconds * 1e6:.1f} µs"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help=f"some of {','.join(WORKLOADS)}")
    parser.add_argument("--delays", default="", help="milliseconds of a round trip; default 0,20,50")
    parser.add_argument("--rounds", type=int, default=Sizes.rounds)
    parser.add_argument("--tiny", action="store_true", help="of everything a little, to see that it works")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "hostcalls.json")
    parser.add_argument(
        "--traces", metavar="DIRECTORY", help="where to write what each enclave did in time, for Perfetto"
    )
    options = parser.parse_args(arguments)
    only = report.chosen(parser, options.only, WORKLOADS)
    delays = [float(each) for each in (options.delays or "0,20,50").split(",")]
    sizes = TINY if options.tiny else Sizes(rounds=options.rounds)
    os.environ["PYTHONWARNINGS"] = "ignore"
    rows = measure(sizes, delays, only, options.traces)
    report.write(rows, sizes, options.results)


if __name__ == "__main__":
    main()
