"""Enclaves that do nothing: the zygote looks for all of them at once whether any has run, so that their supervisors can sleep.

    supervisor ── WATCH + seconds ─► zygote: IdleWatch, two to four times a second, or as often as the supervisor has to know, or may
               ◄── WATCHED + number of processes, 0: it cannot tell
               ◄── RAN, once: one of them has used processor time, or ended
               ◄── switch: the zygote was stopped, and looks no more

A process that has used no processor time has started no process, opened nothing, and taken no memory but what the kernel gives by itself,
and slowly (khugepaged makes one page of many that were never touched); so what a look has found after WATCHED holds for a while, or until
RAN. Reading one process's clock takes a microsecond or two, waking its supervisor some forty. Process 1 of an enclave is the runtime's
(init.py) and does nothing but reap those that have ended, so its clock is not read.

What comes from a supervisor is the question only; whose processes they are, the zygote finds out by itself. It has to ask each of their
threads for that, which an enclave may have many of: so many at most, and not again at once. Sources:
clock_getcpuclockid(3), linux/posix-timers_types.h (how such a clock is numbered), proc_pid_task(5) (children).
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from adyton.runtime.process.dead_mans_switch import DeadMansSwitch
from adyton.runtime.process.proc_file import read as read_file

# Between two looks: at least, and at most; and, where an enclave is near its limit, at least.
LOOK_SECONDS, LONGEST_SECONDS, NEAR_SECONDS = 0.25, 0.5, 0.01
RARE_SECONDS = 2.0  # … where that is enough for who asks
SHARE, NEAR_SHARE = 200, 50  # pauses are so many times the time that the look before took, within these bounds
SIGN_SECONDS = 5.0  # without a look, until supervisors take it that there will be none
ANSWER_SECONDS = 0.25  # that a supervisor waits for WATCHED
WATCH = struct.Struct("<5sI")  # and in how many microseconds at most it is to be told
WATCHED = struct.Struct("<7sI")
RAN = b"ran"
MAX_PROCESSES, MAX_THREADS = 64, 256  # of an enclave; one that has more is not watched here
_MESSAGE_SIZE = 16
_SCHEDULED = 2  # CPUCLOCK_SCHED: of a process, all that its threads have run
_INSIDE = re.compile(rb"\nNSpid:.*\s(\d+)\n")  # its number in the enclave

Clocks = list[tuple[int, int]]  # a process's clock, and what it showed, in ns


def clock_of(process: int) -> int:
    """The clock of a process's processor time."""
    return ~process << 3 | _SCHEDULED


@dataclass
class _Supervisor:
    pid: int
    sock: socket.socket
    rests: float = 0.0  # until then its questions are answered by 0


@dataclass
class _Rhythm:
    """Of the looks at some enclaves: what is between two, see LOOK_SECONDS and SHARE."""

    shortest: float
    longest: float
    share: int
    watched: dict[int, Clocks] = field(default_factory=dict)  # by descriptor
    wanted: dict[int, float] = field(default_factory=dict)  # seconds between two looks, by descriptor
    due: float = 0.0

    def add(self, descriptor: int, clocks: Clocks, wanted: float, now: float) -> None:
        begins = not self.watched
        self.watched[descriptor], self.wanted[descriptor] = clocks, wanted
        due = now + self._pause(0)
        self.due = due if begins else min(self.due, due)

    def drop(self, descriptor: int) -> None:
        self.watched.pop(descriptor, None)
        self.wanted.pop(descriptor, None)

    def looked(self, began: float, took: float) -> None:
        self.due = began + self._pause(took)

    def _pause(self, took: float) -> float:
        wanted = max(self.shortest, min(self.wanted.values(), default=0.0))
        return min(max(self.share * took, wanted), self.longest)


class IdleWatch:
    """The zygote's end; never blocks. `now`: a monotonic clock, `read`: a clock by its number, in ns, OSError if it is no more.

    `sign`: is called with the seconds within which it will be called again, or nobody is watched any more.
    """

    def __init__(
        self,
        poller: select.poll,
        now: Callable[[], float] = time.monotonic,
        read: Callable[[int], int] = time.clock_gettime_ns,
        proc: str = "/proc",
        sign: Callable[[float], object] = lambda _: None,
    ) -> None:
        self._poller = poller
        self._now = now
        self._read = read
        self._proc = proc
        self._sign = sign
        self._supervisors: dict[int, _Supervisor] = {}  # by descriptor
        self._signed = -math.inf
        self._far = _Rhythm(LOOK_SECONDS, LONGEST_SECONDS, SHARE)
        self._near = _Rhythm(NEAR_SECONDS, LOOK_SECONDS, NEAR_SHARE)
        self._rare = _Rhythm(RARE_SECONDS, RARE_SECONDS, SHARE)
        self._rhythms = self._near, self._far, self._rare

    def join(self, pid: int, sock: socket.socket) -> None:
        """A supervisor that may ask on `sock`, which is ours now."""
        self._supervisors[sock.fileno()] = _Supervisor(pid, sock)
        self._poller.register(sock, select.POLLIN)

    def ready(self, descriptor: int) -> bool:
        """Take what the poller says can be read; False: it is none of ours."""
        if descriptor not in self._supervisors:
            return False
        supervisor = self._supervisors[descriptor]
        self._forget(descriptor)
        try:
            message = supervisor.sock.recv(_MESSAGE_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:  # the event was of a socket that had this number before
            return True
        except OSError:
            message = b""
        if len(message) != WATCH.size or not message.startswith(b"watch"):
            self._leave(supervisor.sock)
            return True
        wanted = WATCH.unpack(message)[1] / 1e6
        began = self._now()
        processes, clocks = self._processes(supervisor.pid) if began >= supervisor.rests else (0, [])
        now = self._now()
        if now > began:
            supervisor.rests = now + NEAR_SHARE * (now - began)
        if processes:
            often = self._far if wanted >= LOOK_SECONDS else self._near
            (self._rare if wanted >= RARE_SECONDS else often).add(descriptor, clocks, wanted, now)
            self._signs(now)
        self._tell(supervisor.sock, WATCHED.pack(b"watched", processes))
        return True

    def ended(self, pid: int) -> None:
        """A child of the zygote has ended."""
        for supervisor in list(self._supervisors.values()):
            if supervisor.pid == pid:
                self._leave(supervisor.sock)

    def abandon(self) -> None:
        """In a child of the zygote: close what is not the child's."""
        for supervisor in self._supervisors.values():
            supervisor.sock.close()

    def pause(self) -> int | None:
        """Milliseconds until `look` has something to do; None: until somebody asks."""
        dues = [rhythm.due for rhythm in self._rhythms if rhythm.watched]
        return max(0, math.ceil((min(dues) - self._now()) * 1000)) if dues else None

    def look(self) -> None:
        """Tell each whose processes have run, if it is time."""
        for rhythm in self._rhythms:
            began = self._now()
            if rhythm.watched and began >= rhythm.due:
                self._signs(began)
                for descriptor in [each for each, clocks in rhythm.watched.items() if self._ran(clocks)]:
                    rhythm.drop(descriptor)
                    self._tell(self._supervisors[descriptor].sock, RAN)
                rhythm.looked(began, self._now() - began)

    def _signs(self, now: float) -> None:
        if now >= self._signed + SIGN_SECONDS / 4:
            self._signed = now
            self._sign(SIGN_SECONDS)

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
        threads = 0
        try:
            for process in processes:  # grows
                with os.scandir(f"{self._proc}/{process}/task") as found:
                    names = [thread.path for thread in islice(found, MAX_THREADS + 1 - threads)]
                threads += len(names)
                if threads > MAX_THREADS or len(processes) > MAX_PROCESSES:
                    return 0, []
                for name in names:
                    for child in map(int, read_file(f"{name}/children").split()):
                        processes.append(child)
                        if process != supervisor or not self._is_init(child):
                            clocks.append((clock_of(child), self._read(clock_of(child))))
        except (OSError, ValueError):  # one ended meanwhile
            return 0, []
        return len(processes) - 1, clocks

    def _is_init(self, process: int) -> bool:
        found = _INSIDE.search(read_file(f"{self._proc}/{process}/status"))
        return found is not None and int(found[1]) == 1

    def _tell(self, sock: socket.socket, message: bytes) -> None:
        try:
            sock.send(message, socket.MSG_DONTWAIT)
        except OSError:  # it has not taken what it was told before, or was killed
            self._leave(sock)

    def _forget(self, descriptor: int) -> None:
        for rhythm in self._rhythms:
            rhythm.drop(descriptor)

    def _leave(self, sock: socket.socket) -> None:
        self._poller.unregister(sock)
        self._forget(sock.fileno())
        del self._supervisors[sock.fileno()]
        sock.close()


class IdleClient:
    """A supervisor's end, for one thread. Where the zygote is gone or was stopped, or does not tell, none is watched.

    `switch`: a descriptor that can be read when the zygote looks no more, see DeadMansSwitch.
    """

    def __init__(self, sock: socket.socket, switch: int | None = None) -> None:
        self._socket = sock
        self._answers, self._signs = select.poll(), select.poll()
        self._answers.register(sock, select.POLLIN)
        for each in (sock, switch):
            if each is not None:
                self._signs.register(each, select.POLLIN)
        self._asks = False  # and there was no answer

    def watch(self, seconds: float) -> int:
        """How many of the enclave's processes are watched from now on, in place of those before; 0: none.

        `wait` is to end so many seconds at most after one of them has run, if the zygote can look that often.
        """
        with contextlib.suppress(OSError):
            if self._asks and self._answer(0) is None:
                return 0
            self._socket.send(WATCH.pack(b"watch", min(max(0, round(seconds * 1e6)), 0xFFFFFFFF)))
            self._asks = True
            return self._answer(ANSWER_SECONDS) or 0
        return 0

    def wait(self, seconds: float) -> bool:
        """Until one of them has run, or so long, or the zygote looks no more. Only after a `watch` that was not answered by 0.

        True: it was so long, and they are watched on.
        """
        with contextlib.suppress(OSError):
            signs = self._signs.poll(seconds * 1000)
            if any(each == self._socket.fileno() for each, _ in signs):
                self._socket.recv(_MESSAGE_SIZE)
            return not signs
        return False

    def _answer(self, seconds: float) -> int | None:
        """None: there was none yet. ConnectionError."""
        while self._answers.poll(seconds * 1000):
            message = self._socket.recv(_MESSAGE_SIZE)
            if not message:
                raise ConnectionError
            if len(message) == WATCHED.size:  # else RAN, of those before
                self._asks = False
                return int(WATCHED.unpack(message)[1])
        return None


_client: IdleClient | None = None


def connect(sock: socket.socket, switch: DeadMansSwitch) -> None:
    """Let this process, a new supervisor, ask on `sock`."""
    global _client  # noqa: PLW0603 - as there is one zygote
    _client = IdleClient(sock, switch.descriptor)


def client() -> IdleClient | None:
    """What `connect` made."""
    return _client
