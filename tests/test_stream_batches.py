"""Batches of a stream, without IO: whatever overtakes what on the way, each item comes once, in order, and what is under way is bounded."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.communicator.streams import (
    BATCH,
    BATCH_HEAD,
    END,
    FIRST_BATCHES,
    ITEMS,
    LARGE,
    MOST_BATCHES,
    MOST_BYTES,
    MOST_ITEMS,
    RAISED,
    Batch,
    Incoming,
    Outgoing,
    batch_of,
)
from adyton.errors import RemoteProtocolError
from adyton.proto.values import MAX_STREAMS, ItemDecoder

ITEM = st.one_of(
    st.integers(0, 99), st.text(max_size=3), st.integers(0, 3).map(lambda thirds: bytes(thirds * BATCH // 3))
)


def sent(out: Outgoing) -> list[Batch]:
    """The batches that go out now."""
    batches = []
    while (due := out.take()) is not None:
        kind, parts = due
        batches.append(Batch(1, 1, out.batches - 1, kind, memoryview(b"".join(parts))))
    return batches


@given(st.data(), st.lists(ITEM, max_size=60))
def test_items_come_once_and_in_order_whatever_overtakes_what(data, items):
    out, into = Outgoing(), Incoming()
    waiting = [*items]
    on_their_way: list[Batch] = []
    due: list[Batch] = []
    got: list[object] = []
    ended = False
    while not into.complete or due:
        steps = []
        if waiting and not out.full:
            steps.append("add")
        if not waiting and not ended:
            steps.append("end")
        steps += ["arrive"] if on_their_way else []
        steps += ["take"] if due else []
        step = data.draw(st.sampled_from(steps))
        if step == "add":
            item = waiting.pop(0)
            if isinstance(item, bytes) and item:
                out.add_large(item)
            else:
                out.add(msgspec.msgpack.encode(item))
        elif step == "end":
            out.end(END)
            ended = True
        elif step == "arrive":
            batch = on_their_way.pop(data.draw(st.integers(0, len(on_their_way) - 1)))
            due += [each for _, each in into.arrived(7, batch)]
        else:
            batch = due.pop(0)
            into.taken(len(batch.payload))
            if batch.kind == ITEMS:
                got += msgspec.msgpack.decode(batch.payload)
            elif batch.kind == LARGE:
                got.append(bytes(batch.payload))
            out.taken(hungry=data.draw(st.booleans()))
        on_their_way += sent(out)
        assert len(on_their_way) + len(due) <= MOST_BATCHES
    assert got == items
    assert not out.pending


def test_an_item_goes_out_at_once_while_there_is_room_and_then_others_join_it():
    out = Outgoing()
    for number in range(10):
        out.add(msgspec.msgpack.encode(number))
        assert (out.take() is not None) == (number < FIRST_BATCHES)
    out.taken(hungry=False)
    kind, parts = out.take()
    assert (kind, msgspec.msgpack.decode(b"".join(parts))) == (ITEMS, list(range(FIRST_BATCHES, 10)))


@pytest.mark.parametrize("size", [1, 1 << 10, BATCH])
def test_who_is_not_read_from_holds_a_bounded_amount(size):
    out, item, added = Outgoing(), msgspec.msgpack.encode(bytes(size)), 0
    while not out.full:
        out.add(item)
        added += 1
        sent(out)
    assert added * len(item) <= (FIRST_BATCHES + 1) * (BATCH + len(item))
    assert added <= (FIRST_BATCHES + 1) * MOST_ITEMS


def most_under_way(*, hungry: bool, held: bool) -> int:
    """Batches that may be, once a hundred were taken, of a sender that is held by its taker, or slow."""
    out = Outgoing()
    for _ in range(100):
        while held and not out.pending:
            out.add(bytes(100))
            sent(out)
        if not held:
            out.add(bytes(100))
            sent(out)
        out.taken(hungry=hungry)
        sent(out)
    while out.room:
        out.add(bytes(100))
        sent(out)
    return len(out._under_way)


def test_only_a_hungry_taker_of_a_sender_that_is_held_is_given_more():
    assert most_under_way(hungry=True, held=True) == MOST_BATCHES
    assert most_under_way(hungry=False, held=True) == FIRST_BATCHES
    assert most_under_way(hungry=True, held=False) == FIRST_BATCHES


def batch(number: int, kind: int = ITEMS, size: int = 1) -> Batch:
    return Batch(1, 1, number, kind, memoryview(bytes(size)))


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        ([batch(0), batch(0)], "numbered a call 0"),
        ([batch(MOST_BATCHES), batch(MOST_BATCHES)], "numbered a call"),
        ([batch(number) for number in range(MOST_BATCHES + 1)], "more items than there was room for"),
        ([batch(0, size=MOST_BYTES), batch(1)], "more items than there was room for"),
        ([batch(0, END), batch(1)], "after the end"),
        ([batch(0, RAISED), batch(1, END)], "after the end"),
        ([batch(1), batch(0, END)], "after the end"),
    ],
)
def test_what_breaks_the_rules_of_a_stream(batches, text):
    into = Incoming()
    for each in batches[:-1]:
        into.arrived(5, each)
    with pytest.raises(RemoteProtocolError, match=text):
        into.arrived(5, batches[-1])


def test_a_stream_that_was_said_to_be_shorter_than_it_is():
    into = Incoming()
    into.arrived(1, batch(0))
    with pytest.raises(RemoteProtocolError, match="after 0 batches"):
        into.ends(0)
    into.ends(1)
    with pytest.raises(RemoteProtocolError, match="ended a stream"):
        into.ends(1)
    with pytest.raises(RemoteProtocolError, match="after the end"):
        into.arrived(1, batch(1))


def test_what_was_not_sent_cannot_be_taken():
    with pytest.raises(RemoteProtocolError, match="had not been sent"):
        Outgoing().taken(hungry=True)


@pytest.mark.parametrize(("kind", "bulk"), [(ITEMS, (b"x",)), (LARGE, ()), (LARGE, (b"x", b"y")), (LARGE + 1, ())])
def test_a_large_item_is_beside_its_head_and_nothing_else_is(kind, bulk):
    assert batch_of(BATCH_HEAD.pack(1, 2, 3, LARGE), (b"x",)) == Batch(1, 2, 3, LARGE, b"x")
    with pytest.raises(RemoteProtocolError):
        batch_of(BATCH_HEAD.pack(1, 2, 3, kind), bulk)
    with pytest.raises(RemoteProtocolError):
        batch_of(BATCH_HEAD.pack(1, 2, 3, LARGE) + b"x", (b"x",))


@given(st.binary(max_size=60))
def test_only_a_protocol_error_leaves_the_parser_of_batches(body):
    try:
        found = batch_of(body)
    except RemoteProtocolError:
        return
    assert BATCH_HEAD.pack(*found[:4]) + found.payload == body
    assert found.stream <= MAX_STREAMS


@given(st.lists(st.one_of(st.integers(0, 9), st.text(max_size=2)), max_size=9))
def test_items_before_one_of_a_wrong_type_are_had(items):
    found, error = ItemDecoder(int, "an item").decode(memoryview(msgspec.msgpack.encode(items)))
    right = [each for each in items if isinstance(each, int)]
    assert found == items[: len(found)]
    assert (error is None) == (right == items)
    if error is not None:
        assert isinstance(items[len(found)], str)
        assert "an item does not fit" in str(error)
