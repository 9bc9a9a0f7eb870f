"""The guest's file system: the kernel's requests in, answers and host calls out. Sans-IO.

`FileServer` takes each message that is read from /dev/fuse and returns effects in the order in which they are to be carried out:
an Answer is written to /dev/fuse; an Ask goes to the client, whose checked result comes back by `resume`; a Tell goes to the client
and its result is of no interest. Requests are served side by side: one that waits for the client does not hold up another.

What each operation does is in `names`, `attributes`, `opened`, `directories` and `locks`; `HANDLED`, `REFUSED` and `SILENT` are the whole truth about which there are.
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
from adyton.runtime.process.supervisor.attributes import AttributeOperations
from adyton.runtime.process.supervisor.directories import DirectoryOperations
from adyton.runtime.process.supervisor.fuse_abi import FileError, Header, InitFlag, MalformedRequestError, Opcode
from adyton.runtime.process.supervisor.handles import STANDARD_INPUT_HANDLE, Handles
from adyton.runtime.process.supervisor.layout import Layout
from adyton.runtime.process.supervisor.locks import LockOperations
from adyton.runtime.process.supervisor.names import NameOperations
from adyton.runtime.process.supervisor.opened import OpenOperations
from adyton.runtime.process.supervisor.standard_input import Answered, StandardInput
from adyton.runtime.process.supervisor.view import Park, Steps, View, errno_of
from adyton.runtime.process.supervisor.wanted import Wanted

PRIVATE_CAPACITY = 64 << 20  # bytes of private files
MAX_BACKGROUND = 64  # of the kernel's read-ahead and mapped-page requests at a time
_CAPABILITIES = (
    InitFlag.ASYNC_READ
    | InitFlag.POSIX_LOCKS
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.FLOCK_LOCKS
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.HANDLE_KILLPRIV_V2  # else each write asks for the attribute security.capability
    | InitFlag.INIT_EXT
    | InitFlag.DIRECT_IO_ALLOW_MMAP  # of files opened to append
)

# The method of one of the groups of operations that serves an operation; INIT and DESTROY are served here.
HANDLED: Mapping[Opcode, str] = {
    Opcode.LOOKUP: "lookup",
    Opcode.GETATTR: "getattr",
    Opcode.SETATTR: "setattr",
    Opcode.READLINK: "readlink",
    Opcode.SYMLINK: "symlink",
    Opcode.MKNOD: "mknod",
    Opcode.MKDIR: "mkdir",
    Opcode.UNLINK: "unlink",
    Opcode.RMDIR: "rmdir",
    Opcode.RENAME: "rename",
    Opcode.RENAME2: "rename2",
    Opcode.LINK: "link",
    Opcode.OPEN: "open",
    Opcode.CREATE: "create",
    Opcode.READ: "read",
    Opcode.WRITE: "write",
    Opcode.STATFS: "statfs",
    Opcode.RELEASE: "release",
    Opcode.FSYNC: "fsync",
    Opcode.SETXATTR: "setxattr",
    Opcode.GETXATTR: "getxattr",
    Opcode.LISTXATTR: "listxattr",
    Opcode.REMOVEXATTR: "removexattr",
    Opcode.FLUSH: "flush",
    Opcode.OPENDIR: "opendir",
    Opcode.READDIR: "readdir",
    Opcode.RELEASEDIR: "releasedir",
    Opcode.FSYNCDIR: "fsyncdir",
    Opcode.GETLK: "getlk",
    Opcode.SETLK: "setlk",
    Opcode.SETLKW: "setlkw",
    Opcode.ACCESS: "access",
    Opcode.FALLOCATE: "fallocate",
    Opcode.LSEEK: "lseek",
    Opcode.COPY_FILE_RANGE: "copy_file_range",
    Opcode.TMPFILE: "tmpfile",
    Opcode.STATX: "statx",
    Opcode.COPY_FILE_RANGE_64: "copy_file_range_64",
}

# ENOSYS is an answer that the kernel remembers: it does without the operation from then on, in the way said here.
REFUSED: Mapping[Opcode, int] = {
    Opcode.BMAP: errno.ENOSYS,
    Opcode.IOCTL: errno.ENOTTY,
    Opcode.POLL: errno.ENOSYS,  # files are always ready
    Opcode.READDIRPLUS: errno.ENOSYS,
    Opcode.SETUPMAPPING: errno.ENOSYS,
    Opcode.REMOVEMAPPING: errno.ENOSYS,
    Opcode.SYNCFS: errno.ENOSYS,  # the kernel never asks: it writes out what it has, which the client then has
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
        locks = LockOperations(self._view, self._handles)
        groups = (
            NameOperations(self._view, self._handles),
            AttributeOperations(self._view, self._handles),
            OpenOperations(self._view, self._handles, locks),
            DirectoryOperations(self._view, self._handles),
            locks,
        )
        self._operations: dict[int, Callable[[Header, Any], Steps | bytes]] = {
            opcode: next(getattr(group, name) for group in groups if hasattr(group, name))
            for opcode, name in HANDLED.items()
        }
        self._operations[Opcode.INIT] = self._init
        self._operations[Opcode.DESTROY] = lambda _header, _body: b""
        self._tasks: dict[int, _Task] = {}  # by ticket
        self._waiting: dict[int, _Task] = {}  # by the request's unique
        self._parked: dict[int, _Task] = {}  # of those that wait, what waits for locks to be given back
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
            return [*self._tells(), Answer(fuse_answers.success(header.unique, steps)), *self._unpark()]
        appends = isinstance(body, fuse_abi.Write) and bool(body.flags & os.O_APPEND)
        task = _Task(header.unique, header.opcode, steps, header.opcode in INTERRUPTIBLE and not appends)
        return [*self._go_on(task, None), *self._unpark()]

    def resume(self, ticket: int, result: abi.Result) -> list[Effect]:
        """The client's answer to an Ask, as `hostcall.check` let it pass."""
        if ticket == STANDARD_INPUT_TICKET:
            return self._read_input(self._input.receive(result, errno_of(result)))
        task = self._tasks.pop(ticket, None)
        if task is None:
            return []
        effects = self._undo(task, result) if task.answered else self._go_on(task, result)
        return [*effects, *self._unpark()]

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
            if isinstance(request, Park):
                self._parked[task.unique] = self._waiting[task.unique] = task
                return self._tells()
            self._tickets += 1
            task.ticket, task.request = self._tickets, request
            self._tasks[task.ticket] = self._waiting[task.unique] = task
            return [*self._tells(), Ask(task.ticket, request)]
        self._waiting.pop(task.unique, None)
        return [*self._tells(), Answer(answer)]

    def _unpark(self) -> list[Effect]:
        """Locks were given back: those that wait for some look again."""
        effects: list[Effect] = []
        while self._view.freed:
            self._view.freed = False
            parked = list(self._parked.values())
            self._parked.clear()
            for task in parked:
                effects += self._go_on(task, None)
        return effects

    def _give_up(self, task: _Task, number: int) -> Answer:
        """Answer a task now; its result will be undone when it comes."""
        del self._waiting[task.unique]
        task.answered = True
        if self._parked.pop(task.unique, None) is not None:
            task.steps.close()
        return Answer(fuse_answers.failure(task.unique, number))

    def _undo(self, task: _Task, result: abi.Result) -> list[Effect]:
        """The client did what nobody waits for any more: what it opened is closed."""
        task.steps.close()
        tells: list[Effect] = self._tells()
        if isinstance(task.request, abi.Open | abi.OpenUnnamed) and isinstance(result, abi.Attributes):
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
                if task is not None and (task.interruptible or unique in self._parked):
                    return [self._give_up(task, errno.EINTR), *self._unpark()]
                if (
                    task is not None
                    and isinstance(task.request, abi.Lock | abi.Flock)
                    and task.request.wait is not None
                ):
                    return [Tell(abi.StopWaiting(task.request.wait))]  # what becomes of the lock is the client's answer
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
