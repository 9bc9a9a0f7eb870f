"""/sealed in enclaves, whose container is on the client's disk or on the server's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sandbox import children
from thorough import few_or, part_of

import adyton
from adyton import EnclaveClient
from adyton.errors import AdytonError, EnclaveError, IntegrityError

pytestmark = pytest.mark.sandbox

PROGRAM = '''
import mmap, os, sqlite3

def put(name: str, data: bytes, sync: bool) -> None:
    with open(f"/sealed/{name}", "wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())

def get(name: str) -> bytes:
    with open(f"/sealed/{name}", "rb") as file:
        return file.read()

def mapped(name: str) -> bytes:
    with open(f"/sealed/{name}", "rb") as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
            return memory[:]

def names() -> list[str]:
    return sorted(os.listdir("/sealed"))

def moves() -> list[str]:
    os.makedirs("/sealed/a/b")
    put("a/b/f", b"moved", False)
    os.rename("/sealed/a/b", "/sealed/c")
    os.link("/sealed/c/f", "/sealed/a/g")
    os.truncate("/sealed/a/g", 3)
    os.symlink("c/f", "/sealed/l")
    os.unlink("/sealed/c/f")
    return sorted(os.path.join(folder, each) for folder, _, files in os.walk("/sealed") for each in files)

def rows(mode: str, count: int) -> int:
    base = sqlite3.connect(f"/sealed/{mode}.db", isolation_level=None)
    assert base.execute(f"PRAGMA journal_mode={mode}").fetchone()[0] == mode
    base.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, secret TEXT)")
    for _ in range(count):
        base.execute("BEGIN")
        base.execute("INSERT INTO t (secret) VALUES (?)", ("a secret of the database",))
        base.execute("COMMIT")
    assert base.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    return base.execute("SELECT count(*) FROM t").fetchone()[0]

def rows_for_ever(mode: str, path: str) -> None:
    """Says after each commit how many there are."""
    base = sqlite3.connect(f"/sealed/{mode}.db", isolation_level=None)
    base.execute(f"PRAGMA journal_mode={mode}")
    base.execute("PRAGMA synchronous=EXTRA")  # for mode "delete", FULL does not sync the directory from which the journal has gone
    base.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, secret TEXT)")
    done = base.execute("SELECT count(*) FROM t").fetchone()[0]
    with open(path, "w") as told:
        while True:
            base.execute("INSERT INTO t (secret) VALUES (hex(randomblob(3000)))")
            done += 1
            print(done, file=told, flush=True)
'''


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "keeper.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def load(
    program: Path, tmp_path: Path, on_the_server
) -> Callable[..., contextlib.AbstractContextManager[EnclaveClient]]:
    """An enclave whose container is on the client's disk."""
    (tmp_path / "out").mkdir()
    return lambda **how: adyton.load(
        program, **{"sealed": tmp_path / "sealed", "allow_write": [tmp_path / "out"], **how}
    )


def test_files_outlive_the_enclave(load, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    with load() as enclave:
        enclave.call("put", "large", content, sync=True)
        enclave.call("put", "small", b"not synced by the program", sync=False)
    container = tmp_path / "sealed" / "keeper.sealed"
    assert container.stat().st_mode & 0o777 == 0o600
    data = container.read_bytes()
    assert b"not synced by" not in data
    assert b"small" not in data
    with load() as enclave:
        assert enclave.call("names") == ["large", "small"]
        assert enclave.call("get", "large") == content
        assert enclave.call("mapped", "large") == content
        assert enclave.call("get", "small") == b"not synced by the program"
        assert enclave.call("moves") == ["/sealed/a/g", "/sealed/l", "/sealed/large", "/sealed/small"]
    with load() as enclave:
        assert enclave.call("get", "a/g") == b"mov"


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_sqlite_works_and_its_database_is_there_again(load, mode: str, tmp_path: Path) -> None:
    for rows in (20, 40):
        with load() as enclave:
            assert enclave.call("rows", mode, 20) == rows
    assert b"a secret of" not in (tmp_path / "sealed" / "keeper.sealed").read_bytes()


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_what_was_committed_is_there_when_the_supervisor_was_killed(load, mode: str, tmp_path: Path) -> None:
    """At any moment: the database is whole, and has all that its program was told to be durable."""
    told = tmp_path / "out" / "told"
    done = 0
    for times in range(few_or(2, 4)):
        told.unlink(missing_ok=True)
        with contextlib.suppress(AdytonError), load() as enclave:
            running = enclave.submit("rows_for_ever", mode, str(told))
            while not told.exists() or told.read_text().count("\n") < 3 + 4 * times:
                assert not running.done()
            for pid in supervisors():
                os.kill(pid, signal.SIGKILL)
            running.exception()
        done = max(done, int(told.read_text().rpartition("\n")[0].rpartition("\n")[2]))
        with load() as enclave:
            found = enclave.call("rows", mode, 0)
            assert done <= found  # what was told of may be more than what has reached the file by then
            done = found


def supervisors() -> Iterator[int]:
    for pid in children(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "adyton-super":
                yield pid


def test_a_changed_container_is_an_error_that_is_said(load, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with load() as enclave:
        enclave.call("put", "f", b"x" * 10_000, sync=True)
    container = tmp_path / "sealed" / "keeper.sealed"
    whole = container.read_bytes()
    capfd.readouterr()
    failed = 0
    for slot in part_of(range(2, len(whole) // 4096), 2):
        data = bytearray(whole)
        data[slot * 4096 + 7] ^= 1
        container.write_bytes(data)
        try:
            with load() as enclave:
                assert enclave.call("get", "f") == b"x" * 10_000  # that slot is not in use
        except (EnclaveError, IntegrityError) as error:
            failed += 1
            assert isinstance(error, IntegrityError | OSError)  # noqa: PT017 - one of them, if any
            assert capfd.readouterr().err.count("adyton: the sealed files were changed outside of the enclave") == 1
    assert failed >= few_or(2, 4)


def test_another_program_cannot_open_them(load, program: Path, tmp_path: Path) -> None:
    with load() as enclave:
        enclave.call("put", "f", b"mine", sync=True)
    program.write_text(PROGRAM + "\n\ndef another() -> None: ...\n")
    with pytest.raises(IntegrityError, match="it was sealed to the image"), load():
        pass


def test_two_enclaves_do_not_have_them_at_once(load) -> None:
    with load() as first:
        with pytest.raises(AdytonError, match="another enclave has the sealed files"), load():
            pass
        first.call("put", "f", b"x", sync=True)


def test_without_a_place_for_them_there_are_none(load, capfd: pytest.CaptureFixture[str]) -> None:
    with load(sealed=None) as enclave, pytest.raises(FileNotFoundError):
        enclave.call("get", "f")
    assert capfd.readouterr().err.count("adyton: there is no /sealed: give --sealed DIR") == 1


def test_a_servers_disk_has_them_and_its_enclaves_one_container_each(program: Path, tmp_path: Path) -> None:
    folder = tmp_path / "of-the-server"
    for content in (None, b"kept"):
        with subprocess.Popen(
            [sys.executable, "-m", "adyton.cli", "serve", "--port", "0", "--sealed-directory", str(folder)],
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().split()[-1]
                with adyton.load(program, on=f"grpc://{address}", allow_sim=True) as enclave:
                    if content is None:
                        enclave.call("put", "f", b"kept", sync=False)
                        assert enclave.call("rows", "delete", 3) == 3
                    else:
                        assert enclave.call("get", "f") == content
                        assert enclave.call("rows", "delete", 3) == 6
            finally:
                server.terminate()
    (container,) = folder.glob("sha256-*/container")
    data = container.read_bytes()
    assert b"kept" not in data
    assert b"a secret" not in data
