"""How much of what one end of a session sends is on its way: as much as the way carries, and not much more."""

from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.communicator.flow import LEAST, LIGHT, MOST, Flow
from adyton.communicator.frames import MarkFrame, ReadFrame, encode
from adyton.communicator.session import Called, Replied, Session, Side
from adyton.errors import RemoteProtocolError


class Way:
    """A line of `rate` bytes in a second, and `delay` seconds there and back, with a sender that always has more."""

    def __init__(self, rate, delay):
        self.now = 0.0
        self.rate, self.delay = rate, delay
        self.flow = Flow(lambda: self.now)
        self.free = 0.0  # when the line has taken all that was sent
        self.answers = []
        self.carried = 0
        self.most_queued = 0.0
        self.longest_silence = 0.0

    def run(self, seconds):
        until = self.now + seconds
        while self.now < until:
            while (room := self.flow.room) > 0:
                size = min(room, 1 << 14)
                self.free = max(self.free, self.now) + size / self.rate
                self.carried += size
                self.most_queued = max(self.most_queued, self.free - self.now)
                if self.flow.sent(size):
                    self.answers.append((self.free + self.delay, self.flow.mark()))
            if self.flow.sent(0):
                self.answers.append((max(self.free, self.now) + self.delay, self.flow.mark()))
            assert self.answers, "nothing would ever be sent again"
            at, number = self.answers.pop(0)
            self.longest_silence = max(self.longest_silence, at - self.now)
            self.now = max(self.now, at)
            assert self.flow.read(number)


@pytest.mark.parametrize("delay", [0.001, 0.02, 0.05])
@pytest.mark.parametrize("rate", [1e7, 1e8, 2e8])
def test_a_line_is_filled(rate, delay):
    way = Way(rate, delay)
    way.run(2.0)  # the window opens
    way.carried = 0
    way.run(1.0)
    assert way.carried >= 0.9 * rate


@pytest.mark.parametrize("delay", [0.001, 0.05, 0.3])
@pytest.mark.parametrize("rate", [2e4, 1e5, 1e6])
def test_a_slow_line_is_not_flooded(rate, delay):
    way = Way(rate, delay)
    way.run(60.0)
    assert way.most_queued <= max(1.01 * LEAST / rate, 3 * delay + 0.1)
    assert way.longest_silence <= 1.5 * delay + max(0.6 * LEAST / rate, 0.1)


def test_a_line_that_becomes_slow_is_noticed():
    way = Way(2e8, 0.05)
    way.run(5.0)
    way.rate = 1e6
    way.run(60.0)
    way.most_queued = 0.0
    way.run(10.0)
    assert way.most_queued <= 0.5


@pytest.mark.parametrize("delay", [0.001, 0.02, 0.05])
def test_while_small_messages_are_sent_beside_it_little_is_queued_and_the_line_carries_most(delay):
    way = Way(1e8, delay)
    way.run(2.0)
    flooded, way.most_queued = way.most_queued, 0.0

    def hurried(seconds):
        for _ in range(int(seconds / 0.01)):
            way.flow.hurry()
            way.run(0.01)

    hurried(2.0)
    way.most_queued, way.carried = 0.0, 0
    hurried(1.0)
    assert way.most_queued <= max(0.5 * flooded, 1.5 * LEAST / way.rate)
    assert way.carried >= 0.5 * way.rate
    way.run(1.0)
    way.carried = 0
    way.run(1.0)
    assert way.carried >= 0.9 * way.rate


@pytest.mark.parametrize("kind", ["call", "reply"])
def test_a_small_message_beside_a_large_one_makes_haste(kind):
    session, peer = Session(Side.CLIENT), Session(Side.ENCLAVE)
    peer.call(0, "m", b"")
    session.receive(peer.data_to_send(1 << 16))
    session._flow.hurry = hurry = Mock()
    session.call(1, "m", b"")
    assert not hurry.called  # what is alone waits for nothing
    session.call(5, "m", bytes(1 << 20))
    if kind == "call":
        session.call(3, "m", b"x")
    else:
        session.reply(1, ok=True, body=b"x")
    assert hurry.called


def test_a_way_that_becomes_longer_is_noticed():
    way = Way(1e8, 0.01)
    way.run(5.0)
    way.delay = 0.1
    way.run(30.0)
    way.carried = 0
    way.run(10.0)
    assert way.carried >= 8e8


def test_a_pause_costs_nothing():
    """What follows it is not held back to see how long the way takes."""
    now = 0.0
    flow = Flow(lambda: now)
    for _ in range(20):
        while flow.room > 0:
            flow.sent(min(flow.apart, flow.room))
        mark = flow.mark()
        now += 0.05
        flow.read(mark)
    opened, now = flow.window, now + 60.0
    assert flow.sent(min(flow.apart, flow.room))
    mark = flow.mark()
    now += 0.05
    flow.read(mark)
    assert flow.window >= opened // 2


@given(st.lists(st.tuples(st.sampled_from(["send", "answer", "wait"]), st.integers(0, 1 << 21)), max_size=200))
def test_there_is_always_a_mark_that_gives_room_again(steps):
    now = 0.0
    flow, marks = Flow(lambda: now), []
    for step, value in steps:
        if step == "send" and flow.room > 0:
            if flow.sent(min(value, flow.room)):
                marks.append(flow.mark())
        elif step == "answer" and marks:
            number = marks[value % len(marks)]
            assert flow.read(number)
            marks = [each for each in marks if each > number]
        else:
            now += value / 1e6
        if flow.sent(0):
            marks.append(flow.mark())
        assert LIGHT <= flow.window <= MOST
        assert flow.room > 0 or marks


def test_marks_are_told_of_once_and_in_order():
    flow = Flow(lambda: 0.0)
    assert not flow.read(1)
    numbers = [flow.mark() for _ in range(4)]
    assert flow.read(numbers[1])
    assert not flow.read(numbers[0])
    assert not flow.read(numbers[1])
    assert not flow.read(numbers[3] + 1)
    assert flow.read(numbers[3])


def test_how_long_there_was_no_connection_says_nothing_of_the_way():
    now = 0.0
    flow = Flow(lambda: now)

    def carry(seconds):
        nonlocal now
        flow.sent(LIGHT)
        mark = flow.mark()
        now += seconds
        assert flow.read(mark)

    for _ in range(5):
        carry(0.001)
    window = flow.window
    flow.sent(LIGHT)
    mark = flow.mark()
    flow.interrupted()
    now += 3.0
    assert flow.read(mark)
    assert flow.window == window
    carry(0.001)
    assert flow.window == window


def test_a_session_sends_no_body_beyond_its_window_and_what_is_urgent_all_the_same():
    client, enclave = Session(Side.CLIENT), Session(Side.ENCLAVE)
    client.call(1, "enter", bytes(1 << 21))
    sent = []
    while data := client.data_to_send():
        sent.append(data)
    assert LEAST <= sum(map(len, sent)) <= LEAST + (1 << 16)
    assert not client.data_to_send()
    client.notify("output", b"urgent")
    assert b"urgent" in client.data_to_send()
    for data in sent:
        enclave.receive(data)
    client.receive(enclave.data_to_send())
    assert client.data_to_send()


def test_what_is_urgent_does_not_flood_the_way_either():
    client = Session(Side.CLIENT)
    for _ in range(100):
        client.notify("output", bytes(1 << 14))
    assert sum(map(len, iter(client.data_to_send, b""))) <= 2 * LEAST + (1 << 16)
    assert client.pending_bytes > 1 << 20


def test_two_full_ends_go_on():
    client, enclave = Session(Side.CLIENT), Session(Side.ENCLAVE)
    client.call(2, "enter", b"")
    (called,) = enclave.receive(client.data_to_send(1))
    client.call(1, "enter", bytes(3 << 20))
    enclave.reply(called.call, ok=True, body=bytes(3 << 20))
    events = []
    for _ in range(10_000):
        events += client.receive(enclave.data_to_send()) + enclave.receive(client.data_to_send())
    assert [type(each) for each in events] == [Replied, Called] or [type(each) for each in events] == [Called, Replied]
    assert client.pending_bytes == enclave.pending_bytes == 0


def test_what_was_due_before_a_goodbye_is_sent_though_it_is_much():
    client, enclave = Session(Side.CLIENT), Session(Side.ENCLAVE)
    client.call(1, "enter", bytes(3 << 20))
    client.close("done")
    events = []
    for _ in range(1_000):
        events += enclave.receive(client.data_to_send())
        client.receive(enclave.data_to_send())
    assert [type(each).__name__ for each in events] == ["Called", "Closed"]
    assert client.data_to_send() == enclave.data_to_send() == b""


@pytest.mark.parametrize(
    "frames",
    [
        [MarkFrame(2)],
        [MarkFrame(1), MarkFrame(1)],
        [MarkFrame(1), MarkFrame(3)],
        [ReadFrame(1)],
    ],
)
def test_marks_out_of_order_are_a_violation(frames):
    session = Session(Side.CLIENT)
    with pytest.raises(RemoteProtocolError):
        session.receive(b"".join(map(encode, frames)))


def test_a_large_notification_after_a_pause_shows_how_long_the_way_takes():
    now = 0.0
    enclave, client = Session(Side.ENCLAVE, clock=lambda: now), Session(Side.CLIENT, clock=lambda: now)

    def carry(seconds):
        """With more to say than there is room for, over a way of 0.1 seconds that takes any number of bytes."""
        nonlocal now
        carried, until = 0, now + seconds
        while now < until:
            while enclave.pending_bytes < 1 << 22:
                enclave.notify("output", bytes(60000))
            while data := enclave.data_to_send(1 << 19):
                carried += len(data)
                client.receive(data)
            now += 0.1
            enclave.receive(client.data_to_send())
        return carried

    carry(5.0)
    before = carry(5.0)
    now += 30.0
    carry(5.0)
    assert carry(5.0) >= before // 2
