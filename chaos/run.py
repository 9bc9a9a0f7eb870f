"""`make chaos`: kill -9 and SIGSTOP of each party at random moments of a session's life, and what became of everybody else.

    python chaos/run.py [--count 100] [--seed 1] [--lanes 4] [--victim relay] [--signal KILL] [--limit 6.5]

Each lane has a provision server with a second, bystanding enclave, and one case at a time: a client that loads, calls, calls back,
sends much, rests and destroys, and a victim that is hit at a seeded moment. A moment at which the session is over already is drawn
again: each case is a hit. Violations, each printed with what repeats its case:

    the client's error comes later than the limit after the hit (or after it began to wait), or the client never ends
    the bystanding enclave does not answer
    processes (orphans too), namespaces, mounts, descriptors of any process that goes on (memfds among them), its threads outside
    the server's pool, or files in TMPDIR, the store or /dev/shm are more than before; or the anonymous memory of one has grown by
    more than 32 MiB since its server began

A server that is the victim is a new one in each case, and all of it must be gone. Exit status 1 after any violation.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import queue
import random
import re
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
from typing import Any

VICTIMS = ("relay", "supervisor", "guest", "client", "server")
SIGNALS = ("KILL", "STOP")
GRACE = 0.5  # seconds that enclaves here wait for another connection: a stopped party is to be given up
ERROR_SECONDS = 5.0 + GRACE + 1.0  # an attempt to have another connection takes a second at least
END_SECONDS = 25.0  # for all that a case started; a proxy server that nobody joins waits 10 s
LIFE = 3.0  # seconds of a session among whose moments is drawn
LOADED = 0.5  # of the moments are drawn …
LOADED_LIFE = 1.5  # … among so many seconds from the load's end on: else most fell into loads
DRAWS = 20  # of a moment that hits
GROWTH = 32 << 10  # KiB of anonymous memory that a long life, and caches, may come to
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
    sys.stdout.write(" ".join(map(str, (*words, time.monotonic()))) + "\\n")  # whole, or not at all
    sys.stdout.flush()

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
        time.sleep(0.02)
    return True


_ours: set[int] = set()  # children that are no orphans
_growth = [0]  # KiB, the most


def orphans() -> set[int]:
    """Processes whose parent has ended; we are the next of kin of all that the cases start."""
    here = os.getpid()
    return {pid for pid, (parent, _) in processes().items() if parent == here and pid not in _ours}


def _count(directory: str) -> int:
    try:
        return len(os.listdir(directory))
    except OSError:
        return 0


def _namespaces(pid: int) -> Iterator[str]:
    """Those that it is in, and those that a descriptor of its keeps."""
    for folder in ("ns", "fd"):
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/{folder}"):
                with contextlib.suppress(OSError):
                    link = os.readlink(f"/proc/{pid}/{folder}/{name}")
                    if re.fullmatch(r"(cgroup|ipc|mnt|net|pid|time|user|uts):\[\d+\]", link):
                        yield link


def _mounts(pid: int) -> list[str]:
    """Mounts that it sees; without their numbers, and where they lie in their file systems."""
    try:
        return [" ".join(line.split()[4:]) for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    except OSError:
        return []


def _mount_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""


def _descriptors(pid: int) -> Counter[str]:
    """How many it has of each kind: a socket, a pipe, a memfd, a path."""
    found: Counter[str] = Counter()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found[re.sub(r"[:/]\[?\d+\]?", "", os.readlink(f"/proc/{pid}/fd/{name}"))] += 1
    return found


def _anonymous(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1])
    return 0


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
        _ours.add(self.process.pid)
        self.first_memory = self.memory()
        self.before = self.state()

    def state(self) -> dict[str, object]:
        """What must be the same after each case: of all processes of the server, and of the machine what is the server's."""
        children = below(self.process.pid)
        pids = sorted({self.process.pid, *children})
        threads = {pid: _count(f"/proc/{pid}/task") for pid in children}
        here = _mount_namespace(os.getpid())  # in which others mount what they like, network namespaces for instance
        files = sorted(str(path) for path in Path(self.directory).rglob("*") if "blobs" not in path.parts)
        return {
            "processes": sorted(children),
            "namespaces": sorted({each for pid in pids for each in _namespaces(pid)}),
            "mounts": {pid: sorted(_mounts(pid)) for pid in children if _mount_namespace(pid) != here},
            "our mounts": [line for line in _mounts(os.getpid()) if self.directory in line],
            "descriptors": {pid: _descriptors(pid) for pid in pids},
            "threads": threads,
            "files": files,
            "shared memory": sorted(os.listdir("/dev/shm")),
        }

    def changed(self) -> list[str]:
        """What is not as before. More, that is: a descriptor or a thread fewer is none left."""
        now = self.state()
        changed = [f"{key}: {self.before[key]} → {now[key]}" for key in now if now[key] != self.before[key]]
        kept = "descriptors", "threads"
        changed = [text for text in changed if not text.startswith(kept)]
        old: Any = self.before["descriptors"]
        new: Any = now["descriptors"]
        for pid in old.keys() & new.keys():
            if more := new[pid] - old[pid]:
                changed.append(f"descriptors of {pid}: {dict(more)} more")
        old, new = self.before["threads"], now["threads"]
        changed += [
            f"threads of {pid}: {old[pid]} → {new[pid]}" for pid in old.keys() & new.keys() if new[pid] > old[pid]
        ]
        for pid, kilobytes in self.memory().items():
            grown = kilobytes - self.first_memory.get(pid, kilobytes)
            _growth[0] = max(_growth[0], grown)
            if grown > GROWTH:
                changed.append(f"memory of {pid}: {grown} KiB more")
        return changed

    def memory(self) -> dict[int, int]:
        """KiB of anonymous memory of what goes on."""
        return {pid: _anonymous(pid) for pid in {self.process.pid, *self.everything}}

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


class MissedError(Exception):
    """The session was over at the moment drawn."""


def _run(case: Case, server: Server, program: str, attempt: int) -> Iterator[str]:
    """One case: its violations."""
    draw = random.Random(f"{case} {attempt}" if attempt else str(case))
    moment, pause = draw.uniform(0, LIFE), draw.uniform(0.1, 2.5) if draw.random() < GOES_ON else None
    if case.victim == "client" and pause is None:
        pause = draw.uniform(3, 8)  # it is nobody's to end
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, program, server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    _ours.add(client.pid)
    lines: list[list[str]] = []

    def read() -> None:
        assert client.stdout is not None
        for line in client.stdout:
            lines.append(line.split())  # noqa: PERF401 - seen while it goes on

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    if draw.random() < LOADED:
        moment = draw.uniform(0, LOADED_LIFE)
        until(lambda: client.poll() is not None or any(line[1] != "load" for line in lines), END_SECONDS)
    time.sleep(moment)
    pid = 0
    while not pid and client.poll() is None:
        pid = _target(case, server, client.pid)
        time.sleep(0 if pid else 0.01)
    hit, struck, started = 0.0, 0.0, set[int]()
    if pid and client.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            started = set(below(server.process.pid))
            os.kill(pid, signal.Signals[f"SIG{case.signal}"])
            hit = struck = time.monotonic()
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
    if not hit and lines and lines[-1][0] == "error":
        return
    if not hit or (lines and lines[-1][0] in ("done", "error") and float(lines[-1][-1]) < struck):
        raise MissedError
    pair = case.victim, case.signal
    _outcomes[(*pair, lines[-1][0] if lines and lines[-1][0] in ("done", "error") else "killed")] += 1
    _phases[(*pair, next((line[1] for line in reversed(lines) if float(line[-1]) <= struck), "start"))] += 1
    if case.victim == "server":
        yield from _server_left(case, server, started | server.everything)
        return
    try:
        asked = time.monotonic()
        server.bystander.options(timeout=_limit[0]).call("quick")
        if time.monotonic() - asked > _limit[0]:
            yield "the bystander answers late"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a violation
        yield f"the bystander fails: {error!r}"
    if not until(lambda: not server.changed(), END_SECONDS):
        yield "left: " + "; ".join(server.changed())
    yield from _orphans_left()


def _orphans_left() -> Iterator[str]:
    left = orphans()
    if not until(lambda: not left & orphans(), END_SECONDS):
        yield f"orphans: {[(pid, processes().get(pid)) for pid in left & orphans()]}"


_outcomes: Counter[tuple[str, str, str]] = Counter()
_phases: Counter[tuple[str, str, str]] = Counter()  # in which the hit fell
_latest: dict[tuple[str, str], float] = {}
_limit = [ERROR_SECONDS]


def _judge(case: Case, lines: list[list[str]], hit: float) -> Iterator[str]:
    pair = case.victim, case.signal
    if case.victim == "client" and case.signal == "KILL" and hit:
        return
    if not lines or lines[-1][0] not in ("done", "error"):
        yield f"the client ended with neither a result nor an error of adyton's: {lines[-3:]}"
        return
    if lines[-1][0] == "error":
        if not hit:
            yield f"an error without a hit: {lines[-1]}"
            return
        waited = next((float(line[-1]) for line in reversed(lines[:-1]) if line[0] == "begin"), hit)
        late = float(lines[-1][-1]) - max(hit, waited)
        _latest[pair] = max(late, _latest.get(pair, 0.0))
        if late > _limit[0]:
            yield f"the error came after {late:.1f} s: {lines[-2:]}"


def _server_left(case: Case, server: Server, everything: set[int]) -> Iterator[str]:
    if case.signal == "STOP":
        with contextlib.suppress(ProcessLookupError):
            server.process.send_signal(signal.SIGCONT)
        with contextlib.suppress(Exception):
            server.bystander.close()  # a server drains
        server.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(40)
    if not until(lambda: not everything & set(processes()), END_SECONDS):
        yield f"left of the server: {[(pid, processes().get(pid)) for pid in everything & set(processes())]}"
    if not until(lambda: not os.listdir(server.directory), END_SECONDS):
        yield f"left of the server: {os.listdir(server.directory)}"
    if mounts := [line for line in _mounts(os.getpid()) if server.directory in line]:
        yield f"mounts left of the server: {mounts}"
    yield from _orphans_left()


def _lane(cases: queue.SimpleQueue[Case], told: queue.SimpleQueue[tuple[Case, list[str]]], program: str) -> None:
    server: Server | None = None
    while True:
        try:
            case = cases.get_nowait()
        except queue.Empty:
            break
        try:
            violations = ["no moment drawn has hit"]
            for attempt in range(DRAWS):
                if case.victim == "server" and server is not None and attempt == 0:
                    server.close()
                    server = None
                server = server or Server(program)
                try:
                    violations = list(_run(case, server, program, attempt))
                    break
                except MissedError:
                    if case.victim == "server":  # it may have been hit when all was over
                        server.close()
                        server = None
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
    parser.add_argument("--lanes", type=int, default=4, help="cases at a time")
    parser.add_argument("--victim", choices=VICTIMS, action="append")
    parser.add_argument("--signal", choices=SIGNALS, action="append")
    parser.add_argument("--only", type=int, help="the moment of this number alone")
    parser.add_argument("--limit", type=float, default=ERROR_SECONDS, help="seconds until an error must have come")
    options = parser.parse_args()
    _limit[0] = options.limit
    os.environ["ADYTON_GRACE"] = str(GRACE)
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans become our children, see `orphans`
    numbers = range(options.count) if options.only is None else [options.only]
    pairs = [(victim, name) for victim in options.victim or VICTIMS for name in options.signal or SIGNALS]
    cases: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for victim, name in pairs:
        for number in numbers:
            cases.put(Case(options.seed, victim, name, number))
    total = cases.qsize()
    told: queue.SimpleQueue[tuple[Case, list[str]]] = queue.SimpleQueue()
    bad: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        program = os.path.join(directory, "program.py")
        Path(program).write_text(PROGRAM)
        lanes = [threading.Thread(target=_lane, args=(cases, told, program)) for _ in range(options.lanes)]
        for lane in lanes:
            lane.start()
        for done in range(total):
            if done and done % 50 == 0:
                print(f"{done} of {total}", file=sys.stderr, flush=True)
            case, violations = told.get()
            bad[case.victim, case.signal] += bool(violations)
            for violation in violations:
                print(f"{case}: {violation}", flush=True)
        for lane in lanes:
            lane.join()
    shown = f"{'victim':<12}{'signal':<8}{'hits':>6}{'violations':>12}{'errors':>8}{'went on':>9}{'killed':>8}{'slowest error':>15}"
    print(shown)
    for pair in pairs:
        counts = [_outcomes[(*pair, outcome)] for outcome in ("error", "done", "killed")]
        slowest = f"{_latest[pair]:.1f} s" if pair in _latest else "-"
        print(
            f"{pair[0]:<12}{pair[1]:<8}{sum(counts):>6}{bad[pair]:>12}{counts[0]:>8}{counts[1]:>9}{counts[2]:>8}{slowest:>15}"
        )
    for victim, name in pairs:
        fell = ", ".join(f"{each[2]} {count}" for each, count in _phases.most_common() if each[:2] == (victim, name))
        print(f"hits of {victim} {name} fell into: {fell}")
    print(f"memory: {_growth[0]} KiB more at most, in what lives through all cases")
    return 1 if bad.total() else 0


if __name__ == "__main__":
    sys.exit(main())
