"""Large bytes on the links between a supervisor and its guest: passed on as they come, and held by neither longer than it must."""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.communicator import session as communicator
from adyton.proto.values import BULK
from adyton.runtime.process.guest import link as protocol
from adyton.runtime.process.supervisor.bulk import MOST
from adyton.runtime.process.supervisor.bulk import Bulk as Passing
from adyton.runtime.process.supervisor.guest_process import Link
from adyton.runtime.process.supervisor.loop import Loop, Outbox

LARGE = bytes(range(256)) * (BULK // 256)
MIB = 1 << 20


@given(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(1000, 3 * BULK))
def test_bulk_behind_a_message_comes_in_pieces_wherever_it_is_cut(sizes, cut):
    sent, expected = b"", []
    for number, size in enumerate(sizes):
        bulk = bytes([number]) * (size * BULK)
        message = protocol.Return(ok=True, body=b"", call=number, sizes=(len(bulk),) if bulk else ())
        sent += protocol.encode(message) + bulk
        expected.append((message, bulk))
    reader, found = protocol.Reader(protocol.ToSupervisor), []
    for start in range(0, len(sent), cut):
        for each in reader.receive(sent[start : start + cut]):
            if isinstance(each, memoryview):
                found[-1] = found[-1][0], found[-1][1] + each
            else:
                found.append((each, b""))
    assert found == expected
    assert not reader.held


def test_a_guest_reads_an_enter_and_what_is_behind_it():
    mine, other = socket.socketpair()
    with mine:
        link = protocol.GuestLink(other)
        sent = protocol.encode(protocol.Enter("enter", b"", 1, None, (4, 0, len(LARGE))))
        writer = threading.Thread(target=mine.sendall, args=(sent + b"body" + LARGE,))
        writer.start()
        assert link.receive() == protocol.Enter("enter", b"body", 1)
        assert link.bulk == (b"", LARGE)
        writer.join()
        mine.sendall(sent + b"bo")
        mine.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionError):
            link.receive()


class _Passed:
    """A supervisor's share, with a client that takes what it is asked to, and a guest that does."""

    def __init__(self):
        self.mine, self.other = socket.socketpair()
        self.client = communicator.Session(communicator.Side.CLIENT)
        self.enclave = communicator.Session(communicator.Side.ENCLAVE, passes=lambda _head: True)
        self.listens: list[bool] = []
        self.slow = 0
        self.loop = Loop()
        self.link = Link(self.mine, Outbox(self.loop, self.mine), 1)
        self.bulk = Passing(self.enclave, lambda _, on: self.listens.append(on), self.slow_down)

    def slow_down(self):
        self.slow += 1

    def to_enclave(self):
        return self.enclave.receive(self.client.data_to_send())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.mine.close()
        self.other.close()
        self.loop.close()


def test_a_link_that_takes_less_than_comes_slows_the_client_down():
    with _Passed() as place:
        place.client.call(1, "enter", b"", [bytes(2 * MOST)])
        begun, *events = place.to_enclave()
        place.bulk.enters(begun.call, place.link)
        while True:
            for event in events:
                assert not place.bulk.piece(event.kind, event.call, event.data, last=event.last)
                assert (place.slow > 0) == (len(place.link.outbox) > MOST)
            if place.slow:
                break
            place.client.receive(place.enclave.data_to_send())
            events = place.to_enclave()


def test_a_large_call_that_is_refused_is_when_it_is_there():
    with _Passed() as place:
        place.client.call(1, "enter", b"", [bytes(MIB)])
        events = place.to_enclave()[1:]
        place.bulk.enters(1, None)
        while not events[-1].last:
            assert not any(place.bulk.piece(each.kind, each.call, each.data, last=each.last) for each in events)
            place.client.receive(place.enclave.data_to_send())
            events = place.to_enclave()
        assert [place.bulk.piece(each.kind, each.call, each.data, last=each.last) for each in events][-1]


def test_a_result_is_read_while_its_client_takes_it():
    with _Passed() as place:
        place.client.call(1, "other", b"")
        place.to_enclave()
        place.bulk.returns(place.link, 1, 4 * MOST, encoded=False)
        place.bulk.came(place.link, memoryview(bytes(MIB)))
        assert (place.listens, place.enclave.pending_bytes) == ([False], 0)
        place.bulk.begin(1)
        assert place.listens == [False, True]
        came, events = MIB, []
        while place.listens[-1]:
            place.bulk.came(place.link, memoryview(bytes(MIB)))
            came += MIB
            assert came <= MOST + 2 * MIB
        while not events:
            events += place.client.receive(place.enclave.data_to_send())
            place.enclave.receive(place.client.data_to_send())
            place.bulk.caught_up()
            while place.listens[-1] and came < 4 * MOST:
                place.bulk.came(place.link, memoryview(bytes(MIB)))
                came += MIB
        assert events == [communicator.Replied(1, True, b"", 1, (bytes(4 * MOST),))]
        assert place.link.passed is None


def test_a_call_of_the_guests_is_read_while_its_client_takes_it():
    with _Passed() as place:
        call = place.enclave.begin_call(0, "function", b"", 4 * MOST)
        place.bulk.calls(place.link, call, 4 * MOST)
        came, events = 0, []
        while not events:
            while (not place.listens or place.listens[-1]) and came < 4 * MOST:
                place.bulk.came(place.link, memoryview(bytes(MIB)))
                came += MIB
                assert place.enclave.pending_bytes <= MOST + 2 * MIB
            events += place.client.receive(place.enclave.data_to_send())
            place.enclave.receive(place.client.data_to_send())
            place.bulk.caught_up()
        assert events == [communicator.Called(call, 0, "function", b"", (bytes(4 * MOST),))]
        assert False in place.listens
        assert place.link.passed is None


def test_a_call_of_the_guests_that_was_refused_is_dropped_as_it_comes():
    with _Passed() as place:
        place.bulk.calls(place.link, 0, 2 * MIB)
        place.bulk.came(place.link, memoryview(bytes(MIB)))
        assert place.link.passed is not None
        place.bulk.came(place.link, memoryview(bytes(MIB)))
        assert place.link.passed is None
        assert not place.enclave.pending_bytes


def test_of_an_answer_for_a_thread_that_has_ended_nothing_is_kept():
    with _Passed() as place:
        place.link.own = True
        place.bulk.replied(7, place.link)
        place.other.close()
        for last in (False, True):
            place.bulk.piece("reply", 7, memoryview(bytes(MIB)), last=last)
        assert len(place.link.outbox) == 0
