"""Runs one of CPython's own test modules, and tells of each test: the same file in an enclave, and plainly (`python runner.py MODULE DIRECTORY`).

The tests run in a forked child, whose main thread they have, so that signals work. Each has so many seconds; one that hangs, or ends its process,
is told of as such, and the rest goes on in another child. What is told are lines of JSON:

    {"test": id, "outcome": OUTCOME, "text": the end of its traceback, or why it was skipped}

OUTCOME: passed, failed, skipped, hung, crashed. A module that cannot be imported, or skips itself, is one test of the id "MODULE (import)".
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import tempfile
import threading
import traceback
import unittest
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from adyton import trusted

enclave = trusted.Enclave("conformance")
PATIENCE = 30.0  # seconds for one test
BETWEEN = 60.0  # for the import of the module, and for what a class or the module sets up
HIGH = 200  # descriptors below are the tests' own
TEXT = 2000


@trusted.host_function
def outcome(line: str) -> None: ...


@enclave.entry
def run(module: str, directory: str) -> None:
    """Run a module's tests in a directory of the client's; `outcome` is called for each."""
    run_module(module, directory, outcome)


def run_module(module: str, directory: str, tell: Callable[[str], None], seconds: float = PATIENCE) -> None:
    """See the module. `seconds`: for each test."""
    done: set[str] = set()
    while True:
        child, source = _start(module, directory, done)
        current, finished = "", False
        lines = _Lines(source, BETWEEN)
        for line in lines:
            event = json.loads(line)
            if "begins" in event:
                current, lines.patience = event["begins"], seconds
            elif "finished" in event:
                finished = True
                break
            elif event["test"] not in done:
                done.add(event["test"])
                if event["test"] == current:
                    current, lines.patience = "", BETWEEN
                tell(line.decode())
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(source)
        if finished:
            return
        left = current or f"{module} ({'between tests' if done else 'import'})"
        if left in done:
            return  # it was told of, and still the child ended: another one would as well
        done.add(left)
        text = f"exit code {os.waitstatus_to_exitcode(status)}" if lines.at_end else f"for {lines.patience:g} s"
        tell(json.dumps({"test": left, "outcome": "crashed" if lines.at_end else "hung", "text": text}))
        if not current:
            return


def _start(module: str, directory: str, done: set[str]) -> tuple[int, int]:
    """A child that runs what is not done; its number, and where it tells of it."""
    source, sink = os.pipe()
    child = os.fork()
    if child:
        os.close(sink)
        return child, source
    try:
        _child(module, directory, done, sink)
    except BaseException:  # noqa: BLE001 - the child ends here
        traceback.print_exc()
    finally:
        os._exit(1)


class _Lines:
    """Lines until the end, or until nothing has come for `patience` seconds."""

    def __init__(self, source: int, patience: float) -> None:
        self._source = source
        self.patience = patience
        self.at_end = False

    def __iter__(self) -> Iterator[bytes]:
        kept = b""
        while select.select([self._source], [], [], self.patience)[0]:
            data = os.read(self._source, 1 << 16)
            if not data:
                self.at_end = True
                return
            *lines, kept = (kept + data).split(b"\n")
            yield from lines


def _child(module: str, directory: str, done: set[str], sink: int) -> NoReturn:
    os.setsid()
    high = fcntl.fcntl(sink, fcntl.F_DUPFD_CLOEXEC, HIGH)
    os.close(sink)
    output = os.open(f"{directory}/output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open("/dev/null", os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, number)
    os.closerange(3, HIGH)
    main = threading.current_thread()  # that of an entry, which was forked from a daemon thread of another name
    main.name = "MainThread"
    main._daemonic = False  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = ["test"]
    work = f"{directory}/work"
    os.makedirs(work, exist_ok=True)

    from test import support
    from test.support import socket_helper

    support.use_resources = []
    os.chdir(tempfile.gettempdir())  # whether unix sockets can be bound is looked at once, in the working directory
    socket_helper.skip_unless_bind_unix_socket(run_module)
    os.chdir(work)
    try:
        suite = unittest.defaultTestLoader.loadTestsFromName(module)
    except unittest.SkipTest as skipped:
        _write(high, {"test": f"{module} (import)", "outcome": "skipped", "text": str(skipped)})
    except Exception:  # noqa: BLE001 - whatever a module does when it is imported
        _write(high, {"test": f"{module} (import)", "outcome": "failed", "text": traceback.format_exc()[-TEXT:]})
    else:
        _leave_out(suite, module, done)
        suite.run(_Result(module, high))
    _write(high, {"finished": True})
    os._exit(0)


def _leave_out(suite: unittest.TestSuite, module: str, done: set[str]) -> None:
    suite._tests = [  # type: ignore[attr-defined]
        each for each in suite if isinstance(each, unittest.TestSuite) or _id(each, module) not in done
    ]
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            _leave_out(each, module, done)


def _id(test: Any, module: str) -> str:
    if type(test).__module__ in ("unittest.loader", "unittest.case"):
        return f"{module} (import)"
    return str(test.id())


def _write(sink: int, event: dict[str, Any]) -> None:
    os.write(sink, json.dumps(event).encode() + b"\n")


class _Result(unittest.TestResult):
    """Tells of each test when it is over: the worst of what it and its subtests said."""

    def __init__(self, module: str, sink: int) -> None:
        super().__init__()
        self._module = module
        self._sink = sink
        self._said: tuple[str, str] | None = None
        self._owner = os.getpid()

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        self._said = None
        _write(self._sink, {"begins": _id(test, self._module)})

    def stopTest(self, test: Any) -> None:
        super().stopTest(test)
        self._tell(test, *(self._said or ("passed", "")))

    def addError(self, test: Any, err: Any) -> None:
        self._bad(test, err)

    def addFailure(self, test: Any, err: Any) -> None:
        self._bad(test, err)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self._bad(test, err, str(subtest))

    def addUnexpectedSuccess(self, test: Any) -> None:  # noqa: ARG002
        self._said = ("failed", "unexpected success")

    def addSkip(self, test: Any, reason: str) -> None:
        if isinstance(test, unittest.TestCase):
            self._said = self._said or ("skipped", reason)
        else:
            self._tell(test, "skipped", reason)

    def _bad(self, test: Any, err: Any, where: str = "") -> None:
        text = where + "\n" + self._exc_info_to_string(err, test)  # type: ignore[attr-defined]
        if hasattr(test, "_testMethodName"):
            if self._said is None or self._said[0] != "failed":
                self._said = ("failed", text[-TEXT:])
        else:  # a class or module could not be set up or torn down
            self._tell(test, "failed", text[-TEXT:])

    def _tell(self, test: Any, outcome: str, text: str) -> None:
        if os.getpid() != self._owner:
            os._exit(99)  # a test's own child has come back to us
        _write(self._sink, {"test": _id(test, self._module), "outcome": outcome, "text": text})


if __name__ == "__main__":
    run_module(sys.argv[1], sys.argv[2], lambda line: print(line, flush=True))
