"""The spawner's side of its relay processes, without grpc: they are started as enclaves come, and ended when they are empty.

As many enclaves as the machine has processors have one each; more share them, each the one that has the fewest: an idle process costs more
than hundreds of idle relays in it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import msgspec

from adyton.errors import UnreachableError
from adyton.provision.relay_messages import (
    ENCLAVES,
    Carried,
    Carry,
    Dial,
    Failed,
    Finished,
    Leaving,
    Missed,
    Ready,
    answered,
    order,
)
from adyton.stopped import STOPPED_SECONDS, stopped

if TYPE_CHECKING:
    from adyton.runtime.launch import Enclave

T = TypeVar("T")

PROCESSES = min(max(2, os.cpu_count() or 1), 16)  # that there are before any is shared
LOOK_SECONDS = 0.5  # between two looks at whether a process was stopped
START_SECONDS = 20.0  # until a process must have said where it listens, or that its client has it
_ATTEMPTS = 3  # to find a process that does not end
RELAY_VARIABLE = "ADYTON_RELAY"  # arguments of relay_process, for an `adyton proxy` that is to be one


class RelaySettings(msgspec.Struct, frozen=True):
    """How a server's relay processes are started, and where they listen."""

    host: str = "127.0.0.1"
    ports: tuple[int, int] = (0, 0)  # lowest and highest, tried in order; 0 takes a free one
    files: list[str] = []  # of TLS: certificate, key, and the CA of clients
    remote_proxy: str = (
        ""  # the command, as a shell takes it, that ends up in `adyton proxy`, one for each enclave; "" for ours
    )
    grace: float = 0.0  # see LaunchRequest
    processes: int = PROCESSES


@dataclass
class _Share:
    """An enclave that a process has, or is about to have."""

    finished: Callable[[], None]
    answer: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)  # that it has, or why not
    carried: bool = False


class _Process:
    """One of them. Thread-safe."""

    def __init__(self, settings: RelaySettings, *, listens: bool, changed: Callable[[_Process], None]) -> None:
        """`changed`: called when it has an enclave less, is to have no more, or has ended. UnreachableError; OSError: a command that is none."""
        command = shlex.split(settings.remote_proxy)
        self.most = ENCLAVES if listens and not command else 1
        self.shares: dict[int, _Share] = {}
        self.leaving = self.ended = False
        self._settings = settings
        self._changed = changed
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._first: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [str(other.fileno()), f"{settings.grace:g}"]
        if listens:
            arguments += [settings.host, *map(str, settings.ports), *settings.files]
        with other:
            self._process = subprocess.Popen(
                command or [sys.executable, "-P", "-m", "adyton.provision.relay_process", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(other.fileno(),),
                env={**os.environ, RELAY_VARIABLE: shlex.join(arguments)} if command else None,
            )
        self.pid = self._process.pid
        threading.Thread(target=self._receive, name="adyton-relays", daemon=True).start()
        try:
            first = self._await(self._first)
        except queue.Empty:
            first = None
        if not isinstance(first, Ready):
            halted = stopped(self.pid)
            self.kill()
            raise UnreachableError(
                "the server's proxy server was stopped while it was started"
                if halted
                else _why_not(settings, no_port=isinstance(first, Failed))
            )
        self.port = first.port

    def _await(self, answers: queue.SimpleQueue[T]) -> T:
        """What it says; queue.Empty if that takes too long, or it stands still."""
        until, still = time.monotonic() + START_SECONDS, 0.0
        while True:
            with contextlib.suppress(queue.Empty):
                return answers.get(timeout=LOOK_SECONDS)
            still = still + LOOK_SECONDS if stopped(self.pid) else 0.0
            if still >= STOPPED_SECONDS or time.monotonic() >= until:
                raise queue.Empty

    @property
    def has_room(self) -> bool:
        """For one enclave more."""
        return not self.leaving and len(self.shares) < self.most

    def reserve(self, finished: Callable[[], None]) -> int:
        """Keep room for an enclave; the number for `carry`, which is to follow."""
        number = next(self._numbers)
        with self._lock:
            self.shares[number] = _Share(finished)
        return number

    def carry(self, number: int, enclave: Enclave, session: bytes, dial: Dial | None, *, kept: bool = False) -> None:
        """Have it relay for the enclave. `finished` is called once when that is over, from a thread of its own.

        UnreachableError: it does not, and `finished` will not be called. OSError: likewise, since it ends.
        """
        with self._lock:
            share = self.shares.get(number)
        if share is None:
            raise BrokenPipeError
        try:
            order(self._socket, Carry(number, enclave.pid, session, dial, kept), enclave.socket.fileno())
            why = self._await(share.answer)
        except queue.Empty:
            why = "it was stopped" if stopped(self.pid) else f"no answer within {START_SECONDS:g} s"
        except OSError:
            self._over(number)
            raise
        with self._lock:
            if share.carried:
                return
        self._over(number)
        raise UnreachableError(
            f"the server's proxy server did not reach its client (dial_back): {why}"
            if dial is not None
            else f"the server's proxy server has not taken the enclave: {why}"
        )

    def leave(self) -> None:
        """It ends, and the enclaves that it has."""
        self.leaving = True
        with contextlib.suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """The same, whatever it does."""
        self.leave()
        self._process.kill()

    def _over(self, number: int, why: str = "") -> None:
        with self._lock:
            share = self.shares.pop(number, None)
        if share is None:
            return
        if share.carried:
            threading.Thread(target=share.finished, name="adyton-finished", daemon=True).start()
        else:
            share.answer.put(why)
        self._changed(self)

    def _receive(self) -> None:
        first = answered(self._socket)
        self._first.put(first)
        while first is not None and (message := answered(self._socket)) is not None:
            match message:
                case Carried(number):
                    with self._lock:
                        share = self.shares.get(number)
                        if share is not None:
                            share.carried = True
                            share.answer.put("")
                case Missed(number, why):
                    self._over(number, why)
                case Finished(number):
                    self._over(number)
                case Leaving():
                    self.leaving = True
                    self._changed(self)
                case _:
                    pass
        self.leaving = True
        for number in list(self.shares):
            self._over(number, "it has ended")
        self._process.wait()
        self.ended = True
        self._changed(self)
        self._socket.close()


def _why_not(settings: RelaySettings, *, no_port: bool) -> str:
    text = "the server cannot start a proxy server"
    if no_port:
        low, high = settings.ports
        text += f" at {settings.host}, ports {low} to {high}: are they in use?"
    if settings.remote_proxy:
        text += f"{'' if no_port else ':'} does its --remote_proxy not end up in adyton proxy: {settings.remote_proxy}"
    return text


class RelayProcesses:
    """Those of a server. Thread-safe."""

    def __init__(self, settings: RelaySettings) -> None:
        self._settings = settings
        self._longest = max(settings.grace, STOPPED_SECONDS)
        self._lock = threading.Lock()
        self._starting = 0
        self._processes: list[_Process] = []
        threading.Thread(target=self._end_stopped, name="adyton-stopped", daemon=True).start()

    def carry(
        self, enclave: Enclave, session: bytes, dial: Dial | None, finished: Callable[[], None], *, kept: bool = False
    ) -> int:
        """Have a process relay for the enclave: at what port; 0 if it has dialled. `finished` is called, from a thread of its own, when that is
        over; unless this raises UnreachableError or OSError. `kept`: see Carry."""
        for _ in range(_ATTEMPTS):
            if dial is not None or self._settings.remote_proxy:
                process = self._start(listens=dial is None)
                number = process.reserve(finished)
            else:
                process, number = self._with_room(finished)
            with contextlib.suppress(OSError):
                process.carry(number, enclave, session, dial, kept=kept)
                return process.port
        raise UnreachableError("the server's proxy servers end as soon as they are started")

    def _with_room(self, finished: Callable[[], None]) -> tuple[_Process, int]:
        with self._lock:
            shared = [each for each in self._processes if each.most > 1 and not each.leaving]
            found = [each for each in shared if each.has_room and not stopped(each.pid)]
            if found and len(shared) + self._starting >= self._settings.processes:
                process = min(found, key=lambda each: len(each.shares))
                return process, process.reserve(finished)
            self._starting += 1
        try:
            process = self._start(listens=True)
        finally:
            with self._lock:
                self._starting -= 1
        return process, process.reserve(finished)

    def _start(self, *, listens: bool) -> _Process:
        process = _Process(self._settings, listens=listens, changed=self._when_changed)
        with self._lock:
            if not process.ended:
                self._processes.append(process)
        return process

    def _when_changed(self, process: _Process) -> None:
        with self._lock:
            if process.ended and process in self._processes:
                self._processes.remove(process)
            if not process.shares:
                process.leave()

    def _end_stopped(self) -> None:
        """One that was stopped would keep its enclaves for ever: their clients give them up, but it does not notice."""
        still: dict[int, float] = {}
        while True:
            time.sleep(LOOK_SECONDS)
            with self._lock:
                halted = [process for process in self._processes if stopped(process.pid)]
            still = {process.pid: still.get(process.pid, 0.0) + LOOK_SECONDS for process in halted}
            for process in halted:
                if still[process.pid] > self._longest:
                    process.kill()

    def close(self) -> None:
        """End all."""
        with self._lock:
            processes = list(self._processes)
        for process in processes:
            process.kill()
