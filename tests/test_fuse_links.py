"""Files with several names or none in the guest's file tree: one node each, whatever the client says."""

from __future__ import annotations

import errno
import os
import posixpath
import stat

import hypothesis.strategies as st
import pytest
from fake_client import FakeClient
from fake_kernel import FakeKernel, raises
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, rule

from adyton.hostcall import abi
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers, tree
from adyton.runtime.process.supervisor.fuse_abi import Opcode

BOTH = pytest.mark.parametrize("above", ["/work/out", "/tmp"])


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
def test_two_names_are_one_node(kernel: FakeKernel, above: str) -> None:
    kernel.write(f"{above}/a", b"content")
    kernel.link(f"{above}/a", f"{above}/b")
    first, second = kernel.lookup(f"{above}/a"), kernel.lookup(f"{above}/b")
    assert (first.node, first.attr.number, first.attr.links) == (second.node, second.attr.number, 2)
    kernel.unlink(f"{above}/a")
    assert kernel.getattr(second.node).links == 1
    assert kernel.read(f"{above}/b") == b"content"
    with raises(errno.ENOENT):
        kernel.lookup(f"{above}/a")
    with raises(errno.EEXIST):
        kernel.link(f"{above}/b", f"{above}/b")


@BOTH
def test_a_file_without_a_name_gets_one(kernel: FakeKernel, above: str) -> None:
    node = kernel.lookup(above).node
    body = kernel.request(Opcode.TMPFILE, node, fuse_abi.Create(os.O_RDWR, stat.S_IFREG | 0o600, 0, b"/"))
    entry, rest = kernel.entry(body)
    opened = entry.node, fuse_answers.unpack_open(rest).handle
    assert entry.attr.links == 0
    kernel.pwrite(opened, b"content", 0)
    assert kernel.getattr(opened[0]).size == 7
    kernel.entry(kernel.request(Opcode.LINK, node, fuse_abi.Link(opened[0], b"a")))
    assert kernel.lookup(f"{above}/a").node == opened[0]
    kernel.close(opened)
    assert kernel.read(f"{above}/a") == b"content"


@BOTH
def test_one_that_gets_none_is_gone_when_it_is_closed(kernel: FakeKernel, client: FakeClient, above: str) -> None:
    used = kernel.server._view.private.used
    body = kernel.request(Opcode.TMPFILE, kernel.lookup(above).node, fuse_abi.Create(os.O_WRONLY, 0o600, 0, b"/"))
    entry, rest = kernel.entry(body)
    kernel.close((entry.node, fuse_answers.unpack_open(rest).handle))
    kernel.forget(entry.node)
    assert (client.handles, kernel.server._view.private.used) == ({}, used)
    with raises(errno.ESTALE):
        kernel.getattr(entry.node)


def test_neither_side_links_into_the_other(kernel: FakeKernel) -> None:
    kernel.write("/work/out/a", b"")
    kernel.write("/tmp/a", b"")
    for source, target in (("/work/out/a", "/tmp/b"), ("/tmp/a", "/work/out/b")):
        with raises(errno.EXDEV):
            kernel.link(source, target)
    with raises(errno.EACCES):
        kernel.link("/work/in/x", "/work/out/b")
    for above in ("/tmp", "/work/out"):
        kernel.mkdir(f"{above}/d")
        with raises(errno.EPERM):
            kernel.link(f"{above}/d", f"{above}/b")


@BOTH
def test_two_names_change_places(kernel: FakeKernel, above: str) -> None:
    kernel.write(f"{above}/a", b"a")
    kernel.mkdir(f"{above}/d")
    kernel.write(f"{above}/d/f", b"f")
    kernel.rename(f"{above}/a", f"{above}/d", flags=fuse_abi.RENAME_EXCHANGE)
    assert (kernel.read(f"{above}/d"), kernel.read(f"{above}/a/f")) == (b"a", b"f")
    with raises(errno.ENOENT):
        kernel.rename(f"{above}/a", f"{above}/none", flags=fuse_abi.RENAME_EXCHANGE)
    for names in ((f"{above}/a", f"{above}/a/f"), (f"{above}/a/f", f"{above}/a")):
        with raises(errno.EINVAL):
            kernel.rename(*names, flags=fuse_abi.RENAME_EXCHANGE)


def test_a_name_that_another_program_gave_is_found_to_be_the_same_file(kernel: FakeKernel, client: FakeClient) -> None:
    kernel.write("/work/out/a", b"a")
    node = kernel.lookup("/work/out/a").node
    client.things["/work/out/b"] = client.things["/work/out/a"]
    assert kernel.lookup("/work/out/b").node == node
    del client.things["/work/out/a"]
    assert kernel.getattr(node).links == 1, "by the name that is left"
    with raises(errno.ENOENT):
        kernel.lookup("/work/out/a")
    assert kernel.lookup("/work/out/b").node == node


def test_an_open_file_that_another_program_renamed_is_itself_again(kernel: FakeKernel, client: FakeClient) -> None:
    kernel.write("/work/out/a", b"a")
    opened = kernel.open("/work/out/a")
    client.things["/work/out/b"] = client.things.pop("/work/out/a")
    with raises(errno.ENOENT):
        kernel.lookup("/work/out/a")
    assert kernel.lookup("/work/out/b").node == opened[0]
    kernel.close(opened)


def test_a_new_file_with_the_number_of_one_that_is_gone_is_another(kernel: FakeKernel, client: FakeClient) -> None:
    thing = client.file("/work/out/a", b"old")
    node = kernel.lookup("/work/out/a").node
    del client.things["/work/out/a"]
    client.file("/work/out/b", b"new").identity = thing.identity
    assert kernel.lookup("/work/out/b").node != node


def test_a_client_that_says_all_are_one_file_makes_no_circle(kernel: FakeKernel, client: FakeClient) -> None:
    kernel.mkdir("/work/out/d")
    kernel.mkdir("/work/out/d/e")
    for path in ("/work/out/d", "/work/out/d/e", "/work/out"):
        client.things[path].identity = 1
    nodes = {kernel.lookup(path).node for path in ("/work/out", "/work/out/d", "/work/out/d/e")}
    assert len(nodes) == 3
    kernel.write("/work/out/d/f", b"f")
    honest = client.execute
    client.execute = lambda request: (  # type: ignore[method-assign]
        abi.Attributes("file", 1, 1, 0o644, 9, 0, 0, 0) if isinstance(request, abi.Link) else honest(request)
    )
    kernel.link("/work/out/d/f", "/work/out/g")
    assert kernel.server._view.tree.own("/").path == "/"


def test_special_files_are_made_in_private_places_only(kernel: FakeKernel) -> None:
    parent, name = kernel.parent("/tmp/pipe")
    for kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG):
        entry, _ = kernel.entry(kernel.request(Opcode.MKNOD, parent, fuse_abi.MakeNode(kind | 0o644, 0, 0o022, name)))
        assert entry.attr.mode == kind | 0o644
        kernel.unlink("/tmp/pipe")
    with raises(errno.EPERM):
        kernel.request(Opcode.MKNOD, parent, fuse_abi.MakeNode(stat.S_IFCHR, 0, 0, name))


def test_an_empty_file_is_made_as_a_node(kernel: FakeKernel, client: FakeClient) -> None:
    parent, name = kernel.parent("/work/out/a")
    kernel.entry(kernel.request(Opcode.MKNOD, parent, fuse_abi.MakeNode(stat.S_IFREG | 0o600, 0, 0, name)))
    assert (client.things["/work/out/a"].mode, client.handles) == (0o600, {})
    with raises(errno.EEXIST):
        kernel.request(Opcode.MKNOD, parent, fuse_abi.MakeNode(stat.S_IFREG | 0o600, 0, 0, name))


def test_what_cannot_be_taken_in_is_closed_again(
    kernel: FakeKernel, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kernel.lookup("/work/out").node
    monkeypatch.setattr(tree, "MAX_NODES", 0)
    for opcode in (Opcode.CREATE, Opcode.TMPFILE):
        with raises(errno.ENFILE):
            kernel.request(opcode, folder, fuse_abi.Create(os.O_RDWR, 0o600, 0, b"new"))
    assert client.handles == {}


names = st.builds(posixpath.join, st.sampled_from(["", "d", "e"]), st.sampled_from(["a", "b", "d", "e"]))


def outcome(function, *arguments, **keywords):
    """What it returns, or its errno."""
    try:
        return function(*arguments, **keywords)
    except OSError as error:
        return error.errno


class Names(RuleBasedStateMachine):
    """Client's and private files with several names, against a model: each file by its names, each with its content."""

    def __init__(self) -> None:
        super().__init__()
        self.client = FakeClient({"/work/out": "write", "/tmp/shared": "read"})
        self.client.directory("/work/out")
        self.client.directory("/tmp/shared")
        self.kernel = FakeKernel.loaded(self.client)
        self.nodes = len(self.kernel.server._view.tree)
        self.content = 0

    def both(self, name: str, *arguments: str, **keywords: int) -> None:
        """The same at both places; their outcomes are equal."""
        results = [
            outcome(getattr(self.kernel, name), *(above + each for each in arguments), **keywords)
            for above in ("/work/out/", "/tmp/")
        ]
        assert results[0] == results[1], (name, arguments, results)

    @rule(name=names)
    def write(self, name: str) -> None:
        self.content += 1
        for above in ("/work/out/", "/tmp/"):
            outcome(self.kernel.write, above + name, b"%d" % self.content)

    @rule(name=names)
    def mkdir(self, name: str) -> None:
        self.both("mkdir", name)

    @rule(name=names, other=names)
    def link(self, name: str, other: str) -> None:
        self.both("link", name, other)

    @rule(name=names, other=names, exchange=st.booleans())
    def rename(self, name: str, other: str, exchange: bool) -> None:
        if not (other + "/").startswith(name + "/") and not (name + "/").startswith(other + "/"):
            self.both("rename", name, other, flags=fuse_abi.RENAME_EXCHANGE if exchange else 0)

    @rule(name=names)
    def unlink(self, name: str) -> None:
        self.both("unlink", name)

    @rule(name=names)
    def rmdir(self, name: str) -> None:
        self.both("rmdir", name)

    @rule()
    def kernel_forgets(self) -> None:
        if self.kernel.told:
            self.kernel.forget(*self.kernel.told)

    def files(self, above: str) -> dict[str, tuple[bytes, int, int]]:
        """By name: content, links, and the number of the first name's node."""
        found: dict[str, tuple[bytes, int, int]] = {}
        first: dict[int, int] = {}
        for folder in ("", "d", "e"):
            listed = outcome(self.kernel.listdir, posixpath.join(above, folder).rstrip("/"))
            for name in sorted(listed) if isinstance(listed, list) else ():
                path = posixpath.join(folder, name)
                entry = self.kernel.lookup(posixpath.join(above, path))
                if stat.S_ISREG(entry.attr.mode):
                    content = self.kernel.read(posixpath.join(above, path))
                    found[path] = (content, entry.attr.links, first.setdefault(entry.node, len(first)))
        return found

    @rule()
    def both_places_look_the_same(self) -> None:
        assert self.files("/work/out") == self.files("/tmp")

    def teardown(self) -> None:
        self.both_places_look_the_same()
        self.kernel_forgets()
        left = {name for name in self.client.things if name.startswith("/tmp/")}
        assert left == {"/tmp/shared"}
        self.kernel.request(Opcode.DESTROY, 0, fuse_abi.Nothing())
        left_over = self.kernel.server._view.tree
        assert len(left_over) == self.nodes
        assert not left_over._by_file


Names.TestCase.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
TestNames = Names.TestCase
