"""Host calls on what files hold beside bytes: holes, room, copies, extended attributes, birth; and on their file system."""

from __future__ import annotations

import os
import threading
import time

import pytest
from executing import DENIED, Client, furnished

from adyton.hostcall import abi


@pytest.fixture
def client(tmp_path):
    client = Client(furnished(tmp_path))
    with client.executor:
        yield client


def test_holes_and_data_are_found(client):
    client.open("write/file", access="read-write", create=True)
    client(abi.Write(1, 1 << 20, b"data"))
    assert client(abi.Seek(1, 0, "hole")) == abi.Position(0)
    data = client(abi.Seek(1, 0, "data")).offset
    assert 0 < data <= 1 << 20
    assert client(abi.Seek(1, data, "hole")) == abi.Position((1 << 20) + 4)
    assert client(abi.Seek(1, 1 << 21, "data")) == abi.Failed("ENXIO")
    assert client(abi.Read(1, 0, 3)) == abi.Data(bytes(3)), "reads have places of their own"


def test_room_is_made_and_holes_are_punched(client):
    client.open("write/file", access="read-write", create=True)
    assert client(abi.Allocate(1, "extend", 0, 1 << 16)) == abi.Done()
    assert client.stat("write/file").size == 1 << 16
    assert client(abi.Allocate(1, "keep-size", 0, 1 << 17)) == abi.Done()
    client(abi.Write(1, 0, b"x" * (1 << 16)))
    assert client(abi.Allocate(1, "punch-hole", 4096, 4096)) == abi.Done()
    assert client(abi.Read(1, 4095, 3)) == abi.Data(b"x\0\0")
    assert client.stat("write/file").size == 1 << 16
    assert client(abi.Allocate(1, "extend", 0, 0)) == abi.Failed("EINVAL")
    assert client(abi.Allocate(1, "extend", (1 << 63) - 1, (1 << 63) - 1)) == abi.Failed("EFBIG")
    client.open("read/file", 2)
    assert client(abi.Allocate(2, "extend", 0, 1)) == abi.Failed("EBADF")


def test_bytes_are_copied_without_leaving_the_machine(client):
    client.open("read/file", 1)
    client.open("write/copy", 2, access="write", create=True)
    assert client(abi.Copy(1, 2, 2, 5, 100)) == abi.Copied(8)
    assert (client.home / "write/copy").read_bytes() == bytes(5) + b"23456789"
    assert client(abi.Copy(1, 100, 2, 0, 100)) == abi.Copied(0)
    assert client(abi.Copy(2, 0, 1, 0, 1)) == abi.Failed("EBADF")
    client.open("write/log", 3, access="write", create=True, append=True)
    assert client(abi.Copy(1, 0, 3, 0, 1)) == abi.Failed("EBADF")


def test_what_several_append_is_whole(client):
    for handle in range(4):
        client.open("write/log", handle, access="write", create=True, append=True)
    lines = [b"%d" % number * 3000 + b"\n" for number in range(4)]
    threads = [
        threading.Thread(target=lambda n=n: [client(abi.Write(n, 0, lines[n])) for _ in range(50)]) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = (client.home / "write/log").read_bytes().splitlines(keepends=True)
    assert len(found) == 200
    assert set(found) == set(lines)


class TestExtendedAttributes:
    def test_they_are_set_read_listed_and_removed(self, client):
        path = client.path("write/file")
        (client.home / "write/file").touch()
        assert client(abi.SetExtended(path, "user.a", b"\0value")) == abi.Done()
        assert client(abi.GetExtended(path, "user.a")) == abi.Data(b"\0value")
        assert os.getxattr(path, "user.a") == b"\0value"
        assert client(abi.SetExtended(path, "user.a", b"", "create")) == abi.Failed("EEXIST")
        assert client(abi.SetExtended(path, "user.b", b"", "replace")) == abi.Failed("ENODATA")
        client.open("write/file", access="write")
        assert client(abi.SetExtended("/x", "user.b", b"2", handle=1)) == abi.Done()
        assert sorted(client(abi.ListExtended("/x", handle=1)).names) == ["user.a", "user.b"]
        assert client(abi.RemoveExtended(path, "user.a")) == abi.Done()
        assert client(abi.RemoveExtended(path, "user.a")) == abi.Failed("ENODATA")
        assert client(abi.GetExtended(client.path("write"), "user.a")) == abi.Failed("ENODATA")

    def test_the_machines_own_are_not_there(self, client):
        path = client.path("write/file")
        (client.home / "write/file").touch()
        if os.geteuid() == 0:
            os.setxattr(path, "trusted.secret", b"secret")
        for name in ("security.capability", "system.posix_acl_access", "trusted.secret", "user.", "user.a\0b"):
            assert client(abi.GetExtended(path, name)) == abi.Failed("EOPNOTSUPP")
            assert client(abi.SetExtended(path, name, b"x")) == abi.Failed("EOPNOTSUPP")
            assert client(abi.RemoveExtended(path, name)) == abi.Failed("EOPNOTSUPP")
        assert client(abi.ListExtended(path)) == abi.Names([])

    def test_the_policy_decides(self, client):
        path, secret = client.path("read/file"), client.path("secret/file")
        assert client(abi.SetExtended(path, "user.a", b"x")) == client(abi.RemoveExtended(path, "user.a")) == DENIED
        client.open("read/file")
        assert client(abi.SetExtended("/x", "user.a", b"x", handle=1)) == DENIED
        assert client(abi.GetExtended(path, "user.a")) == abi.Failed("ENODATA")
        assert client(abi.GetExtended(secret, "user.a")) == client(abi.ListExtended(secret)) == DENIED

    def test_a_link_is_not_followed(self, client):
        os.setxattr(client.home / "secret/file", "user.a", b"secret")
        (client.home / "read/link").symlink_to("../secret/file")
        assert isinstance(client(abi.GetExtended(client.path("read/link"), "user.a")), abi.Failed)
        assert client(abi.ListExtended(client.path("read/link"))) == abi.Names([])


def test_the_birth_of_a_file_is_told_when_asked(client):
    before = time.time_ns() - 10**9
    client.open("write/file", access="write", create=True)
    assert client.stat("write/file").born is None
    for request in (abi.Stat(client.path("write/file"), birth=True), abi.Stat("/x", handle=1, birth=True)):
        born = client(request).born
        assert born is None or before < born < time.time_ns() + 10**9


def test_an_open_file_has_attributes_without_a_name(client):
    client.open("write/file", access="write", create=True)
    (client.home / "write/file").unlink()
    client(abi.Write(1, 0, b"abc"))
    found = client(abi.Stat("/ignored", handle=1))
    assert (found.size, found.links) == (3, 0)
    assert client(abi.Stat("/ignored", handle=2)) == abi.Failed("EBADF")


def test_the_file_system_has_the_room_that_it_has(client):
    found = client(abi.StatFileSystem(client.path("read/file")))
    status = os.statvfs(client.home)
    assert (found.block_size, found.blocks, found.files) == (status.f_frsize, status.f_blocks, status.f_files)
    assert client(abi.StatFileSystem(client.path("secret"))) == DENIED
