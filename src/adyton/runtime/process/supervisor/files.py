"""The guest's file system: the kernel's requests in, answers and host calls out. Sans-IO.

`FileServer` takes each message that is read from /dev/fuse and returns effects in the order in which they are to be carried out:
an Answer is written to /dev/fuse; an Ask goes to the client, whose checked result comes back by `resume`. Requests are served side by
side: one that waits for the client does not hold up another. What the client is asked goes through a `caching.cache`, which knows much already.

What each operation does is in `names`, `attributes`, `opened`, `directories` and `locks`; `HANDLED`, `REFUSED` and `SILENT` are the whole truth about which there are.
"""

from __future__ import annotations

import errno
import mmap
import os
import posixpath
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from adyton.communicator.messages import Coherence
from adyton.hostcall import abi
from adyton.hostcall.check import Checked
from adyton.hostcall.events import Happened, possible
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.attributes import AttributeOperations
from adyton.runtime.process.supervisor.caching.cache import Cache, Flush
from adyton.runtime.process.supervisor.calls import Ask, Calls, Outcome, OwnPending, Pending
from adyton.runtime.process.supervisor.directories import DirectoryOperations
from adyton.runtime.process.supervisor.fuse_abi import FileError, Header, InitFlag, MalformedRequestError, Opcode
from adyton.runtime.process.supervisor.handles import STANDARD_INPUT_HANDLE, Handles
from adyton.runtime.process.supervisor.layout import Layout, Place
from adyton.runtime.process.supervisor.leases import Leases
from adyton.runtime.process.supervisor.locks import LockOperations
from adyton.runtime.process.supervisor.names import NameOperations
from adyton.runtime.process.supervisor.opened import OpenOperations
from adyton.runtime.process.supervisor.sealed_place import SealedPlace
from adyton.runtime.process.supervisor.sealed_storage import Disk
from adyton.runtime.process.supervisor.standard_input import Answered, StandardInput
from adyton.runtime.process.supervisor.tree import Node
from adyton.runtime.process.supervisor.view import Park, Part, Steps, View, errno_of
from adyton.runtime.process.supervisor.waits import Waits
from adyton.runtime.process.supervisor.wanted import Wanted
from adyton.runtime.process.supervisor.watching.happenings import After, Happenings
from adyton.runtime.process.supervisor.watching.walk import Walking
from adyton.runtime.process.supervisor.watching.watching import Watching
from adyton.sealed_files.storage import Request as StorageRequest
from adyton.sealed_files.storage import StorageError

PRIVATE_CAPACITY = 64 << 20  # bytes of private files
MAX_BEGUN = 1024  # operations under way that the kernel did not ask for
MAX_BACKGROUND = 64  # of the kernel's read-ahead and mapped-page requests at a time
_CAPABILITIES = (
    InitFlag.ASYNC_READ
    | InitFlag.AUTO_INVAL_DATA  # what is cached of a file goes when its size or time of modification is another
    | InitFlag.POSIX_LOCKS
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.DONT_MASK  # the umask is said beside the mode: where the client's directory has a default ACL, it does not hold
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
    Opcode.SYNCFS: errno.ENOSYS,  # the kernel does not ask this kind of mount: the call is emulated
}

SILENT: frozenset[Opcode] = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY})

# What a signal to the waiting thread may end with EINTR: what POSIX lets fail so, and what may be done once more without harm
# (a C library or Python does so unasked). All else takes its time: an exclusive create that had happened after all would then fail;
# and an `fsync` that fails is taken for the disk's error, by SQLite say, since no local file system's is ended by a signal.
INTERRUPTIBLE: frozenset[Opcode] = frozenset({Opcode.OPEN, Opcode.READ, Opcode.WRITE})
# ... once it has waited so much longer: else a program whose signals come faster than its client answers would begin anew for ever.
PATIENCE_SECONDS = 1.0


STANDARD_INPUT_TICKET = 0


class Answer(NamedTuple):
    """To be written to /dev/fuse in one write; ENOENT then means that nobody waits any more."""

    parts: tuple[Part, ...]

    @classmethod
    def success(cls, unique: int, *body: Part) -> Answer:
        """Of the request of that number. The body is not copied: it may be large."""
        return cls((fuse_answers.success(unique, sum(map(len, body))), *(each for each in body if each)))

    @classmethod
    def failure(cls, unique: int, number: int) -> Answer:
        """The same with an errno."""
        return cls((fuse_answers.failure(unique, number),))


class Notice(NamedTuple):
    """To be written to /dev/fuse, unasked; ENOENT then means that the kernel has forgotten what it is about."""

    parts: tuple[Part, ...]


Effect = Answer | Ask | Notice


@dataclass(slots=True, eq=False)
class _Task:
    """An operation that waits. `answered`: the kernel has its answer, and nobody goes on with it. `request`: what it asked for last.

    `after`: is called when it has succeeded; `done`: has its result or its errno, in the place of the kernel.
    """

    unique: int
    operation: Generator[Any, Any, Any]
    interruptible: bool
    after: After | None = None
    done: Callable[[Any, int], None] | None = None
    steps: Generator[Pending, Any, Any] | None = None
    request: abi.Request | Flush | Park | StorageRequest | None = None
    answered: bool = False
    waited: bool = False  # for the client


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
        clock: Callable[[], float] = time.monotonic,
        capacity: int = PRIVATE_CAPACITY,
    ) -> None:
        self._clock = clock
        self._leases = Leases(clock)
        self._view = View(uid, gid, wanted, now, self._leases, capacity)
        self._handles = Handles()
        self._calls = Calls(STANDARD_INPUT_TICKET + 1)
        self._coherence: Callable[[str], Coherence] = lambda _path: "strict"
        coherence = lambda path: self._coherence(path)  # noqa: E731, PLW0108 - it is set with the layout
        self.cache = self._view.cache = Cache(self._calls, coherence, self._view.is_listable, clock, now)
        self.waits = Waits()
        locks = LockOperations(self._view, self._handles, self.cache)
        names = NameOperations(self._view, self._handles)
        self.watching = Watching(self._view.tree, lambda path: self._view.place(path) is Place.CLIENT)
        self.walking = Walking(self._view, names)
        self._happenings = Happenings(self._view.tree, self._handles, self.watching)
        self._begun = 0  # operations that the kernel did not ask for, ever
        self._beginning = 0  # now
        groups = (
            names,
            AttributeOperations(self._view, self._handles),
            OpenOperations(self._view, self._handles, locks, self.cache, self.waits),
            DirectoryOperations(self._view, self._handles),
            locks,
        )
        self._operations: dict[int, Callable[[Header, Any], Steps | bytes]] = {
            opcode: next(getattr(group, name) for group in groups if hasattr(group, name))
            for opcode, name in HANDLED.items()
        }
        self._operations[Opcode.INIT] = self._init
        self._operations[Opcode.DESTROY] = lambda _header, _body: b""
        self._waiting: dict[int, _Task] = {}  # by the request's unique
        self._ready: deque[tuple[_Task, Any]] = deque()  # what they waited for is there
        self._parked: list[Pending] = []  # of those that wait for locks to be given back
        self._interrupted: deque[tuple[float, int]] = deque()  # until when, and the request's unique
        self._input = StandardInput()
        self._disk: Disk | None = None  # of the sealed files
        self.believed = 0.0  # seconds after `changed` for which the kernel may still believe what was before

    def set_layout(self, layout: Layout, coherence: Callable[[str], Coherence] | None = None) -> None:
        """The client's load has arrived: from now on the client is asked. Only once; before, the enclave's own directories exist.

        `coherence` of each path of the client's; None: strict, but with the kernel's cache.
        """
        self._view.set_layout(layout)
        if coherence is not None:
            self._coherence = coherence
            self._view.direct = True

    def open_standard_input(self) -> None:
        """The client has a standard input for the guest; otherwise that is at its end."""
        self._input.open()

    def open_sealed(self, place: SealedPlace, say: Callable[[str], None], done: Callable[[int], None]) -> list[Effect]:
        """Open sealed files, and then show them; `done` is given an errno, or 0. `say` is told what is wrong with them, then and later."""
        sealed, self._disk = place.made(self._view, self._calls, self._handles.reserve, say)

        def opened(_result: object, number: int) -> None:
            if not number:
                self._view.show_sealed(sealed)
            done(number)

        return self.begin(sealed.load(), opened)

    def no_sealed(self, say: Callable[[str], None], why: str = "") -> None:
        """There are none; who looks for them is told so, and `why`."""
        self._view.say, self._view.why_unsealed = say, why

    # -- requests and results ---------------------------------------------------------------------------------------

    def receive(self, message: bytes) -> list[Effect]:
        """One message that was read from /dev/fuse."""
        try:
            header, body = fuse_abi.decode(message)
        except MalformedRequestError as error:
            return [Answer.failure(error.unique, errno.EINVAL)] if error.unique else []
        if header.opcode in SILENT:
            return self._silent(header, body)
        if isinstance(body, fuse_abi.Read) and header.opcode == Opcode.READ and body.handle == STANDARD_INPUT_HANDLE:
            return self._read_input(self._input.read(header.unique, body.size))
        operation = self._operations.get(header.opcode)
        if operation is None:
            refusal = REFUSED.get(header.opcode, errno.ENOSYS)  # type: ignore[call-overload]
            return [Answer.failure(header.unique, refusal)]
        after = self._happenings.begins(header, body)
        try:
            steps = operation(header, body)
            request = None if isinstance(steps, bytes | tuple) else next(steps)
        except StopIteration as end:
            steps, request = end.value, None  # as most: nobody had to be asked
        except FileError as error:
            return [*self._run(), Answer.failure(header.unique, error.number)]
        if isinstance(steps, bytes | tuple):
            body = steps if isinstance(steps, tuple) else (steps,)
            if after is not None:
                after(b"".join(body))
            return [*self._run(), Answer.success(header.unique, *body)]
        appends = isinstance(body, fuse_abi.Write) and bool(body.flags & os.O_APPEND)
        task = _Task(header.unique, steps, header.opcode in INTERRUPTIBLE and not appends, after)
        return self._start(task, request)

    def _start(self, task: _Task, request: Any = None) -> list[Effect]:
        """`request`: the first, if the operation has made it already."""
        task.steps = self._cached(task, request)
        self._ready.append((task, None))
        return self._run()

    def begin(self, steps: Generator[Any, Any, Any], done: Callable[[Any, int], None]) -> list[Effect]:
        """Carry out an operation that the kernel did not ask for; `done` is given its result, or None and an errno: ENOMEM for too many.

        A program that is interrupted in a call may make it again, so that they are more than its threads.
        """
        if self._beginning >= MAX_BEGUN:
            done(None, errno.ENOMEM)
            return []
        self._beginning += 1
        self._begun -= 1
        return self._start(_Task(self._begun, steps, interruptible=False, done=done))

    def resume(self, ticket: int, result: Outcome) -> list[Effect]:
        """The client's answer to an Ask, as `hostcall.check` let it pass."""
        if ticket == STANDARD_INPUT_TICKET:
            assert not isinstance(result, Checked)
            self.waits.ended(self._input)
            return self._read_input(self._input.receive(result, errno_of(result)))
        self._calls.complete(ticket, result)
        return self._run()

    def changed(self, changes: abi.Changed) -> list[Effect]:
        """Other programs on the client changed what it promised to tell of; then see `believed`."""
        self.believed = self._leases.left(lambda: self._named(changes))
        self.cache.changed(changes.names)
        return self._run()

    def happened(self, happened: Happened) -> list[Effect]:
        """Other programs on the client did something where an enclave's program follows it."""
        told = possible(happened)
        names = [(each.directory, each.name) for each in told if each.name]
        self.cache.changed([each for each in names if not self.cache.state.names.is_covered(posixpath.join(*each))])
        self.watching.happened(told)
        return self._run()

    def release(self, node: Node) -> None:
        """What `walking` found need not be kept for that any more."""
        self._view.tree.forget(node.id, 1)

    def flush(self) -> list[Effect]:
        """Send what was left to be sent, and go on with what was waited for."""
        return self._run()

    def told(self) -> None:
        """All effects were carried out."""
        self._leases.told()

    def _named(self, changes: abi.Changed) -> Iterator[Node]:
        """The nodes at the names that are said to have changed, and all that is below them."""
        paths = (posixpath.join(directory, name) if name else directory for directory, name in changes.names)
        waiting = [node for path in paths if (node := self._view.tree.at(path)) is not None]
        seen: set[int] = set()
        while waiting:
            node = waiting.pop()
            if node.id not in seen:
                seen.add(node.id)
                waiting += node.children.values()
                yield node

    @property
    def holds(self) -> bool:
        """Whether something that was written is held back, for more of it may come; to be pushed in a moment."""
        return self.cache.holds

    def push(self) -> list[Effect]:
        """Send what is held back."""
        self.cache.push()
        return list(self._calls.take())

    @property
    def patience(self) -> float | None:
        """Seconds after which `lose_patience` is to be called; None if no signal came for a program that waits."""
        return max(0.0, self._interrupted[0][0] - self._clock()) if self._interrupted else None

    def lose_patience(self) -> list[Effect]:
        """End what was interrupted, and has waited long enough since."""
        answers: list[Effect] = []
        while self._interrupted and self._interrupted[0][0] <= self._clock():
            task = self._waiting.get(self._interrupted.popleft()[1])
            if task is not None:
                answers += self._give_up(task, errno.EINTR)
        return [*self._run(), *answers]

    def settle(self, *, last: bool = False) -> tuple[list[Effect], Pending | None]:
        """Let all that the program did reach the client, and the disk of its sealed files; what to wait for until it has: None if it has.

        `last`: there are no sealed files from then on.
        """
        effects, pending = self.push(), self._calls.settled()
        sealed = self._view.sealed
        if sealed is None or not (sealed.is_changed or last):
            return effects, pending
        both = Pending() if pending is not None else OwnPending()  # whom the commit waits for, it says

        def committed(_result: object, number: int) -> None:
            if number:
                sealed.not_kept(number)
            if pending is None or pending.result is not None:
                both.finish(abi.Done())
            else:
                pending.after.append(lambda _: both.finish(abi.Done()))

        effects += self.begin(sealed.end() if last else sealed.sync(), committed)
        return effects, both if both.result is None else None

    def abort(self) -> list[Effect]:
        """Answer all that is outstanding with EIO."""
        answers = [each for task in list(self._waiting.values()) for each in self._give_up(task, errno.EIO)]
        return [*self._run(), *answers, *self._read_input(self._input.abort())]

    def _read_input(self, answered: list[Answered]) -> list[Effect]:
        effects: list[Effect] = [
            Answer.failure(each.unique, each.errno) if each.errno else Answer.success(each.unique, each.data)
            for each in answered
        ]
        request = self._input.wanted()
        if self._input.is_waited_for:
            self.waits.began(self._input, "ReadInput")
        else:
            self.waits.ended(self._input)
        return effects if request is None else [*effects, Ask(STANDARD_INPUT_TICKET, request)]

    def _cached(self, task: _Task, request: Any) -> Generator[Pending, Any, bytes]:
        """An operation whose requests go through the cache."""
        try:
            if request is None:
                request = next(task.operation)
            while True:
                task.request = request
                if isinstance(request, Park):
                    pending = Pending()
                    self._parked.append(pending)
                    result = yield pending
                elif isinstance(request, StorageRequest):
                    assert self._disk is not None
                    try:
                        result = yield from self._disk.serve(request)
                    except StorageError as error:
                        request = task.operation.throw(error)
                        continue
                else:
                    while (room := self._calls.room()) is not None:
                        yield room
                    result = yield from self.cache.serve(request)
                request = task.operation.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            task.operation.close()

    def _run(self) -> list[Effect]:
        """Go on with each operation until it waits for something that is not there yet, or has its answer."""
        answers: list[Effect] = []
        self._tell()
        while self._ready:
            task, result = self._ready.popleft()
            if task.answered:
                continue
            assert task.steps is not None
            try:
                pending = task.steps.send(result)
                while pending.result is not None:
                    pending = task.steps.send(pending.result)
            except StopIteration as end:
                if task.after is not None:
                    task.after(end.value)
                answers += self._answered(task, end.value)
            except FileError as error:
                answers += self._answered(task, None, error.number)
            else:
                self._waiting[task.unique] = task
                if not isinstance(task.request, Park) and not isinstance(pending, OwnPending):
                    task.waited = True
                    self.waits.began(task.unique, type(task.request).__name__)
                pending.after.append(self._goes_on(task))
            self._tell()
        follows = self.watching.to_send
        while follows and self._calls.room() is None:
            self._calls.send(follows.pop(next(iter(follows))), ordered=True)
        return [*self._calls.take(), *self._notices(), *answers]

    def _notices(self) -> list[Effect]:
        """What the kernel must not believe any more."""
        known, tree = self.cache.state, self._view.tree
        if not known.stale and not known.moved:
            return []
        nodes: dict[int, None] = {}
        for file in known.stale.values():
            node = tree.of_file(file.attributes.identity, file.attributes.kind)
            if node is not None and node.lookups:
                nodes[node.id] = None
        below = [node for path in known.moved if (node := tree.at(path)) is not None]
        while below:
            node = below.pop()
            below += node.children.values()
            if node.lookups and not node.own:
                nodes[node.id] = None
        known.stale.clear()
        known.moved.clear()
        return [Notice((fuse_answers.stale_attributes(node),)) for node in nodes]

    def _goes_on(self, task: _Task) -> Callable[[Outcome], None]:
        def goes_on(outcome: Outcome) -> None:
            self.waits.ended(task.unique)
            self._ready.append((task, outcome))

        return goes_on

    def _answered(self, task: _Task, value: Any, number: int = 0) -> list[Effect]:
        self._waiting.pop(task.unique, None)
        self.waits.ended(task.unique)
        if task.waited:
            self.waits.miss()
        elif task.request is not None and not isinstance(task.request, Park | StorageRequest):
            self.waits.hit()
        task.answered = True
        if task.done is not None:
            self._beginning -= 1
            task.done(value, number)
            return []
        if number:
            return [Answer.failure(task.unique, number)]
        return [Answer.success(task.unique, value)]

    def _give_up(self, task: _Task, number: int) -> list[Effect]:
        """Answer a task now, and undo what it began."""
        assert task.steps is not None
        task.steps.close()
        return self._answered(task, None, number)

    def _tell(self) -> None:
        """What operations leave behind: requests that nobody waits for, and locks that were given back, which others wait for."""
        tells, self._view.tells = self._view.tells, []
        for request in tells:
            self.cache.tell(request)
        if self._view.freed:
            self._view.freed = False
            parked, self._parked = self._parked, []
            for pending in parked:
                pending.finish(abi.Done())

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
                if task is not None and task.interruptible and not isinstance(task.request, StorageRequest):
                    self._interrupted.append((self._clock() + PATIENCE_SECONDS, unique))
                    return []
                if task is not None and isinstance(task.request, Park):
                    answer = self._give_up(task, errno.EINTR)
                    return [*self._run(), *answer]
                if (
                    task is not None
                    and isinstance(task.request, abi.Lock | abi.Flock)
                    and task.request.wait is not None
                ):
                    self._calls.send(
                        abi.StopWaiting(task.request.wait)
                    )  # what becomes of the lock is the client's answer
                    return list(self._calls.take())
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
