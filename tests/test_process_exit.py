"""A process that is done with its RPCs ends, wherever gRPC's threads stand then."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest

from adyton.remote.connection import open_server

# gRPC's thread is slow to handle the end of a call: it holds the call's lock while the process exits.
CLIENT = """
import sys, threading, time
from grpc import _channel
from adyton.remote import rpc_threads
from adyton.remote.address import Address
from adyton.remote.connection import open_channel

handling, forever = threading.Event(), threading.Event()
handle = _channel._handle_event

def slow(event, state, deserializer):
    if state.code is not None:
        handling.set()
        time.sleep(0.5)
    return handle(event, state, deserializer)

def requests():
    yield b"1"
    forever.wait()

_channel._handle_event = slow
channel = open_channel(Address.parse(sys.argv[1]), None)
call = rpc_threads.begin(channel.stream_stream("/t.T/Echo"), requests(), ())
assert next(call) == b"1"
collected_at_exit = [call]
collected_at_exit.append(collected_at_exit)
"""
ENDS = {
    "cancelled": "call.cancel(); forever.set(); handling.wait()",
    "cancelled, and its requests go on": "call.cancel(); handling.wait()",
    "closed": "channel.close(); forever.set()",
    "never ended": "",
}


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a server that sends back what it gets."""
    handler = grpc.stream_stream_rpc_method_handler(lambda requests, _: requests)
    handlers = [grpc.method_handlers_generic_handler("t.T", {"Echo": handler})]
    server, port = open_server(handlers, "127.0.0.1:0", None, 2)
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize("end", ENDS)
def test_a_process_exits_whatever_became_of_its_calls(end, echo):
    done = subprocess.run(
        [sys.executable, "-c", f"{CLIENT}{ENDS[end]}\ndel call, collected_at_exit\nprint('done', flush=True)\n", echo],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
