"""What carries a session brings little of it in pieces that a slow line takes within seconds: the peer counts each of them as a sign of life."""

import socket
import tempfile
import threading

import grpc
import pytest
from sources import Said

from adyton.handing_over import accept, control_pair
from adyton.remote.connection import open_server
from adyton.remote.dial_address import ListenAddress
from adyton.remote.dial_back import DialBack
from adyton.remote.dialling import Dialler
from adyton.remote.grpc_transport import GrpcTransport
from adyton.remote.relay import FIRST_SIZE, LARGEST_SIZE, Relays, pieces

SESSION = b"s" * 32
WAITING = 3 * FIRST_SIZE // 2  # bytes that the supervisor has sent before anybody reads


@pytest.fixture
def address():
    with tempfile.TemporaryDirectory(prefix="a", dir="/tmp") as directory:  # short: a socket lies there
        yield f"unix:{directory}/a.sock"


@pytest.fixture
def supervisor():
    ours, others = control_pair()

    def send() -> None:
        connection = accept(ours)
        assert connection is not None
        with connection:
            connection.sendall(bytes(WAITING))

    threading.Thread(target=send, daemon=True).start()
    yield others
    ours.close()
    others.close()


def check(pieces):
    sizes = [len(each) for each in pieces]
    assert sum(sizes) == WAITING
    assert max(sizes) <= FIRST_SIZE


def test_of_a_proxy_server_that_is_dialled(address, supervisor):
    relay = Relays()
    relay.attach(supervisor.dup(), SESSION)
    server, _ = open_server([relay.handler()], address, None, 2)
    server.start()
    try:
        check(GrpcTransport(lambda: grpc.insecure_channel(address), "the server", SESSION).run(Said()))
    finally:
        server.stop(None).wait()
        relay.close()


def test_of_a_proxy_server_that_has_dialled(address, supervisor):
    listener = DialBack(ListenAddress.parse(address), None)
    dialler = Dialler(grpc.insecure_channel(address), "the client")
    thread = threading.Thread(target=dialler.communicate, args=(listener.offer().session, supervisor, 30, lambda: None))
    thread.start()
    source = Said()
    pieces, size = [], 0
    try:
        transport = listener.transport(30)
        for piece in transport.run(source):
            pieces.append(piece)
            size += len(piece)
            if size == WAITING:
                source.over = True
                transport.wake()
        check(pieces)
    finally:
        listener.close()
        dialler.close()
        thread.join(30)
        assert not thread.is_alive()


def test_pieces_grow_while_there_is_always_more():
    ours, others = socket.socketpair()
    with others, ours:
        sent = threading.Thread(target=ours.sendall, args=(bytes(1 << 23),))
        sent.start()
        sizes = []
        for piece in pieces(others):
            sizes.append(len(piece))
            if sum(sizes) == 1 << 23:
                break
        sent.join()
        assert sizes[0] == FIRST_SIZE < max(sizes) <= LARGEST_SIZE


def test_a_piece_that_is_not_quite_full_does_not_make_the_next_one_small():
    ours, others = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * LARGEST_SIZE)
    with others, ours:
        sizes = []
        given = pieces(others)
        for size in (FIRST_SIZE, 2 * FIRST_SIZE, 3 * FIRST_SIZE, 4 * FIRST_SIZE, FIRST_SIZE, 3 * FIRST_SIZE):
            ours.sendall(bytes(size))
            sizes.append(len(next(given)))
        assert [each / FIRST_SIZE for each in sizes] == [1, 2, 3, 4, 1, 3]
