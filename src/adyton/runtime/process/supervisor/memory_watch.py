"""The memory of a guest's processes together: looked at as often as it could become too much, and too much of it ends the enclave.

What a single process may have, the kernel limits (RLIMIT_DATA in guest_start.py), and the program gets a MemoryError. For all processes of
an enclave together the kernel has no limit but a cgroup's, which not every server may make. So a thread of the supervisor adds up

    what their /proc/PID/status says: memory of their own, shared memory that they map, swap, page tables;  an upper bound, since a
    page that several have counts for each
    what waits in the enclave's sockets, by sock_diag(7), and a fixed amount for each open descriptor, which may be a pipe; if that is too
    much, for each that is one (pipe_memory)

and only if that is too much asks for proportional sizes, where each page counts once (smaps_rollup, of proc_pid_smaps(5); but for what a
process has lent, see memory_lent). That takes locks which a thread of the guest may hold while it waits for this supervisor to serve a
file; hence a thread of its own for that, too. And it takes time, a millisecond of a processor for each process, and many times that while
they all run; so in between and meanwhile there is a lower bound (memory_least), which is enough to end who takes new memory. Processes that are
forked and end before they are read have parts of others' pages meanwhile, which are counted nowhere then: an exact look among such takes
nothing from that bound, and none at all from what processes were seen to take.

The pause between two looks is what an enclave needs that fills memory as fast as it can, from what was seen to the wall. While the guest does
nothing there are none: the zygote tells when one of its processes has run (idle_watch), and looks for that as often as the wall is near.

Not seen: pages of shared anonymous memory that no process maps any more, while another page of the same mapping is, and those that
were given back by MADV_DONTNEED, which stay. The kernel tells the size of such an object nowhere but to the owner of a descriptor of it or to
CAP_CHECKPOINT_RESTORE (map_files, of proc_pid_map_files(5)). What files in
memory take (/dev/shm, /tmp, memfd_create) is bounded by their file systems, whether mapped or not.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from adyton.runtime.process.idle_watch import IdleClient
from adyton.runtime.process.memory_group import Group
from adyton.runtime.process.proc_file import read
from adyton.runtime.process.supervisor.aside import Aside
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.memory_least import Least, Size
from adyton.runtime.process.supervisor.memory_lent import borrowers, is_forked
from adyton.runtime.process.supervisor.pipe_memory import Pipes
from adyton.runtime.process.supervisor.socket_memory import listed, most_sent, queued

# Between two looks: at least, at most while what they see changes, and at most.
SHORTEST_SECONDS, BUSY_SECONDS, IDLE_SECONDS = 0.005, 0.1, 0.5
EXACT_SECONDS = 0.1  # at least between exact looks; and at most without any other look while there is one
# At most without a look, at least and at most: khugepaged gives memory to who does nothing, by default 16 MiB in 10 s, to all together.
SLEEP_SECONDS, LONGEST_SLEEP_SECONDS = 60.0, 600.0
GIVEN = 2 << 20  # bytes a second, a bit more than that
EXACT_LOOKS = 3  # one after the other have to see too much
SAME_LOOKS = 3  # one after the other have seen the same before the zygote is asked to tell
# Bytes that a processor fills in a second, with huge pages that it is given (a third of that with ordinary ones), and how many of a server's
# an enclave is taken to have to itself.
FILLED, PROCESSORS = 6 << 30, 4
_SHARE = 9  # pauses are at least so many times the processor time that the look before took; those between exact looks, an exact one
PATIENCE = 30.0  # seconds that looks may fail, or one of them take
CHECK_SECONDS = 5.0
STUCK_CHECKS = 2  # further ones find an exact look at the same process: no processor needs so long for it
BOUNDED_SECONDS = 5.0  # until one that the kernel bounds is told that it has run, which is at most how long it may have too much of what is not bounded
WAKING = 256 << 20  # bytes that who did nothing may take beyond the wall until the zygote has told of it
MARGIN = 64 << 20  # bytes beyond the limit and a quarter of it: stacks, shared memory, what several limits leave open
# Bytes: the least that a pipe may hold; all of a user's pipes that hold more, hold 16384 pages (pipe(7)).
DESCRIPTOR = 2 * mmap.PAGESIZE
# Bytes by which a status may be wrong about a process, where the kernel (an older one) does not ask all processors for what they have
# counted since (percpu_counter_batch, linux/percpu_counter.h). More than one seldom has.
UNSURE = max(32, 2 * (os.cpu_count() or 1)) * mmap.PAGESIZE

OWN = re.compile(rb"\n(?:RssAnon|VmSwap):\s*(\d+) kB")
EACH = re.compile(rb"\n(?:RssAnon|RssShmem|VmSwap|VmPTE):\s*(\d+) kB")
TABLES = re.compile(rb"\nVmPTE:\s*(\d+) kB")
TOGETHER = re.compile(rb"\n(?:Pss_Anon|Pss_Shmem|SwapPss):\s*(\d+) kB")
_HAS_MEMORY = b"\nRssAnon:"  # in a status, unless its thread has ended


def size_in(text: bytes, lines: re.Pattern[bytes]) -> int:
    """The sum, in bytes, of these lines of a status or smaps_rollup file; a line that is not there counts nothing."""
    return sum(map(int, lines.findall(text))) << 10


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


class Exact(NamedTuple):
    """What processes have of memory, the largest size of each meanwhile; whether no other one began or ended; and the processor time it took."""

    memory: int
    sizes: dict[str, Size]
    same: bool
    took: float


class MemoryWatch:
    """Of the guest with whose process `pidfd` all others end. `limit`: bytes, as the image's manifest has it, or the server.

    `diagnosis`, which its owner closes: see `queued`. `proc`: where the guest's own proc file system is. `idle`: who tells whether the
    guest runs; None: nobody. `group`: by which the kernel bounds it, with files in memory; None: it does not.
    """

    def __init__(
        self,
        pidfd: int,
        limit: int,
        diagnosis: socket.socket,
        proc: str = ".",
        idle: IdleClient | None = None,
        group: Group | None = None,
    ) -> None:
        self._pidfd = pidfd
        self._idle = idle
        self._group = group
        self._limit = limit
        self.wall = limit + limit // 4 + MARGIN
        self._diagnosis = diagnosis
        self._proc = proc
        self._most_sent = most_sent()
        self._pipes = Pipes(proc)
        self._woken, self._waker = os.pipe2(os.O_CLOEXEC)
        self._reason = ""  # why it was too much
        self._least = Least()
        self._grown = Least()  # no exact look moves it: one counts too little while processes are forked and end
        self._beside = 0  # bytes that are no process's memory, as the last look found them
        self._took = 0.0  # processor time, by the last look but for what it did to be exact, or to count pipes
        self._exactly = Aside(lambda: self._exact())  # noqa: PLW0108 - as it is when it is called
        self._exact_due = 0.0  # when there may be another exact look, though nobody insists
        self._since: float | None = None  # when the first look began that did not end well
        self._read_exactly = 0  # processes, by exact looks
        self._had: dict[str, int] = {}  # what the last exact look read of each
        self._sleeps = False  # until one of the guest's processes has run
        self._checked = False  # every now and then, by the loop

    def attach(self, loop: Loop, end: Callable[[str], None]) -> None:
        """Have `end` called with the reason, by the loop, when it is too much, or cannot be seen."""

        def woken() -> None:
            os.read(self._woken, 16)
            if reason := self.reason:
                end(reason)
            elif not self._checked:
                check()

        def check(before: int = 0, same: int = 0) -> None:
            self._checked = not self._sleeps  # if it wakes up now, `woken` comes next
            read = self._read_exactly if self._exactly.under_way else 0
            same = same + 1 if read and read == before else 0
            if same >= STUCK_CHECKS or (self._since is not None and time.monotonic() - self._since > PATIENCE):
                end("the enclave was ended: what its processes have of memory could not be seen for too long")
            if self._checked:
                loop.later(CHECK_SECONDS, lambda: check(read, same))

        loop.read(self._woken, woken)
        check()

    @property
    def reason(self) -> str:
        """Why it was too much; empty: it was not."""
        return self._reason or (self._told() if self._killed() else "")

    def _killed(self) -> bool:
        try:
            return self._group is not None and self._group.killed() > 0
        except OSError:
            return False

    def start(self) -> None:
        """Begin to look, in threads."""
        self._exactly.start("adyton-exact-memory")
        threading.Thread(target=self._run, name="adyton-memory", daemon=True).start()

    def _run(self) -> None:
        longest, before, same = BUSY_SECONDS, None, 0
        while not self._killed():
            seen = self._looked(exactly=False)
            if seen is not None:
                if seen.bytes > self.wall:
                    self._reason = self._told(seen)
                    break
                same = same + 1 if seen == before else 0
                longest = min(2 * longest, IDLE_SECONDS) if same else BUSY_SECONDS
                before = seen
                if same >= SAME_LOOKS and self._slept(seen):
                    before = None
                    continue
            pause = longest if seen is None else min(longest, self._seconds_to(self.wall, seen))
            time.sleep(max(pause, SHORTEST_SECONDS, _SHARE * self._took))
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)  # at once: to tell the client may take a while
        os.write(self._waker, b"x")

    def _looked(self, *, exactly: bool) -> Seen | None:
        """See `look`. None: it did not end well, such as by EMFILE."""
        if self._since is None:
            self._since = time.monotonic()
        try:
            seen = self.look(exactly=exactly)
        except (OSError, ValueError, LookupError, struct.error):
            return None
        if not self._exactly.under_way:
            self._since = None
        return seen

    def _seconds_to(self, most: int, seen: Seen) -> float:
        return (most - seen.bytes) / (FILLED * min(len(os.sched_getaffinity(0)), PROCESSORS))

    def _slept(self, seen: Seen) -> bool:
        """Sleep until the guest has run; False: it has run since this was seen, or it cannot be told whether it has."""
        if self._idle is None or self._exactly.under_way:  # what it finds was before
            return False
        within = self._seconds_to(self.wall + WAKING, seen) if self._group is None else BOUNDED_SECONDS
        if self._idle.watch(within) != seen.processes:
            return False
        if self._looked(exactly=True) != seen or self._exactly.under_way:
            return False
        self._sleeps = True
        longest = min(max((self.wall - seen.bytes) / GIVEN, SLEEP_SECONDS), LONGEST_SLEEP_SECONDS)
        while self._idle.wait(longest) and self._looked(exactly=False) == seen:
            pass
        self._sleeps = False
        self._exact_due = time.monotonic() + EXACT_SECONDS  # what it had then, is known
        os.write(self._waker, b"x")
        return True

    def _told(self, seen: Seen | None = None) -> str:
        if seen is None:
            what = (
                f"the kernel ended one of its processes, which used more memory than its limit of {_mib(self._limit)} allows, or than the"
                " server has"
            )
        else:
            what = f"it used more memory than its limit of {_mib(self._limit)}: {seen}"
        return f"the enclave was ended: {what} (all together may have {_mib(self.wall)}). Use less, or raise limits.memory of its image"

    def look(self, *, exactly: bool = True) -> Seen:
        """What they have now, or an upper bound that is within the wall, or a lower bound that is not. OSError, ValueError.

        Also a lower bound within the wall: where an exact look takes long, and, unless `exactly`, where the last one was a moment ago.
        """
        began, spent = time.thread_time(), self._pipes.spent
        try:
            if self._exactly.under_way:
                self._found(self._exactly.call(0))
            rough, least = self._bounds()
            if _certain(least).bytes > self.wall:
                rough, least = self._bounds_of_owners()
                if _certain(least).bytes > self.wall:
                    return least
            if rough.bytes <= self.wall:
                return rough
            if least.bytes > self.wall:
                least = _certain(least)
        finally:
            self._took = time.thread_time() - began - (self._pipes.spent - spent)
        if self._exactly.under_way or not (exactly or time.monotonic() >= self._exact_due):
            return least
        if (exact := self._found(self._exactly.call(EXACT_SECONDS))) is None:
            return least
        rough, least = self._bounds_of_owners()  # who has executed its program meanwhile has less
        return replace(least, memory=max(exact, _certain(least).memory))

    def _found(self, exact: Exact | None) -> int | None:
        """Go on from what an exact look has found; how much memory that is."""
        if exact is None:
            return None
        self._least.exactly(exact.memory, exact.sizes, same=exact.same)
        self._exact_due = time.monotonic() + max(_SHARE * exact.took, EXACT_SECONDS)
        return exact.memory

    def _bounds(self) -> tuple[Seen, Seen]:
        """The upper and the lower one."""
        memory, sizes, descriptors = self._look(self._processes(), self._each)
        sockets = (queued(self._diagnosis, self._most_sent) or 0) + (listed(self._diagnosis) or 0)
        rough = Seen(len(memory), sum(memory.values()), descriptors, sockets)
        least = replace(rough, memory=max(self._least.look(sizes), self._grown.look(sizes)))
        if rough.bytes > self.wall:
            pipes = self._pipes.among(descriptors, memory)
            beside_pipes = _certain(replace(least, descriptors=0)).bytes
            if beside_pipes <= self.wall < beside_pipes + pipes.least * DESCRIPTOR:
                pipes = self._pipes.among(descriptors, memory, anew=True)  # some may have been closed
            rough, least = replace(rough, descriptors=pipes.most), replace(least, descriptors=pipes.least)
        self._beside = least.bytes - least.memory
        return rough, least

    def _bounds_of_owners(self) -> tuple[Seen, Seen]:
        """The same, but the lower one is of those who have no other one's memory.

        What counts for a borrower it took since it was seen first: if it borrows no more, it is not seen to have that.
        """
        borrow = borrowers(self._proc)
        rough, least = self._bounds()
        sure = {process for process, is_sure in borrow.items() if is_sure}
        memory = max(self._without(borrow), self._without(sure) - self._limit)
        return rough, replace(least, memory=memory)

    def _without(self, processes: Collection[str]) -> int:
        return max(self._least.without(processes), self._grown.without(processes))

    def _exact(self) -> Exact:
        """In a thread of its own. What seems too much is looked at again, for it changes meanwhile: the least counts."""
        began = time.thread_time()
        looks: list[Exact] = []
        while len(looks) < EXACT_LOOKS and all(look.memory + self._beside > self.wall for look in looks):
            looks.append(self._exact_once())
        return min(looks, key=lambda look: look.memory)._replace(took=time.thread_time() - began)

    def _exact_once(self, *, whole: bool = False) -> Exact:
        """Unless it is to be `whole`, of as many as are too much: to read all may take many times as long, and they go on meanwhile."""
        most = math.inf if whole else self.wall - self._beside
        there = sorted(self._processes(), key=lambda process: self._had.get(process, 0), reverse=True)
        forked = {process for process in there if self._is_forked(process)}
        memory, sizes, _ = self._look(there, self._together, most)
        self._had = dict(memory)
        is_part = sum(memory.values()) > most
        still = self._processes()
        # A page that who was read had as well counts for more in who is read after its end: both would be too much.
        for gone in memory.keys() - set(still):
            del memory[gone], sizes[gone]
        unsure = 0
        for process, is_sure in borrowers(self._proc).items():
            if process in memory:
                size = memory.pop(process)
                del sizes[process]
                unsure += 0 if is_sure else size
        # The same is true of who has executed its program: what it was said to have may have been another one's.
        executed = [process for process in forked & memory.keys() if not self._is_forked(process)]
        again, sizes_again, _ = self._look(executed, self._together)
        for process in executed:
            del memory[process], sizes[process]
        together = sum(memory.values()) + sum(again.values()) + max(0, unsure - self._limit)
        if is_part and together <= most:
            return self._exact_once(whole=True)
        return Exact(together, {**sizes, **sizes_again}, not is_part and set(there) == set(still), 0.0)

    def _is_forked(self, process: str) -> bool:
        try:
            return is_forked(self._proc, process)
        except (FileNotFoundError, ProcessLookupError):
            return False

    def _processes(self) -> list[str]:
        return list(filter(str.isdigit, os.listdir(self._proc)))

    def _look(
        self, processes: Iterable[str], measure: Callable[[str, bytes], tuple[int, Size]], most: float = math.inf
    ) -> tuple[dict[str, int], dict[str, Size], int]:
        """What each process has of memory: as it is measured, and its size; and the descriptors of all. None further when it is more than `most`."""
        memory: dict[str, int] = {}
        sizes: dict[str, Size] = {}
        descriptors = found = 0
        for process in processes:
            if found > most:
                break
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                name, status = self._going_on(process)
                memory[process], sizes[process] = measure(name, status)
                found += memory[process]
                descriptors += os.stat(f"{self._proc}/{name}/fd").st_size  # Linux 6.2
        return memory, sizes, descriptors

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

    def _each(self, name: str, status: bytes) -> tuple[int, Size]:  # noqa: ARG002 - see _together
        size = _size(status)
        return size.whole, size

    def _together(self, name: str, status: bytes) -> tuple[int, Size]:
        self._read_exactly += 1
        try:
            shared = size_in(self._read(f"{name}/smaps_rollup"), TOGETHER)
        except PermissionError:  # a program that may not be read
            return self._each(name, status)
        before, after = _size(status), _size(self._read(f"{name}/status"))
        largest = Size(max(before.whole, after.whole), max(before.own, after.own))
        return shared + size_in(status, TABLES), largest

    def _read(self, name: str) -> bytes:
        return read(f"{self._proc}/{name}")


def _certain(seen: Seen) -> Seen:
    """Though counts may be wrong."""
    return replace(seen, memory=max(0, seen.memory - seen.processes * UNSURE))


def _size(status: bytes) -> Size:
    return Size(size_in(status, EACH), size_in(status, OWN))


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"
