"""`make chaos`: kill -9 and SIGSTOP of each party at random moments of a session's life, and what became of everybody else.

    python chaos/run.py [--count 100] [--seed 1] [--lanes 3] [--victim relay] [--signal KILL]

Each lane has a provision server with a second, bystanding enclave, and one case at a time: a client that loads, calls, calls back,
sends much, rests and destroys, and a victim that is hit at a seeded moment. Violations, each printed with what repeats its case:

    the client's error comes later than 5 s after the hit (or after it began to wait), or the client never ends
    the bystanding enclave does not answer
    processes, mounts, descriptors, or files in TMPDIR, the store or /dev/shm are more than before

A server that is the victim is a new one in each case, and all of it must be gone. Exit status 1 after any violation.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

VICTIMS = ("relay", "supervisor", "guest", "client", "server")
SIGNALS = ("KILL", "STOP")
ERROR_SECONDS = 5.0
END_SECONDS = 25.0  # for all that a case started; a proxy server that nobody joins waits 10 s
LIFE = 3.0  # seconds of a session among whose moments is drawn
GOES_ON = 0.4  # of the stopped parties are continued, after up to 2.5 s
_NAMES = {"supervisor": "adyton-super", "guest": "enclave"}

PROGRAM = """
import adyton.trusted as trusted

def quick() -> int:
    return 1

def size(data: bytes) -> int:
    return len(data)

@trusted.host_function
def back(number: int) -> int: ...

def host_calls(times: int) -> int:
    return sum(back(number) for number in range(times))
"""

CLIENT = """
import sys, time
import adyton

def say(*words):
    print(*words, time.monotonic(), flush=True)

def back(number: int) -> int:
    return number

try:
    say("begin", "load")
    with adyton.load(sys.argv[1], on=sys.argv[2], allow_sim=True, allow_call=["back"], functions=[back]) as client:
        for _ in range(2):
            for name, arguments in (("quick", ()), ("host_calls", (100,)), ("size", (bytes(1 << 23),))):
                say("begin", name)
                client.call(name, *arguments)
            say("rest", "idle")
            time.sleep(0.4)
        say("begin", "destroy")
    say("done", "all")
except adyton.AdytonError as error:
    say("error", type(error).__name__)
"""


@dataclass(frozen=True)
class Case:
    """One hit; what it draws from is named by all of it."""

    seed: int
    victim: str
    signal: str
    number: int

    def __str__(self) -> str:
        return f"--seed {self.seed} --victim {self.victim} --signal {self.signal} --only {self.number}"


def processes() -> dict[int, tuple[int, str]]:
    """Parent and name of all that live."""
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", errors="replace") as file:
            name, _, rest = file.read().partition(" (")[2].rpartition(") ")
            if rest[0] != "Z":
                found[int(entry)] = int(rest.split()[1]), name
    return found


def below(root: int) -> dict[int, str]:
    """Descendants and their names."""
    known, found = processes(), {root}
    while more := {pid for pid, (parent, _) in known.items() if parent in found} - found:
        found |= more
    return {pid: known[pid][1] for pid in found - {root} if pid in known}


def until(condition: Callable[[], object], seconds: float) -> bool:
    """Whether it held within that time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


class Server:
    """A provision server with a TMPDIR of its own, and an enclave beside the case's."""

    def __init__(self, program: str) -> None:
        self.directory = tempfile.mkdtemp(prefix="chaos-", dir="/tmp")
        os.chmod(self.directory, 0o755)
        environment = {**os.environ, "TMPDIR": self.directory}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "adyton.cli", "serve", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.url = "grpc://" + self.process.stdout.readline().rpartition(" ")[2].strip()
        import adyton

        self.bystander = adyton.load(program, on=self.url, allow_sim=True, allow_call=["back"], functions=[back])
        self.bystander.call("quick")
        self.everything = set(below(self.process.pid))
        self.before = self.state()

    def state(self) -> dict[str, object]:
        """What must be the same after each case."""
        children = below(self.process.pid)
        zygote = next((pid for pid, name in children.items() if name == "adyton-zygote"), 0)
        mounts = Path(f"/proc/{zygote}/mountinfo").read_text().count("\n") if zygote else 0
        files = sorted(str(path) for path in Path(self.directory).rglob("*") if "blobs" not in path.parts)
        return {
            "processes": sorted(children),
            "mounts": mounts,
            "descriptors": len(os.listdir(f"/proc/{self.process.pid}/fd")),
            "files": files,
            "shared memory": sorted(os.listdir("/dev/shm")),
        }

    def changed(self) -> list[str]:
        """What is not as before. More, that is: a descriptor fewer is none left."""
        now = self.state()
        if now["descriptors"] <= self.before["descriptors"] + 2:  # type: ignore[operator]  # of connections that are ending
            now["descriptors"] = self.before["descriptors"]
        return [f"{key}: {self.before[key]} → {now[key]}" for key in now if now[key] != self.before[key]]

    def close(self) -> None:
        import adyton

        with contextlib.suppress(adyton.AdytonError):
            self.bystander.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        subprocess.run(["rm", "-rf", self.directory], check=False)


def back(number: int) -> int:
    """What enclaves call."""
    return number


def _target(case: Case, server: Server, client: int) -> int:
    """The process to hit, or 0 while it is not there."""
    if case.victim in ("client", "server"):
        return client if case.victim == "client" else server.process.pid
    base = set(server.everything)
    new = {pid: name for pid, name in below(server.process.pid).items() if pid not in base}
    if case.victim == "relay":
        return next((pid for pid, name in new.items() if not name.startswith(("adyton-", "enclave"))), 0)
    return next((pid for pid, name in new.items() if name == _NAMES[case.victim]), 0)


def _run(case: Case, server: Server, program: str) -> Iterator[str]:
    """One case: its violations."""
    draw = random.Random(str(case))
    moment, pause = draw.uniform(0, LIFE), draw.uniform(0.1, 2.5) if draw.random() < GOES_ON else None
    if case.victim == "client" and pause is None:
        pause = draw.uniform(3, 8)  # it is nobody's to end
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, program, server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    lines: list[list[str]] = []

    def read() -> None:
        assert client.stdout is not None
        lines.extend(line.split() for line in client.stdout)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    time.sleep(moment)
    pid = 0
    while not pid and client.poll() is None:
        pid = _target(case, server, client.pid)
        time.sleep(0 if pid else 0.01)
    hit = 0.0
    if pid and client.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.Signals[f"SIG{case.signal}"])
            hit = time.monotonic()
            if case.signal == "STOP" and pause is not None:
                time.sleep(pause)
                os.kill(pid, signal.SIGCONT)
                hit = time.monotonic() if case.victim == "client" else hit
    if not until(lambda: client.poll() is not None, END_SECONDS):
        yield "the client does not end"
        client.kill()
    client.wait()
    reader.join(5)
    yield from _judge(case, lines, hit)
    if case.victim == "server":
        yield from _server_left(case, server)
        return
    try:
        started = time.monotonic()
        server.bystander.options(timeout=ERROR_SECONDS).call("quick")
        if time.monotonic() - started > ERROR_SECONDS:
            yield "the bystander answers late"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a violation
        yield f"the bystander fails: {error!r}"
    if not until(lambda: not server.changed(), END_SECONDS):
        yield "left: " + "; ".join(server.changed())


_outcomes: Counter[tuple[str, str, str]] = Counter()
_latest: dict[tuple[str, str], float] = {}


def _judge(case: Case, lines: list[list[str]], hit: float) -> Iterator[str]:
    pair = case.victim, case.signal
    _outcomes[(*pair, "missed" if not hit else lines[-1][0] if lines else "killed")] += 1
    if case.victim == "client" and case.signal == "KILL" and hit:
        return
    if not lines or lines[-1][0] not in ("done", "error"):
        yield f"the client ended with neither a result nor an error of adyton's: {lines[-3:]}"
        return
    if lines[-1][0] == "error":
        if not hit:
            yield f"an error without a hit: {lines[-1]}"
        waited = next((float(line[-1]) for line in reversed(lines[:-1]) if line[0] == "begin"), hit)
        late = float(lines[-1][-1]) - max(hit, waited)
        _latest[pair] = max(late, _latest.get(pair, 0.0))
        if late > ERROR_SECONDS:
            yield f"the error came after {late:.1f} s: {lines[-2:]}"


def _server_left(case: Case, server: Server) -> Iterator[str]:
    if case.signal == "STOP":
        with contextlib.suppress(ProcessLookupError):
            server.process.send_signal(signal.SIGCONT)
        with contextlib.suppress(Exception):
            server.bystander.close()  # a server drains
        server.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(40)
    if not until(lambda: not server.everything & set(processes()), END_SECONDS):
        yield f"left of the server: {server.everything & set(processes())}"
    if not until(lambda: not os.listdir(server.directory), END_SECONDS):
        yield f"left of the server: {os.listdir(server.directory)}"


def _lane(cases: queue.SimpleQueue[Case], told: queue.SimpleQueue[tuple[Case, list[str]]], program: str) -> None:
    server: Server | None = None
    while True:
        try:
            case = cases.get_nowait()
        except queue.Empty:
            break
        try:
            if case.victim == "server" and server is not None:
                server.close()
                server = None
            server = server or Server(program)
            violations = list(_run(case, server, program))
        except Exception as error:  # noqa: BLE001 - a lane goes on
            violations = [f"the lane failed: {error!r}"]
        told.put((case, violations))
        if server is not None and (violations or case.victim == "server"):
            server.close()
            server = None
    if server is not None:
        server.close()


def main() -> int:
    """Run the cases; the number of violations decides the status."""
    parser = argparse.ArgumentParser(description="kill -9 and SIGSTOP of each party at random moments")
    parser.add_argument("--count", type=int, default=100, help="moments for each party and signal")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=3, help="cases at a time")
    parser.add_argument("--victim", choices=VICTIMS, action="append")
    parser.add_argument("--signal", choices=SIGNALS, action="append")
    parser.add_argument("--only", type=int, help="the moment of this number alone")
    options = parser.parse_args()
    numbers = range(options.count) if options.only is None else [options.only]
    pairs = [(victim, name) for victim in options.victim or VICTIMS for name in options.signal or SIGNALS]
    cases: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for victim, name in pairs:
        for number in numbers:
            cases.put(Case(options.seed, victim, name, number))
    total = cases.qsize()
    told: queue.SimpleQueue[tuple[Case, list[str]]] = queue.SimpleQueue()
    ran: Counter[tuple[str, str]] = Counter()
    bad: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        program = os.path.join(directory, "program.py")
        Path(program).write_text(PROGRAM)
        lanes = [threading.Thread(target=_lane, args=(cases, told, program)) for _ in range(options.lanes)]
        for lane in lanes:
            lane.start()
        for _ in range(total):
            case, violations = told.get()
            ran[case.victim, case.signal] += 1
            bad[case.victim, case.signal] += bool(violations)
            for violation in violations:
                print(f"{case}: {violation}", flush=True)
        for lane in lanes:
            lane.join()
    print(
        f"{'victim':<12}{'signal':<8}{'cases':>6}{'violations':>12}{'errors':>8}{'went on':>9}{'missed':>8}{'slowest error':>15}"
    )
    for pair in pairs:
        counts = [_outcomes[(*pair, outcome)] for outcome in ("error", "done", "missed")]
        slowest = f"{_latest[pair]:.1f} s" if pair in _latest else "-"
        print(
            f"{pair[0]:<12}{pair[1]:<8}{ran[pair]:>6}{bad[pair]:>12}{counts[0]:>8}{counts[1]:>9}{counts[2]:>8}{slowest:>15}"
        )
    return 1 if bad.total() else 0


if __name__ == "__main__":
    sys.exit(main())
