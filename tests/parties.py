"""The processes that a session consists of: finding them, and whether they are gone."""

from __future__ import annotations

import os
import select
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

PROGRAM = """
import time

def wait(seconds: float) -> bool:
    time.sleep(seconds)
    return True

def quick() -> int:
    return 1
"""


def processes() -> dict[int, tuple[int, str]]:
    """Every process: its parent and its name."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", errors="replace") as file:  # a name is any bytes
                    text = file.read()
            except (FileNotFoundError, ProcessLookupError):
                continue
            name, _, rest = text.partition(" (")[2].rpartition(") ")
            if rest.split()[0] != "Z":
                found[int(entry)] = (int(rest.split()[1]), name)
    return found


def descendants(root: int) -> dict[int, str]:
    """Processes below `root`, by their names."""
    known = processes()
    below = {root}
    while True:
        more = {pid for pid, (parent, _) in known.items() if parent in below} - below
        if not more:
            return {pid: known[pid][1] for pid in below - {root}}
        below |= more


def executes(pid: int, argument: str) -> bool:
    """Whether the process has come as far as to execute a command with this argument: before that it holds up who starts it."""
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return argument in file.read().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


def party(found: dict[int, str], name: str) -> int:
    return next(pid for pid, each in found.items() if each == name)


def stop(pid: int) -> None:
    """SIGSTOP, and wait until it has reached each thread: on a busy machine one may go on for a moment."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while set(_thread_states(pid)) - {"T", "Z"}:
        assert time.monotonic() < deadline, pid
        threading.Event().wait(0.001)


def _thread_states(pid: int) -> Iterator[str]:
    for thread in os.listdir(f"/proc/{pid}/task"):
        with (
            suppress(FileNotFoundError, ProcessLookupError),
            open(f"/proc/{pid}/task/{thread}/stat", errors="replace") as file,
        ):
            yield file.read().rpartition(") ")[2][0]


def gone(pids: set[int], seconds: float = 60) -> set[int]:
    """Those of the processes that have not ended within that time: their own descriptors tell, /proc is not read again and again."""
    deadline = time.monotonic() + seconds
    alive = set()
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            if not poller.poll(max(0, deadline - time.monotonic()) * 1000):
                alive.add(pid)
        finally:
            os.close(descriptor)
    return alive


def is_relays(pid: int) -> bool:
    """Whether it is a process of a provision server's with the relays of enclaves."""
    return executes(pid, "adyton.provision.relay_process")


def litter() -> set[str]:
    return set(os.listdir(tempfile.gettempdir()))


def relay_of(found: dict[int, str], zygote: int) -> int:
    return processes()[zygote][0]
