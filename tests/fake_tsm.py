"""A stand-in for the kernel's configfs-tsm: the same files, served over FUSE, so that it is met through real system calls.

`Tsm` behaves as drivers/virt/coco/guest/report.c and fs/configfs/file.c do: attributes appear with a folder that is made; what is written to inblob
counts when it is closed, whatever becomes of it; each open outblob is read once; a folder goes though there are files in it. Where the real one is
closed synchronously, the FLUSH of FUSE is.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest

from adyton.runtime.process import mounts, namespaces
from adyton.runtime.process.supervisor import fuse_abi as abi
from adyton.runtime.process.supervisor import fuse_answers as answers
from adyton.runtime.process.supervisor.fuse_abi import FileError, Opcode

INBLOB_MAX = 64
_WRAPS = 1 << 64

Make = Callable[[bytes], tuple[bytes, bytes]]  # inblob → outblob, auxblob; OSError


def of_itself(data: bytes) -> tuple[bytes, bytes]:
    """A report that is easily told."""
    return b"report over " + data, b""


@dataclass
class _Item:
    """One folder: struct tsm_report_state."""

    write_generation: int = 0
    read_generation: int = 0
    inblob: bytes = b""
    outblob: bytes | None = None
    auxblob: bytes = b""
    dead: bool = False


@dataclass
class _Open:
    item: _Item
    attribute: str
    writes: bool
    buffer: bytes | None = None  # None: not filled, or nothing written


@dataclass
class Tsm:
    """`make`: what the platform gives. `asked`: the data of each report made. `before_read`: called when one is about to be, with the item."""

    provider: str
    make: Make = of_itself
    has_aux: bool = False
    asked: list[bytes] = field(default_factory=list)
    items: dict[str, _Item] = field(default_factory=dict)
    made: int = 0  # folders, ever
    most: int = 0  # of them at once
    refuses_folders: int = 0  # errno
    before_write: Callable[[_Item], None] = lambda _item: None
    before_read: Callable[[_Item], None] = lambda _item: None

    def attributes(self) -> dict[str, int]:
        """With their modes."""
        aux = {"auxblob": 0o444} if self.has_aux else {}
        levels = {"privlevel": 0o200, "privlevel_floor": 0o444} if self.has_aux else {}
        return {"inblob": 0o200, "outblob": 0o444, "generation": 0o444, "provider": 0o444, **aux, **levels}

    def make_item(self, name: str) -> None:
        if self.refuses_folders:
            raise FileError(self.refuses_folders)
        if not self.provider:
            raise FileError(errno.ENXIO)
        if name in self.items:
            raise FileError(errno.EEXIST)
        self.items[name] = _Item()
        self.made += 1
        self.most = max(self.most, len(self.items))

    def drop_item(self, name: str) -> None:
        if name not in self.items:
            raise FileError(errno.ENOENT)
        self.items.pop(name).dead = True

    def open(self, item: _Item, attribute: str, flags: int) -> _Open:
        mode = self.attributes()[attribute]
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if item.dead or (writes and not mode & 0o200) or (flags & os.O_ACCMODE != os.O_WRONLY and not mode & 0o444):
            raise FileError(errno.ENOENT if item.dead else errno.EACCES)
        return _Open(item, attribute, writes)

    def write(self, file: _Open, offset: int, data: bytes) -> int:
        if file.attribute == "privlevel":
            self._advance(file.item)
            return len(data)
        if offset + len(data) > INBLOB_MAX:
            raise FileError(errno.EFBIG)
        before = (file.buffer or b"").ljust(offset, b"\0")
        file.buffer = before[:offset] + data + before[offset + len(data) :]
        return len(data)

    def close(self, file: _Open) -> None:
        if file.attribute != "inblob" or file.buffer is None or file.item.dead:
            return
        self.before_write(file.item)
        with suppress(FileError):  # the result of ->release() is ignored
            self._advance(file.item)
            file.item.inblob = file.buffer
        file.buffer = None

    @staticmethod
    def _advance(item: _Item) -> None:
        if item.write_generation == (item.read_generation - 1) % _WRAPS:
            raise FileError(errno.EBUSY)
        item.write_generation = (item.write_generation + 1) % _WRAPS

    def read(self, file: _Open, offset: int, size: int) -> bytes:
        if file.item.dead:
            raise FileError(errno.ENOENT)
        if file.buffer is None:
            file.buffer = self._content(file.item, file.attribute)
        return file.buffer[offset : offset + size]

    def _content(self, item: _Item, attribute: str) -> bytes:
        if attribute == "provider":
            if not self.provider:
                raise FileError(errno.ENXIO)
            return self.provider.encode() + b"\n"
        if attribute == "generation":
            return b"%d\n" % item.write_generation
        if attribute == "privlevel_floor":
            return b"0\n"
        if not item.inblob:
            raise FileError(errno.EINVAL)
        if item.outblob is None or item.read_generation != item.write_generation:
            self.before_read(item)
            item.outblob = None
            self.asked.append(item.inblob)
            try:
                item.outblob, item.auxblob = self.make(item.inblob)
            except OSError as error:
                raise FileError(error.errno or errno.EIO) from error
            item.read_generation = item.write_generation
        return item.outblob if attribute == "outblob" else item.auxblob


class FuseServer:
    """Answers FUSE requests by `_body`: the answer's body, None for those that have no answer, FileError."""

    def answer(self, message: bytes) -> bytes | None:
        request = abi.decode(message)
        unique = request.header.unique
        try:
            body = self._body(request.header, request.body)
        except FileError as error:
            return answers.failure(unique, error.number)
        return None if body is None else answers.success(unique, len(body)) + body

    def _body(self, header: abi.Header, body) -> bytes | None:
        raise NotImplementedError


class _Server(FuseServer):
    """FUSE requests to a Tsm. Nodes: the root; a folder; an attribute in it."""

    def __init__(self, tsm: Tsm) -> None:
        self.tsm = tsm
        self.nodes: dict[int, tuple[str, _Item | None, str]] = {abi.ROOT_ID: ("", None, "")}
        self.files: dict[int, _Open] = {}
        self.numbers = itertools.count(2)

    def _body(self, header: abi.Header, body) -> bytes | None:
        name, item, attribute = self.nodes.get(header.node, ("", None, ""))
        match header.opcode:
            case Opcode.INIT:
                minor = min(body.minor, abi.MINOR_SPOKEN)
                return answers.pack_init(answers.InitAnswer(minor, 0, 0, 16, 1 << 16, 16))
            case Opcode.LOOKUP:
                return self._found(name, item, body.name.decode())
            case Opcode.GETATTR:
                return answers.pack_attr(0, self._attr(header.node, item, attribute))
            case Opcode.MKDIR if item is None:
                self.tsm.make_item(body.name.decode())
                return self._found("", None, body.name.decode())
            case Opcode.RMDIR if item is None:
                self.tsm.drop_item(body.name.decode())
                return b""
            case Opcode.OPEN:
                assert item is not None
                handle = next(self.numbers)
                self.files[handle] = self.tsm.open(item, attribute, body.flags)
                return answers.pack_open(answers.OpenAnswer(handle, abi.OpenFlag.DIRECT_IO))
            case Opcode.READ:
                return self.tsm.read(self.files[body.handle], body.offset, body.size)
            case Opcode.WRITE:
                return answers.pack_written(self.tsm.write(self.files[body.handle], body.offset, body.data))
            case Opcode.FLUSH:
                self.tsm.close(self.files[body.handle])
                return b""
            case Opcode.RELEASE:
                del self.files[body.handle]
                return b""
            case Opcode.OPENDIR:
                return answers.pack_open(answers.OpenAnswer(0, 0))
            case Opcode.RELEASEDIR:
                return b""
            case Opcode.FORGET | Opcode.BATCH_FORGET | Opcode.INTERRUPT | Opcode.DESTROY:
                return None
            case Opcode.MKDIR | Opcode.UNLINK | Opcode.CREATE | Opcode.MKNOD | Opcode.RENAME2 | Opcode.SETATTR:
                raise FileError(errno.EPERM)
            case _:
                raise FileError(errno.ENOSYS)

    def _found(self, above: str, item: _Item | None, name: str) -> bytes:
        if item is None:
            found = self.tsm.items.get(name)
            if found is None:
                raise FileError(errno.ENOENT)
            entry = (name, found, "")
        else:
            if name not in self.tsm.attributes():
                raise FileError(errno.ENOENT)
            entry = (above, item, name)
        node = next(self.numbers)
        self.nodes[node] = entry
        return answers.pack_entry(answers.EntryAnswer(node, 0, 0, self._attr(node, *entry[1:])))

    def _attr(self, node: int, item: _Item | None, attribute: str) -> answers.Attr:
        mode = stat.S_IFREG | self.tsm.attributes()[attribute] if attribute else stat.S_IFDIR | 0o755
        return answers.Attr(node, 0, 0, 0, 0, 0, mode, 1 if attribute else 2, os.geteuid(), os.getegid())


def serve(device: int, server: FuseServer) -> None:
    """Answer what comes from a FUSE device until it is unmounted."""
    while True:
        try:
            message = os.read(device, (1 << 17) + 8192)
        except FileNotFoundError:
            continue
        except OSError:
            return  # unmounted
        answer = server.answer(message)
        if answer is not None:
            with suppress(OSError):  # nobody waits any more
                os.write(device, answer)


def mounted(fuse: Callable[[int, int], int] = mounts.fuse) -> tuple[int, int]:
    """A FUSE device and its file system, mounted nowhere; of a user namespace, unless this is root. Skips where there is none."""
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, other:
        pid = os.fork()
        if pid == 0:
            try:
                uid, gid = os.geteuid(), os.getegid()
                if uid:
                    namespaces.unshare(namespaces.NEWUSER | namespaces.NEWNS)
                    namespaces.map_ids(uid, gid, uid, gid)
                device = os.open("/dev/fuse", os.O_RDWR)
                socket.send_fds(other, [b"mounted"], [device, fuse(device, uid)])
            except OSError as error:
                other.send(str(error).encode())
            finally:
                os._exit(0)
        other.close()
        message, descriptors, _, _ = socket.recv_fds(mine, 256, 2)
        os.waitpid(pid, 0)
    if message != b"mounted":
        pytest.skip(f"NO FUSE HERE, SO NO STAND-IN FOR THE KERNEL'S INTERFACE: {message.decode()}")
    return descriptors[0], descriptors[1]


@contextmanager
def served(tsm: Tsm) -> Iterator[str]:
    """The path at which it is to be found; its folder `report`, that is."""
    with serving(lambda device: serve(device, _Server(tsm))) as path:
        yield path


@contextmanager
def serving(serve: Callable[[int], None], fuse: Callable[[int, int], int] = mounts.fuse) -> Iterator[str]:
    """The path of a file system that `serve` serves, on a thread, until it is unmounted."""
    if sys.platform != "linux":
        pytest.skip("NO FUSE HERE, SO NO STAND-IN FOR THE KERNEL'S INTERFACE")
    device, root = mounted(fuse)
    thread = threading.Thread(target=serve, args=(device,), daemon=True)
    thread.start()
    try:
        yield f"/proc/self/fd/{root}"
    finally:
        os.close(root)
        thread.join(2)  # what was closed last is let go of in a moment
        os.close(device)
