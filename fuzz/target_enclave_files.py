"""Fuzz targets of files in the enclave: the file server between kernel and client, and the results of host calls."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from draw import Draw, arrived, packed

from adyton.communicator import messages
from adyton.communicator.messages import Coherence
from adyton.hostcall import abi
from adyton.hostcall.check import Checked, check
from adyton.hostcall.events import Event, Happened
from adyton.hostcall.own_paths import own_path
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.files import Answer, Ask, Effect, FileServer
from adyton.runtime.process.supervisor.fuse_abi import FORMS, Opcode
from adyton.runtime.process.supervisor.layout import Layout

PATHS = (
    *(
        "/work",
        "/work/in",
        "/work/out",
        "/work/out/d",
        "/tmp",
        "/tmp/d",
        "/tmp/shared",
        "/",
        "/etc",
        "/usr/lib",
        "/opt",
    ),
    *(
        "/opt/adyton",
        "/home/ann/.netrc",
        "a",
        "d",
        "..",
        ".",
        "../../etc",
        "/work/../etc",
        "/work//out",
        "é",
        "\0",
        "x" * 300,
    ),
)
NAMES = (*(os.fsencode(path.rpartition("/")[2]) for path in PATHS), b"in", b"work", b"\xff", b"lib")
SPELT = (
    "\U0010ffff",
    "\U0010ffc3\U0010ffa9",
    "\U0010ffaf",
)  # as a client may spell names: of no UTF-8, of "é", of "/" with its high bit
FEW = (b"d", b"e", b"f")
EXTENDED = (b"user.x", b"user.y", b"user.", b"security.capability", b"system.posix_acl_access", b"user.\xff")
READ, WRITE = messages.Grant("/work/in", "read"), messages.Grant("/work/out", "write")
LAYOUTS = (
    Layout([READ, WRITE, messages.Grant("/tmp/shared/deep", "write")], "/work"),
    Layout([READ, WRITE], "/"),
    Layout([messages.Grant("/", "write")], "/work"),
)
OPCODES = (
    *FORMS,
    *[Opcode.OPEN, Opcode.CREATE, Opcode.READ, Opcode.WRITE, Opcode.SETATTR, Opcode.SETLK, Opcode.SETLKW] * 2,
    Opcode.GETATTR,
    Opcode.READLINK,
    Opcode.STATFS,
    Opcode.DESTROY,
)
RESULTS: Mapping[type, Any] = {
    abi.Access: abi.Done,
    abi.Stat: abi.Attributes,
    abi.ReadLink: abi.Target,
    abi.List: abi.Entries,
    abi.Open: abi.Attributes,
    abi.Read: abi.Data,
    abi.Write: abi.Written,
    abi.SetAttributes: abi.Attributes,
    abi.Sync: abi.Done,
    abi.SyncDirectory: abi.Done,
    abi.Close: abi.Done,
    abi.SyncAll: abi.Done,
    abi.MakeDirectory: abi.Attributes,
    abi.Remove: abi.Done,
    abi.Rename: abi.Done,
    abi.Link: abi.Attributes,
    abi.SymbolicLink: abi.Attributes,
    abi.StatFileSystem: abi.FileSystem,
    abi.OpenUnnamed: abi.Attributes,
    abi.OpenAgain: abi.Attributes,
    abi.Seek: abi.Position,
    abi.Allocate: abi.Done,
    abi.Copy: abi.Copied,
    abi.GetExtended: abi.Data,
    abi.ListExtended: abi.Names,
    abi.SetExtended: abi.Done,
    abi.RemoveExtended: abi.Done,
    abi.Lock: abi.Done,
    abi.GetLock: abi.Conflict,
    abi.Flock: abi.Done,
    abi.StopWaiting: abi.Done,
    abi.Look: abi.Found,
    abi.Peek: abi.Content,
    abi.Watch: abi.Done,
    abi.Unwatch: abi.Done,
    abi.Follow: abi.Done,
    abi.Unfollow: abi.Done,
    abi.Hold: abi.Done,
    abi.Compound: abi.Results,
    abi.Recall: abi.Data,
    abi.Remember: abi.Done,
    abi.ReadInput: abi.Data,
    abi.Call: abi.Value,
}
COHERENCES: tuple[Coherence, ...] = ("close-to-open", "exclusive", "strict")
ERRORS = ("ENOENT", "EAGAIN", "EACCES", "EEXIST", "EIO", "E2BIG", "EINTR", "nonsense")

FLAGS = (*(0, 0, 1, 2, 2, 3), os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_EXCL | os.O_CREAT, -1)
SEEN = (("/", b"work"), ("/work", b"in"), ("/work", b"out"), ("/work/out", b"d"), ("/work/out", b"f"), ("/", b"tmp"))
_ENTRIES = {Opcode.LOOKUP, Opcode.MKDIR, Opcode.SYMLINK, Opcode.CREATE}
_OPENS = {Opcode.OPEN, Opcode.OPENDIR, Opcode.CREATE}


@dataclass
class _Mount:
    """A file server with a kernel and a client that do anything. `nodes`, `handles`: what the kernel was told of."""

    draw: Draw
    server: FileServer
    sent: dict[int, int] = field(default_factory=dict)  # operations by their unique
    answered: set[int] = field(default_factory=set)
    nodes: list[int] = field(default_factory=lambda: [fuse_abi.ROOT_ID])
    handles: list[int] = field(default_factory=lambda: [0, 1])  # 0: the standard input's
    asks: list[Ask] = field(default_factory=list)

    def carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Answer):
                self._answered(b"".join(effect.parts))
            elif isinstance(effect, Ask):
                request = effect.request
                assert arrived(request, abi.Request) == request
                for each in request.requests if isinstance(request, abi.Compound) else [request]:
                    _check_paths(each)
                self.asks.append(effect)
            else:
                assert struct.unpack_from("<IiQ", b"".join(effect.parts))[1:] == (2, 0)  # FUSE_NOTIFY_INVAL_INODE

    def _answered(self, data: bytes) -> None:
        length, error, unique = struct.unpack_from("<IiQ", data)
        assert length == len(data)
        assert -4096 < error <= 0
        assert unique not in self.answered, "answered twice"
        self.answered.add(unique)
        operation = 0 if error else self.sent.get(unique, 0)
        if operation in _ENTRIES:
            self.nodes.append(struct.unpack_from("<Q", data, fuse_answers.ANSWER_SIZE)[0])
        if operation in _OPENS:
            self.handles.append(struct.unpack_from("<Q", data, length - 16)[0])  # an OpenAnswer comes last

    def look_around(self) -> None:
        """The kernel learns of some names, all of directories but "f", and makes two in /tmp."""
        found = {"/": fuse_abi.ROOT_ID}
        for number, (above, name) in enumerate(SEEN, 1):
            path = above.rstrip("/") + "/" + name.decode()
            self._send(Opcode.LOOKUP, found[above], name + b"\0")
            self._find("file" if name == b"f" else "directory", number)
            found[path] = self.nodes[-1]
        self._send(Opcode.MKDIR, found["/tmp"], struct.pack("<II", 0o755, 0) + b"d\0")
        self._find("directory", len(SEEN) + 1)
        self._send(Opcode.CREATE, found["/tmp"], struct.pack("<III4x", os.O_RDWR, 0o644, 0) + b"f\0")
        self._find("file", len(SEEN) + 2)

    def _find(self, kind: abi.Kind, identity: int) -> None:
        while self.asks:
            ask = self.asks.pop()
            attributes = abi.Attributes(kind, identity, 1, 0o755, 1, 0, 0, 0)
            self.carry_out(self.server.resume(ask.ticket, _found(ask.request, attributes)))

    def request(self) -> None:
        """A message from the kernel: its fields drawn one by one, or as raw bytes."""
        draw = self.draw
        opcode = draw.pick(OPCODES)
        form = FORMS.get(opcode)
        raw = form is None or draw.below(16) == 0
        body = draw.take(draw.below(128)) if raw else self._body(form)
        self._send(opcode, self._node(), body)

    def _node(self) -> int:
        draw = self.draw
        return draw.pick(self.nodes[-64:]) if draw.often() else draw.below(32)

    def _send(self, opcode: int, node: int, body: bytes) -> None:
        unique = 2 * len(self.sent) + 2
        self.sent[unique] = opcode
        length = fuse_abi.HEADER_SIZE + len(body)
        header = struct.pack("<IIQQIII4x", length, int(opcode), unique, node, 1000, 1000, 1)
        self.carry_out(self.server.receive(header + body))

    def _body(self, form: fuse_abi.Form) -> bytes:
        draw, data = self.draw, b""
        values = [self._field(name) for name in getattr(form.make, "_fields", ())]
        values = values[: len(form.fixed.unpack(bytes(form.fixed.size)))]
        if form.tail in ("name", "names"):
            count = 2 if form.tail == "names" else 1
            choices = EXTENDED if form.make in (fuse_abi.GetXattr, fuse_abi.Name) and draw.below(2) else FEW
            data = b"".join(draw.pick(choices if draw.often() else NAMES) + b"\0" for _ in range(count))
        elif form.tail == "data":
            data = draw.blob()
            values[2] = len(data)
        elif form.tail == "name and data":
            value = draw.blob()
            values[0] = len(value)
            data = draw.pick(EXTENDED) + b"\0" + value
        elif form.tail == "nodes":
            values = [draw.below(4)]
            data = b"".join(struct.pack("<QQ", self._node(), draw.below(4)) for _ in range(values[0]))
        with contextlib.suppress(struct.error):
            return form.fixed.pack(*values) + data
        return form.fixed.pack(*[value & 0xFF for value in values]) + data

    def _field(self, name: str) -> int:
        draw = self.draw
        match name:
            case "handle" | "target":
                return draw.pick(self.handles[-64:]) if draw.often() else draw.number()
            case "owner" | "type":
                return draw.below(4)
            case "end":
                return fuse_abi.LARGEST if draw.below(2) else draw.number()
            case "directory" | "node":
                return self._node()
            case "unique":
                return draw.pick(list(self.sent)[-64:] or [0])
            case "flags":
                return draw.pick(FLAGS) & 0xFFFFFFFF
            case "valid":
                return draw.below(256) | draw.below(2) << 8
            case "accessed_nanoseconds" | "modified_nanoseconds":
                return draw.number() % fuse_abi.SECOND
        return draw.number()

    def another_program(self) -> None:
        """Other programs change something, as far as the client is to be believed."""
        draw = self.draw
        names = [(draw.pick(PATHS), draw.pick(("", "d", "f", "../x"))) for _ in range(draw.below(3))]
        self.carry_out(self.server.changed(abi.Changed(names)))
        if draw.below(2):
            events = [draw.struct(Event) for _ in range(draw.below(4))]
            self.carry_out(self.server.happened(Happened(events)))
        if draw.below(2):
            self.watch()

    def watch(self) -> None:
        """A program watches something, any more of it or not."""
        draw, watching = self.draw, self.server.watching
        instance = draw.pick([*watching.instances, None]) or watching.open()
        mask = draw.number() & 0xFFFFFFFF

        def add() -> Generator[Any, abi.Result, int]:
            path = draw.pick((*PATHS, "d/../f", "..//tmp/f/")).encode()
            node = yield from self.server.walking.find(
                draw.pick(("/", "/tmp")), path, follow=bool(draw.below(2)), only_directory=not draw.below(4)
            )
            try:
                return (yield from watching.watched(instance, node, mask))
            except OSError as error:
                raise fuse_abi.FileError(error.errno or errno.EIO) from error
            finally:
                self.server.release(node)

        def done(number: int | None, error: int) -> None:
            assert (number is None) == (error > 0)

        self.carry_out(self.server.begin(add(), done))
        if draw.below(4) == 0:
            with contextlib.suppress(OSError):
                watching.unwatch(instance, draw.below(4))
        if draw.below(8) == 0:
            watching.close(instance)
        self.carry_out(self.server.flush())

    def stop_watching(self) -> None:
        """Nothing is left of it."""
        watching = self.server.watching
        for instance in list(watching.instances):
            watching.close(instance)
        assert not watching.active
        assert watching.budget.queued == watching.budget.watches == 0

    def answer(self) -> None:
        """What the client says to one of the host calls that wait for it."""
        draw = self.draw
        ask = self.asks.pop(draw.below(len(self.asks)))
        self.carry_out(self.server.resume(ask.ticket, check(ask.request, result_of(draw, ask.request))))


def _check_paths(request: Any) -> None:
    for name in ("path", "source", "target", "directory"):
        path = getattr(request, name, "/")
        if isinstance(request, abi.Copy | abi.SymbolicLink | abi.Remove) and name != "path":
            continue  # handles, a flag; and where a link leads is the guest's own choice
        assert path in ("", "/") or own_path(path) is None, "the client was asked about the enclave's own"


def _found(request: Any, attributes: abi.Attributes) -> Any:
    """What an honest client says of a directory in which there is but this."""
    match request:
        case abi.Compound(requests):
            return Checked([_found(each, attributes) for each in requests])
        case abi.Look():
            return abi.Found(attributes)
        case abi.List():
            return abi.Entries([], 0)
        case abi.Watch():
            return abi.Failed("ENOSPC")
        case abi.Read():
            return abi.Data(b"")
        case _:
            return attributes


def result_of(draw: Draw, request: Any) -> bytes:
    """A client's answer: mostly one that fits the request."""
    if isinstance(request, abi.Compound) and draw.often():
        results = [msgspec.Raw(result_of(draw, each)) for each in request.requests]
        try:
            return packed(abi.Results(results[: draw.below(8) or None]))
        except (msgspec.MsgspecError, ValueError):
            return b""
    kind = draw.below(16)
    if kind == 0:
        return draw.blob()
    if kind == 1:
        return packed(draw.struct(abi.Result))
    if kind < 4:
        return packed(abi.Failed(draw.pick(ERRORS)))
    result = draw.struct(RESULTS[type(request)])
    if isinstance(request, abi.Write) and draw.often():
        result = abi.Written(len(request.data))
    if isinstance(request, abi.Open) and draw.often():
        result = msgspec.structs.replace(result, kind="file")
    return draw.spoilt(packed(result))


def file_server(data: bytes) -> None:
    """Requests of the kernel, and the client's answers in any order."""
    draw = Draw(data, (*PATHS, *SPELT))
    mount = _Mount(draw, FileServer(wanted=lambda _thread, _path: None, now=lambda: 1, capacity=1 << 20))
    if draw.below(16) == 0:
        mount.carry_out(mount.server.receive(draw.rest()))
        return
    if draw.below(8):
        coherence = draw.pick(COHERENCES)
        mount.server.set_layout(draw.pick(LAYOUTS), lambda _path: coherence)
        if draw.below(2):
            mount.server.open_standard_input()
        mount.look_around()
    while draw:
        mount.request()
        if draw.below(8) == 0:
            mount.another_program()
        while draw and mount.asks and draw.often():
            mount.answer()
    mount.carry_out(mount.server.abort())
    while mount.asks:
        mount.answer()
    mount.stop_watching()


def host_call_result(data: bytes) -> None:
    """What a client answers to a host call of each kind."""
    draw = Draw(data, (*PATHS, *ERRORS, *SPELT))
    request = draw.struct(draw.pick(tuple(RESULTS)))
    result = check(request, draw.rest() if draw.below(4) == 0 else result_of(draw, request))
    if isinstance(result, Checked):
        assert isinstance(request, abi.Compound)
        assert len(result.results) <= len(request.requests)
        return
    assert isinstance(result, RESULTS[type(request)] | abi.Failed)
    assert arrived(result, abi.Result) == result
