"""Calls from asyncio: any number at once, cancelled with their tasks, and errors as of `call`."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import adyton
from adyton.communicator.messages import EnterRequest
from adyton.config import Policy
from adyton.errors import (
    ClosedError,
    ConnectionLostError,
    DeadlineError,
    EnclaveError,
    EnclaveTypeError,
    UnknownEntryError,
)
from adyton.loader import LoadArguments, load_in_process
from adyton.proto.values import encode_arguments
from adyton.remote import unpaired
from adyton.remote.arguments import Argument
from adyton.remote.speaker import Speaker
from adyton.runtime.process.guest import aside
from adyton.runtime.process.guest.aside import THREADS
from adyton.trusted import Enclave, host_function

LIMIT = 40.0  # seconds until a test gives up on something that takes milliseconds

app = Enclave("acall")


class Place:
    """What the entries below tell a test that runs in the same process."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.started = threading.Event()
        self.go_on = threading.Event()
        self.cancelled = threading.Event()
        self.order: list[Any] = []
        self.waiting = 0
        self.all_wait: asyncio.Event | None = None


place = Place()


@host_function
def tripled(number: int) -> int: ...


@app.entry
def plus_one(number: int) -> int:
    return number + 1


@app.entry
async def plus_two(number: int) -> int:
    await asyncio.sleep(0)
    return number + 2


@app.entry
async def together(wanted: int) -> int:
    """Returns when so many wait here."""
    if place.all_wait is None:
        place.all_wait = asyncio.Event()
    place.waiting += 1
    if place.waiting == wanted:
        place.all_wait.set()
    await place.all_wait.wait()
    return threading.get_ident()


@app.entry
async def for_ever() -> None:
    place.started.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        place.cancelled.set()
        raise


@app.entry
def waits(number: int) -> int:
    order, go_on = place.order, place.go_on  # of this test
    order.append(number)
    place.started.set()
    go_on.wait(LIMIT)
    order.append(-number)
    return number


@app.entry
def waits_if(number: int) -> int:
    if number:
        place.go_on.wait(LIMIT)
    return number


@app.entry
def total_of(numbers: Iterator[int]) -> int:
    return sum(numbers)


@app.entry
def asks(number: int) -> int:
    return tripled(number)


@app.entry
async def asks_async(number: int) -> int:
    return tripled(number)


@app.entry
def fails(text: str) -> None:
    raise LookupError(text)


@app.entry
async def exits() -> None:
    raise SystemExit(3)


@app.entry
def count(numbers: int) -> Iterator[int]:
    try:
        yield from range(numbers)
    finally:
        place.closed.set()


@app.entry
def asks_each(numbers: Iterator[int]) -> Iterator[int]:
    for number in numbers:
        yield tripled(number)


@pytest.fixture
def client() -> Iterator[adyton.EnclaveClient]:
    place.__init__()  # type: ignore[misc]
    threads = []

    def tripled(number: int) -> int:
        threads.append(threading.current_thread().name)
        found: int = client.call("plus_one", 3 * number - 1)
        return found

    arguments = LoadArguments(functions=[tripled], policy=Policy().extended(call=["tripled"]))
    with load_in_process(app, arguments) as client:
        client.function_threads = threads  # type: ignore[attr-defined]
        yield client
        place.go_on.set()


async def eventually(done: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT):
        while not done():  # noqa: ASYNC110 - what another thread does
            await asyncio.sleep(0.002)


def test_results_and_errors_are_as_of_call(client):
    async def main() -> None:
        assert await client.acall("plus_one", 1) == 2
        assert await client.acall(plus_two, 1) == 3
        with pytest.raises(LookupError, match="it") as raised:
            await client.acall("fails", "it")
        assert isinstance(raised.value, EnclaveError)
        with pytest.raises(UnknownEntryError):
            await client.acall("nothing")
        with pytest.raises(EnclaveTypeError, match="number"):
            await client.acall("plus_one", "one")
        with pytest.raises(EnclaveTypeError, match="number"):
            await client.acall("plus_two", "one")
        with pytest.raises(EnclaveError, match="3"):
            await client.acall("exits")
        assert await client.acall("plus_two", 1) == 3

    asyncio.run(main())


def test_a_thousand_entries_that_wait_for_each_other_are_in_flight_on_one_thread_each_side(client):
    async def main() -> None:
        await client.acall("plus_two", 1)
        before = threading.active_count()  # of both sides
        calls = [asyncio.ensure_future(client.acall("together", 1000)) for _ in range(1000)]
        await eventually(lambda: place.waiting > 900)
        assert threading.active_count() <= before + 1
        assert len(set(await asyncio.gather(*calls))) == 1

    asyncio.run(main())


def test_more_calls_than_a_session_has_room_for_wait_for_others(client, monkeypatch):
    monkeypatch.setattr(unpaired, "MOST_CALLS", 50)

    async def main() -> None:
        calls = [asyncio.ensure_future(client.acall("plus_two", number)) for number in range(3000)]
        dropped = calls[1500]
        await asyncio.sleep(0)
        assert len(client._core.proxy.unpaired._under_way) <= 50  # some have had their answers
        dropped.cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [each for each in found if not isinstance(each, BaseException)] == [
            number + 2 for number in range(3000) if number != 1500
        ]

    asyncio.run(main())


@pytest.mark.parametrize("how", ["late", "cancelled"])
def test_a_call_that_waits_for_others_is_never_made_once_nobody_waits_for_it(client, monkeypatch, how):
    monkeypatch.setattr(unpaired, "MOST_CALLS", 1)

    async def main() -> None:
        first = asyncio.ensure_future(client.acall("waits", 1))
        await eventually(place.started.is_set)
        before = client.stats()["entry_calls"]
        waiting = asyncio.ensure_future(client.options(timeout=0.2 if how == "late" else None).acall("plus_one", 1))
        await asyncio.sleep(0)
        if how == "cancelled":
            waiting.cancel()
        with pytest.raises(DeadlineError if how == "late" else asyncio.CancelledError):
            await waiting
        place.go_on.set()
        await first
        assert await client.acall("plus_one", 2) == 3
        assert client.stats()["entry_calls"] == before + 1

    asyncio.run(main())
    assert not client._core.proxy.unpaired._open
    assert not client._core.proxy._session._sent_calls


def test_calls_after_a_loss_fail_though_others_had_waited_for_room(client, monkeypatch):
    monkeypatch.setattr(unpaired, "MOST_CALLS", 1)

    async def main() -> None:
        calls = [asyncio.ensure_future(client.acall("waits", 1)), asyncio.ensure_future(client.acall("plus_one", 1))]
        await eventually(place.started.is_set)
        client._core.proxy.abort()
        calls.append(asyncio.ensure_future(client.acall("plus_one", 2)))
        place.go_on.set()
        async with asyncio.timeout(LIMIT):
            found = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in found] == [ClosedError] * 3

    asyncio.run(main())
    with pytest.raises(ClosedError):
        client.close()


@pytest.mark.parametrize("busy", [0, THREADS - 1])
def test_answers_of_quick_entries_come_though_the_same_entry_takes_its_time_next(client, busy):
    async def main() -> None:
        others = [asyncio.ensure_future(client.acall("waits", number + 1)) for number in range(busy)]
        await eventually(lambda: len(place.order) == busy)
        numbers = [0] * 50 + [7] + [0] * 50
        calls = [asyncio.ensure_future(client.acall("waits_if", number)) for number in numbers]
        async with asyncio.timeout(LIMIT / 2):
            assert await asyncio.gather(*calls[:50]) == [0] * 50
        place.go_on.set()
        assert await asyncio.gather(*calls) == numbers
        await asyncio.gather(*others)

    asyncio.run(main())


@pytest.mark.parametrize("where", ["in the loop", "after the loop"])
def test_an_enclave_is_closed_though_a_call_waits_for_its_loop(where):
    place.__init__()  # type: ignore[misc]
    client = load_in_process(app, LoadArguments())

    async def main() -> asyncio.Task[Any]:
        made = asyncio.ensure_future(client.acall("plus_one", 1))
        arguments = asyncio.ensure_future(client.acall("total_of", iter([1, 2])))
        await asyncio.sleep(0)  # they have begun, and are not made
        if where == "in the loop":
            client.close()
            assert await asyncio.gather(made, arguments) == [2, 3]
        return made

    loop = asyncio.new_event_loop()
    made = loop.run_until_complete(main())
    if where == "after the loop":
        client.close()
        assert loop.run_until_complete(made) == 2
    loop.close()


def test_calls_that_are_given_up_while_there_is_no_room_are_not_kept(client, monkeypatch):
    monkeypatch.setattr(unpaired, "MOST_CALLS", 1)

    async def main() -> None:
        first = asyncio.ensure_future(client.acall("waits", 1))
        await eventually(place.started.is_set)
        for _ in range(20):
            with pytest.raises(DeadlineError):
                await client.options(timeout=0.001).acall("plus_one", 1)
        (tasks,) = client._core.proxy.unpaired._tasks.values()
        assert not tasks.due
        place.go_on.set()
        await first

    asyncio.run(main())


def test_an_argument_that_no_thread_can_read_fails_its_call(client, monkeypatch):
    def begin(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Argument, "begin", begin)

    async def main() -> None:
        async with asyncio.timeout(LIMIT):
            with pytest.raises(RuntimeError, match="new thread"):
                await client.acall("total_of", iter([1]))

    asyncio.run(main())


def test_plain_entries_run_on_a_bounded_number_of_threads_and_the_rest_waits_in_order(client):
    async def main() -> None:
        calls = [asyncio.ensure_future(client.acall("waits", number)) for number in range(1, 101)]
        await eventually(lambda: len(place.order) == THREADS)
        assert await client.acall("plus_two", 1) == 3  # which needs none of them
        assert sorted(place.order) == list(range(1, THREADS + 1))
        place.go_on.set()
        assert await asyncio.gather(*calls) == list(range(1, 101))

    asyncio.run(main())


def test_functions_run_on_threads_of_the_client_and_may_call_the_enclave(client):
    async def main() -> None:
        entries = [client.acall(entry, number) for number in range(60) for entry in ("asks", "asks_async")]
        assert await asyncio.gather(*entries) == [3 * number for number in range(60) for _ in range(2)]

    asyncio.run(main())
    assert all(name.startswith("adyton-function") for name in client.function_threads)


def test_a_cancelled_task_cancels_its_coroutine_in_the_enclave(client):
    async def main() -> None:
        call = asyncio.ensure_future(client.acall("for_ever"))
        await eventually(place.started.is_set)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await eventually(place.cancelled.is_set)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.acall("for_ever")

    asyncio.run(main())


def test_a_coroutine_that_is_let_go_of_cancels_its_call(client):
    async def main() -> None:
        call = client.acall("for_ever")
        call.send(None)
        await eventually(place.started.is_set)
        call.close()
        await eventually(place.cancelled.is_set)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["late", "cancelled"])
def test_what_nobody_waits_for_in_the_moment_in_which_it_is_made_is_cancelled(client, monkeypatch, how):
    make_all = Speaker.make_all
    moment: list[Any] = []

    def slow(self, calls, note):
        moment.pop()()
        make_all(self, calls, note)

    monkeypatch.setattr(Speaker, "make_all", slow)

    async def main() -> None:
        request = EnterRequest("for_ever", encode_arguments("for_ever", (), {}))
        call = client._core.proxy.async_call(request, LIMIT, [])
        moment.append(call.late if how == "late" else call.cancel)
        await eventually(lambda: call.number)
        await eventually(lambda: not client._core.proxy._session._sent_calls)

    asyncio.run(main())


def test_a_cancelled_plain_entry_goes_on_and_its_result_is_dropped(client):
    async def main() -> None:
        call = asyncio.ensure_future(client.acall("waits", 1))
        await eventually(place.started.is_set)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        place.go_on.set()
        await eventually(lambda: place.order == [1, -1])
        assert await client.acall("plus_one", 1) == 2

    asyncio.run(main())


def test_one_that_has_not_begun_never_does(client):
    async def main() -> None:
        busy = [asyncio.ensure_future(client.acall("waits", number + 1)) for number in range(THREADS)]
        await eventually(lambda: len(place.order) == THREADS)
        late = asyncio.ensure_future(client.acall("waits", 1000))
        await client.acall("plus_two", 1)
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        await client.acall("plus_two", 1)
        place.go_on.set()
        await asyncio.gather(*busy)

    asyncio.run(main())
    client._core.proxy.unpaired.wait(LIMIT)
    assert client.call("plus_one", 1) == 2
    assert 1000 not in place.order


def test_deadlines(client):
    async def main() -> None:
        with pytest.raises(DeadlineError, match=r"no answer from the entry within 0.2 s"):
            await client.options(timeout=0.2).acall("for_ever")
        await eventually(place.cancelled.is_set)
        assert await client.options(timeout=LIMIT).acall("plus_one", 1) == 2

    asyncio.run(main())


async def never() -> AsyncIterator[int]:
    await asyncio.Event().wait()
    yield 1


def test_a_lost_connection_ends_every_call_with_one_clear_error(client):
    async def main() -> None:
        calls = [asyncio.ensure_future(client.acall("for_ever")) for _ in range(100)]
        items = await client.acall("asks_each", never())
        await eventually(place.started.is_set)
        client._core.proxy._transport.close()
        for each in calls:
            with pytest.raises(ConnectionLostError):
                await each
        with pytest.raises(ConnectionLostError):
            await anext(items)

    asyncio.run(main())
    client._core.closed = True  # there is nothing to finalize


def test_a_close_waits_for_calls_and_a_closed_enclave_takes_none(client):
    async def main() -> None:
        call = asyncio.ensure_future(client.acall("waits", 1))
        await eventually(lambda: place.order == [1])
        closing = asyncio.get_running_loop().run_in_executor(None, client.close)
        place.go_on.set()
        assert await call == 1
        await closing
        with pytest.raises(ClosedError):
            await client.acall("plus_one", 1)

    asyncio.run(main())


def test_calls_of_a_loop_that_is_closed_disturb_no_others(client):
    async def leave() -> None:
        asyncio.get_running_loop().call_soon(lambda: None)
        items = await client.acall("count", 10**9)
        await anext(items)
        task = asyncio.ensure_future(client.acall("waits", 1))
        await eventually(place.started.is_set)
        task.cancel()

    asyncio.run(leave())
    place.go_on.set()
    assert place.closed.wait(LIMIT)
    assert client.call("plus_one", 1) == 2


@app.entry
async def stops_the_loop() -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)


def test_a_program_that_stops_its_loop_gets_another(client):
    async def main() -> None:
        held = asyncio.ensure_future(client.acall("for_ever"))
        await eventually(place.started.is_set)
        found = await asyncio.gather(held, client.acall("stops_the_loop"), return_exceptions=True)
        assert all(isinstance(each, EnclaveError) for each in found)
        assert await client.acall("plus_two", 1) == 3

    asyncio.run(main())


@app.entry
async def ends_slowly() -> None:
    """Stops the loop, and holds it up as it ends its tasks."""
    asyncio.get_running_loop().stop()
    try:
        await asyncio.Event().wait()
    finally:
        place.started.set()
        assert place.go_on.wait(LIMIT)


@app.entry
async def plus_two_later(number: int) -> int:
    await asyncio.sleep(0.01)
    return number + 2


def test_what_comes_while_a_loop_ends_is_for_the_next_one(client):
    async def main() -> None:
        first = asyncio.ensure_future(client.acall("ends_slowly"))
        await eventually(place.started.is_set)
        second = asyncio.ensure_future(client.acall("plus_two_later", 1))
        assert await client.acall("plus_one", 1) == 2  # and so the second has got there
        place.go_on.set()
        async with asyncio.timeout(LIMIT):
            assert await second == 3
            with pytest.raises(EnclaveError):
                await first

    asyncio.run(main())


@app.entry
async def stops_the_loop_twice() -> None:
    asyncio.get_running_loop().stop()
    try:
        await asyncio.Event().wait()
    finally:
        asyncio.get_running_loop().stop()
        await asyncio.Event().wait()


def test_a_call_whose_loop_is_stopped_for_good_is_answered(client):
    async def main() -> None:
        async with asyncio.timeout(LIMIT):
            with pytest.raises(EnclaveError):
                await client.acall("stops_the_loop_twice")
            assert await client.acall("plus_two", 1) == 3

    asyncio.run(main())


def test_without_descriptors_for_a_loop_the_call_fails_and_the_next_is_served(client, monkeypatch):
    def none_left() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async def main() -> None:
        async with asyncio.timeout(LIMIT):
            with monkeypatch.context() as patched:
                patched.setattr(aside.asyncio, "Runner", none_left)
                with pytest.raises(RuntimeError, match="Too many open files"):
                    await client.acall("plus_two", 1)
            assert await client.acall("plus_two", 1) == 3

    asyncio.run(main())


def test_tasks_are_in_traces_and_counted(tmp_path):
    path = tmp_path / "trace.json"

    async def main(client: adyton.EnclaveClient) -> None:
        await asyncio.gather(*(client.acall("plus_two", number) for number in range(10)))
        assert [each async for each in await client.acall("count", 3)] == [0, 1, 2]

    with load_in_process(app, LoadArguments(trace=str(path))) as client:
        asyncio.run(main(client))
        assert list(client.call("count", 2)) == [0, 1]
        assert client.stats()["entry_calls"] == 12
    names = [event["name"] for event in json.loads(path.read_text()) if event.get("cat") == "entry"]
    assert (names.count("plus_two"), names.count("count")) == (10, 2)
