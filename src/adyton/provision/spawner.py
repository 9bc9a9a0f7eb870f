"""The provision server's helper that starts processes: it never imports grpc, and is exec'd before the server does.

Its only peer is the provision server, over a SEQPACKET socket; when that closes, everything it started ends.
`python -m adyton.provision.spawner DESCRIPTOR STORE PROXY-COMMAND`
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from adyton import errors
from adyton.communicator.joining import GRACE_SECONDS
from adyton.errors import AdytonError, PlatformError, ResourceLimitError, UnreachableError
from adyton.provision.first_line import CONNECTED, FAILED, LISTENING
from adyton.stopped import STOPPED_SECONDS, stopped

if TYPE_CHECKING:
    from adyton.runtime.launch import Enclave

MESSAGE_SIZE = 1 << 16
LOOK_SECONDS = 0.5  # between two looks at whether a process was stopped
MAX_ENCLAVES = 256  # at once
START_SECONDS = 20.0  # until a proxy server must have said where it listens, or that its client has it
END_SECONDS = 5.0  # for the spawner
RELAY_VARIABLE = "ADYTON_RELAY"  # arguments of relay_process, for an `adyton proxy` that is to be one


class Dial(msgspec.Struct, frozen=True):
    """A client that waits for its proxy server. `target` as gRPC takes it; `certificate` in PEM, empty for none."""

    target: str
    session: bytes
    certificate: bytes


class Spawn(msgspec.Struct, frozen=True, tag=True):
    """Start an enclave and its proxy server."""

    number: int
    measurement: str
    signatures: list[str]
    platform: str
    host: str  # that the proxy server listens at
    ports: tuple[int, int]  # lowest and highest, tried in order; 0 takes a free one
    options: list[str]  # TLS options of the proxy server
    dial: Dial | None = None  # instead of listening


class Abandon(msgspec.Struct, frozen=True, tag=True):
    """Nobody wants what was started, or is being started, by that number."""

    number: int


class Spawned(msgspec.Struct, frozen=True, tag=True):
    number: int
    enclave: str
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


_FROM_SPAWNER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Spawned | Refused | Ended | Started)
_TO_SPAWNER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Spawn | Abandon)


_ENDED = "the server's process that starts enclaves has ended: start the server again"


class Spawner:
    """The provision server's end: owns the spawner process. Thread-safe."""

    def __init__(
        self,
        store: str,
        *,
        remote_proxy: str = "",
        grace: float = GRACE_SECONDS,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """`remote_proxy`: the command, as a shell takes it, that ends up in `adyton proxy`; "" for ours. `grace`: see LaunchRequest.
        PlatformError: no sandbox here.

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
                    remote_proxy,
                    str(grace),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(other.fileno(),),
                start_new_session=True,
            )
        self._numbers = itertools.count(1)
        self._waiting: dict[int, queue.SimpleQueue[Spawned | Refused]] = {}
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._running: set[str] = set()
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
        platform: str,
        host: str,
        ports: tuple[int, int],
        options: list[str],
        wanted: Callable[[], bool] = lambda: True,
        dial: Dial | None = None,
    ) -> Spawned:
        """Start one; what the spawner's side raised is raised here. UnreachableError, too, once it is not `wanted` any more."""
        mailbox: queue.SimpleQueue[Spawned | Refused] = queue.SimpleQueue()
        with self._lock:
            if len(self._running) + len(self._waiting) >= MAX_ENCLAVES:
                raise ResourceLimitError(
                    f"the server runs {MAX_ENCLAVES} enclaves, and takes no more: load it on another one, or when one has ended"
                )
            number = next(self._numbers)
            self._waiting[number] = mailbox
        spawn = Spawn(number, measurement, signatures, platform, host, ports, options, dial)
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
        if isinstance(answer, Refused):
            kind = getattr(errors, answer.error, AdytonError)
            raise kind(answer.message)
        return answer

    def _answer(self, mailbox: queue.SimpleQueue[Spawned | Refused], wanted: Callable[[], bool]) -> Spawned | Refused:
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
                case Spawned() | Refused() as answer:
                    with self._lock:
                        if isinstance(answer, Spawned):
                            self._running.add(answer.enclave)
                        mailbox = self._waiting.pop(answer.number)
                    mailbox.put(answer)
                case Ended(enclave):
                    with self._idle:
                        self._running.discard(enclave)
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


def main(descriptor: int, store: str, remote_proxy: str, grace: float) -> None:
    """The spawner process."""
    command = shlex.split(remote_proxy)
    from adyton.runtime.launch import Zygote

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the server drains, and then closes the socket
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

    relays: set[subprocess.Popen[str]] = set()
    threading.Thread(target=_end_stopped, args=(relays, grace), name="adyton-stopped", daemon=True).start()

    orders: dict[int, _Order] = {}  # by their numbers
    ports: set[int] = set()  # that our proxy servers listen at

    def serve(spawn: Spawn, order: _Order) -> None:
        try:
            _start(zygote, spawn, command, relays, ports, say, order.started, grace)
        except AdytonError as error:
            say(Refused(spawn.number, type(error).__name__, error.message))
        except OSError as error:
            say(Refused(spawn.number, "ResourceLimitError", f"the server cannot start an enclave: {error}"))
        finally:
            del orders[spawn.number]

    def end_with_zygote() -> None:
        zygote.wait()
        control.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=end_with_zygote, name="adyton-zygote-end", daemon=True).start()
    while message := _received(control):
        match _TO_SPAWNER.decode(message):
            case Spawn() as spawn:
                order = orders[spawn.number] = _Order()
                threading.Thread(target=serve, args=(spawn, order), daemon=True).start()
            case Abandon(number):
                abandoned = orders.get(number)
                if abandoned is not None:  # it may have failed, or ended, meanwhile
                    abandoned.abandon()
    for relay in list(relays):
        relay.kill()
    zygote.close()


def _received(sock: socket.socket) -> bytes:
    """The next message; empty when the other end is closed."""
    try:
        return sock.recv(MESSAGE_SIZE)
    except ConnectionError:  # its process was killed, and had not read all
        return b""


class _Order:
    """One enclave that was asked for, and is ended once nobody wants it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._relay: subprocess.Popen[str] | None = None
        self._abandoned = False

    def started(self, relay: subprocess.Popen[str]) -> None:
        """Its proxy server runs."""
        with self._lock:
            self._relay = relay
            if self._abandoned:
                relay.kill()

    def abandon(self) -> None:
        """Nobody wants it."""
        with self._lock:
            self._abandoned = True
            if self._relay is not None:
                self._relay.kill()


def _end_stopped(relays: set[subprocess.Popen[str]], grace: float) -> None:
    """A proxy server that was stopped would keep its enclave for ever: its client gives it up, but it does not notice."""
    longest = max(grace, STOPPED_SECONDS)
    still: dict[int, float] = {}
    while True:
        time.sleep(LOOK_SECONDS)
        halted = [relay for relay in list(relays) if stopped(relay.pid)]
        still = {relay.pid: still.get(relay.pid, 0.0) + LOOK_SECONDS for relay in halted}
        for relay in halted:
            if still[relay.pid] > longest:
                relay.kill()


def _start(
    zygote: Any,
    spawn: Spawn,
    command: list[str],
    relays: set[subprocess.Popen[str]],
    ports: set[int],
    say: Callable[[msgspec.Struct], None],
    started: Callable[[subprocess.Popen[str]], None],
    grace: float,
) -> None:
    from adyton.runtime.launch import LaunchRequest

    enclave = zygote.launch(LaunchRequest(spawn.measurement, spawn.signatures, spawn.platform, grace))
    session = secrets.token_bytes(32) if spawn.dial is None else b""
    port = 0
    try:
        if spawn.dial is None:
            relay, port = _listening_relay(enclave, spawn, command, session, relays, ports, grace)
            ports.add(port)
        else:
            relay = _dialling_relay(enclave, spawn.dial, command, relays, grace)
    except BaseException:
        enclave.close()
        raise
    enclave.socket.close()  # the relay's now: its end is the enclave's end
    name = secrets.token_hex(8)
    say(Spawned(spawn.number, name, port, session))
    started(relay)
    relay.wait()
    relays.discard(relay)
    ports.discard(port)
    if relay.stdout is not None:
        relay.stdout.close()
    enclave.close()
    say(Ended(name))


def _listening_relay(
    enclave: Enclave,
    spawn: Spawn,
    command: list[str],
    session: bytes,
    relays: set[subprocess.Popen[str]],
    ports: set[int],
    grace: float,
) -> tuple[subprocess.Popen[str], int]:
    """`ports`: those that are in use as far as we know; each other one costs the start of a process to find that out."""
    low, high = spawn.ports
    for port in range(low, high + 1):
        if port in ports:
            continue
        listen = f"{spawn.host}:{port}"
        relay, line = _start_relay(enclave, command, ["listen", listen, *spawn.options], [session], relays, grace)
        if line.startswith(LISTENING):
            return relay, int(line.rpartition(":")[2])
        _end_relay(relay, relays)
    raise UnreachableError(
        f"the server cannot start a proxy server at {spawn.host}, ports {low} to {high}: are they in use?{_what_else(command)}"
    )


def _what_else(command: list[str]) -> str:
    return f" Or does its --remote_proxy not end up in adyton proxy: {shlex.join(command)}" if command else ""


def _dialling_relay(
    enclave: Enclave, dial: Dial, command: list[str], relays: set[subprocess.Popen[str]], grace: float
) -> subprocess.Popen[str]:
    relay, line = _start_relay(enclave, command, ["dial", dial.target], [dial.session, dial.certificate], relays, grace)
    if line.startswith(CONNECTED):
        return relay
    _end_relay(relay, relays)
    why = line.strip().removeprefix(FAILED) or f"no answer within {START_SECONDS:g} s.{_what_else(command)}"
    raise UnreachableError(f"the server's proxy server did not reach its client (dial_back): {why}")


def _start_relay(
    enclave: Enclave,
    command: list[str],
    arguments: list[str],
    told: list[bytes],
    relays: set[subprocess.Popen[str]],
    grace: float,
) -> tuple[subprocess.Popen[str], str]:
    """A relay and its first line. `told`: what it is to know by standard input, since anyone can read a command line."""
    descriptor = enclave.socket.fileno()
    arguments = [str(descriptor), str(enclave.pid), f"{grace:g}", *arguments]
    relay = subprocess.Popen(
        command or [sys.executable, "-P", "-m", "adyton.provision.relay_process", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(descriptor,),
        env={**os.environ, RELAY_VARIABLE: shlex.join(arguments)} if command else None,
        text=True,
    )
    relays.add(relay)
    assert relay.stdin is not None
    assert relay.stdout is not None
    timer = threading.Timer(START_SECONDS, relay.kill)
    timer.daemon = True
    timer.start()
    try:
        relay.stdin.write("".join(f"{each.hex()}\n" for each in told))
        relay.stdin.close()
        return relay, relay.stdout.readline()
    except BrokenPipeError:
        return relay, ""
    finally:
        timer.cancel()


def _end_relay(relay: subprocess.Popen[str], relays: set[subprocess.Popen[str]]) -> None:
    relay.kill()
    relay.wait()
    relays.discard(relay)
    assert relay.stdout is not None
    relay.stdout.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]))
