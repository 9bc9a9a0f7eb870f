"""A kernel for tests of the file server: FUSE requests encoded as the kernel sends them; its client is fake_client's.

`FakeKernel.request` sends one request and has its host calls executed at once; `send` leaves them in `asks`, to be answered in any
order. On top are calls that walk paths name by name, as the kernel does: `open`, `read`, `listdir`, …; each raises OSError.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections import Counter

import pytest
from fake_client import FakeClient

from adyton.hostcall import abi
from adyton.hostcall.check import check
from adyton.hostcall.encoding import whole
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.calls import Ask, Outcome
from adyton.runtime.process.supervisor.files import PATIENCE_SECONDS, Answer, Effect, FileServer
from adyton.runtime.process.supervisor.fuse_abi import Body, Opcode
from adyton.runtime.process.supervisor.wanted import Wanted


def raises(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def nothing_wanted(_thread: int, _path: str) -> Wanted | None:
    return None


class FakeKernel:
    """See the module. `answers`: by the request's unique; `asks`: host calls not executed yet; `told`: look-ups of each node."""

    def __init__(self, server: FileServer, client: FakeClient | None = None) -> None:
        self.server = server
        self.client = client or FakeClient()
        self.answers: dict[int, fuse_answers.Answer] = {}
        self.asks: list[Ask] = []
        self.notices: list[bytes] = []
        self.told: Counter[int] = Counter()
        self.now = 0.0  # seconds of the server's clock
        self._uniques = itertools.count(2, 2)

    @classmethod
    def loaded(cls, client: FakeClient) -> FakeKernel:
        """A kernel that has mounted a server whose client has loaded the enclave."""
        kernel = cls(FileServer(wanted=nothing_wanted, now=lambda: 1, clock=lambda: kernel.now), client)
        kernel.request(Opcode.INIT, 0, fuse_abi.Init(7, 44, 1 << 17, 0xFFFFFFFF))
        kernel.server.set_layout(client.layout())
        return kernel

    # -- requests -----------------------------------------------------------------------------------------------------

    def send(self, opcode: Opcode, node: int, body: Body, pid: int = 1) -> int:
        """One request; its unique."""
        unique = next(self._uniques)
        self.apply(self.server.receive(fuse_abi.encode(opcode, unique, node, body, pid=pid)))
        return unique

    def interrupt(self, unique: int) -> None:
        """A signal for who waits, and time enough that it ends the wait."""
        self.send(Opcode.INTERRUPT, 0, fuse_abi.Interrupt(unique))
        self.now += PATIENCE_SECONDS
        self.apply(self.server.lose_patience())

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Answer):
                answer = fuse_answers.decode_answer(b"".join(effect.parts))
                assert answer.unique not in self.answers, "answered twice"
                self.answers[answer.unique] = answer
            elif isinstance(effect, Ask):
                self.asks.append(effect)
            else:
                self.notices.append(b"".join(effect.parts))
        self.server.told()

    def result(self, request: abi.Request) -> Outcome:
        """What the client says, as it arrives in the enclave."""
        return check(request, whole(self.client.execute(request)))

    def run(self) -> None:
        """Execute all host calls."""
        while self.asks:
            ask = self.asks.pop(0)
            self.apply(self.server.resume(ask.ticket, self.result(ask.request)))

    def request(self, opcode: Opcode, node: int, body: Body, pid: int = 1) -> bytes:
        """One request, served; OSError for a failure."""
        unique = self.send(opcode, node, body, pid)
        self.run_until(unique)
        return self.taken(unique)

    def run_until(self, _unique: int) -> None:
        """Execute host calls until the request has its answer; all of them here."""
        self.run()

    def taken(self, unique: int) -> bytes:
        """The answer's body; OSError for a failure."""
        answer = self.answers.pop(unique)
        if answer.errno:
            raise OSError(answer.errno, os.strerror(answer.errno))
        return answer.body

    def entry(self, body: bytes) -> tuple[fuse_answers.EntryAnswer, bytes]:
        """An answer that tells of a node, noted as the kernel does."""
        entry, rest = fuse_answers.unpack_entry(body)
        self.told[entry.node] += 1
        return entry, rest

    def forget(self, *nodes: int) -> None:
        """All that was told of these nodes."""
        told = [(node, self.told.pop(node)) for node in nodes]
        if len(told) == 1:
            self.send(Opcode.FORGET, told[0][0], fuse_abi.Forget(told[0][1]))
        else:
            self.send(Opcode.BATCH_FORGET, 0, fuse_abi.BatchForget(told))

    # -- calls of a program -------------------------------------------------------------------------------------------

    def lookup(self, path: str) -> fuse_answers.EntryAnswer:
        """lstat, as look-ups."""
        entry = fuse_answers.EntryAnswer(1, 0, 0, self.getattr(1))
        for name in path.split("/")[1:] if path != "/" else ():
            if not stat.S_ISDIR(entry.attr.mode):
                raise OSError(errno.ENOTDIR, path)
            entry, _ = self.entry(self.request(Opcode.LOOKUP, entry.node, fuse_abi.Name(os.fsencode(name))))
        return entry

    def parent(self, path: str) -> tuple[int, bytes]:
        above, name = os.path.split(path)
        return self.lookup(above).node, os.fsencode(name)

    def getattr(self, node: int) -> fuse_answers.Attr:
        return fuse_answers.unpack_attr(self.request(Opcode.GETATTR, node, fuse_abi.Nothing()))[1]

    def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> tuple[int, int]:
        """Node and handle."""
        try:
            found = self.lookup(path)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            parent, name = self.parent(path)
            body = self.request(Opcode.CREATE, parent, fuse_abi.Create(flags, stat.S_IFREG | mode, 0o022, name))
            entry, rest = self.entry(body)
            return entry.node, fuse_answers.unpack_open(rest).handle
        if flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, path)
        if stat.S_ISDIR(found.attr.mode):
            raise IsADirectoryError(errno.EISDIR, path)
        kept = flags & ~(os.O_CREAT | os.O_EXCL)
        return found.node, fuse_answers.unpack_open(self.request(Opcode.OPEN, found.node, fuse_abi.Open(kept))).handle

    def pread(self, opened: tuple[int, int], size: int, offset: int) -> bytes:
        return self.request(Opcode.READ, opened[0], fuse_abi.Read(opened[1], offset, size))

    def pwrite(self, opened: tuple[int, int], data: bytes, offset: int, flags: int = 0, write_flags: int = 0) -> int:
        body = fuse_abi.Write(opened[1], offset, len(data), write_flags, flags, data)
        return fuse_answers.unpack_written(self.request(Opcode.WRITE, opened[0], body))

    def close(self, opened: tuple[int, int]) -> None:
        """OSError for what went wrong before; it is closed all the same."""
        unique = self.send(Opcode.FLUSH, opened[0], fuse_abi.Flush(opened[1], 0))
        self.run_until(unique)
        self.request(Opcode.RELEASE, opened[0], fuse_abi.Release(opened[1]))
        self.taken(unique)

    def read(self, path: str) -> bytes:
        opened = self.open(path)
        try:
            return self.pread(opened, 1 << 17, 0)
        finally:
            self.close(opened)

    def write(self, path: str, data: bytes) -> None:
        opened = self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            assert self.pwrite(opened, data, 0) == len(data)
        finally:
            self.close(opened)

    def listdir(self, path: str, size: int = 4096) -> list[str]:
        """Names, without "." and ".."."""
        node = self.lookup(path).node
        handle = fuse_answers.unpack_open(self.request(Opcode.OPENDIR, node, fuse_abi.Open(0))).handle
        names: list[bytes] = []
        offset = 0
        while entries := fuse_answers.unpack_directory(
            self.request(Opcode.READDIR, node, fuse_abi.Read(handle, offset, size))
        ):
            names.extend(entry.name for entry in entries)
            offset = entries[-1].offset
        self.request(Opcode.RELEASEDIR, node, fuse_abi.Release(handle))
        assert names[:2] == [b".", b".."]
        return [os.fsdecode(name) for name in names[2:]]

    def mkdir(self, path: str) -> None:
        parent, name = self.parent(path)
        self.entry(self.request(Opcode.MKDIR, parent, fuse_abi.MakeDir(0o777, 0o022, name)))

    def unlink(self, path: str) -> None:
        parent, name = self.parent(path)
        self.request(Opcode.UNLINK, parent, fuse_abi.Name(name))

    def rmdir(self, path: str) -> None:
        parent, name = self.parent(path)
        self.request(Opcode.RMDIR, parent, fuse_abi.Name(name))

    def rename(self, source: str, target: str, flags: int = 0) -> None:
        parent, name = self.parent(source)
        directory, new_name = self.parent(target)
        self.lookup(source)
        self.request(Opcode.RENAME2, parent, fuse_abi.Rename(directory, flags, name, new_name))

    def symlink(self, target: str, path: str) -> None:
        parent, name = self.parent(path)
        self.entry(self.request(Opcode.SYMLINK, parent, fuse_abi.SymLink(name, os.fsencode(target))))

    def readlink(self, path: str) -> str:
        return os.fsdecode(self.request(Opcode.READLINK, self.lookup(path).node, fuse_abi.Nothing()))

    def setattr(self, node: int, **values: int) -> fuse_answers.Attr:
        """`values`: fields of SetAttr, "valid" and those to be set."""
        fields = {name: values.get(name, 0) for name in fuse_abi.SetAttr._fields}
        return fuse_answers.unpack_attr(self.request(Opcode.SETATTR, node, fuse_abi.SetAttr(**fields)))[1]

    def truncate(self, path: str, size: int) -> None:
        self.setattr(self.lookup(path).node, valid=fuse_abi.SetFlag.SIZE, size=size)

    def link(self, source: str, target: str) -> None:
        node = self.lookup(source).node
        parent, name = self.parent(target)
        self.entry(self.request(Opcode.LINK, parent, fuse_abi.Link(node, name)))

    def getxattr(self, path: str, name: str) -> bytes:
        node, encoded = self.lookup(path).node, name.encode()
        size = fuse_answers.unpack_xattr_size(self.request(Opcode.GETXATTR, node, fuse_abi.GetXattr(0, encoded)))
        return self.request(Opcode.GETXATTR, node, fuse_abi.GetXattr(size, encoded)) if size else b""

    def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        body = fuse_abi.SetXattr(len(value), flags, name.encode(), value)
        self.request(Opcode.SETXATTR, self.lookup(path).node, body)

    def listxattr(self, path: str) -> list[str]:
        body = self.request(Opcode.LISTXATTR, self.lookup(path).node, fuse_abi.ListXattr(1 << 16))
        return [name.decode() for name in body.split(b"\0")[:-1]]

    def removexattr(self, path: str, name: str) -> None:
        self.request(Opcode.REMOVEXATTR, self.lookup(path).node, fuse_abi.Name(name.encode()))
