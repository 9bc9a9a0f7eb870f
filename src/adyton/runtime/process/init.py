"""PID 1 of an enclave: it reaps what its parents left behind, and with it all ends that runs in there.

The program is not PID 1 itself: to that process the kernel delivers no signal whose default action is to end it, not even its own
(pid_namespaces(7)), and a program that does not know itself to be an init waits for no orphans. When this process ends, the kernel ends all
others of the pid namespace. It ends with the program, so that nothing goes on after it, and with the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import NoReturn

from adyton.runtime.process import namespaces
from adyton.runtime.process.filter import guest_filter
from adyton.runtime.process.libc import install_filter, system_call

INIT = 1
PROGRAM = 2  # process id of the program in there: it is started next, before anything else can be

_LAST_DESCRIPTOR = 0xFFFFFFFF


def run(supervisor: int) -> NoReturn:
    """Never returns. `supervisor`: read end of a pipe, at whose other end the supervisor writes once it is this process's parent."""
    namespaces.set_name("enclave-init")
    namespaces.set_dumpable(False)  # the program has the same user id, and shall not look into it
    os.setsid()
    for first, last in ((0, supervisor - 1), (supervisor + 1, _LAST_DESCRIPTOR)):
        system_call("close_range", first, last, 0)
    if not os.read(supervisor, 16):
        os._exit(0)
    woken, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    namespaces.drop_capabilities_for_good()
    namespaces.no_new_privileges()
    namespaces.die_with_parent()  # and where that was too late, the pipe says so
    install_filter(guest_filter(programs=False))
    poller = select.poll()
    for descriptor in (supervisor, woken, os.pidfd_open(PROGRAM)):
        poller.register(descriptor, select.POLLIN)
    while [descriptor for descriptor, _ in poller.poll()] == [woken]:
        os.read(woken, 4096)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    os._exit(0)
