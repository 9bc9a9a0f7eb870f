"""Streams where one end keeps no rules: an enclave towards its client, a client towards the enclave, and the guest towards its supervisor."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
from hostile import EMPTY, Client
from test_hostile_server import PATIENCE, Enclave, connect, lines  # noqa: F401 - fixtures

from adyton.communicator import session as communicator
from adyton.communicator.messages import EnterRequest, LoadReply, LoadRequest, Raised, StreamEnd, decode, encode
from adyton.communicator.streams import (
    BATCH_HEAD,
    END,
    FED,
    ITEMS,
    MOST_BATCHES,
    MOST_BYTES,
    RAISED,
    RESULT,
)
from adyton.errors import ConnectionLostError, EnclaveTypeError, ProtocolError, RemoteProtocolError
from adyton.proto.values import ItemDecoder, encode_arguments
from adyton.remote.client_pairs import CallFailed
from adyton.remote.results import ResultStream
from adyton.runtime import in_process
from adyton.runtime.process.guest import link as protocol
from adyton.runtime.process.supervisor.bulk import MOST
from adyton.runtime.process.supervisor.streams import Streams
from adyton.trusted import Enclave as Program

ONE = msgspec.msgpack.encode([1])


def batch(call, stream=RESULT, number=0, kind=ITEMS, payload=ONE):
    return BATCH_HEAD.pack(call, stream, number, kind) + payload


# -- the client --------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(connect):  # noqa: F811
    """opened(script) → the iterator of a stream whose enclave runs `script(session, call)`."""

    def opened(script):
        client, enclave = connect(script=lambda enclave, event: script(enclave.session, event.call))
        enclave.said = lambda event: said(enclave, event)
        client.connect(LoadRequest(b"", [], "/", "", {}))
        results = client.new_results()
        deadline = client.stream(results, EnterRequest("go", b""), None)

        def error_of(failed: CallFailed) -> BaseException:
            return LookupError(failed.raised.message)

        return ResultStream(client, results, ItemDecoder(int, "an item"), error_of, deadline)

    def said(enclave: Enclave, event: communicator.Event) -> None:
        if isinstance(event, communicator.Called):
            if event.method == "load":
                enclave.session.reply(event.call, True, encode(LoadReply(["go"], [], ["go"])))
            else:
                enclave.script(enclave, event)

    return opened


def calls(*bodies):
    return lambda session, call: [session.call(0, "items", body(call)) for body in bodies]


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (calls(lambda call: batch(call + 1)), "which has none"),
        (calls(lambda call: batch(call, stream=1)), "which has none"),
        (calls(lambda call: batch(call, kind=END, payload=b"")), "which has none"),
        (calls(lambda _: b"short"), "without its head"),
        (calls(lambda call: batch(call, kind=7)), "kind 7"),
        (calls(*[batch] * 2), "numbered a call 0"),
        (calls(lambda call: batch(call, number=1000), *[lambda call: batch(call, number=1000)]), "numbered a call"),
        (
            calls(*[lambda call, number=number: batch(call, number=number) for number in range(MOST_BATCHES + 1)]),
            "more items than there was room for",
        ),
        (
            lambda session, call: (
                session.call(0, "items", batch(call)),
                session.reply(call, True, encode(StreamEnd(0))),
            ),
            "after 0 batches",
        ),
        (
            lambda session, call: (
                session.reply(call, True, encode(StreamEnd(1))),
                session.call(0, "items", batch(call, number=1)),
                session.call(0, "items", batch(call)),
            ),
            "after the end",
        ),
        (
            lambda session, call: (
                session.call(0, "items", batch(call)),
                session.reply(call, True, encode(StreamEnd(1))),
                session.call(0, "items", batch(call, number=1)),
            ),
            "which has none",
        ),
        (lambda session, call: session.reply(call, True, b"\xc1"), "malformed StreamEnd"),
        (lambda session, call: session.reply(call, True, encode(StreamEnd(0, b"\xc1"))), "malformed Raised"),
        (lambda session, call: session.reply(call, False, b"\xc1"), "malformed Raised"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_enclave_that_breaks_the_rules_of_a_stream_loses_its_client(opened, script, text):
    def exhaust(items):
        list(items)
        items._client.call("enter", EnterRequest("go", b""))  # of a stream that had ended before that came

    items = opened(script)
    deadline = time.monotonic() + PATIENCE
    while items._client._speaker.error is None:  # nothing is taken meanwhile
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)
    with pytest.raises((ProtocolError, ConnectionLostError), match=text):
        exhaust(items)


def test_items_that_are_none_are_an_error_of_the_iterator_only(opened):
    over = threading.Event()

    def script(session, call):
        session.call(0, "items", batch(call, payload=msgspec.msgpack.encode([1, 2]) + b"\xc1"))
        session.call(0, "items", batch(call, number=1, payload=msgspec.msgpack.encode([1, "two"])))
        over.set()

    items = opened(script)
    assert over.wait(PATIENCE)
    with pytest.raises(EnclaveTypeError, match="an item does not fit"):
        list(items)
    assert items._client._speaker.error is None


def test_what_ended_before_it_began_is_raised(opened):
    refused = encode(Raised("unknown-entry", "Refused", "no entry"))
    items = opened(lambda session, call: session.reply(call, False, refused))
    with pytest.raises(LookupError, match="no entry"):
        next(items)


# -- the enclave -------------------------------------------------------------------------------------------------------

program = Program("hostile")


@program.entry
def total(numbers: Iterator[int]) -> int:
    return sum(numbers)


@program.entry
def ignores(numbers: Iterator[int], event: int) -> int:
    return _events[event].wait(PATIENCE)


@program.entry
def count(numbers: int) -> Iterator[int]:
    yield from range(numbers)


_events: list[threading.Event] = []


@pytest.fixture
def client():
    client = Client(in_process.launch(program))
    client.load(msgspec.msgpack.encode(EMPTY))
    yield client
    client.close()


def call_ignoring(client, pair=1):
    """A call that takes nothing of its stream until its event is set; its number, and the event."""
    _events.append(threading.Event())
    stream = msgspec.msgpack.Ext(1, b"\1")
    arguments = msgspec.msgpack.encode(([stream, len(_events) - 1], {}))
    return client.call("enter", encode(EnterRequest("ignores", arguments)), pair), _events[-1]


@pytest.mark.parametrize(
    ("bodies", "text"),
    [
        ([lambda call: batch(call + 50, 1)], "items of stream 1 of call"),
        ([lambda call: batch(call, RESULT)], "items of stream 0"),
        ([lambda _: b""], "without its head"),
        ([lambda call: batch(call, 1, kind=3)], "kind 3"),
        ([lambda call: batch(call, 65)], "of stream 65"),
        ([lambda call: batch(call, 1)] * 2, "numbered a call 0"),
        (
            [lambda call, number=number: batch(call, 1, number) for number in range(MOST_BATCHES + 1)],
            "more items than there was room for",
        ),
        ([lambda call: batch(call, 1, 0, END, b""), lambda call: batch(call, 1, 1)], "after the end"),
        ([lambda call: batch(call, 1, 0, RAISED, b""), lambda call: batch(call, 1, 1, END, b"")], "after the end"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_client_that_breaks_the_rules_of_a_stream_ends_its_enclave(client, bodies, text):
    call, over = call_ignoring(client)
    for each in bodies:
        client.session.call(0, "items", each(call))
    assert text in (client.wait_for_end() or "")
    over.set()


@pytest.mark.parametrize(
    ("method", "entry", "pair", "kind"),
    [
        ("stream", "count", 0, "state"),
        ("run", "count", 0, "state"),
        ("load", "count", 0, "state"),
        ("items", "count", 1, "state"),
        ("stream", "total", 1, "type"),
        ("enter", "count", 1, "type"),
        ("enter", "count", 0, "type"),
        ("stream", "nothing", 1, "unknown-entry"),
    ],
)
def test_what_cannot_be_called_so_is_refused(client, method, entry, pair, kind):
    body = encode(EnterRequest(entry, encode_arguments(entry, [1], {})))
    replied = client.result(client.call(method, body, pair))
    raised = replied.body if not replied.ok else decode(replied.body, StreamEnd).raised
    assert decode(raised, Raised).kind == kind


def test_items_that_come_too_late_or_that_no_argument_is_are_dropped(client):
    call, over = call_ignoring(client)
    dropped = client.call("items", batch(call, 2), 0)
    assert client.result(dropped).body == FED
    over.set()
    assert client.entered(call) is True
    late = client.call("items", batch(call, 1), 0)
    assert client.result(late) == communicator.Replied(late, True, FED, 0)


def test_a_cancelled_load_goes_on():
    client = Client(in_process.launch(program))
    loading = client.call("load", msgspec.msgpack.encode(EMPTY))
    client.session.cancel(loading)
    assert client.result(loading).ok
    assert client.enter("total", [1, 2], pair=0) == 3
    client.close()


def test_items_that_nobody_took_are_answered_when_their_call_ends(client):
    call, over = call_ignoring(client)
    numbers = [client.call("items", batch(call, 1, number), 0) for number in (0, 1, 5)]
    over.set()
    assert client.entered(call) is True
    assert [client.result(number).body for number in numbers] == [FED] * 3


def test_malformed_items_are_an_error_where_they_are_read(client):
    stream = msgspec.msgpack.Ext(1, b"\1")
    request = EnterRequest("total", msgspec.msgpack.encode(([stream], {})))
    for payload, kind in ((b"\xc1", ITEMS), (b"", ITEMS), (b"\xc1", RAISED)):
        call = client.call("enter", encode(request), 0)
        client.call("items", batch(call, 1, 0, kind, payload), 0)
        assert isinstance(client.entered(call), Raised)
    assert client.enter("total", [1, 2]) == 3


@pytest.mark.parametrize("extension", [(1, b""), (1, b"\0"), (1, b"\1\1"), (1, b"\x41"), (2, b"\1")])
def test_malformed_streams_are_refused(client, extension):
    arguments = msgspec.msgpack.encode(([msgspec.msgpack.Ext(*extension)], {}))
    call = client.call("enter", encode(EnterRequest("total", arguments)))
    assert client.entered(call).kind == "type"


def test_a_stream_stands_for_one_argument_only(client):
    stream = msgspec.msgpack.Ext(1, b"\1")
    arguments = msgspec.msgpack.encode(([stream], {"event": stream}))
    call = client.call("enter", encode(EnterRequest("ignores", arguments)))
    assert client.entered(call).kind == "type"


# -- the guest ---------------------------------------------------------------------------------------------------------


class _Outbox:
    def __init__(self) -> None:
        self.told: list[object] = []
        self.size = 0
        self._reader = protocol.Reader(protocol.ToGuest)

    def __len__(self) -> int:
        return self.size

    def put(self, data: bytes) -> None:
        self.size += len(data)
        self.told += self._reader.receive(data)

    gather = put


class _Link:
    def __init__(self) -> None:
        self.item = None
        self.outbox = _Outbox()
        self.told = self.outbox.told


@pytest.fixture
def streams():
    session = communicator.Session(communicator.Side.ENCLAVE)
    slowed: list[bool] = []
    streams = Streams(session, _Link, lambda step: step(), lambda: slowed.append(True))  # type: ignore[arg-type]
    streams.slowed = slowed
    streams.thread, streams.other = _Link(), _Link()
    streams.began(1, streams.thread, "stream")
    streams.began(2, streams.other, "enter")
    streams.enter(3, b"", ())
    return streams


@pytest.mark.parametrize("bulk", [(), (bytes(MOST // 4),)])
def test_a_client_whose_calls_without_a_pair_the_guest_does_not_take_is_slowed_down(streams, bulk):
    for call in range(4, 8):
        assert not streams.slowed
        streams.enter(call, bytes(0 if bulk else MOST // 4), bulk)
    assert streams.slowed


@pytest.mark.parametrize(
    ("link", "messages", "text"),
    [
        ("other", [protocol.Items(1, ONE)], "items of a call that has none"),
        ("other", [protocol.Items(2, ONE)], "items of a call that has none"),
        ("link", [protocol.Items(1, ONE)], "items of a call that has none"),
        ("thread", [protocol.Items(9, ONE)], "items of a call that has none"),
        ("thread", [protocol.Items(1, ONE)] * (MOST_BATCHES + 1), "more items than there was room for"),
        (
            "thread",
            [protocol.Items(1, bytes(MOST_BYTES)), protocol.Items(1, ONE)],
            "more items than there was room for",
        ),
        ("link", [protocol.Took(2, 1, hungry=True)], "took items that it was not given"),
        ("thread", [protocol.Took(1, 1, hungry=True)], "took items that it was not given"),
        ("link", [protocol.Return(ok=True, body=b"", call=1)], "returned from a call that nobody made"),
        ("link", [protocol.Return(ok=True, body=b"")], "returned from a call that nobody made"),
        (
            "link",
            [protocol.Return(ok=True, body=b"", call=3, sizes=(1 << 20,))],
            "returned from a call that nobody made",
        ),
        ("other", [protocol.Items(2, b"", (1 << 20,))], "items of a call that has none"),
        (
            "thread",
            [protocol.Items(1, b"", (MOST_BYTES,)), protocol.Items(1, b"", (1 << 16,))],
            "more items than there was room for",
        ),
        ("link", [protocol.HostCall("f", b"")], "on the link aside"),
    ],
)
def test_a_guest_that_breaks_the_rules(streams, link, messages, text):
    for each in messages[:-1]:
        streams.from_guest(getattr(streams, link), each)
    with pytest.raises(RemoteProtocolError, match=text):
        streams.from_guest(getattr(streams, link), messages[-1])


def test_a_stream_returns_no_bulk(streams):
    with pytest.raises(RemoteProtocolError, match="bulk"):
        streams.ended(1, protocol.Return(ok=True, body=b"", sizes=(1 << 20,)))


def test_what_a_guest_has_begun_of_a_large_item_is_counted(streams):
    streams.from_guest(streams.thread, protocol.Items(1, b"", (1 << 16,)))
    streams.piece(streams.thread, memoryview(bytes(40000)))
    assert streams.held == 40000
    streams.piece(streams.thread, memoryview(bytes(25536)))
    assert (streams.held, streams.thread.item) == (0, None)


def test_after_its_return_nothing_more_of_a_call_is_taken_or_told(streams):
    assert streams.from_guest(streams.thread, protocol.Items(1, ONE)) == 0
    assert decode(streams.ended(1, protocol.Return(ok=True, body=b"")).body, StreamEnd) == StreamEnd(1)
    assert streams.from_guest(streams.link, protocol.Took(1, 1, hungry=True)) == 0  # of a thread that goes on
    with pytest.raises(RemoteProtocolError, match="has none"):
        streams.from_guest(streams.thread, protocol.Items(1, ONE))
    told = len(streams.link.told)
    streams.cancel(1)
    assert streams.replied(1, FED)
    assert len(streams.link.told) == told
    assert streams.ended(2, protocol.Return(ok=True, body=b"x")) == protocol.Return(ok=True, body=b"x")
    streams.cancel(3)
    streams.ended(3, protocol.Return(ok=True, body=b"", call=3))
    assert streams.link.told[-2:] == [protocol.Cancel(3), protocol.Forget(3)]
