"""A large transfer never delays a small call, large ones share the stream, and nothing starves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.communicator.flow import Flow
from adyton.communicator.frames import CHUNK
from adyton.communicator.session import Called, Limits, Replied, Session, Side


@pytest.fixture(scope="module", autouse=True)
def wide_way():
    """Nothing waits until the peer tells of marks: see test_session_flow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flow, "room", 1 << 40)
        yield


def test_a_small_call_overtakes_a_large_one():
    client, enclave = Session(Side.CLIENT), Session(Side.ENCLAVE)
    client.call(1, "large", bytes(100 * CHUNK))
    assert enclave.receive(client.data_to_send(CHUNK)) == []
    client.call(2, "small", b"x")
    (called,) = enclave.receive(client.data_to_send(CHUNK))
    assert called.method == "small"
    enclave.reply(called.call, True, b"y")
    assert client.receive(enclave.data_to_send())[0].body == b"y"


def test_calls_are_numbered_in_the_order_in_which_they_were_made_whatever_arrives_first():
    client, enclave = Session(Side.CLIENT), Session(Side.ENCLAVE)
    numbers = [client.call(0, "x", bytes(size)) for size in (3 * CHUNK, 1, 2 * CHUNK, 1)]
    assert numbers == [1, 2, 3, 4]
    arrived = []
    while data := client.data_to_send(1000):
        arrived += [event.call for event in enclave.receive(data)]
    assert arrived == [2, 4, 3, 1]


def test_large_messages_take_turns():
    client, enclave = Session(Side.CLIENT), Session(Side.ENCLAVE)
    client.call(1, "longest", bytes(50 * CHUNK))
    client.call(2, "long", bytes(2 * CHUNK))
    sent = 0
    while data := client.data_to_send(CHUNK):
        sent += len(data)
        if enclave.receive(data):
            break
    assert sent < 6 * CHUNK


def test_large_messages_move_on_while_small_ones_keep_coming():
    client, enclave = Session(Side.CLIENT), Session(Side.ENCLAVE)
    client.call(0, "large", bytes(10 * CHUNK))
    methods = []
    for _ in range(12):
        for _ in range(4):
            client.call(0, "small", bytes(CHUNK // 2))
        methods += [event.method for event in enclave.receive(client.data_to_send(CHUNK))]
    assert "large" in methods


def test_what_is_taken_at_once_is_bounded():
    client = Session(Side.CLIENT)
    client.call(1, "large", bytes(100 * CHUNK))
    for _ in range(500):
        client.call(0, "small", bytes(1000))
    while data := client.data_to_send(50_000):
        assert len(data) <= 50_000 + 2 * CHUNK + 100
    assert client.pending_bytes == 0


def test_a_pair_is_busy_until_a_large_reply_has_arrived():
    client, enclave = Session(Side.CLIENT), Session(Side.ENCLAVE)
    call = client.call(1, "enter", b"")
    enclave.receive(client.data_to_send())
    enclave.reply(call, True, bytes(3 * CHUNK))
    events = []
    while data := enclave.data_to_send(1):
        assert not client.idle(1)
        events += client.receive(data)
    assert isinstance(events[0], Replied)
    assert client.idle(1)


@given(st.lists(st.integers(0, 5 * CHUNK), max_size=12), st.integers(1, 4 * CHUNK))
def test_honest_ends_stay_below_each_others_limits(sizes, limit):
    limits = Limits(message=5 * CHUNK, notification=CHUNK, buffered=6 * CHUNK)
    client, enclave = Session(Side.CLIENT, limits), Session(Side.ENCLAVE, limits)
    numbers = [client.call(0, "x", bytes(size)) for size in sizes]
    events: list[Called] = []
    while data := client.data_to_send(limit):
        events += enclave.receive(data)
    assert sorted((event.call, len(event.body)) for event in events) == list(zip(numbers, sizes, strict=True))
    assert client.pending_bytes == 0


def test_the_parts_of_a_body_are_sent_as_one_and_large_ones_are_not_copied():
    client, enclave = Session(Side.CLIENT), Session(Side.ENCLAVE)
    parts = (b"head", bytes(range(256)) * 1024, b"", b"-", bytes(100_000))
    enclave.call(0, "host", parts)
    sent = []
    while part := enclave.parts_to_send(1 << 20):
        sent += part
    assert all(sent)
    assert any(isinstance(part, memoryview) and part.obj is parts[1] for part in sent)
    (called,) = client.receive(b"".join(sent))
    assert called.body == b"".join(parts)
