"""What other programs do to the client's files where an enclave follows it: told each time, and the enclave's own deeds are not."""

from __future__ import annotations

import errno
import os
import shutil
import struct
from pathlib import Path

import pytest
from executing import Client, furnished
from fake_kernel import raises

from adyton.hostcall import abi
from adyton.hostcall.client import watches as module
from adyton.hostcall.events import Event


class Followed(Client):
    """A client whose enclave writes to `home/write`, and follows it."""

    def told(self) -> list[tuple[str, str]]:
        """Kinds and names since the last time; directories end with a slash."""
        self.executor.take_changes()
        return [(each.kind, each.name + "/" * each.is_directory) for each in self.executor.take_events()]


@pytest.fixture
def client(tmp_path: Path):
    made = Followed(furnished(tmp_path))
    (made.home / "write/old").write_bytes(b"old")
    (made.home / "write/sub").mkdir()
    with made.executor:
        yield made


def follow(client: Client, name: str = "", directory: str = "write") -> object:
    return client(abi.Follow(client.path(directory), name))


OTHERS = {
    "create": (lambda at: (at / "new").touch(), [("created", "new"), ("closed", "new")]),
    "write": (lambda at: (at / "old").write_bytes(b"x"), [("modified", "old"), ("modified", "old"), ("closed", "old")]),
    "mode": (lambda at: (at / "old").chmod(0o600), [("attributes", "old")]),
    "mkdir": (lambda at: (at / "new").mkdir(), [("created", "new/")]),
    "rmdir": (lambda at: (at / "sub").rmdir(), [("removed", "sub/")]),
    "unlink": (lambda at: (at / "old").unlink(), [("removed", "old")]),
    "link": (lambda at: (at / "new").hardlink_to(at / "old"), [("created", "new")]),
    "rename": (lambda at: (at / "old").rename(at / "new"), [("moved-from", "old"), ("moved-to", "new")]),
    "read": (lambda at: (at / "old").read_bytes(), []),
}


@pytest.mark.parametrize(("deed", "told"), OTHERS.values(), ids=OTHERS)
def test_what_others_do_is_told_each_time(client: Followed, deed, told) -> None:
    assert follow(client) == abi.Done()
    deed(client.home / "write")
    assert set(client.told()) == set(told)


def test_the_halves_of_a_move_have_one_cookie(client: Followed) -> None:
    follow(client)
    follow(client, directory="write/sub")
    os.rename(client.home / "write/old", client.home / "write/sub/new")
    client.executor.take_changes()
    left, right = client.executor.take_events()
    assert (left.directory, right.directory) == (client.path("write"), client.path("write/sub"))
    assert left.cookie == right.cookie != 0


def test_what_the_enclave_does_is_not_told(client: Followed) -> None:
    follow(client)
    path = client.path("write/mine")
    client.open("write/mine", 1, "read-write", create=True)
    client(abi.Write(1, 0, b"data"))
    client(abi.SetAttributes(path, mode=0o600))
    client(abi.SetAttributes(path, size=1, handle=1))
    client(abi.Rename(path, client.path("write/yours")))
    client(abi.Link(client.path("write/yours"), path))
    client(abi.Close(1))
    client(abi.Remove(path, directory=False))
    client(abi.Remove(client.path("write/yours"), directory=False))
    client(abi.MakeDirectory(client.path("write/new"), 0o755))
    client(abi.Remove(client.path("write/new"), directory=True))
    client.open("write/old", 2, "read-write")  # to write, but does not
    client(abi.Close(2))
    client.open("write/old", 3, "read-write")
    os.unlink(client.home / "write/old")
    client.told()
    client(abi.Close(3))
    assert client.told() == []


def test_what_others_do_to_a_file_of_the_enclave_is_told(client: Followed) -> None:
    follow(client)
    client.open("write/mine", 1, "write", create=True)
    client(abi.Write(1, 0, b"data"))
    (client.home / "write/mine").chmod(0o600)
    assert client.told() == [("attributes", "mine")]
    with open(client.home / "write/mine", "a") as file:
        file.write("more")
    client(abi.Write(1, 0, b"again"))
    assert client.told() == [("modified", "mine"), ("closed", "mine")]
    os.rename(client.home / "write/mine", client.home / "write/theirs")
    client(abi.Close(1))
    assert client.told() == [("moved-from", "mine"), ("moved-to", "theirs")]


def test_a_name_alone_is_followed(client: Followed) -> None:
    assert follow(client, "old") == abi.Done()
    (client.home / "write/new").touch()
    (client.home / "write/old").chmod(0o600)
    os.chmod(client.home / "write", 0o700)
    assert client.told() == [("attributes", "old")]


def test_a_directory_itself_is_followed_until_it_goes(client: Followed) -> None:
    follow(client, directory="write/sub")
    os.chmod(client.home / "write/sub", 0o700)
    assert client.told() == [("attributes", "/")]
    os.rename(client.home / "write/sub", client.home / "write/bus")
    (client.home / "write/bus/x").touch()
    assert client.told() == [("moved-from", "")]
    follow(client, directory="write/bus")
    (client.home / "write/bus/x").unlink()
    (client.home / "write/bus").rmdir()
    assert client.told() == [("removed", "x"), ("removed", "")]


@pytest.fixture
def deep(client: Followed) -> str:
    """A directory in a directory, and what it is called there."""
    (client.home / "write/sub/deep").mkdir()
    (client.home / "write/sub/deep/file").touch()
    return "write/sub/deep"


@pytest.mark.parametrize("left", ["nothing", "a link to it", "another"])
def test_no_names_are_told_of_what_is_not_allowed_any_more(client: Followed, deep, left) -> None:
    follow(client, directory=deep)
    client(abi.Watch(client.path(deep)))
    os.rename(client.home / "write/sub", client.home / "secret/sub")
    if left == "a link to it":
        os.symlink(client.home / "secret/sub", client.home / "write/sub")
    elif left == "another":
        (client.home / deep).mkdir(parents=True)
    (client.home / "secret/sub/deep/plans").touch()
    (client.home / "secret/sub/deep/plans").unlink()
    assert client.executor.take_changes() == [(client.path(deep), "")]
    assert client.executor.take_events() == [Event(client.path(deep), "", "moved-from")]
    (client.home / "secret/sub/deep/more").touch()
    os.rename(client.home / "secret/sub/deep", client.home / "write/deep")
    (client.home / "write/deep/news").touch()
    assert client.told() == client.executor.take_changes() == []


def test_no_attributes_are_told_of_what_is_not_allowed_any_more(client: Followed, deep) -> None:
    follow(client, directory=deep)
    os.rename(client.home / "write/sub", client.home / "secret/sub")
    (client.home / "secret/sub/deep").chmod(0o700)
    assert client.told() == [("moved-from", "")]


def test_what_is_removed_with_all_in_it_is_told(client: Followed, deep) -> None:
    for each in ("write/sub", deep):
        follow(client, directory=each)
    shutil.rmtree(client.home / "write/sub")
    client.executor.take_changes()
    told = [(each.directory, each.kind, each.name) for each in client.executor.take_events()]
    assert told == [
        (client.path(deep), "removed", "file"),
        (client.path(deep), "removed", ""),
        (client.path("write/sub"), "removed", "deep"),
        (client.path("write/sub"), "removed", ""),
    ]


def test_what_is_removed_while_it_is_looked_for_is_told(client: Followed, monkeypatch) -> None:
    """The look finds it gone, and why is not read yet."""
    inside, look = client.home / "write/sub", module.Watches._identity_at
    (inside / "in").touch()
    follow(client, directory="write/sub")
    (inside / "in").unlink()

    def remove_and_look(watches: module.Watches, path: str) -> module.Identity | None:
        if inside.exists():
            inside.rmdir()
        return look(watches, path)

    monkeypatch.setattr(module.Watches, "_identity_at", remove_and_look)
    assert client.told() == [("removed", "in"), ("removed", "")]


@pytest.mark.parametrize("followed", ["write/sub", "nothing above it"])
def test_what_is_removed_where_it_is_not_allowed_is_told_without_names(client: Followed, deep, followed) -> None:
    if followed == "write/sub":
        follow(client, directory="write/sub")
    follow(client, directory=deep)
    os.rename(client.home / "write", client.home / "secret/write")
    (client.home / "secret" / deep / "plans").touch()
    shutil.rmtree(client.home / "secret/write/sub")
    client.executor.take_changes()
    events = client.executor.take_events()
    assert {each.name for each in events} == {""}
    assert {each.directory for each in events} >= {client.path(deep)}


def test_all_that_others_move_with_a_directory_is_followed_no_more(client: Followed, deep) -> None:
    for each, name in (("write/sub", ""), (deep, ""), (deep, "file")):
        follow(client, name, each)
    os.rename(client.home / "write/sub", client.home / "write/bus")
    client.executor.take_changes()
    assert client.executor.take_events() == [
        Event(client.path("write/sub"), "", "moved-from"),
        Event(client.path(deep), "", "moved-from"),
        Event(client.path(deep), "file", "moved-from"),
    ]


def test_what_the_enclave_moves_with_a_directory_is_not_told(client: Followed, deep) -> None:
    for each in ("write/sub", deep):
        follow(client, directory=each)
    client(abi.Rename(client.path("write/sub"), client.path("write/bus")))
    assert client.told() == []
    assert follow(client, directory="write/bus/deep") == abi.Done()
    (client.home / "write/bus/deep/new").mkdir()
    assert client.told() == [("created", "new/")]


def test_promises_and_what_is_followed_do_not_end_each_other(client: Followed) -> None:
    directory = client.path("write")
    follow(client)
    client(abi.Watch(directory))
    client(abi.Unwatch(directory))
    (client.home / "write/new").mkdir()
    assert client.told() == [("created", "new/")]
    client(abi.Watch(directory))
    assert client(abi.Unfollow(directory)) == abi.Done()
    (client.home / "write/new").rmdir()
    assert client.executor.take_changes() == [(directory, "new")]
    assert client.executor.take_events() == []


def test_what_the_kernel_lost_is_said_and_what_follows_is_told(client: Followed) -> None:
    follow(client)
    client(abi.Watch(client.path("write")))
    client.executor._watches._read(struct.pack("=iIII", -1, module._OVERFLOW, 0, 0))
    assert client.executor.take_changes() == [(client.path("write"), "")]
    assert client.executor.take_events() == [Event("/", "", "lost")]
    (client.home / "write/new").mkdir()
    assert client.told() == [("created", "new/")]


def test_what_nobody_takes_is_bounded(client: Followed, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_EVENTS", 3)
    follow(client)
    for number in range(10):
        (client.home / f"write/{number}").mkdir()
    told = client.told()
    assert told[0] == ("lost", "")
    assert len(told) <= 3
    assert told[-1] == ("created", "9/")


def test_what_is_followed_is_bounded_and_the_policys(client: Followed, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_FOLLOWED", 1)
    assert follow(client) == follow(client) == abi.Done()
    assert follow(client, "old") == abi.Failed("ENOSPC")
    assert follow(client, directory="secret") == abi.Failed("EACCES")
    assert follow(client, "file", "secret") == abi.Failed("EACCES")
    assert follow(client, directory="write/nothing") == abi.Failed("ENOENT")
    assert follow(client, directory="write/old") == abi.Failed("ENOTDIR")


def test_names_that_are_not_utf8_are_told_as_others(client: Followed) -> None:
    follow(client)
    client(abi.Watch(client.path("write")))
    os.mkdir(os.fsencode(client.home / "write") + b"/\xff")
    (client.home / "write/new").mkdir()
    assert client.executor.take_changes() == [(client.path("write"), "\udcff"), (client.path("write"), "new")]
    assert [each.name for each in client.executor.take_events()] == ["\udcff", "new"]


def test_file_systems_that_other_machines_change_are_not_followed(client: Followed, monkeypatch) -> None:
    monkeypatch.setattr(module, "file_system", lambda _descriptor: 0x6969)  # NFS
    assert follow(client) == abi.Failed("EOPNOTSUPP")
    client.executor._watches.close()
    monkeypatch.undo()
    with raises(errno.EBADF):
        client.executor._watches.follow(os.open(client.home, os.O_PATH), str(client.home), "/x", "")
