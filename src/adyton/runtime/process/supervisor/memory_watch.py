"""The memory of a guest's processes together: looked at as often as it could become too much, and too much of it ends the enclave.

What a single process may have, the kernel limits (RLIMIT_DATA in guest_start.py), and the program gets a MemoryError. For all processes of
an enclave together the kernel has no limit but a cgroup's, which not every server may make. So a thread of the supervisor adds up

    what their /proc/PID/status says: memory of their own, shared memory that they map, swap, page tables;  an upper bound, since a
    page that several have counts for each
    what waits in the enclave's sockets, by sock_diag(7), and a fixed amount for each open descriptor, which may be a pipe

and only if that is too much asks for proportional sizes, where each page counts once (smaps_rollup, of proc_pid_smaps(5); what memory_lent
finds counts once, too, up to the limit). That takes
locks which a thread of the guest may hold while it waits for this supervisor to serve a file; hence the thread of its own.

The pause between two looks is what an enclave needs that fills memory as fast as it can, from what was seen to the wall. While the guest does
nothing there are none: the zygote tells when one of its processes has run (idle_watch).

Not seen: pages of shared anonymous memory that no process maps any more, while another page of the same mapping is, and those that
were given back by MADV_DONTNEED, which stay. The kernel tells the size of such an object nowhere but to the owner of a descriptor of it or to
CAP_CHECKPOINT_RESTORE (map_files, of proc_pid_map_files(5)). What files in
memory take (/dev/shm, /tmp, memfd_create) is bounded by their file systems, whether mapped or not.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from adyton.runtime.process.idle_watch import IdleClient
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.memory_lent import lent, waiting

# Between two looks: at least, at most while what they see changes, and at most.
SHORTEST_SECONDS, BUSY_SECONDS, IDLE_SECONDS = 0.005, 0.1, 0.5
SLEEP_SECONDS = 60.0  # at most: khugepaged gives memory to who does nothing, by default 16 MiB in 10 s
SAME_LOOKS = 3  # one after the other have seen the same before the zygote is asked to tell
# Bytes that a processor fills in a second, with pages that it is given, and how many of a server's an enclave is taken to have to itself.
FILLED, PROCESSORS = 2 << 30, 4
_SHARE = 9  # pauses are at least so many times the processor time that the look before took
PATIENCE = 30.0  # seconds that looks may fail, or one of them take
CHECK_SECONDS = 10.0
MARGIN = 64 << 20  # bytes beyond the limit and a quarter of it: stacks, shared memory, what several limits leave open
# Bytes: the least that a pipe may hold; all of a user's pipes that hold more, hold 16384 pages (pipe(7)).
DESCRIPTOR = 2 * mmap.PAGESIZE

EACH = re.compile(rb"\n(?:RssAnon|RssShmem|VmSwap|VmPTE):\s*(\d+) kB")
TABLES = re.compile(rb"\nVmPTE:\s*(\d+) kB")
TOGETHER = re.compile(rb"\n(?:Pss_Anon|Pss_Shmem|SwapPss):\s*(\d+) kB")
_HAS_MEMORY = b"\nRssAnon:"  # in a status, unless its thread has ended
_FILE = 1 << 14  # bytes, of which these files have less than a half

# linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBHIIIII")  # struct unix_diag_req: family, protocol, 0, states, inode, show, cookie
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_SOCK_DIAG_BY_FAMILY, _DUMP = 20, 0x301
_ERROR, _DONE = 2, 3
_SHOW = 0x34  # peer, lengths of queues, memory
_PEER, _LENGTHS, _MEMORY = 2, 4, 5
_UNIX_DIAG_MESSAGE = 16  # bytes of struct unix_diag_msg
# linux/netlink_diag.h
_NETLINK_REQUEST = struct.Struct("=BBHIIII")  # struct netlink_diag_req: family, protocol, 0, inode, show, cookie
_NETLINK_SHOW, _NETLINK_MEMORY = 1, 0
_NETLINK_DIAG_MESSAGE = 28  # bytes of struct netlink_diag_msg
_SENT = 8  # in _MEMORY: SK_MEMINFO_WMEM_ALLOC, of what was sent and not yet received
_MAX_MESSAGE = 1 << 15  # the kernel fills no more at once
_BUFFER = "/proc/sys/net/core/wmem_max"  # half of what may wait on its way from one socket; before Linux 6.7 it is not seen from here
_USUAL_BUFFER = 212992
_SMALLEST = 1 << 10  # bytes: more than a message of one byte takes


def size_in(text: bytes, lines: re.Pattern[bytes]) -> int:
    """The sum, in bytes, of these lines of a status or smaps_rollup file; a line that is not there counts nothing."""
    return sum(map(int, lines.findall(text))) << 10


def queued(diagnosis: socket.socket, most: int = 2 * _USUAL_BUFFER) -> int | None:
    """Bytes that wait in unix sockets; None where the kernel does not tell. `diagnosis`: see namespaces.open_diagnosis.

    What was sent and not yet received, its sender has; if that is closed, its receiver, of which only the length is told: that counts
    as if it were sent byte by byte. `most`: that a sender can have.
    """
    found = 0
    try:
        for data, at, end in _dump(diagnosis, _REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _SHOW, 0, 0)):
            sent, received, peer = _socket_in(data, at + _UNIX_DIAG_MESSAGE, end)
            found += sent + (0 if peer else min(received * _SMALLEST, most))
    except _NotToldError:
        return None
    return found


def listed(diagnosis: socket.socket) -> int | None:
    """Bytes that wait in netlink sockets, which programs ask for lists of interfaces; None where the kernel does not tell."""
    found = 0
    try:
        for data, start, end in _dump(
            diagnosis, _NETLINK_REQUEST.pack(socket.AF_NETLINK, 0, 0, 0, _NETLINK_SHOW, 0, 0)
        ):
            at = start + _NETLINK_DIAG_MESSAGE
            while at < end:
                length, kind = _ATTRIBUTE.unpack_from(data, at)
                if kind == _NETLINK_MEMORY:
                    found += _number(data, at + _ATTRIBUTE.size)  # SK_MEMINFO_RMEM_ALLOC
                at += _aligned(length)
    except _NotToldError:
        return None
    return found


class _NotToldError(Exception):
    """The kernel knows no answer."""


def _dump(diagnosis: socket.socket, request: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Of each socket what there is to say: where it begins and ends in which bytes. _NotToldError."""
    diagnosis.send(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _DUMP, 1, 0) + request)
    while True:
        data = diagnosis.recv(_MAX_MESSAGE)
        at = 0
        while at < len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if kind == _ERROR:
                raise _NotToldError
            if kind == _DONE:
                return
            yield data, at + _HEADER.size, at + length
            at += _aligned(length)


def _socket_in(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Of one socket: bytes that what it sent takes, bytes that it has not yet received, and its peer's inode, 0 for none."""
    sent = received = peer = 0
    while at < end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        content = at + _ATTRIBUTE.size
        if kind == _PEER:
            peer = _number(data, content)
        elif kind == _LENGTHS:
            received = _number(data, content)
        elif kind == _MEMORY:
            sent = _number(data, content + _SENT)
        at += _aligned(length)
    return sent, received, peer


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], sys.byteorder)


def _aligned(length: int) -> int:
    """To where the next one begins; both kinds' least length is 4."""
    return max(length + 3 & ~3, 4)


def _most_sent() -> int:
    """Bytes that may wait on their way from one socket."""
    try:
        with open(_BUFFER, encoding="ascii") as file:
            return 2 * int(file.read())
    except (OSError, ValueError):
        return 2 * _USUAL_BUFFER


@dataclass(frozen=True)
class Seen:
    """Of all processes; `memory` and `sockets` in bytes."""

    processes: int
    memory: int
    descriptors: int
    sockets: int

    @property
    def bytes(self) -> int:
        return self.memory + self.descriptors * DESCRIPTOR + self.sockets

    def __str__(self) -> str:
        return (
            f"{_mib(self.memory)} in {self.processes} process{'es' if self.processes > 1 else ''}, {_mib(self.sockets)} in"
            f" sockets, {self.descriptors} descriptors"
        )


class MemoryWatch:
    """Of the guest with whose process `pidfd` all others end. `limit`: bytes, as the image's manifest has it, or the server.

    `diagnosis`, which its owner closes: see `queued`. `proc`: where the guest's own proc file system is. `idle`: who tells whether the
    guest runs; None: nobody. `reason`: why it was too much.
    """

    def __init__(
        self, pidfd: int, limit: int, diagnosis: socket.socket, proc: str = ".", idle: IdleClient | None = None
    ) -> None:
        self._pidfd = pidfd
        self._idle = idle
        self._limit = limit
        self.wall = limit + limit // 4 + MARGIN
        self._diagnosis = diagnosis
        self._proc = proc
        self._most_sent = _most_sent()
        self._woken, self._waker = os.pipe2(os.O_CLOEXEC)
        self.reason = ""
        self._since: float | None = None  # when the first look began that did not end well
        self._sleeps = False  # until one of the guest's processes has run
        self._checked = False  # every now and then, by the loop

    def attach(self, loop: Loop, end: Callable[[str], None]) -> None:
        """Have `end` called with the reason, by the loop, when it is too much, or cannot be seen."""

        def woken() -> None:
            os.read(self._woken, 16)
            if self.reason:
                end(self.reason)
            elif not self._checked:
                check()

        def check() -> None:
            self._checked = not self._sleeps  # if it wakes up now, `woken` comes next
            if self._since is not None and time.monotonic() - self._since > PATIENCE:
                end("the enclave was ended: what its processes have of memory could not be seen for too long")
            if self._checked:
                loop.later(CHECK_SECONDS, check)

        loop.read(self._woken, woken)
        check()

    def start(self) -> None:
        """Begin to look, in a thread."""
        threading.Thread(target=self._run, name="adyton-memory", daemon=True).start()

    def _run(self) -> None:
        longest, before, same = BUSY_SECONDS, None, 0
        while True:
            began = time.thread_time()
            seen = self._looked()
            if seen is not None:
                if seen.bytes > self.wall:
                    break
                same = same + 1 if seen == before else 0
                longest = min(2 * longest, IDLE_SECONDS) if same else BUSY_SECONDS
                before = seen
                if same >= SAME_LOOKS and self._slept(seen):
                    before = None
                    continue
            pause = longest if seen is None else min(longest, self._seconds_to_the_wall(seen))
            time.sleep(max(pause, SHORTEST_SECONDS, _SHARE * (time.thread_time() - began)))
        self.reason = self._told(seen)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)  # at once: to tell the client may take a while
        os.write(self._waker, b"x")

    def _looked(self) -> Seen | None:
        """None: the look did not end well, such as by EMFILE."""
        if self._since is None:
            self._since = time.monotonic()
        try:
            seen = self.look()
        except (OSError, ValueError, LookupError, struct.error):
            return None
        self._since = None
        return seen

    def _seconds_to_the_wall(self, seen: Seen) -> float:
        return (self.wall - seen.bytes) / (FILLED * min(len(os.sched_getaffinity(0)), PROCESSORS))

    def _slept(self, seen: Seen) -> bool:
        """Sleep until the guest has run; False: it has run since this was seen, or it cannot be told whether it has."""
        if self._idle is None or self._idle.watch() != seen.processes or self._looked() != seen:
            return False
        self._sleeps = True
        self._idle.wait(SLEEP_SECONDS)
        self._sleeps = False
        os.write(self._waker, b"x")
        return True

    def _told(self, seen: Seen) -> str:
        return (
            f"the enclave was ended: it used more memory than its limit of {_mib(self._limit)}: {seen} (all together may have"
            f" {_mib(self.wall)}). Use less, or raise limits.memory of its image"
        )

    def look(self) -> Seen:
        """What they have now; exact if the upper bound is beyond the wall. OSError, ValueError."""
        rough, _ = self._look(self._each)
        if rough.bytes <= self.wall:
            return rough
        before = waiting(self._proc)
        seen, sizes = self._look(self._together)
        twice = sum(sizes.get(process, 0) * others for process, others in lent(before, waiting(self._proc)).items())
        return replace(seen, memory=seen.memory - min(twice, self._limit))

    def _look(self, memory_of: Callable[[str, bytes], int]) -> tuple[Seen, dict[str, int]]:
        """What is seen, and the memory of each process."""
        sizes: dict[str, int] = {}
        descriptors = 0
        for process in os.listdir(self._proc):
            if not process.isdigit():
                continue
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                name, status = self._going_on(process)
                sizes[process] = memory_of(name, status)
                descriptors += os.stat(f"{self._proc}/{name}/fd").st_size  # Linux 6.2
        sockets = (queued(self._diagnosis, self._most_sent) or 0) + (listed(self._diagnosis) or 0)
        return Seen(len(sizes), sum(sizes.values()), descriptors, sockets), sizes

    def _going_on(self, process: str) -> tuple[str, bytes]:
        """Where a process's files are, and its status; those of another thread if the first one, whose the process's are, has ended."""
        status = self._read(f"{process}/status")
        if _HAS_MEMORY not in status:
            for thread in os.listdir(f"{self._proc}/{process}/task"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    name = f"{process}/task/{thread}"
                    if _HAS_MEMORY in (its := self._read(f"{name}/status")):
                        return name, its
        return process, status

    def _each(self, name: str, status: bytes) -> int:  # noqa: ARG002 - see _together
        return size_in(status, EACH)

    def _together(self, name: str, status: bytes) -> int:
        try:
            shared = size_in(self._read(f"{name}/smaps_rollup"), TOGETHER)
        except PermissionError:  # a program that may not be read
            return self._each(name, status)
        return shared + size_in(status, TABLES)

    def _read(self, name: str) -> bytes:
        descriptor = os.open(f"{self._proc}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, _FILE)
        finally:
            os.close(descriptor)


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"
