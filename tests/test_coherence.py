"""What programs on the client and a program in an enclave see of each other's files, by the coherence of their mount; and durability."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import parties
import pytest
from fake_kernel import raises
from sharing import Sharing
from thorough import few_or

import adyton
from adyton.config import Policy
from adyton.errors import ConnectionLostError, EnclaveError

pytestmark = pytest.mark.sandbox

PROGRAM = '''
import fcntl, os, sqlite3, time
import adyton.trusted as trusted

kept = {}

@trusted.host_function
def tell(text: str) -> str: ...

def read(path: str) -> str:
    with open(path) as file:
        return file.read()

def write(path: str, text: str, sync: bool) -> None:
    with open(path, "w") as file:
        file.write(text)
        if sync:
            file.flush()
            os.fsync(file.fileno())

def size(path: str) -> int:
    return os.stat(path).st_size

def names(path: str) -> list[str]:
    return sorted(os.listdir(path))

def exists(path: str) -> bool:
    return os.path.exists(path)

def keep_open(path: str) -> None:
    kept[path] = open(path, "r+b", buffering=0)

def write_kept(path: str, text: str) -> None:
    kept[path].seek(0)
    kept[path].write(text.encode())

def read_kept(path: str) -> str:
    kept[path].seek(0)
    return kept[path].read().decode()

def write_and_die(path: str, text: str) -> None:
    os.write(os.open(path, os.O_WRONLY | os.O_CREAT), text.encode())
    os.kill(os.getpid(), 9)

def read_kept_at(path: str, size: int, offset: int) -> str:
    """Without a look at how large it is, which reading all of it takes first."""
    return os.pread(kept[path].fileno(), size, offset).decode()

def close_kept(path: str) -> None:
    kept.pop(path).close()

def fill(path: str) -> str:
    """What ends a file that is larger than its disk, and what its close says then."""
    file = open(path, "wb", buffering=0)
    said = []
    try:
        for _ in range(64):
            file.write(bytes(1 << 16))
        os.fsync(file.fileno())
    except OSError as error:
        said.append(error.strerror)
    try:
        file.close()
    except OSError as error:
        said.append(error.strerror)
    return ", ".join(said)

def while_the_client(path: str) -> list[str]:
    """Contents before and after the client changed the file, in the middle of an entry."""
    before = read(path)
    tell("change")
    return [before, read(path)]

def count(path: str, times: int) -> None:
    """Add to a counter in a database that others count in, too."""
    for _ in range(times):
        with sqlite3.connect(path, timeout=60) as database:
            database.execute("update counter set value = value + 1")

def log_ahead(path: str, rows: int) -> int:
    """Insert that many rows, and count all."""
    database = sqlite3.connect(path, timeout=0.1, isolation_level=None)
    try:
        for _ in range(rows):
            database.execute("insert into numbers values (1)")
        return database.execute("select count(*) from numbers").fetchone()[0]
    finally:
        database.close()

def keep_database(path: str) -> None:
    kept[path] = sqlite3.connect(path, timeout=0.1, isolation_level=None)
    kept[path].execute("insert into numbers values (1)")

def record(path: str, start: int, count: int) -> None:
    """Durable lines, each of which the client is told of."""
    with open(path, "a") as file:
        for number in range(start, start + count):
            file.write(f"{number}\\\\n")
            file.flush()
            os.fsync(file.fileno())
            tell(str(number))
'''.replace("\\\\", "\\")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("coherence")
    (home / "program.py").write_text(PROGRAM)
    return home


def shared_by(coherence: str):
    @pytest.fixture(scope="module")
    def made(home: Path) -> Iterator[Sharing]:
        shared = Sharing(home, coherence)
        yield shared
        shared.enclave.close()

    return made


strict, loose, exclusive = shared_by("strict"), shared_by("close-to-open"), shared_by("exclusive")


@pytest.fixture(params=["strict", "loose", "exclusive"])
def each(request) -> Sharing:
    return request.getfixturevalue(request.param)


def test_what_others_wrote_before_a_call_is_seen_by_it(each: Sharing) -> None:
    call = each.enclave.call
    path = each.file("seen", "one")
    for text in ("one", "other", "longer than before"):
        Path(path).write_text(text)
        assert call("read", path) == text
        assert call("size", path) == len(text)
    replacement = each.file("replacement", "replaced")
    os.rename(replacement, path)
    assert call("read", path) == "replaced"
    assert not call("exists", replacement)
    os.unlink(path)
    assert not call("exists", path)
    each.file("seen", "again")
    assert call("read", path) == "again"


def test_names_that_others_make_move_and_remove_are_seen(each: Sharing) -> None:
    call = each.enclave.call
    folder = each.path / "folder"
    folder.mkdir()
    assert call("names", str(folder)) == []
    (folder / "a").write_text("a")
    (folder / "sub").mkdir()
    (folder / "sub" / "b").write_text("b")
    assert call("names", str(folder)) == ["a", "sub"]
    assert call("read", str(folder / "sub" / "b")) == "b"
    os.rename(folder / "sub", folder / "other")
    assert not call("exists", str(folder / "sub" / "b"))
    assert call("read", str(folder / "other" / "b")) == "b"
    subprocess.run(["rm", "-r", str(folder)], check=True)
    assert not call("exists", str(folder))


def test_a_file_that_others_removed_can_be_made_again(each: Sharing) -> None:
    call = each.enclave.call
    path = each.file("again", "theirs")
    before = "theirs"
    for text in ("", "first", "second"):
        assert call("read", path) == before
        os.unlink(path)
        call("write", path, text, False)
        assert Path(path).read_text() == (before := text)


def test_what_others_wrote_is_seen_after_any_word_of_the_client(each: Sharing) -> None:
    path = each.file("middle", "before")
    each.change = lambda: each.file("middle", "after")
    assert each.enclave.call("while_the_client", path) == ["before", "after"]


def test_what_an_entry_wrote_is_there_when_it_returns(each: Sharing) -> None:
    path = each.file("kept", "")
    each.enclave.call("keep_open", path)
    for text in ("one", "three", "x" * 100_000):
        each.enclave.call("write_kept", path, text)
        assert Path(path).read_text() == text
    each.enclave.call("close_kept", path)


def test_a_file_that_is_open_shows_what_others_write_into_it(each: Sharing) -> None:
    path = each.file("open", "before")
    each.enclave.call("keep_open", path)
    assert each.enclave.call("read_kept", path) == "before"
    Path(path).write_text("behind")
    assert each.enclave.call("read_kept", path) == "behind"
    each.enclave.call("close_kept", path)


def test_what_others_append_to_an_open_file_is_read_at_once(strict: Sharing, loose: Sharing) -> None:
    for shared in (strict, loose):
        call, path = shared.enclave.call, shared.file("growing", "")
        call("keep_open", path)
        for number in range(3):
            with open(path, "a") as file:
                file.write(str(number))
            assert call("read_kept_at", path, 2, number) == str(number)
        call("close_kept", path)


def test_programs_on_both_sides_count_together(strict: Sharing, loose: Sharing) -> None:
    """Locks are the client's, and with one comes what others wrote before they gave it back."""
    for shared in (strict, loose):
        path = str(shared.path / "counter.db")
        database = sqlite3.connect(path, timeout=60, isolation_level=None)
        database.execute("create table counter (value integer)")
        database.execute("insert into counter values (0)")
        with subprocess.Popen([sys.executable, "-c", COUNTER, path, "20"]) as other:
            shared.enclave.call("count", path, 20)
        assert other.returncode == 0
        assert database.execute("select value from counter").fetchone() == (40,)
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        database.close()


@pytest.mark.long
def test_a_write_ahead_log_is_used_by_one_side_at_a_time(strict: Sharing, loose: Sharing, exclusive: Sharing) -> None:
    """Its index is memory that the two do not share: whoever comes second is told so, and no row is lost.

    In all at the same time: SQLite gives a lock up after 10 s.
    """
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(log_on_both_sides, (strict, loose, exclusive)))


def log_on_both_sides(shared: Sharing) -> None:
    call, path = shared.enclave.call, str(shared.path / "logged")

    def count_here(rows: int) -> int:
        with contextlib.closing(sqlite3.connect(path, timeout=0.1, isolation_level=None)) as database:
            for _ in range(rows):
                database.execute("insert into numbers values (1)")
            (count,) = database.execute("select count(*) from numbers").fetchone()
            return count

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table numbers (number integer)")
        database.execute("insert into numbers values (1)")
        with pytest.raises(EnclaveError, match="readonly database"):
            call("log_ahead", path, 1)
        assert call("log_ahead", path, 0) == 1
        database.execute("insert into numbers values (1)")
    assert call("log_ahead", path, 3) == 5
    call("keep_database", path)
    with pytest.raises(sqlite3.OperationalError, match="lock"):
        count_here(1)
    assert call("log_ahead", path, 1) == 7
    call("close_kept", path)
    assert count_here(1) == 8
    assert call("log_ahead", path, 1) == 9


def test_an_exclusive_file_is_kept_from_others_while_it_is_open(exclusive: Sharing) -> None:
    path = exclusive.file("mine", "text")
    exclusive.enclave.call("keep_open", path)
    with open(path, "rb") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        exclusive.enclave.call("close_kept", path)
        exclusive.enclave.call("size", path)  # the close went before
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with raises(16):  # EBUSY
            exclusive.enclave.call("read", path)


@pytest.mark.parametrize("coherence", ["strict", "close-to-open", "exclusive"])
def test_what_a_killed_program_wrote_is_there(home: Path, on_the_server, tmp_path: Path, coherence: str) -> None:
    """As it is when a program of this machine is killed: nothing was closed or synchronized."""
    policy = Policy.parse(f'[[mount]]\npath = "{tmp_path}"\ncoherence = "{coherence}"\n', name="test", base="/")
    log = tmp_path / "log"
    enclave = adyton.load(str(home / "program.py"), policy=policy, allow_write=[str(tmp_path)])
    with pytest.raises(ConnectionLostError, match="SIGKILL"), enclave:
        enclave.call("write_and_die", str(log), "the last words")
    assert log.read_text() == "the last words"


@pytest.mark.parametrize("coherence", ["close-to-open", "exclusive"])
def test_a_full_disk_is_said_once(home: Path, on_the_server, coherence: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: no small file system can be mounted, so that no disk is filled")
    with tempfile.TemporaryDirectory(prefix="disk") as disk:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "adyton-test", disk]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"NO MOUNTS HERE: no disk can be filled: {done.stderr.strip()}")
        try:
            policy = Policy.parse(f'[[mount]]\npath = "{disk}"\ncoherence = "{coherence}"\n', name="test", base="/")
            with adyton.load(str(home / "program.py"), policy=policy, allow_write=[disk]) as enclave:
                assert enclave.call("fill", f"{disk}/large") == "No space left on device"
                os.unlink(f"{disk}/large")
                enclave.call("write", f"{disk}/small", "there is room again", True)
                assert Path(disk, "small").read_text() == "there is room again"
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)


# A program of its own: locks of fcntl are a process's, and go when that closes the file anywhere, as this one's host calls do.
COUNTER = """
import sqlite3, sys
for _ in range(int(sys.argv[2])):
    with sqlite3.connect(sys.argv[1], timeout=60) as database:
        database.execute("update counter set value = value + 1")
"""


# -- durability -----------------------------------------------------------------------------------------------------------

RECORDER = """
import sys
import adyton
from adyton.config import Policy

directory, program, start = sys.argv[1:]
policy = Policy.parse(f'[[mount]]\\npath = "{directory}"\\ncoherence = "exclusive"\\n', name="test", base="/")
acknowledged = open(f"{directory}.acknowledged", "a")

def tell(text: str) -> str:
    acknowledged.write(f"{text}\\n")
    acknowledged.flush()
    print(text, flush=True)
    return text

with adyton.load(program, policy=policy, allow_write=[directory], allow_call=["tell"], functions=[tell]) as enclave:
    enclave.call("record", f"{directory}/records", int(start), 100000)
"""


@pytest.mark.parametrize("victim", ["client", "supervisor", "guest", "relay"])
def test_what_fsync_acknowledged_is_there_whoever_is_killed(home: Path, victim: str) -> None:
    directory = home / f"records-{victim}"
    directory.mkdir()
    draw = random.Random(victim)
    start = 0
    for _ in range(few_or(2, 3)):
        arguments = [sys.executable, "-c", RECORDER, str(directory), str(home / "program.py"), str(start)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            for _ in range(draw.randrange(1, 30)):
                assert client.stdout.readline()
            found = parties.descendants(client.pid)
            os.kill(client.pid if victim == "client" else parties.party(found, NAMES[victim]), signal.SIGKILL)
            client.communicate(timeout=60)
        for pid in found:
            _wait_until_gone(pid)
        acknowledged = Path(f"{directory}.acknowledged").read_text().split()
        records = (directory / "records").read_text().split("\n")
        assert set(acknowledged) <= set(records)
        start = len(records) + 1000


NAMES = {"supervisor": "adyton-super", "guest": "enclave", "relay": "python"}


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline, pid
        threading.Event().wait(0.01)
