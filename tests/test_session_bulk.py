"""Large bytes beside a body: as they were, in pieces where that is wanted, and nothing is held that has not come."""

import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.communicator import frames
from adyton.communicator.frames import CHUNK, MAX_BULK, MAX_CHUNK, CallFrame, MoreFrame, ReplyFrame
from adyton.communicator.session import Begun, Called, Closed, Piece, Replied, ReplyBegun, Session, Side
from adyton.errors import LocalProtocolError, RemoteProtocolError, ResourceLimitError

GIB = 1 << 30


def pair(**options):
    return Session(Side.CLIENT), Session(Side.ENCLAVE, **options)


def passing():
    return pair(passes=lambda head: isinstance(head, ReplyFrame) or (head.pair > 0 and head.method == "enter"))


def moved(sender, receiver, cut=1 << 30):
    """What comes of all that is due, and of the marks that are answered."""
    events = []
    while sender.due or receiver.due:
        data = sender.data_to_send()
        for start in range(0, len(data), cut):
            events += receiver.receive(data[start : start + cut])
        if not data and not (data := receiver.data_to_send()):
            break
        if data := receiver.data_to_send():
            sender.receive(data)
    return events


sizes = st.integers(0, 3 * CHUNK) | st.sampled_from([CHUNK, MAX_CHUNK, MAX_CHUNK + 1, (1 << 22) + 1])


@given(st.integers(0, 2 * CHUNK), st.lists(sizes, min_size=1, max_size=4), st.integers(1, 1 << 20))
def test_bulk_comes_as_it_was(size, lengths, cut):
    client, enclave = pair()
    body, bulk = bytes(size), tuple(bytes([number + 1]) * each for number, each in enumerate(lengths))
    if size + sum(lengths) <= CHUNK:
        with pytest.raises(LocalProtocolError):
            client.call(1, "enter", body, bulk)
        return
    client.call(1, "enter", body, bulk)
    assert moved(client, enclave, max(cut, 1 << 12)) == [Called(1, 1, "enter", body, bulk)]


def test_more_bulk_than_there_may_be_is_refused():
    with pytest.raises(LocalProtocolError):
        pair()[0].call(1, "enter", b"", [bytes(CHUNK)] * (MAX_BULK + 1))


def test_a_call_that_passes_is_told_of_as_it_comes():
    client, enclave = passing()
    client.call(1, "enter", b"body", [bytes(range(256)) * 4096])
    client.call(2, "other", b"x" * (CHUNK + 1))
    begun, *pieces, last = moved(client, enclave)
    pieces, others = [*pieces, last], [each for each in (*pieces, last) if not isinstance(each, Piece)]
    pieces = [each for each in pieces if isinstance(each, Piece)]
    assert begun == Begun(1, 1, "enter", (4, 1 << 20))
    assert b"".join(each.data for each in pieces) == b"body" + bytes(range(256)) * 4096
    assert [each.last for each in pieces] == [False] * (len(pieces) - 1) + [True]
    assert others == [Called(2, 2, "other", b"x" * (CHUNK + 1))]


def test_a_call_that_passes_is_replied_to_when_all_of_it_has_come():
    client, enclave = passing()
    client.call(1, "enter", b"", [bytes(1 << 20)])
    enclave.receive(client.data_to_send(CHUNK))
    with pytest.raises(LocalProtocolError):
        enclave.reply(1, True, b"early")
    moved(client, enclave)
    enclave.reply(1, True, b"late")
    assert moved(enclave, client) == [Replied(1, True, b"late", 1)]


@given(st.lists(st.integers(1, 3 * CHUNK), min_size=1, max_size=8), st.integers(0, 8), st.booleans())
def test_a_reply_goes_out_as_it_comes(lengths, at, bulk):
    client, enclave = pair()
    client.call(1, "enter", b"")
    client.call(0, "enter", b"")
    moved(client, enclave)
    size = sum(lengths)
    if size <= CHUNK:
        with pytest.raises(LocalProtocolError):
            enclave.begin_reply(1, size, bulk=bulk)
        return
    enclave.begin_reply(1, size, bulk=bulk)
    events, whole = [], b""
    for number, each in enumerate(lengths):
        if number == at:
            enclave.reply(2, True, bytes(2 * CHUNK))  # what waits for more of itself holds up no other
            assert moved(enclave, client) == [Replied(2, True, bytes(2 * CHUNK), 0)]
        piece = bytes([number + 1]) * each
        enclave.go_on(1, piece)
        whole += piece
        events += moved(enclave, client)
    assert events == [Replied(1, True, b"", 1, (whole,)) if bulk else Replied(1, True, whole, 1)]
    with pytest.raises(LocalProtocolError):
        enclave.go_on(1, b"x")


@given(st.lists(st.integers(1, 3 * CHUNK), min_size=1, max_size=8), st.integers(0, 8))
def test_a_call_goes_out_as_it_comes(lengths, at):
    client, enclave = pair()
    size = sum(lengths)
    if len(b"body") + size <= CHUNK:
        with pytest.raises(LocalProtocolError):
            enclave.begin_call(0, "function", b"body", size)
        return
    call = enclave.begin_call(0, "function", b"body", size)
    events, whole = [], b""
    for number, each in enumerate(lengths):
        if number == at:
            other = enclave.call(0, "function", bytes(2 * CHUNK))
            assert moved(enclave, client) == [Called(other, 0, "function", bytes(2 * CHUNK))]
        piece = bytes([number + 1]) * each
        enclave.go_on(call, piece, "call")
        whole += piece
        events += moved(enclave, client)
    assert events == [Called(call, 0, "function", b"body", (whole,))]
    with pytest.raises(LocalProtocolError):
        enclave.go_on(call, b"x", "call")
    client.reply(call, True, b"", [whole] if size > CHUNK else ())
    assert moved(client, enclave) == [Replied(call, True, b"", 0, (whole,) if size > CHUNK else ())]


def test_a_call_that_was_begun_is_not_answered_before_all_of_it_is_there():
    _, enclave = passing()
    call = enclave.begin_call(0, "function", b"body", 4 * CHUNK)
    enclave.go_on(call, bytes(CHUNK), "call")
    enclave.data_to_send()
    with pytest.raises(RemoteProtocolError, match="before it was sent completely"):
        enclave.receive(frames.encode(ReplyFrame(call, True, 0, b"")))


def test_a_call_has_no_more_than_was_said():
    _, enclave = pair()
    with pytest.raises(ResourceLimitError):
        enclave.begin_call(0, "function", b"", GIB + 1)
    call = enclave.begin_call(0, "function", b"", 2 * CHUNK)
    enclave.go_on(call, bytes(CHUNK), "call")
    with pytest.raises(LocalProtocolError):
        enclave.go_on(call, bytes(CHUNK + 1), "call")


@given(st.integers(0, 2 * CHUNK), st.integers(CHUNK + 1, 5 * CHUNK), st.integers(1, 2), st.booleans())
def test_a_reply_that_passes_is_told_of_as_it_comes(body, size, count, ok):
    """And is the answer when all of it is there, not before."""
    client, enclave = passing()
    call = enclave.call(0, "function", b"")
    moved(enclave, client)
    client.reply(call, ok, bytes(body), [b"b" * size] * count)
    client.call(1, "enter", b"small")
    begun, *others = moved(client, enclave)
    pieces = [each for each in others if isinstance(each, Piece)]
    assert begun == ReplyBegun(call, ok, (body, *[size] * count))
    assert b"".join(each.data for each in pieces) == bytes(body) + b"b" * size * count
    assert {(each.kind, each.call) for each in pieces} == {("reply", call)}
    assert [each.last for each in pieces] == [False] * (len(pieces) - 1) + [True]
    with pytest.raises(RemoteProtocolError, match="waits for no reply"):
        enclave.receive(frames.encode(ReplyFrame(call, True, 0, b"")))


def test_what_passes_of_a_reply_is_not_kept():
    client, enclave = passing()
    call = enclave.call(0, "function", b"")
    moved(enclave, client)
    data = bytes(1 << 25)
    client.reply(call, True, b"", [data])
    tracemalloc.start()
    try:
        while client.due:
            enclave.receive(client.data_to_send())
            client.receive(enclave.data_to_send())
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


def test_a_peer_does_not_call_in_the_middle_of_a_reply_that_passes():
    client, enclave = passing()
    client.call(1, "enter", b"")
    moved(client, enclave)
    call = enclave.call(1, "host", b"")
    moved(enclave, client)
    client.reply(call, True, b"", [bytes(8 * CHUNK)])
    enclave.receive(client.data_to_send(CHUNK))
    with pytest.raises(RemoteProtocolError, match="in the middle of a reply"):
        enclave.receive(frames.encode(CallFrame(2, 1, "enter", 0, b"")))


def test_a_reply_has_no_more_than_was_said():
    client, enclave = pair()
    client.call(1, "enter", b"")
    moved(client, enclave)
    with pytest.raises(ResourceLimitError):
        enclave.begin_reply(1, GIB + 1, bulk=True)
    enclave.begin_reply(1, 2 * CHUNK, bulk=False)
    enclave.go_on(1, bytes(CHUNK))
    with pytest.raises(LocalProtocolError):
        enclave.go_on(1, bytes(CHUNK + 1))


@pytest.mark.parametrize("there", [0, CHUNK // 2, CHUNK, 2 * CHUNK])
def test_at_a_goodbye_what_has_not_come_is_dropped_and_what_has_goes_before(there):
    client, enclave = pair()
    for number in (1, 2, 3):
        client.call(number, "enter", b"")
    moved(client, enclave)
    enclave.begin_reply(1, GIB, bulk=False)
    enclave.go_on(1, bytes(there))
    sent = enclave.data_to_send() if there == CHUNK else b""
    enclave.reply(2, True, bytes(4 * CHUNK))
    enclave.close("it ended")
    assert client.receive(sent) == []
    assert moved(enclave, client) == [Replied(2, True, bytes(4 * CHUNK), 2), Closed("it ended")]
    assert not enclave.pending_bytes


def test_what_is_announced_costs_nothing():
    enclave = Session(Side.ENCLAVE)
    heads = b"".join(
        frames.encode(CallFrame(call, 0, "enter", GIB, msgspec.msgpack.encode((64, GIB - 64))))
        + frames.more_head("call", call, MAX_CHUNK)
        + bytes(MAX_CHUNK)
        for call in range(1, 5)
    )
    tracemalloc.start()
    try:
        assert enclave.receive(heads) == []
        assert tracemalloc.get_traced_memory()[1] < 3 * 4 * MAX_CHUNK
    finally:
        tracemalloc.stop()


def test_large_bytes_are_held_once():
    client, size = Session(Side.CLIENT), 48 << 20
    client.call(1, "enter", b"")
    client.data_to_send()
    client.receive(frames.encode(ReplyFrame(1, True, size, msgspec.msgpack.encode((0, size)))))
    piece, events = frames.more_head("reply", 1, MAX_CHUNK) + bytes(MAX_CHUNK), []
    tracemalloc.start()
    try:
        for _ in range(size // MAX_CHUNK):
            events += client.receive(piece)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * size
    finally:
        tracemalloc.stop()
    assert len(events[0].bulk[0]) == size


@pytest.mark.parametrize(
    "cut",
    [
        (),
        (2 * CHUNK,),
        (CHUNK, CHUNK + 1),
        (-1, 2 * CHUNK + 1),
        (0,) * (MAX_BULK + 1) + (2 * CHUNK,),
        ("1", 2 * CHUNK),
        {"a": 1},
    ],
)
@pytest.mark.parametrize("frame", ["call", "reply"])
def test_a_message_that_is_cut_as_it_cannot_be_is_a_breach(frame, cut):
    session = Session(Side.CLIENT)
    session.call(0, "enter", b"")
    chunk = msgspec.msgpack.encode(cut)
    head = CallFrame(1, 0, "x", 2 * CHUNK, chunk) if frame == "call" else ReplyFrame(1, True, 2 * CHUNK, chunk)
    with pytest.raises(RemoteProtocolError):
        session.receive(frames.encode(head))


def test_pieces_of_a_call_that_passes_are_as_large_as_others():
    _, enclave = passing()
    enclave.receive(frames.encode(CallFrame(1, 1, "enter", GIB, b"")))
    with pytest.raises(RemoteProtocolError):
        enclave.receive(frames.encode(MoreFrame("call", 1, memoryview(b"x"))))
