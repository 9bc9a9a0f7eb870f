"""The memory of all of an enclave's processes together: bounded, by file systems or by the watch, and nobody else's trouble."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types

import pytest
from greedy import answers, build
from hypothesis import given
from hypothesis import strategies as st
from sandbox import children, wait_until_ended

import adyton
from adyton.runtime.process.namespaces import open_diagnosis
from adyton.runtime.process.supervisor import memory_lent, memory_watch
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.memory_watch import EACH, TOGETHER, MemoryWatch, size_in
from adyton.runtime.process.supervisor.socket_memory import listed, queued

sandboxed = pytest.mark.sandbox
MIB = 1 << 20


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return build(tmp_path_factory.mktemp("greedy"), '{ memory = "64MiB", threads = 200, files = 4096 }')


@pytest.fixture(scope="module")
def neighbour(image):
    with adyton.load(image) as client:
        yield client


@pytest.fixture(scope="module")
def kept(image):
    """An enclave that is not ended by what the test does."""
    with adyton.load(image) as client:
        yield client


# -- what is ended ---------------------------------------------------------------------------------------------------------

ATTACKS = {
    "processes": """
for _ in range(20):
    if os.fork() == 0:
        held = bytearray(os.urandom(1)) * (20 << 20)
        time.sleep(600)
time.sleep(600)
""",
    "orphans": """
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            held = bytearray(os.urandom(1)) * (20 << 20)
            time.sleep(600)
        os._exit(0)
time.sleep(600)
""",
    "processes whose first threads have ended": """
import ctypes
libc = ctypes.CDLL(None)
def take():
    held = bytearray(os.urandom(1)) * (20 << 20)
    time.sleep(600)
for _ in range(20):
    if os.fork() == 0:
        threading.Thread(target=take).start()
        libc.syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
time.sleep(600)
""",
    "processes that wait for what they start": """
os.mkfifo("/tmp/nobody")
for _ in range(20):
    if os.fork() == 0:
        held = bytearray(os.urandom(1)) * (20 << 20)
        output = (os.POSIX_SPAWN_OPEN, 1, "/tmp/nobody", os.O_WRONLY, 0)
        os.posix_spawn(sys.executable, [sys.executable], {}, file_actions=[output])
time.sleep(600)
""",
    "shared anonymous memory": """
held = []
while True:
    held.append(mmap.mmap(-1, 16 << 20))
    held[-1].write(bytes(16 << 20))
""",
    "sockets": """
held = []
while True:
    held += socket.socketpair()
    held[-1].setblocking(False)
    try:
        while True:
            held[-1].send(bytes(1 << 16))
    except BlockingIOError:
        pass
""",
    "sockets on their way through sockets": """
many = []
first, last = socket.socketpair()
first.setblocking(False)
while True:
    one, other = socket.socketpair()
    one.setblocking(False)
    try:
        while True:
            one.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    try:
        socket.send_fds(first, [b"x"], [other.fileno()])
    except OSError:  # full
        kept = first, last
        first, last = socket.socketpair()
        first.setblocking(False)
        many.append(kept)
    one.close()
    other.close()
""",
    "pipes": """
held = []
while True:
    try:
        held += os.pipe()
        os.set_blocking(held[-1], False)
        while True:
            os.write(held[-1], bytes(1 << 16))
    except BlockingIOError:
        pass
    except OSError:  # no more descriptors
        if os.fork():
            time.sleep(600)
        os.closerange(held[0], 1 << 16)
        held = []
""",
}


@sandboxed
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_enclave_that_takes_too_much_is_ended_with_a_reason_and_nobody_else_notices(
    attack, image, neighbour, on_the_server
):
    before = children(os.getpid())
    client = adyton.load(image)
    started = children(os.getpid()) - before
    ended: list[BaseException] = []

    def run() -> None:
        try:
            client.call("execute", ATTACKS[attack])
        except adyton.AdytonError as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        assert answers(neighbour)
        thread.join(0.01)
    (error,) = ended
    assert isinstance(error, adyton.errors.ConnectionLostError)
    assert "the enclave was ended: it used more memory than its limit of" in str(error)
    assert "raise limits.memory" in str(error)
    left = children(os.getpid()) - before
    with pytest.raises(adyton.errors.ConnectionLostError):
        client.close()
    assert wait_until_ended(started | left) == set()
    assert answers(neighbour)


@sandboxed
def test_memory_that_processes_have_in_common_counts_once(kept):
    code = """
held = bytearray(os.urandom(1)) * (20 << 20)
reader, writer = os.pipe()
processes = []
for _ in range(12):
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    processes.append(child)
for _ in range(10):  # looks of the watch
    time.sleep(0.1)
os.close(writer)
os.close(reader)
result = [os.waitpid(child, 0)[1] for child in processes]
"""
    assert kept.call("execute", code) == [0] * 12
    assert answers(kept)


# -- files in memory -------------------------------------------------------------------------------------------------------


@sandboxed
def test_what_a_program_has_while_it_starts_another_counts_once(tmp_path):
    """By vfork, as posix_spawn and subprocess do, and for as long as the watch needs to see it several times."""
    code = """
os.mkfifo("/tmp/later")
later = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5); open('/tmp/later').read()"])
held = bytearray(200 << 20)
held[::4096] = b"x" * (len(held) >> 12)
output = (os.POSIX_SPAWN_OPEN, 1, "/tmp/later", os.O_WRONLY, 0)
started = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {}, file_actions=[output])
result = [os.waitpid(started, 0)[1], later.wait()]
"""
    with adyton.load(build(tmp_path, '{ memory = "256MiB" }')) as client:
        assert client.call("execute", code) == [0, 0]


@sandboxed
def test_files_in_memory_are_bounded_wherever_they_are_kept(kept):
    code = """
first, last = socket.socketpair()
written = 0
try:
    while True:
        file = os.memfd_create("x")
        for _ in range(4):
            written += os.write(file, bytes(1 << 20))
        socket.send_fds(first, [b"x"], [file])
        os.close(file)
except OSError as error:
    result = [errno.errorcode[error.errno], 60 <= written >> 20 <= 64]
first.close()
last.close()
file = os.memfd_create("x")
os.ftruncate(file, 1 << 40)
page = mmap.mmap(file, 1)
try:
    os.posix_fallocate(file, 0, 100 << 20)
except OSError as error:
    result.append(errno.errorcode[error.errno])
os.close(file)
page.close()
"""
    assert kept.call("execute", code) == ["ENOSPC", True, "ENOSPC"]
    assert answers(kept)


@sandboxed
def test_files_in_memory_are_as_the_kernels_but_for_seals(kept):
    code = """
import ctypes, fcntl, stat
libc = ctypes.CDLL(None, use_errno=True)
def refusal(call):
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]
def create(flags):
    if libc.memfd_create(b"x", ctypes.c_uint(flags)) < 0:
        raise OSError(ctypes.get_errno(), "")
plain, closed = os.memfd_create("x", 0), os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
result = [os.get_inheritable(plain), os.get_inheritable(closed), stat.S_ISREG(os.fstat(plain).st_mode), os.fstat(plain).st_nlink]
os.write(plain, b"abc")
result += [os.pread(plain, 9, 0).decode(), os.lseek(plain, 0, os.SEEK_CUR)]
shared = mmap.mmap(closed, 0x1000) if not os.ftruncate(closed, 0x1000) else None
shared[:1] = b"y"
result.append(os.read(closed, 1).decode())
result.append(refusal(lambda: fcntl.fcntl(closed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)))
result += [refusal(lambda: create(os.MFD_HUGETLB)), refusal(lambda: create(1 << 31))]
result.append(subprocess.run([sys.executable, "-c", f"import os; print(os.pread({plain}, 9, 0))"], close_fds=False, capture_output=True, text=True).stdout)
held = []
try:
    while True:
        held.append(os.memfd_create("x"))
except OSError as error:
    result.append(errno.errorcode[error.errno])
for each in [plain, closed, *held]:
    os.close(each)
"""
    expected = [True, False, True, 0, "abc", 3, "y", "EPERM", "EINVAL", "EINVAL", "b'abc'\n", "EMFILE"]
    assert kept.call("execute", code) == expected


@sandboxed
def test_what_nothing_bounds_is_not_there(kept):
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
result = []
calls = [lambda: libc.shmget(0, 1 << 20, 0o1600), lambda: libc.semget(0, 1, 0o1600), lambda: libc.msgget(0, 0o1600)]
calls += [lambda: libc.syscall(447, 0), lambda: libc.vmsplice(1, None, 0, 0)]
for call in calls:
    result.append(errno.errorcode[ctypes.get_errno()] if call() < 0 else "done")
"""
    assert kept.call("execute", code) == ["ENOSYS"] * 5


# -- the watch itself ------------------------------------------------------------------------------------------------------


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


def thread(proc, process, name, call, state="D (disk sleep)", runs=(3, 1)):
    folder = proc.folder / process / "task" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "syscall").write_text(call)
    lines = f"voluntary_ctxt_switches:\t{runs[0]}\nnonvoluntary_ctxt_switches:\t{runs[1]}\n"
    (folder / "status").write_text(f"Name:\tx\nState:\t{state}\n{lines}")


CLONE = memory_lent._CLONE
WAITS = f"{CLONE} 0x4111 0x1 0x0 0x0 0x0 0x0 0x7ffc 0x7f00\n"


def test_what_a_process_lends_counts_once_up_to_the_limit(proc):
    proc.write(each=200, together=200)
    thread(proc, "1", "1", WAITS)
    assert watching(proc, 200 * MIB).look().memory == 200 * MIB
    assert watching(proc, 50 * MIB).look().memory == 350 * MIB


@pytest.mark.parametrize(
    ("call", "state"),
    [
        (WAITS, "T (stopped)"),
        (WAITS, "S (sleeping)"),
        ("running\n", "R (running)"),
        ("-1 0x7ffc 0x7f00\n", "D (disk sleep)"),
        (WAITS.replace("0x4111", "0x4011"), "D (disk sleep)"),
        (WAITS.replace("0x4111", "0x14111"), "D (disk sleep)"),
        (WAITS.replace("0x4111", "0x10004111"), "D (disk sleep)"),
        ("0 0x4111 0x1 0x0 0x0 0x0 0x0 0x7ffc 0x7f00\n", "D (disk sleep)"),
    ],
)
def test_who_does_not_wait_lends_nothing(proc, call, state):
    thread(proc, "1", "1", call, state)
    assert not memory_lent.waiting(str(proc.folder))


def test_who_ran_meanwhile_lends_nothing(proc):
    found = []
    for runs in ((3, 1), (4, 1), (4, 2), (4, 2)):
        thread(proc, "1", "7", WAITS, runs=runs)
        found.append(memory_lent.waiting(str(proc.folder)))
    assert [dict(memory_lent.lent(*each)) for each in itertools.pairwise(found)] == [{}, {}, {"1": 1}]


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
        self.waits.set()
        self.runs.wait(seconds)


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
