"""The client's files as the guest's operations see them: answered from what is known, sent on without waiting, or asked for.

    operation ──► abi request ──► Cache ──► known here?      its result, at once
                                       ──► may wait?        sent, in order, and the result that it will have
                                       ──► else             asked, together with what will be wanted next

How much of that is done is a matter of the path's coherence. `strict`: nothing, each request goes to the client and its result comes
back. `close-to-open`: reads ahead and writes behind; names and attributes hold while the client promises to tell of changes. A file
that was closed has reached the client, and one that is opened is what the client has. `exclusive`: other programs' locks are kept off
open files, so that making, cutting and removing names need not be waited for either.

What fails after it was answered is said once, by the next fsync or close of the file; for names by an fsync of their directory. Requests that change
something, and those that must see it, are ordered: the client carries them out one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from adyton.communicator.messages import Coherence
from adyton.hostcall import abi
from adyton.runtime.process.supervisor.caching.changing import Changing
from adyton.runtime.process.supervisor.caching.looking import Looking
from adyton.runtime.process.supervisor.caching.names import FOREVER
from adyton.runtime.process.supervisor.caching.opening import Opening
from adyton.runtime.process.supervisor.caching.reading import Reading
from adyton.runtime.process.supervisor.caching.state import State
from adyton.runtime.process.supervisor.caching.through import Through
from adyton.runtime.process.supervisor.caching.writing import Writing
from adyton.runtime.process.supervisor.calls import Cached, Calls


@dataclass(frozen=True, slots=True)
class Flush:
    """A descriptor of an open file is being closed: what was written must have arrived. The supervisor's own request."""

    handle: abi.Handle


# What changes nothing that others see, or is ordered by itself.
_LOOKS = frozenset(
    {abi.Stat, abi.List, abi.ReadLink, abi.Read, abi.Write, abi.Access, abi.GetExtended, abi.ListExtended, abi.Follow}
)

_OPENS = (abi.Open, abi.OpenUnnamed, abi.OpenAgain)


class Cache:
    """See the module.

    `coherence` of a path; `listable`: whether the client may be asked for the names in a directory; `now` in seconds (monotonic),
    `wall` in nanoseconds since the epoch.
    """

    def __init__(
        self,
        calls: Calls,
        coherence: Callable[[str], Coherence],
        listable: Callable[[str], bool],
        now: Callable[[], float],
        wall: Callable[[], int],
    ) -> None:
        self.state = State(calls, coherence, now, wall)
        self._looking = Looking(self.state, listable)
        self._writing = Writing(self.state)
        self.opening = Opening(self.state, self._writing)
        self._reading = Reading(self.state, self._writing)
        self._changing = Changing(self.state, self._writing)
        self._through = Through(self.state, self._looking, self._writing)
        self._by_path: dict[type[Any], Callable[[Any], Cached]] = {
            abi.Stat: self._looking.stat,
            abi.List: self._looking.list,
            abi.ReadLink: self._looking.read_link,
            abi.Open: self.opening.open,
            abi.OpenUnnamed: self.opening.open_unnamed,
            abi.OpenAgain: self.opening.open_again,
            abi.SetAttributes: lambda request: self._changing.set_attributes(None, request),
            abi.MakeDirectory: self._changing.make_directory,
            abi.Remove: self._changing.remove,
            abi.Rename: self._changing.rename,
            abi.Link: lambda request: self._changing.link(None, request),
            abi.SymbolicLink: self._changing.symbolic_link,
            abi.SetExtended: self._changing.extended,
            abi.RemoveExtended: self._changing.extended,
            abi.GetExtended: self._through.ordered,
            abi.ListExtended: self._through.ordered,
            abi.StatFileSystem: self._through.ordered,
            abi.SyncDirectory: self._changing.sync_directory,
        }

    def serve(self, request: abi.Request | Flush) -> Cached:
        """The result of a request of the guest's operations."""
        if type(request) not in _LOOKS:
            self._writing.push_all()  # what was held back is not overtaken by what comes after it
        number = getattr(request, "handle", None)
        handle = None if number is None else self.state.handles.get(number)
        if handle is not None:
            match request:
                case abi.Stat():
                    return self._through.stat_open(handle, request)
                case abi.Read():
                    return self._reading.read(handle, request)
                case abi.Write():
                    return self._writing.write(handle, request)
                case abi.Sync():
                    return self._writing.sync(handle, request)
                case Flush():
                    return self._writing.flush(handle)
                case abi.Close():
                    return self.opening.close(handle)
                case abi.Lock() | abi.Flock():
                    return self._through.lock(handle, request)
                case abi.SetAttributes():
                    return self._changing.set_attributes(handle, request)
                case abi.Link():
                    return self._changing.link(handle, request)
                case _:
                    return self._through.through(handle, request)
        match request:
            case Flush():
                return _done()
            case abi.SyncAll():
                return self._writing.sync_all(request)
            case abi.Follow():
                return self._plain(request, ordered=True)
            case abi.Copy(source, _, target) if source in self.state.handles and target in self.state.handles:
                return self._through.copy(self.state.handles[source], self.state.handles[target], request)
            case (
                abi.Stat(path)
                | abi.List(path)
                | abi.ReadLink(path)
                | abi.Open(path)
                | abi.OpenUnnamed(path)
                | abi.OpenAgain(path)
            ) if (number is None or isinstance(request, _OPENS)) and self._caches(path):
                return self._by_path[type(request)](request)
            case (
                abi.SetAttributes(path)
                | abi.MakeDirectory(path)
                | abi.Remove(path)
                | abi.Rename(path)
                | abi.Link(path)
                | abi.SymbolicLink(path)
                | abi.SetExtended(path)
                | abi.RemoveExtended(path)
                | abi.GetExtended(path)
                | abi.ListExtended(path)
                | abi.StatFileSystem(path)
                | abi.SyncDirectory(path)
            ) if number is None and self._caches(path):
                return self._by_path[type(request)](request)
            case _:
                return self._plain(request)

    def read_here(self, number: int, offset: int, size: int) -> tuple[bytes | memoryview, ...] | None:
        """What `serve` gives for a Read of what is here, in parts, without making a request of it. None: it must wait, or is not cached."""
        handle = self.state.handles.get(number)
        if handle is None or self.state.calls.room() is not None:
            return None
        return self._reading.here(handle, offset, size)

    def write_behind(self, number: int, offset: int, data: bytes) -> bool:
        """What `serve` does with a Write that need not wait, without making a request of it. False: it must wait, or is not cached."""
        handle = self.state.handles.get(number)
        if handle is None or not self._writing.has_room(len(data)) or self.state.calls.room() is not None:
            return False
        self._writing.put(handle, offset, data)
        return True

    @property
    def holds(self) -> bool:
        """Whether something that was written is held back, for more of it may come."""
        return self._writing.holds

    def push(self) -> None:
        """Send what was written, without waiting for more of it."""
        self._writing.push_all()

    def tell(self, request: abi.Request) -> None:
        """A request for whose result nobody waits: a Close."""
        if isinstance(request, abi.Close) and (handle := self.state.handles.pop(request.handle, None)) is not None:
            self.opening.closed(handle)
        else:
            self.state.calls.send(request, ordered=True)

    def _caches(self, path: str) -> bool:
        return self.state.coherence(path) != "strict"

    def _plain(self, request: abi.Request, *, ordered: bool = False) -> Cached:
        pending = self.state.calls.send(request, ordered=ordered)
        try:
            result = yield pending
        except GeneratorExit:  # nobody waits any more: what it opens is closed
            if isinstance(request, _OPENS):
                pending.after.append(lambda outcome: self.state.close_opened(request.handle, outcome))
            raise
        return result  # type: ignore[no-any-return]

    def state_of_names(self, directory: str) -> object:
        """What is another one as soon as the names in a client's directory may be others; None where that is not told."""
        return self.state.names.state(directory) if self._caches(directory) else None

    def attributes_last(self, identity: int) -> bool:
        """Whether the kernel may keep a file's attributes until it is told that they changed."""
        file = self.state.names.of(identity)
        return (
            file is not None
            and file.until == FOREVER
            and not file.contents.busy
            and file.attributes.kind != "directory"
        )

    def keeps_content(self, identity: int) -> bool:
        """Whether what is read of a file is kept here, in blocks of contents.BLOCK bytes."""
        return self.state.names.of(identity) is not None

    def name_lasts(self, path: str, *, directory: bool) -> bool:
        """Whether the client tells when something else is at the path, and that is soon enough."""
        return (directory or self._caches(path)) and self.state.names.is_covered(path)

    def is_still_at(self, path: str, identity: int) -> bool:
        """Whether it is known that this file is at the path, whatever its attributes are by now."""
        file = self.state.names.at(path)
        return file is not None and file.attributes.identity == identity and self.state.names.is_covered(path)

    def changed(self, names: Iterable[tuple[str, str]]) -> None:
        """The client keeps its promise: these (directory, name) were changed by others. A name "": all, and the promise ends."""
        for directory, name in names:
            if name:
                path = directory.rstrip("/") + "/" + name
                self.state.note(path)
                file = self.state.names.unknown(path)
                if file is not None and file.attributes.kind == "directory":
                    self.state.names.forget_below(path)
                    self.state.moved.append(path)
                elif file is not None:
                    self._writing.changed_by_others(file)
                self.state.changed_by_others(path)
            else:
                self.state.note_within(directory)
                for file in self.state.names.forget_folder(directory):
                    self._writing.changed_by_others(file)
                self.state.names.forget_below(directory)
                self.state.moved.append(directory)
            itself = self.state.names.at(directory)
            if itself is not None:
                self.state.names.set_until(itself, 0.0)


def _done() -> Cached:
    yield from ()
    return abi.Done()
