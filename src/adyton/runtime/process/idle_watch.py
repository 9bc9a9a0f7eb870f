"""Enclaves that do nothing: the zygote looks for all of them at once whether any has run, so that their supervisors can sleep.

    supervisor ── WATCH ──► zygote: IdleWatch, two to four times a second
               ◄── WATCHED + number of processes, 0: it cannot tell
               ◄── RAN, once: one of them has used processor time, or ended

A process that has used no processor time has started no process, opened nothing, and taken no memory but what the kernel gives by itself,
and slowly (khugepaged makes one page of many that were never touched); so what a look has found after WATCHED holds for a while, or until
RAN. Reading one process's clock takes a microsecond or two, waking its supervisor some forty. Process 1 of an enclave is the runtime's
(init.py) and does nothing but reap those that have ended, so its clock is not read.

What comes from a supervisor is the question only; whose processes they are, the zygote finds out by itself. Sources:
clock_getcpuclockid(3), linux/posix-timers_types.h (how such a clock is numbered), proc_pid_task(5) (children).
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import struct
import time
from collections.abc import Callable

LOOK_SECONDS, LONGEST_SECONDS = 0.25, 0.5  # between two looks: at least, and at most
SHARE = 200  # pauses are so many times the time that the look before took, within these bounds
WATCH = b"watch"
WATCHED = struct.Struct("<7sI")
RAN = b"ran"
MAX_PROCESSES = 64  # of an enclave; one that has more is not watched here
_MESSAGE_SIZE = 16
_SCHEDULED = 2  # CPUCLOCK_SCHED: of a process, all that its threads have run
_FILE = 1 << 14  # bytes, more than a status has, and than the numbers of MAX_PROCESSES take
_INSIDE = re.compile(rb"\nNSpid:.*\s(\d+)\n")  # its number in the enclave

Clocks = list[tuple[int, int]]  # a process's clock, and what it showed, in ns


def clock_of(process: int) -> int:
    """The clock of a process's processor time."""
    return ~process << 3 | _SCHEDULED


class IdleWatch:
    """The zygote's end; never blocks. `now`: a monotonic clock, `read`: a clock by its number, in ns, OSError if it is no more."""

    def __init__(
        self,
        poller: select.poll,
        now: Callable[[], float] = time.monotonic,
        read: Callable[[int], int] = time.clock_gettime_ns,
        proc: str = "/proc",
    ) -> None:
        self._poller = poller
        self._now = now
        self._read = read
        self._proc = proc
        self._supervisors: dict[int, tuple[int, socket.socket]] = {}  # by descriptor
        self._watched: dict[int, Clocks] = {}  # by descriptor
        self._due = 0.0

    def join(self, pid: int, sock: socket.socket) -> None:
        """A supervisor that may ask on `sock`, which is ours now."""
        self._supervisors[sock.fileno()] = pid, sock
        self._poller.register(sock, select.POLLIN)

    def ready(self, descriptor: int) -> bool:
        """Take what the poller says can be read; False: it is none of ours."""
        if descriptor not in self._supervisors:
            return False
        pid, sock = self._supervisors[descriptor]
        self._watched.pop(descriptor, None)
        try:
            message = sock.recv(_MESSAGE_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:  # the event was of a socket that had this number before
            return True
        except OSError:
            message = b""
        if message != WATCH:
            self._leave(sock)
            return True
        processes, clocks = self._processes(pid)
        if processes:
            if not self._watched:
                self._due = self._now() + LOOK_SECONDS
            self._watched[descriptor] = clocks
        self._tell(sock, WATCHED.pack(b"watched", processes))
        return True

    def ended(self, pid: int) -> None:
        """A child of the zygote has ended."""
        for supervisor, sock in list(self._supervisors.values()):
            if supervisor == pid:
                self._leave(sock)

    def abandon(self) -> None:
        """In a child of the zygote: close what is not the child's."""
        for _, sock in self._supervisors.values():
            sock.close()

    def pause(self) -> int | None:
        """Milliseconds until `look` has something to do; None: until somebody asks."""
        return max(0, round((self._due - self._now()) * 1000)) if self._watched else None

    def look(self) -> None:
        """Tell each whose processes have run, if it is time."""
        if not self._watched or self._now() < self._due:
            return
        began = self._now()
        for descriptor in [each for each, clocks in self._watched.items() if self._ran(clocks)]:
            del self._watched[descriptor]
            self._tell(self._supervisors[descriptor][1], RAN)
        took = self._now() - began
        self._due = began + min(max(SHARE * took, LOOK_SECONDS), LONGEST_SECONDS)

    def _ran(self, clocks: Clocks) -> bool:
        try:
            for clock, before in clocks:
                if self._read(clock) != before:
                    return True
        except OSError:
            return True
        return False

    def _processes(self, supervisor: int) -> tuple[int, Clocks]:
        """How many there are below a supervisor, and their clocks; 0 if they cannot be told, or are too many."""
        clocks: Clocks = []
        processes = [supervisor]
        try:
            for process in processes:  # grows
                for thread in os.listdir(f"{self._proc}/{process}/task"):
                    for child in map(int, self._text(f"{process}/task/{thread}/children").split()):
                        processes.append(child)
                        if process != supervisor or not self._is_init(child):
                            clocks.append((clock_of(child), self._read(clock_of(child))))
                if len(processes) > MAX_PROCESSES:
                    return 0, []
        except (OSError, ValueError):  # one ended meanwhile
            return 0, []
        return len(processes) - 1, clocks

    def _is_init(self, process: int) -> bool:
        found = _INSIDE.search(self._text(f"{process}/status"))
        return found is not None and int(found[1]) == 1

    def _text(self, name: str) -> bytes:
        descriptor = os.open(f"{self._proc}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, _FILE)
        finally:
            os.close(descriptor)

    def _tell(self, sock: socket.socket, message: bytes) -> None:
        try:
            sock.send(message, socket.MSG_DONTWAIT)
        except OSError:  # it has not taken what it was told before, or was killed
            self._leave(sock)

    def _leave(self, sock: socket.socket) -> None:
        self._poller.unregister(sock)
        self._watched.pop(sock.fileno(), None)
        del self._supervisors[sock.fileno()]
        sock.close()


class IdleClient:
    """A supervisor's end, for one thread. Where the zygote is gone, or does not tell, none is watched."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def watch(self) -> int:
        """How many of the enclave's processes are watched from now on, in place of those before; 0: none."""
        with contextlib.suppress(OSError):
            self._socket.send(WATCH)
            while message := self._socket.recv(_MESSAGE_SIZE):
                if message != RAN:  # of those before
                    return int(WATCHED.unpack(message)[1])
        return 0

    def wait(self, seconds: float) -> None:
        """Until one of them has run, or so long. Only after a `watch` that was not answered by 0."""
        with contextlib.suppress(OSError):
            if select.select([self._socket], [], [], seconds)[0]:
                self._socket.recv(_MESSAGE_SIZE)


_client: IdleClient | None = None


def connect(sock: socket.socket) -> None:
    """Let this process, a new supervisor, ask on `sock`."""
    global _client  # noqa: PLW0603 - as there is one zygote
    _client = IdleClient(sock)


def client() -> IdleClient | None:
    """What `connect` made."""
    return _client
