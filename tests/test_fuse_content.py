"""Extended attributes, holes, room and copies in the guest's file tree; what is asked of the client, and what it may answer."""

from __future__ import annotations

import errno
import os

import pytest
from fake_client import FakeClient
from fake_kernel import FakeKernel, raises

from adyton.hostcall import abi
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.fuse_abi import Opcode

BOTH = pytest.mark.parametrize("path", ["/work/out/f", "/tmp/f"])


@pytest.fixture
def client() -> FakeClient:
    client = FakeClient({"/work/in": "read", "/work/out": "write", "/tmp/shared": "write"})
    client.file("/work/in/x", b"x")
    client.directory("/work/out")
    client.directory("/tmp/shared")
    return client


@pytest.fixture
def kernel(client: FakeClient) -> FakeKernel:
    return FakeKernel.loaded(client)


@BOTH
def test_extended_attributes(kernel: FakeKernel, path: str) -> None:
    kernel.write(path, b"")
    kernel.setxattr(path, "user.a", b"value")
    kernel.setxattr(path, "user.b", b"")
    assert (kernel.getxattr(path, "user.a"), kernel.listxattr(path)) == (b"value", ["user.a", "user.b"])
    with raises(errno.EEXIST):
        kernel.setxattr(path, "user.a", b"", os.XATTR_CREATE)
    with raises(errno.ENODATA):
        kernel.setxattr(path, "user.c", b"", os.XATTR_REPLACE)
    node = kernel.lookup(path).node
    for opcode, body in (
        (Opcode.GETXATTR, fuse_abi.GetXattr(4, b"user.a")),
        (Opcode.LISTXATTR, fuse_abi.ListXattr(4)),
    ):
        with raises(errno.ERANGE):
            kernel.request(opcode, node, body)
    kernel.removexattr(path, "user.a")
    for missing in (kernel.getxattr, kernel.removexattr):
        with raises(errno.ENODATA):
            missing(path, "user.a")


@BOTH
def test_those_of_the_machine_are_not_asked_for(kernel: FakeKernel, client: FakeClient, path: str) -> None:
    kernel.write(path, b"")
    node = kernel.lookup(path).node
    asked = len(client.log)
    for name in (b"security.capability", b"system.posix_acl_access", b"trusted.x", b"user." + b"\xff" * 251, b"none"):
        for opcode, body in (
            (Opcode.GETXATTR, fuse_abi.GetXattr(0, name)),
            (Opcode.SETXATTR, fuse_abi.SetXattr(1, 0, name, b"x")),
            (Opcode.REMOVEXATTR, fuse_abi.Name(name)),
        ):
            with raises(errno.EOPNOTSUPP):
                kernel.request(opcode, node, body)
    assert len(client.log) == asked


def test_private_ones_are_bounded_and_given_back(kernel: FakeKernel) -> None:
    used = kernel.server._view.private.used
    kernel.write("/tmp/f", b"")
    value = bytes(abi.MAX_EXTENDED)
    with raises(errno.ENOSPC):
        for number in range(5000):
            kernel.setxattr("/tmp/f", f"user.{number}", value)
    kernel.unlink("/tmp/f")
    assert kernel.server._view.private.used == used
    with raises(errno.E2BIG):
        kernel.setxattr("/tmp/shared", "user.a", bytes(abi.MAX_EXTENDED + 1))


@BOTH
def test_holes_room_and_copies(kernel: FakeKernel, path: str) -> None:
    file = kernel.open(path, os.O_RDWR | os.O_CREAT)
    kernel.pwrite(file, b"0123456789", 0)

    def seek(offset: int, whence: int) -> int:
        body = kernel.request(Opcode.LSEEK, file[0], fuse_abi.Seek(file[1], offset, whence))
        return fuse_answers.unpack_offset(body)

    assert (seek(3, os.SEEK_DATA), seek(3, os.SEEK_HOLE)) == (3, 10)
    with raises(errno.ENXIO):
        seek(10, os.SEEK_DATA)
    with raises(errno.EINVAL):
        seek(0, os.SEEK_END)
    kernel.request(Opcode.FALLOCATE, file[0], fuse_abi.Allocate(file[1], 2, 3, 3))
    kernel.request(Opcode.FALLOCATE, file[0], fuse_abi.Allocate(file[1], 0, 12, 0))
    assert kernel.pread(file, 99, 0) == b"01\0\0\0" + b"56789\0\0"
    for mode, number in ((8, errno.EOPNOTSUPP), (0x400, errno.EOPNOTSUPP)):
        with raises(number):
            kernel.request(Opcode.FALLOCATE, file[0], fuse_abi.Allocate(file[1], 0, 4096, mode))
    copy = fuse_abi.Copy(file[1], 0, file[0], file[1], 20, 5, 0)
    assert fuse_answers.unpack_written(kernel.request(Opcode.COPY_FILE_RANGE, file[0], copy)) == 5
    assert fuse_answers.unpack_offset(kernel.request(Opcode.COPY_FILE_RANGE_64, file[0], copy)) == 5
    assert kernel.getattr(file[0]).size == 25


def test_a_copy_from_one_side_to_the_other_is_for_the_kernel(kernel: FakeKernel) -> None:
    mine, theirs = (kernel.open(path, os.O_RDWR | os.O_CREAT) for path in ("/tmp/f", "/work/out/f"))
    for source, target in ((mine, theirs), (theirs, mine)):
        with raises(errno.EXDEV):
            kernel.request(
                Opcode.COPY_FILE_RANGE, source[0], fuse_abi.Copy(source[1], 0, target[0], target[1], 0, 5, 0)
            )


def test_where_a_file_is_appended_to_nothing_is_cached(kernel: FakeKernel) -> None:
    """The kernel would keep what it wrote at the place where it took the end to be."""
    node, name = kernel.parent("/work/out/f")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    entry, rest = kernel.entry(kernel.request(Opcode.CREATE, node, fuse_abi.Create(flags, 0o600, 0, name)))
    assert fuse_answers.unpack_open(rest).flags == fuse_abi.OpenFlag.DIRECT_IO
    assert entry.attr.size == 0


def test_the_birth_of_a_file(kernel: FakeKernel, client: FakeClient) -> None:
    for path, born in (("/work/in/x", 77), ("/tmp", 1), ("/usr", None)):
        node = kernel.lookup(path).node
        mask, time = fuse_answers.unpack_statx(kernel.request(Opcode.STATX, node, fuse_abi.Statx(0xFFF)))
        assert (mask & 0x800, time) == ((0, 0) if born is None else (0x800, born))
    kernel.request(Opcode.STATX, kernel.lookup("/work/in/x").node, fuse_abi.Statx(0x7FF))
    assert client.log[-1] == abi.Stat("/work/in/x")


def test_the_room_of_each_place(kernel: FakeKernel) -> None:
    def room(path: str) -> fuse_answers.FileSystem:
        return fuse_answers.unpack_statfs(kernel.request(Opcode.STATFS, kernel.lookup(path).node, fuse_abi.Nothing()))

    assert room("/work/in") == (512, 1000, 600, 500, 90, 80)
    assert room("/tmp").blocks == kernel.server._view.private.capacity // 4096
    assert room("/usr").free > 1 << 30


@pytest.mark.parametrize(
    ("opcode", "body", "lie"),
    [
        (Opcode.GETXATTR, fuse_abi.GetXattr(10, b"user.a"), abi.Data(bytes(1 << 17))),
        (Opcode.LISTXATTR, fuse_abi.ListXattr(10), abi.Names(["security.x"])),
        (Opcode.LISTXATTR, fuse_abi.ListXattr(10), abi.Names(["user.a\0user.b"])),
        (Opcode.LSEEK, fuse_abi.Seek(1, 5, os.SEEK_DATA), abi.Position(4)),
        (Opcode.COPY_FILE_RANGE, fuse_abi.Copy(1, 0, 0, 1, 0, 5, 0), abi.Copied(6)),
        (Opcode.GETLK, fuse_abi.Lock(1, 1, 5, 9, 0, 0, 0), abi.Conflict("write", 0, 4)),
        (Opcode.GETATTR, fuse_abi.Nothing(), abi.Attributes("directory", 1, 0, 0o755, 2, 0, 0, 0)),
        (Opcode.GETATTR, fuse_abi.Nothing(), abi.Attributes("file", 12345, 0, 0o755, 2, 0, 0, 0)),
        (Opcode.STATFS, fuse_abi.Nothing(), abi.Done()),
        (Opcode.LINK, fuse_abi.Link(0, b"l"), abi.Attributes("directory", 1, 0, 0o755, 2, 0, 0, 0)),
        (Opcode.SYMLINK, fuse_abi.SymLink(b"l", b"f"), abi.Attributes("file", 1, 0, 0o755, 2, 0, 0, 0)),
        (Opcode.SETLK, fuse_abi.Lock(1, 1, 0, 1, 1, 0, 0), abi.Written(3)),
        (Opcode.TMPFILE, fuse_abi.Create(os.O_RDWR, 0o600, 0, b"/"), abi.Attributes("symlink", 1, 0, 0, 1, 0, 0, 0)),
    ],
)
def test_a_lying_client_is_an_error_and_nothing_else(
    kernel: FakeKernel, client: FakeClient, opcode: Opcode, body: fuse_abi.Body, lie: abi.Result
) -> None:
    file = kernel.open("/work/out/f", os.O_RDWR | os.O_CREAT)
    assert file[1] == 1
    folder = kernel.lookup("/work/out").node
    names = opcode in (Opcode.LINK, Opcode.SYMLINK, Opcode.TMPFILE)
    if isinstance(body, fuse_abi.Link):
        body = body._replace(node=file[0])
    client.execute = lambda _request: lie  # type: ignore[method-assign]
    with raises(errno.EIO):
        kernel.request(opcode, folder if names else file[0], body)
    assert not kernel.server._waiting
