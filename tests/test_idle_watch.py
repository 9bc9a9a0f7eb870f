"""Who tells supervisors that their guests have run: what is compared, what is sent, who goes; and an enclave that does nothing."""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
import subprocess
import threading
import time
import types

import pytest
from greedy import build
from hypothesis import given
from hypothesis import strategies as st
from sandbox import children, status

import adyton
from adyton.runtime.process import idle_watch
from adyton.runtime.process.dead_mans_switch import DeadMansSwitch
from adyton.runtime.process.idle_watch import (
    LONGEST_SECONDS,
    LOOK_SECONDS,
    MAX_PROCESSES,
    MAX_THREADS,
    NEAR_SECONDS,
    NEAR_SHARE,
    RAN,
    RARE_SECONDS,
    SIGN_SECONDS,
    WATCH,
    WATCHED,
    IdleClient,
    IdleWatch,
    clock_of,
)
from adyton.runtime.process.supervisor import memory_watch
from adyton.runtime.process.supervisor.memory_watch import IDLE_SECONDS

SUPERVISOR, INIT, GUEST, CHILD = 10, 11, 12, 13


def question(seconds=LOOK_SECONDS):
    return WATCH.pack(b"watch", round(seconds * 1e6))


class Zygote:
    """A watch of processes that the test makes up, and a supervisor's socket."""

    def __init__(self, proc):
        self.proc = proc
        self.clock = 100.0
        self.used = {}
        self.poller = select.poll()
        self.watch = IdleWatch(self.poller, lambda: self.clock, self.read, str(proc))
        self.has(SUPERVISOR, {SUPERVISOR: [INIT, GUEST]})
        self.has(INIT, {INIT: []})
        self.has(GUEST, {GUEST: [], 30: [CHILD]})
        self.has(CHILD, {CHILD: []})
        for process, inside in ((INIT, 1), (GUEST, 2)):
            (proc / f"{process}/status").write_text(f"Name:\tx\nNSpid:\t{process}\t{inside}\nNSpgid:\t0\t0\n")
        self.supervisor, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.supervisor.setblocking(False)
        self.watch.join(SUPERVISOR, theirs)

    def has(self, process, children_of_threads):
        for thread, started in children_of_threads.items():
            folder = self.proc / f"{process}/task/{thread}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "children").write_text("".join(f"{each} " for each in started))
            self.used |= {clock_of(each): 1000 + each for each in started}

    def read(self, clock):
        try:
            return self.used[clock]
        except KeyError:
            raise OSError(22, "no such process") from None

    def slow(self, seconds):
        """To read all clocks takes so long."""
        read = self.read

        def slowly(clock):
            self.clock += seconds / 2  # there are two to be read
            return read(clock)

        self.watch._read = slowly

    def turns(self):
        for descriptor, _ in self.poller.poll(0):
            assert self.watch.ready(descriptor)
        self.watch.look()

    def passes(self, seconds=LOOK_SECONDS):
        self.clock += seconds
        self.turns()

    def told(self):
        """What the supervisor was told; None: nothing, b"": that nobody tells it any more."""
        try:
            return self.supervisor.recv(64)
        except BlockingIOError:
            return None

    def asked(self, seconds=LOOK_SECONDS):
        self.supervisor.send(question(seconds))
        self.turns()
        return WATCHED.unpack(self.told())[1]


@pytest.fixture
def zygote(tmp_path):
    made = Zygote(tmp_path)
    yield made
    made.watch.abandon()
    made.supervisor.close()


def test_all_processes_of_an_enclave_are_watched_whoever_started_them(zygote):
    assert zygote.watch.pause() is None
    assert zygote.asked() == 3
    assert zygote.watch.pause() == LOOK_SECONDS * 1000
    zygote.passes()
    assert zygote.told() is None


@pytest.mark.parametrize("process", [GUEST, CHILD])
def test_one_that_has_run_is_told_once(zygote, process):
    zygote.asked()
    zygote.used[clock_of(process)] += 1
    zygote.turns()
    assert zygote.told() is None, "it is not yet time"
    zygote.passes()
    assert zygote.told() == RAN
    assert zygote.watch.pause() is None
    zygote.used[clock_of(process)] += 1
    zygote.passes()
    assert zygote.told() is None


def test_the_first_process_is_the_runtimes_own(zygote):
    zygote.asked()
    zygote.used[clock_of(INIT)] += 1
    zygote.passes()
    assert zygote.told() is None


def test_who_has_much_to_look_at_looks_less_often(zygote):
    zygote.asked()
    for took, pause in ((0.0, 0.25), (0.002, 0.4), (1.0, 0.5)):
        zygote.slow(took)
        zygote.passes(1)
        assert zygote.watch.pause() == pytest.approx(1000 * (pause - took), abs=1) or took > pause


def test_who_is_near_its_limit_is_looked_at_as_often_as_it_asks_and_others_are_not(zygote):
    zygote.asked(0.02)
    assert zygote.watch.pause() == pytest.approx(20, abs=1)
    zygote.used[clock_of(GUEST)] += 1
    zygote.passes(0.02)
    assert zygote.told() == RAN
    zygote.asked(0)
    assert zygote.watch.pause() == pytest.approx(NEAR_SECONDS * 1000, abs=1)
    zygote.asked(1)
    assert zygote.watch.pause() == LONGEST_SECONDS * 1000
    zygote.used[clock_of(GUEST)] += 1
    near, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    zygote.watch.join(SUPERVISOR, theirs)
    with near:
        near.send(question(0.02))
        zygote.turns()
        zygote.passes(0.02)
        assert zygote.told() is None, "its time has not come"
        zygote.passes(LONGEST_SECONDS)
        assert zygote.told() == RAN


def test_who_need_not_be_told_soon_is_looked_at_rarely(zygote):
    zygote.asked(10)
    assert zygote.watch.pause() == RARE_SECONDS * 1000
    zygote.used[clock_of(GUEST)] += 1
    zygote.passes(RARE_SECONDS)
    assert zygote.told() == RAN


def test_many_that_are_near_their_limits_are_looked_at_less_often(zygote):
    zygote.asked(0.02)
    zygote.slow(0.002)
    zygote.passes(0.02)
    assert zygote.watch.pause() == pytest.approx(1000 * (0.002 * NEAR_SHARE - 0.002), abs=1)


def test_who_has_many_threads_is_not_watched(zygote):
    zygote.has(GUEST, dict.fromkeys(range(100, 100 + MAX_THREADS), ()))
    assert zygote.asked() == 0


def test_who_asks_what_takes_long_is_not_answered_again_at_once(zygote):
    zygote.slow(0.01)
    assert zygote.asked() == 3
    assert zygote.asked() == 0
    zygote.clock += NEAR_SHARE * 0.01
    assert zygote.asked() == 3


def test_there_is_a_sign_as_long_as_any_are_watched(zygote):
    signs = []
    zygote.watch._sign = lambda seconds: signs.append((zygote.clock, seconds))
    zygote.passes(60)
    assert not signs
    zygote.asked()
    for _ in range(40):
        zygote.passes()
    zygote.asked(10)
    for _ in range(8):
        zygote.passes(RARE_SECONDS)
    began = zygote.clock - 40 * LOOK_SECONDS - 8 * RARE_SECONDS
    times = [began, *(at for at, _ in signs), zygote.clock]
    assert {seconds for _, seconds in signs} == {SIGN_SECONDS}
    assert max(after - before for before, after in itertools.pairwise(times)) < SIGN_SECONDS / 2


def test_one_that_has_ended_has_run(zygote):
    zygote.asked()
    del zygote.used[clock_of(CHILD)]
    zygote.passes()
    assert zygote.told() == RAN


@pytest.mark.parametrize(
    "hindrance", ["too many", "one that ended meanwhile", "a kernel that does not tell", "no number"]
)
def test_what_cannot_be_told_is_not_watched(zygote, hindrance):
    folder = zygote.proc / f"{CHILD}/task/{CHILD}"
    if hindrance == "too many":
        zygote.has(CHILD, {CHILD: range(100, 100 + MAX_PROCESSES)})
        for each in range(100, 100 + MAX_PROCESSES):
            zygote.has(each, {each: []})
    elif hindrance == "one that ended meanwhile":
        del zygote.used[clock_of(CHILD)]
    elif hindrance == "no number":
        (folder / "children").write_text("x")
    else:
        (folder / "children").unlink()
    assert zygote.asked() == 0
    assert zygote.watch.pause() is None


def test_who_asks_again_is_told_of_what_happens_from_then_on(zygote):
    zygote.asked()
    zygote.used[clock_of(GUEST)] += 1
    assert zygote.asked() == 3
    zygote.passes()
    assert zygote.told() is None


@given(message=st.binary(max_size=40).filter(lambda message: message[:5] != b"watch" or len(message) != WATCH.size))
def test_who_says_anything_else_is_told_nothing_any_more(tmp_path_factory, message):
    zygote = Zygote(tmp_path_factory.mktemp("proc"))
    zygote.asked()
    zygote.supervisor.send(message)
    zygote.turns()
    assert zygote.told() == b""
    assert zygote.watch.pause() is None
    zygote.supervisor.close()


def test_a_supervisor_that_ended_or_does_not_listen_is_forgotten(zygote):
    zygote.asked()
    zygote.watch.ended(SUPERVISOR + 1)
    assert zygote.watch.pause() is not None
    zygote.watch.ended(SUPERVISOR)
    assert zygote.watch.pause() is None
    assert zygote.told() == b""
    deaf, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    zygote.watch.join(SUPERVISOR, theirs)
    with deaf:
        while theirs.fileno() >= 0:
            deaf.send(question())
            zygote.turns()


def test_what_was_told_of_those_before_is_not_taken_for_an_answer():
    supervisor, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with supervisor, zygote:
        for message in (RAN, WATCHED.pack(b"watched", 7)):
            zygote.send(message)
        client = IdleClient(supervisor)
        assert client.watch(1) == 7
        zygote.close()
        client.wait(60)
        assert client.watch(1) == 0


def test_who_waits_looks_every_now_and_then():
    supervisor, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with supervisor, zygote:
        assert IdleClient(supervisor).wait(0), "and comes back, though nobody says anything"
        zygote.send(RAN)
        zygote.send(WATCHED.pack(b"watched", 7))
        assert IdleClient(supervisor).watch(1) == 7


@pytest.fixture
def switch():
    made = DeadMansSwitch()
    yield made
    made.close()


def test_who_sleeps_is_woken_when_the_zygote_looks_no_more(switch):
    supervisor, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with supervisor, zygote:
        client = IdleClient(supervisor, switch.descriptor)
        zygote.send(WATCHED.pack(b"watched", 7))
        assert client.watch(1) == 7
        switch.put_off(600)
        assert client.wait(0)
        switch.put_off(0.01)
        assert not client.wait(600)
        switch.put_off(600)
        zygote.send(RAN)
        assert not client.wait(600)


def test_a_zygote_that_does_not_answer_is_asked_once_until_it_does(monkeypatch):
    monkeypatch.setattr(idle_watch, "ANSWER_SECONDS", 0)
    supervisor, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with supervisor, zygote:
        zygote.setblocking(False)
        client = IdleClient(supervisor)
        assert [client.watch(1) for _ in range(3)] == [0, 0, 0]
        assert zygote.recv(64) == question(1)
        with pytest.raises(BlockingIOError):
            zygote.recv(64)
        for message in (WATCHED.pack(b"watched", 7), RAN):  # it goes on
            zygote.send(message)
        assert client.watch(2) == 0
        assert zygote.recv(64) == question(2)
        zygote.send(WATCHED.pack(b"watched", 3))
        assert client.watch(2) == 0, "that was the answer to the question before"
        assert zygote.recv(64) == question(2)


def test_memory_that_a_guest_gets_without_running_is_seen(monkeypatch):
    """As khugepaged gives it."""
    monkeypatch.setattr(memory_watch, "SLEEP_SECONDS", 0.01)
    asked, none = threading.Event(), socket.socket()
    idle = types.SimpleNamespace(watch=lambda _: asked.set() or 2, wait=time.sleep)
    with none, subprocess.Popen(["sleep", "600"]) as process:
        pidfd = os.pidfd_open(process.pid)
        watch = memory_watch.MemoryWatch(pidfd, 1 << 20, none, idle=idle)
        watch.look = lambda **_: memory_watch.Seen(2, (1 << 30) * asked.is_set(), 0, 0)
        watch.start()
        assert process.wait(60) == -signal.SIGKILL
    os.close(pidfd)


def test_a_process_that_runs_is_seen_by_its_clock():
    before = time.clock_gettime_ns(clock_of(os.getpid()))
    sum(range(100_000))
    assert time.clock_gettime_ns(clock_of(os.getpid())) > before


@pytest.mark.sandbox
def test_an_enclave_that_does_nothing_is_not_looked_at_until_it_takes_memory(tmp_path):
    """It has three processes beside its first, and begins by itself: nobody has to call it for that."""
    code = """
for _ in range(2):
    if os.fork() == 0:
        time.sleep(600)
if os.fork() == 0:
    time.sleep(5)
    for _ in range(20):
        if os.fork() == 0:
            held = bytearray(os.urandom(1)) * (20 << 20)
            time.sleep(600)
    time.sleep(600)
"""
    image = build(tmp_path, '{ memory = "64MiB" }')
    before = children(os.getpid())
    client = adyton.load(image)
    (supervisor,) = [pid for pid in children(os.getpid()) - before if status(pid)["Name"] == "adyton-super"]
    client.call("execute", code)
    assert stops(supervisor), "the guest does nothing, and is looked at all the same"
    with pytest.raises(adyton.errors.ConnectionLostError, match="more memory than its limit"):
        client.call("execute", "time.sleep(60)")
    with pytest.raises(adyton.errors.ConnectionLostError):
        client.close()


@pytest.mark.sandbox
def test_enclaves_that_sleep_are_looked_at_while_their_zygote_is_stopped(tmp_path):
    code = """
import builtins
reader, builtins.writer = os.pipe()
for _ in range(20):
    if os.fork() == 0:
        os.read(reader, 1)
        held = bytearray(os.urandom(1)) * (20 << 20)
        time.sleep(600)
"""
    before = children(os.getpid())
    client = adyton.load(build(tmp_path, '{ memory = "64MiB" }'))
    started = {status(pid)["Name"]: pid for pid in children(os.getpid()) - before}
    client.call("execute", code)
    assert stops(started["adyton-super"])
    ended = os.pidfd_open(started["adyton-super"])
    os.kill(started["adyton-zygote"], signal.SIGSTOP)
    try:
        client.call("execute", "import builtins; os.write(builtins.writer, bytes(20))")
        assert select.select([ended], [], [], 30)[0], "nobody has looked"
    finally:
        os.kill(started["adyton-zygote"], signal.SIGCONT)
        os.close(ended)
    with pytest.raises(adyton.errors.ConnectionLostError):
        client.close()


def stops(process):
    """Whether all of its threads come to not running for more than the longest pause between two looks."""
    runs = []
    for _ in range(6):
        found = []
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/schedstat") as file:
                found.append(file.read())
        runs.append(found)
        if runs[-1] in runs[:-1]:
            return True
        time.sleep(IDLE_SECONDS + 0.2)
    return False
