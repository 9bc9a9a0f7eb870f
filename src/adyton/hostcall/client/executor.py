"""Host calls, executed: the one place where what an enclave asks for happens on its client's machine.

    request ──► policy (may it?) ──► ConfinedTree (where is it, without links) ──► the operating system ──► result

The calls themselves are in `name_calls`, `attribute_calls`, `file_calls` and `lock_calls`; here they are chosen by the type of request, counted,
and their failures become answers. An error of the operating system is answered with its name; nothing is raised, but by registered
functions.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from adyton.allocator import have_freed_much
from adyton.hostcall import abi
from adyton.hostcall.client import paths
from adyton.hostcall.client.ahead_calls import UNCOUNTED, AheadCalls
from adyton.hostcall.client.attribute_calls import AttributeCalls
from adyton.hostcall.client.exit_log import HostCallLog, size_of
from adyton.hostcall.client.file_calls import FileCalls
from adyton.hostcall.client.functions import FunctionRaised, Functions, HostFunctions
from adyton.hostcall.client.handlers import Handlers
from adyton.hostcall.client.lock_calls import LockCalls
from adyton.hostcall.client.name_calls import NameCalls
from adyton.hostcall.client.net_policy import NetPolicy
from adyton.hostcall.client.open_files import OpenFiles
from adyton.hostcall.client.openat import ConfinedTree
from adyton.hostcall.client.places import Places, Refused
from adyton.hostcall.client.policy import Denied, HostCallPolicy
from adyton.hostcall.client.sealed_memory import SealedMemory
from adyton.hostcall.client.streams import StandardInput
from adyton.hostcall.client.watches import Watches
from adyton.hostcall.events import Event
from adyton.proto.values import Bulk

__all__ = ["Executor", "FunctionRaised"]

SHOWN_DENIALS = 4096  # lines, each for one path and right

# Requests that change files, and the fields that say which: a path (or, if it is a number, a handle).
CHANGING: Mapping[type[Any], tuple[str, ...]] = {
    abi.Open: ("handle",),
    abi.OpenUnnamed: ("handle",),
    abi.OpenAgain: ("handle",),
    abi.Write: ("handle",),
    abi.Allocate: ("handle",),
    abi.Copy: ("target",),
    abi.SetAttributes: ("path", "handle"),
    abi.SetExtended: ("path", "handle"),
    abi.RemoveExtended: ("path", "handle"),
    abi.MakeDirectory: ("path",),
    abi.Remove: ("path",),
    abi.Rename: ("source", "target"),
    abi.Link: ("source", "target"),
    abi.SymbolicLink: ("path",),
}

_ERRNO = {number: name for name in sorted(abi.ERRNO_NAMES) if (number := getattr(errno, name, None)) is not None}
_DENIED = abi.Failed("EACCES")  # by the policy; this very object


class Executor:
    """See the module. Thread-safe; `close` it, or use it in a `with`."""

    def __init__(
        self,
        policy: HostCallPolicy,
        functions: HostFunctions | Functions,
        *,
        denied: Callable[[str], None],
        output: Callable[[abi.Output], None],
        standard_input: StandardInput | None = None,
        logs: Sequence[HostCallLog] = (),
        walk: bool | None = None,
    ) -> None:
        """`denied` is given a line for each path and right that was refused, once; `output` what the enclave prints.

        `standard_input` is closed with this. `logs` are told of each host call.
        `walk`: reach files without openat2 (True), with it (False), as this machine allows (None).

        `changed`, which may be set, is called when there may be something to `take_changes`. `memory`, which may be set: what is
        remembered here of the enclave's sealed files.
        """
        have_freed_much()  # what files contain goes through here
        self._policy = policy
        self._functions = functions if isinstance(functions, HostFunctions) else HostFunctions(functions)
        self._tell = denied
        self._output = output
        self._input = standard_input
        self._logs = logs
        self._tree = ConfinedTree(walk=walk)
        self._files = OpenFiles()
        self._locks = LockCalls(self._files)
        self.changed: Callable[[], object] = lambda: None
        self.memory: SealedMemory | None = None
        self._watches = Watches(lambda: self.changed(), self._tree.enter_directory)  # noqa: PLW0108 - it may be set later
        self._places = places = Places(policy, self._tree)
        self._handlers: Handlers = {
            **NameCalls(places, self._files).handlers,
            **AttributeCalls(places, self._files).handlers,
            **FileCalls(places, self._files, self._locks).handlers,
            **self._locks.handlers,
            **AheadCalls(places, self._files, self._watches, self.execute).handlers,
            abi.Recall: ("recall", self._recall),
            abi.Remember: ("remember", self._remember),
            abi.ReadInput: ("input", self._read_input),
            abi.Call: ("call", self._call),
        }
        self._lock = threading.Lock()
        self._shown: set[Denied] = set()
        self._active = 0  # calls under way
        self._closed = False
        self.counts: Counter[str] = Counter()
        self.denied: Counter[str] = Counter()
        self.denials = 0  # all of them
        self.refused: Counter[str] = Counter()
        self.net = NetPolicy(policy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all that the enclave has open, as soon as nobody is at work on it. Whatever is asked afterwards fails with EIO."""
        with self._lock:
            self._closed = True
            idle = self._active == 0
        self._locks.stop()
        if self._input is not None:
            self._input.interrupt()
        if idle:
            self._release()

    def _release(self) -> None:
        """Closed, and no call is under way any more: no descriptor is in use."""
        self._locks.close()
        self._files.close_all()
        self._watches.close()
        if self._input is not None:
            self._input.close()
        self._tree.close()

    def write_output(self, output: abi.Output) -> None:
        """Hand on what the enclave wrote to its standard output or error; always allowed."""
        with self._lock:
            self.counts["output"] += 1
        started = time.monotonic()
        self._output(output)
        for log in self._logs:
            log.note("output", "ok", started, len(output.data))

    def note(self, name: str, outcome: str, started: float) -> None:
        """A host call that was answered elsewhere has ended."""
        with self._lock:
            self.counts[name] += 1
        for log in self._logs:
            log.note(name, outcome, started, 0)

    def report(self, name: str, denied: Denied) -> None:
        """A host call `name` was denied; a line says so, once."""
        self._report(name, denied)

    def refused_call(self, call: abi.RefusedCall) -> None:
        """Count a system call that the enclave's runtime refused; a line says so, once for each name."""
        with self._lock:
            if call.name not in self.refused and len(self.refused) >= SHOWN_DENIALS:
                return
            first = call.name not in self.refused
            self.refused[call.name] = call.count
        if first:
            name, code, reason = (paths.visible(each) for each in (call.name, call.errno, call.reason))
            with suppress(OSError, ValueError):  # standard error is closed
                self._tell(f"adyton: the enclave called {name}, which fails there with {code}: {reason}")

    def execute(self, request: abi.Request) -> abi.Result:
        """What the client answers. Only FunctionRaised leaves, and KeyboardInterrupt or SystemExit of a registered function."""
        name, handler = self._handlers[type(request)]
        with self._lock:
            if self._closed:
                return abi.Failed("EIO")
            if name != UNCOUNTED:
                self.counts[name] += 1
            self._active += 1
        started, outcome, result = time.monotonic(), "ok", None
        try:
            result = self._answer(name, handler, request)
            if isinstance(result, abi.Failed):
                outcome = "denied" if result is _DENIED else result.errno
            elif isinstance(result, abi.Found) and result.attributes is None:
                outcome = "ENOENT"
            return result
        except BaseException as error:
            outcome = f"raised {type(error.error if isinstance(error, FunctionRaised) else error).__name__}"
            raise
        finally:
            with self._lock:
                self._active -= 1
                last = self._closed and self._active == 0
            if last:
                self._release()
            if name != UNCOUNTED:
                for log in self._logs:
                    log.note(_logged(name, request), outcome, started, size_of(request) + size_of(result))

    def _answer(self, name: str, handler: Callable[[Any], abi.Result], request: abi.Request) -> abi.Result:
        try:
            self._watches_look(request)
            if isinstance(request, abi.Close) and self._watches.following:
                return self._close(request, handler)
            if type(request) not in CHANGING:
                return handler(request)
            with self._watches.changing():
                moved = self._moved(request)
                result = handler(request)
                self._note_change(request, moved)
                return result
        except Refused as refused:
            self._report(name, refused.denied)
            return _DENIED
        except OSError as error:
            if error.errno == errno.ELOOP:
                return abi.Failed("EACCES")
            return abi.Failed(_ERRNO.get(error.errno or 0, "EIO"))
        except (ValueError, OverflowError):  # a malformed path, a number beyond what the operating system takes
            return abi.Failed("EINVAL")
        except MemoryError:
            return abi.Failed("ENOMEM")

    # -- what others change -------------------------------------------------------------------------------------------

    def take_changes(self) -> list[tuple[str, str]]:
        """What other programs changed of what was promised to be told: see Watches.take."""
        return self._watches.take()

    def take_events(self) -> list[Event]:
        """What they did where the enclave follows it, as far as `take_changes` has seen: see Watches.take_events."""
        return self._watches.take_events()

    def _watches_look(self, request: Any) -> None:
        """The enclave learns what is there: a later change is news."""
        if isinstance(request, abi.Open | abi.List | abi.Stat) and self._watches.has_told:
            place = self._places.enterable(request.path)
            if isinstance(request, abi.List):
                self._watches.listed(place)
            else:
                self._watches.looked(place)

    def _close(self, request: abi.Close, handler: Callable[[Any], abi.Result]) -> abi.Result:
        """That a file which could be written to is closed is an event by itself."""
        with self._watches.changing():
            with suppress(OSError), self._files.using(request.handle) as file:
                self._watches.made(os.fstat(file.descriptor))
            return handler(request)

    def _moved(self, request: Any) -> tuple[int, int] | None:
        """Which file a Rename is to move, by device and inode; None if that is not known, or does not matter."""
        if self._watches.watching and isinstance(request, abi.Rename) and not request.exchange:
            with suppress(OSError, Refused):
                status = os.lstat(self._places.allowed(request.source, "write"))
                return status.st_dev, status.st_ino
        return None

    def _note_change(self, request: Any, moved: tuple[int, int] | None) -> None:
        """The change is the enclave's own, and no news to it. What others have done to the same name since is."""
        if not self._watches.watching or not _changes(request):
            return
        for field in CHANGING[type(request)]:
            which = getattr(request, field)
            with suppress(OSError, Refused):  # by a handle: its path may be gone, or another's
                if isinstance(which, str):
                    path = self._places.allowed(which, "write")
                    if isinstance(request, abi.Remove) or (field == "source" and _moves_away(request)):
                        self._watches.removed_at(path)
                    else:
                        self._watches.made_at(path, moved)
                elif which is not None:
                    with self._files.using(which) as file:
                        self._watches.made(os.fstat(file.descriptor))

        if isinstance(request, abi.Open):  # made, and learnt as it is
            with suppress(Refused):
                self._watches.looked(self._places.enterable(request.path))
        if isinstance(request, abi.Rename):
            for path in (request.source, request.target):
                self._watches.moved(self._places.allowed(path, "write"))

    # -- the policy ---------------------------------------------------------------------------------------------------

    def _report(self, name: str, denied: Denied) -> None:
        with self._lock:
            self.denied[name] += 1
            self.denials += 1
            if denied in self._shown or len(self._shown) > SHOWN_DENIALS:
                return
            self._shown.add(denied)
            line = str(denied)
            if len(self._shown) > SHOWN_DENIALS:
                line = f"denied: more than {SHOWN_DENIALS} paths; those that follow are counted, and not shown"
        with suppress(OSError, ValueError):  # standard error is closed
            self._tell(line)

    # -- standard input -----------------------------------------------------------------------------------------------

    def _read_input(self, request: abi.ReadInput) -> abi.Result:
        if self._input is None:
            raise OSError(errno.EBADF, "the client gave the enclave no standard input")
        return abi.Data(self._input.read(request.size))

    # -- sealed files -------------------------------------------------------------------------------------------------

    def _recall(self, request: abi.Recall) -> abi.Result:
        return abi.Data(self._memory().recall(request.owner))

    def _remember(self, request: abi.Remember) -> abi.Result:
        self._memory().remember(request.owner, request.known, request.note)
        return abi.Done()

    def _memory(self) -> SealedMemory:
        if self.memory is None:
            raise OSError(errno.EIO, "nothing is remembered here")
        return self.memory

    # -- functions ----------------------------------------------------------------------------------------------------

    def _call(self, request: abi.Call) -> abi.Result:
        denied = self._policy.allows_call(request.name)
        if denied is not None:
            raise Refused(denied)
        result = self._functions.call(request.name, request.arguments, request.bulk)
        return abi.Value(result.value, encoded=False) if isinstance(result, Bulk) else abi.Value(result)


def _moves_away(request: Any) -> bool:
    return isinstance(request, abi.Rename) and not request.exchange


def _changes(request: Any) -> bool:
    match request:
        case abi.Open(create=create, truncate=truncate):
            return create or truncate
        case abi.OpenAgain(truncate=truncate):
            return truncate
        case _:
            return True


def _logged(name: str, request: abi.Request) -> str:
    return f"{name} {paths.visible(request.name)}()" if isinstance(request, abi.Call) else name
