"""The guest's standard output and error on their way to the client, while that takes them; else they wait in their pipes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from adyton.communicator.session import Session
from adyton.hostcall import abi
from adyton.runtime.process.supervisor.loop import Callback, Loop

HIGH_WATER = 1 << 22  # bytes that wait in the session, above which nothing more is read


class Output:
    """`streams`: the read ends of the guest's pipes; `guarded` wraps what the loop calls; `is_open` says whether the client can be told."""

    def __init__(
        self,
        streams: Mapping[Literal["stdout", "stderr"], int | None],
        loop: Loop,
        session: Session,
        is_open: Callable[[], bool],
        guarded: Callable[[Callback], Callback],
    ) -> None:
        self._pipes = {stream: pipe for stream, pipe in streams.items() if pipe is not None}
        self._loop = loop
        self._session = session
        self._is_open = is_open
        self._guarded = guarded
        self._paused = False

    def begin(self) -> None:
        """Read from now on."""
        for pipe in self._pipes.values():
            os.set_blocking(pipe, False)
        self._watch()

    def caught_up(self) -> None:
        """The client has taken something."""
        if self._paused and self._session.pending_bytes < HIGH_WATER:
            self._watch()

    def drain(self) -> None:
        """What an entry has printed goes out before its reply."""
        for stream, pipe in self._pipes.items():
            for _ in range(16):  # a pipe's content; another thread may go on writing
                if self._read_some(stream, pipe) != "data":
                    break

    def _watch(self) -> None:
        self._paused = False
        for stream, pipe in self._pipes.items():
            self._loop.read(pipe, self._reader_of(stream, pipe))

    def _reader_of(self, stream: Literal["stdout", "stderr"], pipe: int) -> Callback:
        return self._guarded(lambda: self._read(stream, pipe))

    def _read(self, stream: Literal["stdout", "stderr"], pipe: int) -> None:
        if self._read_some(stream, pipe) == "ended":
            self._loop.forget(pipe)
        if self._session.pending_bytes > HIGH_WATER:
            self._paused = True
            for each in self._pipes.values():
                self._loop.read(each, None)

    def _read_some(self, stream: Literal["stdout", "stderr"], pipe: int) -> Literal["data", "empty", "ended"]:
        try:
            data = os.read(pipe, 1 << 16)
        except BlockingIOError:
            return "empty"
        except OSError:
            return "ended"
        if not data:
            return "ended"
        if self._is_open():
            self._session.notify("output", msgspec.msgpack.encode(abi.Output(stream, data)))
        return "data"
