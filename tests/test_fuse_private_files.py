"""The guest's file tree: /tmp, where what the client does not share is the enclave's own, in its memory."""

from __future__ import annotations

import errno
import os
import stat

import pytest
from fake_client import FakeClient
from fake_kernel import FakeKernel, nothing_wanted, raises

from adyton.runtime.process.supervisor import fuse_abi
from adyton.runtime.process.supervisor.files import FileServer
from adyton.runtime.process.supervisor.fuse_abi import FOREVER, Opcode


@pytest.fixture
def mixed() -> FakeKernel:
    client = FakeClient({"/tmp/a/in": "read", "/tmp/out.txt": "write"}, cwd="/tmp/job/1")
    client.file("/tmp/a/in/x", b"x")
    client.file("/tmp/other", b"the client's, not allowed")
    client.file("/tmp/a/other", b"the client's, not allowed")
    client.file("/tmp/job/1/f", b"the client's, not allowed")
    return FakeKernel.loaded(client)


def test_what_is_not_allowed_below_tmp_is_private(mixed: FakeKernel) -> None:
    with raises(errno.ENOENT):
        mixed.lookup("/tmp/other")
    with raises(errno.ENOENT):
        mixed.lookup("/tmp/a/other")
    mixed.write("/tmp/other", b"private")
    mixed.mkdir("/tmp/d")
    mixed.write("/tmp/d/f", b"0123456789")
    mixed.write("/tmp/a/other", b"private too")
    assert mixed.read("/tmp/other") == b"private"
    assert mixed.client.log == []
    assert mixed.client.things["/tmp/other"].data == b"the client's, not allowed"
    entry = mixed.lookup("/tmp/d/f")
    assert (entry.name_lifetime, entry.attr_lifetime, entry.attr.size) == (FOREVER, FOREVER, 10)
    mixed.truncate("/tmp/d/f", 3)
    assert mixed.read("/tmp/d/f") == b"012"
    assert mixed.listdir("/tmp/d") == ["f"]


def test_what_is_allowed_below_tmp_is_the_client(mixed: FakeKernel) -> None:
    assert mixed.read("/tmp/a/in/x") == b"x"
    mixed.write("/tmp/out.txt", b"result")
    assert mixed.client.things["/tmp/out.txt"].data == b"result"
    mixed.write("/tmp/p", b"")
    assert mixed.listdir("/tmp") == ["a", "job", "p", "out.txt"]
    with raises(errno.EACCES):
        mixed.listdir("/tmp/a")


def test_below_a_working_directory_in_tmp_nothing_is_private(mixed: FakeKernel) -> None:
    for name in ("f", "absent"):
        with raises(errno.EACCES):
            mixed.lookup(f"/tmp/job/1/{name}")
    assert mixed.client.denied == [("/tmp/job/1/f", "read"), ("/tmp/job/1/absent", "read")]
    assert stat.S_ISDIR(mixed.lookup("/tmp/job/1").attr.mode)


def test_private_and_client_files_are_two_file_systems(mixed: FakeKernel) -> None:
    mixed.write("/tmp/p", b"private")
    mixed.write("/tmp/out.txt", b"")
    for source, target in (("/tmp/p", "/tmp/out.txt"), ("/tmp/out.txt", "/tmp/q")):
        with raises(errno.EXDEV):
            mixed.rename(source, target)
    for path in ("/tmp/a", "/tmp/job"):
        with raises(errno.EBUSY):
            mixed.rmdir(path)
        with raises(errno.EBUSY):
            mixed.rename(path, "/tmp/elsewhere")


def test_private_files_are_renamed_linked_to_and_outlive_their_names(mixed: FakeKernel) -> None:
    mixed.mkdir("/tmp/d")
    mixed.write("/tmp/d/f", b"f")
    mixed.rename("/tmp/d", "/tmp/e")
    assert mixed.read("/tmp/e/f") == b"f"
    mixed.symlink("e/f", "/tmp/l")
    assert mixed.readlink("/tmp/l") == "e/f"
    mixed.write("/tmp/g", b"g")
    with raises(errno.EISDIR):
        mixed.rename("/tmp/g", "/tmp/e")
    with raises(errno.ENOTDIR):
        mixed.rename("/tmp/e", "/tmp/g")
    with raises(errno.ENOTEMPTY):
        mixed.rmdir("/tmp/e")
    opened = mixed.open("/tmp/e/f", os.O_RDWR)
    mixed.unlink("/tmp/e/f")
    mixed.rmdir("/tmp/e")
    assert mixed.pwrite(opened, b"more", 1) == 4
    assert mixed.pread(opened, 99, 0) == b"fmore"
    assert mixed.getattr(opened[0]).links == 0
    mixed.close(opened)
    with raises(errno.ESTALE):
        mixed.request(Opcode.OPEN, opened[0], fuse_abi.Open(os.O_RDWR))


def test_private_files_are_bounded() -> None:
    client = FakeClient({"/tmp/in": "read"})
    kernel = FakeKernel(FileServer(wanted=nothing_wanted, now=lambda: 1, capacity=1 << 16), client)
    kernel.server.set_layout(client.layout())
    opened = kernel.open("/tmp/f", os.O_RDWR | os.O_CREAT)
    assert kernel.pwrite(opened, bytes(1 << 15), 0) == 1 << 15
    for fill in (lambda: kernel.pwrite(opened, b"x", 1 << 40), lambda: kernel.truncate("/tmp/f", 1 << 16)):
        with raises(errno.ENOSPC):
            fill()
    with raises(errno.ENOSPC):
        for number in range(1000):
            kernel.mkdir(f"/tmp/d{number}")
    kernel.unlink("/tmp/f")
    with raises(errno.ENOSPC):
        for number in range(1000):
            kernel.mkdir(f"/tmp/e{number}")
    kernel.close(opened)
    kernel.write("/tmp/g", bytes(1 << 14))
