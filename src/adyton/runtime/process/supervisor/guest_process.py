"""A started guest as its supervisor holds it: its descriptors, what it is told to run, and the links of its threads."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol

from adyton.image.manifest import Broker
from adyton.runtime.process.guest import link as protocol
from adyton.runtime.process.supervisor.bulk import Passed
from adyton.runtime.process.supervisor.loop import Outbox


class GuestProcess(Protocol):
    """What the supervisor holds of a started guest; descriptors that an in-process guest has not are None."""

    @property
    def control(self) -> socket.socket: ...
    @property
    def fuse(self) -> int | None: ...
    @property
    def stdout(self) -> int | None: ...
    @property
    def stderr(self) -> int | None: ...
    @property
    def pidfd(self) -> int | None: ...
    @property
    def pid(self) -> int: ...
    @property
    def shared(self) -> int | None: ...


@dataclass
class GuestWithin:
    """A guest on threads of this process; see GuestProcess."""

    control: socket.socket
    stdout: int | None = None
    stderr: int | None = None
    fuse: int | None = None
    pidfd: int | None = None
    pid: int = 0
    shared: int | None = None


def kill(pidfd: int) -> None:
    """A guest; nothing if it has ended."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def how_ended(pidfd: int) -> str:
    """What is said of a guest that has ended."""
    try:
        status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        status = None
    if status is None:
        return "is gone"
    if status.si_code == os.CLD_EXITED:
        return f"exited with status {status.si_status}"
    return f"was ended by {signal.Signals(status.si_status).name}"


@dataclass(frozen=True)
class Program:
    """What the guest is told to run; from the verified manifest."""

    entry: str
    entries: list[str]
    debug: bool
    broker: Broker | None = None


@dataclass
class Item:
    """A large one of a stream of results. `left`: bytes of it that have not come."""

    call: int
    number: int
    left: int
    parts: list[memoryview] = field(default_factory=list)


@dataclass
class Link:
    """One guest thread's link; `stack`: what is under way on it, innermost last."""

    sock: socket.socket
    outbox: Outbox
    pair: int
    own: bool = False  # of a thread that no client thread is paired with
    stack: list[tuple[Literal["enter", "host"], int]] = field(default_factory=list)
    reader: protocol.Reader = field(default_factory=lambda: protocol.Reader(protocol.ToSupervisor))
    passed: Passed | None = None  # whose bytes come
    item: Item | None = None  # the same

    def give(self, message: protocol.ToThread | memoryview) -> None:
        """What its thread waits for; nothing, if that is gone, or a thread of the guest's own has ended or waits no longer."""
        data = message if isinstance(message, memoryview) else protocol.encode(message)
        with suppress(ConnectionError) if self.own else nullcontext():
            if self.sock.fileno() >= 0:
                self.outbox.put(data)

    @property
    def busy(self) -> bool:
        """A call is under way on it, or what it gives is to be completed."""
        return bool(self.stack) or self.passed is not None or self.item is not None

    @property
    def entry(self) -> int:
        """The client's call that its thread executes now; 0 for none."""
        return self.stack[-1][1] if self.stack and self.stack[-1][0] == "enter" else 0
