"""Files of the client in an enclave, as programs there use them beside programs on the client: locks, appends, mappings, places in lists."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import adyton
from adyton.hostcall.client import openat

pytestmark = pytest.mark.sandbox

PROGRAM = '''
import ctypes, errno, fcntl, json, mmap, os, select, signal, stat, struct, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)

def attempt(function, *arguments, **keywords):
    """What it returns, or the name of the errno that it fails with."""
    try:
        return function(*arguments, **keywords)
    except OSError as error:
        return errno.errorcode[error.errno]

def child(function):
    """What the function returns in a process of its own, as text; or the signal that ended it."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        os.write(write, str(function()).encode())
        os._exit(0)
    os.close(write)
    status = os.waitpid(process, 0)[1]
    answer = os.read(read, 100).decode()
    os.close(read)
    return answer if os.WIFEXITED(status) else signal.Signals(os.WTERMSIG(status)).name

def execute(code: str) -> str:
    scope = globals() | {"result": None}
    exec(code, scope)
    return json.dumps(scope["result"])
'''

Execute = Callable[[str], Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "data").mkdir()
    (folder / "read").mkdir()
    (folder / "look.py").write_text(PROGRAM)
    return folder


@contextlib.contextmanager
def loaded(home: Path) -> Iterator[tuple[adyton.Enclave, Execute]]:
    allow = {"allow_write": [str(home / "data")], "allow_read": [str(home / "read")]}
    with adyton.load(str(home / "look.py"), **allow) as enclave:

        def execute(code: str) -> Any:
            prefix = f"os.chdir({str(home / 'data')!r})\n"
            return json.loads(enclave.call("execute", prefix + dedent(code)))

        yield enclave, execute


@pytest.fixture(scope="module")
def enclave(home: Path) -> Iterator[tuple[adyton.Enclave, Execute]]:
    with loaded(home) as found:
        yield found


@pytest.fixture
def execute(enclave: tuple[adyton.Enclave, Execute]) -> Execute:
    return enclave[1]


@pytest.fixture
def file(home: Path, request: pytest.FixtureRequest) -> Path:
    """A file of this test's own, which the enclave may write."""
    path = home / "data" / request.node.name.replace("/", "-")[:100]
    path.write_bytes(b"0123456789")
    return path


OTHER = """
import fcntl, sys
file = open(sys.argv[1], "r+")
for line in sys.stdin:
    try:
        result = eval(line)
    except OSError as error:
        result = type(error).__name__
    print(result, flush=True)
"""


@contextlib.contextmanager
def other_program(path: Path) -> Iterator[Callable[[str], str]]:
    """A program on the client that has the file open: what an expression gives there."""
    command = [sys.executable, "-c", OTHER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def evaluate(expression: str) -> str:
            process.stdin.write(expression + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        yield evaluate
        process.stdin.close()
        assert process.wait(60) == 0


EXCLUSIVE = "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
FLOCK = "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"


class TestLocks:
    def test_programs_of_the_client_meet_them_and_they_those(self, execute: Execute, file: Path) -> None:
        with other_program(file) as other:
            execute(f"sys.held = held = open({file.name!r}, 'r+'); fcntl.lockf(held, fcntl.LOCK_EX, 4)")
            assert other(EXCLUSIVE) == "BlockingIOError"
            assert other("fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, 4)") == "None"
            code = """
                held = sys.held
                wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 4, 0, 0)
                kind, _, start, length, process = struct.unpack("hhqqi4x", fcntl.fcntl(held, fcntl.F_GETLK, wanted))
                result = [attempt(fcntl.lockf, held, fcntl.LOCK_EX | fcntl.LOCK_NB), kind == fcntl.F_WRLCK, start, length]
                held.close()
            """
            assert execute(code) == ["EAGAIN", True, 4, 4]
            assert other(EXCLUSIVE) == "None"

    def test_processes_of_the_enclave_meet_each_other(self, execute: Execute, file: Path) -> None:
        code = f"""
            file = open({file.name!r}, "r+")
            def asked():
                wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
                return struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, wanted))
            def locked():
                return attempt(fcntl.lockf, file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.lockf(file, fcntl.LOCK_EX)
            result = [child(locked), child(lambda: asked()[4] == os.getppid()), locked()]
            open({file.name!r}).close()  # of any descriptor: POSIX
            result += [child(locked), locked()]
        """
        assert execute(code) == ["EAGAIN", "True", None, "None", None]

    def test_open_file_descriptions_have_their_own(self, execute: Execute, file: Path) -> None:
        code = f"""
            first, second = (open({file.name!r}, "r+") for _ in range(2))
            lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
            result = []
            for take in (lambda f: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB), lambda f: fcntl.fcntl(f, 37, lock) and None):
                result += [attempt(take, first), attempt(take, second), child(lambda: attempt(take, first))]
            open({file.name!r}).close()
            result += [attempt(take, second)]
            first.close()
            result += [attempt(take, second), attempt(fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB)]
            second.close()
        """
        once = [None, "EAGAIN", "None"]
        assert execute(code) == [*once, *once, "EAGAIN", None, None]

    @pytest.mark.parametrize("kind", ["lockf", "flock"])
    def test_who_waits_gets_the_lock_when_it_is_given_back(self, execute: Execute, file: Path, kind: str) -> None:
        results: list[Any] = []
        with other_program(file) as other:
            assert other(EXCLUSIVE if kind == "lockf" else FLOCK) == "None"
            waiter = threading.Thread(
                target=lambda: results.append(
                    execute(f"result = fcntl.{kind}(open({file.name!r}, 'r+'), fcntl.LOCK_EX)")
                )
            )
            waiter.start()
            assert execute("result = len(os.listdir('.')) > 0"), "others go on"
            assert results == []
        waiter.join(60)
        assert results == [None]

    def test_a_signal_ends_a_wait(self, execute: Execute, file: Path) -> None:
        with other_program(file) as other:
            assert other(EXCLUSIVE) == "None"
            code = f"""
                def waits():
                    def late(*_):
                        raise TimeoutError
                    signal.signal(signal.SIGALRM, late)
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0.05)
                        fcntl.lockf(open({file.name!r}, "r+"), fcntl.LOCK_EX)
                    except TimeoutError:
                        return "late"
                result = child(waits)
            """
            assert execute(code) == "late"
            assert other("fcntl.lockf(file, fcntl.LOCK_UN)") == "None"
            assert other(EXCLUSIVE) == "None", "the lock that was waited for was not taken"

    def test_a_circle_of_waiters_is_seen(self, execute: Execute, file: Path) -> None:
        code = f"""
            file = open({file.name!r}, "r+")
            fcntl.lockf(file, fcntl.LOCK_EX, 1, 0)
            ready, told = os.pipe()
            process = os.fork()
            if process == 0:
                fcntl.lockf(file, fcntl.LOCK_EX, 1, 1)
                os.write(told, b"x")
                os.write(told, str(attempt(fcntl.lockf, file, fcntl.LOCK_EX, 1, 0)).encode())
                os._exit(0)
            os.read(ready, 1)
            mine = str(attempt(fcntl.lockf, file, fcntl.LOCK_EX, 1, 1))
            file.close()
            result = [mine, os.read(ready, 100).decode()]
            os.waitpid(process, 0)
        """
        assert sorted(execute(code)) == [errno.errorcode[errno.EDEADLK], "None"]

    def test_they_end_with_the_enclave(self, home: Path, file: Path) -> None:
        with other_program(file) as other:
            with loaded(home) as (_, execute):
                execute(f"sys.held = held = open({file.name!r}, 'r+'); fcntl.lockf(held, fcntl.LOCK_EX)")
                assert other(EXCLUSIVE) == "BlockingIOError"
            assert other(EXCLUSIVE) == "None"

    def test_they_end_with_an_enclave_that_is_killed(self, home: Path, file: Path) -> None:
        """At once, not when the client is closed."""
        seen = []
        lost = contextlib.suppress(adyton.AdytonError)  # the close says so, too
        with other_program(file) as other, lost, loaded(home) as (enclave, execute):
            execute(f"sys.held = open({file.name!r}, 'r+'); fcntl.lockf(sys.held, fcntl.LOCK_EX)")
            assert other(EXCLUSIVE) == "BlockingIOError"
            os.kill(enclave.processes()["supervisor"].stat.pid, signal.SIGKILL)
            with pytest.raises(adyton.AdytonError):
                execute("time.sleep(60)")
            seen.append(other("fcntl.lockf(file, fcntl.LOCK_EX)"))
        assert seen == ["None"]


class TestContent:
    def test_what_several_append_is_whole(self, execute: Execute, file: Path) -> None:
        code = f"""
            log = open({file.name!r}, "ab", buffering=0)
            for number in range(100):
                log.write(b"enclave %d\\n" % number)
            log.close()
        """
        writer = threading.Thread(target=execute, args=(code,))
        writer.start()
        with file.open("ab", buffering=0) as log:
            for number in range(100):
                log.write(b"client %d\n" % number)
        writer.join()
        lines = file.read_bytes().removeprefix(b"0123456789").splitlines()
        assert sorted(lines) == sorted(
            b"%s %d" % (who, number) for who in (b"client", b"enclave") for number in range(100)
        )
        code = f"f = open({file.name!r}, 'ab+'); f.write(b'end'); f.flush(); f.seek(0); result = f.read().decode()"
        assert execute(code) == file.read_text()

    def test_a_write_that_is_to_be_durable_is_when_it_returns(
        self, enclave: tuple[adyton.Enclave, Execute], file: Path
    ) -> None:
        def synced() -> int:
            return int(enclave[0].stats()["host_calls"].get("fsync", 0))

        for flag in ("O_SYNC", "O_DSYNC"):
            before = synced()
            enclave[1](f"result = os.write(os.open({file.name!r}, os.O_WRONLY | os.{flag}), b'x')")
            assert synced() == before + 1

    def test_mappings_are_shared_and_private(self, execute: Execute, file: Path) -> None:
        code = f"""
            file = os.open({file.name!r}, os.O_RDWR)
            shared, private = mmap.mmap(file, 10), mmap.mmap(file, 10, access=mmap.ACCESS_COPY)
            private[:1] = b"P"
            child(lambda: shared.__setitem__(slice(1, 2), b"S"))
            shared.flush()
            os.fsync(file)
            result = [shared[:3].decode(), private[:1].decode(), os.pread(file, 3, 0).decode()]
        """
        assert execute(code) == ["0S2", "P", "0S2"]
        assert file.read_bytes() == b"0S23456789"

    def test_a_mapping_of_a_file_that_is_appended_to(self, execute: Execute, file: Path) -> None:
        code = f"""
            file = os.open({file.name!r}, os.O_RDWR | os.O_APPEND)
            memory = mmap.mmap(file, 10)
            memory[2:4] = b"MM"
            memory.flush()
            result = [os.write(file, b"end"), memory[:5].decode()]
        """
        assert execute(code) == [3, "01MM4"]
        assert file.read_bytes() == b"01MM456789end"

    def test_a_mapping_of_a_file_that_is_appended_to_and_has_no_name(self, execute: Execute, file: Path) -> None:
        code = f"""
            file = os.open({file.name!r}, os.O_RDWR | os.O_APPEND)
            os.unlink({file.name!r})
            memory = mmap.mmap(file, 10)
            memory[2:4] = b"MM"
            memory.flush()
            result = [os.write(file, b"end"), os.pread(file, 20, 0).decode()]
        """
        assert execute(code) == [3, "01MM456789end"]

    def test_a_flushed_mapping_is_durable(self, enclave: tuple[adyton.Enclave, Execute], file: Path) -> None:
        before = enclave[0].stats()["host_calls"].get("fsync", 0)
        enclave[1](f"memory = mmap.mmap(os.open({file.name!r}, os.O_RDWR), 10); memory[:1] = b'x'; memory.flush()")
        assert enclave[0].stats()["host_calls"]["fsync"] == before + 1
        assert file.read_bytes() == b"x123456789"

    def test_a_mapping_that_lost_its_file_s_end_is_a_bus_error(self, execute: Execute, file: Path) -> None:
        file.write_bytes(bytes(10000))
        code = f"""
            file = os.open({file.name!r}, os.O_RDWR)
            memory = mmap.mmap(file, 10000)
            os.ftruncate(file, 10)
            result = child(lambda: memory[9000])
        """
        assert execute(code) == "SIGBUS"

    def test_direct_reads_and_writes(self, execute: Execute, file: Path) -> None:
        code = f"""
            file = os.open({file.name!r}, os.O_RDWR | os.O_DIRECT)
            page = mmap.mmap(-1, 4096)
            page[:4] = b"page"
            result = [os.pwritev(file, [page], 0), os.preadv(file, [page], 0), page[:5].decode()]
        """
        assert execute(code) == [4096, 4096, "page\0"]
        assert file.stat().st_size == 4096


class TestNames:
    def test_places_in_a_listing_keep_their_meaning(self, execute: Execute, home: Path) -> None:
        folder = home / "data" / "many"
        folder.mkdir()
        for number in range(3000):
            (folder / f"file-{number:05}").touch()
        code = """
            libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
            libc.telldir.restype = ctypes.c_long
            directory = ctypes.c_void_p(libc.opendir(b"many"))
            def name():
                entry = libc.readdir(directory)
                return ctypes.string_at(entry + 19).decode() if entry else None
            def read():
                return list(iter(name, None))
            first = [name() for _ in range(100)]
            place = libc.telldir(directory)
            rest = read()
            os.unlink("many/file-00001")
            open("many/new", "w").close()
            libc.seekdir(directory, ctypes.c_long(place))
            again = read()
            libc.rewinddir(directory)
            anew = read()
            entries = {entry.name: entry.is_file() for entry in os.scandir("many")}
            result = [first[:2], len(first + rest), rest == again, len(anew), "new" in anew, set(entries.values()) == {True}]
        """
        found = execute(code)
        assert sorted(found[0]) == [".", ".."]
        assert found[1:] == [3002, True, 3002, True, True]

    def test_many_names_of_a_directory(self, execute: Execute, home: Path) -> None:
        folder = home / "data" / "very-many"
        folder.mkdir()
        for number in range(10_000):
            (folder / str(number)).touch()
        assert execute("result = len(os.listdir('very-many'))") == 10_000

    def test_when_a_file_was_made_is_known(self, execute: Execute, file: Path) -> None:
        code = f"""
            buffer = ctypes.create_string_buffer(256)
            assert libc.statx(-100, {file.name.encode()!r}, 0, 0xFFF, buffer) == 0
            (mask,), (born,) = struct.unpack_from("I", buffer), struct.unpack_from("q", buffer, 80)
            result = [bool(mask & 0x800), born]
        """
        known, born = execute(code)
        assert not known or abs(born - file.stat().st_mtime) < 100

    def test_special_files_are_neither_made_nor_opened(self, execute: Execute, home: Path) -> None:
        os.mkfifo(home / "data" / "pipe")
        code = """
            result = [
                attempt(os.mkfifo, "new"), attempt(os.mknod, "new", stat.S_IFSOCK), attempt(os.mknod, "new", stat.S_IFCHR),
                attempt(os.open, "pipe", os.O_RDONLY | os.O_NONBLOCK), os.path.exists("new"),
            ]
        """
        assert execute(code) == ["EPERM", "EPERM", "EPERM", "ENXIO", False]

    def test_pipes_have_names_in_private_places(self, execute: Execute) -> None:
        code = """
            os.mkfifo("/tmp/pipe")
            def send():
                with open("/tmp/pipe", "w") as pipe:
                    pipe.write("through the pipe")
            writer = threading.Thread(target=send)
            writer.start()
            result = open("/tmp/pipe").read()
            writer.join()
            os.unlink("/tmp/pipe")
        """
        assert execute(code) == "through the pipe"

    def test_attributes_of_the_machine_are_not_there(self, execute: Execute, file: Path) -> None:
        code = f"""
            result = [
                attempt(os.setxattr, {file.name!r}, "security.x", b"x"),
                attempt(os.getxattr, {file.name!r}, "system.posix_acl_access"),
                attempt(os.getxattr, {file.name!r}, "user.x"),
                attempt(os.setxattr, {str(file.parent.parent / "read")!r}, "user.x", b"x"),
            ]
        """
        assert execute(code) == ["EPERM", errno.errorcode[errno.EOPNOTSUPP], "ENODATA", "EACCES"]

    def test_room_is_the_client_s(self, execute: Execute, file: Path) -> None:
        total, free = execute("import shutil; found = shutil.disk_usage('.'); result = [found.total, found.free]")
        here = shutil.disk_usage(file.parent)
        assert total == here.total
        assert abs(free - here.free) < 1 << 30


def test_new_files_have_the_modes_that_the_same_program_would_give_them_on_the_client(home: Path) -> None:
    """The umask is the client's until the program sets its own, which then is all that holds."""
    code = """
        result = []
        for name, mask in (("given", None), ("own", 0o002), ("none", 0)):
            if mask is not None:
                os.umask(mask)
            os.mkdir(f"{name}-directory")
            for file in (name, "/dev/shm/" + name):
                os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o666))
            result += [stat.S_IMODE(os.stat(each).st_mode) for each in (f"{name}-directory", name, "/dev/shm/" + name)]
    """
    before = os.umask(0o027)
    try:
        with loaded(home) as (_, execute):
            modes = execute(code)
    finally:
        os.umask(before)
    assert modes == [0o750, 0o640, 0o640, 0o775, 0o664, 0o664, 0o777, 0o666, 0o666]
    seen = [stat.S_IMODE((home / "data" / name).stat().st_mode) for name in ("given", "own", "none")]
    assert seen == [0o640, 0o664, 0o666]


def test_a_default_acl_of_the_client_s_directory_holds_in_place_of_the_program_s_umask(home: Path) -> None:
    folder = home / "data" / "acl"
    folder.mkdir()
    code = """
        os.chdir("acl")
        os.umask(0o077)
        os.mkdir("directory")
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mknod("node", 0o664)
        with open("directory/below", "w"):
            pass
        result = [stat.S_IMODE(os.stat(each).st_mode) for each in ("directory", "file", "node", "directory/below")]
    """
    entries = ((0x01, 7), (0x04, 5), (0x20, 1))  # owner, group, others: linux/posix_acl.h, linux/posix_acl_xattr.h
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, 0xFFFFFFFF) for tag, bits in entries)
    with loaded(home) as (_, execute):
        try:
            os.setxattr(folder, "system.posix_acl_default", acl)
        except OSError:
            pytest.skip("NO ACLs: this file system has none, so that none holds")
        modes = execute(code)
        seen = [stat.S_IMODE((folder / each).stat().st_mode) for each in ("directory", "file", "node")]
    assert modes == [0o751, 0o640, 0o640, 0o640]
    assert seen == modes[:3]


def test_a_chown_that_changes_nothing_leaves_the_size_of_what_was_written(execute: Execute) -> None:
    written = """
        sys.kept = os.open("written", os.O_RDWR | os.O_CREAT, 0o644)
        os.write(sys.kept, bytes(9000))
    """
    execute(written)
    owned = """
        os.chown("written", -1, -1)
        result = os.fstat(sys.kept).st_size
        os.close(sys.kept)
    """
    assert execute(owned) == 9000


class TestSignals:
    """A signal whose handler does not restart calls, as Python's do not, where programs in C do not make them once more."""

    TICKING = """
        def ticking(function):
            def run():
                signal.signal(signal.SIGALRM, lambda *_: None)
                signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
                try:
                    return function()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            return child(run)
    """

    def test_a_database_is_written_as_without(self, execute: Execute, file: Path) -> None:
        database = file.with_name("signals.db").name
        code = f"""
            import sqlite3
            def writes():
                database = sqlite3.connect({database!r}, isolation_level=None)
                database.execute("create table numbers (number)")
                for number in range(40):
                    database.execute("insert into numbers values (?)", (number,))
                return database.execute("select count(*) from numbers").fetchone()[0]
            result = ticking(writes)
        """
        assert execute(dedent(self.TICKING) + dedent(code)) == "40"

    def test_fsync_waits_for_the_disk(self, execute: Execute, file: Path) -> None:
        code = f"""
            libc.fsync.restype = ctypes.c_int
            def syncs():
                descriptor = os.open({file.name!r}, os.O_RDWR)
                failed = set()
                for number in range(100):
                    os.pwrite(descriptor, b"x" * 100_000, 0)
                    if libc.fsync(descriptor):
                        failed.add(errno.errorcode[ctypes.get_errno()])
                return failed or None
            result = ticking(syncs)
        """
        assert execute(dedent(self.TICKING) + dedent(code)) == "None"

    def test_files_are_opened_though_the_client_answers_more_slowly_than_signals_come(
        self, execute: Execute, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = openat.ConfinedTree.open_file

        def slow(*args: Any) -> int:
            time.sleep(0.02)
            return original(*args)

        monkeypatch.setattr(openat.ConfinedTree, "open_file", slow)
        code = f"""
            result = ticking(lambda: open({file.name!r}, "r+").read())
        """
        assert execute(dedent(self.TICKING) + dedent(code)) == "0123456789"

    def test_a_mapping_is_read_as_without(self, execute: Execute, file: Path) -> None:
        file.write_bytes(bytes(range(256)) * (8 << 12))
        code = f"""
            def reads():
                total = 0
                with open({file.name!r}, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                    for place in range(0, len(mapped), 4096):
                        total += mapped[place + 1]
                return total
            result = ticking(reads)
        """
        assert execute(dedent(self.TICKING) + dedent(code)) == str((8 << 20) // 4096)
