"""A stand-in shows the guest's kernel one thing at a time: what is hidden behind it changes in no step that can be seen."""

import errno
import fcntl
import os
import select
import socket
import struct
import termios
from contextlib import suppress

import pytest

from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.notifications import GoneError, Note
from adyton.runtime.process.supervisor.sockets import standin as standins
from adyton.runtime.process.supervisor.sockets.answering import Answering
from adyton.runtime.process.supervisor.sockets.descriptors import Descriptors
from adyton.runtime.process.supervisor.sockets.pump import Pump
from adyton.runtime.process.table import DATAGRAM_DESCRIPTORS


@pytest.fixture
def standin():
    made = standins.make("inet", "stream", 1)
    yield made
    made.end.close()
    made.guest_end.close()


def events(sock):
    poller = select.poll()
    poller.register(sock, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
    return dict(poller.poll(0)).get(sock.fileno(), 0)


def unread(sock):
    return struct.unpack("=i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]


def test_a_connect_under_way_has_nothing_to_show(standin):
    standins.fill(standin, standin.guest_end)
    assert events(standin.guest_end) == 0
    standins.drain(standin)
    assert events(standin.guest_end) == select.POLLOUT
    assert unread(standin.end) == standin.filled == 0


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("size", [1, 1000, 1 << 16])
def test_little_is_left_to_be_freed_when_a_failure_is_shown_and_all_of_it_is_shown(standin, size, wide):
    """What is freed after who polls has been woken is as little as keeps the guest's end from being writable before."""
    guest = standin.guest_end
    if wide:
        standins.widen_out(standin, guest)
    with suppress(BlockingIOError):
        while True:
            guest.send(bytes(size), socket.MSG_DONTWAIT)
    standins.thin(standin)
    assert events(guest) == 0
    assert 0 < unread(standin.end) <= guest.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 4 + 1
    standin.end.close()
    assert events(guest) == select.POLLIN | select.POLLOUT | select.POLLERR | select.POLLHUP | select.POLLRDHUP
    with pytest.raises(ConnectionResetError):
        guest.recv(1)


def test_little_that_is_unread_is_left_as_it_is(standin):
    standin.guest_end.send(b"x" * 100)
    standins.thin(standin)
    assert unread(standin.end) == 100


HERE = net.Endpoint("127.0.0.1", 1234)


class Gone:
    """A listener for whose notes nobody waits."""

    def answer(self, note, value=0, error=0):
        raise GoneError


class Client:
    def __init__(self):
        self.told = []

    def request(self, request, done):
        self.done = done

    def tell(self, message):
        self.told.append(message)

    def bytes_pending(self):
        return 0


@pytest.fixture
def pumped():
    """A pump whose guest is this process, its client, and a stand-in that is connected."""
    loop, client = Loop(), Client()
    answering = Answering(Gone(), loop, client)
    pump = answering.pump = Pump(
        loop, client, os.getpid(), answering.moved, lambda standin, data: None, lambda _, number: os.dup(number)
    )
    made = pump.make("inet", "stream")
    made.state, made.opened, made.seen = "connected", True, (os.getpid(), made.guest_end.fileno())
    guest, made.guest_end = made.guest_end, None
    pump.start(made)
    pump.take(net.Credit(made.number, net.WINDOW - net.FIRST))
    yield loop, client, pump, made, guest
    pump.close()
    guest.close()
    loop.close()


def room(sock):
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def test_the_kernel_keeps_more_of_a_stream_that_a_guest_writes_much_to(pumped):
    loop, client, _, made, guest = pumped
    usual = room(guest)
    guest.setblocking(False)
    sent = 0
    for size in (1 << 10, 1 << 18):
        assert room(guest) == usual
        sent += guest.send(bytes(size))  # or as much of it as there is room for
        loop.turn()
    assert room(guest) == made.guest_buffer > usual
    assert sum(len(each.data) for each in client.told if isinstance(each, net.Send)) == sent


def test_the_kernel_keeps_more_of_a_stream_that_a_guest_reads_slower_than_it_comes(pumped):
    loop, _, pump, made, guest = pumped
    usual = room(made.end)
    pump.take(net.Received(made.number, bytes(1 << 10)))
    assert room(made.end) == usual
    data = bytes(range(256)) * (1 << 8)
    for _ in range(8):
        pump.take(net.Received(made.number, data))
    assert room(made.end) > usual
    guest.setblocking(False)
    got = guest.recv(1 << 20)
    while len(got) < (1 << 10) + 8 * len(data):
        loop.turn()
        got += guest.recv(1 << 20)
    assert got == bytes(1 << 10) + 8 * data


def test_no_connection_is_lost_however_many_are_not_read_and_memory_is_bounded(pumped):
    """A client that sends all that it has credit for, to more than there is memory for if each had a whole window."""
    _, client, pump, *_ = pumped
    credit = {}
    for _ in range(300):
        made = pump.make("inet", "stream")
        made.state, made.opened = "connected", True
        credit[made.number] = net.FIRST
        pump.start(made)
    held = 0
    for _ in range(3):
        for each in client.told:
            if isinstance(each, net.Credit) and each.socket in credit:
                credit[each.socket] += each.size
        client.told.clear()
        for number, size in credit.items():
            held += size
            for start in range(0, size, net.CHUNK):
                pump.take(net.Received(number, bytes(min(size - start, net.CHUNK))))
            credit[number] = 0
            pump.take(net.Blocked(number))
    assert not any(each.lost or each.state != "connected" for each in pump._by_number.values())
    assert (
        300 * net.FIRST < held <= 300 * net.FIRST + net.MAX_GROWTH + 300 * (1 << 19)
    )  # the latter in the kernel's hands


@pytest.mark.parametrize("result", [net.Bound(HERE), abi.Failed("EADDRINUSE")])
def test_what_the_client_opens_for_a_socket_that_was_closed_meanwhile_is_closed(result):
    loop, client = Loop(), Client()
    answering = Answering(Gone(), loop, client)
    pump = answering.pump = Pump(loop, client, os.getpid(), answering.moved, lambda standin, data: None, os.close)
    made = pump.make("inet", "datagram")
    request = net.Bind(made.number, made.new, net.Endpoint("127.0.0.1", 0))
    answering.ask(Note(1, 1, 1, 1, (0,) * 6), made, request, lambda result: 0)
    pump.drop_refused(made)
    client.done(result)
    assert client.told == ([net.CloseSocket(made.number, reset=False)] if isinstance(result, net.Bound) else [])
    pump.close()
    loop.close()


def test_a_stand_in_that_was_shut_before_it_is_connected_is_looked_at_once():
    """Its guest can have that done by a call on another socket, which it puts this one in place of."""
    loop, client = Loop(), Client()
    answering = Answering(Gone(), loop, client)
    pump = answering.pump = Pump(loop, client, os.getpid(), answering.moved, lambda standin, data: None, os.close)
    made = pump.make("inet", "stream")
    made.guest_end.shutdown(socket.SHUT_RDWR)
    turns = 0
    loop.later(0.05, loop.stop)
    while loop.turn():
        turns += 1
    assert turns < 10
    assert pump.knows(made)
    pump.close()
    loop.close()


@pytest.mark.parametrize(("code", "free"), [(errno.EBADF, True), (errno.EMFILE, False)])
def test_a_number_at_which_nobody_could_look_is_not_free(code, free):
    class Asked:
        def fetch(self, _note, _descriptor):
            raise OSError(code, "")

    found = Descriptors(Asked(), None)._free(None, 0)
    assert (found in DATAGRAM_DESCRIPTORS) is free
