"""Calls both ways on one stream: each is answered once, in any nesting that the pairs allow."""

import itertools

import pytest

from adyton.communicator.flow import Flow
from adyton.communicator.frames import CHUNK, MAX_CHUNK, CallFrame, MoreFrame, encode
from adyton.communicator.session import (
    Called,
    Cancelled,
    Closed,
    Disposed,
    Limits,
    Notified,
    Replied,
    Session,
    Side,
)
from adyton.errors import ConnectionLostError, LocalProtocolError, RemoteProtocolError, ResourceLimitError

SMALL = Limits(message=4 * CHUNK, notification=2 * CHUNK, buffered=8 * CHUNK, pairs=2, nesting=4, in_flight=3)


@pytest.fixture(scope="module", autouse=True)
def wide_way():
    """Nothing waits until the peer tells of marks: see test_session_flow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flow, "room", 1 << 40)
        yield


@pytest.fixture
def ends():
    return Session(Side.CLIENT), Session(Side.ENCLAVE)


@pytest.fixture
def small_ends():
    return Session(Side.CLIENT, SMALL), Session(Side.ENCLAVE, SMALL)


def move(source: Session, target: Session, limit: int = 1 << 18) -> list:
    """All that is due from one end to the other; the events."""
    events = []
    while data := source.data_to_send(limit):
        events += target.receive(data)
    assert source.pending_bytes == 0
    return events


def test_a_call_is_called_and_replied(ends):
    client, enclave = ends
    call = client.call(1, "enter", b"argument")
    assert move(client, enclave) == [Called(call, 1, "enter", b"argument")]
    enclave.reply(call, True, b"result")
    assert move(enclave, client) == [Replied(call, True, b"result", 1)]


def test_events_can_be_matched_by_position(ends):
    client, enclave = ends
    client.call(1, "run", b"in")
    match move(client, enclave):
        case [Called(call, 1, "run", body)]:
            enclave.reply(call, False, body)
    match move(enclave, client):
        case [Replied(_, ok, b"in") as event]:
            assert not ok
            assert event.pair == 1


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 7, 1 << 20])
def test_bodies_of_every_size_arrive_as_they_were(ends, size):
    client, enclave = ends
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    call = client.call(3, "enter", body)
    assert move(client, enclave) == [Called(call, 3, "enter", body)]
    enclave.reply(call, True, body)
    assert move(enclave, client) == [Replied(call, True, body, 3)]
    enclave.notify("output", body)
    assert move(enclave, client) == [Notified("output", body)]


def test_a_sender_cuts_bodies_as_it_likes_within_bounds(ends):
    _, enclave = ends
    body = bytes(range(256)) * (MAX_CHUNK // 64)
    cuts = [0, CHUNK, CHUNK + MAX_CHUNK, CHUNK + MAX_CHUNK + CHUNK + 1, len(body) - MAX_CHUNK + 1, len(body)]
    cuts[4:4] = range(cuts[3] + MAX_CHUNK, cuts[4], MAX_CHUNK)
    frames = [CallFrame(1, 1, "enter", len(body), b"")]
    frames += [MoreFrame("call", 1, memoryview(body)[start:stop]) for start, stop in itertools.pairwise(cuts)]
    assert enclave.receive(b"".join(map(encode, frames))) == [Called(1, 1, "enter", body)]
    too_long = MoreFrame("call", 2, memoryview(body)[: MAX_CHUNK + 1])
    with pytest.raises(RemoteProtocolError, match="into a piece of 262145 bytes"):
        enclave.receive(encode(CallFrame(2, 2, "enter", len(body), b"")) + encode(too_long))


def test_much_goes_out_in_large_pieces_and_little_in_small_ones(ends):
    client, _ = ends
    client.call(1, "enter", bytes(4 * MAX_CHUNK))
    heads = {limit: client.data_to_send(limit).count(b"call") for limit in (CHUNK, 4 * CHUNK)}
    assert heads[CHUNK] <= 2
    assert heads[4 * CHUNK] == 1


def test_bytes_may_be_cut_anywhere(ends):
    client, enclave = ends
    client.call(1, "enter", b"a")
    client.call(0, "host", b"b" * (CHUNK + 3))
    stream = b""
    while data := client.data_to_send():
        stream += data
    events = [event for position in range(len(stream)) for event in enclave.receive(stream[position : position + 1])]
    assert [event.body for event in events] == [b"a", b"b" * (CHUNK + 3)]


def test_calls_nest_on_a_pair(ends):
    client, enclave = ends
    outer = client.call(1, "enter", b"")
    move(client, enclave)
    host = enclave.call(1, "host", b"")
    assert move(enclave, client) == [Called(host, 1, "host", b"")]
    inner = client.call(1, "enter", b"")
    move(client, enclave)
    enclave.reply(inner, True, b"inner")
    assert move(enclave, client) == [Replied(inner, True, b"inner", 1)]
    client.reply(host, True, b"host")
    assert move(client, enclave) == [Replied(host, True, b"host", 1)]
    assert not client.idle(1)
    enclave.reply(outer, True, b"outer")
    move(enclave, client)
    assert client.idle(1)
    assert enclave.idle(1)


def test_calls_without_a_pair_are_answered_in_any_order(ends):
    client, enclave = ends
    calls = [enclave.call(0, "host", bytes([number])) for number in range(50)]
    called = move(enclave, client)
    assert [event.call for event in called] == calls
    for event in reversed(called):
        client.reply(event.call, True, event.body)
    assert [event.call for event in move(client, enclave)] == calls[::-1]


def test_only_the_running_side_may_speak_on_a_pair(ends):
    client, enclave = ends
    with pytest.raises(LocalProtocolError):
        enclave.call(1, "host", b"")
    outer = client.call(1, "enter", b"")
    with pytest.raises(LocalProtocolError):
        client.call(1, "enter", b"")
    move(client, enclave)
    host = enclave.call(1, "host", b"")
    with pytest.raises(LocalProtocolError):
        enclave.reply(outer, True, b"")
    with pytest.raises(LocalProtocolError):
        enclave.call(1, "host", b"")
    move(enclave, client)
    client.reply(host, True, b"")
    assert len(move(client, enclave)) == 1
    enclave.reply(outer, True, b"")
    assert len(move(enclave, client)) == 1


def test_a_call_is_replied_to_once(ends):
    client, enclave = ends
    with pytest.raises(LocalProtocolError):
        enclave.reply(1, True, b"")
    call = client.call(1, "enter", b"")
    with pytest.raises(LocalProtocolError):
        enclave.reply(call, True, b"")
    with pytest.raises(LocalProtocolError):
        client.reply(call, True, b"")
    move(client, enclave)
    enclave.reply(call, True, b"")
    with pytest.raises(LocalProtocolError):
        enclave.reply(call, True, b"")


def test_a_call_that_has_not_arrived_completely_cannot_be_replied_to(ends):
    client, enclave = ends
    call = client.call(0, "enter", bytes(2 * CHUNK))
    assert enclave.receive(client.data_to_send(limit=1)) == []
    with pytest.raises(LocalProtocolError):
        enclave.reply(call, True, b"")
    assert len(move(client, enclave)) == 1
    enclave.reply(call, True, b"")


def test_a_refused_call_changes_nothing(small_ends):
    client, enclave = small_ends
    for pair, method, body, error in (
        (1, "", b"", LocalProtocolError),
        (1, "x" * 129, b"", LocalProtocolError),
        (-1, "enter", b"", LocalProtocolError),
        (1, "enter", bytes(SMALL.message + 1), ResourceLimitError),
    ):
        with pytest.raises(error):
            client.call(pair, method, body)
    assert client.pending_bytes == 0
    assert client.idle(1)
    assert client.call(1, "enter", b"") == 1
    assert len(move(client, enclave)) == 1


def test_notifications_arrive_before_what_was_sent_after_them(ends):
    client, enclave = ends
    call = client.call(1, "enter", b"")
    move(client, enclave)
    first, second = bytes(5 * CHUNK), b"x"
    enclave.notify("output", first)
    enclave.notify("output", second)
    enclave.reply(call, True, b"")
    enclave.notify("output", b"later")
    kinds = [type(event) for event in move(enclave, client, limit=1)]
    assert kinds == [Notified, Notified, Replied, Notified]


def test_a_cancelled_call_is_replied_to_all_the_same(ends):
    client, enclave = ends
    call = client.call(1, "enter", b"")
    client.cancel(call)
    assert move(client, enclave) == [Called(call, 1, "enter", b""), Cancelled(call)]
    enclave.reply(call, False, b"")
    assert move(enclave, client) == [Replied(call, False, b"", 1)]


def test_cancelling_what_was_answered_says_nothing(ends):
    client, enclave = ends
    call = client.call(1, "enter", b"")
    move(client, enclave)
    enclave.reply(call, True, b"")
    client.cancel(call)
    assert move(client, enclave) == []
    move(enclave, client)
    client.cancel(call)
    assert client.data_to_send() == b""
    with pytest.raises(LocalProtocolError):
        client.cancel(call + 1)


def test_a_cancellation_does_not_overtake_its_call(ends):
    client, enclave = ends
    call = client.call(1, "enter", bytes(9 * CHUNK))
    enclave.receive(client.data_to_send(limit=1))
    client.cancel(call)
    assert [type(event) for event in move(client, enclave, limit=1)] == [Called, Cancelled]


def test_an_idle_pair_is_disposed_of_and_may_come_again(ends):
    client, enclave = ends
    client.dispose(5)
    assert client.data_to_send() == b""  # it never was
    call = client.call(5, "enter", b"")
    with pytest.raises(LocalProtocolError):
        client.dispose(5)
    move(client, enclave)
    with pytest.raises(LocalProtocolError):
        enclave.dispose(5)
    enclave.reply(call, True, b"")
    move(enclave, client)
    client.dispose(5)
    again = client.call(5, "enter", b"")
    assert move(client, enclave) == [Disposed(5), Called(again, 5, "enter", b"")]
    with pytest.raises(LocalProtocolError):
        enclave.dispose(6)


def test_goodbye_comes_last(ends):
    client, enclave = ends
    client.call(1, "enter", bytes(3 * CHUNK))
    client.close("done")
    client.close("again")
    assert [type(event) for event in move(client, enclave, limit=1)] == [Called, Closed]


def test_after_close_only_calls_raise(ends):
    client, enclave = ends
    call = enclave.call(0, "host", b"")
    move(enclave, client)
    own = client.call(1, "enter", b"")
    client.close("done")
    client.reply(call, True, b"")
    client.notify("x", b"")
    client.cancel(own)
    client.dispose(1)
    with pytest.raises(LocalProtocolError):
        client.call(2, "enter", b"")
    assert [type(event) for event in move(client, enclave)] == [Called, Closed]
    with pytest.raises(ConnectionLostError, match="done"):
        enclave.call(0, "host", b"")
    enclave.reply(own, True, b"")
    enclave.notify("x", b"")
    assert enclave.data_to_send() == b""


def test_a_reason_of_any_length_and_kind_can_be_given(ends):
    client, enclave = ends
    client.close("\ud800\N{GRINNING FACE}" * 5000)
    (closed,) = move(client, enclave)
    assert closed.reason.startswith("?\N{GRINNING FACE}")
    assert len(closed.reason) == 1024


def test_limits_are_errors_of_the_one_call(small_ends):
    client, enclave = small_ends
    calls = [client.call(0, "enter", b"") for _ in range(SMALL.in_flight)]
    with pytest.raises(ResourceLimitError):
        client.call(0, "enter", b"")
    move(client, enclave)
    enclave.reply(calls[0], True, b"")
    move(enclave, client)
    client.call(0, "enter", b"")
    move(client, enclave)


def test_threads_that_call_are_bounded_until_one_ends(small_ends):
    client, enclave = small_ends
    for pair in (1, 2):
        call = client.call(pair, "enter", b"")
        move(client, enclave)
        enclave.reply(call, True, b"")
        move(enclave, client)
    with pytest.raises(ResourceLimitError):
        client.call(3, "enter", b"")
    client.dispose(1)
    client.call(3, "enter", b"")
    assert [type(event) for event in move(client, enclave)] == [Disposed, Called]


def test_nesting_is_bounded(small_ends):
    caller, callee = small_ends
    for _ in range(SMALL.nesting):
        caller.call(1, "x", b"")
        move(caller, callee)
        caller, callee = callee, caller
    with pytest.raises(ResourceLimitError):
        caller.call(1, "x", b"")
    caller.reply(SMALL.nesting // 2, True, b"")
    assert len(move(caller, callee)) == 1


def test_a_result_that_is_too_large_can_be_replaced(small_ends):
    client, enclave = small_ends
    call = client.call(1, "enter", b"")
    move(client, enclave)
    with pytest.raises(ResourceLimitError):
        enclave.reply(call, True, bytes(SMALL.message + 1))
    enclave.reply(call, False, b"too large")
    assert move(enclave, client) == [Replied(call, False, b"too large", 1)]


def test_limits_must_let_the_largest_message_arrive():
    with pytest.raises(LocalProtocolError):
        Session(Side.CLIENT, Limits(message=100, notification=100, buffered=150))
