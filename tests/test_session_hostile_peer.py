"""Whatever a peer sends, a session raises only what it documents, keeps only so much, and stays refused."""

import contextlib
import struct
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.communicator import frames, messages
from adyton.communicator.frames import (
    CHUNK,
    CallFrame,
    CancelFrame,
    DisposeFrame,
    FrameReader,
    GoodbyeFrame,
    MarkFrame,
    MoreFrame,
    NotifyFrame,
    ReadFrame,
    ReplyFrame,
)
from adyton.communicator.session import Closed, Limits, Session, Side
from adyton.errors import AdytonError, RemoteProtocolError, ResourceLimitError
from adyton.hostcall import abi
from adyton.runtime.process.guest.link import HostCall

LIMITS = Limits(message=4 * CHUNK, notification=2 * CHUNK, buffered=6 * CHUNK, pairs=2, nesting=4, in_flight=4)
FULL = bytes(CHUNK)
DOCUMENTED = (RemoteProtocolError, ResourceLimitError)


def raw(message) -> bytes:
    """A frame of any content."""
    body = msgspec.msgpack.encode(message)
    return struct.pack("<I", len(body)) + body


def stream(*sent) -> bytes:
    return b"".join(frames.encode(frame) for frame in sent)


def ready(side: Side = Side.ENCLAVE) -> Session:
    """A session that has made calls 1 and 2, unpaired."""
    session = Session(side, LIMITS)
    session.call(0, "host", b"")
    session.call(0, "host", b"")
    session.data_to_send()
    return session


CALL = CallFrame(1, 1, "enter", 0, b"")
BEGUN_CALL = CallFrame(1, 1, "enter", 3 * CHUNK, b"")
BEGUN_REPLY = ReplyFrame(1, True, 3 * CHUNK, b"")
BEGUN_NOTIFICATION = NotifyFrame(1, "output", 2 * CHUNK, b"")

BREACHES = {
    "first call is not call 1": [CallFrame(2, 0, "x", 0, b"")],
    "a call's number comes again": [CALL, CallFrame(1, 2, "enter", 0, b"")],
    "a call's number is left out": [CALL, CallFrame(3, 2, "enter", 0, b"")],
    "two calls on a pair": [CALL, CallFrame(2, 1, "enter", 0, b"")],
    "a call while a call on the pair arrives": [BEGUN_CALL, CallFrame(2, 1, "enter", 0, b"")],
    "a reply that nobody waits for": [ReplyFrame(3, True, 0, b"")],
    "two replies": [ReplyFrame(1, True, 0, b""), ReplyFrame(1, True, 0, b"")],
    "a reply while the reply arrives": [BEGUN_REPLY, ReplyFrame(1, True, 0, b"")],
    "a cancellation of no call": [CancelFrame(1)],
    "a cancellation of a call that arrives": [BEGUN_CALL, CancelFrame(1)],
    "disposal of no pair": [DisposeFrame(1)],
    "disposal of a busy pair": [CALL, DisposeFrame(1)],
    "disposal twice": [DisposeFrame(9), DisposeFrame(9)],
    "more of a call that was not begun": [MoreFrame("call", 1, FULL)],
    "more of a whole call": [CALL, MoreFrame("call", 1, b"x")],
    "more of another kind": [BEGUN_CALL, MoreFrame("reply", 1, FULL)],
    "a short piece": [BEGUN_CALL, MoreFrame("call", 1, FULL[:-1])],
    "a piece of more than was announced": [BEGUN_CALL, MoreFrame("call", 1, bytes(4 * CHUNK))],
    "an empty piece": [BEGUN_CALL, MoreFrame("call", 1, b"")],
    "a piece of a size that was not announced": [BEGUN_NOTIFICATION, *[MoreFrame("notification", 1, FULL)] * 3],
    "a head with some of the body": [CallFrame(1, 1, "enter", 3 * CHUNK, b"x")],
    "a small body that is not there": [CallFrame(1, 1, "enter", 1, b"")],
    "more body than announced": [CallFrame(1, 1, "enter", 1, b"xy")],
    "a small reply that is not there": [ReplyFrame(1, True, 5, b"")],
    "a notification's number is left out": [NotifyFrame(2, "output", 0, b"")],
    "a notification inside another": [BEGUN_NOTIFICATION, NotifyFrame(2, "output", 0, b"")],
    "something after goodbye": [GoodbyeFrame("bye"), CALL],
    "goodbye after goodbye": [GoodbyeFrame("bye"), GoodbyeFrame("bye")],
}

TOO_MUCH = {
    "a call larger than any": [CallFrame(1, 0, "x", LIMITS.message + 1, b"")],
    "a reply larger than any": [ReplyFrame(1, True, LIMITS.message + 1, b"")],
    "a notification larger than any": [NotifyFrame(1, "x", LIMITS.notification + 1, b"")],
    "an absurd size": [CallFrame(1, 0, "x", frames.MAX_NUMBER, b"")],
    "too many calls": [CallFrame(number, 0, "x", 0, b"") for number in range(1, LIMITS.in_flight + 2)],
    "too many pairs": [CallFrame(number, number, "x", 0, b"") for number in range(1, LIMITS.pairs + 2)],
    "too many bytes under way": [
        *(CallFrame(number, 0, "x", 4 * CHUNK, b"") for number in (1, 2, 3)),
        *(MoreFrame("call", number, FULL) for number in (1, 2, 3, 1, 2, 3, 1)),
    ],
}


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES.keys())
def test_each_breach_ends_the_session(breach):
    session = ready()
    data = stream(*breach)
    last = len(stream(*breach[:-1]))
    if breach[0] != DisposeFrame(9):
        session.receive(data[:last])  # all but the last frame is in order
    else:
        last = 0
    with pytest.raises(RemoteProtocolError) as raised:
        session.receive(data[last:])
    with pytest.raises(RemoteProtocolError) as again:
        session.receive(stream(GoodbyeFrame("never mind")))
    assert str(again.value) == str(raised.value)


@pytest.mark.parametrize("excess", TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_each_excess_ends_the_session(excess):
    session = ready()
    session.receive(stream(*excess[:-1]))
    with pytest.raises(ResourceLimitError):
        session.receive(stream(excess[-1]))


@pytest.mark.parametrize("side", list(Side))
def test_an_enclave_cannot_use_pairs_that_its_client_did_not(side):
    session = ready(side)
    if side is Side.ENCLAVE:
        assert session.receive(stream(CALL))
    else:
        with pytest.raises(RemoteProtocolError):
            session.receive(stream(CALL))
    with pytest.raises(RemoteProtocolError):
        ready(Side.CLIENT).receive(stream(DisposeFrame(1)))


def test_a_call_cannot_be_answered_before_it_was_sent():
    session = Session(Side.CLIENT, LIMITS)
    call = session.call(0, "enter", bytes(3 * CHUNK))
    session.data_to_send(1)
    with pytest.raises(RemoteProtocolError, match="before it was sent"):
        session.receive(stream(ReplyFrame(call, True, 0, b"")))


def test_a_pairs_outer_call_cannot_be_answered_first():
    session = Session(Side.ENCLAVE, LIMITS)
    session.receive(stream(CALL))
    host = session.call(1, "host", b"")
    session.receive(stream(CallFrame(2, 1, "enter", 0, b"")))
    session.call(1, "host", b"")
    with pytest.raises(RemoteProtocolError):
        session.receive(stream(ReplyFrame(host, True, 0, b"")))


def test_no_call_comes_in_the_middle_of_a_reply_on_its_pair():
    session = Session(Side.ENCLAVE, LIMITS)
    session.receive(stream(CALL))
    host = session.call(1, "host", b"")
    session.receive(stream(ReplyFrame(host, True, 2 * CHUNK, b"")))
    with pytest.raises(RemoteProtocolError, match="middle of a reply"):
        session.receive(stream(CallFrame(2, 1, "enter", 0, b"")))


def test_the_peer_can_still_be_told_why():
    session, peer = ready(), Session(Side.CLIENT, LIMITS)
    with pytest.raises(RemoteProtocolError):
        session.receive(raw("nonsense"))
    session.notify("ended", b"nonsense came")
    session.close("nonsense came")
    assert isinstance(peer.receive(session.data_to_send())[-1], Closed)


def test_what_is_announced_is_not_allocated():
    session = Session(Side.ENCLAVE)
    assert session.receive(stream(*(CallFrame(number, 0, "x", 1 << 30, b"") for number in range(1, 4001)))) == []


def test_a_long_frame_is_refused_by_its_length_alone():
    with pytest.raises(RemoteProtocolError, match="announced"):
        list(FrameReader().receive(struct.pack("<I", frames.MAX_FRAME + 1)))


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        [0],
        [10, 1],
        [True, 1],
        [1, 1, 1, "enter", 0],
        [1, 1, 1, "enter", 0, b"", 0],
        [1, 1, 1, "enter", 0, ""],
        [1, 1, 1, "", 0, b""],
        [1, 1, 1, "x" * 129, 0, b""],
        [1, 0, 1, "x", 0, b""],
        [1, 1, -1, "x", 0, b""],
        [1, 1, 1 << 63, "x", 0, b""],
        [1, 1.0, 1, "x", 0, b""],
        [1, 1, 1, "x", CHUNK + 1, bytes(CHUNK + 1)],
        [2, 1, 1, 0, b""],
        [4, "stream", 1, b""],
        {"call": 1},
    ],
)
def test_malformed_frames_are_refused(message):
    with pytest.raises(RemoteProtocolError, match="malformed"):
        ready().receive(raw(message))


def test_text_that_is_no_text_is_refused():
    data = frames.encode(GoodbyeFrame("bye")).replace(b"bye", b"\xff\xfe\xfd")
    with pytest.raises(RemoteProtocolError):
        ready().receive(data)


small = st.integers(0, 5)
numbers = small | st.sampled_from([-1, CHUNK, 3 * CHUNK, 1 << 40, 1 << 64])
contents = st.sampled_from([b"", b"x", FULL])
plausible = st.one_of(
    st.builds(CallFrame, small, small, st.just("x"), numbers, contents),
    st.builds(ReplyFrame, small, st.booleans(), numbers, contents),
    st.builds(NotifyFrame, small, st.just("x"), numbers, contents),
    st.builds(MoreFrame, st.sampled_from(["call", "reply", "notification", "x"]), small, contents),
    st.builds(CancelFrame, small),
    st.builds(DisposeFrame, small),
    st.builds(GoodbyeFrame, st.just("x")),
    st.builds(MarkFrame, small),
    st.builds(ReadFrame, small),
).filter(lambda frame: getattr(frame, "size", 0) < 1 << 63)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 9) | st.binary(max_size=4) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=10,
)


@given(st.lists(plausible, max_size=12), st.sampled_from(list(Side)))
def test_frames_in_any_order_raise_only_what_is_documented(sent, side):
    session = ready(side)
    try:
        for frame in sent:
            for event in session.receive(raw(frame)):
                if hasattr(event, "method") and hasattr(event, "call") and event.call % 2:
                    session.reply(event.call, True, b"answer")
    except DOCUMENTED:
        with pytest.raises(DOCUMENTED):
            session.receive(b"")


OURS = {
    "call": lambda session: session.call(0, "host", b"x"),
    "call on a pair": lambda session: session.call(1, "host", FULL * 2),
    "reply": lambda session: session.reply(1, True, FULL * 2),
    "notify": lambda session: session.notify("output", FULL * 2),
    "cancel": lambda session: session.cancel(1),
    "dispose": lambda session: session.dispose(1),
    "close": lambda session: session.close("over"),
    "ask": lambda session: session.ask(),
    "send": lambda session: session.data_to_send(),
    "lose the connection": lambda session: session.resume(0),
}


@given(st.lists(plausible | st.sampled_from(sorted(OURS)), max_size=16), st.sampled_from(list(Side)))
def test_frames_in_any_state_raise_only_what_is_documented(steps, side):
    """Whatever has been said at this end; of which AdytonError may refuse what is out of turn, and changes nothing."""
    session = ready(side)
    try:
        for step in steps:
            if isinstance(step, str):
                with contextlib.suppress(AdytonError):
                    OURS[step](session)
            else:
                session.receive(raw(step))
    except DOCUMENTED:
        with pytest.raises(DOCUMENTED):
            session.receive(b"")


@given(st.binary(max_size=300), st.integers(1, 50))
def test_garbage_raises_only_what_is_documented(garbage, cut):
    session = ready()
    try:
        for start in range(0, len(garbage), cut):
            session.receive(garbage[start : start + cut])
    except DOCUMENTED:
        pass


@given(st.lists(anything, max_size=5))
def test_any_message_raises_only_what_is_documented(messages):
    session = ready()
    try:
        session.receive(b"".join(map(raw, messages)))
    except DOCUMENTED:
        pass


@given(st.data())
def test_a_changed_byte_raises_only_what_is_documented(data):
    honest = Session(Side.CLIENT, LIMITS)
    honest.call(1, "enter", b"argument")
    honest.notify("output", bytes(2 * CHUNK))
    honest.call(2, "enter", bytes(2 * CHUNK))
    sent = bytearray(honest.data_to_send())
    edges = [*range(80), *range(len(sent) - CHUNK - 60, len(sent) - CHUNK)]
    sent[data.draw(st.sampled_from(edges))] ^= data.draw(st.integers(1, 255))
    try:
        ready().receive(bytes(sent))
    except DOCUMENTED:
        pass


@given(st.lists(plausible, max_size=10), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_where_bytes_are_cut_changes_nothing(sent, cuts):
    data = b"".join(map(raw, sent))

    def outcome(pieces):
        session, events = ready(), []
        try:
            for piece in pieces:
                events += session.receive(piece)
        except DOCUMENTED as error:
            return type(error), str(error)
        return events

    pieces, start = [], 0
    for cut in cuts:
        pieces.append(data[start : start + cut])
        start += cut
    assert outcome([*pieces, data[start:]]) == outcome([data])


@pytest.mark.parametrize("size", [CHUNK, 2 * CHUNK], ids=["small", "large"])
@pytest.mark.parametrize("reads", [False, True], ids=["reads nothing", "tells of no marks"])
def test_who_takes_no_answers_gets_no_more_of_them(size, reads):
    limits = Limits(message=1 << 20, notification=CHUNK, buffered=1 << 21, pairs=2, nesting=4, in_flight=64)
    session = Session(Side.ENCLAVE, limits)

    def answer_calls():
        for number in range(1, 1000):
            session.receive(stream(CallFrame(number, 0, "x", 0, b"")))
            session.reply(number, ok=True, body=bytes(size))
            if reads:
                session.data_to_send()

    with pytest.raises(ResourceLimitError):
        answer_calls()
    assert session.pending_bytes <= limits.in_flight * 3 * CHUNK


def test_who_takes_answers_gets_any_number_of_them():
    session, peer = Session(Side.ENCLAVE, LIMITS), Session(Side.CLIENT, LIMITS)
    for number in range(1, 500):
        assert peer.call(0, "x", b"") == number
        session.receive(peer.data_to_send())
        session.reply(number, ok=True, body=bytes(3 * CHUNK if number % 3 else 5))
        while session.due or peer.due:
            peer.receive(session.data_to_send())
            session.receive(peer.data_to_send())


@pytest.mark.parametrize(("chunks", "others", "kept"), [(2, 0, True), (1, 2000, False)])
def test_what_came_with_a_chunk_is_kept_only_if_most_of_it_is_chunks(chunks, others, kept):
    """Else a peer could have much more kept than what is counted."""
    session = Session(Side.ENCLAVE)
    session.receive(stream(CallFrame(1, 1, "enter", (chunks + 1) * CHUNK, b"")))
    parts = [MoreFrame("call", 1, memoryview(bytes(2 * CHUNK)[: chunks * CHUNK]))]
    data = stream(*parts, *(NotifyFrame(number + 1, "x", 4, b"....") for number in range(others)))
    assert (len(data) > 2 * chunks * CHUNK) != kept
    references = sys.getrefcount(data)
    session.receive(data)
    assert (sys.getrefcount(data) > references) == kept


@pytest.mark.parametrize("size", [CHUNK + 1, 1 << 20, (1 << 22) + 1])
@pytest.mark.parametrize("piece", [5000, 1 << 19])
def test_a_body_of_any_size_arrives_as_it_was_sent(size, piece):
    body = bytes(range(251)) * (size // 251 + 1)
    body = body[:size]
    ours, theirs = Session(Side.CLIENT), Session(Side.ENCLAVE)
    ours.call(1, "enter", body)
    events = []
    while sent := ours.data_to_send():
        for start in range(0, len(sent), piece):
            events += theirs.receive(sent[start : start + piece])
        ours.receive(theirs.data_to_send())
    assert [bytes(event.body) for event in events] == [body]


# -- the time that is left to a call ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [float("nan"), float("inf"), -float("inf"), 1e300], ids=repr)
def test_what_is_no_time_that_anybody_waits_is_refused(left):
    with pytest.raises(RemoteProtocolError, match="EnterRequest"):
        messages.decode(msgspec.msgpack.encode(["pay", b"", "msgpack", left]), messages.EnterRequest)
    for message in (abi.Call("pay", b"", left), HostCall("pay", b"", left)):
        with pytest.raises(msgspec.ValidationError, match="float"):
            msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))


def test_a_time_that_is_over_is_none_the_less_one():
    request = messages.EnterRequest("pay", b"", left=-3.5)
    assert messages.decode(messages.encode(request), messages.EnterRequest) == request
