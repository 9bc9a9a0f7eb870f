"""A stream on gRPC's core: nothing is lost or sent twice, whoever sends, and the core is done with it however it ends."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from sources import Said

from adyton.remote import envelopes
from adyton.remote.core_stream import CoreStream, CoreStreamError

METHOD = "/adyton.Communicator/Communicate"
PATIENCE = 60.0


@contextlib.contextmanager
def server(handle, at_once=2):
    """`handle(requests, context)`; gives a channel to it."""
    method = grpc.stream_stream_rpc_method_handler(handle, envelopes.unpack, envelopes.pack)
    made = grpc.server(ThreadPoolExecutor(at_once))
    made.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("adyton.Communicator", {"Communicate": method}),)
    )
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        made.stop(None).wait(PATIENCE)


def echo(requests, _context):
    for each in requests:
        yield bytes(each)


class Numbers:
    """A source that many threads add to, a number at a time; pulled by one at a time, or it says so."""

    def __init__(self):
        self.lock = threading.Lock()
        self.pulling = threading.Lock()
        self.waiting = []
        self.last = 0
        self.over = False

    def add(self):
        with self.lock:
            self.last += 1
            self.waiting.append(self.last)

    @property
    def due(self):
        return bool(self.waiting) or self.over

    def pull(self):
        assert self.pulling.acquire(blocking=False)
        try:
            with self.lock:
                waiting, self.waiting = self.waiting, []
                over = self.over
            if waiting:
                return b"".join(each.to_bytes(4, "big") for each in waiting)
            return None if over else b""
        finally:
            self.pulling.release()


def numbers(data):
    return [int.from_bytes(data[at : at + 4], "big") for at in range(0, len(data), 4)]


def test_what_many_threads_say_arrives_once_and_in_order():
    source, count, interval = Numbers(), 3000, sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with server(echo) as channel:
            stream = CoreStream(channel, METHOD, (), source)

            def say():
                for _ in range(count):
                    source.add()
                    stream.wake()

            threads = [threading.Thread(target=say) for _ in range(4)]
            for each in threads:
                each.start()
            got = []
            for message in stream.messages():
                got += numbers(message)
                if len(got) == 4 * count:
                    source.over = True
                    stream.wake()
            for each in threads:
                each.join()
    finally:
        sys.setswitchinterval(interval)
    assert got == list(range(1, 4 * count + 1))


def test_many_streams_at_once_have_their_own_messages():
    def many(mark):
        source = Said(*[bytes([mark]) * 5000] * 300, over=True)
        return [bytes(each) for each in CoreStream(channel, METHOD, (), source).messages()]

    with server(echo, 8) as channel, ThreadPoolExecutor(8) as threads:
        for mark, got in enumerate(threads.map(many, range(8))):
            assert got == [bytes([mark]) * 5000] * 300


def test_what_is_said_while_a_message_is_sent_goes_together():
    taken = []

    def count(requests, _context):
        taken.extend(bytes(each) for each in requests)
        yield b"done"

    source = Numbers()
    for _ in range(5):
        source.add()
    source.over = True
    with server(count) as channel:
        assert list(CoreStream(channel, METHOD, (), source).messages()) == [b"done"]
    assert len(taken) == 1
    assert numbers(taken[0]) == [1, 2, 3, 4, 5]


def test_messages_of_all_sizes_come_back():
    sizes = [1, 127, 128, 16_383, 16_384, 65_536, 1 << 20, 3]
    source = Said(*(bytes([at]) * size for at, size in enumerate(sizes)), over=True)
    with server(echo) as channel:
        got = [bytes(each) for each in CoreStream(channel, METHOD, (), source).messages()]
    assert got == [bytes([at]) * size for at, size in enumerate(sizes)]


def test_how_the_peer_ended_it_is_told():
    def refuse(requests, context):
        context.set_trailing_metadata((("why", "because"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
        yield from requests

    with server(refuse) as channel, pytest.raises(CoreStreamError) as raised:
        list(CoreStream(channel, METHOD, (), Said()).messages())
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert raised.value.details() == "no room"
    assert ("why", "because") in [tuple(each) for each in raised.value.trailing_metadata()]


def test_nobody_there_is_told():
    with grpc.insecure_channel("unix:/nowhere/at-all") as channel, pytest.raises(CoreStreamError) as raised:
        list(CoreStream(channel, METHOD, (), Said(b"x")).messages())
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_metadata_comes():
    shown = queue.SimpleQueue()

    def look(_requests, context):
        shown.put(dict(context.invocation_metadata()))
        yield b"seen"

    with server(look) as channel:
        metadata = (("text", "t"), ("bytes-bin", b"\x00\xff"))
        assert list(CoreStream(channel, METHOD, metadata, Said(over=True)).messages()) == [b"seen"]
    found = shown.get(timeout=PATIENCE)
    assert (found["text"], found["bytes-bin"]) == ("t", b"\x00\xff")


def test_a_stream_that_another_thread_cancels_ends():
    begun = threading.Event()

    def wait(requests, _context):
        begun.set()
        yield from requests

    with server(wait) as channel:
        stream = CoreStream(channel, METHOD, (), Said())

        def cancel():
            assert begun.wait(PATIENCE)
            stream.cancel()

        threading.Thread(target=cancel).start()
        with pytest.raises(CoreStreamError) as raised:
            list(stream.messages())
        assert raised.value.code() is grpc.StatusCode.CANCELLED
        stream.wake()  # of no use, and no harm
        stream.cancel()


def test_messages_that_nobody_reads_to_their_end_are_cancelled():
    ended = threading.Event()

    def endless(_requests, context):
        context.add_callback(ended.set)
        while context.is_active():
            yield bytes(1000)

    with server(endless) as channel:
        stream = CoreStream(channel, METHOD, (), Said())
        messages = stream.messages()
        assert len(next(messages)) == 1000
        messages.close()
        assert ended.wait(PATIENCE)
        with pytest.raises(StopIteration):
            next(messages)


def test_a_source_that_fails_ends_the_stream():
    class Failing(Said):
        def pull(self):
            if self.data == [b"now"]:
                raise MemoryError
            return super().pull()

    source, got = Failing(b"first"), queue.SimpleQueue()
    with server(echo) as channel:
        stream = CoreStream(channel, METHOD, (), source)

        def read():
            try:
                for each in stream.messages():
                    got.put(bytes(each))
            except CoreStreamError as error:
                got.put(error.code())

        thread = threading.Thread(target=read)
        thread.start()
        assert got.get(timeout=PATIENCE) == b"first"
        wait_until_idle(stream)
        source.data.append(b"now")
        with pytest.raises(MemoryError):
            stream.wake()
        assert got.get(timeout=PATIENCE) is grpc.StatusCode.CANCELLED
        thread.join(PATIENCE)


def wait_until_idle(stream):
    """Its answer may come before the core says that the question was sent."""
    while stream._taken:
        threading.Event().wait(0.001)
