"""Reading from what is here, and ahead of a sequential reader. See `cache`."""

from __future__ import annotations

from adyton.hostcall import abi
from adyton.runtime.process.supervisor.caching.contents import BLOCK, RUN, Run, blocks_of
from adyton.runtime.process.supervisor.caching.state import Handle, State
from adyton.runtime.process.supervisor.caching.writing import Writing
from adyton.runtime.process.supervisor.calls import Cached, Outcome

FIRST_WINDOW, LAST_WINDOW = 1 << 20, 1 << 25  # bytes that a sequential reader is ahead


class Reading:
    """See the module."""

    def __init__(self, state: State, writing: Writing) -> None:
        self._state = state
        self._writing = writing

    def read(self, handle: Handle, request: abi.Read) -> Cached:
        file = handle.file
        if handle.snapshot is not None and not handle.remote:
            if (file.version, file.changes) == (handle.version, handle.changes):
                return abi.Data(handle.snapshot[request.offset : request.offset + request.size])
            failed = yield from self._state.ensure_remote(handle)
            if failed is not None:
                if failed.errno == "ESTALE":  # removed: as it was when it was opened
                    return abi.Data(handle.snapshot[request.offset : request.offset + request.size])
                return failed
        self._writing.push(file, everything=True)
        self._read_ahead(handle, request.offset, request.size)
        parts: list[bytes | bytearray] = []
        for block in blocks_of(request.offset, request.size):
            held = file.contents.blocks.get(block)
            if held is None:
                held = self._fetch_run(handle, block, 1)
            if isinstance(held, Run):
                outcome = yield held
                if not isinstance(outcome, abi.Data):
                    return outcome if isinstance(outcome, abi.Failed) else abi.Failed("EIO")
                held = held.part(block, outcome.data)
            else:
                self._state.blocks.used(file.contents, block)
            start = max(0, request.offset - block * BLOCK)
            part = held[start : start + request.size - sum(map(len, parts))]
            parts.append(part)
            if len(held) < BLOCK:
                break
        return abi.Data(bytes(parts[0]) if len(parts) == 1 else b"".join(parts))

    def here(self, handle: Handle, offset: int, size: int) -> tuple[bytes | memoryview, ...] | None:
        """What `read` gives, in parts, if that is in blocks that have come."""
        if handle.snapshot is not None and not handle.remote:
            return None
        blocks = handle.file.contents.blocks
        parts: list[bytes | memoryview] = []
        start, left = offset % BLOCK, size
        for block in blocks_of(offset, size):
            held = blocks.get(block)
            if held is None or isinstance(held, Run):
                return None
            part = (
                memoryview(held)[start : start + left] if isinstance(held, bytes) else bytes(held[start : start + left])
            )
            parts.append(part)
            start, left = 0, left - len(part)
            if len(held) < BLOCK:
                break
        self._writing.push(handle.file, everything=True)
        self._read_ahead(handle, offset, size)
        for block in blocks_of(offset, size):
            self._state.blocks.used(handle.file.contents, block)
        return tuple(parts)

    def _read_ahead(self, handle: Handle, offset: int, size: int) -> None:
        """Ask for what a sequential reader will want, so far ahead that it need not wait."""
        if offset <= handle.next <= offset + size or (handle.next and 0 <= handle.next - offset <= FIRST_WINDOW):
            handle.window = min(max(FIRST_WINDOW, handle.window * 2), LAST_WINDOW)
        elif offset > handle.next + FIRST_WINDOW or offset < handle.next:
            handle.window = 0
        handle.next = max(offset + size, handle.next if handle.window else 0)
        blocks = handle.file.contents.blocks
        size_known = handle.file.attributes.size
        end = -(-min(offset + size + handle.window, size_known) // BLOCK)
        block = offset // BLOCK
        wanted = -(-(offset + size) // BLOCK)
        while block < end:
            if block in blocks:
                block += 1
                continue
            count = 1
            while count < RUN and block + count < end and block + count not in blocks:
                count += 1
            if block >= wanted and count < RUN and block + count < -(-size_known // BLOCK):
                return  # a whole run next time
            self._fetch_run(handle, block, count)
            block += count

    def _fetch_run(self, handle: Handle, first: int, count: int) -> Run:
        contents = handle.file.contents
        run = Run(first)
        version = handle.file.version
        for block in range(first, first + count):
            contents.blocks[block] = run

        def came(outcome: Outcome) -> None:
            for block in range(first, first + count):
                if contents.blocks.get(block) is not run:
                    continue
                data = run.part(block, outcome.data) if isinstance(outcome, abi.Data) else b""
                if data and handle.file.version == version:
                    self._state.blocks.put(contents, block, data)
                else:
                    del contents.blocks[block]

        run.after.append(came)
        self._state.calls.send(
            abi.Read(handle.number, first * BLOCK, count * BLOCK), ordered=contents.busy, pending=run
        )
        return run
