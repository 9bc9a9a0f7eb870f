"""Writing behind: what was written is answered at once, and sent in order; what fails is said by fsync or close. See `cache`."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from adyton.hostcall import abi
from adyton.runtime.process.supervisor.caching.contents import BLOCK, MAX_DIRTY, Extent, blocks_of
from adyton.runtime.process.supervisor.caching.names import File, replaced
from adyton.runtime.process.supervisor.caching.state import Handle, State
from adyton.runtime.process.supervisor.calls import Cached, Outcome, Pending

# What is held back, to go with what is written next, until one of these is reached, somebody wants it, or a moment has passed.
HELD = 64  # writes at different places
HELD_BACK = abi.MAX_BLOCK  # bytes


def _room(size: int) -> int:
    """How many blocks of 512 bytes so many bytes take on most file systems, which give 4 KiB at a time."""
    return -(-size // 4096) * 8


class Writing:
    """See the module."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._dirty = 0  # bytes that the client has not confirmed
        self._files: dict[File, None] = {}  # that have such
        self._room: Pending | None = None  # what writers wait for while that is too much

    def write(self, handle: Handle, request: abi.Write) -> Cached:
        while not self.has_room(len(request.data)):
            self.push_all()
            if self._room is None:
                self._room = Pending()
            yield self._room
        self.put(handle, request.offset, request.data)
        return abi.Written(len(request.data))

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more may wait for the client."""
        return not self._dirty or self._dirty + size <= MAX_DIRTY

    def put(self, handle: Handle, offset: int, data: bytes) -> None:
        """Write it, in a moment."""
        file, contents = handle.file, handle.file.contents
        known, now = file.attributes, self._state.wall()
        if handle.append:
            contents.cut(known.size)  # where the end is the client knows
        else:
            contents.overwrite(offset, data, known.size)
        size = max(known.size, offset + len(data))
        most = min(_room(size), known.blocks + _room(len(data)))  # it may have holes, and this may have filled some
        file.attributes = replaced(known, size=size, modified=now, changed=now, blocks=max(known.blocks, most))
        contents.add(Extent(handle.number, offset, len(data), [data], handle.append))
        if len(self._files) > 1 or file not in self._files:
            for other in [each for each in self._files if each is not file and each.contents.waiting]:
                self.push(other, everything=True)  # in the order in which they were written
        self._dirty += len(data)
        self._files[file] = None
        self._state.note_content(file)
        self.push(file, everything=False)

    def push(self, file: File, *, everything: bool) -> None:
        """Send what waits; unless `everything`, only if it is much."""
        contents = file.contents
        if not contents.waiting:
            return
        if not everything and contents.waiting_bytes < HELD_BACK and len(contents.waiting) < HELD:
            return
        contents.waiting_bytes = 0
        waiting, contents.waiting = contents.waiting, []
        for extent in waiting:
            if not extent.append:
                self._keep(file, extent)
            self._send(file, extent)

    def _keep(self, file: File, extent: Extent) -> None:
        """What was written is here to be read: blocks of which it has all that the file has."""
        contents, content, size = file.contents, extent.content(), file.attributes.size
        for block in blocks_of(extent.offset, extent.size):
            start = block * BLOCK
            low, high = max(extent.offset, start), min(extent.end, start + BLOCK)
            piece = content[low - extent.offset : high - extent.offset]
            if block in contents.blocks:
                contents.overwrite(low, piece, size)
            elif low == start and high == min(start + BLOCK, size):
                self._state.blocks.put(contents, block, piece)

    @property
    def holds(self) -> bool:
        """Whether something waits."""
        return any(file.contents.waiting for file in self._files)

    def push_all(self) -> None:
        """Send all that waits, of all files."""
        for file in list(self._files):
            self.push(file, everything=True)

    def _send(self, file: File, extent: Extent) -> None:
        file.contents.sent.append(extent)
        request = abi.Write(extent.handle, extent.offset, extent.content())
        pending = self._state.calls.send(request, ordered=True, behind=True)
        pending.after.append(lambda outcome: self._wrote(file, extent, outcome))

    def _wrote(self, file: File, extent: Extent, outcome: Outcome) -> None:
        contents = file.contents
        contents.sent.remove(extent)
        self._dirty -= extent.size
        if not isinstance(outcome, abi.Written):
            self.failed(file, outcome)
        elif outcome.size < extent.size:
            self._write_rest(file, extent, outcome.size)
        elif outcome.changed and not contents.busy and not file.foreign:
            file.attributes = replaced(file.attributes, modified=outcome.modified, changed=outcome.changed)
            file.loose = True
        if extent.append:
            self._state.names.set_until(file, 0.0)
        self.settled(file)

    def _write_rest(self, file: File, extent: Extent, done: int) -> None:
        """The client had no room for all: what it says of the rest tells why. Not over what was written there since."""
        content = extent.content()[done:]
        rest = Extent(extent.handle, extent.offset + done, len(content), [content], extent.append)
        contents = file.contents
        if any(rest.overlaps(other) for other in (*contents.sent, *contents.waiting)):
            self.failed(file, abi.Failed("EIO"))
        else:
            self._dirty += rest.size
            contents.retried = True
            self._send(file, rest)

    def failed(self, file: File, outcome: Outcome) -> None:
        """Something that was answered already did not happen."""
        self._state.failed_behind(outcome)
        if file.error is None and file.handles:  # else nobody is left to be told
            file.error = outcome if isinstance(outcome, abi.Failed) else abi.Failed("EIO")
        file.said = False
        self._state.names.set_until(file, 0.0)
        self._state.names.changed_content(file)

    def changed_by_others(self, file: File) -> None:
        """Other programs wrote into it; said again when the enclave's own writes have arrived, so that none of them hides it."""
        file.foreign = file.contents.busy
        self._state.names.set_until(file, 0.0)
        if not file.foreign:
            self._state.names.changed_content(file)

    def settled(self, file: File) -> None:
        """One thing that was under way for the file is not any more: what waits for that goes on."""
        if self._room is not None and self._dirty <= MAX_DIRTY // 2:
            room, self._room = self._room, None
            room.finish(abi.Done())
        if not file.contents.busy:
            self._files.pop(file, None)
            if file.foreign:
                self.changed_by_others(file)
            drained, file.contents.drained = file.contents.drained, None
            if drained is not None:
                drained.finish(abi.Done())
            self._state.names.drop(file)

    def _drain(self, file: File) -> Generator[Pending, Any, None]:
        """Wait until the client has all that was written."""
        self.push(file, everything=True)
        while file.contents.busy:
            if file.contents.drained is None:
                file.contents.drained = Pending()
            yield file.contents.drained

    def sync(self, handle: Handle, request: abi.Sync) -> Cached:
        """Durable; or what went wrong since the last time that this was asked, which only this takes as said."""
        failed = yield from self._state.ensure_remote(handle)
        if failed is not None:
            return abi.Done() if failed.errno == "ESTALE" else failed  # removed: nothing of it is to last
        file = handle.file
        while True:
            file.contents.retried = False
            self.push(file, everything=True)
            result = yield self._state.calls.send(request, ordered=True)
            yield from self._drain(file)
            if not file.contents.retried:
                break
        error = file.error
        if handle.access != "read":
            file.error, file.said = None, False
        return error or result

    def sync_all(self, request: abi.SyncAll) -> Cached:
        """All files durable; or what went wrong of any of them since the last time, which an fsync of it says as well."""
        for _ in range(2):  # what the client had no room for was sent once more
            settled = self._state.calls.settled()
            if settled is not None:
                yield settled
        result = yield self._state.calls.send(request, ordered=True)
        unsaid, self._state.unsaid = self._state.unsaid, None
        return unsaid or result

    def flush(self, handle: Handle) -> Cached:
        """A descriptor is closed: what went wrong is said, once; whoever asks for durability still hears of it."""
        if handle.access == "read":
            return abi.Done()
        yield from self._drain(handle.file)
        if handle.file.error is None or handle.file.said:
            return abi.Done()
        handle.file.said = True
        return handle.file.error
