"""The supervisor's own walls, put up once its guest runs.

What is there already: a user id of the enclave's own (as root), no network, a Landlock domain shared with its guest only
(zygote.py), no debugging by others (guest_start.py). Here its file tree shrinks to the libraries, its last capability goes, and the
filter allows only what a running supervisor does. (Landlock cannot narrow its files: a supervisor in a narrower domain than its
guest's may not look into it, see landlock.py.)
"""

from __future__ import annotations

import os
from collections.abc import Callable

from adyton.runtime.process import namespaces, root
from adyton.runtime.process.filter import supervisor_filter
from adyton.runtime.process.libc import install_filter


def confine_supervisor(proc: int, *start_threads: Callable[[], None]) -> None:
    """Put up the walls, for good. The blob store, the server's /proc and all devices cannot be reached afterwards.

    Of that /proc one file stays open, which tells of a descriptor of this process (supervisor.thread_numbers).

    `proc`: descriptor of the guest's own /proc, which becomes the working directory. `start_threads` are called when nothing but the
    filter is missing, which then covers all threads, and lets no more begin.
    """
    os.chroot(root.SYSTEM)
    os.fchdir(proc)
    namespaces.set_capabilities()
    for start in start_threads:
        start()
    install_filter(supervisor_filter(), every_thread=True)
