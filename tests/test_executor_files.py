"""Host calls on files: what the client does, and what it refuses, for an enclave that asks for anything."""

from __future__ import annotations

import os
import resource
import stat
import struct
import threading
import time
from pathlib import Path

import pytest
from executing import DENIED, Client, furnished

from adyton.hostcall import abi
from adyton.hostcall.client import executor as executor_module
from adyton.hostcall.client.executor import Executor
from adyton.hostcall.client.openat import has_openat2
from adyton.hostcall.client.policy import HostCallPolicy


@pytest.fixture
def home(tmp_path):
    return furnished(tmp_path)


@pytest.fixture(params=["openat2", "walk"])
def client(request, home):
    if request.param == "openat2" and not has_openat2():
        pytest.skip("this kernel has no openat2")
    client = Client(home, walk=request.param == "walk")
    with client.executor:
        yield client


def test_a_file_is_read_in_blocks(client):
    attributes = client.open("read/file")
    assert (attributes.kind, attributes.size) == ("file", 10)
    assert client(abi.Read(1, 2, 3)) == abi.Data(b"234")
    assert client(abi.Read(1, 8, 100)) == abi.Data(b"89")
    assert client(abi.Read(1, 10, 100)) == abi.Data(b"")
    assert client(abi.Close(1)) == abi.Done()
    assert client(abi.Read(1, 0, 1)) == abi.Failed("EBADF")


def test_a_directory_is_synced_where_it_may_be_read(client):
    assert client(abi.SyncDirectory(client.path("write"))) == abi.Done()
    assert client(abi.SyncDirectory(client.path("read/file"))) == abi.Failed("ENOTDIR")
    assert client(abi.SyncDirectory("/etc")) == abi.Failed("EACCES")


def test_a_file_is_created_written_and_synced(client):
    assert client.open("write/new", access="read-write", create=True, mode=0o640).size == 0
    assert client(abi.Write(1, 3, b"abc")).size == 3
    assert client(abi.Sync(1, data_only=False)) == client(abi.Sync(1, data_only=True)) == abi.Done()
    assert client(abi.Read(1, 0, 10)) == abi.Data(b"\0\0\0abc")
    assert (client.home / "write/new").read_bytes() == b"\0\0\0abc"


@pytest.fixture
def narrow_umask():
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_the_umask_is_the_enclave_s(client, narrow_umask):
    assert client.open("write/new", access="write", create=True, mode=0o666).mode == 0o666
    assert client.open("write/one", 2, access="write", create=True, exclusive=True, mode=0o440).mode == 0o440
    assert client.open("write/two", 4, access="write", create=True, mode=0o666, umask=0o022).mode == 0o644
    assert client(abi.MakeDirectory(client.path("write/folder"), 0o1775)).mode == 0o1775
    assert client(abi.MakeDirectory(client.path("write/other"), 0o777, 0o027)).mode == 0o750
    unnamed = client(abi.OpenUnnamed(client.path("write"), 3, "write", mode=0o666, umask=0o002))
    assert isinstance(unnamed, abi.Failed) or unnamed.mode == 0o664  # there are file systems without unnamed files


def test_a_file_that_is_there_keeps_its_mode(client, narrow_umask):
    (client.home / "write/old").touch(0o600)
    assert client.open("write/old", access="write", create=True, mode=0o666).mode == 0o600


def test_a_directory_s_default_acl_holds_in_place_of_any_umask(client, narrow_umask):
    entries = ((0x01, 7), (0x04, 5), (0x20, 0))  # owner, group, others: linux/posix_acl.h, linux/posix_acl_xattr.h
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, 0xFFFFFFFF) for tag, bits in entries)
    try:
        os.setxattr(client.home / "write", "system.posix_acl_default", acl)
    except OSError:
        pytest.skip("this file system has no ACLs")
    for number, umask in enumerate((0, 0o077)):
        made = client.open(f"write/new{number}", number, access="write", create=True, mode=0o666, umask=umask)
        assert made.mode == 0o640
        assert client(abi.MakeDirectory(client.path(f"write/folder{number}"), 0o777, umask)).mode == 0o750


def test_flags_of_open(client):
    (client.home / "write/file").write_bytes(b"old")
    assert client.open("write/file", access="write", create=True, exclusive=True) == abi.Failed("EEXIST")
    assert client.open("write/none", access="write") == abi.Failed("ENOENT")
    assert client.open("write/file", 1, access="write", append=True).size == 3
    assert client(abi.Write(1, 0, b"+new")).size == 4
    assert (client.home / "write/file").read_bytes() == b"old+new"
    assert client(abi.Read(1, 0, 1)) == abi.Failed("EBADF")
    assert client.open("write/file", 2, access="read-write", truncate=True).size == 0


@pytest.mark.parametrize(
    "options",
    [
        {"access": "write"},
        {"access": "read-write"},
        {"create": True},
        {"truncate": True},
        {"access": "write", "append": True},
    ],
)
def test_what_may_only_be_read_is_not_opened_in_any_way_that_writes(client, options):
    assert client.open("read/file", **options) == DENIED
    assert client.open("read/new", **options) == DENIED
    assert os.listdir(client.home / "read") in (["file", "sub"], ["sub", "file"])
    assert client.lines[0].startswith(f"denied: write {client.path('read/file')} (add --allow-write ")


def test_an_open_file_that_may_only_be_read_is_not_changed(client):
    before = client.open("read/file")
    for request in (
        abi.Write(1, 0, b"x"),
        abi.SetAttributes("/ignored", 1, size=0),
        abi.SetAttributes(client.path("write"), 1, mode=0o777),
        abi.SetAttributes(client.path("write"), 1, modified="now"),
    ):
        assert isinstance(client(request), abi.Failed)
    assert client.stat("read/file") == before


def test_nothing_else_is_reachable(client):
    for name in ("secret/file", "secret", "none", "read2", "../x".replace("..", "elsewhere")):
        path = client.path(name)
        for request in (
            abi.Stat(path),
            abi.ReadLink(path),
            abi.List(path, 0),
            abi.Open(path, 1, "read"),
            abi.MakeDirectory(path, 0o777),
            abi.Remove(path, directory=False),
            abi.Remove(path, directory=True),
            abi.Rename(path, client.path("write/x")),
            abi.Rename(client.path("write/x"), path),
            abi.SetAttributes(path, size=0),
            abi.Access(path, "read"),
            abi.Access(path, "write"),
        ):
            assert client(request) == DENIED
    assert (client.home / "secret/file").read_bytes() == b"secret"


@pytest.mark.parametrize(
    "path", ["relative", "", "/a/../b", "/a/./b", "//a", "/a/", "/a\0b", "/..", "/" + "x/" * 3000, "/\ud8ff"]
)
def test_paths_that_are_not_normalised_are_invalid(home, path):
    client = Client(home, write=["/"])
    with client.executor:
        for request in (abi.Stat(path), abi.Open(path, 1, "read"), abi.List(path, 0), abi.Access(path, "read")):
            assert client(request) == abi.Failed("EINVAL")


def test_access_is_what_the_policy_and_the_permissions_give(client, monkeypatch):
    assert (
        client(abi.Access(client.path("write"), "write"))
        == client(abi.Access(client.path("read"), "read"))
        == abi.Done()
    )
    assert client(abi.Access(client.path("read/none"), "read")) == abi.Failed("ENOENT")
    asked = []
    monkeypatch.setattr(os, "access", lambda name, mode, **_: asked.append((name, mode)))
    assert client(abi.Access(client.path("read/file"), "read")) == abi.Failed("EACCES")
    assert (asked, client.lines) == ([("file", os.R_OK)], [])


def test_dotdot_from_an_allowed_folder_is_no_way_out(client):
    assert client(abi.Open(client.path("read/../secret/file"), 1, "read")) == abi.Failed("EINVAL")


def test_directories_that_lead_to_an_allowed_path_are_stat_ed_and_not_listed(client):
    path = str(client.home)
    while True:
        assert client(abi.Stat(path)).kind == "directory"
        assert client(abi.List(path, 0)) == DENIED
        assert client(abi.Access(path, "read")) == DENIED
        if path == "/":
            break
        path = os.path.dirname(path)


def test_a_missing_allowed_name_is_missing_and_no_denial(client):
    assert client.stat("read/none") == abi.Failed("ENOENT")
    assert client.stat("read/file/x") == abi.Failed("ENOTDIR")
    assert client.stat("read/" + "x" * 256) == abi.Failed("ENAMETOOLONG")
    assert client.lines == []
    assert client.executor.denials == 0


class TestSymbolicLinks:
    def test_one_that_leads_out_is_seen_and_not_read_or_followed(self, client):
        (client.home / "read/link").symlink_to("../secret/file")
        assert client.stat("read/link").kind == "symlink"
        assert client(abi.ReadLink(client.path("read/link"))) == DENIED
        assert client.lines == [
            f"denied: read {client.path('secret/file')} (add --allow-read {client.path('secret/file')})"
        ]
        assert client.open("read/link") == DENIED

    def test_one_that_stays_inside_is_read(self, client):
        (client.home / "read/link").symlink_to("sub/../file")
        assert client(abi.ReadLink(client.path("read/link"))) == abi.Target("sub/../file")
        (client.home / "read/absolute").symlink_to(client.home / "read/sub")
        assert client(abi.ReadLink(client.path("read/absolute"))) == abi.Target(client.path("read/sub"))

    def test_where_a_chain_of_them_ends_is_what_counts(self, client):
        (client.home / "read/one").symlink_to("two/deep")
        (client.home / "read/two").symlink_to("sub")
        assert client(abi.ReadLink(client.path("read/one"))) == abi.Target("two/deep")
        (client.home / "read/two").unlink()
        (client.home / "read/two").symlink_to("../secret")
        assert client(abi.ReadLink(client.path("read/one"))) == DENIED

    def test_whether_something_is_there_outside_is_not_told(self, client):
        for number, target in enumerate(["../secret/file", "../secret/none", "../none", "/usr/bin/env", "/usr/none"]):
            (client.home / f"read/{number}").symlink_to(target)
            assert client(abi.ReadLink(client.path(f"read/{number}"))) == DENIED

    def test_one_whose_end_is_missing_inside_is_read(self, client):
        (client.home / "read/link").symlink_to("none/below")
        assert client(abi.ReadLink(client.path("read/link"))) == abi.Target("none/below")

    def test_a_circle_is_for_the_enclave_to_find_out(self, client):
        (client.home / "read/one").symlink_to("two")
        (client.home / "read/two").symlink_to("one")
        assert client(abi.ReadLink(client.path("read/one"))) == abi.Target("two")

    def test_what_is_none_has_no_target(self, client):
        assert client(abi.ReadLink(client.path("read/file"))) == abi.Failed("EINVAL")

    def test_one_that_is_allowed_by_name_leads_the_enclave_to_the_resolved_path(self, home):
        (home / "current").symlink_to("read")
        client = Client(home, read=["current"])
        with client.executor:
            assert client.stat("current").kind == "symlink"
            assert client(abi.ReadLink(client.path("current"))) == abi.Target("read")
            assert client.open("read/file").size == 10
            assert client.open("current/file", 2).size == 10
            assert client.list("current") == client.list("read")

    def test_an_allowed_name_is_the_link_itself_when_it_is_removed_and_made_anew(self, home):
        (home / "target").write_text("old")
        (home / "result").symlink_to("target")
        client = Client(home, write=["result"])
        with client.executor:
            assert client.open("result", 1, access="write", truncate=True).size == 0
            assert client(abi.Remove(client.path("result"), directory=False)) == abi.Done()
            assert (home / "target").exists()
            assert client.open("result", 2, access="write", create=True).kind == "file"
            assert client.stat("result").kind == "file"
            assert not (home / "result").is_symlink()

    def test_one_that_is_swapped_in_later_leads_nowhere(self, client):
        (client.home / "read").rename(client.home / "old")
        (client.home / "read").symlink_to("secret")
        assert client.open("read/file") == DENIED
        assert client(abi.List(client.path("read"), 0)) == DENIED

    def test_changing_one_never_changes_what_it_leads_to(self, client):
        (client.home / "write/link").symlink_to("../secret/file")
        before = os.stat(client.home / "secret/file")
        for change in ({"size": 0}, {"mode": 0o777}, {"modified": 0}, {"accessed": "now"}):
            client(abi.SetAttributes(client.path("write/link"), **change))
        assert client.open("write/link", access="write", create=True, truncate=True) == DENIED
        assert client(abi.Remove(client.path("write/link"), directory=False)) == abi.Done()
        assert (os.stat(client.home / "secret/file"), (client.home / "secret/file").read_bytes()) == (before, b"secret")

    def test_no_file_is_moved_or_made_through_one(self, client):
        (client.home / "write/out").symlink_to("../secret")
        (client.home / "write/file").write_bytes(b"")
        assert client(abi.Rename(client.path("write/file"), client.path("write/out/moved"))) == DENIED
        assert client(abi.MakeDirectory(client.path("write/out/made"), 0o755)) == DENIED
        assert client(abi.Remove(client.path("write/out/file"), directory=False)) == DENIED
        assert os.listdir(client.home / "secret") == ["file"]


def test_a_hard_link_is_a_name_like_any_other(client):
    os.link(client.home / "secret/file", client.home / "read/hard")
    attributes = client.open("read/hard")
    assert attributes.links == 2
    os.link(client.home / "read/file", client.home / "read/same")
    assert client.stat("read/same").identity == client.stat("read/file").identity != attributes.identity


def test_only_regular_files_are_opened(client):
    os.mkfifo(client.home / "write/fifo")
    assert client.stat("write/fifo").kind == "other"
    for access in ("read", "write", "read-write"):
        assert client.open("write/fifo", access=access) == DENIED
    assert client.open("read/sub") == abi.Failed("EISDIR")
    assert client.open("write", access="write", create=True) == abi.Failed("EISDIR")
    assert client.lines == []


@pytest.mark.parametrize(
    "path", ["/proc/self/environ", "/proc/self/mem", "/proc/self/root/srv", "/dev/null", "/etc/passwd"]
)
def test_the_enclaves_own_names_are_never_the_clients_even_if_all_is_allowed(home, path):
    client = Client(home, write=["/"])
    with client.executor:
        assert client(abi.Open(path, 1, "read")) == DENIED
        assert client(abi.Stat(path)) == DENIED
        assert not {"proc", "dev", "etc", "usr"} & client.list("").keys()
        assert not {"proc", "dev", "etc", "usr"} & {entry.name for entry in client(abi.List("/", 0)).entries}


class TestListings:
    def test_names_kinds_and_attributes(self, client):
        found = client.list("read")
        assert {name: each.kind for name, each in found.items()} == {"file": "file", "sub": "directory"}
        assert found["file"] == client.stat("read/file")

    def test_a_large_directory_comes_in_parts(self, client):
        names = {f"{number:04}" for number in range(abi.MAX_ENTRIES * 2 + 1)}
        for name in names:
            (client.home / "read/sub" / name).touch()
        assert client.list("read/sub").keys() == names | {"deep"}

    def test_what_is_deleted_meanwhile_hides_nothing_else(self, client):
        names = [f"{number:04}" for number in range(abi.MAX_ENTRIES * 2)]
        for name in names:
            (client.home / "write" / name).touch()
        first = client(abi.List(client.path("write"), 0))
        for entry in first.entries:
            client(abi.Remove(client.path(f"write/{entry.name}"), directory=False))
        second = client(abi.List(client.path("write"), first.next))
        assert [entry.name for entry in (*first.entries, *second.entries)] == names

    def test_two_listings_at_a_time_do_not_mix(self, client):
        path = client.path("write")
        for number in range(abi.MAX_ENTRIES + 10):
            (client.home / f"write/{number:04}").touch()
        names = sorted(os.listdir(path))
        first = client(abi.List(path, 0, 1))
        for name in names[:5]:
            (client.home / "write" / name).unlink()
        assert client(abi.List(path, 0, 2)).entries[0].name == names[5]
        rest = client(abi.List(path, first.next, 1))
        assert [entry.name for entry in (*first.entries, *rest.entries)] == names

    def test_an_end_of_a_listing_that_never_began(self, client):
        assert client(abi.List(client.path("read"), 1 << 60)) == abi.Entries([], 0)

    def test_a_file_is_not_listed(self, client):
        assert client(abi.List(client.path("read/file"), 0)) == abi.Failed("ENOTDIR")


class TestChanges:
    def test_directories_are_made_and_removed(self, client):
        assert client(abi.MakeDirectory(client.path("write/folder"), 0o6750)).kind == "directory"
        assert (client.home / "write/folder").stat().st_mode & 0o6000 == 0
        assert client(abi.MakeDirectory(client.path("write/folder"), 0o755)) == abi.Failed("EEXIST")
        assert client(abi.Remove(client.path("write/folder"), directory=False)) == abi.Failed("EISDIR")
        (client.home / "write/folder/file").touch()
        assert client(abi.Remove(client.path("write/folder"), directory=True)) == abi.Failed("ENOTEMPTY")
        assert client(abi.Remove(client.path("write/folder/file"), directory=True)) == abi.Failed("ENOTDIR")
        assert client(abi.Remove(client.path("write/folder/file"), directory=False)) == abi.Done()
        assert client(abi.Remove(client.path("write/folder"), directory=True)) == abi.Done()

    def test_a_rename_needs_write_on_both_names(self, client):
        (client.home / "write/a").write_text("a")
        (client.home / "write/b").write_text("b")
        a, b = client.path("write/a"), client.path("write/b")
        assert client(abi.Rename(a, client.path("read/a"))) == DENIED
        assert client(abi.Rename(client.path("read/file"), a)) == DENIED
        assert client(abi.Rename(a, b, replace=False)) == abi.Failed("EEXIST")
        assert client(abi.Rename(a, b)) == abi.Done()
        assert (client.home / "write/b").read_text() == "a"

    def test_attributes_by_path_and_by_handle(self, client):
        (client.home / "write/file").write_bytes(b"0123456789")
        path = client.path("write/file")
        assert client(abi.SetAttributes(path, size=4)).size == 4
        assert client(abi.SetAttributes(path, mode=0o600)).mode == 0o600
        changed = client(abi.SetAttributes(path, accessed=1_000_000_001, modified=-2_000_000_003))
        assert (changed.accessed, changed.modified) == (1_000_000_001, -2_000_000_003)
        client.open("write/file", access="write")
        before = time.time_ns() - 10**9
        changed = client(abi.SetAttributes("/ignored", 1, size=1, mode=0o640, modified="now"))
        assert (changed.size, changed.mode, changed.accessed) == (1, 0o640, 1_000_000_001)
        assert changed.modified > before
        assert client.stat("write/file") == changed

    def test_no_file_gains_its_owners_rights(self, client):
        assert client.open("write/new", access="write", create=True, mode=0o4755) == abi.Failed("EPERM")
        client.open("write/new", access="write", create=True)
        assert client(abi.SetAttributes(client.path("write/new"), mode=0o4755)) == abi.Failed("EPERM")
        assert client(abi.SetAttributes("/x", 1, mode=0o2755)) == abi.Failed("EPERM")
        assert (client.home / "write/new").stat().st_mode & (stat.S_ISUID | stat.S_ISGID) == 0

    def test_an_allowed_file_is_made_and_removed_where_nothing_else_is(self, home):
        client = Client(home, write=["result.txt"])
        with client.executor:
            assert client.open("result.txt", access="write", create=True).size == 0
            assert client.open("result.txt.tmp", access="write", create=True) == DENIED
            assert client(abi.Remove(client.path("result.txt"), directory=False)) == abi.Done()


def held_below(folder: Path) -> int:
    """How many of this process's descriptors are of something there; those of other threads come and go."""
    held = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            held += os.readlink(f"/proc/self/fd/{name}").startswith(f"{folder}/")
        except FileNotFoundError:
            continue
    return held


class TestHandles:
    def test_one_that_is_in_use_is_not_given_again(self, client):
        client.open("read/file")
        assert client.open("read/sub/deep") == abi.Failed("EINVAL")
        assert client(abi.Read(1, 0, 4)) == abi.Data(b"0123")

    def test_unknown_ones_are_bad(self, client):
        for request in (
            abi.Read(7, 0, 1),
            abi.Write(7, 0, b""),
            abi.Sync(7, data_only=False),
            abi.Close(7),
            abi.SetAttributes("/x", 7),
        ):
            assert client(request) == abi.Failed("EBADF")

    def test_there_is_a_bound(self, client, monkeypatch):
        monkeypatch.setattr(abi, "HANDLE_LIMIT", 2)
        assert client.open("read/file", 1).size == client.open("read/file", 2).size == 10
        assert client.open("read/file", 3) == abi.Failed("EMFILE")
        client(abi.Close(1))
        assert client.open("read/file", 3).size == 10

    def test_all_are_closed_at_the_end(self, home):
        client = Client(home)
        for handle in range(20):
            client.open("read/file", handle)
        assert held_below(home) >= 20
        client.executor.close()
        client.executor.close()
        assert held_below(home) == 0
        assert client(abi.Read(1, 0, 1)) == client.stat("read/file") == abi.Failed("EIO")

    def test_a_file_that_is_closed_during_a_read_is_not_mistaken_for_another(self, client, monkeypatch):
        client.open("read/file")
        reading, go_on = threading.Event(), threading.Event()
        pread = os.pread

        def slow(*arguments):
            reading.set()
            assert go_on.wait(60)
            return pread(*arguments)

        monkeypatch.setattr(os, "pread", slow)
        results = []
        reader = threading.Thread(target=lambda: results.append(client(abi.Read(1, 0, 10))))
        reader.start()
        assert reading.wait(60)
        assert client(abi.Close(1)) == abi.Done()
        client.open("read/sub/deep", 2)
        go_on.set()
        reader.join()
        assert results == [abi.Data(b"0123456789")]

    def test_closing_waits_for_calls_under_way(self, client, monkeypatch):
        entered, go_on = threading.Event(), threading.Event()
        link = os.readlink
        (client.home / "read/link").symlink_to("sub")

        def slow(*arguments, **options):
            entered.set()
            assert go_on.wait(60)
            return link(*arguments, **options)

        monkeypatch.setattr(os, "readlink", slow)
        results = []
        caller = threading.Thread(target=lambda: results.append(client(abi.ReadLink(client.path("read/link")))))
        caller.start()
        assert entered.wait(60)
        client.executor.close()
        go_on.set()
        caller.join()
        assert results == [abi.Target("sub")]

    def test_many_threads_at_once(self, client):
        errors = []

        def work(number: int) -> None:
            path = f"write/{number}"
            for round_ in range(20):
                handle = number * 100 + round_
                if client.open(path, handle, access="read-write", create=True, truncate=True) == DENIED:
                    errors.append("denied")
                client(abi.Write(handle, 0, b"%d" % number))
                if client(abi.Read(handle, 0, 10)) != abi.Data(b"%d" % number):
                    errors.append("read")
                client(abi.Close(handle))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert client.executor.counts["open"] == 160


class TestLimits:
    def test_a_write_that_fits_in_part_says_how_much(self, client):
        client.open("write/file", access="write", create=True)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            assert client(abi.Write(1, 4000, b"x" * 1000)).size == 96
            assert client(abi.Write(1, 4096, b"x")) == abi.Failed("EFBIG")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def test_numbers_beyond_the_operating_systems(self, client):
        client.open("write/file", access="read-write", create=True)
        largest = (1 << 63) - 1
        for request in (
            abi.Read(1, largest, 10),
            abi.Write(1, largest, b"xx"),
            abi.SetAttributes(client.path("write/file"), size=largest),
        ):
            assert client(request) in {
                abi.Failed("EINVAL"),
                abi.Failed("EFBIG"),
                abi.Failed("EOVERFLOW"),
                abi.Data(b""),
            }


class TestDenials:
    def test_each_path_and_right_is_shown_once_and_counted_always(self, client):
        path = client.path("secret/file")
        for _ in range(3):
            client(abi.Open(path, 1, "read"))
            client(abi.Stat(path))
            client(abi.Access(path, "write"))
        assert client.lines == [f"denied: {right} {path} (add --allow-{right} {path})" for right in ("read", "write")]
        assert client.executor.denied == {"open": 3, "stat": 3, "access": 3}
        assert client.executor.denials == 9

    def test_hostile_names_do_not_reach_the_terminal(self, client):
        client(abi.Stat("/x\x1b[2J\n\rdenied: \u202e"))
        assert client.lines[0].isprintable()

    def test_their_number_is_bounded(self, client, monkeypatch):
        monkeypatch.setattr(executor_module, "SHOWN_DENIALS", 3)
        for number in range(10):
            client(abi.Stat(f"/secret{number}"))
        assert len(client.lines) == 4
        assert "counted" in client.lines[-1]
        assert client.executor.denials == 10

    def test_a_closed_standard_error_changes_nothing(self, home):
        def broken(_line):
            raise BrokenPipeError

        with Executor(HostCallPolicy.create(base=str(home)), [], denied=broken, output=broken) as executor:
            assert executor.execute(abi.Stat("/secret")) == DENIED


def test_output_is_handed_on_and_counted(client):
    output = abi.Output("stdout", b"hello\n")
    client.executor.write_output(output)
    assert client.printed == [output]
    assert client.executor.counts == {"output": 1}


def test_calls_are_counted_by_name(client):
    client.stat("read/file")
    client.stat("secret")
    client.open("read/file")
    client(abi.Close(1))
    assert client.executor.counts == {"stat": 2, "open": 1, "close": 1}


def test_without_a_standard_input_there_is_nothing_to_read(client):
    assert client(abi.ReadInput(10)) == abi.Failed("EBADF")
