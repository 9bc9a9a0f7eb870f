"""What an enclave prints: all of it, in order, before what comes behind it; and nobody waits for himself."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import msgspec
import pytest

import adyton
from adyton.communicator.session import Notified, Session, Side
from adyton.hostcall import abi
from adyton.runtime.process.supervisor import output
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.output import Output


class Printing:
    """Pipes, who reads them, and what came out at the client's end."""

    def __init__(self) -> None:
        self.reads, self.writes = zip(*(os.pipe() for _ in range(2)), strict=True)
        self.loop, self.enclave, self.client = Loop(), Session(Side.ENCLAVE), Session(Side.CLIENT)
        streams = {"stdout": self.reads[0], "stderr": self.reads[1]}
        self.output = Output(streams, self.loop, self.enclave, lambda: True, lambda step: step)

    def said(self) -> dict[str, bytes]:
        said = {"stdout": b"", "stderr": b""}
        while data := self.enclave.data_to_send():
            for event in self.client.receive(data):
                assert isinstance(event, Notified)
                got = msgspec.msgpack.decode(event.body, type=abi.Output)
                said[got.stream] += got.data
            self.enclave.receive(self.client.data_to_send())
        return said


@pytest.fixture
def printing(monkeypatch):
    monkeypatch.setattr(output, "keep_only", lambda _: None)  # this process keeps its table of descriptors
    printing = Printing()
    printing.output.start()
    printing.output.begin()
    yield printing
    for end in printing.writes:
        os.close(end)
    printing.output.close()
    printing.loop.close()


def test_what_was_printed_comes_before_what_is_said_behind_it(printing):
    for number in range(50):
        os.write(printing.writes[number % 2], b"%d\n" % number)
        done = []
        printing.output.then(lambda done=done: done.append(printing.said()))
        while not done:
            printing.loop.turn()
        assert b"".join(done[0].values()) == b"%d\n" % number


def test_nothing_waits_where_nothing_was_printed(printing):
    done = []
    printing.output.then(lambda: done.append(1))
    assert done == [1]


def test_who_goes_on_printing_holds_nothing_up_for_ever(printing):
    ends, done = threading.Event(), []

    def print_on() -> None:
        while not ends.is_set():
            os.write(printing.writes[0], bytes(1 << 16))

    thread = threading.Thread(target=print_on)
    thread.start()
    try:
        printing.output.then(lambda: done.append(1))
        while not done:
            printing.loop.turn()
            printing.said()
    finally:
        ends.set()
        while thread.is_alive():
            printing.said()
            printing.output.caught_up()
            time.sleep(0.001)
        thread.join()


def test_what_the_client_does_not_take_stays_with_who_prints_it(printing, monkeypatch):
    monkeypatch.setattr(output, "HIGH_WATER", 1 << 18)
    monkeypatch.setattr(output, "MOST_TAKEN", 1 << 18)
    whole = bytes(range(256)) * (1 << 14)
    thread = threading.Thread(target=lambda: os.write(printing.writes[0], whole))
    thread.start()
    while printing.enclave.pending_bytes < output.HIGH_WATER:
        printing.loop.turn()
    assert printing.enclave.pending_bytes < output.HIGH_WATER + (1 << 17)
    assert printing.output._taken_bytes <= output.MOST_TAKEN + (1 << 16)
    said = b""
    while len(said) < len(whole):
        said += printing.said()["stdout"]
        printing.output.caught_up()
    thread.join()
    assert said == whole


def test_what_is_opened_anew_after_all_had_closed_it_is_read(printing):
    """As /proc/self/fd/1 can be, by who has kept it with O_PATH."""
    kept = os.open(f"/proc/self/fd/{printing.writes[0]}", os.O_PATH)
    os.write(printing.writes[0], b"before, ")
    os.close(printing.writes[0])
    while not (said := printing.said()["stdout"]):
        printing.loop.turn()
    while printing.output._unread:  # its end has been seen
        time.sleep(0.001)
    again = os.open(f"/proc/self/fd/{kept}", os.O_WRONLY)
    os.close(kept)
    printing.writes = (again, printing.writes[1])
    done = []
    for _ in range(2):
        os.write(again, b"after")
        printing.output.then(lambda: done.append(1))
        while not done:
            printing.loop.turn()
        said += printing.said()["stdout"]
        done.clear()
    assert said == b"before, afterafter"


def test_what_somebody_else_has_read_holds_nothing_up(printing, monkeypatch):
    """A program can read what it printed itself, before it is taken."""
    done = []
    with monkeypatch.context() as patch:
        patch.setattr(printing.output, "_is_clear", lambda: False)  # something is there, which nobody finds
        printing.output.then(lambda: done.append(1))
    while not done:
        printing.loop.turn()


def test_the_end_is_not_the_first_moment_in_which_nothing_is_there(printing, monkeypatch):
    """Who prints more than a pipe holds leaves such moments."""
    whole, pass_on, begun = bytes(range(256)) * (1 << 12), printing.output._pass_on, []

    def write() -> None:
        os.write(printing.writes[0], whole)
        for end in printing.writes:
            os.close(end)
        printing.writes = ()

    def pass_on_and_write(*how, **limits) -> int:
        passed = pass_on(*how, **limits)
        if not begun:
            begun.append(threading.Thread(target=write))
            begun[0].start()
        return passed

    monkeypatch.setattr(printing.output, "_pass_on", pass_on_and_write)
    monkeypatch.setattr(output, "END_MOMENT", 600)
    printing.output.finish()
    begun[0].join()
    assert printing.said()["stdout"] == whole


def test_who_prints_without_end_is_cut_off_at_the_end(printing, monkeypatch):
    monkeypatch.setattr(output, "MOST_AT_END", 1 << 20)
    monkeypatch.setattr(output, "END_MOMENT", 600)
    ends = threading.Event()

    def print_on() -> None:
        while not ends.is_set():
            os.write(printing.writes[0], bytes(1 << 16))

    thread = threading.Thread(target=print_on)
    thread.start()
    try:
        printing.output.finish()
        assert (1 << 20) <= printing.enclave.pending_bytes < (1 << 20) + (1 << 18)
    finally:
        ends.set()
        while thread.is_alive():
            printing.output._pass_on()
            printing.said()
        thread.join()


def test_what_stays_open_at_the_end_is_waited_for_a_moment_only(printing, monkeypatch):
    monkeypatch.setattr(output, "END_MOMENT", 0.01)
    os.write(printing.writes[1], b"last words")
    printing.output.finish()
    assert printing.said()["stderr"] == b"last words"


def test_what_waits_for_what_was_printed_is_said_at_the_end_though_that_is_not_over(printing, monkeypatch):
    """A program may end right behind its result, and leave the pipes to another process."""
    monkeypatch.setattr(output, "END_MOMENT", 0.01)
    done = []
    with monkeypatch.context() as patch:
        patch.setattr(printing.output, "_is_clear", lambda: False)
        os.write(printing.writes[0], b"before")
        printing.output.then(lambda: done.append(printing.said()["stdout"]))
        printing.output.then(lambda: done.append(printing.said()["stdout"]))
        assert not done
        printing.output.finish()
    assert done == [b"before", b""]


PROGRAM = """
import mmap, os, threading

def main(path: str) -> int:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_RANDOM)
        ends = threading.Event()
        def small():
            while not ends.is_set():
                os.write(1, b"x")
        threads = [threading.Thread(target=small) for _ in range(2)]
        for thread in threads:
            thread.start()
        with memoryview(mapped) as view:
            written = sum(os.write(1, view[start : start + 4096]) for start in range(0, len(view), 4096))
        ends.set()
        for thread in threads:
            thread.join()
        return written
"""


@pytest.mark.sandbox
def test_pages_of_the_clients_files_can_be_printed(workplace, capfdbinary):
    """The kernel asks the supervisor for them in the middle of a write, and then the pipe is locked."""
    Path("prog.py").write_text(PROGRAM)
    Path("file").write_bytes(b"y" * (1 << 20))
    with adyton.load("prog.py", allow_read=["file"], timeout=60) as client:
        assert client.call("main", "file") == 1 << 20
    assert capfdbinary.readouterr().out.count(b"y") == 1 << 20
