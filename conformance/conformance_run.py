"""`make conformance`: CPython's own tests for what a program does with its operating system, in an enclave.

Each module (cpython_modules.py) runs in an enclave of its own whose working directory is a folder of the client's, and, for comparison, plainly on this
machine. A test that passes plainly must pass in the enclave, or be in expected.toml with the reason why not; what fails or is skipped plainly as
well is no matter of ours. A test that is in the list and passes has to leave it.

    make conformance MODULES="files test_socket"          areas or modules; default all

Results lie in build/conformance: what the tests printed, and NAME.json with each outcome. Where the interpreter comes without its `test` package
(Debian's python3 does), there is nothing to run, and this says so.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpython_modules import MODULES
from expected_list import Expected, Rule

import adyton
from adyton.errors import AdytonError

HERE = Path(__file__).parent
RUNNER = str(HERE / "runner.py")
RESULTS = HERE.parent / "build" / "conformance"
MODULE_SECONDS = 1200.0  # test_socket takes 600 where its tests wait for what does not come
NET = ("127.0.0.0/8", "[::1]", "localhost", "0.0.0.0", "[::]")  # the last two are this machine as well: connect(2)
LISTEN = ("127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0")  # 0: any port

Outcome = Mapping[str, str]  # as runner.py has it
Outcomes = dict[str, Outcome]


@dataclass(frozen=True)
class Difference:
    """A test that passes plainly, and not in the enclave."""

    test: str
    outcome: str
    text: str

    @property
    def last_line(self) -> str:
        lines = self.text.strip().splitlines()
        return lines[-1][:200] if lines else ""

    @property
    def kind(self) -> str:
        """What it has in common with others: the outcome and the last line, without what is quoted in that, and numbers that are no errno."""
        line = re.sub(r"'[^']*'|\"[^\"]*\"", "…", self.last_line)
        line = re.sub(r"(?<!Errno )\b[0-9]+", "#", line)
        return f"{self.outcome}: {line}"


def in_enclave(module: str, seconds: float = MODULE_SECONDS) -> Outcomes:
    """Each test's outcome; what is not over after so many seconds is missing."""
    outcomes: Outcomes = {}

    def outcome(line: str) -> None:
        _note(outcomes, line)

    with _folder() as directory:
        try:
            with adyton.load(
                RUNNER,
                allow_write=[directory],
                allow_net=NET,
                allow_listen=LISTEN,
                allow_call=["outcome"],
                functions=[outcome],
                stdout=2,
            ) as client:
                client.options(timeout=seconds).call("run", f"test.{module}", directory)
        except AdytonError as error:
            outcomes[f"test.{module} (end)"] = {"outcome": "crashed", "text": str(error)}
        _keep_output(directory, f"{module}.enclave.log")
    return outcomes


def plainly(module: str, seconds: float = MODULE_SECONDS) -> Outcomes:
    """The same on this machine."""
    outcomes: Outcomes = {}
    with _folder() as directory:
        command = [sys.executable, RUNNER, f"test.{module}", directory]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            until = time.monotonic() + seconds
            for line in process.stdout:
                _note(outcomes, line)
                if time.monotonic() > until:
                    process.kill()
        _keep_output(directory, f"{module}.plain.log")
    return outcomes


class _folder(tempfile.TemporaryDirectory[str]):
    """A folder that the enclave's user may write, and whatever tests leave there."""

    def __init__(self) -> None:
        super().__init__(prefix="adyton-conformance-", dir="/tmp", ignore_cleanup_errors=True)
        os.chmod(self.name, 0o755)


def _note(outcomes: Outcomes, line: str) -> None:
    said = json.loads(line)
    outcomes[said["test"]] = {"outcome": said["outcome"], "text": said["text"]}


def _keep_output(directory: str, name: str) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    if os.path.exists(f"{directory}/output"):
        shutil.copyfile(f"{directory}/output", RESULTS / name)


def differences(plain: Outcomes, enclave: Outcomes) -> list[Difference]:
    """What passes plainly only; and what cannot be set up in the enclave only."""
    found = []
    for test, outcome in plain.items():
        if outcome["outcome"] == "passed":
            got = enclave.get(test, {"outcome": "missing", "text": ""})
            if got["outcome"] != "passed":
                found.append(Difference(test, got["outcome"], got["text"]))
    for test, outcome in enclave.items():
        if test not in plain and outcome["outcome"] != "passed":
            found.append(Difference(test, outcome["outcome"], outcome["text"]))
    return found


def run_modules(names: Iterable[str], expected: Expected) -> tuple[list[Difference], list[Rule]]:
    """Unexpected differences, and rules that nothing needs any more; each module is told of on standard output."""
    unexpected: list[Difference] = []
    failing: list[str] = []
    ran: set[str] = set()
    for name in names:
        start = time.monotonic()
        plain, enclave = plainly(name), in_enclave(name)
        (RESULTS / f"{name}.json").write_text(json.dumps({"plain": plain, "enclave": enclave}, indent=1) + "\n")
        found = differences(plain, enclave)
        failing += [each.test for each in found]
        ran |= set(plain) | set(enclave)
        new = [each for each in found if expected.rule_of(each.test) is None]
        unexpected += new
        counts = collections.Counter(each["outcome"] for each in enclave.values())
        print(
            f"{name}: {', '.join(f'{count} {outcome}' for outcome, count in sorted(counts.items()))}; "
            f"{len(found) - len(new)} differ as expected, {len(new)} unexpectedly ({time.monotonic() - start:.0f} s)",
            flush=True,
        )
        for each in new:
            print(f"    {each.outcome}: {each.test}: {each.last_line}", flush=True)
    return unexpected, expected.stale(failing, ran)


def grouped(found: Iterable[Difference]) -> list[str]:
    """Lines for people: how many differences of each kind, the most frequent ones first, and some tests."""
    kinds: dict[str, list[str]] = {}
    for each in found:
        kinds.setdefault(each.kind, []).append(each.test.removeprefix("test."))
    return [
        f"{len(tests):5} {kind}\n      {', '.join(tests[:3])}{', …' if len(tests) > 3 else ''}"
        for kind, tests in sorted(kinds.items(), key=lambda item: -len(item[1]))
    ]


def chosen(words: Sequence[str]) -> list[str]:
    """Modules of the areas or names in `words` (all for none) that this interpreter has."""
    every = [module for modules in MODULES.values() for module in modules]
    names: list[str] = []
    for word in words:
        if word in MODULES:
            names += MODULES[word]
        elif word in every:
            names.append(word)
        else:
            raise SystemExit(f"no area or module {word}; areas: {', '.join(MODULES)}")
    there = [name for name in (names or every) if _there(f"test.{name}")]
    return [
        name for name in there if not any(each.startswith(f"{name}.") for each in there)
    ]  # a package's modules stand for it


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def missing() -> str:
    """Why nothing can be run here; "" if something can."""
    if not _there("test.test_os"):
        return f"this Python ({sys.executable}) comes without its test package: take one that has it, such as a build from source"
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="AREA|MODULE")
    options = parser.parse_args(arguments)
    if why := missing():
        raise SystemExit(why)
    expected = Expected.read(HERE / "expected.toml", platform.python_version_tuple()[:2])
    unexpected, stale = run_modules(chosen(options.names), expected)
    print(*grouped(unexpected), sep="\n")
    for rule in stale:
        print(f"expected.toml: nothing of {', '.join(rule.tests)} fails any more: {rule.reason}")
    if unexpected or stale:
        raise SystemExit(f"{len(unexpected)} tests differ unexpectedly, {len(stale)} rules are out of date")


if __name__ == "__main__":
    main()
