"""How many pipes the descriptors of a guest's processes may be, told by their links, which read no file of the client's.

    /proc/PID/fd/N ──► pipe:[inode]         one pipe, whoever has it
                       socket:[inode]       what waits there is counted otherwise (socket_memory)
                       anon_inode:…         keeps nothing
                       /a/path              may be a named pipe, another one each

Who was forked has all that its parent had open, such as a thousand connections. To read a link takes some 4 µs; so they are counted only when
there are many, and not again at once: meanwhile those that were none are taken off, and those that are new are not sure to be any.
Source: pipe(7), proc_pid_fd(5).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

FEW = 512  # descriptors that are not worth it
MANY = 1 << 14  # whose links are read, in less than a tenth of a second; of more, each may be another pipe
AGAIN_SECONDS, _SHARE = 0.5, 9  # until they are counted again: at least, and so many times as long as it took
_PIPE, _NONE = "pipe:", ("socket:", "anon_inode:")


class Range(NamedTuple):
    """How many there were when they were last counted, if they are not fewer; and how many there may be now."""

    least: int
    most: int


class Pipes:
    """`proc`: a proc file system; `now`: a monotonic clock. `spent`: seconds of it, to count."""

    def __init__(self, proc: str, now: Callable[[], float] = time.monotonic) -> None:
        self._proc = proc
        self._now = now
        self.spent = 0.0
        self._counted = 0
        self._others = 0  # descriptors that were no pipe, or one that another was, too
        self._due = 0.0

    def among(self, descriptors: int, processes: Iterable[str], *, anew: bool = False) -> Range:
        """Of so many descriptors, which these processes have. `anew`: count them now. OSError."""
        if descriptors <= FEW:
            return Range(descriptors, descriptors)
        began = self._now()
        if anew or began >= self._due:
            self._others = self._count_others(processes)
            self._counted = max(0, descriptors - self._others)
            took = self._now() - began
            self.spent += took
            self._due = began + took + max(AGAIN_SECONDS, _SHARE * took)
        return Range(min(self._counted, descriptors), max(0, descriptors - self._others))

    def _count_others(self, processes: Iterable[str]) -> int:
        others, pipes = 0, set[str]()
        for link in islice(self._links(processes), MANY):
            others += link.startswith(_NONE) or link in pipes
            if link.startswith(_PIPE):
                pipes.add(link)
        return others

    def _links(self, processes: Iterable[str]) -> Iterator[str]:
        for process in processes:
            directory = f"{self._proc}/{process}/fd"
            # It ended, or may not be read.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                for descriptor in os.listdir(directory):
                    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                        yield os.readlink(f"{directory}/{descriptor}")
