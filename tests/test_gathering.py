"""What is put into an outbox of the supervisor's in one turn of its loop goes out in one piece, and in order with what is large."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from adyton.runtime.process.supervisor.loop import Loop, Outbox


class Counted(socket.socket):
    """It counts what it is asked to send."""

    def __init__(self, other: socket.socket) -> None:
        super().__init__(other.family, other.type, fileno=other.detach())
        self.sent: list[int] = []

    def send(self, data, flags=0):
        self.sent.append(len(data))
        return super().send(data, flags)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[Counted, socket.socket]]:
    mine, other = socket.socketpair()
    counted = Counted(mine)
    other.settimeout(10)
    with counted, other:
        yield counted, other


def test_what_comes_in_one_turn_goes_out_in_one_piece_and_at_its_end(loop, pair):
    sock, other = pair
    outbox = Outbox(loop, sock)

    def ready() -> None:
        loop.forget(told)
        for _ in range(1000):
            outbox.gather(b"four")
        assert len(outbox) == 4000
        assert sock.sent == []

    told, tells = socket.socketpair()
    with told, tells:
        loop.read(told, ready)
        tells.send(b"x")
        assert loop.turn()
    assert sock.sent == [4000]
    assert len(outbox) == 0
    assert other.recv(5000) == b"four" * 1000


def test_what_is_gathered_outside_of_a_turn_waits_for_nothing(loop, pair):
    sock, other = pair
    Outbox(loop, sock).gather(b"x")
    assert loop.turn()
    assert other.recv(1) == b"x"


def test_what_is_large_comes_behind_what_was_gathered_before_it(loop, pair):
    sock, other = pair
    outbox = Outbox(loop, sock)
    outbox.gather(b"a")
    outbox.put(b"large")
    outbox.gather(b"b")
    assert loop.turn()
    assert sock.sent == [1, 5, 1]
    assert other.recv(10) == b"alargeb"


def test_what_the_socket_does_not_take_waits_in_order(loop, pair):
    sock, other = pair
    outbox = Outbox(loop, sock)
    large = bytes(1 << 22)
    outbox.put(large)
    outbox.gather(b"end")
    assert len(outbox) > 3
    got = bytearray()
    while len(got) < len(large) + 3:
        loop.turn()
        got += other.recv(1 << 20)
    assert got == large + b"end"
    assert len(outbox) == 0


def test_what_was_dropped_is_not_sent(loop, pair):
    sock, _ = pair
    outbox = Outbox(loop, sock)
    outbox.gather(b"x")
    outbox.drop()
    assert len(outbox) == 0
    assert loop.turn()
    assert sock.sent == []


def test_who_is_gone_ends_no_turn(loop, pair):
    sock, other = pair
    outbox = Outbox(loop, sock)
    other.close()
    outbox.gather(b"x")
    assert loop.turn()
    with pytest.raises(OSError, match="Broken pipe"):
        outbox.put(b"what is large is told as before")


def test_it_is_tidied_a_while_after_something_happened_and_not_where_nothing_does(loop, monkeypatch):
    later, tidied = [], []
    monkeypatch.setattr(loop, "later", lambda seconds, callback: later.append((seconds, callback)))
    one, other = socket.socketpair()
    with one, other:
        loop.tidy(20, lambda: tidied.append("tidied"))
        loop.read(one, lambda: one.recv(1))
        loop.soon(lambda: None)
        loop.turn()
        assert not later
        other.send(b"xy")
        loop.turn()
        loop.turn()
        ((seconds, callback),) = later
        assert seconds == 20
        callback()
        assert tidied == ["tidied"]
        other.send(b"z")
        loop.turn()
        assert len(later) == 2
