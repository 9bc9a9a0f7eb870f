"""Memory that two processes have for a moment: of one that vfork(2) or posix_spawn(3) started, until it executes its program or ends.

A thread of its parent waits for that. It may be long, for the program may have to be looked for on the client; and all that the parent has is
said to be the child's as well. Who adds up both therefore asks before and after for the threads that wait. One that did so before, and has not
run since, waited all the time: so its child was there all the time, and was counted.

A hostile program may have a thread look as if it waited (on its way back, for a page of the client's). So who asks bounds what it takes off.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections import Counter
from collections.abc import Mapping

from adyton.runtime.process.proc_file import read

# clone and vfork: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
_CLONE, _VFORK = (220, None) if platform.machine() == "aarch64" else (56, 58)
# linux/sched.h: VM, VFORK; THREAD, and the namespaces, as table.py has them: what the filter refuses waits for the supervisor
_SHARES, _REFUSED = 0x100 | 0x4000, 0x10000 | 0x7E020000
_SLEEPS = b"\nState:\tD"  # where no signal but the last can stop it
_RUNS = b"\nvoluntary_ctxt_switches:"  # how often it stopped to run, of itself, and in the next line otherwise; both end a status

Waiting = Mapping[tuple[str, str], bytes]  # process and thread → how often it stopped to run


def waiting(proc: str) -> Waiting:
    """The threads that wait for a process which has their memory. `proc`: a proc file system."""
    found = {}
    for process in filter(str.isdigit, os.listdir(proc)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # ended, or not to be read
            for thread in os.listdir(f"{proc}/{process}/task"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    directory = f"{proc}/{process}/task/{thread}"
                    if lends(read(f"{directory}/syscall")):
                        status, _, runs = read(f"{directory}/status").partition(_RUNS)
                        if _SLEEPS in status:
                            found[process, thread] = runs
    return found


def lends(call: bytes) -> bool:
    """Whether this, of /proc/PID/syscall, is a call that ends when its child has memory of its own."""
    words = call.split()
    if len(words) < 7:  # it runs, or waits outside of a call: proc_pid_syscall(5)
        return False
    number, flags = int(words[0]), int(words[1], 16)
    return number == _VFORK or (number == _CLONE and flags & (_SHARES | _REFUSED) == _SHARES)


def lent(before: Waiting, after: Waiting) -> Counter[str]:
    """To how many others did a process lend its memory, from `before` to `after`."""
    return Counter(process for (process, thread), runs in before.items() if after.get((process, thread)) == runs)
