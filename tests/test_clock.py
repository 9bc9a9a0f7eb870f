"""An enclave's realtime clock is its client's: it goes on by itself, and never backwards, whatever the client says."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile import Ward
from hypothesis import given
from hypothesis import strategies as st

import adyton
from adyton.communicator.messages import Grant, LoadRequest, Raised, decode
from adyton.errors import UsageError
from adyton.hostcall import abi
from adyton.remote.time_teller import EVERY, STEP, TimeTeller
from adyton.runtime.process import vdso
from adyton.runtime.process.supervisor.clock import EARLIEST, LATEST, TIME, Clock
from adyton.runtime.process.vdso_stubs import CODE, HEAD, MOVE

HOUR = 3600 * 10**9
replaceable = pytest.mark.skipif(platform.machine() != "x86_64", reason="NOT X86-64: clocks are the server's")


@pytest.fixture
def page():
    """A file of one page, and what is written at its start."""
    file = os.memfd_create("offset")
    os.ftruncate(file, vdso.PAGE)
    yield file
    os.close(file)


def offset(file: int) -> int:
    return TIME.unpack(os.pread(file, TIME.size, 0))[0]


# -- when the client says what time it is -----------------------------------------------------------------------------------


def test_the_time_is_told_again_when_the_clients_clock_was_set_and_now_and_then():
    realtime, monotonic = [10**18], [5]
    teller = TimeTeller(lambda: realtime[0], lambda: monotonic[0])
    assert not teller.due()
    assert teller.told() == 10**18
    for clocks in (realtime, monotonic):
        clocks[0] += EVERY - 1
    assert not teller.due()
    realtime[0] += STEP
    assert not teller.due()
    realtime[0] += 1
    assert teller.due()
    teller.told()
    realtime[0] -= STEP + 1
    assert teller.due()
    teller.told()
    for clocks in (realtime, monotonic):
        clocks[0] += EVERY
    assert teller.due()


# -- what an enclave makes of it --------------------------------------------------------------------------------------------


def test_until_the_client_has_said_something_the_clock_is_the_servers(page):
    clock = Clock(os.dup(page))
    clock.load(0)
    clock.tell(TIME.pack(time.time_ns() + HOUR))
    assert offset(page) == 0
    assert abs(clock.now() - time.time_ns()) < HOUR // 2


def test_an_image_that_wants_the_servers_clock_has_it():
    clock = Clock(None)
    clock.load(time.time_ns() + HOUR)
    assert abs(clock.now() - time.time_ns()) < HOUR // 2


@pytest.mark.parametrize("said", [1, -1, EARLIEST - 1, LATEST, (1 << 63) - 1, -(1 << 63)])
def test_a_load_with_a_time_that_cannot_be_is_refused(page, said):
    with pytest.raises(UsageError, match='time = "server"'):
        Clock(os.dup(page)).load(said)
    assert offset(page) == 0


TOLD = st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(EARLIEST, LATEST))


@given(st.lists(st.tuples(st.integers(0, 10**12), st.one_of(TOLD.map(TIME.pack), st.binary(max_size=20)))))
def test_no_clock_of_an_enclave_runs_backwards_or_out_of_range(steps):
    now = [1000]
    file = os.memfd_create("offset")
    os.ftruncate(file, vdso.PAGE)
    clock = Clock(os.dup(file), lambda: now[0])
    clock.load(EARLIEST + HOUR)
    shown = clock.now()
    assert shown == EARLIEST + HOUR
    for passed, body in steps:
        now[0] += passed
        assert clock.now() == shown + passed
        clock.tell(body)
        assert clock.now() >= shown + passed
        shown = clock.now()
        assert offset(file) + now[0] == shown
        assert shown < LATEST + 10**12 * (len(steps) + 1)
        if len(body) == TIME.size and EARLIEST <= TIME.unpack(body)[0] < LATEST:
            assert shown >= TIME.unpack(body)[0]
    os.close(file)


# -- the functions of the vDSO ------------------------------------------------------------------------------------------------

IN_A_PROCESS = """
import ctypes, os, struct, sys, threading, time
from adyton.runtime.process import vdso

libc = ctypes.CDLL(None)
libc.time.restype = ctypes.c_long

class Timeval(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("microseconds", ctypes.c_long))

def gettimeofday():
    value = Timeval()
    assert libc.gettimeofday(ctypes.byref(value), None) == 0
    assert 0 <= value.microseconds < 10**6
    return value.seconds * 10**9 + value.microseconds * 1000

REAL = {
    "time": time.time_ns, "coarse": lambda: time.clock_gettime_ns(5), "tai": lambda: time.clock_gettime_ns(11),
    "gettimeofday": gettimeofday, "seconds": lambda: libc.time(None) * 10**9,
}

def ahead():
    now = time.clock_gettime_ns(1) + (before[0] - before[1])  # the machine's
    return {name: round((read() - now) / 3.6e12, 2) for name, read in REAL.items()}

before = time.time_ns(), time.clock_gettime_ns(1), time.clock_gettime_ns(7), time.process_time_ns()
vdso.install()
assert vdso.installed()
assert ahead() == dict.fromkeys(REAL, 0.0), ahead()
file = os.memfd_create("offset")
os.ftruncate(file, 4096)
vdso.follow(file)
assert ahead() == dict.fromkeys(REAL, 0.0), ahead()

def set(hours):
    os.pwrite(file, struct.pack("<q", before[0] - before[1] + int(hours * 3.6e12)), 0)

set(1)
assert ahead() == dict.fromkeys(REAL, 1.0), ahead()
set(25)
assert ahead() == dict.fromkeys(REAL, 25.0), ahead()
assert abs(time.clock_gettime_ns(1) - before[1]) < 60e9 and abs(time.clock_gettime_ns(7) - before[2]) < 60e9
assert 0 <= time.process_time_ns() - before[3] < 60e9
assert time.clock_getres(0) > 0 and libc.sched_getcpu() >= 0 and len(os.urandom(8)) == 8
assert libc.gettimeofday(None, None) == 0
zone = (ctypes.c_int * 2)(7, 7)
assert libc.gettimeofday(ctypes.byref(Timeval()), zone) == 0 and list(zone) == [0, 0]
for invalid in (12, 99, -1):
    try:
        time.clock_gettime(invalid)
    except OSError:
        continue
    raise AssertionError(invalid)

child = os.fork()
if child == 0:
    os._exit(ahead() != dict.fromkeys(REAL, 25.0))
assert os.waitpid(child, 0)[1] == 0

wrong = []
def read():
    last = time.time_ns()
    for _ in range(20_000):
        now = time.time_ns()
        if now < last:
            wrong.append((last, now))
        last = now
threads = [threading.Thread(target=read) for _ in range(3)]
for thread in threads:
    thread.start()
hours = 25.0
while any(thread.is_alive() for thread in threads):
    set(hours := hours + 0.001)
for thread in threads:
    thread.join()
assert not wrong, wrong[:3]
print("done")
"""


@replaceable
def test_all_realtime_functions_of_a_process_follow_the_offset_and_nothing_else_does():
    done = subprocess.run([sys.executable, "-c", IN_A_PROCESS], check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


@replaceable
@pytest.mark.parametrize("option", ["tracemalloc=9", "dev"])
def test_an_interpreter_that_asks_for_the_time_at_each_allocation_can_have_another_vdso(option):
    code = "from adyton.runtime.process import vdso; import time; vdso.install(); print(time.time() > 1e9)"
    done = subprocess.run([sys.executable, "-X", option, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n")


@replaceable
def test_moves_are_all_done_or_none():
    code = mmap.mmap(-1, vdso.PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code[: HEAD.size + len(CODE)] = bytes(HEAD.size) + CODE
    function = ctypes.addressof(ctypes.c_char.from_buffer(code)) + MOVE
    writable, private = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    first, second, free = (vdso._mmap(None, 2 * vdso.PAGE, writable, private) for _ in range(3))
    ctypes.memmove(first, b"first", 5)
    with pytest.raises(vdso.VdsoError, match="mremap"):
        vdso._move(function, [(first, vdso.PAGE, free), (second, vdso.PAGE, free + vdso.PAGE), (1, vdso.PAGE, second)])
    assert ctypes.string_at(first, 5) == b"first"
    vdso._move(function, [(first, vdso.PAGE, free)])
    assert ctypes.string_at(free, 5) == b"first"


@replaceable
@given(st.data())
def test_a_vdso_that_is_not_as_it_is_known_is_left_alone(data):
    image = bytearray(_image())
    for _ in range(data.draw(st.integers(1, 8))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(image[: data.draw(st.integers(0, len(image)))])
    for each in (bytes(image), cut):
        try:
            found = vdso._functions(each)
        except vdso.VdsoError:
            continue
        assert all(0 <= place <= len(each) - 18 for place in found.values())


@replaceable
def test_a_vdso_whose_names_lie_nowhere_is_left_alone():
    image = bytearray(_image())
    at = image.index((5).to_bytes(8, "little"), 0x200)  # DT_STRTAB
    image[at + 8 : at + 16] = b"\xff" * 8
    with pytest.raises(vdso.VdsoError):
        vdso._functions(bytes(image))


def _image() -> bytes:
    start, end = vdso._areas()[-1]
    return ctypes.string_at(start, end - start)


# -- in an enclave ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ward")
    directory.chmod(0o755)
    ward = Ward(directory)
    yield ward
    ward.close()


def load_at(client, ahead: int, **fields):
    return client.load(LoadRequest(b"", [], "/nowhere", "", {}, time=time.time_ns() + ahead, **fields))


def ahead(client, code: str = "time.time_ns()") -> float:
    """By how many hours that is ahead of this machine's clock."""
    return round((client.enter("execute", f"result = {code}") - time.time_ns()) / HOUR, 2)


@pytest.mark.sandbox
@replaceable
def test_the_clock_is_the_clients_in_each_process_of_an_enclave_and_in_its_files(ward):
    with ward.enclave() as client:
        assert load_at(client, HOUR).ok
        assert ahead(client) == 1
        started = (
            "int(__import__('subprocess').check_output([sys.executable, '-c', 'import time; print(time.time_ns())']))"
        )
        assert ahead(client, started) == 1
        forked = "(lambda ends: (os.fork() or (os.write(ends[1], b'%d' % time.time_ns()), os._exit(0))) and int(os.read(ends[0], 64)))(os.pipe())"
        assert ahead(client, forked) == 1
        assert ahead(client, "time.monotonic_ns()") < 0  # the kernel's


@pytest.mark.sandbox
@replaceable
def test_private_files_have_times_of_the_same_clock(ward):
    with ward.enclave(lambda _request: abi.Attributes("directory", 8, 0, 0o755, 1, 0, 0, 0)) as client:
        request = LoadRequest(b"", [Grant("/tmp/there", "read")], "/nowhere", "", {}, time=time.time_ns() + HOUR)
        assert client.load(request).ok
        code = "(lambda file: os.fstat(file).st_mtime_ns)(os.open('/tmp/private', os.O_CREAT | os.O_WRONLY))"
        assert ahead(client, code) == 1


@pytest.mark.sandbox
@replaceable
def test_a_client_whose_clock_runs_backwards_sets_no_enclave_back(ward):
    with ward.enclave() as client:
        assert load_at(client, HOUR).ok
        shown = client.enter("execute", "result = time.time_ns()")
        for said in (time.time_ns() - HOUR, 0, -1, EARLIEST, LATEST):
            client.session.notify("time", TIME.pack(said))
            now = client.enter("execute", "result = time.time_ns()")
            assert now > shown
            shown = now
        for body in (b"", b"1234567", b"123456789", bytes(1000)):
            client.session.notify("time", body)
        assert ahead(client) == 1
        client.session.notify("time", TIME.pack(time.time_ns() + 3 * HOUR))
        assert ahead(client) == 3


@pytest.mark.sandbox
@replaceable
def test_a_load_at_a_time_that_cannot_be_is_refused_with_the_reason(ward):
    with ward.enclave() as client:
        replied = client.load(LoadRequest(b"", [], "/nowhere", "", {}, time=1))
        assert not replied.ok
        assert "set it, or give the image" in decode(replied.body, Raised).message


@pytest.mark.sandbox
@replaceable
def test_a_program_cannot_change_what_its_supervisor_writes(ward):
    with ward.enclave() as client:
        assert load_at(client, HOUR).ok
        code = """
result = []
for step in (
    lambda: os.open("/opt/adyton/clock/offset", os.O_RDWR),
    lambda: os.truncate("/opt/adyton/clock/offset", 0),
    lambda: os.chmod("/opt/adyton/clock/offset", 0o777),
    lambda: os.unlink("/opt/adyton/clock/offset"),
    lambda: os.open("/proc/self/map_files/" + next(n for n in os.listdir("/proc/self/map_files")), os.O_RDWR),
):
    try:
        result.append(repr(step()))
    except OSError as error:
        result.append(errno.errorcode[error.errno])
"""
        assert set(client.enter("execute", code)) <= {"EACCES", "EPERM", "EROFS"}
        assert ahead(client) == 1


PROJECT = """
[tool.adyton.enclave.look]
entry = "look:enclave"
time = "{}"
"""
PROGRAM = """
import os, time
from adyton import trusted
enclave = trusted.Enclave("look")

@enclave.entry
def look() -> list:
    return [time.time_ns(), os.path.exists("/opt/adyton/clock/offset")]
"""


@pytest.mark.sandbox
@replaceable
def test_an_image_says_whose_clock_it_wants(workplace, on_the_server, monkeypatch):
    from adyton.image.project import build_project

    monkeypatch.setattr("adyton.remote.proxy_client.TimeTeller", lambda: TimeTeller(lambda: time.time_ns() + HOUR))
    Path("look.py").write_text(PROGRAM)
    for whose, hours in (("server", 0), ("client", 1)):
        Path("pyproject.toml").write_text(PROJECT.format(whose))
        (built,) = build_project(".")
        with adyton.load(built.path) as enclave:
            now, followed = enclave.call("look")
        assert round((now - time.time_ns()) / HOUR) == hours
        assert followed is (whose == "client")
    Path("pyproject.toml").write_text(PROJECT.format("nobody"))
    with pytest.raises(UsageError, match=r"time"):
        build_project(".")


@pytest.mark.sandbox
@replaceable
def test_a_clients_clock_that_is_set_while_a_call_runs_is_told(workplace, on_the_server, monkeypatch):
    shift = [HOUR]
    monkeypatch.setattr("adyton.remote.proxy_client.TimeTeller", lambda: TimeTeller(lambda: time.time_ns() + shift[0]))
    Path("wait.py").write_text(
        "import time\n"
        "def wait(until: int) -> int:\n"
        "    while time.time_ns() < until:\n"
        "        time.sleep(0.01)\n"
        "    return time.time_ns()\n"
    )
    with adyton.load("wait.py") as enclave:
        future = enclave.submit("wait", time.time_ns() + 5 * HOUR)
        shift[0] = 6 * HOUR
        assert round((future.result(60) - time.time_ns()) / HOUR) == 6
