"""The file server against a model: any sequence of a program's calls, another program's changes, and the kernel's forgetting."""

from __future__ import annotations

import os
import posixpath

import hypothesis.strategies as st
from fake_client import FakeClient
from fake_kernel import FakeKernel
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from adyton.runtime.process.supervisor import fuse_abi
from adyton.runtime.process.supervisor.fuse_abi import Opcode

# Directories of the client's and private ones; "no" is allowed to nobody.
directories = st.sampled_from(["/work/out", "/work/out/d", "/work/out/e", "/tmp", "/tmp/d", "/tmp/e", "/work/no"])
names = st.sampled_from(["d", "e", "f", "g"])
paths = st.builds(posixpath.join, directories, names)
contents = st.binary(max_size=5)
offsets = st.integers(0, 7)


def outcome(function, *arguments):
    """What it returns, or its errno."""
    try:
        return function(*arguments)
    except OSError as error:
        return error.errno


class Files(RuleBasedStateMachine):
    """The model of both kinds of files is a second FakeClient, for which everything is one file system."""

    def __init__(self) -> None:
        super().__init__()
        self.client = FakeClient({"/work/out": "write", "/tmp/shared": "read"})
        self.client.directory("/work/out")
        self.client.directory("/tmp/shared")
        self.kernel = FakeKernel.loaded(self.client)
        self.nodes = len(self.kernel.server._view.tree)
        self.private: dict[str, bytes | None] = {"/tmp": None, "/tmp/shared": None}  # None: a directory
        self.open: list[tuple[tuple[int, int], bytearray]] = []

    def expected(self, path: str) -> bytes | int | None:
        """A file's content, None for a directory, or an errno (0: any of those that say that it cannot be there)."""
        if path.startswith("/work/no"):
            return 0
        if path.startswith("/tmp"):
            return self.private.get(path, 0)
        thing = self.client.things.get(path)
        return 0 if thing is None else bytes(thing.data) if thing.kind == "file" else None

    def set(self, path: str, content: bytes | None) -> None:
        if path.startswith("/tmp"):
            self.private[path] = content

    # -- a program's calls ------------------------------------------------------------------------------------------

    @rule(path=paths)
    def read(self, path: str) -> None:
        expected = self.expected(path)
        got = outcome(self.kernel.read, path)
        assert got == expected or (isinstance(got, int) and not isinstance(expected, bytes))

    @rule(path=paths, content=contents)
    def write(self, path: str, content: bytes) -> None:
        was = self.expected(path)
        above = self.expected(posixpath.dirname(path))
        got = outcome(self.kernel.write, path, content)
        assert (got is None) == (above is None and was is not None), (got, was, above)
        if got is None:
            self.set(path, content)
            assert self.expected(path) == content

    @rule(path=paths)
    def mkdir(self, path: str) -> None:
        fits = self.expected(posixpath.dirname(path)) is None and self.expected(path) == 0 and "/no" not in path
        got = outcome(self.kernel.mkdir, path)
        assert (got is None) == fits, got
        if fits:
            self.set(path, None)

    @rule(path=paths)
    def unlink(self, path: str) -> None:
        fits = isinstance(self.expected(path), bytes)
        assert (outcome(self.kernel.unlink, path) is None) == fits
        self.private.pop(path, None) if fits else None

    @rule(path=paths)
    def rmdir(self, path: str) -> None:
        below = [each for each in [*self.private, *self.client.things] if each.startswith(path + "/")]
        fits = self.expected(path) is None and not below
        assert (outcome(self.kernel.rmdir, path) is None) == fits
        self.private.pop(path, None) if fits else None

    @rule(source=paths, destination=paths)
    def rename(self, source: str, destination: str) -> None:
        if destination.startswith(source + "/") or source.startswith(destination + "/"):
            return  # refused by the kernel itself
        content = self.expected(source)
        below = [each for each in self.private if each.startswith(source + "/")]
        if outcome(self.kernel.rename, source, destination) is None:
            assert source.split("/")[1] == destination.split("/")[1]
            if source.startswith("/tmp") and source != destination:
                for path in [source, *below]:
                    self.private[destination + path[len(source) :]] = self.private.pop(path)
            assert self.expected(destination) == content
        else:
            assert self.expected(source) == content

    @rule(path=directories)
    def listdir(self, path: str) -> None:
        got = outcome(self.kernel.listdir, path)
        if self.expected(path) is None and "/no" not in path:
            files = self.private if path.startswith("/tmp") else self.client.things
            assert sorted(got) == sorted(posixpath.basename(each) for each in files if posixpath.dirname(each) == path)
        else:
            assert isinstance(got, int)

    # -- open files -------------------------------------------------------------------------------------------------

    @rule(path=paths)
    def open_file(self, path: str) -> None:
        content = self.expected(path)
        if isinstance(content, bytes):
            for opened, data in list(self.open):  # one at a time, so that the model need not know of shared content
                if bytes(data) == content:
                    self.kernel.close(opened)
                    self.open.remove((opened, data))
            self.open.append((self.kernel.open(path, os.O_RDWR), bytearray(content)))

    @rule(data=st.data())
    def read_open(self, data: st.DataObject) -> None:
        for opened, _ in self.open:
            assert isinstance(self.kernel.pread(opened, 10, data.draw(offsets)), bytes)
            assert self.kernel.getattr(opened[0]).size >= 0

    @rule()
    def close_all(self) -> None:
        for opened, _ in self.open:
            self.kernel.close(opened)
        self.open.clear()

    # -- others -----------------------------------------------------------------------------------------------------

    @rule(name=names, content=contents)
    def another_program_replaces(self, name: str, content: bytes) -> None:
        thing = self.client.things.get(f"/work/out/{name}")
        if thing is None or thing.kind == "file":
            self.client.file(f"/work/out/{name}", content)

    @rule(name=names)
    def another_program_removes(self, name: str) -> None:
        for path in [each for each in self.client.things if each.startswith(f"/work/out/{name}")]:
            del self.client.things[path]

    @rule()
    def kernel_forgets(self) -> None:
        held = {opened[0] for opened, _ in self.open}
        forgotten = [node for node in self.kernel.told if node not in held]
        if forgotten:
            self.kernel.forget(*forgotten)

    @invariant()
    def handles_are_those_that_are_open(self) -> None:
        server = self.kernel.server
        assert len(server._handles) == len(self.open)
        assert not server._waiting
        assert set(self.client.handles) <= {opened[1] for opened, _ in self.open}

    def teardown(self) -> None:
        self.close_all()
        self.handles_are_those_that_are_open()
        if self.kernel.told:
            self.kernel.forget(*self.kernel.told)
        assert len(self.kernel.server._view.tree) == self.nodes
        assert not any(path.startswith("/tmp/") for path in self.client.things if path != "/tmp/shared")
        assert not [denied for denied in self.client.denied if not denied[0].startswith("/work/no")]
        self.kernel.request(Opcode.DESTROY, 0, fuse_abi.Nothing())


Files.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestFiles = Files.TestCase
