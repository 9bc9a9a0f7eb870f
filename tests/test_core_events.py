"""What of grpcio is used though it is private: a version that lacks it is found out here, and by name."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc._cython import cygrpc

from adyton.remote.core_events import ClientStream, ServerStream


@pytest.fixture
def served():
    """Has a handler of a stream run on a server: what the client has received, and as what it ended."""
    servers = []

    def run(handle) -> tuple[list[bytes], grpc.StatusCode]:
        def handler(_, context):
            handle(context)
            return iter(())

        server = grpc.server(ThreadPoolExecutor(1))
        method = grpc.stream_stream_rpc_method_handler(handler)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Core", {"run": method}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream("/Core/run")(iter([b"one", b"two"]))
            got = []
            try:
                got.extend(call)
            except grpc.RpcError:
                pass
            return got, call.code()

    yield run
    for each in servers:
        each.stop(None).wait()


@pytest.mark.parametrize("name", ["ReceiveMessageOperation", "SendInitialMetadataOperation", "SendMessageOperation"])
def test_an_operation_of_the_core(name):
    assert hasattr(cygrpc, name)


def test_a_handlers_context_leads_to_the_call_of_the_core(served):
    found = []

    def handle(context):
        found.extend([context._rpc_event.call.start_server_batch, context._state.initial_metadata_allowed])

    assert served(handle) == ([], grpc.StatusCode.OK)
    assert callable(found[0])
    assert found[1] is True


class Side:
    """What happens to it, as events."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[object] = queue.SimpleQueue()

    def received(self, message):
        self.events.put(message)

    def sent(self):
        self.events.put("sent")

    def ended(self):
        self.events.put("ended")

    def next(self) -> object:
        return self.events.get(timeout=60)


def echoed_twice(side, stream):
    for _ in range(2):
        assert stream.receive()
        assert stream.send(side.next() * 2)
        assert side.next() == "sent"


def check_over(side, stream):
    assert side.next() == "ended"
    assert not stream.receive()
    assert not stream.send(b"late")
    assert side.events.empty()


def test_a_servers_messages_come_and_go_and_the_end_is_told(served):
    side, streams = Side(), []

    def handle(context):
        stream = ServerStream(side, context)
        echoed_twice(side, stream)
        assert stream.receive()
        assert side.next() is None
        streams.append(stream)

    assert served(handle) == ([b"oneone", b"twotwo"], grpc.StatusCode.OK)
    check_over(side, *streams)


def test_a_clients_messages_come_and_go_and_the_end_is_told():
    def respond(requests, _):
        yield b"one"
        assert next(requests) == b"oneone"
        yield b"two"
        assert next(requests) == b"twotwo"

    server = grpc.server(ThreadPoolExecutor(1))
    method = grpc.stream_stream_rpc_method_handler(respond)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Core", {"run": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    over, side = threading.Event(), Side()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream("/Core/run")(iter(over.wait, True))
        stream = ClientStream(side, call)
        echoed_twice(side, stream)
        if stream.receive():  # it may be over by now
            assert side.next() is None
        check_over(side, stream)
        assert call.code() is grpc.StatusCode.OK
        over.set()
    server.stop(None).wait()


def test_who_waits_is_told_when_the_rpc_ends(served):
    side, streams = Side(), []

    def handle(context):
        streams.append(ServerStream(side, context))
        assert streams[0].receive()
        assert side.next() == b"one"
        assert streams[0].receive()
        assert side.next() == b"two"
        assert streams[0].receive()
        context.cancel()

    assert served(handle) == ([], grpc.StatusCode.CANCELLED)
    assert side.next() is None
    check_over(side, *streams)


def test_an_rpc_that_ends_without_a_message_still_says_how(served):
    def handle(context):
        ServerStream(Side(), context)
        context.abort(grpc.StatusCode.DATA_LOSS, "as told")

    assert served(handle) == ([], grpc.StatusCode.DATA_LOSS)


def test_an_rpc_that_is_over_already(served):
    side = Side()

    def handle(context):
        gone = threading.Event()
        assert context.add_callback(gone.set)
        context.cancel()
        assert gone.wait(60)
        check_over(side, ServerStream(side, context))

    assert served(handle) == ([], grpc.StatusCode.CANCELLED)
