"""The guest's file tree: /sealed, on this server's disk and on the client's."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_client import FakeClient
from fake_kernel import FakeKernel, nothing_wanted, raises
from simulated_disk import Keys

from adyton.hostcall import abi
from adyton.hostcall.lock_ranges import LockRanges
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor import sealed as of_sealed
from adyton.runtime.process.supervisor.files import FileServer
from adyton.runtime.process.supervisor.fuse_abi import Opcode
from adyton.runtime.process.supervisor.sealed_place import SealedPlace

CAPACITY = 32 << 20
CONTAINER = "/home/ann/sealed"
PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


class Sealed:
    """A place for a container, and enclaves one after the other. `said`: what their clients were told."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.path = folder / "container"
        self.client = FakeClient({"/work": "write", CONTAINER: "write"})
        self.client.directory("/work")
        self.client.directory("/home/ann")
        self.memory = folder / "remembered"
        self.rememberer = FakeClient({"/work": "write"})
        self.rememberer.directory("/work")
        self.said: list[str] = []
        self.errors: list[int] = []

    def forget(self) -> None:
        """What is remembered is lost."""
        self.memory.unlink(missing_ok=True)
        self.rememberer.notes.clear()

    def start(self, capacity: int = CAPACITY, *, demands: bool = False) -> FakeKernel:
        client = self.client if self.kind == "client" else self.rememberer
        client.handles.clear()
        client.flocks = LockRanges()
        kernel = FakeKernel(FileServer(wanted=nothing_wanted, clock=lambda: kernel.now), client)
        kernel.request(Opcode.INIT, 0, fuse_abi.Init(7, 44, 1 << 17, 0xFFFFFFFF))
        kernel.server.set_layout(client.layout())
        container, memory = (
            (opened(self.path), "measurement") if self.kind == "server" else (CONTAINER, opened(self.memory))
        )
        self.errors = []
        place = SealedPlace(Keys(), capacity, container, memory, demands)
        kernel.apply(kernel.server.open_sealed(place, self.said.append, self.errors.append))
        kernel.run()
        return kernel

    @property
    def container(self) -> bytes:
        return self.path.read_bytes() if self.kind == "server" else bytes(self.client.things[CONTAINER].data)

    @container.setter
    def container(self, data: bytes) -> None:
        if self.kind == "server":
            self.path.write_bytes(data)
        else:
            self.client.things[CONTAINER].data[:] = data


@pytest.fixture(params=["server", "client"])
def sealed(request: pytest.FixtureRequest, tmp_path: Path) -> Sealed:
    return Sealed(request.param, tmp_path)


def settled(kernel: FakeKernel) -> None:
    effects, pending = kernel.server.settle()
    kernel.apply(effects)
    kernel.run()
    assert pending is None or pending.result is not None


def test_files_are_there_again_when_the_enclave_is_started_anew(sealed: Sealed) -> None:
    kernel = sealed.start()
    assert sealed.errors == [0]
    assert stat.S_ISDIR(kernel.lookup("/sealed").attr.mode)
    kernel.mkdir("/sealed/d")
    kernel.write("/sealed/d/f", b"0123456789" * 1000)
    kernel.symlink("d/f", "/sealed/l")
    kernel.write("/sealed/gone", b"x")
    kernel.unlink("/sealed/gone")
    settled(kernel)
    again = sealed.start()
    assert sorted(again.listdir("/sealed")) == ["d", "l"]
    assert again.read("/sealed/d/f") == b"0123456789" * 1000
    assert stat.S_ISLNK(again.lookup("/sealed/l").attr.mode)
    assert sealed.said == []


def test_a_sync_of_one_file_makes_all_changes_durable(sealed: Sealed) -> None:
    kernel = sealed.start()
    kernel.write("/sealed/other", b"other")
    node, handle = kernel.open("/sealed/f", os.O_WRONLY | os.O_CREAT)
    kernel.pwrite((node, handle), b"synced", 0)
    kernel.request(Opcode.FSYNC, node, fuse_abi.Sync(handle, 0))
    again = sealed.start()
    assert (again.read("/sealed/f"), again.read("/sealed/other")) == (b"synced", b"other")


def test_what_was_not_synced_may_be_gone_and_the_rest_is_whole(sealed: Sealed) -> None:
    kernel = sealed.start()
    kernel.write("/sealed/f", b"first")
    settled(kernel)
    kernel.write("/sealed/f", b"second")
    kernel.rename("/sealed/f", "/sealed/g")
    again = sealed.start()
    assert again.listdir("/sealed") == ["f"]
    assert again.read("/sealed/f") == b"first"


def test_the_container_has_neither_content_nor_names(sealed: Sealed) -> None:
    kernel = sealed.start()
    kernel.write("/sealed/a-name-to-look-for", b"content-to-look-for" * 100)
    settled(kernel)
    assert b"a-name-to" not in sealed.container
    assert b"content-to" not in sealed.container


def test_a_container_that_was_changed_is_an_error_and_is_said_once(sealed: Sealed) -> None:
    kernel = sealed.start()
    kernel.write("/sealed/f", b"x" * 100_000)
    settled(kernel)
    whole = sealed.container
    for offset in range(2 * 4096, len(whole), 4096):
        changed = bytearray(whole)
        changed[offset + 5] ^= 1
        sealed.container = bytes(changed)
        sealed.said.clear()
        kernel = sealed.start()
        if sealed.errors == [0]:
            with raises(errno.EIO):
                kernel.read("/sealed/f")
            with raises(errno.EIO):
                kernel.read("/sealed/f")
        else:
            assert sealed.errors == [errno.EIO]
            with raises(errno.ENOENT):
                kernel.lookup("/sealed")
        assert len(sealed.said) == 1
        assert "changed outside of the enclave" in sealed.said[0]


def test_a_container_that_was_set_back_as_a_whole_is_not_opened(sealed: Sealed) -> None:
    kernel = sealed.start()
    kernel.write("/sealed/f", b"first")
    settled(kernel)
    first = sealed.container
    kernel.write("/sealed/f", b"second")
    settled(kernel)
    second = sealed.container
    sealed.container = first
    sealed.start()
    assert sealed.errors == [errno.EIO]
    assert "were set back: their container is at commit 1, and commit 2" in sealed.said[-1]
    if sealed.kind == "client":  # and the container is another enclave's
        assert not any(sealed.client.flocks.in_the_way(2, "write", 0, 1 << 62))
    sealed.container = second
    assert sealed.start().read("/sealed/f") == b"second"
    sealed.container = b""
    kernel = sealed.start()
    if sealed.kind == "client":  # a client can always begin anew: he has nothing then
        assert kernel.listdir("/sealed") == []
    else:
        assert sealed.errors == [errno.EIO]
        assert "are gone" in sealed.said[-1]


def test_sealed_files_that_nobody_remembers_are_said_and_can_be_refused(sealed: Sealed) -> None:
    kernel = sealed.start(demands=True)
    kernel.write("/sealed/f", b"kept")
    settled(kernel)
    assert sealed.said == []
    sealed.forget()
    sealed.start(demands=True)
    assert sealed.errors == [errno.EIO]
    assert "nothing is remembered of them" in sealed.said[-1]
    sealed.start()
    assert sealed.errors == [0]
    assert sealed.said[-1].startswith("nothing was remembered of these sealed files")
    sealed.said.clear()
    assert sealed.start(demands=True).read("/sealed/f") == b"kept"
    assert sealed.said == []


def test_two_enclaves_with_copies_of_a_container_do_not_both_go_on(sealed: Sealed) -> None:
    kernel = sealed.start()
    kernel.write("/sealed/f", b"first")
    settled(kernel)
    copy = sealed.container
    one = sealed.start()
    if sealed.kind == "server":
        sealed.path = sealed.path.with_name("copy")
        sealed.path.write_bytes(copy)
    else:
        sealed.client = FakeClient({"/work": "write", CONTAINER: "write"})
        sealed.client.directory("/work")
        sealed.client.directory("/home/ann")
        sealed.client.file(CONTAINER, copy)
    other = sealed.start()
    one.write("/sealed/f", b"one")
    settled(one)
    node, handle = other.open("/sealed/f", os.O_WRONLY)
    other.pwrite((node, handle), b"other", 0)
    with raises(errno.EIO):
        other.request(Opcode.FSYNC, node, fuse_abi.Sync(handle, 0))
    assert sealed.said == [
        "sealed files: another enclave has gone on with a copy of these sealed files: load this one again"
    ]


def test_after_the_programs_finalize_the_container_is_another_enclaves(sealed: Sealed) -> None:
    kernel = sealed.start()
    kernel.write("/sealed/f", b"kept")
    effects, pending = kernel.server.settle(last=True)
    kernel.apply(effects)
    kernel.run()
    assert pending is None or pending.result is not None
    if sealed.kind == "client":
        assert not any(sealed.client.flocks.in_the_way(2, "write", 0, 1 << 62))
    before = sealed.container
    for call in (lambda: kernel.read("/sealed/f"), lambda: kernel.write("/sealed/f", b"later")):
        with raises(errno.EIO):
            call()
    settled(kernel)
    assert sealed.container == before
    assert sealed.start().read("/sealed/f") == b"kept"


def test_an_enclave_that_keeps_nothing_makes_no_container(sealed: Sealed) -> None:
    kernel = sealed.start()
    assert kernel.listdir("/sealed") == []
    settled(kernel)
    assert sealed.container == b""


def test_sealed_files_are_a_file_system_of_their_own(sealed: Sealed) -> None:
    kernel = sealed.start()
    kernel.write("/sealed/f", b"sealed")
    kernel.write("/work/f", b"the client's")
    for source, target in (("/sealed/f", "/work/g"), ("/work/f", "/sealed/g")):
        with raises(errno.EXDEV):
            kernel.rename(source, target)
    with raises(errno.EBUSY):
        kernel.rmdir("/sealed")
    with raises(errno.EBUSY):
        kernel.rename("/sealed", "/work/sealed")


def test_a_file_that_is_removed_while_it_is_open_can_be_used_until_it_is_closed(sealed: Sealed) -> None:
    kernel = sealed.start()
    kernel.write("/sealed/f", b"before")
    node, handle = kernel.open("/sealed/f", os.O_RDWR)
    kernel.unlink("/sealed/f")
    settled(kernel)
    kernel.pwrite((node, handle), b"after", 0)
    settled(kernel)
    assert kernel.pread((node, handle), 10, 0) == b"aftere"
    kernel.close((node, handle))
    settled(kernel)
    assert sealed.start().listdir("/sealed") == []


def test_without_sealed_files_there_is_none_and_who_looks_is_told_once() -> None:
    client = FakeClient({"/work": "write"})
    kernel = FakeKernel.loaded(client)
    said: list[str] = []
    kernel.server.no_sealed(said.append)
    for _ in range(2):
        with raises(errno.ENOENT):
            kernel.lookup("/sealed/f")
    assert len(said) == 1
    assert "--sealed DIR" in said[0]


def test_a_full_disk_is_no_space(sealed: Sealed) -> None:
    kernel = sealed.start(capacity=300 * 4096)
    with raises(errno.ENOSPC):
        opened = kernel.open("/sealed/f", os.O_WRONLY | os.O_CREAT)
        for offset in range(0, 2_000_000, 100_000):
            kernel.pwrite(opened, b"x" * 100_000, offset)
    kernel.close(opened)
    kernel.unlink("/sealed/f")
    settled(kernel)
    kernel.write("/sealed/g", b"y" * 130_000)
    settled(kernel)
    assert sealed.start().read("/sealed/g") == b"y" * 130_000


def fill(kernel: FakeKernel, make: Callable[[int], object]) -> int:
    """How many there was room for."""
    made = 0
    with raises(errno.ENOSPC):
        while made < 10_000:
            make(made)
            made += 1
    assert made < 10_000
    return made


@pytest.mark.parametrize("removed_together", [1, 7, 10_000])
def test_a_full_disk_can_be_emptied(sealed: Sealed, removed_together: int) -> None:
    """Of many files, whose names and records take more than any fixed number of blocks."""
    kernel = sealed.start(capacity=900 * 4096)
    for number in range(30):
        kernel.mkdir(f"/sealed/d{number}")
    name = "n" * 200
    makes = (
        lambda number: kernel.write(f"/sealed/d{number % 30}/{name}{number}", b"x"),
        lambda number: kernel.symlink("t" * 600, f"/sealed/d{number % 30}/l{name}{number}"),
        lambda number: kernel.mkdir(f"/sealed/d{number % 30}/d{name}{number}"),
    )
    made = [fill(kernel, make) for make in makes]
    settled(kernel)
    for index, make in enumerate(makes):
        first = made[index]
        made[index] += fill(kernel, lambda number: make(first + number))  # noqa: B023 - it is called here
    settled(kernel)
    kernel = sealed.start(capacity=900 * 4096)
    removed = 0
    for number in range(30):
        for each in kernel.listdir(f"/sealed/d{number}"):
            path = f"/sealed/d{number}/{each}"
            kernel.rmdir(path) if each.startswith("d") else kernel.unlink(path)
            removed += 1
            if removed < 50 and removed % removed_together == 0:
                settled(kernel)
    settled(kernel)
    assert sealed.said == []
    assert made[0] > 250
    kernel.write("/sealed/g", b"y" * 2_000_000)
    settled(kernel)
    assert sealed.start().lookup("/sealed/g").attr.size == 2_000_000
    assert sealed.said == []


def test_what_is_written_far_apart_has_room_for_what_leads_to_it(sealed: Sealed) -> None:
    kernel = sealed.start(capacity=900 * 4096)
    opened = kernel.open("/sealed/f", os.O_WRONLY | os.O_CREAT)
    fill(kernel, lambda number: kernel.pwrite(opened, b"x", number << 26))
    kernel.close(opened)
    settled(kernel)
    kernel.unlink("/sealed/f")
    settled(kernel)
    assert sealed.said == []
    assert sealed.start().listdir("/sealed") == []


def test_a_hole_gives_back_what_was_there(sealed: Sealed) -> None:
    kernel = sealed.start(capacity=900 * 4096)
    opened = kernel.open("/sealed/f", os.O_RDWR | os.O_CREAT)
    kernel.pwrite(opened, b"x" * 1_000_000, 0)
    kernel.pwrite(opened, b"x", 60 << 40)
    settled(kernel)
    node, handle = opened
    kernel.request(Opcode.FALLOCATE, node, fuse_abi.Allocate(handle, 5000, 60 << 40, PUNCH_HOLE))
    settled(kernel)
    kernel.pwrite(opened, b"y" * 1_900_000, 1_000_000)
    settled(kernel)
    kernel = sealed.start(capacity=900 * 4096)
    opened = kernel.open("/sealed/f", os.O_RDWR)
    assert kernel.pread(opened, 1_000_001, 0) == b"x" * 5000 + bytes(995_000) + b"y"
    assert kernel.lookup("/sealed/f").attr.size == (60 << 40) + 1


def test_a_commit_that_nobody_waits_for_and_fails_is_said(sealed: Sealed) -> None:
    if sealed.kind == "server":
        sealed.path = Path("/dev/full")
    else:
        sealed.client._write = lambda _request: abi.Failed("ENOSPC")
    kernel = sealed.start()
    kernel.write("/sealed/f", b"x")
    settled(kernel)
    assert sealed.said == ["sealed files: what was changed is not on the disk: No space left on device"]


def test_names_and_files_without_one_are_bounded(sealed: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_sealed, "MAX_OBJECTS", 32)
    kernel = sealed.start()
    for _ in range(50):  # each is gone when it is closed
        unnamed = kernel.request(
            Opcode.TMPFILE, kernel.lookup("/sealed").node, fuse_abi.Create(os.O_RDWR, 0o600, 0, b"/")
        )
        entry, rest = kernel.entry(unnamed)
        kernel.close((entry.node, fuse_answers.unpack_open(rest).handle))
    kernel.write("/sealed/f", b"x")

    def filled() -> int:
        made = fill(kernel, lambda number: kernel.link("/sealed/f", f"/sealed/{number}"))
        for full in (
            lambda: kernel.write("/sealed/g", b"x"),
            lambda: kernel.mkdir("/sealed/g"),
            lambda: kernel.request(
                Opcode.TMPFILE, kernel.lookup("/sealed").node, fuse_abi.Create(os.O_RDWR, 0o600, 0, b"/")
            ),
        ):
            with raises(errno.ENOSPC):
                full()
        return made

    assert filled() == 29
    settled(kernel)
    kernel = sealed.start()
    assert filled() == 0
    for number in range(29):
        kernel.unlink(f"/sealed/{number}")
    kernel.symlink("t" * 4000, "/sealed/l")  # as much memory as several names
    settled(kernel)
    kernel = sealed.start()
    few = filled()
    assert few < 25
    for number in range(few):
        kernel.unlink(f"/sealed/{number}")
    kernel.unlink("/sealed/l")
    assert filled() == 29
