"""Opening files, with what will be wanted next, and closing them. See `cache`.

A small file that is only read is fetched whole, where the program goes through a directory together with those that come next, and is
not opened on the client unless something is wanted of it that its content does not tell.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from adyton.hostcall import abi
from adyton.hostcall.check import Checked
from adyton.runtime.process.supervisor.caching.contents import BLOCK, MAX_CACHED
from adyton.runtime.process.supervisor.caching.names import FOREVER, File, replaced, split
from adyton.runtime.process.supervisor.caching.state import MAX_CHANGES, Handle, State
from adyton.runtime.process.supervisor.caching.writing import Writing
from adyton.runtime.process.supervisor.calls import Cached, Outcome, Pending

SMALL = abi.MAX_PEEKED  # bytes: a file that is fetched whole
FETCHED, FETCHED_BYTES = 32, 1 << 19  # small files, and their bytes, that are fetched together
PROVISIONAL = (
    3 << 62
)  # identities from here on are of files whose own the client has not said; its own are below 1 << 63


class Opening:
    """See the module."""

    def __init__(self, state: State, writing: Writing) -> None:
        self._state = state
        self._writing = writing
        self._provisional = PROVISIONAL
        self._snapshots = 0  # bytes of small files that are open
        self._kernel_has: dict[int, int] = {}  # identity → version of the content that the kernel may keep

    def open(self, request: abi.Open) -> Cached:
        exclusive = self._state.exclusive(request.path)
        known, file = self._state.names.known(request.path)
        reads = request.access == "read" and not request.create and not request.truncate
        if known and file is None and not request.create:
            return abi.Failed("ENOENT")
        if reads and known and file is not None and file.attributes.kind == "file" and not exclusive:
            if file.contents.busy or (file.until == FOREVER and file.attributes.size <= SMALL):
                return (yield from self._open_small(request, file))
            return (yield from self._open_remote(request))
        if exclusive and known and self._may_open_unasked(request, file):
            return self._open_unasked(request, file)
        return (yield from self._open_remote(request))

    def _add(self, request: abi.Open | abi.OpenUnnamed | abi.OpenAgain, file: File, *, remote: bool) -> Handle:
        handle = Handle(
            request.handle,
            request.path,
            file,
            request.access,
            request.append,
            self._state.coherence(request.path),
            remote,
        )
        self._state.handles[handle.number] = handle
        file.handles += 1
        return handle

    def _open_small(self, request: abi.Open, file: File) -> Cached:
        """Without the client, if the content is here or can be had whole."""
        contents = file.contents
        if contents.busy:
            return (yield from self._open_remote(request))
        snapshot = self._whole(file)
        if snapshot is None:
            version = file.version
            failed = yield from self._fetch(request.path, file)
            if failed is not None:
                return failed
            snapshot = self._whole(file)
            if snapshot is None or file.version != version:
                return (yield from self._open_remote(request))
        if self._snapshots + len(snapshot) > MAX_CACHED:
            return (yield from self._open_remote(request))
        self._add_small(request, file, snapshot, file.version, file.changes)
        return file.attributes

    def _add_small(
        self, request: abi.Open | abi.OpenAgain, file: File, snapshot: bytes, version: int, changes: int
    ) -> None:
        self._snapshots += len(snapshot)
        handle = self._add(request, file, remote=False)
        handle.snapshot, handle.version, handle.changes = snapshot, version, changes

    def _whole(self, file: File) -> bytes | None:
        """All of a small file, if it is here."""
        if not file.attributes.size:
            return b""
        block = file.contents.blocks.get(0)
        if isinstance(block, bytes | bytearray) and len(block) == file.attributes.size:
            self._state.blocks.used(file.contents, 0)
            return bytes(block)
        return None

    def _fetch(self, path: str, file: File) -> Generator[Pending, Any, abi.Failed | None]:
        """Get a small file's content; where the program goes through a directory, that of those which come next as well."""
        paths, size = [path], file.attributes.size
        directory, name = split(path)
        folder = self._state.names.folder(directory)
        if folder.listed:
            top = directory.rstrip("/")
            following = iter(folder.names.items())
            for each, _ in following:
                if each == name:
                    break
            for each, other in following:
                if len(paths) == FETCHED:
                    break
                if other is None or other.attributes.kind != "file" or self._whole(other) is not None:
                    continue
                size += other.attributes.size
                if other.attributes.size > SMALL or size > FETCHED_BYTES:
                    continue
                paths.append(f"{top}/{each}")
        marks = {each: self._state.names.at(each) for each in paths}
        versions = {each: known.version for each, known in marks.items() if known is not None}

        def came(outcome: Any, mark: int) -> None:
            if not isinstance(outcome, Checked):
                return
            for each, content in zip(paths, outcome.results, strict=False):
                if not isinstance(content, abi.Content) or self._state.is_older(each, mark):
                    continue
                known = self._state.names.at(each)
                attributes = self._state.current(content.attributes, mark)
                if known is None or known is not marks[each] or known.attributes.identity != attributes.identity:
                    continue
                learnt = self._state.names.learn(each, attributes)
                if (
                    learnt.contents.busy
                    or learnt.noted > mark
                    or (learnt.version != versions[each] and learnt.attributes != attributes)
                ):
                    continue
                if content.data:
                    self._state.blocks.put(learnt.contents, 0, content.data)

        outcome = yield self._state.send(abi.Compound([abi.Peek(each, SMALL) for each in paths], through=True), came)
        first = outcome.results[0] if isinstance(outcome, Checked) else outcome
        if isinstance(first, abi.Content):
            return None
        if isinstance(first, abi.Failed):
            return None if first.errno == "EFBIG" else first
        return abi.Failed("EIO")

    def _open_remote(self, request: abi.Open) -> Cached:
        """Ask the client to open it; with its first block, if it may be read."""
        exclusive = self._state.exclusive(request.path)
        reads = request.access != "write" and not request.truncate and not (request.create and request.exclusive)
        requests: list[Any] = [request]
        if exclusive:
            requests.append(abi.Hold(request.handle))
        if reads:
            requests.append(abi.Read(request.handle, 0, BLOCK))
        waits, marked = True, 0

        def came(outcome: Any, mark: int) -> None:
            nonlocal marked
            marked = mark
            if not waits and isinstance(outcome, Checked):  # its opener was interrupted
                self._state.close_opened(request.handle, outcome.results[0])
                if request.truncate or request.create:
                    file = self._state.names.unknown(request.path)
                    if file is not None:
                        self._writing.changed_by_others(file)

        pending = self._state.send(abi.Compound(requests), came)
        try:
            outcome = yield pending
        except GeneratorExit:
            waits = False
            raise
        results = outcome.results if isinstance(outcome, Checked) else [outcome]
        attributes = results[0]
        if not isinstance(attributes, abi.Attributes):
            return attributes if isinstance(attributes, abi.Failed) else abi.Failed("EIO")
        if exclusive and isinstance(results[1], abi.Failed):
            self._state.calls.send(abi.Close(request.handle), ordered=True)
            return results[1]
        changed = request.truncate or request.create
        attributes = self._state.own(attributes) if changed else self._state.current(attributes, marked)
        own = request.truncate or not attributes.size
        if self._state.is_older(request.path, marked):
            file = self._state.names.learn_file(attributes, own=own and changed)
        else:
            file = self._state.names.learn(request.path, attributes, own=own)
        if request.truncate:
            file.contents.cut(0)
            self._state.note_content(file)
        if request.access != "read":
            file.writable = True
        if request.create:
            self._state.names.folder(split(request.path)[0]).writable = True
            self._state.names.touched(split(request.path)[0], self._state.wall())
        handle = self._add(request, file, remote=True)
        if (
            reads
            and isinstance(results[-1], abi.Data)
            and results[-1].data
            and not file.contents.busy
            and file.noted <= marked
            and not self._state.is_older(request.path, marked)
        ):
            self._state.blocks.put(file.contents, 0, results[-1].data)
            handle.next, handle.window = 0, 0
        return file.attributes

    def _may_open_unasked(self, request: abi.Open, file: File | None) -> bool:
        """Whether it is known how an open of what the client holds for the enclave will end: as one before it did."""
        if file is None:
            return (
                request.create and not request.exclusive and self._state.names.folder(split(request.path)[0]).writable
            )
        if file.attributes.kind != "file" or (request.create and request.exclusive):
            return False
        return file.writable and (file.handles > 0 or request.truncate)

    def _open_unasked(self, request: abi.Open, file: File | None) -> abi.Result:
        """The client is told; what it says is of interest only if it is a failure."""
        now = self._state.wall()
        requests: list[Any] = [request, abi.Hold(request.handle)]
        pending = self._state.calls.send(abi.Compound(requests), ordered=True, behind=True)
        self._state.note(request.path)
        if file is None:
            self._provisional += 1
            attributes = abi.Attributes("file", self._provisional, 0, request.mode & ~request.umask, 1, now, now, now)
            file = self._state.names.learn(request.path, attributes, own=True)
            file.loose = file.writable = True
            self._state.names.touched(split(request.path)[0], now)
        elif request.truncate:
            file.contents.cut(0)
            file.attributes = replaced(file.attributes, size=0, blocks=0, modified=now, changed=now)
            self._state.note_content(file)
        made = file
        handle = self._add(request, file, remote=True)
        made.contents.under_way += 1

        def came(outcome: Outcome) -> None:
            made.contents.under_way -= 1
            results = outcome.results if isinstance(outcome, Checked) else [outcome]
            failed = next((each for each in results if isinstance(each, abi.Failed)), None)
            if failed is not None:
                self._writing.failed(made, failed)
                self._state.names.unknown(handle.path)
            elif isinstance(results[0], abi.Attributes) and results[0].identity != made.attributes.identity:
                if made.attributes.identity >= PROVISIONAL:
                    self._state.alias(made, results[0].identity)
                made.attributes = replaced(made.attributes, mode=results[0].mode)
            self._writing.settled(made)

        pending.after.append(came)
        return file.attributes

    def open_unnamed(self, request: abi.OpenUnnamed) -> Cached:
        waits = True

        def came(outcome: Outcome) -> None:
            if not waits:
                self._state.close_opened(request.handle, outcome)

        pending = self._state.calls.send(request, ordered=True)
        pending.after.append(came)
        try:
            result = yield pending
        except GeneratorExit:
            waits = False
            raise
        if not isinstance(result, abi.Attributes):
            return result  # type: ignore[no-any-return]
        file = self._state.names.learn_file(self._state.own(result), own=True)
        self._add(request, file, remote=True)
        return file.attributes

    def open_again(self, request: abi.OpenAgain) -> Cached:
        """What is open already, and may have no name by now."""
        source = self._state.handles.get(request.opened)
        if source is None:
            return abi.Failed("EBADF")
        failed = yield from self._state.ensure_remote(source)
        if failed is not None:
            if failed.errno != "ESTALE" or source.snapshot is None or request.access != "read" or request.truncate:
                return failed
            self._add_small(request, source.file, source.snapshot, source.version, source.changes)
            return source.file.attributes
        file, waits = source.file, True

        def came(outcome: Outcome) -> None:
            if not waits:
                self._state.close_opened(
                    request.handle, outcome.results[0] if isinstance(outcome, Checked) else outcome
                )
                if request.truncate:
                    self._writing.changed_by_others(file)

        requests: list[Any] = [request, *([abi.Hold(request.handle)] if source.coherence == "exclusive" else [])]
        pending = self._state.calls.send(abi.Compound(requests), ordered=True)
        pending.after.append(came)
        try:
            outcome = yield pending
        except GeneratorExit:
            waits = False
            raise
        results = outcome.results if isinstance(outcome, Checked) else [outcome]
        failed = next((each for each in results if isinstance(each, abi.Failed)), None)
        if failed is not None or not isinstance(results[0], abi.Attributes):
            self._state.close_opened(request.handle, results[0])
            return failed or abi.Failed("EIO")
        if request.truncate:
            file.contents.cut(0)
            self._state.note_content(file)
            self._state.names.learn_file(self._state.own(results[0]), own=True)
        if request.access != "read":
            file.writable = True
        self._add(request, file, remote=True)
        return file.attributes

    def closed(self, handle: Handle) -> Pending | None:
        self._writing.push(handle.file, everything=True)
        pending = None
        if handle.remote:
            held = handle.coherence == "exclusive"  # when the entry is over, others may have it
            pending = self._state.calls.send(abi.Close(handle.number), ordered=True, behind=held)
        handle.file.handles -= 1
        if not handle.file.handles:
            handle.file.error = None  # said by this close, if not before
        if handle.snapshot is not None:
            self._snapshots -= len(handle.snapshot)
        self._state.names.drop(handle.file)
        return pending

    def close(self, handle: Handle) -> Cached:
        del self._state.handles[handle.number]
        pending = self.closed(handle)
        if pending is not None:
            yield pending
        return abi.Done()

    def holds(self, number: int) -> bool:
        """Whether the client keeps other programs' locks off an open file."""
        handle = self._state.handles.get(number)
        return handle is not None and handle.coherence == "exclusive"

    def keeps(self, number: int) -> bool:
        """Whether what the kernel has cached of a file that was just opened is what the file holds."""
        handle = self._state.handles.get(number)
        if handle is None:
            return False
        identity, version = handle.file.attributes.identity, handle.file.version
        kept = self._kernel_has.get(identity) == version
        self._kernel_has[identity] = version
        if len(self._kernel_has) > MAX_CHANGES:
            self._kernel_has.clear()
        return kept

    def caches(self, number: int) -> bool:
        """Whether the kernel may cache what is read from an open file."""
        return number in self._state.handles
