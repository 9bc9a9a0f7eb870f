"""A relay whose supervisor or client takes nothing holds little of what the other sends, and serves everybody else meanwhile."""

from __future__ import annotations

import array
import fcntl
import queue
import socket
import tempfile
import termios
import threading
from collections.abc import Iterator

import grpc
import pytest

from adyton.errors import ClosedError, RemoteProtocolError
from adyton.handing_over import accept, control_pair
from adyton.processes_pb2 import ProcessesReply, ProcessesRequest
from adyton.remote import envelopes
from adyton.remote.connection import SESSION_METADATA, UPLOAD_WINDOW, error_from, open_server
from adyton.remote.process_reports import ProcessReporters
from adyton.remote.relay import Relays

SESSION = b"s" * 32
METADATA = ((SESSION_METADATA, SESSION),)
PIECE = 1 << 16
PIECES = 256
HELD = (
    4 << 20
)  # bytes, at most: two windows of HTTP/2, a socket's buffer, and a message each way; a quarter of what is sent
PATIENCE = 60.0  # seconds until a test gives up


def data(number: int) -> bytes:
    return number.to_bytes(4, "big") * (PIECE // 4)


EVERYTHING = b"".join(map(data, range(PIECES)))


class Parties:
    """A relay, the client's channel to it, and the supervisor's end."""

    def __init__(self, address: str) -> None:
        self.control, others = control_pair()
        self.relay, reporter = Relays(), ProcessReporters()
        self.relay.attach(others.dup(), SESSION)
        reporter.attach(1, SESSION)
        self.server, _ = open_server([self.relay.handler(), reporter.handler()], address, None, 4, UPLOAD_WINDOW)
        self.server.start()
        self.channel = grpc.insecure_channel(address, options=[("grpc.http2.bdp_probe", 0)])
        self._others = others

    def communicate(self, requests: Iterator[bytes]) -> grpc.Call:
        return self.channel.stream_stream("/adyton.Communicator/Communicate")(requests, metadata=METADATA)

    def supervisor(self) -> socket.socket:
        """Its end of the connection that comes next."""
        connection = accept(self.control)
        assert connection is not None
        connection.settimeout(PATIENCE)
        return connection

    def report(self) -> ProcessesReply:
        """Another RPC."""
        ask = self.channel.stream_unary(
            "/adyton.Processes/Report", ProcessesRequest.SerializeToString, ProcessesReply.FromString
        )
        return ask(iter([ProcessesRequest()]), metadata=METADATA, timeout=PATIENCE)

    def close(self) -> None:
        self.channel.close()
        self.server.stop(None).wait()
        self.relay.close()
        self.control.close()
        self._others.close()


@pytest.fixture
def parties() -> Iterator[Parties]:
    with tempfile.TemporaryDirectory(prefix="a", dir="/tmp") as directory:  # short: a socket lies there
        made = Parties(f"unix:{directory}/a.sock")
        yield made
        made.close()


class Source:
    """Requests, and how many gRPC has taken; ends when it is told to."""

    def __init__(self) -> None:
        self.taken = 0
        self._over = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        for number in range(PIECES):
            self.taken += 1
            yield envelopes.pack(data(number))
        self._over.wait()

    def end(self) -> None:
        self._over.set()


def waiting(sock: socket.socket) -> int:
    """Bytes that could be read."""
    found = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, found)
    return found[0]


def received(sock: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(1 << 20)
        assert part, len(parts)
        parts += part
    return bytes(parts)


def until_nothing_moves(parties: Parties, progress) -> None:
    """Other RPCs are served while there is progress, and when there is none any more."""
    still, before = 0, None
    while still < 20:
        assert parties.report().processes
        now = progress()
        still = still + 1 if now == before and any(now) else 0
        before = now


def test_a_supervisor_that_takes_nothing(parties):
    source = Source()
    call = parties.communicate(iter(source))
    with parties.supervisor() as supervisor:
        until_nothing_moves(parties, lambda: (waiting(supervisor), source.taken))
        assert source.taken * PIECE < HELD
        assert received(supervisor, len(EVERYTHING)) == EVERYTHING
        source.end()
        assert supervisor.recv(1) == b""
        supervisor.sendall(b"the last")
        supervisor.shutdown(socket.SHUT_WR)
        assert envelopes.unpack(next(call)) == b"the last"
        parties.control.close()
        with pytest.raises(grpc.RpcError) as failure:
            next(call)
        assert isinstance(error_from(failure.value, "here", connected=True), ClosedError)


def test_a_client_that_takes_nothing(parties):
    source = Source()
    call = parties.communicate(iter(source))
    sent = 0
    with parties.supervisor() as supervisor:
        received(supervisor, len(EVERYTHING))
        supervisor.setblocking(False)

        def send() -> tuple[int]:
            nonlocal sent
            try:
                while True:
                    sent += supervisor.send(EVERYTHING[sent : sent + PIECE])
            except BlockingIOError:
                return (sent,)

        until_nothing_moves(parties, send)
        assert sent < HELD
        supervisor.settimeout(PATIENCE)
        rest = threading.Thread(target=supervisor.sendall, args=(EVERYTHING[sent:],))
        rest.start()
        got = bytearray()
        while len(got) < len(EVERYTHING):
            got += envelopes.unpack(next(call))
        rest.join()
        assert got == EVERYTHING
        source.end()


def test_the_end_of_a_connection_whose_supervisor_takes_nothing(parties):
    source = Source()
    call = parties.communicate(iter(source))
    with parties.supervisor() as supervisor:
        until_nothing_moves(parties, lambda: (waiting(supervisor), source.taken))
        call.cancel()
        size = 0
        while part := supervisor.recv(1 << 20):
            assert EVERYTHING.startswith(part, size)
            size += len(part)
        assert size < HELD
    source.end()


def test_another_connection_is_served_beside_one_whose_supervisor_takes_nothing(parties):
    """Which of them carries the session, the supervisor says."""
    source = Source()
    call = parties.communicate(iter(source))
    with parties.supervisor() as supervisor:
        until_nothing_moves(parties, lambda: (waiting(supervisor), source.taken))
        requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        requests.put(envelopes.pack(b"again"))
        other = parties.communicate(iter(requests.get, None))
        with parties.supervisor() as second:
            assert received(second, 5) == b"again"
            second.sendall(b"here")
            assert envelopes.unpack(next(other)) == b"here"
            other.cancel()
    call.cancel()
    source.end()


def test_the_end_of_a_client_that_takes_nothing(parties):
    source = Source()
    call = parties.communicate(iter(source))
    with parties.supervisor() as supervisor:
        received(supervisor, len(EVERYTHING))
        thread = threading.Thread(target=pytest.raises, args=(OSError, supervisor.sendall, EVERYTHING))
        thread.start()
        parties.report()
        call.cancel()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    source.end()


@pytest.mark.parametrize("count", [0, 3])
def test_what_is_no_message(parties, count):
    requests = [*[envelopes.pack(b"good")] * count, b"\x0a\x05x"]
    call = parties.communicate(iter(requests))
    with parties.supervisor() as supervisor:
        with pytest.raises(grpc.RpcError) as failure:
            next(call)
        assert isinstance(error_from(failure.value, "here", connected=True), RemoteProtocolError)
        assert b"".join(iter(lambda: supervisor.recv(100), b"")) == b"good" * count


def test_a_connection_that_the_supervisor_has_closed(parties):
    source = Source()
    call = parties.communicate(iter(source))
    parties.supervisor().close()
    assert list(call) == []
    assert call.code() is grpc.StatusCode.OK
    source.end()
    assert parties.report().processes


def test_messages_of_all_sizes_and_the_empty_one(parties):
    sizes = [0, 1, 127, 128, 0, 16383, 16384, 1 << 20]
    call = parties.communicate(iter([envelopes.pack(bytes([size % 251]) * size) for size in sizes]))
    with parties.supervisor() as supervisor:
        expected = b"".join(bytes([size % 251]) * size for size in sizes)
        assert received(supervisor, len(expected)) == expected
        assert supervisor.recv(1) == b""
    call.cancel()
