"""Streams of calls from asyncio, both ways: held back by who reads, read by the caller's loop, and over with their iterators and tasks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

import adyton
from adyton.communicator.streams import FIRST_BATCHES, MOST_ITEMS
from adyton.config import Policy
from adyton.errors import DeadlineError
from adyton.loader import LoadArguments, load_in_process
from adyton.trusted import Enclave, host_function

LIMIT = 40.0  # seconds until a test gives up on something that takes milliseconds

app = Enclave("acall_streams")


class Source:
    """What `count` tells a test that runs in the same process."""

    def __init__(self) -> None:
        self.produced = 0
        self.closed = threading.Event()


source = Source()


@host_function
def tripled(number: int) -> int: ...


@app.entry
def plus_one(number: int) -> int:
    return number + 1


@app.entry
def count(numbers: int) -> Iterator[int]:
    try:
        for number in range(numbers):
            source.produced += 1
            yield number
    finally:
        source.closed.set()


@app.entry
async def total(numbers: AsyncIterator[int]) -> int:
    return sum([each async for each in numbers])


@app.entry
def total_of_a_thread(numbers: Iterator[int]) -> int:
    return sum(numbers)


@app.entry
def asks_each(numbers: Iterator[int]) -> Iterator[int]:
    for number in numbers:
        yield tripled(number)


@pytest.fixture
def client() -> Iterator[adyton.EnclaveClient]:
    source.__init__()  # type: ignore[misc]

    def tripled(number: int) -> int:
        found: int = client.call("plus_one", 3 * number - 1)
        return found

    arguments = LoadArguments(functions=[tripled], policy=Policy().extended(call=["tripled"]))
    with load_in_process(app, arguments) as client:
        yield client


async def eventually(done: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT):
        while not done():  # noqa: ASYNC110 - what another thread does
            await asyncio.sleep(0.002)


async def never() -> AsyncIterator[int]:
    await asyncio.Event().wait()
    yield 1


def test_streams_of_results_hold_back_their_producer_and_end_with_their_iterator(client):
    async def main() -> None:
        found = [each async for each in await client.acall("count", 10_000)]
        assert found == list(range(10_000))
        source.closed.clear()
        source.produced = 0
        async with await client.acall("count", 10**9) as items:
            assert await anext(items) == 0
            ahead = -1
            while ahead != (ahead := source.produced):  # noqa: ASYNC110 - until it grows no more
                await asyncio.sleep(0.1)
            assert ahead < 3 * FIRST_BATCHES * MOST_ITEMS
        await eventually(source.closed.is_set)
        source.closed.clear()
        items = await client.acall("count", 10**9)
        assert await anext(items) == 0
        del items
        await eventually(source.closed.is_set)
        slow = await client.options(timeout=0.2).acall("asks_each", never())
        with pytest.raises(DeadlineError):
            await anext(slow)

    asyncio.run(main())


def test_what_a_task_has_let_go_of_is_looked_after_no_more(client):
    async def main() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def numbers() -> AsyncIterator[int]:
            begun.set()
            try:
                yield 1
                await asyncio.Event().wait()
            finally:
                ended.set()

        items = await client.acall("asks_each", numbers())
        assert await anext(items) == 3
        watched = client._core.proxy.unpaired.watch._watched
        assert watched
        del items
        async with asyncio.timeout(LIMIT):
            await ended.wait()
        await eventually(lambda: not watched)
        begun.clear()
        ended.clear()
        call = asyncio.ensure_future(client.acall("total", numbers()))
        async with asyncio.timeout(LIMIT):
            await begun.wait()
            call.cancel()
            await ended.wait()

    asyncio.run(main())


@pytest.mark.parametrize("entry", ["total", "total_of_a_thread"])
def test_asynchronous_arguments_are_read_by_the_callers_loop(client, entry):
    async def main() -> None:
        loops = set()

        async def numbers() -> AsyncIterator[int]:
            for number in range(5000):
                loops.add(asyncio.get_running_loop())
                yield number

        assert await client.acall(entry, numbers()) == sum(range(5000))
        assert loops == {asyncio.get_running_loop()}
        assert await client.acall(entry, iter(range(5000))) == sum(range(5000))

    asyncio.run(main())


def test_a_stream_both_ways_whose_items_are_asked_of_the_client(client):
    async def main() -> None:
        async def numbers() -> AsyncIterator[int]:
            for number in range(20):
                yield number

        assert [each async for each in await client.acall("asks_each", numbers())] == [3 * n for n in range(20)]

    asyncio.run(main())


def test_what_an_asynchronous_iterator_raises_is_raised_again(client):
    class OddError(LookupError): ...

    async def numbers() -> AsyncIterator[int]:
        yield 1
        raise OddError("of the client's")

    async def main() -> None:
        with pytest.raises(OddError):
            await client.acall("total", numbers())

    asyncio.run(main())
