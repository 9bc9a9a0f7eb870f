"""Who is busy is not taken for dead: an entry and its client that let none of their threads run for long, a client's disk that is slow."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import adyton

pytestmark = pytest.mark.sandbox

PROGRAM = """
import time

def compute(seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1_000_000))  # without a moment for another thread
    return True
"""

CLIENT = """
import time
import adyton

with adyton.load("computing.py") as client:
    call = client.submit("compute", 7.0)
    while not call.done():
        sum(range(10_000_000))
    print(call.result())
"""


@pytest.mark.long
def test_an_entry_that_computes_for_long_and_its_client_are_no_loss(workplace):
    """Twice as long as an end waits for the other that it waits for (remote.pulse). Niced, so that other tests go on beside it."""
    Path("computing.py").write_text(PROGRAM)
    done = subprocess.run(
        ["nice", "-n", "10", sys.executable, "-c", CLIENT], capture_output=True, text=True, timeout=280, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


WRITING = """
from adyton import trusted

@trusted.host_function
def note(number: int) -> None: ...

def write(path: str) -> str:
    with open(path, "r+") as file:
        first = file.read()
        file.seek(0)
        file.write("new")
    return first

def count() -> None:
    for number in range(3):
        note(number)
"""


def test_what_a_program_does_goes_on_while_its_clients_disk_takes_its_time_to_write(workplace, monkeypatch):
    Path("writing.py").write_text(WRITING)
    Path("file").write_text("old")
    asked, answer = threading.Event(), threading.Event()
    noted: queue.SimpleQueue[int] = queue.SimpleQueue()

    def note(number: int) -> None:
        noted.put(number)

    with adyton.load("writing.py", allow_write=["file"], functions=[note], allow_call=["note"]) as client:
        write = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda *rest: asked.set() or (answer.wait(60) and write(*rest)))
        call = client.submit("write", "file")
        try:
            assert asked.wait(60)
            counted = client.submit("count")
            assert [noted.get(timeout=30) for _ in range(3)] == [0, 1, 2]
            assert not call.done()
        finally:
            answer.set()
        assert call.result(60) == "old"
        counted.result(60)
    assert Path("file").read_text() == "new"
