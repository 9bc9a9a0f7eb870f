"""Doors: unix sockets within an enclave, and what goes through them is carried by attested connections to other enclaves."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol, Self

from adyton.attestation.identity import EnclaveIdentity
from adyton.errors import AdytonError, UsageError
from adyton.trusted.addresses import host_and_port
from adyton.trusted.attested import AttestedSocket

MOST = 256  # connections of one door at a time; who comes then waits
_PAUSE = 0.1  # seconds, before another is taken where one could not be
_PIECE = 1 << 16  # bytes
_ABSTRACT = "unix-abstract:"
_PATH = "unix:"
_log = logging.getLogger("adyton.trusted.channel")


class Meet(Protocol):
    """Makes an attested connection of a connection, which it closes on any error."""

    def __call__(self, sock: socket.socket, *, server_side: bool) -> AttestedSocket: ...


class _Door:
    """Takes connections, each on a thread, until it is closed; then all of its connections are cut."""

    def __init__(self, listener: socket.socket, name: str) -> None:
        self._listener = listener
        self._name = name
        self._lock = threading.Lock()
        self._room = threading.Semaphore(MOST)
        self._cuts: set[Callable[[], None]] = set()
        self._closed = False
        self._process = os.getpid()
        self._start(self._take, "door")

    def _lead(self, taken: socket.socket) -> None:
        """Lead one, which is closed afterwards, to where it is to go."""
        raise NotImplementedError

    def _take(self) -> None:
        while True:
            self._room.acquire()
            taken = None
            try:
                taken, _ = self._listener.accept()
                self._start(partial(self._led, taken), "connection")
            except (OSError, RuntimeError) as error:  # no descriptor or thread is left, or the door was closed
                self._room.release()
                if taken is not None:
                    taken.close()
                if self._closed:
                    return
                _log.warning("%s: %s", self._name, error)
                time.sleep(_PAUSE)

    def _led(self, taken: socket.socket) -> None:
        try:
            with taken, self._cut_by_close(partial(_cut, taken)):
                self._lead(taken)
        except (AdytonError, OSError) as error:
            if not self._closed:
                _log.warning("%s: %s", self._name, error)
        finally:
            self._room.release()

    def _start(self, work: Callable[[], None], what: str) -> threading.Thread:
        thread = threading.Thread(target=work, name=f"adyton-channel-{what}", daemon=True)
        thread.start()
        return thread

    def _carry(self, local: socket.socket, far: AttestedSocket) -> None:
        """All that comes, both ways, until both have ended, or either was cut."""

        def cut() -> None:
            far.cut()
            _cut(local)

        def carry(source: socket.socket | AttestedSocket, target: socket.socket | AttestedSocket) -> None:
            try:
                while data := source.recv(_PIECE):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)
            except (AdytonError, OSError):
                cut()

        with self._cut_by_close(cut):
            back = self._start(lambda: carry(far, local), "connection")
            carry(local, far)
            back.join()

    @contextlib.contextmanager
    def _cut_by_close(self, cut: Callable[[], None]) -> Iterator[None]:
        """What `close` calls; at once, if the door is closed already."""
        with self._lock:
            self._cuts.add(cut)
            closed = self._closed
        if closed:
            cut()
        try:
            yield
        finally:
            with self._lock:
                self._cuts.discard(cut)

    def close(self) -> None:
        """Take no more, and cut what there is. In a forked process: it is the other one's, and goes on."""
        if os.getpid() != self._process:
            self._listener.close()
            return
        with self._lock:
            self._closed = True
            cuts = list(self._cuts)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for cut in cuts:
            cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class Dialled(_Door):
    """What `adyton.trusted.channel.dial` returns. `target`: its name for gRPC; `path`: for `socket.connect`; `peer`: who answered first."""

    def __init__(self, address: str, meet: Meet, timeout: float) -> None:
        self._host, self._port = host_and_port(address, f"dial({address!r})")
        self._meet = meet
        self._timeout = timeout
        first = self._dial()
        self.peer: EnclaveIdentity = first.peer
        self._first: AttestedSocket | None = first
        name = f"adyton-{os.urandom(16).hex()}"
        self.target = _ABSTRACT + name
        self.path = f"\0{name}"
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(self.path)
            listener.listen()
        except BaseException:
            listener.close()
            first.close()
            raise
        super().__init__(listener, f"dial({address!r})")

    def _dial(self) -> AttestedSocket:
        sock = socket.create_connection((self._host, self._port), self._timeout)
        sock.settimeout(None)
        return self._meet(sock, server_side=False)

    def _lead(self, taken: socket.socket) -> None:
        with self._lock:
            first, self._first = self._first, None
        with first or self._dial() as far:
            self._carry(taken, far)

    def close(self) -> None:
        """See `_Door`."""
        super().close()
        if os.getpid() != self._process:
            return
        with self._lock:
            first, self._first = self._first, None
        if first is not None:
            first.close()


class Served(_Door):
    """What `adyton.trusted.channel.serve` returns. `address`: (host, port) at which it listens."""

    def __init__(self, address: str, to: str, meet: Meet, timeout: float) -> None:
        host, port = host_and_port(address, f"serve({address!r})", 0)
        self._to = _unix_address(to)
        self._meet = meet
        self._timeout = timeout
        self._peers: dict[str, EnclaveIdentity] = {}
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
        self.address: tuple[str, int] = listener.getsockname()[:2]
        super().__init__(listener, f"serve({address!r})")

    def peer(self, of: str) -> EnclaveIdentity | None:
        """Who is at the other end of a connection, by its peer's name in here: `context.peer()` of gRPC, or "unix-abstract:NAME" of `getpeername`. None: nobody's, or gone."""
        return self._peers.get(of)

    def _lead(self, taken: socket.socket) -> None:
        taken.settimeout(None)
        with self._meet(taken, server_side=True) as far, socket.socket(socket.AF_UNIX) as local:
            name = f"adyton-{os.urandom(16).hex()}"
            local.bind(f"\0{name}")
            self._peers[_ABSTRACT + name] = far.peer
            try:
                local.connect(self._to)
                self._carry(local, far)
            finally:
                del self._peers[_ABSTRACT + name]


def _unix_address(target: str) -> str:
    """As `socket.connect` takes it. UsageError: it is none; TCP's loopback is the client's, who would read everything."""
    if target.startswith(_ABSTRACT) and len(target) > len(_ABSTRACT):
        return "\0" + target[len(_ABSTRACT) :]
    if target.startswith(_PATH) and len(target) > len(_PATH):
        return target[len(_PATH) :]
    raise UsageError(
        f"serve(to={target!r}): write {_PATH}PATH or {_ABSTRACT}NAME, where a server in this enclave listens; any other address is the client's"
    )
