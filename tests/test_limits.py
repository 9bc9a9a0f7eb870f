"""Limits of an image: what a program that wants more gets, and that it is nobody else's trouble."""

from __future__ import annotations

import os
import signal
import textwrap

import pytest
from greedy import answers, build
from sandbox import children, enclave, start_zygote, wait_until_ended

import adyton
from adyton.errors import UsageError

LIMITS = '{ memory = "128MiB", threads = 24, files = 64 }'


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    return build(tmp_path_factory.mktemp("limited"), LIMITS)


@pytest.fixture(scope="module")
def greedy(limited):
    with adyton.load(limited) as client:
        yield client


@pytest.fixture(scope="module")
def neighbour(limited):
    with adyton.load(limited) as client:
        yield client


@pytest.mark.sandbox
def test_memory_ends_in_a_memory_error_in_each_process(greedy, neighbour):
    code = """
def fill():
    held = []
    try:
        while True:
            held.append(bytes(1 << 20))
    except MemoryError:
        return len(held)
result = [16 < fill() <= 128]
child = os.fork()
if child == 0:
    os._exit(16 < fill() <= 128)
result.append(os.waitpid(child, 0)[1] >> 8)
asked = "try: bytes(1 << 30)\\nexcept MemoryError: print('MemoryError')"
result.append(subprocess.check_output([sys.executable, "-c", asked], text=True))
"""
    assert greedy.call("execute", code) == [True, 1, "MemoryError\n"]
    assert answers(greedy)
    assert answers(neighbour)


@pytest.mark.sandbox
def test_file_systems_in_memory_are_bounded_by_it_too(greedy):
    code = """
result = []
for path in ("/dev/shm/big", "/tmp/big"):
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, 130 << 20)
        except OSError as error:
            result.append(errno.errorcode[error.errno])
    os.unlink(path)
"""
    assert set(greedy.call("execute", code)) <= {"ENOSPC", "EOPNOTSUPP"}  # the latter where /tmp is not in memory


@pytest.mark.sandbox
def test_threads_end_in_a_runtime_error_and_processes_in_eagain(greedy, neighbour):
    code = """
done = threading.Event()
threads, processes = [], []
try:
    while len(threads) < 200:
        thread = threading.Thread(target=done.wait)
        thread.start()
        threads.append(thread)
except RuntimeError as error:
    result = [str(error)]
done.set()
for thread in threads:
    thread.join()
result.append(10 < len(threads) < 24)
reader, writer = os.pipe()
try:
    while len(processes) < 200:
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        processes.append(child)
except BlockingIOError as error:
    result.append(errno.errorcode[error.errno])
os.close(writer)
os.close(reader)
for child in processes:
    os.waitpid(child, 0)
result.append(10 < len(processes) < 24)
"""
    assert greedy.call("execute", code) == ["can't start new thread", True, "EAGAIN", True]
    assert answers(greedy)
    assert answers(neighbour)


@pytest.mark.sandbox
def test_open_files_end_in_emfile(greedy):
    code = """
held = []
try:
    while True:
        held.append(os.dup(0))
except OSError as error:
    result = [errno.errorcode[error.errno], 30 < len(held) < 64]
for descriptor in held:
    os.close(descriptor)
"""
    assert greedy.call("execute", code) == ["EMFILE", True]
    assert answers(greedy)


@pytest.mark.sandbox
def test_no_limit_can_be_raised_again(greedy):
    code = """
result = []
for kind in (resource.RLIMIT_DATA, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE):
    soft, hard = resource.getrlimit(kind)
    try:
        resource.setrlimit(kind, (soft, hard + 1))
    except (ValueError, OSError):
        result.append(soft)
"""
    assert greedy.call("execute", code) == [128 << 20, 24, 64, 0]


@pytest.mark.sandbox
def test_processor_time_ends_a_process_with_sigxcpu(workplace):
    path = build(workplace / "project", "{ cpu = 1 }")
    with pytest.raises(adyton.errors.ConnectionLostError, match="SIGXCPU"), adyton.load(path) as client:  # noqa: PT012
        code = "result = subprocess.run([sys.executable, '-c', 'while True: pass']).returncode"
        assert client.call("execute", code) == -signal.SIGXCPU
        assert answers(client)
        client.call("execute", "while True: pass")


@pytest.mark.sandbox
def test_a_fork_bomb_is_nobody_elses_trouble_and_ends_with_its_enclave(limited, neighbour, on_the_server):
    client = adyton.load(limited)
    before = children(os.getpid())
    code = """
if os.fork() == 0:
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.005)
while True:
    try:
        os.waitpid(os.fork() or os._exit(0), 0)
    except BlockingIOError:
        break
result = "full"
"""
    assert client.call("execute", code) == "full"
    bombs = children(os.getpid()) - before
    assert len(bombs) > 10
    for _ in range(20):
        assert answers(neighbour)
    assert answers(client)
    with adyton.load(limited) as another:
        assert answers(another)
        client.close()
        assert wait_until_ended(bombs) == set()


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ("{ cpu = 0 }", "cpu"),
        ("{ cpu = 1.5 }", "cpu"),
        ("{ cpus = 1 }", r"'cpus' .*nearest: cpu"),
        ("{ cpu = '1s' }", "cpu"),
    ],
)
def test_a_limit_of_processor_time_is_a_number_of_seconds(workplace, limits, said):
    with pytest.raises(UsageError, match=said):
        build(workplace / "project", limits)


@pytest.mark.sandbox
def test_the_least_memory_is_enough_for_a_program(tmp_path):
    with adyton.load(build(tmp_path, '{ memory = "48MiB" }')) as client:
        assert answers(client)


@pytest.mark.sandbox
def test_threads_are_counted_for_each_enclave_by_itself(tmp_path):
    """Whoever runs the server: the kernel counts for each user namespace."""
    code = textwrap.dedent("""
        import threading
        finish(True, "/client", "host")
        stop = threading.Event()
        threads = [threading.Thread(target=stop.wait, daemon=True) for _ in range(10)]
        for thread in threads:
            thread.start()
        return len(threads)
    """)
    with start_zygote(tmp_path / "store") as zygote:
        limits = {"threads": 12}
        with enclave(zygote, limits=limits) as one, enclave(zygote, limits=limits) as other:
            assert [one.guest(code), other.guest(code)] == [10, 10]
