"""Names of the client's files that the guest's kernel may believe without asking: each for a moment, a lease.

What the kernel holds to be so for ever would have to be taken back when another program replaces the file. Attributes can be; names cannot:
FUSE_NOTIFY_INVAL_ENTRY waits, not to be killed, for a lock of the directory, which the kernel holds for operations that wait for this process;
FUSE_NOTIFY_INC_EPOCH takes back all names, and unmounts what is mounted on some. A lease ends by itself. When the client tells of a change
of a name whose lease has not ended, nothing that it says afterwards is acted upon before it has: so the enclave never knows of anything
that came after the change while its kernel still believes what was before.

Source: Linux, fs/fuse/dir.c (fuse_dentry_revalidate, fuse_reverse_inval_entry, fuse_change_entry_timeout), d_invalidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from adyton.runtime.process.supervisor.tree import Node

LEASE = 0.02  # seconds that the kernel is told, counted from when the thread that asked goes on with the answer
# Seconds from the answer until it is over: the kernel counts in ticks of up to 10 ms, and ends with a whole one; the rest is for a thread that
# had to wait for a processor before it went on. One that waited longer, for an answer from just before the change, may believe it after that.
OVER = 0.06
CALM = 1.0  # seconds without new leases once one was in the way: who shares files with busy programs is not held up again and again


class Leases:
    """See the module. `now`: seconds, monotonic."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last = 0.0  # when all will be over
        self._granted: list[Node] = []  # and not told
        self._calm = 0.0

    def grant(self, node: Node) -> float:
        """For how many seconds the kernel may believe the node's name, which it is being told of; 0: it has to ask each time."""
        now = self._now()
        if now < self._calm:
            return 0
        node.leased = self._last = now + OVER
        self._granted.append(node)
        return LEASE

    def told(self) -> None:
        """The kernel has heard of what was granted only now."""
        if self._granted:
            self._last = self._now() + OVER
            for node in self._granted:
                node.leased = self._last
            self._granted.clear()

    def left(self, nodes: Callable[[], Iterable[Node]]) -> float:
        """Another program changed what may be at the names of these nodes: in how many seconds no lease of theirs is left."""
        now = self._now()
        if now >= self._last:
            return 0
        left = max((node.leased for node in nodes()), default=0.0) - now
        if left <= 0:
            return 0
        self._calm = now + CALM
        return left
