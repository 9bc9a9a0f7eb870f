"""System calls that an enclave's runtime refuses are counted, and told of once; what it does not know likewise."""

import pytest

import adyton

pytestmark = pytest.mark.sandbox

PROGRAM = '''
import ctypes, errno, os, threading

libc = ctypes.CDLL(None, use_errno=True)

def call(number: int, times: int) -> list[str]:
    """The errnos of a system call without arguments."""
    found = []
    for _ in range(times):
        ctypes.set_errno(0)
        assert libc.syscall(number, 0, 0, 0, 0, 0, 0) == -1
        found.append(errno.errorcode[ctypes.get_errno()])
    return found

def everywhere(number: int) -> list[str]:
    """The same in threads and in a forked process."""
    found = []
    threads = [threading.Thread(target=lambda: found.extend(call(number, 50))) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    pid = os.fork()
    if pid == 0:
        os._exit(len(set(call(number, 50))))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    return sorted(set(found))

def quiet() -> bool:
    """What libraries do all the time."""
    threads = [threading.Thread(target=int) for _ in range(5)]
    for each in threads:
        each.start()
        each.join()
    return True
'''

IO_URING_SETUP, UNKNOWN = 425, 999  # one number everywhere


@pytest.fixture
def program(tmp_path, on_the_server):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    with adyton.load(str(path)) as client:
        yield client


def test_refused_and_unknown_calls_are_counted_and_told_of_once(program, capfd):
    assert program.call("call", IO_URING_SETUP, 3) == ["ENOSYS"] * 3
    assert program.call("call", UNKNOWN, 2) == ["ENOSYS"] * 2
    assert program.call("call", IO_URING_SETUP, 1) == ["ENOSYS"]
    assert program.refused == {"io_uring_setup": 4, f"system call {UNKNOWN}": 2}
    lines = [line for line in capfd.readouterr().err.splitlines() if "the enclave called" in line]
    assert len(lines) == 2
    assert lines[0].startswith(
        "adyton: the enclave called io_uring_setup, which fails there with ENOSYS: the kernel would"
    )
    assert lines[1].startswith(f"adyton: the enclave called system call {UNKNOWN}, which fails there with ENOSYS")


def test_every_thread_and_process_is_counted(program):
    assert program.call("everywhere", IO_URING_SETUP) == ["ENOSYS"]
    assert program.refused == {"io_uring_setup": 250}


def test_what_libraries_try_all_the_time_is_not_told_of(program, capfd):
    assert program.call("quiet")
    assert program.refused == {}
    assert "the enclave called" not in capfd.readouterr().err
