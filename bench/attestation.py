"""`make bench-attestation`: what the attested channel costs, beside the same with no proof and in the clear, in one run.

For the latter, a copy of the package is made in a temporary folder, in which `clear_channel` has the channel's place and no evidence is asked for.
Each variant has a process of its own, with a provision server of its own; they take turns, round by round. Figures are medians over all rounds.
Prints a table, and writes bench/results/attestation.json. On the platform sim, so without a real platform's quote, whose time comes on top of a load.

    make bench-attestation ROUNDS=3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report

import adyton

HERE = Path(__file__).parent
MIB = 1 << 20
PROGRAM = """
def echo(data: bytes) -> bytes:
    return data

def take(data: bytes) -> int:
    return len(data)

def give(size: int) -> bytes:
    return bytes(size)
"""
NO_PROOF = """
ProxyClient._judged = lambda self, evidence, channel: EnclaveIdentity(
    "sim", "sha256:" + "0" * 64, "", 0, 0, debug=True, runtime="", machine=""
)
"""


@dataclass(frozen=True)
class Sizes:
    """Of one round."""

    loads: int = 20
    calls: int = 2000
    large: int = 64 * MIB
    transfers: int = 3


@dataclass(frozen=True)
class Row:
    """`attested`, `clear`: in `unit`. `share`: the one by the other, which is to be `at_most`, or at least that."""

    name: str
    unit: str
    attested: float
    clear: float
    share: float
    goal: str
    met: bool


def measured(step: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begun)
    return taken


# -- a variant, in its own process ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _server() -> Iterator[str]:
    command = [sys.executable, "-m", "adyton.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield "grpc://" + process.stdout.readline().rpartition(" ")[2].strip()
        finally:
            process.terminate()


def variant(program: str) -> None:
    """Do what each line of standard input says, and print how long it took."""
    with _server() as on:

        def load() -> adyton.EnclaveClient:
            return adyton.load(program, on=on, allow_sim=True)

        with load() as client:  # and the image is there, and its zygote warm
            body = b"x" * 64
            for line in sys.stdin:
                what, size, times = json.loads(line)
                large = bytes(size)
                steps: dict[str, Callable[[], Any]] = {
                    "call": lambda: client.call("echo", body),
                    "to the enclave": lambda large=large: client.call("take", large),
                    "from the enclave": lambda size=size: client.call("give", size),
                }
                if what == "load":
                    taken = []
                    for _ in range(times):
                        begun = time.perf_counter()
                        with load():
                            taken.append(time.perf_counter() - begun)
                else:
                    steps[what]()
                    taken = measured(steps[what], times)
                sys.stdout.write(json.dumps(taken) + "\n")
                sys.stdout.flush()


# -- both ---------------------------------------------------------------------------------------------------------------------


def clear_package(folder: Path) -> None:
    """A copy of adyton that proves nothing and hides nothing."""
    copy = folder / "adyton"
    shutil.copytree(Path(adyton.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE / "clear_channel.py", copy / "channel" / "clear_channel.py")
    for end, name in (("client", "ClientChannel"), ("server", "ServerChannel")):
        with open(copy / "channel" / f"{end}.py", "a") as file:
            file.write(f"\nfrom adyton.channel.clear_channel import {name}\n")
    with open(copy / "remote" / "proxy_client.py", "a") as file:
        file.write(NO_PROOF)


class Variant:
    """A process that measures one of the two."""

    def __init__(self, program: Path, package: Path | None) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ADYTON_")}
        environment["PYTHONPATH"] = os.pathsep.join([*([str(package)] if package else []), str(HERE)])
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--variant", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            stderr=subprocess.DEVNULL if package else None,  # it says on each load that it is simulated
        )

    def take(self, what: str, size: int, times: int) -> list[float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, size, times]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process that measured {what!r} has ended")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def rows(sizes: Sizes, rounds: int) -> list[Row]:
    """All of them."""
    steps = {
        "load": (0, sizes.loads),
        "call": (0, sizes.calls),
        "to the enclave": (sizes.large, sizes.transfers),
        "from the enclave": (sizes.large, sizes.transfers),
    }
    taken: dict[tuple[str, bool], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="adyton-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # enclaves have users of their own
        (folder / "program.py").write_text(PROGRAM)
        clear_package(folder)
        variants = {False: Variant(folder / "program.py", folder), True: Variant(folder / "program.py", None)}
        for each in variants.values():
            stack.callback(each.close)
        for number in range(rounds):
            for what, (size, times) in steps.items():
                for attested in sorted(variants, reverse=number % 2 == 0):
                    taken.setdefault((what, attested), []).extend(variants[attested].take(what, size, times))
    medians = {key: statistics.median(values) for key, values in taken.items()}
    found = []
    for what, unit, factor, most in (("load", "ms", 1e3, 1.5), ("call", "µs", 1e6, 1.15)):
        attested, clear = (medians[what, each] for each in (True, False))
        share = attested / clear
        name = {"load": "load of a warm image", "call": "call, 64 bytes"}[what]
        found.append(Row(name, unit, attested * factor, clear * factor, share, f"≤ {most}", share <= most))
    for what in ("to the enclave", "from the enclave"):
        attested, clear = (sizes.large / MIB / medians[what, each] for each in (True, False))
        share = attested / clear
        found.append(Row(f"{sizes.large // MIB} MiB {what}", "MiB/s", attested, clear, share, "≥ 0.7", share >= 0.7))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    for name, value in vars(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--variant", metavar="PROGRAM", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        variant(options.variant)
        return
    sizes = Sizes(options.loads, options.calls, options.large, options.transfers)
    found = rows(sizes, options.rounds)
    widths = (26, 6, 10, 10, 7, 7, 7)
    report.line(("", "", "attested", "clear", "share", "goal", ""), widths, {0})
    for row in found:
        cells = (row.name, row.unit, f"{row.attested:.1f}", f"{row.clear:.1f}", f"{row.share:.2f}", row.goal)
        report.line((*cells, report.VERDICT[row.met]), widths, {0})
    report.write(found, sizes, HERE / "results" / "attestation.json")


if __name__ == "__main__":
    main()
