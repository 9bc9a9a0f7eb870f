"""Sequences in which answers, changes by others and the guest's own operations cross: what was wrong once."""

from __future__ import annotations

import contextlib
import errno
import os

import msgspec
import pytest
from caching_client import CachingClient, CachingKernel
from fake_kernel import raises

from adyton.communicator.session import Limits
from adyton.hostcall import abi
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.fuse_abi import Opcode, SetFlag

WRITE = os.O_WRONLY | os.O_CREAT
FILE, LOCK = "/work/out/f", "/work/out/lock"


@pytest.fixture
def client():
    client = CachingClient({"/work/out": "write"})
    client.directory("/work/out")
    return client


@pytest.fixture(params=["close-to-open", "exclusive"])
def kernel(client, request):
    return CachingKernel.of(client, request.param, lags=True)


def test_an_interrupted_truncation_is_noticed(client, kernel):
    client.file(FILE, b"old")
    assert kernel.read(FILE) == b"old"
    node = kernel.lookup(FILE).node
    unique = kernel.send(Opcode.OPEN, node, fuse_abi.Open(os.O_WRONLY | os.O_TRUNC))
    kernel.interrupt(unique)
    kernel.run()
    assert client.things[FILE].data == b""
    assert kernel.lookup(FILE).attr.size == 0
    assert kernel.read(FILE) == b""


def test_a_read_beside_an_extension_comes_after_it(client, kernel):
    client.file(FILE, b"x" * 10)
    f = kernel.open(FILE, os.O_RDWR)
    kernel.run()
    kernel.server.cache.state.handles[f[1]].file.contents.forget()
    kernel.server.cache.state.blocks._held.clear()
    kernel.send(
        Opcode.SETATTR,
        f[0],
        fuse_abi.SetAttr(**{n: {"valid": SetFlag.SIZE, "size": 100}.get(n, 0) for n in fuse_abi.SetAttr._fields}),
    )
    kernel.send(Opcode.READ, f[0], fuse_abi.Read(f[1], 0, 10))
    kernel.asks.sort(key=lambda a: a.ordered)
    kernel.run()
    assert kernel.pread(f, 100, 0) == b"x" * 10 + bytes(90)


def test_a_read_beside_a_truncation_comes_after_it(client, kernel):
    client.file(FILE, b"x" * 1000)
    f = kernel.open(FILE, os.O_RDWR)
    kernel.run()
    kernel.send(
        Opcode.SETATTR,
        f[0],
        fuse_abi.SetAttr(
            **{
                n: {"valid": SetFlag.SIZE | SetFlag.MODE, "mode": 384, "size": 10}.get(n, 0)
                for n in fuse_abi.SetAttr._fields
            }
        ),
    )
    kernel.send(Opcode.READ, f[0], fuse_abi.Read(f[1], 0, 1000))
    kernel.asks.sort(key=lambda a: a.ordered)
    kernel.run()
    assert kernel.pread(f, 1000, 0) == b"x" * 10


@pytest.mark.parametrize("times", [1, 100])
def test_what_was_looked_at_before_a_change_that_was_told_is_not_kept(client, kernel, times):
    client.file(FILE, b"old")
    kernel.lookup(FILE)
    client.another(FILE)
    kernel.tell()
    real, left = client._look, [times]

    def overtaken(request):
        found = real(request)
        if request.path == FILE and left[0]:
            left[0] -= 1
            if not left[0]:
                client._remove(abi.Remove(FILE, False))
            client.another(FILE)
        return found

    client._look = overtaken
    if times == 1:
        with raises(errno.ENOENT):
            kernel.lookup(FILE)
    else:  # it is not asked for ever: what is said is of the time while it was asked
        assert kernel.lookup(FILE).attr.size == 3
        assert 0 < left[0] < 100
        client._remove(abi.Remove(FILE, False))
        client._look = real
    with raises(errno.ENOENT):
        kernel.lookup(FILE)


MADE = {  # what the enclave does, and whether that makes FILE
    "create": (abi.Open, True, lambda kernel: kernel.close(kernel.open(FILE, WRITE))),
    "truncate": (abi.Open, True, lambda kernel: kernel.close(kernel.open(FILE, WRITE | os.O_TRUNC))),
    "mkdir": (abi.MakeDirectory, True, lambda kernel: kernel.mkdir(FILE)),
    "symlink": (abi.SymbolicLink, True, lambda kernel: kernel.symlink("source", FILE)),
    "link": (abi.Link, True, lambda kernel: kernel.link("/work/out/source", FILE)),
    "rename": (abi.Rename, True, lambda kernel: kernel.rename("/work/out/source", FILE)),
    "move away": (abi.Rename, False, lambda kernel: kernel.rename(FILE, "/work/out/target")),
    "unlink": (abi.Remove, False, lambda kernel: kernel.unlink(FILE)),
}


@pytest.mark.parametrize("what", MADE)
def test_what_others_do_to_a_name_before_the_enclave_hears_of_its_own_change_is_seen(client, what):
    """They remove what it made, or make what it removed; of that the client tells before its answer."""
    kernel = CachingKernel.of(client, "close-to-open", lags=True)
    kind, makes, act = MADE[what]
    client.file("/work/out/source", b"1")
    if not makes:
        client.file(FILE, b"old")
    with contextlib.suppress(OSError):
        kernel.lookup(FILE)
    real = client.execute

    def overtaken(request):
        result = real(request)
        if type(request) is kind and not isinstance(result, abi.Failed):
            if makes:
                del client.things[FILE]
            else:
                client.file(FILE, b"another's")
            client.another(FILE)
        return result

    client.execute = overtaken
    act(kernel)
    client.execute = real
    if makes:
        with raises(errno.ENOENT):
            kernel.lookup(FILE)
    else:
        assert kernel.lookup(FILE).attr.size == 9


@pytest.mark.parametrize("others", ["", "before", "after"])
def test_what_the_enclave_knows_of_a_directory_that_it_removed_is_kept_unless_others_made_another(client, others):
    """That the client tells no more of what is in it is no word of others."""
    kernel = CachingKernel.of(client, "close-to-open", lags=True)
    kernel.listdir("/work/out")
    kernel.mkdir(FILE)
    kernel.listdir(FILE)
    real, asked = client.execute, []

    def overtaken(request):
        result = real(request)
        if isinstance(request, abi.Remove):
            for told in {"": "end", "before": "another end", "after": "end another"}[others].split():
                if told == "end":
                    client.changes.append((FILE, ""))
                else:
                    client.directory(FILE)
                    client.another(FILE)
        else:
            asked.append(request)
        return result

    client.execute = overtaken
    kernel.rmdir(FILE)
    asked.clear()
    if others:
        assert kernel.lookup(FILE).node
    else:
        with raises(errno.ENOENT):
            kernel.lookup(FILE)
    assert bool(asked) == bool(others)


def test_what_others_append_to_an_open_file_is_read_though_they_move_it_then(client, kernel):
    client.file(FILE, b"first,")
    f = kernel.open(FILE)
    assert kernel.pread(f, 100, 0) == b"first,"
    client.things[FILE].data += b"second,"
    client.another(FILE)
    kernel.tell()
    kernel.run()
    client.things[FILE].data += b"third"
    client.things["/work/out/rotated"] = client.things.pop(FILE)
    client.file(FILE, b"another")
    for path in (FILE, "/work/out/rotated"):
        client.another(path)
    kernel.tell()
    assert kernel.pread(f, 100, 0) == b"first,second,third"
    assert kernel.read(FILE) == b"another"


def test_an_fsync_covers_the_rest_of_a_write_that_fitted_in_part(client, kernel):
    f = kernel.open(FILE, WRITE)
    kernel.run()
    real = client._write

    def short(request):
        client._write = real
        real(abi.Write(request.handle, request.offset, request.data[:2]))
        return abi.Written(2)

    client._write = short
    kernel.pwrite(f, b"hello", 0)
    kernel.request(Opcode.FSYNC, f[0], fuse_abi.Sync(f[1], 0))
    log = [type(r).__name__ for r in client.log]
    assert client.things[FILE].data == b"hello"
    assert log[::-1].index("Sync") < log[::-1].index("Write"), log


def test_a_close_of_a_copy_does_not_take_from_fsync_what_went_wrong(client, kernel):
    f = kernel.open(FILE, WRITE)
    kernel.run()
    client.fails = lambda r: "ENOSPC" if isinstance(r, abi.Write) else None
    kernel.pwrite(f, b"hello", 0)
    with raises(errno.ENOSPC):
        kernel.request(Opcode.FLUSH, f[0], fuse_abi.Flush(f[1], 0))
    with raises(errno.ENOSPC):
        kernel.request(Opcode.FSYNC, f[0], fuse_abi.Sync(f[1], 0))


def test_an_fsync_of_a_reader_says_what_went_wrong(client, kernel):
    f = kernel.open(FILE, WRITE)
    kernel.run()
    g = kernel.open(FILE)
    kernel.run()
    client.fails = lambda r: "ENOSPC" if isinstance(r, abi.Write) else None
    kernel.pwrite(f, b"hello", 0)
    with raises(errno.ENOSPC):
        kernel.request(Opcode.FSYNC, g[0], fuse_abi.Sync(g[1], 0))


def test_a_small_file_shows_what_is_written_after_its_name_went(client, kernel):
    w = kernel.open(FILE, WRITE)
    kernel.run()
    kernel.close(w)
    kernel.run()
    w = kernel.open(FILE, os.O_WRONLY)
    kernel.run()
    r = kernel.open(FILE)
    kernel.unlink(FILE)
    kernel.pwrite(w, b"hello", 0)
    kernel.run()
    assert kernel.pread(r, 10, 0) == b"hello"


def test_a_small_file_shows_what_is_written_under_its_new_name(client, kernel):
    client.file(FILE, b"old")
    kernel.lookup(FILE)
    r = kernel.open(FILE)
    kernel.rename(FILE, FILE + "1")
    kernel.write(FILE + "1", b"new")
    assert kernel.pread(r, 10, 0) == b"new"


def test_a_small_file_has_its_mode_changed_under_its_new_name(client, kernel):
    client.file(FILE, b"old")
    kernel.lookup(FILE)
    r = kernel.open(FILE)
    kernel.rename(FILE, FILE + "1")
    kernel.request(Opcode.FLUSH, r[0], fuse_abi.Flush(r[1], 0))
    kernel.setattr(r[0], valid=SetFlag.MODE, mode=384)


@pytest.mark.parametrize("instead", ["directory", "link", "nothing"])
def test_a_small_file_that_is_open_stays_what_it_was_whatever_others_put_in_its_place(client, kernel, instead):
    client.file(FILE, b"old")
    kernel.lookup(FILE)
    f = kernel.open(FILE)
    del client.things[FILE]
    if instead == "directory":
        client.directory(FILE)
    elif instead == "link":
        client.link(FILE, "elsewhere")
        client.fails = lambda r: "EACCES" if isinstance(r, abi.Open) else None
    client.another(FILE)
    kernel.tell()
    assert kernel.getattr(f[0]).size == 3
    assert kernel.pread(f, 10, 0) == b"old"


@pytest.mark.parametrize("removed", ["by the guest", "by others", "replaced"])
@pytest.mark.parametrize("small", [True, False])
def test_what_is_open_is_opened_again_though_it_has_no_name(client, kernel, removed, small):
    content = b"old" if small else bytes(1 << 17)
    client.file(FILE, content)
    node, _ = f = kernel.open(FILE, os.O_RDONLY if small else os.O_RDWR)
    kernel.run()
    if removed == "by the guest":
        kernel.unlink(FILE)
    else:
        del client.things[FILE]
        if removed == "replaced":
            client.file(FILE, b"another")
        client.another(FILE)
        kernel.tell()
        with raises(errno.ESTALE):  # had a name led to it, the kernel would look again, and find none
            kernel.request(Opcode.OPEN, node, fuse_abi.Open(os.O_RDONLY))
    kernel.run()
    again = fuse_answers.unpack_open(kernel.request(Opcode.OPEN, node, fuse_abi.Open(os.O_RDONLY))).handle
    assert kernel.pread((node, again), 10, 0) == content[:10]
    kernel.close(f)
    kernel.run()
    assert kernel.pread((node, again), 10, 0) == content[:10]
    if not small and removed != "by the guest":
        with raises(errno.ENOENT) if removed == "by others" else contextlib.nullcontext():
            assert kernel.read(FILE) == b"another"
    kernel.close((node, again))
    kernel.run()
    assert not client.handles
    with raises(errno.ESTALE):
        kernel.request(Opcode.OPEN, node, fuse_abi.Open(os.O_RDONLY))


def test_what_is_open_is_cut_when_it_is_opened_again_so(client, kernel):
    f = kernel.open(FILE, os.O_RDWR | os.O_CREAT)
    kernel.pwrite(f, b"hello", 0)
    kernel.unlink(FILE)
    again = fuse_answers.unpack_open(kernel.request(Opcode.OPEN, f[0], fuse_abi.Open(os.O_RDWR | os.O_TRUNC))).handle
    assert kernel.pread(f, 10, 0) == b""
    kernel.pwrite((f[0], again), b"again", 0)
    assert kernel.pread(f, 10, 0) == b"again"
    assert kernel.getattr(f[0]).size == 5


def test_an_interrupted_opening_of_what_is_open_leaves_nothing_open(client, kernel):
    f = kernel.open(FILE, os.O_RDWR | os.O_CREAT)
    kernel.run()
    kernel.unlink(FILE)
    kernel.run()
    unique = kernel.send(Opcode.OPEN, f[0], fuse_abi.Open(os.O_RDONLY))
    kernel.interrupt(unique)
    kernel.run()
    with raises(errno.EINTR):
        kernel.taken(unique)
    kernel.close(f)
    kernel.run()
    assert not client.handles


def test_the_return_of_an_entry_waits_for_locks_that_were_given_back(client, kernel):
    f = kernel.open(FILE, WRITE)
    kernel.run()
    kernel.request(Opcode.SETLK, f[0], fuse_abi.Lock(f[1], 7, 0, (1 << 63) - 1, 1, 1, 0))
    kernel.request(Opcode.SETLK, f[0], fuse_abi.Lock(f[1], 7, 0, (1 << 63) - 1, 2, 1, 0))
    _effects, pending = kernel.server.settle()
    assert pending is not None or not kernel.asks, kernel.asks


@pytest.mark.parametrize("then", ["write", "unlock", "rename", "mkdir"])
def test_what_was_held_back_is_not_overtaken(client, kernel, then):
    client.file(FILE, b"0" * 10)
    client.file(LOCK, b"0" * 10)
    d = kernel.open(FILE, os.O_RDWR)
    q = kernel.open(LOCK, os.O_RDWR)
    kernel.run()
    kernel.request(Opcode.SETLK, q[0], fuse_abi.Lock(q[1], 7, 0, (1 << 63) - 1, 1, 1, 0))
    kernel.run()
    client.log.clear()
    kernel.pwrite(d, b"1", 0)
    kernel.pwrite(d, b"2", 5)
    if then == "write":
        kernel.pwrite(q, b"3", 0)
    elif then == "unlock":
        kernel.request(Opcode.SETLK, q[0], fuse_abi.Lock(q[1], 7, 0, (1 << 63) - 1, 2, 1, 0))
    elif then == "rename":
        kernel.send(
            Opcode.RENAME2,
            kernel.lookup("/work/out").node,
            fuse_abi.Rename(kernel.lookup("/work/out").node, 0, b"lock", b"lock2"),
        )
    else:
        kernel.send(Opcode.MKDIR, kernel.lookup("/work/out").node, fuse_abi.MakeDir(511, 18, b"m"))
    kernel.run()
    seen = [(type(r).__name__, getattr(r, "data", b"")) for r in client.log]
    assert ("Write", b"2") in seen[:2], seen


def test_a_list_on_its_way_is_not_learnt_when_a_directory_above_was_renamed(client):
    kernel = CachingKernel.of(client, "close-to-open", lags=True)
    client.file("/work/out/a/b/x", b"old")
    client.directory("/work/out/y/b")
    kernel.lookup("/work/out/y")
    b = kernel.lookup("/work/out/a/b").node
    kernel.run()
    kernel.send(Opcode.LOOKUP, b, fuse_abi.Name(b"x"))
    large = kernel.asks.pop(0)
    result = kernel.result(large.request)
    kernel.rename("/work/out/a", "/work/out/z")
    kernel.rename("/work/out/y", "/work/out/a")
    kernel.run()
    kernel.apply(kernel.server.resume(large.ticket, result))
    kernel.run()
    with raises(errno.ENOENT):
        kernel.lookup("/work/out/a/b/x")


def test_a_file_that_was_renamed_keeps_its_number(client):
    kernel = CachingKernel.of(client, "exclusive", lags=True)
    kernel.write("/work/out/o", b"1")
    kernel.unlink("/work/out/o")
    kernel.run()
    kernel.write(FILE, b"22")
    kernel.run()
    kernel.rename(FILE, FILE + "1")
    kernel.run()
    st = kernel.lookup(FILE + "1").attr.number
    f = kernel.open(FILE + "1")
    assert kernel.getattr(f[0]).number == st


@pytest.mark.parametrize("how", ["open", "lock"])
def test_others_writes_beside_ones_own_are_seen(client, how):
    kernel = CachingKernel.of(client, "close-to-open", lags=True)
    real = client._write

    def write(request):
        real(request)
        t = client.handles[request.handle][0]
        return abi.Written(len(request.data), t.modified, t.modified)

    client._write = write
    ra = client.attributes
    client.attributes = lambda thing, birth=False: msgspec.structs.replace(
        ra(thing, birth=birth), changed=thing.modified
    )
    client.file(FILE, bytes(300000))
    f = kernel.open(FILE, os.O_RDWR)
    kernel.run()
    assert kernel.pread(f, 10, 200000) == bytes(10)
    kernel.pwrite(f, b"A", 0)
    client.things[FILE].data[200000:200003] = b"new"
    client.things[FILE].modified += 1
    client.another(FILE)
    kernel.request(Opcode.FLUSH, f[0], fuse_abi.Flush(f[1], 0))
    kernel.run()
    if how == "open":
        f = kernel.open(FILE, os.O_RDWR)
        kernel.run()
    else:
        kernel.request(Opcode.SETLK, f[0], fuse_abi.Lock(f[1], 7, 0, (1 << 63) - 1, 1, 1, 0))
        kernel.run()
    assert kernel.pread(f, 3, 200000) == b"new"


def test_what_is_below_a_lost_directory_is_asked_for_again(client):
    kernel = CachingKernel.of(client, "close-to-open", lags=True)
    client.file("/work/out/a/b/x", b"old")
    kernel.lookup("/work/out/a/b/x")
    kernel.run()
    for p in [p for p in client.things if p.startswith("/work/out/a")]:
        client.things["/work/out/z" + p[len("/work/out/a") :]] = client.things.pop(p)
    client.changes.append(("/work/out/a", ""))
    kernel.tell()
    client.directory("/work/out/a/b")
    client.changes.append(("/work/out", "a")) if False else None
    kernel.now += 100
    with raises(errno.ENOENT):
        kernel.lookup("/work/out/a/b/x")


def test_an_error_that_nobody_can_be_told_of_keeps_nothing(client):
    kernel = CachingKernel.of(client, "exclusive", lags=True)
    kernel.write(FILE, b"x")
    kernel.run()
    kernel.unlink(FILE)
    kernel.run()
    n = len(kernel.server.cache.state.names._files)
    for i in range(20):
        f = kernel.open(f"/work/out/e{i}", WRITE)
        client.fails = lambda r: "EIO" if isinstance(r, abi.Write) else None
        kernel.request(Opcode.FLUSH, f[0], fuse_abi.Flush(f[1], 0))
        kernel.pwrite(f, b"x", 0)
        kernel.request(Opcode.RELEASE, f[0], fuse_abi.Release(f[1]))
        kernel.run()
        client.fails = lambda r: None
        kernel.unlink(f"/work/out/e{i}")
        kernel.run()
    assert len(kernel.server.cache.state.names._files) <= n + 1, len(kernel.server.cache.state.names._files) - n


def test_scattered_writes_are_bounded_by_number(client, kernel):
    client.file(FILE, bytes(100))
    f = kernel.open(FILE, os.O_WRONLY)
    kernel.run()
    for i in range(6000):
        kernel.pwrite(f, b"x", 2 * i)
    kernel.step()
    assert len(kernel.asks) <= Limits().in_flight, len(kernel.asks)
