"""The memory of all of an enclave's processes together: bounded, by file systems or by the watch, and nobody else's trouble."""

from __future__ import annotations

import os
import threading

import pytest
from greedy import answers, build
from sandbox import children, wait_until_ended

import adyton

sandboxed = pytest.mark.sandbox


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
    "processes that share it with those that they fork for a moment": """
for _ in range(12):
    if os.fork() == 0:
        held, started = mmap.mmap(-1, 20 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), []
        while True:
            if (child := os.fork()) == 0:
                time.sleep(0.02)
                os._exit(0)
            started.append(child)
            if len(started) > 10:
                os.waitpid(started.pop(0), 0)
                held.write(bytes(min(1 << 20, len(held) - held.tell())))
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
    assert "used more memory than its limit of" in str(error)
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


HINDERS = """
cached, direct = os.open({path!r}, os.O_RDWR), os.open({path!r}, os.O_RDWR | os.O_APPEND)
if os.fork() == 0:
    mapped = mmap.mmap(cached, 4096)
    mapped[0] = 1
    mmap.mmap(direct, 4096)  # has the process's memory locked until that is written
time.sleep(1)
if os.fork() == 0:
    held = bytearray(os.urandom(1)) * (15 << 20)
    for _ in range(8):
        os.fork() == 0 and time.sleep(600)
    time.sleep(600)
time.sleep(1)
for _ in range(14):
    if os.fork() == 0:
        held = bytearray(os.urandom(1)) * (15 << 20)
        time.sleep(600)
time.sleep(600)
"""


@sandboxed
def test_who_takes_memory_is_ended_though_its_client_does_not_write_what_an_exact_look_waits_for(
    image, tmp_path, monkeypatch
):
    goes_on, write = threading.Event(), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *arguments: (goes_on.wait(60), write(*arguments))[1])
    file = tmp_path / "file"
    file.write_bytes(bytes(4096))
    policy = adyton.Policy.parse(f'[[mount]]\npath = "{tmp_path}"\ncoherence = "strict"\n', name="test", base="/")
    client = adyton.load(image, policy=policy, allow_write=[str(tmp_path)])
    # On a busy machine its looks may come too late, which ends it as well.
    reasons = "more memory than its limit|could not be seen for too long"
    with pytest.raises(adyton.errors.ConnectionLostError, match=reasons):
        client.call("execute", HINDERS.format(path=str(file)))
    goes_on.set()
    with pytest.raises(adyton.errors.ConnectionLostError):
        client.close()


@sandboxed
def test_what_was_sent_by_who_is_gone_counts_about_what_it_takes(kept):
    """As results do that processes leave in a `multiprocessing.Pipe` when they end."""
    code = """
held = []
for _ in range(60):
    one, other = socket.socketpair()
    one.sendall(bytes(100_000))
    one.close()
    held.append(other)
time.sleep(0.5)  # looks of the watch
result = sum(len(each.recv(200_000)) for each in held)
for each in held: each.close()
"""
    assert kept.call("execute", code) > 60 * 30_000
    assert answers(kept)


@sandboxed
def test_connections_that_processes_have_in_common_are_not_taken_for_pipes(kept):
    code = """
held = [socket.socketpair() for _ in range(380)]
reader, writer = os.pipe()
processes = []
for _ in range(20):
    if (child := os.fork()) == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    processes.append(child)
time.sleep(0.5)  # looks of the watch
os.close(writer)
os.close(reader)
result = [os.waitpid(child, 0)[1] for child in processes]
for one, other in held:
    one.close()
    other.close()
"""
    assert kept.call("execute", code) == [0] * 20
    assert answers(kept)


@sandboxed
def test_what_may_wait_in_a_socket_of_the_enclaves_own_is_bounded_whatever_the_server_allows(kept):
    code = """
one, other = socket.socketpair()
result = []
for asked in (100_000, 8 << 20, -1):
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, asked)
    result.append(one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
try:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, b"x")
except OSError as error:
    result.append(errno.errorcode[error.errno])
one.close()
other.close()
"""
    small, *large, error = kept.call("execute", code)
    assert (small, error) == (200_000, "EINVAL")
    assert set(large) in ({425_984}, {524_288}), "the first where the server has the usual wmem_max"


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
def test_what_a_program_has_while_several_threads_start_others_at_once_counts_once(tmp_path):
    """As compiled code does: Python's own holds its lock meanwhile."""
    code = """
import ctypes
libc = ctypes.CDLL(None)
os.mkfifo("/tmp/later")
later = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1); file = open('/tmp/later'); time.sleep(1)"])
held = bytearray(200 << 20)
held[::4096] = b"x" * (len(held) >> 12)
actions = ctypes.create_string_buffer(256)  # posix_spawn_file_actions_t
libc.posix_spawn_file_actions_init(actions)
libc.posix_spawn_file_actions_addopen(actions, 3, b"/tmp/later", os.O_WRONLY, 0)
command = (ctypes.c_char_p * 4)(os.fsencode(sys.executable), b"-c", b"", None)
result = []
def spawn():
    started = ctypes.c_int()
    result.append(libc.posix_spawn(ctypes.byref(started), command[0], actions, None, command, (ctypes.c_char_p * 1)(None)))
    result.append(os.waitpid(started.value, 0)[1])
threading.stack_size(256 << 10)
threads = [threading.Thread(target=spawn) for _ in range(6)]
for each in threads: each.start()
for each in threads: each.join()
result.append(later.wait())
"""
    with adyton.load(build(tmp_path, '{ memory = "256MiB" }')) as client:
        assert client.call("execute", code) == [0] * 13


@sandboxed
def test_who_forks_all_the_time_is_not_ended_for_what_its_processes_share(tmp_path):
    code = """
held = bytearray(os.urandom(1)) * (200 << 20)
started = []
for _ in range(80):
    if (child := os.fork()) == 0:
        held[: 64 << 12 : 4096] = b"x" * 64
        time.sleep(0.03)
        os._exit(0)
    started.append(child)
    if len(started) > 40:
        os.waitpid(started.pop(0), 0)
result = sum(os.waitpid(child, 0)[1] for child in started)
"""
    with adyton.load(build(tmp_path, '{ memory = "256MiB" }')) as client:
        assert client.call("execute", code) == 0


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
