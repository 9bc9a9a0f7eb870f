"""What callers may have a server hold that it has no thread for: bounded, whoever they are."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from adyton.errors import ResourceLimitError
from adyton.remote.address import Address
from adyton.remote.connection import RPCS, error_from, open_channel, open_server


@pytest.fixture
def busy() -> Iterator[int]:
    """The port of a server whose one thread waits, for a request that does not come."""

    def wait(requests: Iterator[bytes], _: Any) -> Iterator[bytes]:
        yield b"served"
        yield from requests

    handler = grpc.method_handlers_generic_handler("t.T", {"Wait": grpc.stream_stream_rpc_method_handler(wait)})
    server, port = open_server([handler], "127.0.0.1:0", None, 1)
    server.start()
    yield port
    server.stop(None).wait()


def test_callers_beyond_a_few_that_wait_are_turned_away(busy: int) -> None:
    silent = threading.Event()  # nothing is asked until it is set, nor then
    with open_channel(Address.parse(f"grpc://127.0.0.1:{busy}"), None) as channel:
        waits = channel.stream_stream("/t.T/Wait")
        served = waits(iter(silent.wait, True))
        assert next(served) == b"served"
        others = [waits(iter(silent.wait, True)) for _ in range(2 * RPCS)]
        over = threading.Semaphore(0)
        for each in others:
            if not each.add_callback(over.release):
                over.release()  # it is over already
        for _ in range(RPCS + 1):
            assert over.acquire(timeout=60)
        turned_away = [each for each in others if not each.is_active()]
        error = error_from(turned_away[0], "the server", connected=False)
        silent.set()
        for each in (served, *others):
            each.cancel()
    assert [each.code() for each in turned_away] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * (RPCS + 1)
    assert isinstance(error, ResourceLimitError)
