"""A fake client that reads ahead and keeps promises, and a kernel whose client lags behind: for tests of the supervisor's cache."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import msgspec
from fake_client import FakeClient
from fake_kernel import FakeKernel, nothing_wanted

from adyton.communicator.messages import Coherence
from adyton.hostcall import abi
from adyton.hostcall.encoding import whole
from adyton.runtime.process.supervisor import fuse_abi
from adyton.runtime.process.supervisor.files import FileServer
from adyton.runtime.process.supervisor.fuse_abi import Opcode


class CachingClient(FakeClient):
    """`promises`: whether it tells of changes. `another(path)` is to be called after another program changed what is there."""

    def __init__(self, allowed: dict[str, str] | None = None, cwd: str = "/work", *, promises: bool = True) -> None:
        super().__init__(allowed, cwd)
        self.promises = promises
        self.watched: dict[str, set[str] | None] = {}
        self.changes: list[tuple[str, str]] = []
        self.held: set[int] = set()
        self.fails: Callable[[abi.Request], str | None] = lambda _request: None

    def execute(self, request: abi.Request) -> abi.Result:
        failure = self.fails(request)
        if failure is not None:
            self.log.append(request)
            return abi.Failed(failure)
        return super().execute(request)

    def another(self, path: str) -> None:
        directory, name = os.path.split(path)
        names = self.watched.get(directory, set())
        if names is None or name in names:
            self.changes.append((directory, name))

    def _look(self, request: abi.Look) -> abi.Result:
        try:
            found = self._stat(abi.Stat(request.path))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            return abi.Found(None)
        assert isinstance(found, abi.Attributes)
        return abi.Found(found)

    def _peek(self, request: abi.Peek) -> abi.Result:
        self._allow(request.path, "read")
        thing = self._get(request.path)
        if thing.kind != "file":
            raise OSError(errno.EISDIR, request.path)
        if len(thing.data) > request.size:
            raise OSError(errno.EFBIG, request.path)
        return abi.Content(self.attributes(thing), bytes(thing.data))

    def _watch(self, request: abi.Watch) -> abi.Result:
        if not self.promises or request.directory not in self.things:
            raise OSError(errno.ENOSPC, request.directory)
        names = self.watched.setdefault(request.directory, set())
        if not request.name:
            self.watched[request.directory] = None
        elif names is not None:
            names.add(request.name)
        return abi.Done()

    def _unwatch(self, request: abi.Unwatch) -> abi.Result:
        self.watched.pop(request.directory, None)
        return abi.Done()

    def _hold(self, request: abi.Hold) -> abi.Result:
        self._handle(request.handle)
        self.held.add(request.handle)
        return abi.Done()

    def _close(self, request: abi.Close) -> abi.Result:
        self.held.discard(request.handle)
        return super()._close(request)

    def _compound(self, request: abi.Compound) -> abi.Result:
        results = []
        for each in request.requests:
            result = self.execute(each)
            results.append(msgspec.Raw(whole(result)))
            if isinstance(result, abi.Failed) and not request.through:
                break
        return abi.Results(results)


class CachingKernel(FakeKernel):
    """`lags`: the client has executed only what was waited for. `waits`: how often something was waited for."""

    client: CachingClient
    waits = 0
    lags = False

    @classmethod
    def of(cls, client: CachingClient, coherence: Coherence, *, lags: bool = False) -> CachingKernel:
        """A kernel whose client has loaded the enclave with the same coherence for all paths."""
        kernel = cls(FileServer(wanted=nothing_wanted, now=lambda: 1, clock=lambda: kernel.now), client)
        kernel.lags = lags
        kernel.request(Opcode.INIT, 0, fuse_abi.Init(7, 44, 1 << 17, 0xFFFFFFFF))
        kernel.server.set_layout(client.layout(), lambda _path: coherence)
        return kernel

    def step(self) -> None:
        """The client executes the oldest host call."""
        ask = self.asks.pop(0)
        result = self.result(ask.request)
        self.tell()
        self.apply(self.server.resume(ask.ticket, result))

    def tell(self) -> None:
        """What the client promised to tell goes before its next answer."""
        if self.client.changes:
            changes, self.client.changes = self.client.changes, []
            self.apply(self.server.changed(abi.Changed(changes)))

    def moment(self) -> None:
        """What is held back for a moment is not any longer."""
        self.apply(self.server.push())

    def run(self) -> None:
        self.moment()
        while self.asks:
            self.step()

    def run_until(self, unique: int) -> None:
        if unique not in self.answers:
            self.waits += 1
        while unique not in self.answers:
            self.step()
        if not self.lags:
            self.run()
