"""A server's disk that is slow holds up those who wait for it, and nobody else."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_client import FakeClient
from fake_kernel import FakeKernel, nothing_wanted, raises
from simulated_disk import Keys

from adyton.runtime.process.supervisor import fuse_abi
from adyton.runtime.process.supervisor.calls import OwnPending
from adyton.runtime.process.supervisor.disk_thread import DiskThread
from adyton.runtime.process.supervisor.files import FileServer
from adyton.runtime.process.supervisor.fuse_abi import Opcode
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.sealed_place import SealedPlace
from adyton.runtime.process.supervisor.sealed_storage import tried


class SlowDisk:
    """Does what it is asked when it is told to, in order."""

    def __init__(self) -> None:
        self.asked: list[tuple[OwnPending, Callable[[], Any]]] = []

    def do(self, function: Callable[[], Any]) -> OwnPending:
        pending = OwnPending()
        self.asked.append((pending, function))
        return pending

    def go_on(self, kernel: FakeKernel) -> None:
        while self.asked:
            pending, function = self.asked.pop(0)
            pending.finish(tried(function))
            kernel.apply(kernel.server.flush())
        kernel.run()


class Kernel(FakeKernel):
    """With sealed files on a slow disk, whom each request waits for unless it is only sent."""

    disk: SlowDisk

    def run_until(self, unique: int) -> None:
        super().run_until(unique)
        self.disk.go_on(self)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    client = FakeClient({"/work": "write"})
    client.directory("/work")
    client.file("/work/f", b"the client's")
    kernel = Kernel(FileServer(wanted=nothing_wanted, clock=lambda: kernel.now), client)
    kernel.disk = SlowDisk()
    kernel.request(Opcode.INIT, 0, fuse_abi.Init(7, 44, 1 << 17, 0xFFFFFFFF))
    kernel.server.set_layout(client.layout())
    container, memory = (os.open(tmp_path / name, os.O_RDWR | os.O_CREAT, 0o600) for name in ("container", "memory"))
    errors: list[int] = []
    place = SealedPlace(Keys(), 32 << 20, container, memory, do=kernel.disk.do)
    kernel.apply(kernel.server.open_sealed(place, lambda _text: None, errors.append))
    kernel.disk.go_on(kernel)
    assert errors == [0]
    return kernel


def test_other_files_are_served_while_the_disk_is_waited_for(kernel: Kernel) -> None:
    node, handle = kernel.open("/sealed/f", os.O_RDWR | os.O_CREAT)
    kernel.pwrite((node, handle), b"sealed", 0)
    before = kernel.server.waits.round_trips
    sync = kernel.send(Opcode.FSYNC, node, fuse_abi.Sync(handle, 0))
    read = kernel.send(Opcode.READ, node, fuse_abi.Read(handle, 0, 10))
    assert kernel.server.waits.round_trips == before, "the client is not waited for"
    assert sync not in kernel.answers
    disk, kernel.disk = kernel.disk, SlowDisk()
    assert kernel.read("/work/f") == b"the client's"
    assert not {sync, read} & set(kernel.answers)
    disk.go_on(kernel)
    kernel.taken(sync)
    assert kernel.taken(read) == b"sealed"


def test_who_is_told_that_an_entry_has_returned_waits_for_the_disk(kernel: Kernel) -> None:
    kernel.write("/sealed/f", b"sealed")
    effects, pending = kernel.server.settle()
    kernel.apply(effects)
    assert pending is not None
    assert pending.result is None
    kernel.disk.go_on(kernel)
    assert pending.result is not None


def test_what_the_disk_says_comes_back_to_who_waits(kernel: Kernel) -> None:
    node, handle = kernel.open("/sealed/f", os.O_RDWR | os.O_CREAT)
    kernel.pwrite((node, handle), b"sealed", 0)
    sync = kernel.send(Opcode.FSYNC, node, fuse_abi.Sync(handle, 0))

    def fails() -> None:
        raise OSError(errno.ENOSPC, "it is full")

    (pending, _), *rest = kernel.disk.asked
    kernel.disk.asked = [(pending, fails), *rest]
    kernel.disk.go_on(kernel)
    with raises(errno.ENOSPC):
        kernel.taken(sync)


def test_the_loop_goes_on_while_the_disk_is_waited_for_and_the_order_stays() -> None:
    loop, thread = Loop(), DiskThread()
    thread.start()
    may_go_on = threading.Event()
    told: list[object] = []

    def slow() -> str:
        assert may_go_on.wait(60)
        return "slow"

    def fails() -> None:
        raise OSError(errno.EIO, "it fails")

    thread.attach(loop, lambda: None)
    for function in (slow, lambda: "fast", fails):
        thread.do(function).after.append(told.append)
    loop.soon(lambda: told.append("meanwhile"))
    loop.turn()
    assert told == ["meanwhile"]
    may_go_on.set()
    while len(told) < 4:
        loop.turn()
    loop.close()
    assert [each.value for each in told[1:3]] == ["slow", "fast"]
    assert isinstance(told[3].error, OSError)
