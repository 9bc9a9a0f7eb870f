"""sync and syncfs: what the enclave has done is durable on the client, and what went wrong behind an answer is said."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from caching_client import CachingClient, CachingKernel
from enclave_sockets import enclave
from executing import Client, furnished

from adyton.hostcall import abi
from adyton.hostcall.client import written
from adyton.runtime.process.supervisor import fuse_abi
from adyton.runtime.process.supervisor.fuse_abi import Opcode
from adyton.runtime.process.supervisor.syncing import steps

# -- the client ---------------------------------------------------------------------------------------------------------


class Libc:
    """Notes which file systems are written out; `fails`: the errno of syncfs."""

    def __init__(self) -> None:
        self.synced: list[str] = []
        self.fails = 0

    def syncfs(self, descriptor: ctypes.c_int) -> int:
        self.synced.append(os.readlink(f"/proc/self/fd/{descriptor.value}"))
        ctypes.set_errno(self.fails)
        return -1 if self.fails else 0


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    made = Libc()
    monkeypatch.setattr(written, "_libc", made)
    return made


@pytest.fixture
def client(tmp_path: Path) -> Generator[Client, Any, None]:
    made = Client(furnished(tmp_path))
    with made.executor:
        yield made


def test_the_file_systems_that_were_written_to_are_written_out_once(client: Client, libc: Libc) -> None:
    client.open("read/file", 1)
    assert client(abi.SyncAll()) == abi.Done()
    assert libc.synced == []
    client.open("write/new", 2, "write", create=True)
    client(abi.MakeDirectory(client.path("write/sub"), 0o755))
    assert client(abi.SyncAll()) == client(abi.SyncAll()) == abi.Done()
    assert libc.synced == [client.path("write")]


def test_what_could_not_be_written_out_is_tried_again(client: Client, libc: Libc) -> None:
    client.open("write/new", 1, "write", create=True)
    libc.fails = errno.EIO
    assert client(abi.SyncAll()) == abi.Failed("EIO")
    libc.fails = 0
    assert client(abi.SyncAll()) == abi.Done()
    assert len(libc.synced) == 2


def test_a_directory_that_is_gone_stands_for_the_one_above(
    client: Client, libc: Libc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "MAX_NOTED", 2)
    for number in range(5):
        path = client.path(f"write/d{number}")
        client(abi.MakeDirectory(path, 0o755))
        client(abi.MakeDirectory(f"{path}/in", 0o755))
        client(abi.Remove(f"{path}/in", directory=True))
        client(abi.Remove(path, directory=True))
    assert client(abi.SyncAll()) == abi.Done()
    assert libc.synced == [client.path("write")]


# -- the enclave --------------------------------------------------------------------------------------------------------


def synced(kernel: CachingKernel) -> int:
    """The errno of a syncfs."""
    answers: list[int] = []
    kernel.apply(kernel.server.begin(steps(), lambda _value, error: answers.append(error)))
    kernel.run()
    (answer,) = answers
    return answer


class Durable(CachingClient):
    """`durable`: what each file had when all was written out."""

    durable: dict[str, bytes] | None = None

    def _syncall(self, _request: abi.SyncAll) -> abi.Result:
        self.durable = {path: bytes(thing.data) for path, thing in self.things.items() if thing.kind == "file"}
        return abi.Done()


@pytest.mark.parametrize("coherence", ["strict", "close-to-open", "exclusive"])
def test_what_was_written_before_is_durable(coherence) -> None:
    client = Durable({"/work": "write"})
    kernel = CachingKernel.of(client, coherence, lags=True)
    opened = kernel.open("/work/f", os.O_WRONLY | os.O_CREAT)
    for number in range(10):
        kernel.pwrite(opened, b"x" * 1000, number * 1000)
    assert synced(kernel) == 0
    assert client.durable is not None
    assert client.durable["/work/f"] == b"x" * 10_000


def test_what_went_wrong_behind_an_answer_is_said_once_and_to_fsync_too() -> None:
    client = Durable({"/work": "write"})
    kernel = CachingKernel.of(client, "close-to-open", lags=True)
    opened = kernel.open("/work/f", os.O_WRONLY | os.O_CREAT)
    client.fails = lambda request: "ENOSPC" if isinstance(request, abi.Write) else None
    kernel.pwrite(opened, b"x", 0)
    assert synced(kernel) == errno.ENOSPC
    assert synced(kernel) == 0
    with pytest.raises(OSError, match="No space"):
        kernel.request(Opcode.FSYNC, opened[0], fuse_abi.Sync(opened[1], 0))


def test_a_client_that_cannot_says_so() -> None:
    client = Durable({"/work": "write"})
    kernel = CachingKernel.of(client, "close-to-open")
    client.fails = lambda request: "EIO" if isinstance(request, abi.SyncAll) else None
    assert synced(kernel) == errno.EIO


# -- end to end ---------------------------------------------------------------------------------------------------------

PROGRAM = """
    import ctypes, mmap, os
    libc = ctypes.CDLL(None, use_errno=True)
    def syncfs(descriptor):
        return ctypes.get_errno() if libc.syncfs(descriptor) else 0
    written = os.open(top + "/written", os.O_WRONLY | os.O_CREAT)
    os.write(written, b"x" * 100_000)
    mapped = os.open(top + "/mapped", os.O_RDWR | os.O_CREAT)
    os.truncate(mapped, 4096)
    memory = mmap.mmap(mapped, 4096)
    memory[:3] = b"abc"
    os.sync()
    result = [syncfs(written), syncfs(os.open("/tmp", os.O_RDONLY)), syncfs(os.pipe()[0]), syncfs(9999)]
"""


@pytest.mark.sandbox
def test_a_program_has_its_files_written_out(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with enclave(tmp_path, allow_write=[str(tmp_path / "work")]) as at_work:
        assert at_work.run(PROGRAM, top=str(tmp_path / "work")) == [0, 0, 0, errno.EBADF]
        assert (tmp_path / "work/written").read_bytes() == b"x" * 100_000
        assert (tmp_path / "work/mapped").read_bytes()[:3] == b"abc"
        assert at_work.client.stats()["host_calls"]["syncfs"] == 4
