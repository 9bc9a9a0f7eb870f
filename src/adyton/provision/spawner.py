"""The provision server's helper that starts processes: it never imports grpc, and is exec'd before the server does.

Its only peer is the provision server, over a SEQPACKET socket; when that closes, everything it started ends.
`python -m adyton.provision.spawner DESCRIPTOR STORE SETTINGS`, the last RelaySettings in JSON
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import queue
import resource
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from adyton import errors
from adyton.attestation.identity import Platform
from adyton.errors import AdytonError, NotFoundError, PlatformError, ResourceLimitError, UnreachableError
from adyton.provision.relay_messages import MESSAGE_SIZE, Dial
from adyton.provision.relay_processes import RelayProcesses, RelaySettings
from adyton.stopped import STOPPED_SECONDS, stopped

if TYPE_CHECKING:
    from adyton.runtime.launch import Enclave, Zygote

LOOK_SECONDS = 0.5  # between two looks at whether a process was stopped
MAX_ENCLAVES = 2048  # at once, if there is memory for them
END_SECONDS = 5.0  # for the spawner


class Spawn(msgspec.Struct, frozen=True, tag=True):
    """Start an enclave and its proxy server."""

    number: int
    measurement: str
    signatures: list[str]
    platform: Platform
    dial: Dial | None = None  # instead of listening
    sealed: str = ""  # the folder for its sealed files; "": there is none here


class Reveal(msgspec.Struct, frozen=True, tag=True):
    """Say where an enclave can be asked for evidence whose client was dialled."""

    number: int
    enclave: str


class Abandon(msgspec.Struct, frozen=True, tag=True):
    """Nobody wants what was started, or is being started, by that number."""

    number: int


class Spawned(msgspec.Struct, frozen=True, tag=True):
    number: int
    enclave: str
    port: int
    session: bytes


class Revealed(msgspec.Struct, frozen=True, tag=True):
    """`session`: what shows that one may ask."""

    number: int
    port: int
    session: bytes


class Refused(msgspec.Struct, frozen=True, tag=True):
    number: int
    error: str  # name of a class of adyton.errors
    message: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    enclave: str


class Started(msgspec.Struct, frozen=True, tag=True):
    """The first message: the sandbox works, or `message` says why not."""

    message: str


_FROM_SPAWNER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Spawned | Revealed | Refused | Ended | Started)
_TO_SPAWNER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Spawn | Reveal | Abandon)


_T = TypeVar("_T")
_ENDED = "the server's process that starts enclaves has ended: start the server again"


class Spawner:
    """The provision server's end: owns the spawner process. Thread-safe."""

    def __init__(
        self,
        store: str,
        settings: RelaySettings = RelaySettings(),  # noqa: B008 - frozen
        *,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """`settings`: of the processes with its enclaves' relays. PlatformError: no sandbox here.

        `on_end` is called, from another thread, when the spawner has ended, by itself or by `close`.
        """
        self.ended = False
        self._on_end = on_end
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "adyton.provision.spawner",
                    str(other.fileno()),
                    store,
                    msgspec.json.encode(settings).decode(),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(other.fileno(),),
                start_new_session=True,
            )
        self._numbers = itertools.count(1)
        self._waiting: dict[int, queue.SimpleQueue[Any]] = {}
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._running: dict[str, Spawned] = {}
        first = self._socket.recv(MESSAGE_SIZE)
        started = _FROM_SPAWNER.decode(first) if first else Started("the spawner ended")
        if not isinstance(started, Started) or started.message:
            self.close()
            raise PlatformError(started.message if isinstance(started, Started) else "the spawner is out of order")
        threading.Thread(target=self._receive, name="adyton-spawner", daemon=True).start()

    def spawn(
        self,
        measurement: str,
        signatures: list[str],
        platform: Platform,
        wanted: Callable[[], bool] = lambda: True,
        dial: Dial | None = None,
        sealed: str = "",
    ) -> Spawned:
        """Start one; what the spawner's side raised is raised here. UnreachableError, too, once it is not `wanted` any more."""
        mailbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self._lock:
            if len(self._running) + len(self._waiting) >= MAX_ENCLAVES:
                raise ResourceLimitError(
                    f"the server runs {MAX_ENCLAVES} enclaves, and takes no more: load it on another one, or when one has ended"
                )
            number = next(self._numbers)
            self._waiting[number] = mailbox
        spawn = Spawn(number, measurement, signatures, platform, dial, sealed)
        try:
            self._socket.send(msgspec.msgpack.encode(spawn))
            answer = self._answer(mailbox, wanted)
            if not wanted():
                raise UnreachableError("the client has gone")  # nobody hears it
        except OSError:
            raise UnreachableError(_ENDED) from None
        except AdytonError:
            with contextlib.suppress(OSError):
                self._socket.send(msgspec.msgpack.encode(Abandon(number)))
            raise
        return _granted(answer, Spawned)

    def find(self, enclave: str) -> Spawned | None:
        """What `spawn` returned of an enclave that runs; None: of none. Of one whose client was dialled: where it can be asked for evidence; UnreachableError, NotFoundError."""
        with self._lock:
            found = self._running.get(enclave)
            if found is None or found.session:
                return found
            mailbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
            number = next(self._numbers)
            self._waiting[number] = mailbox
        try:
            self._socket.send(msgspec.msgpack.encode(Reveal(number, enclave)))
        except OSError:
            raise UnreachableError(_ENDED) from None
        revealed = _granted(self._answer(mailbox, lambda: True), Revealed)
        return msgspec.structs.replace(found, port=revealed.port, session=revealed.session)

    def _answer(self, mailbox: queue.SimpleQueue[Any], wanted: Callable[[], bool]) -> Any:
        still = 0.0
        while still < STOPPED_SECONDS and wanted():
            try:
                return mailbox.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                still = still + LOOK_SECONDS if stopped(self._process.pid) else 0.0
        if not still:
            raise UnreachableError("the client has gone")
        raise UnreachableError(
            "the server's spawner was stopped by a signal: no enclave can be started until it goes on"
        )

    def _receive(self) -> None:
        while message := _received(self._socket):
            match _FROM_SPAWNER.decode(message):
                case Spawned() | Revealed() | Refused() as answer:
                    with self._lock:
                        if isinstance(answer, Spawned):
                            self._running[answer.enclave] = answer
                        mailbox = self._waiting.pop(answer.number)
                    mailbox.put(answer)
                case Ended(enclave):
                    with self._idle:
                        self._running.pop(enclave, None)
                        self._idle.notify_all()
                case _:
                    pass
        self.ended = True
        self._on_end()
        with self._idle:
            self._running.clear()
            self._idle.notify_all()
            waiting, self._waiting = self._waiting, {}
        for number, mailbox in waiting.items():
            mailbox.put(Refused(number, "UnreachableError", _ENDED))

    def drain(self, seconds: float) -> None:
        """Wait until no enclave runs, at most so long."""
        with self._idle:
            self._idle.wait_for(lambda: not self._running, seconds)

    def close(self) -> None:
        """End it, and all that it started."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it ended by itself
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._socket.close()


def _granted(answer: Any, kind: type[_T]) -> _T:
    """What the spawner's side raised is raised here."""
    if isinstance(answer, Refused):
        raised = getattr(errors, answer.error, AdytonError)
        raise raised(answer.message)
    assert isinstance(answer, kind)
    return answer


def main(descriptor: int, store: str, settings: RelaySettings) -> None:
    """The spawner process."""
    from adyton.runtime.launch import Zygote

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the server drains, and then closes the socket
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # of each enclave we have one, and the zygote has
    control = socket.socket(fileno=descriptor)
    os.set_inheritable(descriptor, False)
    try:
        zygote = Zygote.start(store)
    except AdytonError as error:
        with contextlib.suppress(OSError):  # the server is gone
            control.send(msgspec.msgpack.encode(Started(error.message)))
        return
    with contextlib.suppress(OSError):  # likewise; said below
        control.send(msgspec.msgpack.encode(Started("")))
    lock = threading.Lock()

    def say(message: msgspec.Struct) -> None:
        with lock:
            try:
                control.send(msgspec.msgpack.encode(message))
            except OSError:
                pass  # the server is gone, and so will we be

    processes = RelayProcesses(settings)
    orders: dict[int, _Order] = {}  # by their numbers
    dialled = _Dialled(processes)

    def serve(spawn: Spawn, order: _Order) -> None:
        try:
            _start(zygote, spawn, processes, order, dialled, settings.grace, say)
        except AdytonError as error:
            say(Refused(spawn.number, type(error).__name__, error.message))
        except OSError as error:
            say(Refused(spawn.number, "ResourceLimitError", f"the server cannot start an enclave: {error}"))

    def reveal(asked: Reveal) -> None:
        try:
            say(Revealed(asked.number, *dialled.reveal(asked.enclave)))
        except AdytonError as error:
            say(Refused(asked.number, type(error).__name__, error.message))
        except OSError as error:
            say(Refused(asked.number, "UnreachableError", f"the enclave cannot be asked for evidence: {error}"))

    def end_with_zygote() -> None:
        zygote.wait()
        control.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=end_with_zygote, name="adyton-zygote-end", daemon=True).start()
    while message := _received(control):
        match _TO_SPAWNER.decode(message):
            case Spawn() as spawn:
                number = spawn.number
                orders[number] = _Order(functools.partial(orders.pop, number))
                threading.Thread(target=serve, args=(spawn, orders[number]), daemon=True).start()
            case Reveal() as asked:
                threading.Thread(target=reveal, args=(asked,), daemon=True).start()
            case Abandon(number):
                abandoned = orders.get(number)
                if abandoned is not None:  # it may have failed, or ended, meanwhile
                    abandoned.abandon()
    processes.close()
    zygote.close()


def _received(sock: socket.socket) -> bytes:
    """The next message; empty when the other end is closed."""
    try:
        return sock.recv(MESSAGE_SIZE)
    except ConnectionError:  # its process was killed, and had not read all
        return b""


class _Order:
    """One enclave that was asked for, and is ended once nobody wants it. Thread-safe."""

    def __init__(self, over: Callable[[], object]) -> None:
        self._over = over
        self._lock = threading.Lock()
        self._enclave: Enclave | None = None
        self._abandoned = False

    def launched(self, enclave: Enclave) -> None:
        """It runs."""
        with self._lock:
            self._enclave = enclave
            if self._abandoned:
                enclave.kill()

    def abandon(self) -> None:
        """Nobody wants it."""
        with self._lock:
            self._abandoned = True
            if self._enclave is not None:
                self._enclave.kill()

    def close(self) -> None:
        """It is over."""
        with self._lock:
            enclave, self._enclave = self._enclave, None
        if enclave is not None:
            enclave.close()
        self._over()


class _Dialled:
    """The enclaves whose clients were dialled, which nobody else could ask for evidence. Thread-safe."""

    def __init__(self, processes: RelayProcesses) -> None:
        self._processes = processes
        self._lock = threading.Lock()
        self._in_turn = threading.Lock()  # one is revealed at a time, and once
        self._enclaves: dict[str, Enclave] = {}  # by their names
        self._revealed: dict[str, tuple[int, bytes]] = {}

    def keep(self, name: str, enclave: Enclave) -> None:
        """Its client is dialled. Its control socket stays open here: it ends by `finished`."""
        with self._lock:
            self._enclaves[name] = enclave

    def forget(self, name: str) -> None:
        """It has ended, or does now."""
        with self._lock:
            self._enclaves.pop(name, None)
            self._revealed.pop(name, None)

    def reveal(self, name: str) -> tuple[int, bytes]:
        """At which port it can be asked, and by what secret. NotFoundError: it has ended. UnreachableError, OSError."""
        session, over = secrets.token_bytes(32), threading.Event()

        def hide() -> None:
            """The process that listened for it has ended."""
            over.set()
            with self._lock:
                if self._revealed.get(name, (0, b""))[1] == session:
                    del self._revealed[name]

        with self._in_turn:
            with self._lock:
                enclave, revealed = self._enclaves.get(name), self._revealed.get(name)
            if enclave is None:
                raise NotFoundError(f"the enclave {name} has ended")
            if revealed is not None:
                return revealed
            port = self._processes.carry(enclave, session, None, hide, kept=True)
            with self._lock:
                if name in self._enclaves and not over.is_set():
                    self._revealed[name] = port, session
            return port, session


def _start(
    zygote: Zygote,
    spawn: Spawn,
    processes: RelayProcesses,
    order: _Order,
    dialled: _Dialled,
    grace: float,
    say: Callable[[msgspec.Struct], None],
) -> None:
    from adyton.runtime.launch import LaunchRequest, sealed_place

    name = secrets.token_hex(8)
    said = threading.Event()

    def finished() -> None:
        dialled.forget(name)
        order.close()
        said.wait()
        say(Ended(name))

    try:
        request = LaunchRequest(spawn.measurement, spawn.signatures, spawn.platform, grace)
        with sealed_place(spawn.sealed) as sealed:
            enclave = zygote.launch(request, sealed)
        order.launched(enclave)
        session = secrets.token_bytes(32) if spawn.dial is None else spawn.dial.session
        if spawn.dial is not None:
            dialled.keep(name, enclave)
        port = processes.carry(enclave, session, spawn.dial, finished)
    except BaseException:
        dialled.forget(name)
        order.close()
        raise
    if spawn.dial is None:
        enclave.socket.close()  # the relay's now: its end is the enclave's end
    say(Spawned(spawn.number, name, port, session if spawn.dial is None else b""))
    said.set()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], msgspec.json.decode(sys.argv[3], type=RelaySettings))
