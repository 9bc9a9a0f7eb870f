"""A stand-in shows the guest's kernel one thing at a time: what is hidden behind it changes in no step that can be seen."""

import fcntl
import select
import socket
import struct
import termios
from contextlib import suppress

import pytest

from adyton.runtime.process.supervisor.sockets import standin as standins


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


@pytest.mark.parametrize("size", [1, 1000, 1 << 16])
def test_little_is_left_to_be_freed_when_a_failure_is_shown_and_all_of_it_is_shown(standin, size):
    """What is freed after who polls has been woken is as little as keeps the guest's end from being writable before."""
    guest = standin.guest_end
    with suppress(BlockingIOError):
        while True:
            guest.send(bytes(size), socket.MSG_DONTWAIT)
    standins.thin(standin.end)
    assert events(guest) == 0
    assert 0 < unread(standin.end) <= standin.end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 4 + 1
    standin.end.close()
    assert events(guest) == select.POLLIN | select.POLLOUT | select.POLLERR | select.POLLHUP | select.POLLRDHUP
    with pytest.raises(ConnectionResetError):
        guest.recv(1)


def test_little_that_is_unread_is_left_as_it_is(standin):
    standin.guest_end.send(b"x" * 100)
    standins.thin(standin.end)
    assert unread(standin.end) == 100
