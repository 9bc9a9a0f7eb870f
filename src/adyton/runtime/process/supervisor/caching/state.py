"""What all parts of the cache work on: what is known, what is open, what is under way. See `cache`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from adyton.communicator.messages import Coherence
from adyton.hostcall import abi
from adyton.runtime.process.supervisor.caching.contents import Blocks
from adyton.runtime.process.supervisor.caching.names import File, Names, replaced, split, with_content_of
from adyton.runtime.process.supervisor.calls import Calls, Outcome, Pending

MAX_CHANGES = 1 << 16  # paths that are noted


@dataclass(slots=True, eq=False)
class Handle:
    """A file that the guest has open. `remote`: the client has it open, too, or soon will; `next`: where a sequential reader goes on.

    `snapshot`: all of its content when it was opened without the client; it was of `version` then, and the enclave had made `changes`.
    """

    number: int
    path: str
    file: File
    access: abi.OpenMode
    append: bool
    coherence: Coherence
    remote: bool
    snapshot: bytes | None = None
    version: int = 0
    changes: int = 0
    next: int = 0
    window: int = 0
    opening: Pending | None = None  # on the client, of what was opened without it


class State:
    """`coherence` of a path; `now` in seconds (monotonic), `wall` in nanoseconds since the epoch.

    `stale`: files, by identity, of whose attributes the kernel has to be told that they changed; `moved`: directories at which
    there may be another now: the same of all that is below.
    """

    def __init__(
        self, calls: Calls, coherence: Callable[[str], Coherence], now: Callable[[], float], wall: Callable[[], int]
    ) -> None:
        self.calls = calls
        self.coherence = coherence
        self.wall = wall
        self.names = Names(now, self.given_up, self.is_stale, self._dropped)
        self.blocks = Blocks()
        self.handles: dict[int, Handle] = {}
        self.aliases: dict[int, int] = {}  # the client's identity → the one that the file is known by here
        self.stale: dict[int, File] = {}
        self.moved: list[str] = []
        self.unsaid: abi.Failed | None = None  # what went wrong behind an answer, and no syncfs has said
        self.learning = 0  # requests under way from whose results something is learnt
        self.changes = 0
        self.changed_at: dict[str, int] = {}  # paths that changed while something was asked
        self._within: dict[str, int] = {}  # of these, directories of whose names nothing is told any more, no more

    def exclusive(self, path: str) -> bool:
        return self.coherence(path) == "exclusive"

    def failed_behind(self, outcome: Outcome) -> None:
        """Something that was answered already did not happen: the next syncfs says so, once."""
        self.unsaid = self.unsaid or (outcome if isinstance(outcome, abi.Failed) else abi.Failed("EIO"))

    def note(self, path: str) -> None:
        """What is on its way about the path may be older than what is known here."""
        if self.learning:
            self.changes += 1
            self.changed_at[path] = self.changes
            if len(self.changed_at) > MAX_CHANGES:
                self.changed_at = {"": self.changes}  # everything
                self._within.clear()
        elif self.changed_at:
            self.changed_at.clear()
            self._within.clear()

    def note_within(self, directory: str) -> None:
        """The same of all that is in the directory; of what that is itself, the one above it tells."""
        is_itself = self.changed_at.get(directory) == self._within.get(directory)
        self.note(directory)
        if is_itself and directory in self.changed_at:
            self._within[directory] = self.changes

    def send(self, request: abi.Request, learn: Callable[[Any, int], object]) -> Pending:
        """Ask something from which `learn(outcome, mark)` learns, whether or not anybody waits."""
        pending = self.calls.send(request, ordered=True)
        self.learning += 1
        mark = self.changes

        def came(outcome: Outcome) -> None:
            self.learning -= 1
            learn(outcome, mark)

        pending.after.append(came)
        return pending

    def change(self, request: abi.Request, *paths: str) -> Generator[Pending, Any, tuple[Any, list[str]]]:
        """Have the client change what is at these paths. What it said, and of which paths it said before that others changed them, too."""
        for path in paths:
            self.note(path)
        marks: list[int] = []
        outcome = yield self.send(request, lambda _outcome, mark: marks.append(mark))
        return outcome, [path for path in paths if self._is_contested(path, marks[0])]

    def _is_contested(self, path: str, mark: int) -> bool:
        """A directory that the enclave removes or moves has its promise ended, which is no other program's doing."""
        if path in self._within and self._within[path] == self.changed_at.get(path):
            path = split(path)[0]
        return self.is_older(path, mark)

    def is_older(self, path: str, mark: int) -> bool:
        """Whether what was asked at `mark` may not hold for the path."""
        if not self.changed_at:
            return False
        if self.changed_at.get("", 0) > mark:
            return True
        while True:  # the path, or a directory above it
            if self.changed_at.get(path, 0) > mark:
                return True
            if path == "/":
                return False
            path = split(path)[0]

    def given_up(self, directory: str) -> None:
        self.calls.send(abi.Unwatch(directory), ordered=True)

    def is_stale(self, file: File) -> None:
        self.stale[file.attributes.identity] = file

    def alias(self, file: File, identity: int) -> None:
        """The client has said its own identity of a file that had to have one before."""
        self.aliases[identity] = file.attributes.identity
        file.there = identity

    def _dropped(self, file: File) -> None:
        if file.there is not None and self.aliases.get(file.there) == file.attributes.identity:
            del self.aliases[file.there]  # another file may have it next

    def own(self, attributes: abi.Attributes) -> abi.Attributes:
        """Under the identity that the file is known by here."""
        known = self.aliases.get(attributes.identity)
        return attributes if known is None else replaced(attributes, identity=known)

    def close_opened(self, number: int, outcome: Outcome) -> None:
        if isinstance(outcome, abi.Attributes):
            self.calls.send(abi.Close(number), ordered=True)

    def ensure_remote_below(self, *paths: str) -> Generator[Pending, Any, None]:
        """Have the client open what was opened without it by these names, or below them, before they go."""
        for handle in list(self.handles.values()):
            if not handle.remote and any(handle.path == each or handle.path.startswith(each + "/") for each in paths):
                yield from self.ensure_remote(handle)

    def ensure_remote(self, handle: Handle) -> Generator[Pending, Any, abi.Failed | None]:
        """Have the client open what was opened without it; ESTALE if that is not the same file any more, or is not to be had."""
        if handle.remote:
            return None
        outcome = yield self._open_remotely(handle)
        if handle.remote:
            return None
        missing = isinstance(outcome, abi.Attributes) or outcome.errno in ("ENOENT", "ENOTDIR", "EISDIR", "EACCES")
        return abi.Failed("ESTALE") if missing else outcome

    def _open_remotely(self, handle: Handle) -> Pending:
        if handle.opening is None:
            request = abi.Open(handle.path, handle.number, handle.access)
            handle.opening = self.send(request, lambda outcome, mark: self._opened(handle, outcome, mark))
        return handle.opening

    def changed_by_others(self, path: str) -> None:
        """Who has the file at the path open without the client has it opened there, while it still has that name."""
        for handle in self.handles.values():
            if not handle.remote and handle.path == path:
                self._open_remotely(handle)

    def _opened(self, handle: Handle, outcome: Any, mark: int) -> None:
        handle.opening = None
        if not isinstance(outcome, abi.Attributes):
            return
        attributes = self.own(outcome)
        if handle.number not in self.handles or attributes.identity != handle.file.attributes.identity:
            self.calls.send(abi.Close(handle.number), ordered=True)
            return
        self.learn_open(attributes, mark)
        handle.remote = True

    def note_content(self, file: File) -> None:
        """The enclave changes the file's content: what is on its way may be older."""
        file.changes += 1
        if self.learning:
            self.changes += 1
            file.noted = self.changes

    def learn_open(self, attributes: abi.Attributes, mark: int, *, own: bool = False) -> File:
        """What the client says of an open file."""
        return self.names.learn_file(self.current(attributes, mark), own=own)

    def current(self, attributes: abi.Attributes, mark: int) -> abi.Attributes:
        """What was asked at `mark`, under the identity it has here, with what the enclave has changed since."""
        attributes = self.own(attributes)
        file = self.names.of(attributes.identity)
        if file is not None and file.noted > mark:
            return with_content_of(attributes, file.attributes)
        return attributes
