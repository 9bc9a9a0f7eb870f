"""Links that an enclave makes on its client: hard ones, and symbolic ones that must not lead the client's other programs astray; and what is one file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from executing import DENIED, Client, furnished
from hypothesis import given, settings

from adyton.hostcall import abi
from adyton.hostcall.client import link_targets, openat


@pytest.fixture
def home(tmp_path):
    return furnished(tmp_path)


@pytest.fixture(params=[False, True], ids=["openat2", "walk"])
def client(request, home):
    client = Client(home, walk=request.param or None)
    with client.executor:
        yield client


def symlink(client: Client, target: str, name: str):
    return client(abi.SymbolicLink(client.path(name), target))


class TestHardLinks:
    def test_both_names_are_one_file(self, client):
        (client.home / "write/a").write_text("a")
        made = client(abi.Link(client.path("write/a"), client.path("write/b")))
        assert (made.kind, made.links) == ("file", 2)
        assert made.identity == client.stat("write/a").identity
        assert client(abi.Link(client.path("write/a"), client.path("write/b"))) == abi.Failed("EEXIST")
        assert client(abi.Link(client.path("write/none"), client.path("write/c"))) == abi.Failed("ENOENT")

    def test_both_names_must_be_writable(self, client):
        (client.home / "write/a").write_text("a")
        assert client(abi.Link(client.path("read/file"), client.path("write/b"))) == DENIED
        assert client(abi.Link(client.path("write/a"), client.path("read/b"))) == DENIED
        assert client(abi.Link(client.path("secret/file"), client.path("write/b"))) == DENIED
        assert os.listdir(client.home / "write") == ["a"]

    def test_a_file_that_may_only_be_read_gets_no_name_by_its_handle_either(self, client):
        client.open("read/file")
        assert client(abi.Link("/x", client.path("write/b"), 1)) == DENIED
        assert client(abi.Link("/x", client.path("write/b"), 2)) == abi.Failed("EBADF")

    def test_a_file_without_a_name_gets_one(self, client):
        made = client(abi.OpenUnnamed(client.path("write"), 1, "read-write", mode=0o640))
        assert (made.kind, made.links) == ("file", 0)
        assert client(abi.Write(1, 0, b"content")).size == 7
        assert os.listdir(client.home / "write") == []
        named = client(abi.Link("/x", client.path("write/b"), 1))
        assert (named.identity, named.links, named.size) == (made.identity, 1, 7)
        assert (client.home / "write/b").read_bytes() == b"content"

    def test_what_is_open_is_opened_again_without_its_name(self, client):
        made = client.open("write/a", access="write", create=True)
        os.unlink(client.home / "write/a")
        (client.home / "write/a").write_text("another")
        client(abi.Write(1, 0, b"content"))
        again = client(abi.OpenAgain("/x", 1, 2, "read"))
        assert (again.identity, again.links, again.size) == (made.identity, 0, 7)
        assert client(abi.Read(2, 0, 10)).data == b"content"
        assert client(abi.Write(2, 0, b"x")) == abi.Failed("EBADF")
        assert client(abi.OpenAgain("/x", 2, 3, "write", append=True)).size == 7
        assert client(abi.Write(3, 0, b"+")).size == 1
        assert client(abi.OpenAgain("/x", 1, 4, "read-write", truncate=True)).size == 0
        assert client(abi.OpenAgain("/x", 9, 5, "read")) == abi.Failed("EBADF")
        assert client(abi.OpenAgain("/x", 1, 2, "read")) == abi.Failed("EINVAL")
        assert (client.home / "write/a").read_text() == "another"

    def test_what_may_only_be_read_is_not_opened_again_to_be_written(self, client):
        client.open("read/file")
        for options in ({"access": "write"}, {"access": "read-write"}, {"access": "read", "truncate": True}):
            assert client(abi.OpenAgain(client.path("write/file"), 1, 2, **options)) == DENIED
        assert client(abi.OpenAgain("/x", 1, 2, "read")).kind == "file"
        assert client(abi.OpenAgain("/x", 2, 3, "write")) == DENIED

    def test_one_that_is_not_to_get_a_name_gets_none(self, client):
        client(abi.OpenUnnamed(client.path("write"), 1, "write", linkable=False))
        assert client(abi.Link("/x", client.path("write/b"), 1)) == abi.Failed("ENOENT")
        assert client(abi.OpenUnnamed(client.path("read"), 2, "write")) == DENIED
        assert client(abi.OpenUnnamed(client.path("write"), 2, "write", mode=0o4700)) == abi.Failed("EPERM")


class TestSymbolicLinks:
    @pytest.mark.parametrize("target", ["a", "./a", "d/a", "../write/a", "d/../a", "..//write/./a"])
    def test_they_may_lead_to_what_may_be_written(self, client, target):
        if "d/.." in target:
            assert symlink(client, target, "write/l") == abi.Failed("EPERM")  # up from wherever d leads to
        else:
            assert symlink(client, target, "write/l").kind == "symlink"
            assert os.readlink(client.home / "write/l") == target

    def test_an_absolute_one_too(self, client):
        assert symlink(client, client.path("write/none/at/all"), "write/l").kind == "symlink"
        assert symlink(client, client.path("write"), "write/m").kind == "symlink"

    @pytest.mark.parametrize(
        ("target", "subject"),
        [
            ("../secret/file", "secret/file"),
            ("../read/file", "read/file"),
            ("..", ""),
            ("/etc/passwd", "/etc/passwd"),
            ("../write2/a", "write2/a"),
            ("../" * 60 + "etc/passwd", "/etc/passwd"),
        ],
    )
    def test_and_nowhere_else(self, client, target, subject):
        assert symlink(client, target, "write/l") == DENIED
        assert not os.path.lexists(client.home / "write/l")
        path = subject if subject.startswith("/") else client.path(subject)
        assert client.lines[0].startswith(f"denied: write {path} (")

    def test_a_link_is_made_below_a_writable_path_only(self, client):
        assert symlink(client, client.path("write/a"), "read/l") == DENIED
        assert symlink(client, client.path("write/a"), "write/none/l") == abi.Failed("ENOENT")

    def test_one_that_would_lead_elsewhere_is_not_moved(self, client):
        (client.home / "write/d").mkdir()
        assert symlink(client, "../a", "write/d/l").kind == "symlink"
        move = abi.Rename(client.path("write/d/l"), client.path("write/l"))
        assert client(move) == DENIED
        assert client(abi.Link(client.path("write/d/l"), client.path("write/l"))) == DENIED
        (client.home / "write/a").write_text("a")
        exchange = abi.Rename(client.path("write/a"), client.path("write/d/l"), exchange=True)
        assert client(exchange) == DENIED
        assert os.listdir(client.home / "write/d") == ["l"]
        assert client(abi.Rename(client.path("write/d/l"), client.path("write/d/m"))) == abi.Done()

    def test_nor_is_a_directory_that_holds_one(self, client):
        (client.home / "write/d/e").mkdir(parents=True)
        (client.home / "write/d/e/l").symlink_to("../../a")
        move = abi.Rename(client.path("write/d/e"), client.path("write/e"))
        assert client(move) == abi.Failed("EXDEV")  # so that its content is copied, link by link
        assert client(abi.Rename(client.path("write/d"), client.path("write/f"))) == abi.Done()
        (client.home / "write/f/e/l").unlink()
        (client.home / "write/f/e/l").symlink_to("a")
        assert client(abi.Rename(client.path("write/f/e"), client.path("write/e"))) == abi.Done()

    def test_nor_one_in_which_there_is_too_much_to_look_at(self, client, monkeypatch):
        monkeypatch.setattr(link_targets, "MAX_MOVED", 3)
        (client.home / "write/d/e").mkdir(parents=True)
        for number in range(4):
            (client.home / f"write/d/e/{number}").touch()
        assert client(abi.Rename(client.path("write/d/e"), client.path("write/e"))) == abi.Failed("EXDEV")

    def test_a_policy_path_that_is_a_link_is_judged_by_where_it_leads(self, home):
        (home / "elsewhere/deep").mkdir(parents=True)
        (home / "alias").symlink_to("elsewhere/deep")
        client = Client(home, write=["alias"])
        with client.executor:
            assert symlink(client, "../x", "alias/l") == DENIED  # it would be elsewhere/x
            assert symlink(client, "x", "alias/l").kind == "symlink"
            assert symlink(client, client.path("alias/x"), "alias/m").kind == "symlink"
            assert Path(os.readlink(home / "elsewhere/deep/m")) == home / "alias/x"


names = st.sampled_from(["a", "d", "d/a", "d/e", "d/e/a", "d/e/f", "d/e/f/a", "g", "g/a"])
climbing = st.sampled_from(["a", "../a", "../../a", "../../../a", "../../../../a", "d", "../d/../../secret", ".."])
changes = st.lists(
    st.one_of(
        st.tuples(st.just(abi.SymbolicLink), names, climbing),
        st.tuples(st.just(abi.Rename), names, names, st.just(True), st.booleans()),
        st.tuples(st.just(abi.Link), names, names),
        st.tuples(st.just(abi.MakeDirectory), names, st.just(0o755)),
        st.tuples(st.just(abi.Remove), names, st.booleans()),
    ),
    max_size=20,
)


@settings(max_examples=150)
@given(made=changes)
def test_no_sequence_of_changes_lays_a_link_that_leads_out(made):
    with tempfile.TemporaryDirectory() as place:
        client = Client(furnished(place))
        root = client.path("write")
        with client.executor:
            for folder in ("d", "d/e", "d/e/f", "g"):
                client(abi.MakeDirectory(f"{root}/{folder}", 0o755))
            for kind, name, second, *more in made:
                other = f"{root}/{second}" if kind in (abi.Rename, abi.Link) else second
                client(kind(f"{root}/{name}", other, *more))
                for above, directories, files in os.walk(root):
                    for link in filter(os.path.islink, (f"{above}/{each}" for each in directories + files)):
                        leads_to = os.path.normpath(f"{above}/{os.readlink(link)}")
                        assert f"{leads_to}/".startswith(f"{root}/"), (link, os.readlink(link))


def test_two_names_change_places(client):
    (client.home / "write/a").write_text("a")
    (client.home / "write/d").mkdir()
    a, d = client.path("write/a"), client.path("write/d")
    assert client(abi.Rename(a, d, exchange=True)) == abi.Done()
    assert (client.home / "write/a").is_dir()
    assert (client.home / "write/d").read_text() == "a"
    assert client(abi.Rename(a, client.path("write/none"), exchange=True)) == abi.Failed("ENOENT")
    assert client(abi.Rename(a, client.path("read/file"), exchange=True)) == DENIED


def test_a_file_that_has_the_number_of_one_that_was_removed_is_another_one(client, monkeypatch):
    before = client.stat("read/file").identity
    os.utime(client.home / "read/file")
    (client.home / "read/file").chmod(0o600)
    assert client.stat("read/file").identity == client.open("read/file").identity == before
    inode = (client.home / "read/file").stat().st_ino
    for told in ((inode, 7), (0, None)):  # made at another time; and a file system that does not say
        monkeypatch.setattr(openat, "born", lambda _descriptor, _name="", told=told: told)
        assert client.stat("read/file").identity == client.stat("read/file").identity != before
