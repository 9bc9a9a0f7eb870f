"""The guest's file system: the kernel's requests in, answers and host calls out. Sans-IO.

`FileServer` takes each message that is read from /dev/fuse and returns effects in the order in which they are to be carried out:
an Answer is written to /dev/fuse; an Ask goes to the client, whose checked result comes back by `resume`; a Tell goes to the client
and its result is of no interest. Requests are served side by side: one that waits for the client does not hold up another.

What each operation does is in `names` and `opened`; `HANDLED`, `REFUSED` and `SILENT` are the whole truth about which there are.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adyton.hostcall import abi
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.fuse_abi import FileError, Header, InitFlag, MalformedRequestError, Opcode
from adyton.runtime.process.supervisor.handles import STANDARD_INPUT_HANDLE, Handles
from adyton.runtime.process.supervisor.layout import Layout
from adyton.runtime.process.supervisor.names import NameOperations
from adyton.runtime.process.supervisor.opened import OpenOperations
from adyton.runtime.process.supervisor.standard_input import Answered, StandardInput
from adyton.runtime.process.supervisor.view import Steps, View, errno_of
from adyton.runtime.process.supervisor.wanted import Wanted

PRIVATE_CAPACITY = 64 << 20  # bytes of private files
MAX_BACKGROUND = 64  # of the kernel's read-ahead and mapped-page requests at a time
_CAPABILITIES = (
    InitFlag.ASYNC_READ | InitFlag.ATOMIC_O_TRUNC | InitFlag.BIG_WRITES | InitFlag.PARALLEL_DIROPS | InitFlag.MAX_PAGES
)

# The method of NameOperations or OpenOperations that serves an operation; INIT and DESTROY are served here.
HANDLED: Mapping[Opcode, str] = {
    Opcode.LOOKUP: "lookup",
    Opcode.GETATTR: "getattr",
    Opcode.SETATTR: "setattr",
    Opcode.READLINK: "readlink",
    Opcode.SYMLINK: "symlink",
    Opcode.MKDIR: "mkdir",
    Opcode.UNLINK: "unlink",
    Opcode.RMDIR: "rmdir",
    Opcode.RENAME: "rename",
    Opcode.RENAME2: "rename2",
    Opcode.OPEN: "open",
    Opcode.CREATE: "create",
    Opcode.READ: "read",
    Opcode.WRITE: "write",
    Opcode.STATFS: "statfs",
    Opcode.RELEASE: "release",
    Opcode.FSYNC: "fsync",
    Opcode.OPENDIR: "opendir",
    Opcode.READDIR: "readdir",
    Opcode.RELEASEDIR: "releasedir",
    Opcode.FSYNCDIR: "fsyncdir",
    Opcode.ACCESS: "access",
}

# ENOSYS is an answer that the kernel remembers: it does without the operation from then on, in the way said here.
REFUSED: Mapping[Opcode, int] = {
    Opcode.MKNOD: errno.EPERM,  # no pipes, devices or sockets in a file tree that is shared with another machine
    Opcode.LINK: errno.EPERM,  # no hard links, as link(2) says it
    Opcode.SETXATTR: errno.ENOSYS,  # EOPNOTSUPP for the program
    Opcode.GETXATTR: errno.ENOSYS,
    Opcode.LISTXATTR: errno.ENOSYS,
    Opcode.REMOVEXATTR: errno.ENOSYS,
    Opcode.FLUSH: errno.ENOSYS,  # files are written through: a close has nothing to send
    Opcode.GETLK: errno.ENOSYS,  # locks hold among the enclave's processes, by the guest's kernel
    Opcode.SETLK: errno.ENOSYS,
    Opcode.SETLKW: errno.ENOSYS,
    Opcode.BMAP: errno.ENOSYS,
    Opcode.IOCTL: errno.ENOTTY,
    Opcode.POLL: errno.ENOSYS,  # files are always ready
    Opcode.FALLOCATE: errno.ENOSYS,  # EOPNOTSUPP; the C library then writes zeros
    Opcode.READDIRPLUS: errno.ENOSYS,
    Opcode.LSEEK: errno.ENOSYS,  # the kernel's own answer: all data, no holes
    Opcode.COPY_FILE_RANGE: errno.ENOSYS,  # the kernel copies by reading and writing
    Opcode.SETUPMAPPING: errno.ENOSYS,
    Opcode.REMOVEMAPPING: errno.ENOSYS,
    Opcode.SYNCFS: errno.ENOSYS,
    Opcode.TMPFILE: errno.ENOSYS,  # EOPNOTSUPP; programs then make one and unlink it
    Opcode.STATX: errno.ENOSYS,  # GETATTR in its stead
}

SILENT: frozenset[Opcode] = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY})

# What a signal to the waiting thread may end with EINTR: what POSIX lets fail so, and what may be done once more without harm
# (a C library or Python does so unasked). All else takes its time: an exclusive create that had happened after all would then fail.
INTERRUPTIBLE: frozenset[Opcode] = frozenset({Opcode.OPEN, Opcode.READ, Opcode.WRITE, Opcode.FSYNC})


STANDARD_INPUT_TICKET = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """To be written to /dev/fuse in one write; ENOENT then means that nobody waits any more."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """A host call; its result is handed to `resume` with the ticket."""

    ticket: int
    request: abi.Request


@dataclass(frozen=True, slots=True)
class Tell:
    """A host call for whose result nobody waits."""

    request: abi.Request


Effect = Answer | Ask | Tell


@dataclass(slots=True)
class _Task:
    """An operation that waits for the client. `answered`: the kernel has its answer; what the client still says is undone."""

    unique: int
    opcode: int
    steps: Steps
    interruptible: bool
    ticket: int = 0
    request: abi.Request | None = None
    answered: bool = False


class FileServer:
    """See the module.

    `uid` and `gid`: whose the files are in the guest. `wanted`: what the thread of that number wants of a path that is denied (it
    may be asked whenever a look-up is denied). `now`: the time in nanoseconds, for private files. `capacity`: bytes of those.
    """

    def __init__(
        self,
        *,
        uid: int = 1000,
        gid: int = 1000,
        wanted: Callable[[int, str], Wanted | None],
        now: Callable[[], int] = time.time_ns,
        capacity: int = PRIVATE_CAPACITY,
    ) -> None:
        self._view = View(uid, gid, wanted, now, capacity)
        self._handles = Handles()
        groups = (NameOperations(self._view, self._handles), OpenOperations(self._view, self._handles))
        self._operations: dict[int, Callable[[Header, Any], Steps | bytes]] = {
            opcode: next(getattr(group, name) for group in groups if hasattr(group, name))
            for opcode, name in HANDLED.items()
        }
        self._operations[Opcode.INIT] = self._init
        self._operations[Opcode.DESTROY] = lambda _header, _body: b""
        self._tasks: dict[int, _Task] = {}  # by ticket
        self._waiting: dict[int, _Task] = {}  # by the request's unique
        self._tickets = STANDARD_INPUT_TICKET
        self._input = StandardInput()

    def set_layout(self, layout: Layout) -> None:
        """The client's load has arrived: from now on the client is asked. Only once; before, the enclave's own directories exist."""
        self._view.set_layout(layout)

    def open_standard_input(self) -> None:
        """The client has a standard input for the guest; otherwise that is at its end."""
        self._input.open()

    # -- requests and results ---------------------------------------------------------------------------------------

    def receive(self, message: bytes) -> list[Effect]:
        """One message that was read from /dev/fuse."""
        try:
            header, body = fuse_abi.decode(message)
        except MalformedRequestError as error:
            return [Answer(fuse_answers.failure(error.unique, errno.EINVAL))] if error.unique else []
        if header.opcode in SILENT:
            return self._silent(header, body)
        if isinstance(body, fuse_abi.Read) and header.opcode == Opcode.READ and body.handle == STANDARD_INPUT_HANDLE:
            return self._read_input(self._input.read(header.unique, body.size))
        operation = self._operations.get(header.opcode)
        if operation is None:
            refusal = REFUSED.get(header.opcode, errno.ENOSYS)  # type: ignore[call-overload]
            return [Answer(fuse_answers.failure(header.unique, refusal))]
        try:
            steps = operation(header, body)
        except FileError as error:
            return [Answer(fuse_answers.failure(header.unique, error.number))]
        if isinstance(steps, bytes):
            return [*self._tells(), Answer(fuse_answers.success(header.unique, steps))]
        appends = isinstance(body, fuse_abi.Write) and bool(body.flags & os.O_APPEND)
        return self._go_on(
            _Task(header.unique, header.opcode, steps, header.opcode in INTERRUPTIBLE and not appends), None
        )

    def resume(self, ticket: int, result: abi.Result) -> list[Effect]:
        """The client's answer to an Ask, as `hostcall.check` let it pass."""
        if ticket == STANDARD_INPUT_TICKET:
            return self._read_input(self._input.receive(result, errno_of(result)))
        task = self._tasks.pop(ticket, None)
        if task is None:
            return []
        if not task.answered:
            return self._go_on(task, result)
        return self._undo(task, result)

    def abort(self) -> list[Effect]:
        """Answer all that is outstanding with EIO."""
        answers: list[Effect] = [self._give_up(task, errno.EIO) for task in list(self._waiting.values())]
        return [*answers, *self._read_input(self._input.abort())]

    def _read_input(self, answered: list[Answered]) -> list[Effect]:
        effects: list[Effect] = [
            Answer(
                fuse_answers.failure(each.unique, each.errno)
                if each.errno
                else fuse_answers.success(each.unique, each.data)
            )
            for each in answered
        ]
        request = self._input.wanted()
        return effects if request is None else [*effects, Ask(STANDARD_INPUT_TICKET, request)]

    def _go_on(self, task: _Task, result: abi.Result | None) -> list[Effect]:
        """Run an operation until it needs the client, or has its answer."""
        try:
            request = task.steps.send(result)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as end:
            answer = fuse_answers.success(task.unique, end.value)
        except FileError as error:
            answer = fuse_answers.failure(task.unique, error.number)
        else:
            self._tickets += 1
            task.ticket, task.request = self._tickets, request
            self._tasks[task.ticket] = self._waiting[task.unique] = task
            return [*self._tells(), Ask(task.ticket, request)]
        self._waiting.pop(task.unique, None)
        return [*self._tells(), Answer(answer)]

    def _give_up(self, task: _Task, number: int) -> Answer:
        """Answer a task now; its result will be undone when it comes."""
        del self._waiting[task.unique]
        task.answered = True
        return Answer(fuse_answers.failure(task.unique, number))

    def _undo(self, task: _Task, result: abi.Result) -> list[Effect]:
        """The client did what nobody waits for any more: what it opened is closed."""
        task.steps.close()
        tells: list[Effect] = self._tells()
        if isinstance(task.request, abi.Open) and isinstance(result, abi.Attributes):
            tells.append(Tell(abi.Close(task.request.handle)))
        return tells

    def _tells(self) -> list[Effect]:
        tells: list[Effect] = [Tell(request) for request in self._view.tells]
        self._view.tells.clear()
        return tells

    # -- what is not about files ------------------------------------------------------------------------------------

    def _silent(self, header: Header, body: Any) -> list[Effect]:
        """Messages that are not answered."""
        match body:
            case fuse_abi.Forget(lookups):
                self._view.tree.forget(header.node, lookups)
            case fuse_abi.BatchForget(nodes):
                for node, lookups in nodes:
                    self._view.tree.forget(node, lookups)
            case fuse_abi.Interrupt(unique):
                task = self._waiting.get(unique)
                if task is not None and task.interruptible:
                    return [self._give_up(task, errno.EINTR)]
                return self._read_input(self._input.interrupt(unique))
            case _:
                pass
        return []

    def _init(self, _header: Header, body: fuse_abi.Init) -> bytes:
        """Agree on a version and on capabilities; EPROTO for a kernel that is too old."""
        if body.major < fuse_abi.MAJOR or (body.major == fuse_abi.MAJOR and body.minor < fuse_abi.MINOR_AT_LEAST):
            raise FileError(errno.EPROTO)
        minor = body.minor if body.major == fuse_abi.MAJOR else fuse_abi.MINOR_SPOKEN
        return fuse_answers.pack_init(
            fuse_answers.InitAnswer(
                minor=min(minor, fuse_abi.MINOR_SPOKEN),
                max_readahead=min(body.max_readahead, abi.MAX_BLOCK),
                flags=body.flags & _CAPABILITIES,
                max_background=MAX_BACKGROUND,
                max_write=abi.MAX_BLOCK,
                max_pages=max(1, abi.MAX_BLOCK // mmap.PAGESIZE),
            )
        )
