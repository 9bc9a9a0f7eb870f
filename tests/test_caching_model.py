"""A program that works through the cache has the effects and sees the results of one that works on the files themselves, in any sequence."""

from __future__ import annotations

import os
import posixpath

import hypothesis.strategies as st
import pytest
from caching_client import CachingClient, CachingKernel
from fake_kernel import FakeKernel
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from adyton.communicator.messages import Coherence
from adyton.runtime.process.supervisor.caching import contents as contents_of_files
from adyton.runtime.process.supervisor.caching import opening, reading, writing
from adyton.runtime.process.supervisor.fuse_abi import SetFlag

directories = st.sampled_from(["/work/out", "/work/out/d", "/work/out/e", "/work/out/d/d", "/tmp"])
names = st.sampled_from(["d", "e", "f", "g"])
paths = st.builds(posixpath.join, directories, names)
contents = st.binary(max_size=9)
offsets = st.integers(0, 12)
FLAGS = st.sampled_from(
    [os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR | os.O_TRUNC,
     os.O_WRONLY | os.O_CREAT | os.O_APPEND]
)  # fmt: skip


class Programs(RuleBasedStateMachine):
    """Two kernels do the same: `plain` asks its client for all, `cached` has a cache, and a client that executes late."""

    coherence: Coherence = "close-to-open"
    promises = True

    def __init__(self) -> None:
        super().__init__()
        allowed = {"/work/out": "write", "/tmp/shared": "read"}
        self.clients = [CachingClient(allowed, promises=self.promises) for _ in range(2)]
        for client in self.clients:
            client.directory("/work/out/d")
            client.file("/work/out/f", b"first")
        self.plain = FakeKernel.loaded(self.clients[0])
        self.cached = CachingKernel.of(self.clients[1], self.coherence, lags=True)
        self.open: list[tuple[tuple[int, int], tuple[int, int], int]] = []

    def same(self, name: str, *arguments: object) -> object:
        """The outcome of a kernel's method on both; the same."""
        found = []
        for kernel in (self.plain, self.cached):
            try:
                result = getattr(kernel, name)(*arguments)
                found.append(sorted(result) if isinstance(result, list) else result)
            except OSError as error:
                found.append(error.errno)
        assert found[0] == found[1], (name, arguments, found)
        return found[0]

    # -- a program's calls --------------------------------------------------------------------------------------------

    @rule(path=paths)
    def read(self, path: str) -> None:
        self.same("read", path)

    @rule(path=paths, content=contents)
    def write(self, path: str, content: bytes) -> None:
        self.same("write", path, content)

    @rule(path=paths)
    def mkdir(self, path: str) -> None:
        self.same("mkdir", path)

    @rule(path=paths)
    def unlink(self, path: str) -> None:
        self.same("unlink", path)

    @rule(path=paths)
    def rmdir(self, path: str) -> None:
        self.same("rmdir", path)

    @rule(source=paths, destination=paths)
    def rename(self, source: str, destination: str) -> None:
        if not destination.startswith(source + "/") and not source.startswith(destination + "/"):
            self.same("rename", source, destination)

    @rule(path=directories)
    def listdir(self, path: str) -> None:
        self.same("listdir", path)

    @rule(path=paths)
    def stat(self, path: str) -> None:
        shown = []
        for kernel in (self.plain, self.cached):
            try:
                attr = kernel.getattr(kernel.lookup(path).node)
                shown.append((attr.size if attr.mode >> 12 == 8 else 0, attr.mode))
            except OSError as error:
                shown.append(error.errno)
        assert shown[0] == shown[1], (path, shown)

    @rule(path=paths, size=offsets)
    def truncate(self, path: str, size: int) -> None:
        self.same("truncate", path, size)

    @rule(path=paths, mode=st.sampled_from([0o600, 0o755]))
    def chmod(self, path: str, mode: int) -> None:
        for kernel in (self.plain, self.cached):
            try:
                kernel.setattr(kernel.lookup(path).node, valid=SetFlag.MODE, mode=mode)
            except OSError:
                pass

    # -- open files ---------------------------------------------------------------------------------------------------

    @rule(path=paths, flags=FLAGS)
    def open_file(self, path: str, flags: int) -> None:
        opened = []
        for kernel in (self.plain, self.cached):
            try:
                opened.append(kernel.open(path, flags))
            except OSError as error:
                opened.append(error.errno)
        assert isinstance(opened[0], int) == isinstance(opened[1], int), (path, flags, opened)
        if isinstance(opened[0], int):
            assert opened[0] == opened[1]
        else:
            self.open.append((opened[0], opened[1], flags))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), offset=offsets, size=offsets)
    def pread(self, data: st.DataObject, offset: int, size: int) -> None:
        first, second, flags = data.draw(st.sampled_from(self.open))
        if flags & os.O_ACCMODE != os.O_WRONLY:
            assert self.plain.pread(first, size, offset) == self.cached.pread(second, size, offset)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), offset=offsets, content=contents.filter(bool))
    def pwrite(self, data: st.DataObject, offset: int, content: bytes) -> None:
        first, second, flags = data.draw(st.sampled_from(self.open))
        if flags & os.O_ACCMODE != os.O_RDONLY:
            if flags & os.O_APPEND:
                offset = self.plain.getattr(first[0]).size
            for kernel, opened in ((self.plain, first), (self.cached, second)):
                assert kernel.pwrite(opened, content, offset, flags & os.O_APPEND) == len(content)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), size=offsets)
    def ftruncate(self, data: st.DataObject, size: int) -> None:
        first, second, flags = data.draw(st.sampled_from(self.open))
        if flags & os.O_ACCMODE != os.O_RDONLY:
            for kernel, opened in ((self.plain, first), (self.cached, second)):
                kernel.setattr(opened[0], valid=SetFlag.SIZE | SetFlag.FH, size=size, handle=opened[1])

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def fstat(self, data: st.DataObject) -> None:
        first, second, _ = data.draw(st.sampled_from(self.open))
        assert self.plain.getattr(first[0]).size == self.cached.getattr(second[0]).size

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.open))
        self.open.remove(chosen)
        self.plain.close(chosen[0])
        self.cached.close(chosen[1])

    # -- the client ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.cached.asks)
    @rule()
    def client_executes_one(self) -> None:
        self.cached.step()

    @rule()
    def a_moment_passes(self) -> None:
        self.cached.moment()

    @rule()
    def time_passes(self) -> None:
        self.cached.now += 0.7

    @rule(path=paths.filter(lambda path: path.startswith("/work")), content=st.none() | contents)
    def another_program_changes(self, path: str, content: bytes | None) -> None:
        """A file, in place or replaced, or removed; the client has executed all that was sent."""
        self.cached.run()
        for client in self.clients:
            thing = client.things.get(path)
            above = client.things.get(posixpath.dirname(path))
            if above is None or above.kind != "directory" or (thing is not None and thing.kind == "directory"):
                return
            if any(opened.path == path for _, opened in client.handles.values()):
                return  # what an open file shows of others' changes is another matter
            if content is None:
                client.things.pop(path, None)
            elif thing is not None:
                thing.data[:] = content
                thing.modified += 1
            else:
                client.file(path, content)
            client.another(path)
        self.cached.tell()
        if not self.promises:
            self.cached.now += 2.0

    @rule()
    def kernel_forgets(self) -> None:
        for kernel, position in ((self.plain, 0), (self.cached, 1)):
            held = {opened[position][0] for opened in self.open}
            forgotten = [node for node in kernel.told if node not in held]
            if forgotten:
                kernel.forget(*forgotten)

    @invariant()
    def nothing_is_left_waiting(self) -> None:
        server = self.cached.server
        assert not server._waiting
        assert len(server._handles) == len(self.open)
        if not self.cached.asks and not server.holds:
            assert not server._calls._pending
            assert server.cache._writing._dirty == 0
            assert server.cache.state.learning == 0

    def teardown(self) -> None:
        for first, second, _ in self.open:
            self.plain.close(first)
            self.cached.close(second)
        self.cached.run()
        left = [
            {path: (thing.kind, bytes(thing.data), thing.mode) for path, thing in client.things.items()}
            for client in self.clients
        ]
        assert left[0] == left[1]
        assert not self.clients[1].handles
        assert not self.clients[1].held
        names = self.cached.server.cache.state.names
        assert len(names) == sum(len(folder.names) for folder in names._folders.values())


@pytest.mark.parametrize("coherence", ["close-to-open", "exclusive"])
@pytest.mark.parametrize("promises", [True, False], ids=["promises", "no-promises"])
def test_a_cached_program_sees_and_does_the_same(coherence: Coherence, promises: bool) -> None:
    kind = type("Programs", (Programs,), {"coherence": coherence, "promises": promises})
    run_state_machine_as_test(kind, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))


class Descriptors(Programs):
    """One file, open several times, and nothing else is done."""

    read = write = stat = truncate = chmod = open_file = close = another_program_changes = None
    mkdir = rmdir = rename = listdir = unlink = kernel_forgets = None

    @initialize()
    def begin(self) -> None:
        self.same("write", "/work/out/f", b"a file of 20 letters")
        for flags in (os.O_RDWR, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
            self.open.append((self.plain.open("/work/out/f", flags), self.cached.open("/work/out/f", flags), flags))


@pytest.mark.parametrize("coherence", ["close-to-open", "exclusive"])
def test_the_same_where_files_have_many_blocks_and_little_is_held_back(
    coherence: Coherence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes as they are would need files that are too large for a model: here a block has four bytes."""
    for module in (contents_of_files, opening, reading, writing):
        monkeypatch.setattr(module, "BLOCK", 4)
    for module in (contents_of_files, reading):
        monkeypatch.setattr(module, "RUN", 2)
    for name, value in {"HELD": 3, "HELD_BACK": 8, "MAX_DIRTY": 14}.items():
        monkeypatch.setattr(writing, name, value)
    monkeypatch.setattr(opening, "SMALL", 5)
    monkeypatch.setattr(reading, "FIRST_WINDOW", 4)
    monkeypatch.setattr(reading, "LAST_WINDOW", 16)
    kind = type("Descriptors", (Descriptors,), {"coherence": coherence})
    run_state_machine_as_test(kind, settings=settings(max_examples=150, stateful_step_count=30, deadline=None))
