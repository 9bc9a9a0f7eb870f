"""What a waiting thread wants, told from its system call; nothing when it cannot be told."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import adyton
from adyton.image.project import build_project
from adyton.runtime.process.supervisor import wanted
from adyton.runtime.process.supervisor.notifications import Note
from adyton.runtime.process.supervisor.thread_numbers import ThreadNumbers, numbered
from adyton.runtime.process.supervisor.wanted import CALLS, GuestThreads, Wanted, calls_of, is_below

STRING = b"/home/ann/.netrc\0"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A proc directory of process 10 with threads 10 and 11, and of its child 12; as their namespace has them 1, 2 and 3."""
    for process, threads in ((10, (10, 11)), (12, (12,))):
        for thread in threads:
            directory = tmp_path / f"{process}/task/{thread}"
            directory.mkdir(parents=True)
            (directory / "status").write_text(f"Name:\tx\nNSpid:\t{thread}\t{thread - 9}\n")
            (directory / "children").write_text("12 " if thread == 11 else "")
            (directory / "mem").write_bytes(bytes(4096) + STRING + bytes(4096) + b".netrc\0" + b"x" * 90000)
            with open(directory / "mem", "r+b") as memory:
                memory.seek(IN_LIBRARY)
                memory.write(STRING)
            (directory / "maps").write_text(MAPS)
            (directory / "syscall").write_text("running\n")
            (tmp_path / f"{process}/mountinfo").write_text(MOUNTS)
            (directory / "cwd").symlink_to("/home/ann")
            (directory / "fd").mkdir()
            (directory / "fd/5").symlink_to("/home/ann/work")
            (directory / "fd/6").symlink_to("socket:[1]")
    return tmp_path


ABSOLUTE = 4096
RELATIVE = 4096 + len(STRING) + 4096
UNENDED = RELATIVE + 7
SERVED = 20 * 4096
IN_LIBRARY = 24 * 4096
MAPS = """\
00001000-0000c000 rw-p 00000000 00:00 0                  [heap]
0000c000-0000d000 r--p 00000000 fd:00 1234               /usr/lib/a library.so
00014000-00015000 rw-s 00000000 00:2d 99                 /work/mapped
00018000-00019000 r--p 00000000 00:2e 7                  /enclave/site-packages/library.so
"""
MOUNTS = """\
510 480 0:45 / / rw,nosuid,nodev - fuse adyton rw,user_id=1000
511 510 0:46 / /enclave/site-packages ro,nosuid,nodev - tmpfs none rw,size=1g
512 510 254:0 /usr/lib /usr/lib ro,nosuid,nodev - ext4 /dev/root ro
"""
NUMBERS = {call: number for number, call in calls_of(platform.machine()).items()}


def at(x86_64: int, *arguments: int) -> str:
    """/proc/…/syscall of a call (by its number on x86-64) on this machine."""
    number = next(NUMBERS[call] for call in CALLS if call.x86_64 == x86_64)
    words = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    return " ".join([str(number), *(hex(word & (1 << 64) - 1) for word in words), "0x7ffd", "0x7f00"]) + "\n"


OPENAT, OPENAT2, MKDIRAT, RENAMEAT2, FACCESSAT = 257, 437, 258, 316, 269


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (at(OPENAT, -100, ABSOLUTE, os.O_RDONLY), Wanted("/home/ann/.netrc", "read")),
        (at(OPENAT, -100, ABSOLUTE, os.O_RDWR), Wanted("/home/ann/.netrc", "write")),
        (at(OPENAT, -100 & 0xFFFFFFFF, RELATIVE, os.O_CREAT), Wanted("/home/ann/.netrc", "write")),
        (at(OPENAT, 5, RELATIVE, os.O_RDONLY), Wanted("/home/ann/work/.netrc", "read")),
        (at(MKDIRAT, -100, ABSOLUTE), Wanted("/home/ann/.netrc", "write")),
        (at(RENAMEAT2, 6, RELATIVE, -100, ABSOLUTE), Wanted("/home/ann/.netrc", "write")),
        (at(RENAMEAT2, 5, RELATIVE, -100, ABSOLUTE), Wanted("/home/ann/work/.netrc", "write")),
        (at(FACCESSAT, -100, ABSOLUTE, os.W_OK), Wanted("/home/ann/.netrc", "write")),
        (at(FACCESSAT, -100, ABSOLUTE, os.R_OK), Wanted("/home/ann/.netrc", "read")),
        (at(OPENAT, 77, RELATIVE, 0), None),
        (at(OPENAT, 6, RELATIVE, 0), Wanted("/home", "read")),
        (at(OPENAT, -100, UNENDED, 0), None),
        (at(OPENAT, -100, SERVED, 0), None),
        (at(OPENAT, -100, IN_LIBRARY, 0), Wanted("/home/ann/.netrc", "read")),
        (at(OPENAT2, -100, ABSOLUTE, 4096 + 32), Wanted("/home/ann/.netrc", "read")),
        (at(OPENAT2, -100, ABSOLUTE, SERVED), None),
        (at(OPENAT, -100, 12 * 4096, 0), None),
        (at(OPENAT, -100, 1 << 40, 0), None),
        (at(OPENAT, -100, 1 << 63, 0), None),
        ("0 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8\n", None),
        ("running\n", None),
        ("-1 0x7ffd 0x7f00\n", None),
        ("", None),
        ("x y z a b c d e f\n", None),
    ],
)
def test_a_call_says_what_it_wants(proc: Path, call: str, wanted: Wanted | None) -> None:
    (proc / "10/task/11/syscall").write_text(call)
    assert GuestThreads(10, str(proc)).wanted(2, "/home") == wanted


def test_a_path_that_does_not_lead_through_what_is_denied_says_the_right_only(proc: Path) -> None:
    (proc / "10/task/11/syscall").write_text(at(OPENAT, -100, ABSOLUTE, os.O_WRONLY))
    assert GuestThreads(10, str(proc)).wanted(2, "/srv") == Wanted("/srv", "write")
    assert GuestThreads(10, str(proc)).wanted(2, "/hom") == Wanted("/hom", "write")


def test_threads_of_children_are_found_and_others_are_not(proc: Path) -> None:
    (proc / "12/task/12/syscall").write_text(at(OPENAT, -100, ABSOLUTE, 0))
    threads = GuestThreads(10, str(proc))
    assert threads.wanted(3, "/home") == Wanted("/home/ann/.netrc", "read")
    assert threads.wanted(4, "/home") is None
    (proc / "12/task/12/status").write_text("NSpid:\t12\t99\n")
    assert threads.wanted(3, "/home") is None, "the number was given to another"
    assert GuestThreads(4711, str(proc)).wanted(3, "/home") is None


def waiting(proc: Path, *directories: str) -> Note:
    """All threads wait in one call with the same arguments, each in a directory of its own; what the listener tells of the one here 100."""
    for thread, cwd in zip((10, 11, 12), directories, strict=True):
        directory = next(proc.glob(f"*/task/{thread}"))
        (directory / "syscall").write_text("254 0x5 0x7f01 0xfff 0x0 0x0 0x0 0x7ffd 0x7f00\n")
        (directory / "cwd").unlink()
        (directory / "cwd").symlink_to(cwd)
    return Note(1, 100, 254, 0, (5, 0x7F01, 0xFFF, 0, 0, 0))


def test_of_threads_that_wait_for_the_same_each_has_its_own_working_directory(proc: Path) -> None:
    note = waiting(proc, "/a", "/b", "/c")
    for number, directory in ((1, "/a"), (2, "/b"), (3, "/c"), (4, None)):
        found = GuestThreads(10, str(proc), inside={100: number}.get).directory(note)
        assert found == directory


def test_where_threads_cannot_be_told_apart_it_is_only_told_where_all_of_them_are(proc: Path) -> None:
    assert GuestThreads(10, str(proc)).directory(waiting(proc, "/a", "/b", "/a")) is None
    assert GuestThreads(10, str(proc)).directory(waiting(proc, "/a", "/a", "/a")) == "/a"


def test_a_thread_has_its_number() -> None:
    numbers = ThreadNumbers()
    assert numbers.inside(os.getpid()) == os.getpid()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(threading.get_native_id).result()
        assert numbers.inside(other) == other
    assert numbers.inside(1 << 22) is None  # no number is as high


@pytest.mark.parametrize(
    ("info", "number"),
    [
        (b"pos:\t0\nPid:\t4711\nNSpid:\t4711\t17\t3\n", 3),
        (b"Pid:\t-1\nNSpid:\t-1\n", None),  # it has ended
        (b"Pid:\t0\nNSpid:\t0\n", None),  # it is not in that namespace
        (b"Pid:\t4711\n", None),
        (b"NSpid:\n", None),
    ],
)
def test_the_last_of_its_numbers_is_the_guests(info: bytes, number: int | None) -> None:
    assert numbered(info) == number


@pytest.mark.parametrize("mounts", ["", MOUNTS.replace("fuse", "tmpfs"), "510 480 x / / rw - fuse a rw\n", "x - fuse"])
def test_where_no_served_file_system_is_found_no_memory_is_read(proc: Path, mounts: str) -> None:
    (proc / "10/task/11/syscall").write_text(at(OPENAT, -100, ABSOLUTE, 0))
    (proc / "10/mountinfo").write_text(mounts)
    assert GuestThreads(10, str(proc)).wanted(2, "/home") is None


@given(st.text(max_size=20), st.sampled_from(["/home", "/", "/a/b"]))
def test_a_hint_stands_only_for_what_is_below(path: str, denied: str) -> None:
    if is_below(path, denied):
        assert path == denied or path.startswith(denied.rstrip("/") + "/")
        assert ".." not in path.split("/")


@contextmanager
def waiting_in_an_open(path: str) -> Iterator[int]:
    """The id of a thread of this process that waits in open(path): a pipe that nobody writes to."""
    ids: list[int] = []
    started = threading.Event()

    def wait() -> None:
        ids.append(threading.get_native_id())
        started.set()
        os.close(os.open(path, os.O_RDONLY))

    thread = threading.Thread(target=wait)
    thread.start()
    started.wait()
    try:
        yield ids[0]
    finally:
        os.close(os.open(path, os.O_WRONLY))
        thread.join()


LIBRARY = """
import ctypes
import mmap
import os
import adyton.trusted
enclave = adyton.trusted.Enclave("library")

@enclave.entry
def look() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    with open(__file__, "rb") as file:
        at = file.read().rindex(b"/home")
        mapped = libc.mmap(None, 8192, mmap.PROT_READ, mmap.MAP_PRIVATE, file.fileno(), ctypes.c_long(0))
    libc.open(ctypes.c_void_p(mapped + at), 0)
    return os.strerror(ctypes.get_errno())

# zeros follow the end of a file that is mapped: /home/ann/.netrc"""


@pytest.mark.sandbox
def test_a_path_that_a_file_of_the_image_holds_is_told_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "library.py").write_text(LIBRARY)
    (tmp_path / "pyproject.toml").write_text('[tool.adyton.enclave.library]\nentry = "library:enclave"\n')
    (built,) = build_project(tmp_path)
    with adyton.load(built.path) as client:
        assert client.call("look") == "Permission denied"
    assert "denied: read /home/ann/.netrc (" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["pipe", "p\udcffpe"])
def test_a_real_thread_in_a_real_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(wanted, "served_devices", lambda _mounts: frozenset({1}))
    path = str(tmp_path / name)
    os.mkfifo(path)
    with waiting_in_an_open(path) as thread:
        guest = GuestThreads(os.getpid())
        number = int(Path(f"/proc/self/task/{thread}/status").read_text().split("NSpid:")[1].split("\n")[0].split()[-1])
        deadline = time.monotonic() + 60
        while (got := guest.wanted(number, str(tmp_path))) is None and time.monotonic() < deadline:
            threading.Event().wait(0.001)
        assert got == Wanted(path, "read")
