"""Memory that two processes have for a moment: a child's that vfork(2) or posix_spawn(3) started, until it executes its program or ends.

    parent's thread, in its call:  syscall: clone, VM + VFORK   wchan: kernel_clone   children: … child
    child:                         stat: forked, has executed nothing

A thread of its parent waits for that. It may be long, for the program may have to be looked for on the client, and a program may start many
at once; and all that the parent has is said to be each child's as well. Where such a thread waits, its child has had the parent's memory ever
since it was there. It is `sure` which child that is if the thread has one only that has executed nothing, and if the kernel says that the
thread sleeps where it waits for one: a hostile program may have a thread look as if it waited (on its way back, for a page of the client's),
and other children become the thread's when their own parent ends, or it has had them before. What is not sure, who asks has to bound.

Source: proc_pid_syscall(5), proc_pid_wchan(5), proc_pid_task(5), proc_pid_stat(5).
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping

from adyton.runtime.process.proc_file import read

# clone and vfork: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
_CLONE, _VFORK = (220, None) if platform.machine() == "aarch64" else (56, 58)
# linux/sched.h: VM, VFORK; PARENT, whose child is another's; THREAD, and the namespaces, as table.py has them: what the filter refuses waits
# for the supervisor
_SHARES, _REFUSED = 0x100 | 0x4000, 0x8000 | 0x10000 | 0x7E020000
# Where a thread sleeps until its child has memory of its own (kernel/fork.c; the first is mostly a part of the second).
_PLACES = {b"wait_for_vfork_done", b"kernel_clone"}
_SLEEPS = b"D"  # where no signal but the last can stop it
_ENDED = (b"Z", b"X")
_FORKED = 0x40  # PF_FORKNOEXEC, linux/sched.h
_RUNS = b"\nvoluntary_ctxt_switches:"
_LOOKS = 3  # at most, at a thread that ceases to wait, and waits again
_STATE, _PARENT, _FLAGS = 0, 1, 6  # behind the name in a stat

Borrowers = Mapping[str, bool]  # process → whether it is sure that it has its parent's memory


def borrowers(proc: str) -> Borrowers:
    """Who has its parent's memory. `proc`: a proc file system."""
    found: dict[str, bool] = {}
    for process in filter(str.isdigit, os.listdir(proc)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # ended, or not to be read
            for thread in os.listdir(f"{proc}/{process}/task"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    _of(proc, f"{proc}/{process}/task/{thread}", found)
    return found


def is_forked(proc: str, process: str) -> bool:
    """Whether it has executed nothing yet, and goes on. FileNotFoundError, ProcessLookupError."""
    stat = _stat(f"{proc}/{process}")
    return stat[_STATE] not in _ENDED and bool(int(stat[_FLAGS]) & _FORKED)


def lends(call: bytes) -> bool:
    """Whether this, of /proc/PID/syscall, is a call that ends when its child has memory of its own."""
    words = call.split()
    if len(words) < 7:  # it runs, or waits outside of a call: proc_pid_syscall(5)
        return False
    number, flags = int(words[0]), int(words[1], 16)
    return number == _VFORK or (number == _CLONE and flags & (_SHARES | _REFUSED) == _SHARES)


def _of(proc: str, thread: str, found: dict[str, bool]) -> None:
    """The child for which a thread waits; none if it waits for none."""
    for _ in range(_LOOKS):
        if not lends(read(f"{thread}/syscall")):
            return
        runs = _runs(thread)
        children, are_its_own = _children(proc, thread)
        forked = [child for child in children if _is_still_forked(proc, child)]
        waits = read(f"{thread}/wchan").partition(b".")[0] in _PLACES
        if not waits and _stat(thread)[_STATE] != _SLEEPS:
            return
        if runs == _runs(thread):  # so it waited all the time, and its child was among these
            for child in forked[-1:] if are_its_own else forked:
                found[child] = waits and len(forked) == 1
            return


def _children(proc: str, thread: str) -> tuple[list[str], bool]:
    """A thread's, of which the latest comes last, but for those that were another's. False: its process's, in any order.

    So it is where the kernel does not tell whose they are (without CONFIG_PROC_CHILDREN).
    """
    try:
        with open(f"{thread}/children", encoding="ascii") as file:
            return file.read().split(), True
    except FileNotFoundError:
        process = thread.split("/")[-3].encode()
        return [each for each in filter(str.isdigit, os.listdir(proc)) if _parent(proc, each) == process], False


def _parent(proc: str, process: str) -> bytes:
    try:
        return _stat(f"{proc}/{process}")[_PARENT]
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _is_still_forked(proc: str, process: str) -> bool:
    try:
        return is_forked(proc, process)
    except (FileNotFoundError, ProcessLookupError):
        return False


def _runs(thread: str) -> bytes:
    """How often it stopped to run, of itself and otherwise, which ends a status."""
    return read(f"{thread}/status").rpartition(_RUNS)[2]


def _stat(path: str) -> list[bytes]:
    return read(f"{path}/stat").rpartition(b")")[2].split()
