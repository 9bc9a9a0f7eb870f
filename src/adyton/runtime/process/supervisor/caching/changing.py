"""Changing attributes and names. See `cache`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from adyton.hostcall import abi
from adyton.runtime.process.supervisor.caching.names import File, replaced, split
from adyton.runtime.process.supervisor.caching.state import MAX_CHANGES, Handle, State
from adyton.runtime.process.supervisor.caching.writing import Writing
from adyton.runtime.process.supervisor.calls import Cached, Outcome


class Changing:
    """See the module."""

    def __init__(self, state: State, writing: Writing) -> None:
        self._state = state
        self._writing = writing
        self._name_errors: dict[str, abi.Failed] = {}  # by directory: what was answered already, and failed

    def set_attributes(self, handle: Handle | None, request: abi.SetAttributes) -> Cached:
        if handle is not None:
            failed = yield from self._state.ensure_remote(handle)
            if failed is not None:
                return failed
        file = handle.file if handle is not None else self._state.names.at(request.path)
        if file is not None:
            self._writing.push(file, everything=True)
        self._state.note(request.path)
        cuts = request.size is not None and file is not None
        only_cuts = cuts and request.mode is None and request.accessed is None and request.modified is None
        unasked = only_cuts and handle is not None and handle.coherence == "exclusive"
        pending = self._state.calls.send(request, ordered=True, behind=unasked)
        self._state.learning += 1
        pending.after.append(lambda outcome: self._attributes_set(file, outcome))
        if file is not None and request.size is not None:
            now = self._state.wall()
            file.contents.cut(min(request.size, file.attributes.size))
            file.attributes = replaced(file.attributes, size=request.size, modified=now, changed=now)
            self._state.note_content(file)
        mark = self._state.changes
        if file is not None and request.size is not None:
            file.contents.under_way += 1  # who reads meanwhile is ordered behind it
            pending.after.append(lambda outcome: self._cut(file, outcome, unasked=unasked))
        if unasked and file is not None:
            return file.attributes
        result = yield pending
        if not isinstance(result, abi.Attributes):
            return result  # type: ignore[no-any-return]
        attributes = self._state.own(result)
        if file is None or attributes.identity != file.attributes.identity:
            return attributes
        if file.contents.busy or file.noted > mark:  # written to meanwhile
            file.attributes = replaced(file.attributes, mode=attributes.mode, accessed=attributes.accessed)
        else:
            self._state.names.learn_file(attributes, own=True)
        return file.attributes

    def _attributes_set(self, file: File | None, outcome: Outcome) -> None:
        self._state.learning -= 1
        if file is not None and not isinstance(outcome, abi.Attributes):
            self._state.names.set_until(file, 0.0)  # what is known of its size may be wrong
            file.contents.forget()

    def _cut(self, file: File, outcome: Outcome, *, unasked: bool) -> None:
        """It has another size on the client, too. `unasked`: that was answered already."""
        file.contents.under_way -= 1
        if unasked and not isinstance(outcome, abi.Attributes):
            self._writing.failed(file, outcome)
        file.loose = True
        self._writing.settled(file)

    def make_directory(self, request: abi.MakeDirectory) -> Cached:
        result, contested = yield from self._state.change(request, request.path)
        if isinstance(result, abi.Attributes):
            self._state.names.learn(request.path, self._state.own(result), own=True)
            self._state.names.touched(split(request.path)[0], self._state.wall(), links=1)
            self._ask_again(contested)
        else:
            self._state.names.unknown(request.path)
        return result  # type: ignore[no-any-return]

    def _ask_again(self, contested: Iterable[str]) -> None:
        """What the enclave has made of these names may be another's by now."""
        for path in contested:
            self._state.names.unknown(path)

    def remove(self, request: abi.Remove) -> Cached:
        yield from self._state.ensure_remote_below(request.path)
        known, file = self._state.names.known(request.path)
        is_file = known and file is not None and file.attributes.kind != "directory" and not request.directory
        folder = self._state.names.folder(split(request.path)[0])
        unasked = is_file and folder.writable and self._state.exclusive(request.path)
        if unasked:
            self._state.note(request.path)
            pending = self._state.calls.send(request, ordered=True, behind=True)
            self._removed(request, file)
            pending.after.append(self._name_checked(request.path))
            return abi.Done()
        result, contested = yield from self._state.change(request, request.path)
        if isinstance(result, abi.Done):
            folder.writable = True
            self._removed(request, self._state.names.at(request.path))
            self._ask_again(contested)
        else:
            self._state.names.unknown(request.path)
        return result  # type: ignore[no-any-return]

    def _removed(self, request: abi.Remove, file: File | None) -> None:
        now = self._state.wall()
        if file is not None:
            file.attributes = replaced(file.attributes, links=max(0, file.attributes.links - 1), changed=now)
            file.loose = True
        self._state.names.absent(request.path)
        if request.directory:
            self._state.names.forget_below(request.path)
        self._state.names.touched(split(request.path)[0], now, links=-1 if request.directory else 0)

    def _name_checked(self, path: str) -> Callable[[Outcome], None]:
        """What was answered already may have failed: an fsync of the directory says so."""

        def came(outcome: Outcome) -> None:
            if not isinstance(outcome, abi.Done):
                directory = split(path)[0]
                error = outcome if isinstance(outcome, abi.Failed) else abi.Failed("EIO")
                self._state.failed_behind(error)
                if len(self._name_errors) < MAX_CHANGES:
                    self._name_errors.setdefault(directory, error)
                self._state.names.unknown(path)

        return came

    def rename(self, request: abi.Rename) -> Cached:
        yield from self._state.ensure_remote_below(request.source, request.target)
        result, contested = yield from self._state.change(request, request.source, request.target)
        moved = self._state.names.at(request.source)
        if not isinstance(result, abi.Done):
            self._state.names.unknown(request.source)
            self._state.names.unknown(request.target)
            return result  # type: ignore[no-any-return]
        if request.source == request.target:
            self._ask_again(contested)
            return result
        self._state.names.forget_below(request.source)
        self._state.names.forget_below(request.target)
        now = self._state.wall()
        other = self._state.names.at(request.target)
        if moved is None:
            self._state.names.unknown(request.target)
        else:
            self._learn_moved(request.target, moved, now)  # before its other name goes: it is known by one all the time
        if not request.exchange:
            self._state.names.absent(request.source)
        if request.exchange and other is not None:
            self._learn_moved(request.source, other, now)
        elif request.exchange:
            self._state.names.unknown(request.source)
        elif other is not None:
            other.attributes = replaced(other.attributes, links=max(0, other.attributes.links - 1))
            other.loose = True
        for path in {split(request.source)[0], split(request.target)[0]}:
            self._state.names.touched(path, now)
        self._ask_again(contested)
        return result

    def _learn_moved(self, path: str, file: File, now: int) -> None:
        file.loose = True
        file.attributes = replaced(file.attributes, changed=now)
        self._state.names.learn(path, file.attributes, own=True)
        file.loose = True

    def sync_directory(self, request: abi.SyncDirectory) -> Cached:
        result = yield self._state.calls.send(request, ordered=True)
        return self._name_errors.pop(request.path, None) or result

    def link(self, handle: Handle | None, request: abi.Link) -> Cached:
        if handle is not None:
            failed = yield from self._state.ensure_remote(handle)
            if failed is not None:
                return failed
        result, contested = yield from self._state.change(request, request.target)
        if not isinstance(result, abi.Attributes):
            self._state.names.unknown(request.target)
            return result  # type: ignore[no-any-return]
        file = self._state.names.learn(request.target, self._state.own(result), own=True)
        self._state.names.touched(split(request.target)[0], self._state.wall())
        self._ask_again(contested)
        return file.attributes

    def symbolic_link(self, request: abi.SymbolicLink) -> Cached:
        result, contested = yield from self._state.change(request, request.path)
        if not isinstance(result, abi.Attributes):
            self._state.names.unknown(request.path)
            return result  # type: ignore[no-any-return]
        self._state.names.learn(request.path, self._state.own(result), own=True)
        self._state.names.touched(split(request.path)[0], self._state.wall())
        self._ask_again(contested)
        return result

    def extended(self, request: abi.SetExtended | abi.RemoveExtended) -> Cached:
        file = self._state.names.at(request.path)
        if file is not None:
            file.loose = True  # the time of its change
        result = yield self._state.calls.send(request, ordered=True)
        return result  # type: ignore[no-any-return]
