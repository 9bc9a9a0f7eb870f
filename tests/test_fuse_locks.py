"""Locks in the guest's file tree: the client's asked for in order, the private ones kept here; who waits, and how that ends."""

from __future__ import annotations

import errno
import fcntl
import os

import hypothesis.strategies as st
import pytest
from fake_client import FakeClient
from fake_kernel import FakeKernel, raises
from hypothesis import given

from adyton.hostcall import abi
from adyton.hostcall.lock_ranges import LAST, LockRanges
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.fuse_abi import Opcode

READ, WRITE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
BOTH = pytest.mark.parametrize("path", ["/work/out/f", "/tmp/f"])


@pytest.fixture
def client() -> FakeClient:
    client = FakeClient({"/work/out": "write", "/tmp/shared": "write"})
    client.directory("/work/out")
    client.directory("/tmp/shared")
    return client


@pytest.fixture
def kernel(client: FakeClient) -> FakeKernel:
    return FakeKernel.loaded(client)


def opened(kernel: FakeKernel, path: str) -> tuple[int, int]:
    return kernel.open(path, os.O_RDWR | os.O_CREAT)


def lock(
    kernel: FakeKernel,
    file: tuple[int, int],
    owner: int,
    kind: int = WRITE,
    start: int = 0,
    end: int = LAST,
    *,
    opcode: Opcode = Opcode.SETLK,
    flags: int = 0,
) -> bytes:
    return kernel.request(opcode, file[0], fuse_abi.Lock(file[1], owner, start, end, kind, owner + 100, flags))


def wait(kernel: FakeKernel, file: tuple[int, int], owner: int, start: int = 0, end: int = LAST, flags: int = 0) -> int:
    """The unique of a wait for a write lock."""
    body = fuse_abi.Lock(file[1], owner, start, end, WRITE, owner + 100, flags)
    return kernel.send(Opcode.SETLKW, file[0], body)


def flush(kernel: FakeKernel, file: tuple[int, int], owner: int) -> None:
    kernel.request(Opcode.FLUSH, file[0], fuse_abi.Flush(file[1], owner))


@BOTH
@pytest.mark.parametrize("flags", [0, fuse_abi.LOCK_FLOCK])
def test_owners_stand_in_each_others_way(kernel: FakeKernel, path: str, flags: int) -> None:
    file, other = opened(kernel, path), opened(kernel, path)
    lock(kernel, file, 1, READ, flags=flags)
    lock(kernel, other, 2, READ, flags=flags)
    with raises(errno.EAGAIN):
        lock(kernel, other, 2, WRITE, flags=flags)
    lock(kernel, file, 1, NONE, flags=flags)
    lock(kernel, other, 2, WRITE, flags=flags)
    with raises(errno.EAGAIN):
        lock(kernel, file, 1, READ, flags=flags)
    lock(kernel, file, 1, WRITE, flags=fuse_abi.LOCK_FLOCK ^ flags)


@BOTH
def test_who_holds_a_lock_is_told(kernel: FakeKernel, path: str) -> None:
    file = opened(kernel, path)
    lock(kernel, file, 1, WRITE, 5, 9)
    found = fuse_answers.unpack_lock(lock(kernel, file, 2, READ, 0, LAST, opcode=Opcode.GETLK))
    assert found == (5, 9, WRITE, 101)
    free = fuse_answers.unpack_lock(lock(kernel, file, 2, READ, 0, 4, opcode=Opcode.GETLK))
    assert free[2] == NONE


def test_one_of_another_program_is_told_without_a_process(kernel: FakeKernel, client: FakeClient) -> None:
    file = opened(kernel, "/work/out/f")
    client.locks.set(99, "write", 3, LAST)
    assert fuse_answers.unpack_lock(lock(kernel, file, 1, READ, opcode=Opcode.GETLK)) == (3, LAST, WRITE, 0)
    with raises(errno.EAGAIN):
        lock(kernel, file, 1)


@BOTH
def test_a_process_loses_its_locks_when_it_closes_any_descriptor(kernel: FakeKernel, path: str) -> None:
    file, other = opened(kernel, path), opened(kernel, path)
    lock(kernel, file, 1)
    flush(kernel, other, 2)
    with raises(errno.EAGAIN):
        lock(kernel, file, 2)
    flush(kernel, other, 1)
    lock(kernel, file, 2)


def test_a_close_asks_the_client_only_where_there_were_locks(kernel: FakeKernel, client: FakeClient) -> None:
    file = opened(kernel, "/work/out/f")
    asked = len(client.log)
    flush(kernel, file, 1)
    lock(kernel, file, 1, NONE)
    assert len(client.log) == asked
    lock(kernel, file, 1)
    flush(kernel, file, 1)
    assert client.log[-1] == abi.Lock(file[1], 1, "none")
    flush(kernel, file, 1)
    assert len(client.log) == asked + 2


@pytest.mark.parametrize("flags", [0, fuse_abi.LOCK_FLOCK])
def test_the_locks_of_an_open_file_go_with_it(kernel: FakeKernel, flags: int) -> None:
    file, other = opened(kernel, "/tmp/f"), opened(kernel, "/tmp/f")
    lock(kernel, file, 1, flags=flags)
    kernel.close(file)
    lock(kernel, other, 2, flags=flags)


def test_until_the_client_has_closed_a_file_its_locks_are_not_asked_for(kernel: FakeKernel, client: FakeClient) -> None:
    file, other = opened(kernel, "/work/out/f"), opened(kernel, "/work/out/f")
    lock(kernel, file, 1, flags=fuse_abi.LOCK_FLOCK)
    released = kernel.send(Opcode.RELEASE, file[0], fuse_abi.Release(file[1]))
    wanted = kernel.send(Opcode.SETLK, other[0], fuse_abi.Lock(other[1], 2, 0, LAST, WRITE, 0, fuse_abi.LOCK_FLOCK))
    assert [ask.request for ask in kernel.asks] == [abi.Close(file[1])]
    client.flocks.drop(1)
    kernel.run()
    assert (kernel.taken(released), kernel.taken(wanted)) == (b"", b"")


def test_who_waits_for_a_private_lock_gets_it_when_it_is_given_back(kernel: FakeKernel) -> None:
    file = opened(kernel, "/tmp/f")
    lock(kernel, file, 1)
    first, second = wait(kernel, file, 2), wait(kernel, file, 3)
    assert not kernel.answers
    lock(kernel, file, 1, NONE)
    assert kernel.taken(first) == b""
    assert second not in kernel.answers
    flush(kernel, file, 2)
    assert kernel.taken(second) == b""


def test_a_signal_ends_a_wait_for_a_private_lock(kernel: FakeKernel) -> None:
    file = opened(kernel, "/tmp/f")
    lock(kernel, file, 1)
    waiting = wait(kernel, file, 2)
    kernel.interrupt(waiting)
    with raises(errno.EINTR):
        kernel.taken(waiting)
    lock(kernel, file, 1, NONE)
    lock(kernel, file, 3)


def test_a_signal_asks_the_client_to_end_a_wait(kernel: FakeKernel) -> None:
    """What becomes of the lock is the client's answer: it may just have been taken."""
    file = opened(kernel, "/work/out/f")
    waiting = wait(kernel, file, 2)
    (ask,) = kernel.asks
    assert isinstance(ask.request, abi.Lock)
    interrupt = fuse_abi.encode(Opcode.INTERRUPT, 99, 0, fuse_abi.Interrupt(waiting))
    (told,) = kernel.server.receive(interrupt)
    assert told.request == abi.StopWaiting(ask.request.wait or 0)
    kernel.asks.clear()
    kernel.apply(kernel.server.resume(ask.ticket, abi.Failed("EINTR")))
    with raises(errno.EINTR):
        kernel.taken(waiting)
    assert not kernel.server._waiting


@BOTH
def test_a_circle_of_waiters_is_refused(kernel: FakeKernel, path: str) -> None:
    file = opened(kernel, path)
    for owner in (1, 2, 3):
        lock(kernel, file, owner, WRITE, owner, owner)
    wait(kernel, file, 1, 2, 2)
    wait(kernel, file, 2, 3, 3)
    with raises(errno.EDEADLK):
        kernel.taken(wait(kernel, file, 3, 1, 1))


def test_all_waits_end_with_the_enclave(kernel: FakeKernel) -> None:
    private, shared = opened(kernel, "/tmp/f"), opened(kernel, "/work/out/f")
    lock(kernel, private, 1)
    waits = [wait(kernel, private, 2), wait(kernel, shared, 2)]
    kernel.apply(kernel.server.abort())
    for unique in waits:
        with raises(errno.EIO):
            kernel.taken(unique)


@BOTH
def test_what_is_no_lock_is_invalid(kernel: FakeKernel, path: str) -> None:
    file = opened(kernel, path)
    for start, end, kind in ((5, 4, WRITE), (0, LAST + 1, WRITE), (0, 1, 7)):
        with raises(errno.EINVAL):
            lock(kernel, file, 1, kind, start, end)
    with raises(errno.EINVAL):
        lock(kernel, file, 1, NONE, opcode=Opcode.GETLK)
    with raises(errno.EBADF):
        lock(kernel, (file[0], 999), 1)


def test_how_much_is_locked_is_bounded(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abi, "MAX_LOCKS", 2)
    file = opened(kernel, "/tmp/f")
    for start in (0, 10):
        lock(kernel, file, 1, WRITE, start, start)
    with raises(errno.ENOLCK):
        lock(kernel, file, 1, WRITE, 20, 20)
    flush(kernel, file, 1)
    assert not kernel.server._operations[Opcode.SETLK].__self__._files  # type: ignore[attr-defined]


owners = st.integers(0, 2)
ends = st.integers(0, 9)
changes = st.lists(st.tuples(owners, st.sampled_from(["read", "write", "none"]), ends, ends), max_size=20)


@given(changes)
def test_ranges_equal_a_lock_for_each_byte(made: list[tuple[int, abi.LockKind, int, int]]) -> None:
    ranges = LockRanges()
    model: dict[tuple[int, int], abi.LockKind] = {}
    for owner, kind, one, another in made:
        start, end = sorted((one, another))
        ranges.set(owner, kind, start, end)
        for byte in range(start, end + 1):
            model.pop((owner, byte), None)
            if kind != "none":
                model[owner, byte] = kind
        assert {(held.owner, byte): held.kind for held in ranges for byte in range(held.start, held.end + 1)} == model
        assert sum(held.end - held.start + 1 for held in ranges) == len(model), "no byte twice"
        for wanted in ("read", "write"):
            barred = {
                other
                for (other, byte), has in model.items()
                if other != owner and start <= byte <= end and "write" in (has, wanted)
            }
            assert {held.owner for held in ranges.in_the_way(owner, wanted, start, end)} == barred  # type: ignore[arg-type]
    ranges.drop(0)
    assert all(held.owner for held in ranges)
