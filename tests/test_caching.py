"""What the cache of the client's files spares, and what it must not: counts of waits, errors that come late, changes by others."""

from __future__ import annotations

import errno
import os

import pytest
from caching_client import CachingClient, CachingKernel
from fake_kernel import raises

from adyton.communicator.messages import Coherence, Mount
from adyton.hostcall import abi
from adyton.runtime.process.supervisor import calls, fuse_abi
from adyton.runtime.process.supervisor.caching import names, writing
from adyton.runtime.process.supervisor.caching.coherence import coherence_of
from adyton.runtime.process.supervisor.caching.contents import BLOCK
from adyton.runtime.process.supervisor.caching.opening import FETCHED
from adyton.runtime.process.supervisor.fuse_abi import Opcode, SetFlag

WRITE = os.O_WRONLY | os.O_CREAT


@pytest.fixture
def client() -> CachingClient:
    client = CachingClient({"/work/out": "write"})
    client.directory("/work/out")
    return client


@pytest.fixture
def kernel(client: CachingClient) -> CachingKernel:
    return CachingKernel.of(client, "close-to-open", lags=True)


@pytest.fixture
def exclusive(client: CachingClient) -> CachingKernel:
    return CachingKernel.of(client, "exclusive", lags=True)


def waited(kernel: CachingKernel, step, *arguments: object) -> int:
    """How often something waited for the client."""
    before = kernel.waits
    step(*arguments)
    return kernel.waits - before


def names_of(client: CachingClient, kind: type) -> list[object]:
    return [request for request in client.log if isinstance(request, kind)]


# -- names and attributes -----------------------------------------------------------------------------------------------


def test_names_are_asked_for_together_and_not_again(kernel: CachingKernel, client: CachingClient) -> None:
    for number in range(3):
        client.file(f"/work/out/f{number}", b"x" * number)
    kernel.lookup("/work/out")
    assert waited(kernel, kernel.lookup, "/work/out/f0") == 1
    assert waited(kernel, kernel.lookup, "/work/out/f2") == 0
    assert kernel.getattr(kernel.lookup("/work/out/f2").node).size == 2


def test_a_name_that_is_not_there_is_known_until_somebody_makes_it(
    kernel: CachingKernel, client: CachingClient
) -> None:
    with raises(errno.ENOENT):
        kernel.lookup("/work/out/f")
    before = kernel.waits
    with raises(errno.ENOENT):
        kernel.lookup("/work/out/f")
    with raises(errno.ENOENT):
        kernel.open("/work/out/f")
    assert kernel.waits == before
    client.file("/work/out/f", b"now")
    client.another("/work/out/f")
    kernel.tell()
    assert kernel.read("/work/out/f") == b"now"


def test_without_a_promise_attributes_hold_for_a_moment_and_an_open_asks(client: CachingClient) -> None:
    client.promises = False
    client.file("/work/out/f", b"old")
    kernel = CachingKernel.of(client, "close-to-open", lags=True)
    kernel.lookup("/work/out/f")
    assert waited(kernel, kernel.lookup, "/work/out/f") == 0
    client.things["/work/out/f"].data[:] = b"newer"
    client.things["/work/out/f"].modified += 1
    assert kernel.read("/work/out/f") == b"newer"
    kernel.now += names.MOMENT + names.DIRECTORY_MOMENT
    assert waited(kernel, kernel.lookup, "/work/out/f") > 0


def test_walking_a_directory_of_small_files_costs_two_waits_and_one_for_each_batch(
    kernel: CachingKernel, client: CachingClient
) -> None:
    client.directory("/work/out/d")
    for number in range(3):  # this client lists three names at a time
        client.file(f"/work/out/d/f{number}", b"small")

    def walk() -> None:
        for name in kernel.listdir("/work/out/d"):
            assert kernel.read(f"/work/out/d/{name}") == b"small"

    kernel.lookup("/work/out/d")
    assert waited(kernel, walk) == 2
    assert waited(kernel, walk) == 0
    assert not names_of(client, abi.Open)
    assert FETCHED >= 16


def test_a_change_tells_the_kernel_to_ask_again(kernel: CachingKernel, client: CachingClient) -> None:
    client.file("/work/out/f", b"old")
    entry = kernel.lookup("/work/out/f")
    assert entry.attr_lifetime == fuse_abi.FOREVER
    client.things["/work/out/f"].data += b"er"
    client.things["/work/out/f"].modified += 1
    client.another("/work/out/f")
    kernel.tell()
    assert len(kernel.notices) == 1
    assert kernel.getattr(entry.node).size == 5
    client.promises = False
    kernel.tell()
    assert len(kernel.notices) == 1


def test_another_directory_at_a_name_makes_the_kernel_ask_about_all_below(
    kernel: CachingKernel, client: CachingClient
) -> None:
    client.file("/work/out/d/f", b"old")
    node = kernel.lookup("/work/out/d/f").node
    del client.things["/work/out/d/f"], client.things["/work/out/d"]
    client.another("/work/out/d")
    kernel.tell()
    assert kernel.notices
    with raises(errno.ENOENT):
        kernel.getattr(node)


def test_what_was_on_its_way_when_others_changed_it_is_not_learnt(kernel: CachingKernel, client: CachingClient) -> None:
    client.file("/work/out/f", b"old")
    kernel.lookup("/work/out")
    parent, name = kernel.parent("/work/out/f")
    unique = kernel.send(Opcode.LOOKUP, parent, fuse_abi.Name(name))
    ask = kernel.asks.pop(0)
    late = kernel.result(ask.request)
    client.things["/work/out/f"].data[:] = b"newer"
    client.things["/work/out/f"].modified += 1
    client.another("/work/out/f")
    kernel.tell()  # overtakes the answer, which is large
    kernel.apply(kernel.server.resume(ask.ticket, late))
    kernel.run_until(unique)
    kernel.taken(unique)
    assert kernel.getattr(kernel.lookup("/work/out/f").node).size == 5


def test_a_hole_takes_no_room(kernel: CachingKernel) -> None:
    opened = kernel.open("/work/out/sparse", WRITE)
    kernel.pwrite(opened, b"x", 1 << 20)
    assert 0 < kernel.getattr(opened[0]).blocks <= 8
    for at in range(0, 1 << 14, 1 << 10):
        kernel.pwrite(opened, bytes(1 << 10), at)
    assert 32 <= kernel.getattr(opened[0]).blocks <= 256


# -- content ------------------------------------------------------------------------------------------------------------


def test_a_sequential_reader_waits_seldom(kernel: CachingKernel, client: CachingClient) -> None:
    client.file("/work/out/f", bytes(64 * BLOCK))
    kernel.lookup("/work/out/f")

    def read() -> None:
        opened = kernel.open("/work/out/f")
        for block in range(64):
            assert len(kernel.pread(opened, BLOCK, block * BLOCK)) == BLOCK
            for _ in range(2):
                if kernel.asks:
                    kernel.step()
        kernel.close(opened)

    assert waited(kernel, read) <= 8
    assert max(request.size for request in names_of(client, abi.Read)) == abi.MAX_BLOCK


def test_writes_are_not_waited_for_and_a_close_is(kernel: CachingKernel, client: CachingClient) -> None:
    opened = kernel.open("/work/out/f", WRITE)
    kernel.run()

    def write() -> None:
        for number in range(100):
            kernel.pwrite(opened, b"%9d\n" % number, number * 10)

    assert waited(kernel, write) == 0
    assert client.things["/work/out/f"].data == b""
    assert waited(kernel, kernel.close, opened) == 1
    assert client.things["/work/out/f"].data == b"".join(b"%9d\n" % number for number in range(100))
    assert len(names_of(client, abi.Write)) == 1


def test_what_was_written_is_read_from_here(kernel: CachingKernel, client: CachingClient) -> None:
    opened = kernel.open("/work/out/f", os.O_RDWR | os.O_CREAT)
    kernel.run()
    kernel.pwrite(opened, b"a" * 5000, 0)
    kernel.pwrite(opened, b"b" * 10, 100)
    before = kernel.waits
    assert kernel.pread(opened, 20, 95) == b"a" * 5 + b"b" * 10 + b"a" * 5
    assert kernel.getattr(opened[0]).size == 5000
    assert kernel.waits == before


@pytest.mark.parametrize("ends", ["close", "fsync"])
def test_a_write_that_failed_is_said_once(kernel: CachingKernel, client: CachingClient, ends: str) -> None:
    opened = kernel.open("/work/out/f", WRITE)
    client.fails = lambda request: "ENOSPC" if isinstance(request, abi.Write) else None
    assert kernel.pwrite(opened, b"data", 0) == 4

    def fsync() -> None:
        kernel.request(Opcode.FSYNC, opened[0], fuse_abi.Sync(opened[1], 0))

    if ends == "fsync":
        with raises(errno.ENOSPC):
            fsync()
        fsync()
        kernel.close(opened)
    else:
        unique = kernel.send(Opcode.FLUSH, opened[0], fuse_abi.Flush(opened[1], 0))
        kernel.run_until(unique)
        with raises(errno.ENOSPC):
            kernel.taken(unique)
        kernel.close(opened)
    assert kernel.getattr(kernel.lookup("/work/out/f").node).size == 0


def test_a_write_of_which_only_a_part_fitted_goes_on_with_the_rest(
    kernel: CachingKernel, client: CachingClient
) -> None:
    opened = kernel.open("/work/out/f", WRITE)
    kernel.run()
    kernel.pwrite(opened, b"0123456789", 0)
    kernel.moment()
    ask = kernel.asks.pop(0)
    client.things["/work/out/f"].data[:] = b"0123"
    kernel.apply(kernel.server.resume(ask.ticket, abi.Written(4)))
    (rest,) = (each.request for each in kernel.asks)
    assert isinstance(rest, abi.Write)
    assert (rest.offset, rest.data) == (4, b"456789")
    kernel.close(opened)
    assert client.things["/work/out/f"].data == b"0123456789"


def test_the_rest_is_not_written_over_what_came_after_it(kernel: CachingKernel, client: CachingClient) -> None:
    opened = kernel.open("/work/out/f", WRITE)
    kernel.run()
    kernel.pwrite(opened, b"0123456789", 0)
    kernel.moment()
    kernel.pwrite(opened, b"new", 6)
    ask = kernel.asks.pop(0)
    kernel.apply(kernel.server.resume(ask.ticket, abi.Written(4)))
    with raises(errno.EIO):
        kernel.close(opened)
    assert not any(isinstance(request, abi.Write) and b"8" in request.data for request in client.log)


def test_unconfirmed_writes_are_bounded(kernel: CachingKernel, client: CachingClient, monkeypatch) -> None:
    monkeypatch.setattr(writing, "MAX_DIRTY", 1000)
    opened = kernel.open("/work/out/f", WRITE)
    kernel.run()
    before = kernel.waits
    for number in range(10):
        kernel.pwrite(opened, b"x" * 400, number * 400)
        assert kernel.server.cache._writing._dirty <= 1000
    assert kernel.waits > before
    kernel.close(opened)
    assert len(client.things["/work/out/f"].data) == 4000


def test_calls_under_way_are_bounded(exclusive: CachingKernel, client: CachingClient, monkeypatch) -> None:
    monkeypatch.setattr(calls, "MAX_UNDER_WAY", 10)
    client.file("/work/out/f")
    exclusive.listdir("/work/out")
    for _ in range(20):
        exclusive.close(exclusive.open("/work/out/f", WRITE | os.O_TRUNC))
        exclusive.unlink("/work/out/f")
        assert len(exclusive.asks) <= 14
    exclusive.run()
    assert not client.handles


def test_a_small_file_that_was_removed_lives_on_where_it_is_open(kernel: CachingKernel, client: CachingClient) -> None:
    client.file("/work/out/f", b"content")
    kernel.lookup("/work/out/f")
    opened = kernel.open("/work/out/f")
    del client.things["/work/out/f"]
    client.another("/work/out/f")
    kernel.tell()
    assert kernel.pread(opened, 10, 0) == b"content"
    kernel.close(opened)


def test_two_readers_of_a_file_that_is_not_open_on_the_client_open_it_once(
    kernel: CachingKernel, client: CachingClient
) -> None:
    client.file("/work/out/f", b"content")
    kernel.lookup("/work/out/f")
    opened = kernel.open("/work/out/f")
    client.things["/work/out/f"].data[:] = b"changed"
    client.things["/work/out/f"].modified += 1
    client.another("/work/out/f")
    kernel.tell()
    uniques = [kernel.send(Opcode.READ, opened[0], fuse_abi.Read(opened[1], 0, 10)) for _ in range(2)]
    for unique in uniques:
        kernel.run_until(unique)
        assert kernel.taken(unique) == b"changed"
    assert len(names_of(client, abi.Open)) == 1
    kernel.close(opened)
    kernel.run()
    assert not client.handles


def test_an_open_that_nobody_waits_for_any_more_is_undone(kernel: CachingKernel, client: CachingClient) -> None:
    client.file("/work/out/f", bytes(BLOCK))
    node = kernel.lookup("/work/out/f").node
    unique = kernel.send(Opcode.OPEN, node, fuse_abi.Open(os.O_RDWR))
    kernel.interrupt(unique)
    with raises(errno.EINTR):
        kernel.taken(unique)
    kernel.run()
    assert not client.handles


def test_the_return_of_an_entry_waits_for_what_was_written(kernel: CachingKernel, client: CachingClient) -> None:
    opened = kernel.open("/work/out/f", WRITE)
    kernel.run()
    assert kernel.server.settle() == ([], None)
    kernel.pwrite(opened, b"one", 0)
    kernel.pwrite(opened, b"two", 3)
    effects, settled = kernel.server.settle()
    kernel.apply(effects)
    assert settled is not None
    assert settled.result is None
    kernel.run()
    assert settled.result == abi.Done()
    assert client.things["/work/out/f"].data == b"onetwo"


# -- exclusive ------------------------------------------------------------------------------------------------------------


def test_only_durability_costs_a_wait_where_the_client_holds_the_files(
    exclusive: CachingKernel, client: CachingClient
) -> None:
    client.file("/work/out/db", bytes(1000))
    exclusive.listdir("/work/out")
    exclusive.close(exclusive.open("/work/out/first", WRITE))  # that names can be made there is found out once
    database = exclusive.open("/work/out/db", os.O_RDWR)
    exclusive.run()

    def transaction() -> None:
        journal = exclusive.open("/work/out/db-journal", os.O_RDWR | os.O_CREAT)
        exclusive.pwrite(journal, b"old", 0)
        exclusive.pwrite(database, b"new", 10)
        exclusive.setattr(journal[0], valid=SetFlag.SIZE | SetFlag.FH, size=0, handle=journal[1])
        exclusive.request(Opcode.FSYNC, database[0], fuse_abi.Sync(database[1], 1))
        exclusive.close(journal)
        exclusive.unlink("/work/out/db-journal")

    assert waited(exclusive, transaction) == 1
    assert waited(exclusive, transaction) == 1
    exclusive.run()
    assert client.things["/work/out/db"].data[10:13] == b"new"
    assert "/work/out/db-journal" not in client.things
    assert client.held == {database[1]}


def test_a_file_that_another_program_has_locked_is_not_opened(exclusive: CachingKernel, client: CachingClient) -> None:
    client.file("/work/out/f", b"x")
    client.fails = lambda request: "EBUSY" if isinstance(request, abi.Hold) else None
    with raises(errno.EBUSY):
        exclusive.open("/work/out/f", os.O_RDWR)
    exclusive.run()
    assert not client.handles


def test_a_removal_that_failed_is_said_by_the_directory(exclusive: CachingKernel, client: CachingClient) -> None:
    client.file("/work/out/f", b"x")
    exclusive.listdir("/work/out")
    exclusive.close(exclusive.open("/work/out/first", WRITE))
    client.fails = lambda request: "EROFS" if isinstance(request, abi.Remove) else None
    exclusive.unlink("/work/out/f")
    node = exclusive.lookup("/work/out").node
    handle = exclusive.request(Opcode.OPENDIR, node, fuse_abi.Open(0))
    sync = fuse_abi.Sync(int.from_bytes(handle[:8], "little"), 0)
    with raises(errno.EROFS):
        exclusive.request(Opcode.FSYNCDIR, node, sync)
    exclusive.request(Opcode.FSYNCDIR, node, sync)
    assert exclusive.read("/work/out/f") == b"x"


def test_a_creation_that_failed_is_said_by_the_close(exclusive: CachingKernel, client: CachingClient) -> None:
    exclusive.listdir("/work/out")
    exclusive.close(exclusive.open("/work/out/first", WRITE))
    client.fails = lambda request: "EDQUOT" if isinstance(request, abi.Open) else None
    opened = exclusive.open("/work/out/f", WRITE)
    with raises(errno.EDQUOT):
        exclusive.close(opened)
    with raises(errno.ENOENT):
        exclusive.lookup("/work/out/f")


def test_what_was_never_tried_is_waited_for(exclusive: CachingKernel, client: CachingClient) -> None:
    client.file("/work/out/f", b"x")
    exclusive.listdir("/work/out")
    client.fails = lambda request: "EACCES" if isinstance(request, abi.Open | abi.Remove) else None
    for step in (
        lambda: exclusive.open("/work/out/new", WRITE),
        lambda: exclusive.open("/work/out/f", WRITE | os.O_TRUNC),
        lambda: exclusive.unlink("/work/out/f"),
    ):
        with raises(errno.EACCES):
            step()


# -- coherence of paths ---------------------------------------------------------------------------------------------------


def test_the_nearest_directory_that_says_something_decides() -> None:
    of = coherence_of([Mount("/a", "strict"), Mount("/a/b", "exclusive")])
    assert [of(path) for path in ("/", "/x", "/a", "/a/x/y", "/a/b", "/a/b/c/d", "/ab")] == [
        "close-to-open",
        "close-to-open",
        "strict",
        "strict",
        "exclusive",
        "exclusive",
        "close-to-open",
    ]


def test_strict_asks_each_time_and_keeps_the_kernel_from_caching(client: CachingClient) -> None:
    client.file("/work/out/f", b"old")
    kernel = CachingKernel.of(client, "strict", lags=True)
    assert kernel.read("/work/out/f") == b"old"
    client.things["/work/out/f"].data[:] = b"new"
    assert kernel.read("/work/out/f") == b"new"
    assert kernel.lookup("/work/out/f").attr_lifetime == 0
    assert not names_of(client, abi.Compound)


@pytest.mark.parametrize(("coherence", "unit"), [("strict", 4096), ("close-to-open", BLOCK), ("exclusive", BLOCK)])
def test_programs_are_told_to_read_and_write_as_much_at_once_as_is_kept(
    client: CachingClient, coherence: Coherence, unit: int
) -> None:
    """st_blksize, by which C's and Python's buffers have their size."""
    client.file("/work/out/f", b"content")
    kernel = CachingKernel.of(client, coherence)
    assert kernel.getattr(kernel.lookup("/work/out/f").node).unit == unit
    assert kernel.getattr(kernel.lookup("/work/out").node).unit == 4096
