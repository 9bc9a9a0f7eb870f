"""What the client alone can do with an open file: locks, room, copies, extended attributes, fresh attributes. See `cache`."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from adyton.hostcall import abi
from adyton.hostcall.check import Checked
from adyton.runtime.process.supervisor.caching.looking import Looking
from adyton.runtime.process.supervisor.caching.state import Handle, State
from adyton.runtime.process.supervisor.caching.writing import Writing
from adyton.runtime.process.supervisor.calls import Cached, Outcome, Pending


class Through:
    """See the module."""

    def __init__(self, state: State, looking: Looking, writing: Writing) -> None:
        self._state = state
        self._looking = looking
        self._writing = writing

    def stat_open(self, handle: Handle, request: abi.Stat) -> Cached:
        file = handle.file
        fresh = file.contents.busy or self._state.names.is_fresh(file)
        if request.birth or not fresh:
            failed = yield from self._state.ensure_remote(handle)
            if failed is None:
                if request.birth:
                    return (yield from self._looking.stat_birth(request))
                result = yield self._state.send(request, self._learn)
                if not isinstance(result, abi.Attributes):
                    return result  # type: ignore[no-any-return]
            elif failed.errno != "ESTALE":
                return failed
        return file.attributes

    def _learn(self, outcome: Outcome, mark: int) -> None:
        """What an open file's attributes are, said alone or after a lock that was got."""
        found = outcome.results[-1] if isinstance(outcome, Checked) else outcome
        if isinstance(found, abi.Attributes):
            self._state.learn_open(found, mark)

    def ordered(self, request: abi.Request) -> Cached:
        result = yield self._state.calls.send(request, ordered=True)
        return result  # type: ignore[no-any-return]

    def through(self, handle: Handle, request: abi.Request) -> Cached:
        failed = yield from self._state.ensure_remote(handle)
        if failed is not None:
            return failed
        file = handle.file
        self._writing.push(file, everything=True)
        if isinstance(request, abi.SetExtended | abi.RemoveExtended | abi.Allocate):
            file.loose = True
        if isinstance(request, abi.Allocate):
            file.contents.forget()
            self._state.note_content(file)
        result = yield self._state.calls.send(request, ordered=True)
        if isinstance(request, abi.Allocate):
            yield from self._changed_there(handle)
        return result  # type: ignore[no-any-return]

    def copy(self, source: Handle, target: Handle, request: abi.Copy) -> Cached:
        for handle in (source, target):
            failed = yield from self._state.ensure_remote(handle)
            if failed is not None:
                return failed
            self._writing.push(handle.file, everything=True)
        target.file.contents.forget()
        self._state.note_content(target.file)
        result = yield self._state.calls.send(request, ordered=True)
        yield from self._changed_there(target)
        return result  # type: ignore[no-any-return]

    def _changed_there(self, handle: Handle) -> Generator[Pending, Any, None]:
        """The client changed a file's content for the enclave: learn what it is now."""
        file = handle.file
        file.contents.forget()
        attributes = yield self._state.calls.send(abi.Stat(handle.path, handle.number), ordered=True)
        if isinstance(attributes, abi.Attributes):
            self._state.learn_open(attributes, self._state.changes, own=True)

    def lock(self, handle: Handle, request: abi.Lock | abi.Flock) -> Cached:
        """A lock that is given back need not be waited for; who gets one sees what others wrote before they gave it back."""
        failed = yield from self._state.ensure_remote(handle)
        if failed is not None:
            return failed
        self._writing.push(handle.file, everything=True)
        if request.kind == "none":
            self._state.calls.send(request, ordered=True, behind=True)
            return abi.Done()
        stat = abi.Stat(handle.path, handle.number)
        outcome = yield self._state.send(abi.Compound([request, stat]), self._learn)
        results = outcome.results if isinstance(outcome, Checked) else [outcome]
        return results[0] if isinstance(results[0], abi.Done | abi.Failed) else abi.Failed("EIO")
