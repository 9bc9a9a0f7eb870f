"""Streams of arguments and of results: types, order, backpressure, errors in the middle, closing, and calls inside of loops."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import adyton
from adyton.communicator.streams import FIRST_BATCHES, MOST_ITEMS
from adyton.config import Policy
from adyton.errors import ClosedError, ConnectionLostError, DeadlineError, EnclaveError, EnclaveTypeError
from adyton.loader import LoadArguments, load_in_process
from adyton.trusted import Enclave, host_function

LIMIT = 40.0  # seconds until a test gives up on something that takes milliseconds


@dataclass
class Point:
    x: int
    y: int


class Place:
    """What the entries below tell a test that runs in the same process."""

    def __init__(self) -> None:
        self.produced = 0
        self.closed = threading.Event()
        self.go_on = threading.Event()
        self.seen: list[Any] = []


app = Enclave("streams")
place = Place()
client_of: list[adyton.EnclaveClient] = []


@host_function
def looked_up(number: int) -> int: ...


@host_function
def nested(number: int) -> int: ...


@app.entry
def count(numbers: int) -> Iterator[int]:
    try:
        for number in range(numbers):
            place.produced += 1
            yield number
    finally:
        place.closed.set()


@app.entry
async def count_async(numbers: int) -> AsyncIterator[int]:
    try:
        for number in range(numbers):
            place.produced += 1
            yield number
    finally:
        place.closed.set()


@app.entry
def untyped(numbers):
    yield from range(numbers)


@app.entry
def listed(numbers: int) -> Iterator[int]:
    return [*range(numbers)]


@app.entry
async def streamed_later(numbers: int) -> Iterator[int]:
    await asyncio.sleep(0)
    return iter(range(numbers))


@app.entry
def points(numbers: int) -> Generator[Point, None, None]:
    for number in range(numbers):
        yield Point(number, -number)


@app.entry
def total(numbers: Iterator[int]) -> int:
    return sum(numbers)


@app.entry
async def total_async(numbers: AsyncIterator[int]) -> int:
    return sum([each async for each in numbers])


@app.entry
def first_of(numbers: Iterator[int], wanted: int) -> list[int]:
    return [next(numbers) for _ in range(wanted)]


@app.entry
def zipped(a: Iterator[int], *others: Iterator[int], last: Iterator[str]) -> Iterator[tuple[int, ...]]:
    for numbers in zip(a, *others, strict=True):
        yield (*numbers, len(next(last)))


@app.entry
def sizes(blocks: Iterator[bytes]) -> Iterator[int]:
    for block in blocks:
        yield len(block)


@app.entry
def blocks(size: int, number: int) -> Iterator[bytes]:
    for each in range(number):
        yield bytes([each % 256]) * size


@app.entry
def keep(numbers: Iterator[int]) -> str:
    try:
        for each in numbers:
            place.seen.append(each)
    except LookupError as error:
        return f"{type(error).__name__}: {error}"
    return "all"


@app.entry
def translates(numbers: Iterator[int]) -> int:
    try:
        return sum(numbers)
    except LookupError as error:
        raise ValueError("of the program's") from error


@app.entry
def fails_after(numbers: int) -> Iterator[int]:
    yield from range(numbers)
    raise LookupError(f"after {numbers}")


@app.entry
def gives_an_object(numbers: int) -> Iterator[int]:
    try:
        yield from range(numbers)
        yield object()
    finally:
        place.closed.set()


@app.entry
def looks_up(numbers: int) -> Iterator[int]:
    for number in range(numbers):
        yield looked_up(number)


@app.entry
def nests(numbers: int) -> Iterator[int]:
    for number in range(numbers):
        yield nested(number)


@app.entry
def plus_one(number: int) -> int:
    return number + 1


@app.entry
def which_thread() -> int:
    return threading.get_ident()


@app.entry
def read_by_a_thread(numbers: Iterator[int]) -> int:
    found = []
    thread = threading.Thread(target=lambda: found.append(sum(numbers)))
    thread.start()
    thread.join()
    return found[0]


@app.entry
def waits_between() -> Iterator[int]:
    yield 1
    place.go_on.wait(LIMIT)
    yield 2


@pytest.fixture
def client() -> Iterator[adyton.EnclaveClient]:
    place.__init__()  # type: ignore[misc]
    threads = []

    def looked_up(number: int) -> int:
        threads.append(threading.get_ident())
        return number * 10

    def nested(number: int) -> int:
        found: int = client.call("plus_one", number)
        return found

    arguments = LoadArguments(functions=[looked_up, nested], policy=Policy().extended(call=["looked_up", "nested"]))
    with load_in_process(app, arguments) as client:
        client.function_threads = threads  # type: ignore[attr-defined]
        yield client


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not done():
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)


def held_at(value: Callable[[], int]) -> int:
    """What it comes to, once it grows no more."""
    found = -1
    while found != (found := value()):
        threading.Event().wait(0.1)
    return found


# -- what is carried ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [count, count_async, "count", "untyped", listed, streamed_later])
@pytest.mark.parametrize("numbers", [0, 1, 10_000])
def test_results_come_in_order_whatever_makes_them(client, entry, numbers):
    assert list(client.call(entry, numbers)) == list(range(numbers))


def test_items_have_the_types_of_the_annotations(client):
    assert list(client.call(points, 3)) == [Point(0, 0), Point(1, -1), Point(2, -2)]
    assert next(client.call("points", 1)) == {"x": 0, "y": 0}


@pytest.mark.parametrize("entry", [total, total_async, "read_by_a_thread"])
@pytest.mark.parametrize(
    "given", [lambda: iter(range(20_000)), lambda: (n for n in range(20_000)), lambda: [*range(20_000)]]
)
def test_arguments_are_read_item_by_item_by_whom_the_program_likes(client, entry, given):
    assert client.call(entry, given()) == sum(range(20_000))


async def numbers_async(numbers: int) -> AsyncIterator[int]:
    for number in range(numbers):
        await asyncio.sleep(0)
        yield number


def test_an_asynchronous_iterator_is_read_by_a_thread_with_a_loop(client):
    assert client.call(total, numbers_async(100)) == 4950


def test_several_streams_each_way(client):
    found = client.call("zipped", iter([1, 2]), iter([3, 4]), (n for n in (5, 6)), last=iter(["a", "bc"]))
    assert list(found) == [[1, 3, 5, 1], [2, 4, 6, 2]]


def test_items_of_all_sizes(client):
    given = [0, 1, 1 << 14, 1 << 18, (1 << 18) + 1, 5 << 20, 3]
    assert list(client.call("sizes", (bytes(size) for size in given))) == given
    found = list(client.call("blocks", 3 << 20, 8))
    assert [(len(each), each[:1]) for each in found] == [(3 << 20, bytes([n])) for n in range(8)]


def test_an_entry_that_wants_fewer_items_than_there_are_ends_the_iterator(client):
    closed = threading.Event()
    assert client.call("first_of", endless(closed), 3) == [0, 0, 0]
    assert closed.wait(LIMIT)


def test_an_item_is_had_while_the_next_one_is_not_there_yet(client):
    items = client.call("waits_between")
    assert next(items) == 1
    place.go_on.set()
    assert list(items) == [2]
    assert next(items, None) is None


# -- types -------------------------------------------------------------------------------------------------------------


def test_an_argument_of_a_wrong_type_is_an_error_before_the_program_sees_it(client):
    with pytest.raises(EnclaveTypeError, match=r"keep\(.*an item of 'numbers' does not fit.*int.*str"):
        client.call("keep", iter([1, 2, "three", 4]))
    assert place.seen == [1, 2]


def test_a_result_of_a_wrong_type_is_an_error_of_the_iterator(client):
    def points(numbers: int) -> Iterator[str]: ...

    with pytest.raises(EnclaveTypeError, match=r"points\(\): an item of the result does not fit"):
        next(client.call(points, 1))


def test_an_item_that_cannot_be_sent(client):
    items = client.call("gives_an_object", 2)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(EnclaveTypeError, match="cannot be sent"):
        next(items)
    assert place.closed.is_set()
    with pytest.raises(EnclaveTypeError, match="cannot be sent"):
        client.call("total", iter([object()]))


def test_a_stream_in_the_place_of_another_value(client):
    with pytest.raises(EnclaveTypeError, match=r"argument 'number'.*int.*ext"):
        client.call("plus_one", iter([1]))


def test_annotations_that_disagree_about_what_is_a_stream(client):
    def count(numbers: int) -> list[int]: ...

    def plus_one(number: int) -> Iterator[int]: ...

    with pytest.raises(EnclaveTypeError, match="a stream in the enclave, and none here"):
        client.call(count, 1)
    with pytest.raises(EnclaveTypeError, match="a stream here, and none in the enclave"):
        client.call(plus_one, 1)


def test_wrong_arguments_of_a_stream_are_told_by_its_iterator(client):
    with pytest.raises(EnclaveTypeError, match="numbers"):
        next(client.call("count", "many"))


# -- backpressure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [count, count_async])
def test_a_slow_consumer_holds_a_fast_producer(client, entry):
    """It is ahead by what was granted: little of it, since the consumer never had to wait for long."""
    items = client.call(entry, 10**9)
    assert next(items) == 0
    ahead = held_at(lambda: place.produced)
    assert ahead < 3 * FIRST_BATCHES * MOST_ITEMS
    for _ in range(5 * MOST_ITEMS):
        next(items)
    assert held_at(lambda: place.produced) < ahead + (2 * FIRST_BATCHES + 6) * MOST_ITEMS
    items.close()


def test_a_slow_entry_holds_a_fast_iterator(client):
    produced = [0]

    def numbers() -> Iterator[int]:
        for number in iter(int, 1):
            produced[0] += 1
            yield number

    call = client.submit("keeps_waiting", numbers())
    until(lambda: produced[0] > 0)
    assert held_at(lambda: produced[0]) <= 3 * FIRST_BATCHES * MOST_ITEMS
    place.go_on.set()
    assert call.result(LIMIT) == 0


@app.entry
def keeps_waiting(numbers: Iterator[int]) -> int:
    first = next(numbers)
    place.go_on.wait(LIMIT)
    return first


# -- errors ------------------------------------------------------------------------------------------------------------


def test_what_came_before_an_error_is_had_before_it_is_raised(client):
    items = client.call("fails_after", 10_000)
    got = []
    with pytest.raises(LookupError, match="after 10000") as raised:
        got.extend(items)
    assert isinstance(raised.value, EnclaveError)
    assert got == [*range(10_000)]
    items = client.call("fails_after", 3)
    assert [next(items), next(items), next(items)] == [0, 1, 2]
    with pytest.raises(LookupError):
        next(items)
    assert next(items, "over") == "over"


class OddError(LookupError):
    """Of the client's own."""


def failing() -> Iterator[int]:
    yield 1
    raise OddError("of the client's")


def test_what_an_iterator_raises_is_raised_in_the_enclave_and_again_here(client):
    with pytest.raises(OddError, match="of the client's") as raised:
        client.call("total", failing())
    assert isinstance(raised.value.__cause__, EnclaveError)
    with pytest.raises(EnclaveError, match="of the program's"):
        client.call("translates", failing())
    assert client.call("keep", failing()) == "LookupError: of the client's"
    assert place.seen == [1]


def endless(closed: threading.Event) -> Iterator[int]:
    try:
        yield from iter(int, 1)
    finally:
        closed.set()


# -- ends --------------------------------------------------------------------------------------------------------------


def test_an_iterator_that_nobody_has_any_more_ends_its_arguments_too(client):
    closed = threading.Event()
    items = client.call("sizes", (bytes(n) for n in endless(closed)))
    assert next(items) == 0
    del items
    gc.collect()
    assert closed.wait(LIMIT)


@pytest.mark.parametrize("entry", [count, count_async])
@pytest.mark.parametrize("how", ["close", "with", "del", "error of a type"])
def test_who_wants_no_more_ends_the_generator_in_the_enclave(client, entry, how):
    items = client.call(entry, 10**9)
    assert next(items) == 0
    if how == "close":
        items.close()
        items.close()
        assert list(items) == []
    elif how == "with":
        with items:
            assert next(items) == 1
    elif how == "del":
        del items
        gc.collect()
    else:

        def count(numbers: int) -> Iterator[str]: ...
        def count_async(numbers: int) -> Iterator[str]: ...

        del items
        wrong = {"count": count, "count_async": count_async}[entry.__name__]
        with pytest.raises(EnclaveTypeError):
            next(client.call(wrong, 10**9))
    assert place.closed.wait(LIMIT)
    assert client.call("plus_one", 1) == 2


def test_streams_that_have_ended_leave_nothing(client):
    before = threading.active_count()
    for _ in range(50):
        assert list(client.call("count", 3)) == [0, 1, 2]
        assert next(client.call("count", 10**9)) == 0
        assert client.call("total", iter(range(5))) == 10
    gc.collect()
    proxy = client._core.proxy
    until(lambda: client.call("plus_one", 0) and not proxy.results._open and len(proxy._pairs) <= 1)
    until(
        lambda: threading.active_count() <= before + 2
    )  # of calls on this thread's pair; the reader of the link aside
    assert not proxy.arguments._calls._sent


def test_the_time_of_a_call_is_that_of_the_whole_stream(client):
    items = client.options(timeout=0.3).call("waits_between")
    assert next(items) == 1
    with pytest.raises(DeadlineError, match=r"within 0.3 s"):
        next(items)
    assert next(items, "over") == "over"
    place.go_on.set()


def test_a_stream_that_is_let_go_of_with_items_that_nobody_took_leaves_nothing(client):
    session = client._core.proxy._session
    items = client.call("count", 3)
    until = time.monotonic() + LIMIT
    while session._sent_calls and time.monotonic() < until:  # it has come to its end, and nobody has read it
        threading.Event().wait(0.01)
    assert session._received_calls
    del items
    while session._received_calls and time.monotonic() < until:
        threading.Event().wait(0.01)
    assert not session._received_calls
    assert client.call("plus_one", 1) == 2


def test_a_closed_enclave_ends_its_streams_with_one_clear_error(client):
    items = client.call("waits_between")
    assert next(items) == 1
    closer = threading.Thread(target=client.close)
    closer.start()
    with pytest.raises(ClosedError):
        list(items)
    assert list(items) == []
    closer.join(LIMIT)
    place.go_on.set()
    with pytest.raises(ClosedError):
        client.call("count", 1)


def test_a_lost_connection_ends_both_kinds_of_streams(client):
    closed = threading.Event()
    items = client.call("sizes", (bytes(n) for n in endless(closed)))
    call = client.submit("keeps_waiting", endless(closed))
    assert next(items) == 0
    client._core.proxy._transport.close()
    with pytest.raises(ConnectionLostError):
        list(items)
    with pytest.raises(ConnectionLostError):
        call.result(LIMIT)
    assert closed.wait(LIMIT)
    place.go_on.set()
    client._core.closed = True  # there is nothing to finalize


# -- calls inside ------------------------------------------------------------------------------------------------------


def test_the_body_of_a_loop_may_call_the_enclave_and_open_other_streams(client):
    found = [client.call("plus_one", a) + b for a in client.call("count", 50) for b in client.call("count", 3)]
    assert found == [a + 1 + b for a in range(50) for b in range(3)]
    assert list(client.call("sizes", (bytes(n) for n in client.call("count", 20)))) == list(range(20))


def test_functions_that_a_stream_calls_are_executed_by_who_waits_for_its_items(client):
    assert list(client.call("looks_up", 5)) == [0, 10, 20, 30, 40]
    assert set(client.function_threads) == {threading.get_ident()}
    assert list(client.call("nests", 5)) == [1, 2, 3, 4, 5]


def test_a_stream_has_a_thread_of_its_own_in_the_enclave(client):
    mine = client.call("which_thread")
    assert list(client.call("count", 1)) == [0]
    assert client.call("which_thread") == mine


def test_only_one_thread_waits_for_the_next_item(client):
    items = client.call("waits_between")
    assert next(items) == 1
    waiting = threading.Thread(target=lambda: place.seen.append(next(items)))
    waiting.start()
    until(items._busy.locked)
    with pytest.raises(ValueError, match="another thread"):
        next(items)
    place.go_on.set()
    waiting.join(LIMIT)
    assert place.seen == [2]


def test_many_streams_at_once(client):
    """More batches than may be under way as calls of a session: they wait for one another, and none is lost."""
    each = [client.call("count", 40_000) for _ in range(60)]
    for items in each:
        assert next(items) == 0
    assert [sum(items) for items in each] == [sum(range(40_000))] * 60
