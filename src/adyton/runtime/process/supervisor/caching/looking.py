"""Looking at names: attributes, lists, links. See `cache`.

The first look at a name asks for all names of its directory as well, and that changes be told; from then on the client is not asked.
What is on its way while the client tells of a change, or while the enclave changes something, may be older than that: it is not learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from adyton.hostcall import abi
from adyton.hostcall.check import Checked
from adyton.runtime.process.supervisor.caching.names import FOREVER, File, split, with_content_of
from adyton.runtime.process.supervisor.caching.state import State
from adyton.runtime.process.supervisor.calls import Cached, Outcome, Pending

ATTEMPTS = 4  # at a name that others change while it is looked at


class Looking:
    """See the module. `listable`: whether the client may be asked for the names in a directory."""

    def __init__(self, state: State, listable: Callable[[str], bool]) -> None:
        self._state = state
        self._listable = listable
        self._asked: dict[tuple[str, str], tuple[Pending, int]] = {}  # looks and surveys under way, see _ask

    def stat(self, request: abi.Stat) -> Cached:
        path = request.path
        if request.birth:
            return (yield from self.stat_birth(request))
        known, file = self._state.names.known(path)
        if not known:
            found = yield from self._look(path)
            if isinstance(found, abi.Failed):
                return found
            file = found
        return abi.Failed("ENOENT") if file is None else file.attributes

    def stat_birth(self, request: abi.Stat) -> Cached:
        """The time when a file was made is asked for each time: nobody asks often."""
        result = yield self._state.calls.send(request, ordered=True)
        if isinstance(result, abi.Attributes):
            attributes = self._state.own(result)
            file = self._state.names.of(attributes.identity)
            if file is not None and file.contents.busy:
                attributes = with_content_of(attributes, file.attributes)
            return attributes
        return result  # type: ignore[no-any-return]

    def _look(self, path: str) -> Generator[Pending, Any, File | abi.Failed | None]:
        """Ask what is at the path; with it, what else is in its directory."""
        directory, name = split(path)
        folder = self._state.names.folder(directory)
        if name != "." and not folder.surveyed and self._listable(directory):
            yield from self._survey(directory, 0)
            known, file = self._state.names.known(path)
            if known:
                return file
        for _ in range(ATTEMPTS):
            asked, mark = self._asked.get((directory, name), (None, 0))
            if asked is None:
                watch: list[Any] = [] if name == "." or folder.covers(name) else [abi.Watch(directory, name)]
                compound = abi.Compound([*watch, abi.Look(path)], through=True)
                asked, mark = self._ask((directory, name), compound, self._looked)
            results = yield asked
            found = results.results[-1] if isinstance(results, Checked) else results
            if not isinstance(found, abi.Found):
                return found if isinstance(found, abi.Failed) else abi.Failed("EIO")
            attributes = None if found.attributes is None else self._state.own(found.attributes)
            if not self._state.is_older(path, mark):
                break
        else:
            return None if attributes is None else File(attributes, 0)  # as it was while it was asked; not to be kept
        if attributes is None:
            return None
        return self._state.names.at(path) or self._state.names.learn(path, attributes)

    def _ask(
        self,
        key: tuple[str, str],
        request: abi.Compound,
        learn: Callable[[tuple[str, str], abi.Compound, Any, int], None],
    ) -> tuple[Pending, int]:
        """Ask once for all who want to know the same; what is under way, and the mark of when it was asked."""

        def came(outcome: Any, mark: int) -> None:
            del self._asked[key]
            learn(key, request, outcome, mark)

        mark = self._state.changes
        self._asked[key] = self._state.send(request, came), mark
        return self._asked[key]

    def _looked(self, key: tuple[str, str], request: abi.Compound, outcome: Outcome, mark: int) -> None:
        directory, name = key
        path = directory if name == "." else directory.rstrip("/") + "/" + name
        if not isinstance(outcome, Checked):
            return
        found = outcome.results[-1]
        if isinstance(request.requests[0], abi.Watch) and isinstance(outcome.results[0], abi.Done):
            self._state.names.promised(directory, name)
        if not isinstance(found, abi.Found) or self._state.is_older(path, mark):
            return
        if found.attributes is None:
            self._state.names.absent(path)
        else:
            self._state.names.learn(path, self._state.current(found.attributes, mark))

    def _survey(self, directory: str, listing: int) -> Generator[Pending, Any, abi.Result]:
        """Ask for the names in a directory, and that changes be told."""
        key = (directory, "")
        asked, _ = self._asked.get(key, (None, 0))
        if asked is None:
            requests: list[Any] = [abi.Watch(directory), abi.List(directory, 0, listing)]
            asked, _ = self._ask(key, abi.Compound(requests, through=True), self._surveyed)
        outcome = yield asked
        if isinstance(outcome, Checked) and len(outcome.results) == 2:
            return self._known_here(outcome.results[1])  # type: ignore[no-any-return]
        return abi.Failed("EIO")

    def _known_here(self, result: Any) -> Any:
        """Entries under the identities that their files are known by here."""
        if not self._state.aliases or not isinstance(result, abi.Entries):
            return result
        return abi.Entries(
            [abi.Entry(each.name, self._state.own(each.attributes)) for each in result.entries], result.next
        )

    def _surveyed(self, key: tuple[str, str], _request: object, outcome: Outcome, mark: int) -> None:
        directory = key[0]
        if not isinstance(outcome, Checked) or not isinstance(outcome.results[-1], abi.Entries):
            return
        folder = self._state.names.folder(directory)
        folder.surveyed = True
        if isinstance(outcome.results[0], abi.Done):
            self._state.names.promised(directory)
        self._learn_entries(directory, outcome.results[-1], 0, mark)

    def _learn_entries(self, directory: str, entries: abi.Entries, cookie: int, mark: int) -> None:
        folder = self._state.names.folder(directory)
        top = directory.rstrip("/")
        if not self._state.is_older(directory, mark) or directory not in self._state.changed_at:
            folder.complete = folder.watched
        for entry in entries.entries:
            path = f"{top}/{entry.name}"
            if not self._state.is_older(path, mark):
                self._state.names.learn(path, self._state.current(entry.attributes, mark))
            elif entry.name not in folder.names:
                folder.complete = False
        if cookie == 0:
            listed = {entry.name for entry in entries.entries}
            if not entries.next:
                for name in [name for name, file in folder.names.items() if file is not None and name not in listed]:
                    if not self._state.is_older(f"{top}/{name}", mark):
                        self._state.names.absent(f"{top}/{name}")
            folder.progress = 0
        if folder.progress != cookie:
            folder.complete = False
        folder.progress = entries.next
        if entries.next:
            folder.complete = False

    def list(self, request: abi.List) -> Cached:
        folder = self._state.names.folder(request.path)
        folder.listed = True
        if request.cookie == 0:
            if folder.watched and folder.complete:
                found = [(name, file) for name, file in folder.names.items() if file is not None]
                return abi.Entries([abi.Entry(name, file.attributes) for name, file in found], 0)
            return (yield from self._survey(request.path, request.listing))

        def came(result: Any, mark: int) -> None:
            if isinstance(result, abi.Entries):
                self._learn_entries(request.path, result, request.cookie, mark)

        return self._known_here((yield self._state.send(request, came)))  # type: ignore[no-any-return]

    def read_link(self, request: abi.ReadLink) -> Cached:
        known, file = self._state.names.known(request.path)
        if known and file is not None and file.target is not None and file.until == FOREVER:
            return file.target
        result = yield self._state.calls.send(request, ordered=True)
        if isinstance(result, abi.Target) and self._state.names.at(request.path) is file and file is not None:
            file.target = result
        return result  # type: ignore[no-any-return]
