"""The watch of an enclave's memory: what it reads, how it adds up, how often, and when it ends the guest."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.runtime.process.namespaces import open_diagnosis
from adyton.runtime.process.supervisor import memory_watch
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.memory_watch import EACH, TOGETHER, MemoryWatch, size_in
from adyton.runtime.process.supervisor.socket_memory import listed, queued

MIB = 1 << 20


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """However slow this machine is, an exact look is waited for, and the last one was a moment ago."""
    monkeypatch.setattr(memory_watch, "EXACT_SECONDS", 60)


class FakeProc:
    """Two processes, as /proc shows them."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("1", "2", "meminfo"):
            (folder / name / "fd").mkdir(parents=True)
            (folder / name / "task").mkdir()

    def write(self, each, together):
        """In MiB, of each process."""
        for name in ("1", "2"):
            (self.folder / name / "status").write_text(
                f"Name:\tx\\nRssAnon: 9 kB\nVmPTE:\t0 kB\nRssAnon:\t{each << 10} kB\nRssFile:\t{1 << 30} kB\nVmSwap:\t0 kB\n"
            )
            (self.folder / name / "smaps_rollup").write_text(
                f"00400000-7fff [rollup]\nRss: 1 kB\nPss_Anon:\t{together << 10} kB\nPss_Shmem: 0 kB\nSwapPss: 0 kB\n"
            )


class Diagnosis:
    """Who answers what the kernel would."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def send(self, request):
        assert len(request) in (36, 40)

    def recv(self, size):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def message(kind, body=b""):
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body


def socket_of(sent, received=0, peer=7):
    attributes = (
        struct.pack("=HHI", 8, 2, peer) + struct.pack("=HHII", 12, 4, received, 0) + struct.pack("=HHB3x", 5, 6, 0)
    )
    return message(20, bytes(16) + attributes + struct.pack("=HH9I", 40, 5, 0, 0, sent, *[0] * 6))


DONE = message(3, bytes(4))


@pytest.fixture
def proc(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_watch, "DESCRIPTOR", 0)  # what a directory's size is, its file system says
    return FakeProc(tmp_path)


@pytest.fixture
def asleep():
    """A process, by its descriptor."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        descriptor = os.pidfd_open(process.pid)
        yield process, descriptor
        os.close(descriptor)
        process.kill()


def watching(proc, limit, pidfd=-1, diagnosis=None, idle=None):
    return MemoryWatch(pidfd, limit, diagnosis or Diagnosis(DONE), str(proc.folder), idle)


def test_an_upper_bound_is_enough_while_it_is_within_the_wall(proc):
    proc.write(each=50, together=1)
    assert watching(proc, 100 * MIB).look().memory == 100 * MIB
    proc.write(each=100, together=60)
    assert watching(proc, 100 * MIB).look().memory == 120 * MIB
    assert watching(proc, 200 * MIB).look().memory == 200 * MIB


def test_of_a_process_that_may_not_be_read_the_upper_bound_counts(proc, monkeypatch):
    proc.write(each=100, together=1)
    watch = watching(proc, 30 * MIB)
    real = os.open

    def refuse(path, *arguments):
        if path.endswith("1/smaps_rollup"):
            raise PermissionError(13, "no")
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", refuse)
    assert watch.look().memory == 101 * MIB


def test_what_waits_in_sockets_counts(proc):
    proc.write(each=1, together=1)
    answer = Diagnosis(socket_of(3 * MIB) + socket_of(5), socket_of(2 * MIB) + DONE, DONE)
    assert watching(proc, 100 * MIB, diagnosis=answer).look().sockets == 5 * MIB + 5
    closed = socket_of(0, 100, peer=0) + socket_of(0, 100_000, peer=0) + socket_of(0, 9, peer=3)
    assert queued(Diagnosis(closed, DONE), 1_000_000) == 100 * 1024 + 1_000_000
    assert queued(Diagnosis(message(2, bytes(20)))) is None


def test_what_waits_in_netlink_sockets_counts(proc):
    lists = [
        message(20, bytes(28) + struct.pack("=HHI", 8, 1, 9) + struct.pack("=HH9I", 40, 0, size, *[0] * 8))
        for size in (3, 2 * MIB)
    ]
    assert listed(Diagnosis(lists[0], lists[1] + DONE)) == 2 * MIB + 3
    assert listed(Diagnosis(message(2, bytes(20)))) is None
    proc.write(each=1, together=1)
    assert watching(proc, 100 * MIB, diagnosis=Diagnosis(DONE, lists[1] + DONE)).look().sockets == 2 * MIB


def test_netlink_sockets_of_this_machine_can_be_asked_about():
    with open_diagnosis() as diagnosis, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as lists:
        if listed(diagnosis) is None:
            pytest.skip("NO netlink_diag HERE: modprobe netlink_diag")
        before = listed(diagnosis)
        lists.bind((0, 0))
        lists.send(struct.pack("=IHHII16x", 32, 18, 0x301, 1, 0))  # RTM_GETLINK, a dump that nobody reads
        assert (listed(diagnosis) or 0) > (before or 0)


def test_sockets_of_this_machine_can_be_asked_about():
    with open_diagnosis() as diagnosis:
        if (before := queued(diagnosis)) is None:
            pytest.skip("NO unix_diag HERE: modprobe unix_diag")
        assert before >= 0
        one, other = socket.socketpair()
        with one, other:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            sent = one.send(bytes(100_000))
            assert (queued(diagnosis) or 0) >= sent


def test_too_much_ends_the_process_at_once_and_is_told(proc, asleep):
    proc.write(each=100, together=100)
    process, pidfd = asleep
    loop, said = Loop(), []
    watch = watching(proc, 64 * MIB, pidfd)
    watch.attach(loop, lambda reason: (said.append(reason), loop.stop()))
    watch.start()
    while loop.turn():
        pass
    assert process.wait(60) == -signal.SIGKILL
    assert said == [watch.reason]
    assert "its limit of 64 MiB: 200 MiB in 2 processes" in said[0]


class Idle:
    """Who tells whether the guest runs: it does nothing until `runs`."""

    def __init__(self, processes):
        self.processes = processes
        self.asked = threading.Event()
        self.waits = threading.Event()
        self.runs = threading.Event()

    def watch(self, seconds):
        self.within = seconds
        self.asked.set()
        return self.processes

    def wait(self, seconds):
        self.seconds = seconds
        self.waits.set()
        return not self.runs.wait(seconds)


class Guest:
    """What is seen of one, look by look."""

    def __init__(self, watch, memory):
        self.memory = memory
        self.looks = 0
        self.goes_on = threading.Condition()
        watch.look = self.look

    def look(self, **_how):
        with self.goes_on:
            self.looks += 1
            self.goes_on.notify_all()
            return memory_watch.Seen(2, self.memory, 0, 0)

    def is_looked_at(self, times):
        with self.goes_on:
            last = self.looks + times
            return self.goes_on.wait_for(lambda: self.looks >= last, 60)


@pytest.mark.parametrize("sleeps", [True, False], ids=["asleep", "cannot sleep"])
def test_a_guest_that_does_nothing_is_looked_at_no_more_until_it_runs(proc, asleep, monkeypatch, sleeps):
    monkeypatch.setattr(memory_watch, "CHECK_SECONDS", 0.01)
    process, pidfd = asleep
    idle = Idle(processes=2 if sleeps else 3)
    loop, said = Loop(), []
    watch = watching(proc, 64 * MIB, pidfd, idle=idle)
    guest = Guest(watch, 20 * MIB)
    watch.attach(loop, lambda reason: (said.append(reason), loop.stop()))
    watch.start()
    assert (idle.waits if sleeps else idle.asked).wait(60)
    looks = guest.looks
    if not sleeps:
        assert guest.is_looked_at(3)
        assert not idle.waits.is_set()
    guest.memory = 200 * MIB
    idle.runs.set()
    while loop.turn():
        pass
    assert process.wait(60) == -signal.SIGKILL
    assert "200 MiB in 2 processes" in said[0]
    assert guest.looks == looks + 1 or not sleeps


def test_a_guest_that_sleeps_on_is_looked_at_once_and_not_asked_for_again(proc, asleep, monkeypatch):
    monkeypatch.setattr(memory_watch, "SLEEP_SECONDS", 0.01)
    monkeypatch.setattr(memory_watch, "LONGEST_SLEEP_SECONDS", 0.01)
    idle = Idle(processes=2)
    watch = watching(proc, 64 * MIB, asleep[1], idle=idle)
    guest = Guest(watch, 20 * MIB)
    watch.start()
    assert idle.waits.wait(60)
    idle.asked.clear()
    assert guest.is_looked_at(5)
    assert not idle.asked.is_set()
    guest.memory += 1 * MIB  # given to it by the kernel
    assert idle.asked.wait(60)
    guest.memory = 1 << 40
    idle.runs.set()
    assert asleep[0].wait(60) == -signal.SIGKILL


@pytest.mark.parametrize(("memory", "seconds"), [(20 * MIB, 600), (444 * MIB, 60 * 1.0), (164 * MIB, 200)])
def test_the_kernel_gives_a_sleeper_little_until_it_is_looked_at(proc, asleep, memory, seconds):
    idle = Idle(processes=2)
    watch = watching(proc, (2048 if memory < 100 * MIB else 400) * MIB, asleep[1], idle=idle)
    guest = Guest(watch, memory)
    watch.start()
    assert idle.waits.wait(60)
    assert idle.seconds == pytest.approx(seconds)
    guest.memory = 1 << 40
    idle.runs.set()
    assert asleep[0].wait(60) == -signal.SIGKILL


def test_looks_are_the_more_frequent_the_nearer_the_wall_is(proc, asleep, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0})
    pauses = []
    watch = watching(proc, 400 * MIB, asleep[1])
    sizes = iter([10, 10, 180, 230, 280, 300])  # of two each; the wall is at 564 MiB

    def sleep(seconds):
        if threading.current_thread() is not threading.main_thread():  # a watch of another test
            time.sleep(seconds)
            return
        pauses.append(seconds)
        size = next(sizes)
        proc.write(each=size, together=size)

    clocks = {"monotonic": time.monotonic, "thread_time": lambda: 0.0}
    monkeypatch.setattr(memory_watch, "time", types.SimpleNamespace(sleep=sleep, **clocks))
    proc.write(each=10, together=10)
    watch._run()
    expected = [*[(564 - 20) / 6144] * 2, (564 - 20) / 6144, (564 - 360) / 6144, (564 - 460) / 6144, 0.005]
    assert pauses == pytest.approx(expected)


def test_who_sleeps_near_the_wall_is_to_be_told_of_as_soon_as_it_could_be_beyond(proc, asleep, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 1})
    idle = Idle(processes=2)
    watch = watching(proc, 256 * MIB, asleep[1], idle=idle)
    guest = Guest(watch, 320 * MIB)
    watch.start()
    assert idle.waits.wait(60)
    assert idle.within == pytest.approx((384 + 256 - 320) / (2 * 6144))
    guest.memory = 1 << 40
    idle.runs.set()
    assert asleep[0].wait(60) == -signal.SIGKILL


def test_what_is_new_ends_an_enclave_without_an_exact_look(proc):
    proc.write(each=100, together=55)
    watch = watching(proc, 100 * MIB)  # the wall is at 189 MiB
    assert watch.look().memory == 110 * MIB
    proc.write(each=139, together=55)
    assert watch.look(exactly=False).memory == 188 * MIB, "it is not exact, and a moment ago there was one that is"
    proc.write(each=145, together=55)
    assert watch.look(exactly=False).memory == 200 * MIB


def test_counts_that_may_be_wrong_end_nobody(proc, monkeypatch):
    monkeypatch.setattr(memory_watch, "UNSURE", 6 * MIB)
    proc.write(each=100, together=55)
    watch = watching(proc, 100 * MIB)  # the wall is at 189 MiB
    assert watch.look().memory == 110 * MIB
    proc.write(each=145, together=90)
    assert watch.look(exactly=False).memory == (110 + 90 - 12) * MIB
    assert watch.look().memory == 180 * MIB
    proc.write(each=180, together=90)
    assert watch.look(exactly=False).memory == (190 + 70) * MIB


@pytest.mark.parametrize("when", ["unread", "read"])
def test_of_who_ends_while_there_is_an_exact_look_it_takes_nothing(proc, monkeypatch, when):
    """Its pages count for more in who is read when it has ended, for less in who was read before."""
    proc.write(each=100, together=95)
    watch = watching(proc, 100 * MIB)  # the wall is at 189 MiB
    assert watch.look().memory == 190 * MIB
    order = ["1", "3", "2"] if when == "unread" else ["3", "1", "2"]
    real = watch._together

    def together(name, status):
        if name == "1":
            (proc.folder / "3").rename(proc.folder / "ended")
        return real(name, status)

    shutil.copytree(proc.folder / "2", proc.folder / "3")
    proc.write(each=100, together=60)
    monkeypatch.setattr(watch, "_processes", lambda: [each for each in order if (proc.folder / each).exists()])
    monkeypatch.setattr(watch, "_together", together)
    exact = watch._exact()
    assert (exact.memory, exact.same, sorted(exact.sizes)) == (120 * MIB, False, ["1", "2"])
    assert watch.look().memory == 190 * MIB


def test_what_processes_have_taken_while_they_were_looked_at_no_exact_look_takes_back(proc):
    """Who is forked and ends while there is one has its part of what others have, and is seen by nobody."""
    proc.write(each=1, together=1)
    watch = watching(proc, 100 * MIB)  # the wall is at 189 MiB
    assert watch.look().memory == 2 * MIB
    proc.write(each=90, together=9)
    assert watch.look().memory == 180 * MIB
    shutil.copytree(proc.folder / "2", proc.folder / "3")
    assert watch.look().memory == (1 + 2 * 89) * MIB - 3 * memory_watch.UNSURE
    proc.write(each=96, together=9)
    assert watch.look().memory == 191 * MIB


def test_who_wakes_up_is_not_looked_at_exactly_at_once(proc, asleep):
    proc.write(each=100, together=55)
    idle = Idle(processes=2)
    watch = watching(proc, 100 * MIB, asleep[1], idle=idle)
    watch.start()
    assert idle.waits.wait(60)
    due = watch._exact_due
    exact, watch._exact = watch._exact, lambda: pytest.fail("a look that takes long")
    idle.waits.clear()
    proc.write(each=180, together=55)
    idle.runs.set()
    assert asleep[0].wait(60) == -signal.SIGKILL
    assert watch._exact_due > due
    watch._exact = exact


@pytest.mark.parametrize("patience", [60.0, 0.05], ids=["takes memory", "does not end"])
def test_who_hinders_an_exact_look_is_looked_at_all_the_same(proc, asleep, monkeypatch, patience):
    """A thread that waits for a file of the client's can have the lock that an exact look takes, for as long as the client likes."""
    monkeypatch.setattr(memory_watch, "EXACT_SECONDS", 0.1)
    monkeypatch.setattr(memory_watch, "PATIENCE", patience)
    monkeypatch.setattr(memory_watch, "CHECK_SECONDS", 0.01)
    begun, hanging = threading.Event(), threading.Event()
    proc.write(each=100, together=55)
    watch = watching(proc, 100 * MIB, asleep[1])  # the wall is at 189 MiB
    found = memory_watch.Exact(200 * MIB, {}, same=True, took=0.0)
    monkeypatch.setattr(watch, "_exact", lambda: (begun.set(), hanging.wait(), found)[2])
    loop, said = Loop(), []
    watch.attach(loop, lambda reason: (said.append(reason), loop.stop()))
    watch.start()
    assert begun.wait(60)
    if patience > 1:
        proc.write(each=200, together=55)
    while loop.turn():
        pass
    assert ("could not be seen" in said[0]) == (patience < 1)
    hanging.set()
    assert asleep[0].wait(60) == -signal.SIGKILL, "and the watch looks no more"


class Checks:
    """A loop that does later what it is told to, when the test says so."""

    def read(self, source, callback):
        self.woken = callback

    def later(self, seconds, callback):
        self.next = callback


@pytest.mark.parametrize("stuck", [True, False], ids=["one", "many"])
def test_an_exact_look_that_goes_on_may_take_longer_than_one_at_a_single_process(proc, stuck):
    checks, said = Checks(), []
    watch = watching(proc, 100 * MIB)
    watch.attach(checks, said.append)
    watch._exactly.under_way = True
    for _ in range(1 + memory_watch.STUCK_CHECKS):
        assert not said
        watch._read_exactly += 1 if not stuck or not watch._read_exactly else 0
        checks.next()
    assert bool(said) == stuck
    watch._exactly.under_way = False
    said.clear()
    checks.next()
    assert not said


def test_who_hinders_an_exact_look_is_ended(proc, asleep, monkeypatch):
    monkeypatch.setattr(memory_watch, "EXACT_SECONDS", 0.1)
    monkeypatch.setattr(memory_watch, "CHECK_SECONDS", 0.01)
    hanging = threading.Event()
    proc.write(each=100, together=55)
    watch = watching(proc, 100 * MIB, asleep[1])
    real = watch._read
    monkeypatch.setattr(watch, "_read", lambda name: (hanging.wait(), b"")[1] if "rollup" in name else real(name))
    loop, said = Loop(), []
    watch.attach(loop, lambda reason: (said.append(reason), loop.stop()))
    watch.start()
    while loop.turn():
        pass
    assert "could not be seen" in said[0]
    proc.write(each=200, together=55)
    assert asleep[0].wait(60) == -signal.SIGKILL, "and the watch looks no more"
    hanging.set()


def test_an_exact_look_that_takes_long_counts_when_it_has_ended(proc, monkeypatch):
    monkeypatch.setattr(memory_watch, "EXACT_SECONDS", 0)
    watch = watching(proc, 100 * MIB)  # the wall is at 189 MiB
    goes_on, ended, look = threading.Event(), threading.Event(), watch._exact
    monkeypatch.setattr(watch, "_exact", lambda: (goes_on.wait(60), look(), ended.set())[1])
    watch._exactly.start("exactly")
    proc.write(each=100, together=55)
    for _ in range(2):
        assert watch._looked(exactly=True).memory == 100 * MIB, "the largest has so much"
        assert watch._since is not None, "what has not ended for too long ends the guest"
    goes_on.set()
    assert ended.wait(60)
    while watch._exactly.under_way:
        proc.write(each=90, together=55)
        assert watch._looked(exactly=False).memory == 180 * MIB
    assert watch._since is None
    proc.write(each=104, together=55)
    watch._exact_due = time.monotonic() + 60
    assert watch._looked(exactly=False).memory == (110 - 20 + 28) * MIB


@pytest.mark.parametrize("hindrance", ["nothing is there", "a look that does not end"])
def test_who_cannot_be_seen_for_too_long_is_ended(proc, asleep, monkeypatch, hindrance):
    monkeypatch.setattr(memory_watch, "PATIENCE", 0.05)
    monkeypatch.setattr(memory_watch, "CHECK_SECONDS", 0.01)
    hanging = threading.Event()
    watch = watching(proc, MIB, asleep[1])
    if hindrance == "nothing is there":
        monkeypatch.setattr(watch, "_proc", "/nowhere")
    else:
        monkeypatch.setattr(watch, "look", lambda **_: hanging.wait())
    loop, said = Loop(), []
    watch.attach(loop, lambda reason: (said.append(reason), loop.stop()))
    watch.start()
    while loop.turn():
        pass
    assert "could not be seen" in said[0]
    assert asleep[0].poll() is None


@given(st.binary())
def test_any_text_has_a_size(text):
    assert size_in(text, EACH) >= 0
    assert size_in(text, TOGETHER) >= 0


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_lines_are_added_up(one, other):
    text = f"Name:\tx\nVmPTE:\t{one} kB\nRssAnonX:\t7 kB\n xRssAnon:\t7 kB\nRssShmem: {other} kB\n".encode()
    assert size_in(text, EACH) == (one + other) << 10
