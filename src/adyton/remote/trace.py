"""What happened between a client and its enclave, in time: a file in the Chrome trace format, which Perfetto and chrome://tracing open.

    process 1, the client of an enclave    a track per thread: each entry call (category "entry") from its start to its end; each host
                                           call ("host call") while it is executed, with its outcome and the bytes of data that it carried;
                                           and, of no thread, the moment in which the enclave was closed, with its statistics
    process 2, the enclave                 one track: each time in which something in it waited for the client ("wait"), with what it
                                           asked for first
    processes 3 and 4, …                   of the next enclave of the same program that is traced into the same file

Names only: never a path, an argument or content. The enclave's waits come by its own clock; where they lie in the client's is told from
the entries: call sent, call arrived, answer sent, answer arrived, as NTP has it, by the entry whose way was the shortest. What an enclave
says is put in order and between the load and now. Source: "Trace Event Format" of the Chromium project; complete events (ph X, in microseconds),
instants (i) and metadata (M), in the format's array form: whoever opens it makes do without its end, so that the trace of a client that was
killed can be read. Perfetto (52) shows escapes in names as they stand, and opens no file with a surrogate's, or a backslash at the end of a name:
what JSON would escape is "?", but for quotation marks.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from adyton.communicator.messages import Counts, Wait

MAX_EVENTS = 2_000_000  # some 250 MB; what comes later is counted only
MAX_HELD = 1 << 16  # waits whose place in time is not known
_ESCAPE = re.compile(r'\\(?:u[0-9a-f]{4}|[^"])')  # of a JSON string, but for a quotation mark


class _File:
    """A trace file of this process, written by the traces of one enclave or several; complete when the last of them is closed."""

    _open: ClassVar[dict[str, _File]] = {}
    _opening = threading.Lock()

    def __init__(self, path: str, start: float) -> None:
        self.path = path
        self.start = start
        self.lock = threading.Lock()
        self.enclaves = 0  # so far
        self.left_out = 0  # events
        self._users = 0
        self._written = 0
        self._separator = "[\n"
        self._error: OSError | None = None
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by the last user

    @classmethod
    def joined(cls, path: str, now: float) -> _File:
        """The file at a path, which `leave` gives back. OSError."""
        path = os.path.abspath(path)
        with cls._opening:
            file = cls._open.get(path)
            if file is None:
                file = cls._open[path] = cls(path, now)
            file._users += 1
            file.enclaves += 1
            return file

    def leave(self) -> None:
        """A trace is over. OSError, if it was the last one, and the file is not whole."""
        with self._opening:
            self._users -= 1
            if self._users:
                return
            del self._open[self.path]
            with self.lock, self._file:
                self._write("\n]\n")
            if self._error is not None:
                raise self._error

    def add(self, event: Mapping[str, Any], *, always: bool = False) -> None:
        """Under the lock. `always`: also when there are too many."""
        if self._file.closed or (self._written >= MAX_EVENTS and not always):
            self.left_out += 1
            return
        self._written += 1
        self._write(self._separator + _ESCAPE.sub("?", json.dumps(event, ensure_ascii=False)))
        self._separator = ",\n"

    def _write(self, text: str) -> None:
        """At once: a client may be killed. A disk that is full ends the trace, not what is traced."""
        if self._error is not None:
            return
        data = text.encode(errors="replace")
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._error = error


class Trace:
    """Of one enclave, written to its file as it goes on. Thread-safe; `close` it. OSError."""

    def __init__(self, path: str, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, what the times that this is given are by. Of a path that is being traced to already: into the same file."""
        self.path = path
        self._name = name
        self._clock = clock
        self._file = _File.joined(path, clock())
        self._lock = self._file.lock
        self._client = 2 * self._file.enclaves - 1
        self._enclave = self._client + 1
        self._closed = False
        self._threads: set[int] = set()
        self._calls: dict[int, float] = {}  # entries under way → their start
        self._held: list[Wait] = []
        self._lost = 0  # waits that the enclave says are in no report
        self._shortest = float("inf")  # seconds that an entry was on its way, both ways
        self._offset = 0.0  # the enclave's clock and this make the client's
        self._waited_until = clock()
        with self._lock:
            for process, text in ((self._client, f"client of {name}"), (self._enclave, f"enclave {name}")):
                self._metadata("process_name", process, 0, text)
            self._metadata("thread_name", self._enclave, 0, "waits for the client")

    # -- what happens ---------------------------------------------------------------------------------------------------

    def entered(self, call: int) -> None:
        """The calling thread has made the call of that number."""
        with self._lock:
            self._calls[call] = self._clock()

    def returned(self, call: int, name: str) -> None:
        """Its call is over."""
        with self._lock:
            self._slice("entry", name, self._calls.pop(call), self._clock(), {})

    def note(self, name: str, outcome: str, started: float, size: int) -> None:
        """The calling thread has executed a host call; `size`: bytes of data in request and answer."""
        with self._lock:
            self._slice("host call", name, started, self._clock(), {"outcome": outcome, "bytes": size})

    def counted(self, counts: Counts) -> None:
        """The enclave's counts have arrived."""
        with self._lock:
            now = self._clock()
            sent = self._calls.get(counts.call)
            if sent is not None:
                received, answered = counts.received / 1e9, counts.sent / 1e9
                way = (now - sent) - (answered - received)
                if 0 <= way < self._shortest:
                    self._shortest = way
                    self._offset = ((sent - received) + (now - answered)) / 2
            self._lost = counts.lost
            self._held += counts.waits[: MAX_HELD - len(self._held)]
            if self._shortest < float("inf"):
                held, self._held = self._held, []
                for wait in held:
                    self._wait(wait, now)

    def close(self, stats: Mapping[str, Any]) -> None:
        """Nothing more comes; with the statistics. Once more: nothing."""
        with self._lock:
            closed, self._closed = self._closed, True
            if not closed:
                left_out = {"waits_left_out": self._lost, "events_left_out": self._file.left_out}
                told = {"name": self._name, **stats, **left_out}
                event = {"ph": "i", "s": "p", "cat": "statistics", "name": "closed", "pid": self._client, "tid": 0}
                self._file.add({**event, "ts": self._microseconds(self._clock()), "args": told}, always=True)
        if not closed:
            self._file.leave()

    # -- under the lock -------------------------------------------------------------------------------------------------

    def _wait(self, wait: Wait, now: float) -> None:
        start = min(max(wait.start / 1e9 + self._offset, self._waited_until), now)
        end = min(start + wait.duration / 1e9, now)
        self._waited_until = end
        self._event("wait", wait.what, self._enclave, 0, start, end, {})

    def _slice(self, category: str, name: str, start: float, end: float, arguments: Mapping[str, Any]) -> None:
        thread = threading.get_native_id()
        if thread not in self._threads:
            self._threads.add(thread)
            self._metadata("thread_name", self._client, thread, threading.current_thread().name)
        self._event(category, name, self._client, thread, start, end, arguments)

    def _metadata(self, name: str, process: int, thread: int, text: str) -> None:
        self._file.add({"ph": "M", "name": name, "pid": process, "tid": thread, "args": {"name": text}})

    def _event(
        self,
        category: str,
        name: str,
        process: int,
        thread: int,
        start: float,
        end: float,
        arguments: Mapping[str, Any],
    ) -> None:
        begin = self._microseconds(start)
        # From rounded times, so that the end of one and the start of the next agree.
        duration = self._microseconds(end) - begin
        self._file.add(
            {
                "ph": "X",
                "cat": category,
                "name": name,
                "pid": process,
                "tid": thread,
                "ts": begin,
                "dur": round(duration, 3),
                "args": arguments,
            }
        )

    def _microseconds(self, moment: float) -> float:
        """Since the file's start."""
        return round((moment - self._file.start) * 1e6, 3)
