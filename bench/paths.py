"""`make bench-paths`: other ways to build the path of a call, outside of the product, each beside a bare gRPC echo in the same run.

What goes through them is what a call has: client, gRPC, a relay, a unix socket to a supervisor, another to a guest that sends back what it
gets, and the same way back; with or without TLS and sessions in client and supervisor. The variants:

    client  grpcio   as today: a thread hands requests to gRPC, another reads, and wakes the caller by a queue
            reader   the caller hands requests to gRPC's core itself; a thread reads, and wakes the caller
            caller   the caller does both: no other thread takes part (the leader, of leader and followers, when there is one call)
    relay   grpcio   two threads on grpcio's server
            aio      one asyncio loop
            queue    a completion queue of gRPC's core of its own: who takes a message from it writes the socket
            call     as today, with iomgr and poll: grpcio's server, whose own thread writes the socket when it takes a message: the RPC's call of the core is used directly
    iomgr            gRPC without its EventEngine threads: GRPC_EXPERIMENTS, read once when gRPC starts, in client, relay or both
    pinned           parties kept to one processor
    spin             supervisor and guest look for so many microseconds before they sleep
    poll             relay and guest wait in poll(2), not in recv(2): who waits in that is woken, too, when the peer has read what was sent before

gRPC's core is used here as `grpc._cython.cygrpc` has it, which is no public interface: grpcio's own client for one thread
(`grpc.experimental.ChannelOptions.SingleThreadedUnaryStream`) is made of the same calls. Prints a table, and writes bench/results/paths.json.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import queue
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import bare_calls
import grpc
from grpc._cython import cygrpc

from adyton.channel import client as channel_client
from adyton.channel import server as channel_server
from adyton.communicator import session as communicator

HERE = Path(__file__).parent
BODY = b"x" * 64
PIECE = 1 << 16
METHOD = "/Paths/run"
IOMGR = {"GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener"}


class Variant(NamedTuple):
    """One variant. `iomgr`: in which processes; `pins`: processors of client, relay, supervisor and guest."""

    name: str
    client: str
    relay: str
    iomgr: str = ""
    protocol: bool = False
    pins: tuple[int, int, int, int] | None = None
    spin: int = 0  # microseconds
    poll: bool = False


PATHS = (
    Variant("bare echo: sync", "grpcio", "echo grpcio"),
    Variant("bare echo: aio", "aio", "echo aio"),
    Variant("bare echo: caller and queue", "caller", "echo queue"),
    Variant("bare echo: caller and queue, iomgr", "caller", "echo queue", "client relay"),
    Variant("grpcio's threads in both", "grpcio", "grpcio"),
    Variant("relay: iomgr", "grpcio", "grpcio", "relay"),
    Variant("relay: aio, iomgr", "grpcio", "aio", "relay"),
    Variant("relay: queue", "grpcio", "queue"),
    Variant("relay: queue, iomgr", "grpcio", "queue", "relay"),
    Variant("relay: call", "grpcio", "call"),
    Variant("relay: call, iomgr", "grpcio", "call", "relay"),
    Variant("client: reader; relay: queue, iomgr", "reader", "queue", "relay"),
    Variant("client: caller; relay: queue, iomgr", "caller", "queue", "relay"),
    Variant("client: reader; relay: queue; iomgr in both", "reader", "queue", "client relay"),
    Variant("client: caller; relay: queue; iomgr in both", "caller", "queue", "client relay"),
    Variant("client: caller; relay: call; iomgr in both", "caller", "call", "client relay"),
    Variant("… server's parties on one processor", "caller", "queue", "client relay", pins=(0, 1, 1, 1)),
    Variant(
        "… supervisor and guest on one, relay on the client's", "caller", "queue", "client relay", pins=(0, 0, 1, 1)
    ),
    Variant("… all on one processor", "caller", "queue", "client relay", pins=(0, 0, 0, 0)),
    Variant("… poll", "caller", "queue", "client relay", poll=True),
    Variant("… spin 20 µs", "caller", "queue", "client relay", spin=20),
    Variant("… spin 50 µs", "caller", "queue", "client relay", spin=50),
    Variant("with TLS and sessions: grpcio's threads in both", "grpcio", "grpcio", protocol=True),
    Variant("with TLS and sessions: relay queue, iomgr", "grpcio", "queue", "relay", protocol=True),
    Variant("with TLS and sessions: caller, call", "caller", "call", protocol=True),
    Variant("with TLS and sessions: caller, call, iomgr in both", "caller", "call", "client relay", protocol=True),
    Variant("with TLS and sessions: caller, queue, iomgr in relay", "caller", "queue", "relay", protocol=True),
    Variant("with TLS and sessions: caller, queue, iomgr in both", "caller", "queue", "client relay", protocol=True),
    Variant("… server's parties on one processor", "caller", "queue", "client relay", True, (0, 1, 1, 1)),
    Variant("… all on one processor", "caller", "queue", "client relay", True, (0, 0, 0, 0)),
)


# -- the server's parties -------------------------------------------------------------------------------------------------


class _Patient:
    """Reads a socket after looking at it for a while."""

    def __init__(self, spin: int) -> None:
        self._spin = spin / 1e6
        self._poller = select.epoll()

    def watch(self, sock: socket.socket) -> None:
        self._poller.register(sock, select.EPOLLIN)

    def ready(self) -> list[int]:
        if self._spin:
            until = time.perf_counter() + self._spin
            while time.perf_counter() < until:
                if found := self._poller.poll(0):
                    return [descriptor for descriptor, _ in found]
        return [descriptor for descriptor, _ in self._poller.poll()]


def _guest(sock: socket.socket, path: Variant) -> None:
    patient = _Patient(path.spin)
    patient.watch(sock)
    while True:
        if path.spin or path.poll:
            patient.ready()
        if not (data := sock.recv(PIECE)):
            return
        sock.sendall(data)


def _supervisor(relay: socket.socket, guest: socket.socket, path: Variant) -> None:
    patient = _Patient(path.spin)
    patient.watch(relay)
    patient.watch(guest)
    channel = channel_server.ServerChannel(bytes(32))
    session = communicator.Session(communicator.Side.ENCLAVE)
    calls: collections.deque[int] = collections.deque()

    def flush() -> None:
        if channel.established:
            for part in session.parts_to_send(PIECE):
                channel.send(part)
        if data := channel.data_to_send():
            relay.sendall(data)

    def from_relay(data: bytes) -> None:
        if not path.protocol:
            guest.sendall(data)
            return
        for event in channel.receive(data):
            if isinstance(event, channel_server.EvidenceRequested):
                channel.provide(b"evidence")
            elif isinstance(event, channel_server.Data):
                for inner in session.receive(event.data):
                    if isinstance(inner, communicator.Called):
                        calls.append(inner.call)
                        guest.sendall(inner.body)
        flush()

    def from_guest(data: bytes) -> None:
        if not path.protocol:
            relay.sendall(data)
            return
        session.reply(calls.popleft(), True, data)
        flush()

    while True:
        for descriptor in patient.ready():
            source, step = (relay, from_relay) if descriptor == relay.fileno() else (guest, from_guest)
            if not (data := source.recv(PIECE)):
                return
            step(data)


def _fork(role: Callable[..., None], pin: int | None, others: Sequence[socket.socket], *arguments: Any) -> None:
    """`others`: sockets that are not the role's; while it had them, it would see no end of their peers."""
    if os.fork() == 0:
        try:
            for sock in others:
                sock.close()
            if pin is not None:
                os.sched_setaffinity(0, {pin})
            role(*arguments)
        finally:
            os._exit(0)


def serve(path: Variant) -> None:
    """Print the port of a relay, or of an echo; end with standard input."""
    ours = None
    if not path.relay.startswith("echo"):
        pins: Sequence[int | None] = path.pins or (None,) * 4
        (ours, far), (near, guest) = socket.socketpair(), socket.socketpair()
        _fork(_guest, pins[3], (ours, far, near), guest, path)
        _fork(_supervisor, pins[2], (ours, guest), far, near, path)
        for sock in (far, near, guest):
            sock.close()
        if path.pins is not None:
            os.sched_setaffinity(0, {path.pins[1]})
    kind = path.relay.split()[-1]
    if kind == "aio":
        asyncio.run(_serve_aio(ours))
    elif kind == "queue":
        _serve_queue(ours, poll=path.poll)
    else:
        _serve_grpcio(ours, directly=kind == "call")
    sys.stdin.read()
    os._exit(0)


def _directly(context: Any, sock: socket.socket) -> Iterator[bytes]:
    """What grpcio's handler does for a stream, without its threads' waiting for one another; its serving thread calls what is the tag of an event."""
    call = context._rpc_event.call  # noqa: SLF001
    context._state.initial_metadata_allowed = False  # noqa: SLF001
    room = threading.Semaphore()

    def received(event: Any) -> tuple[None, tuple[()]]:
        if (data := event.batch_operations[0].message()) is not None:
            sock.sendall(data)
            call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), received)
        return None, ()

    def sent(_event: Any) -> tuple[None, tuple[()]]:
        room.release()
        return None, ()

    room.acquire()
    call.start_server_batch((cygrpc.SendInitialMetadataOperation((), 0),), sent)
    call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), received)
    while data := sock.recv(PIECE):
        room.acquire()
        call.start_server_batch((cygrpc.SendMessageOperation(data, 0),), sent)
    yield from ()


def _serve_grpcio(sock: socket.socket | None, *, directly: bool) -> None:
    def pump(requests: Iterator[bytes], sock: socket.socket) -> None:
        with contextlib.suppress(Exception):  # the client is gone
            for each in requests:
                sock.sendall(each)

    def relay(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        if sock is None:
            yield from requests
            return
        if directly:
            yield from _directly(context, sock)
            return
        threading.Thread(target=pump, args=(requests, sock), daemon=True).start()
        while data := sock.recv(PIECE):
            yield data

    server = grpc.server(ThreadPoolExecutor(4))
    method = grpc.stream_stream_rpc_method_handler(relay)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Paths", {"run": method}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()


async def _serve_aio(sock: socket.socket | None) -> None:
    loop = asyncio.get_running_loop()

    async def relay(_requests: Any, context: Any) -> None:
        async def back(sock: socket.socket) -> None:
            while data := await loop.sock_recv(sock, PIECE):
                await context.write(data)

        if sock is not None:
            sock.setblocking(False)
            returning = loop.create_task(back(sock))
        while (request := await context.read()) is not grpc.aio.EOF:
            await (context.write(request) if sock is None else loop.sock_sendall(sock, request))
        if sock is not None:
            returning.cancel()

    server = grpc.aio.server()
    method = grpc.stream_stream_rpc_method_handler(relay)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Paths", {"run": method}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await loop.run_in_executor(None, sys.stdin.read)


def _serve_queue(sock: socket.socket | None, *, poll: bool) -> None:
    events = cygrpc.CompletionQueue()
    server = cygrpc.Server((), False)
    server.register_completion_queue(events)
    print(server.add_http2_port(b"127.0.0.1:0"), flush=True)
    server.start()
    sent = threading.Semaphore()  # one message at a time is on its way into gRPC

    def send(call: Any, data: bytes) -> None:
        sent.acquire()
        call.start_server_batch((cygrpc.SendMessageOperation(data, 0),), "sent")

    def back(call: Any, sock: socket.socket) -> None:
        patient = _Patient(0)
        patient.watch(sock)
        while True:
            if poll:
                patient.ready()
            if not (data := sock.recv(PIECE)):
                return
            send(call, data)

    def run() -> None:
        server.request_call(events, events, "called")
        while True:
            event = events.poll()
            if event.tag == "called":
                call = event.call
                call.start_server_batch((cygrpc.SendInitialMetadataOperation((), 0),), "")
                call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), "")
                if sock is not None:
                    threading.Thread(target=back, args=(call, sock), daemon=True).start()
            elif event.tag == "sent":
                sent.release()
                continue
            elif event.tag == "received":
                (operation,) = event.batch_operations
                if (data := operation.message()) is None:
                    return
                if sock is not None:
                    sock.sendall(data)
                elif sent.acquire(blocking=False):
                    call.start_server_batch((cygrpc.SendMessageOperation(data, 0),), "sent")
                else:  # its answer came before what said that the one before is sent
                    threading.Thread(target=send, args=(call, data), daemon=True).start()
            else:
                continue
            call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), "received")

    threading.Thread(target=run, daemon=True).start()


# -- the client -----------------------------------------------------------------------------------------------------------


class _End:
    """What a client has of the protocol; with none, bytes are what they are."""

    def __init__(self, *, protocol: bool) -> None:
        self._protocol = protocol
        self._lock = threading.Lock()
        self._channel = channel_client.ClientChannel()
        self._session = communicator.Session(communicator.Side.CLIENT)
        self.ready = not protocol

    def called(self) -> bytes:
        """Bytes of one more call."""
        if not self._protocol:
            return BODY
        with self._lock:
            self._session.call(1, "enter", BODY)
            for part in self._session.parts_to_send(PIECE):
                self._channel.send(part)
            return self._channel.data_to_send()

    def due(self) -> bytes:
        """Bytes of the handshake."""
        return self._channel.data_to_send() if self._protocol else b""

    def answered(self, data: bytes) -> bool:
        """Whether that completes a reply."""
        if not self._protocol:
            return True
        found = False
        with self._lock:
            for event in self._channel.receive(data):
                if isinstance(event, channel_client.EvidenceReceived):
                    self._channel.accept()
                    self.ready = True
                elif isinstance(event, channel_client.Data):
                    found |= any(isinstance(each, communicator.Replied) for each in self._session.receive(event.data))
        return found


def _grpcio(port: int, count: int, end: _End) -> list[float]:
    wakes: queue.SimpleQueue[bool | None] = queue.SimpleQueue()
    mailbox: queue.SimpleQueue[None] = queue.SimpleQueue()

    def outgoing() -> Iterator[bytes]:
        while (is_call := wakes.get()) is not None:
            if data := end.called() if is_call else end.due():
                yield data

    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    incoming = channel.stream_stream(METHOD)(outgoing())
    while not end.ready:
        wakes.put(False)
        end.answered(next(incoming))
    wakes.put(False)

    def read() -> None:
        for data in incoming:
            if end.answered(data):
                mailbox.put(None)

    threading.Thread(target=read, daemon=True).start()

    def call() -> None:
        wakes.put(True)
        mailbox.get()

    return bare_calls.sampled(call, count)


def _bare(port: int, count: int, _end: _End) -> list[float]:
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    responses = grpc.insecure_channel(f"127.0.0.1:{port}").stream_stream(METHOD)(iter(requests.get, None))

    def call() -> None:
        requests.put(BODY)
        next(responses)

    return bare_calls.sampled(call, count)


def _aio(port: int, count: int, _end: _End) -> list[float]:
    async def run() -> list[float]:
        call = grpc.aio.insecure_channel(f"127.0.0.1:{port}").stream_stream(METHOD)()
        samples = []
        for _ in range(count + count // 10):
            start = time.perf_counter()
            await call.write(BODY)
            await call.read()
            samples.append(time.perf_counter() - start)
        return samples[-count:]

    return asyncio.run(run())


class _Core:
    """One stream of gRPC's core, without a thread."""

    def __init__(self, port: int) -> None:
        self._channel = cygrpc.Channel(b"127.0.0.1:%d" % port, (), None)
        begin = (cygrpc.SendInitialMetadataOperation((), 0), cygrpc.ReceiveStatusOnClientOperation(0))
        batches = ((begin, ""), ((cygrpc.ReceiveInitialMetadataOperation(0),), ""))
        self._call = self._channel.segregated_call(0, METHOD.encode(), None, None, (), None, batches, None)
        self._sent = threading.Semaphore()

    def send(self, data: bytes) -> None:
        """Another thread receives, or `receive` is called after it."""
        while not self._sent.acquire(blocking=False):
            self._next()
        self._call.operate((cygrpc.SendMessageOperation(data, 0),), "")

    def receive(self) -> bytes:
        self._call.operate((cygrpc.ReceiveMessageOperation(0),), "")
        while True:
            found = self._next()
            if found is not None:
                return found

    def _next(self) -> bytes | None:
        found = None
        for operation in self._call.next_event().batch_operations:
            if operation.type() == cygrpc.OperationType.receive_message:
                found = operation.message()
            elif operation.type() == cygrpc.OperationType.send_message:
                self._sent.release()
        return found


def _caller(port: int, count: int, end: _End) -> list[float]:
    core = _Core(port)
    _shake_hands(core, end)

    def call() -> None:
        core.send(end.called())
        while not end.answered(core.receive()):
            pass

    return bare_calls.sampled(call, count)


def _reader(port: int, count: int, end: _End) -> list[float]:
    core = _Core(port)
    _shake_hands(core, end)
    mailbox: queue.SimpleQueue[None] = queue.SimpleQueue()

    def read() -> None:
        while True:
            if end.answered(core.receive()):
                mailbox.put(None)

    threading.Thread(target=read, daemon=True).start()

    def call() -> None:
        core.send(end.called())
        mailbox.get()

    return bare_calls.sampled(call, count)


def _shake_hands(core: _Core, end: _End) -> None:
    while not end.ready:
        core.send(end.due())
        end.answered(core.receive())
    if data := end.due():
        core.send(data)


CLIENTS = {"grpcio": _grpcio, "aio": _aio, "caller": _caller, "reader": _reader}


def ask(path: Variant, port: int, count: int) -> None:
    """Print median and 95th percentile of microseconds."""
    if path.pins is not None:
        os.sched_setaffinity(0, {path.pins[0]})
    client = _bare if path.relay == "echo grpcio" else CLIENTS[path.client]
    samples = sorted(client(port, count, _End(protocol=path.protocol)))
    print(json.dumps([statistics.median(samples) * 1e6, samples[int(len(samples) * 0.95)] * 1e6]), flush=True)
    os._exit(0)  # without waiting for threads that read


# -- the run --------------------------------------------------------------------------------------------------------------


def measured(number: int, count: int) -> tuple[float, float]:
    """Of a variant: median and 95th percentile."""
    path = PATHS[number]
    environments = [{**os.environ, **(IOMGR if who in path.iomgr else {})} for who in ("relay", "client")]
    command = [sys.executable, __file__, "--variant", str(number)]
    with subprocess.Popen(
        [*command, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environments[0]
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        asked = [*command, "--calls", str(count), "--port", port]
        output = subprocess.check_output(asked, env=environments[1], text=True, timeout=60)
        server.stdin.close()
        server.kill()
    median, late = json.loads(output)
    return median, late


def measure(count: int, rounds: int, only: str) -> list[dict[str, Any]]:
    """JSON's types only; all variants once in each round."""
    chosen = [number for number, path in enumerate(PATHS) if only in path.name]
    found: dict[int, list[tuple[float, float]]] = {number: [] for number in chosen}
    for _ in range(rounds):
        for number in chosen:
            found[number].append(measured(number, count))
    return [
        {
            "name": PATHS[number].name,
            "microseconds": statistics.median(median for median, _ in each),
            "late": statistics.median(late for _, late in each),
            "rounds": [median for median, _ in each],
        }
        for number, each in found.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="variants with this text in their names")
    parser.add_argument("--variant", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "paths.json")
    options = parser.parse_args(arguments)
    if options.variant is not None:
        if options.serve:
            serve(PATHS[options.variant])
        ask(PATHS[options.variant], options.port, options.calls)
    found = measure(options.calls, options.rounds, options.only)
    print(f"{'empty call, µs':55} {'p50':>6} {'p95':>6}  rounds")
    for each in found:
        rounds = " ".join(f"{one:.0f}" for one in each["rounds"])
        print(f"{each['name']:55} {each['microseconds']:>6.0f} {each['late']:>6.0f}  {rounds}")
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
