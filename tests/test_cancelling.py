"""What becomes of an entry that nobody waits for any more, and of those that wait under it; and time that nested calls share."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

import adyton
from adyton.communicator.messages import EnterRequest, encode
from adyton.config import Policy
from adyton.errors import DeadlineError
from adyton.loader import LoadArguments, load_in_process
from adyton.proto.enclave import EnclaveInput, EnclaveOutput, user_message
from adyton.proto.values import BULK, encode_arguments, encode_result
from adyton.runtime.process.guest import link as protocol
from adyton.runtime.process.guest.application import Application
from adyton.runtime.process.guest.link import GuestLink
from adyton.runtime.process.guest.run import Guest
from adyton.trusted import Enclave, TrustedApplication, host_function

LIMIT = 40.0  # seconds until a test gives up on something that takes milliseconds

app = Enclave("cancelling")


class Place:
    """What the entries below tell a test that runs in the same process."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.cancelled = threading.Event()
        self.go_on = threading.Event()
        self.ended = threading.Event()
        self.raised: list[BaseException] = []
        self.asked = threading.Event()
        self.answer = threading.Event()
        self.threads: list[int] = []
        self.nested: Callable[[], Any] = lambda: None

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """What an entry ends with, and that it has."""
        try:
            yield
        except BaseException as error:
            self.raised.append(error)
            raise
        finally:
            self.ended.set()


place = Place()


@host_function
def slow() -> int: ...


@host_function
def nested() -> str: ...


@app.entry
async def for_ever() -> None:
    place.started.set()
    try:
        await asyncio.Event().wait()
    finally:
        place.cancelled.set()


@app.entry
def plain() -> int:
    place.started.set()
    place.go_on.wait(LIMIT)
    place.ended.set()
    return 1


@app.entry
def asks() -> int:
    place.threads.append(threading.get_ident())
    with place.noted():
        return slow()


@app.entry
def asks_again() -> int:
    for _ in range(3):
        try:
            slow()
        except TimeoutError as error:
            place.raised.append(error)
    place.ended.set()
    return 3


@app.entry
async def asks_async() -> int:
    return asks()


@app.entry
def reads(numbers: Iterator[int]) -> int:
    with place.noted():
        return sum(numbers)


@app.entry
def nests() -> str:
    return nested()


@app.entry
def quick(number: int) -> int:
    return number


@app.entry
def gives_what_is_asked() -> Iterator[int]:
    with place.noted():
        yield 1
        yield slow()


@contextlib.contextmanager
def loaded(program: Any) -> Iterator[adyton.EnclaveClient]:
    place.__init__()  # type: ignore[misc]

    def slow() -> int:
        place.asked.set()
        place.answer.wait(LIMIT)
        return 7

    def nested() -> str:
        return str(place.nested())

    arguments = LoadArguments(functions=[slow, nested], policy=Policy().extended(call=["slow", "nested"]))
    with load_in_process(program, arguments) as client:
        yield client
        place.answer.set()
        place.go_on.set()


@pytest.fixture
def client() -> Iterator[adyton.EnclaveClient]:
    with loaded(app) as client:
        yield client


@pytest.fixture(autouse=True)
def interruptible():
    """Though a shell that runs this in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_when(event: threading.Event) -> threading.Thread:
    def wait() -> None:
        event.wait(LIMIT)
        threading.Event().wait(0.05)  # a signal that comes just before its thread waits does not wake it
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


# -- from each side of a call ------------------------------------------------------------------------------------------


def test_an_interrupted_call_cancels_its_coroutine(client):
    thread = interrupt_when(place.started)
    with pytest.raises(KeyboardInterrupt):
        client.call("for_ever")
    thread.join()
    assert place.cancelled.wait(LIMIT)
    assert client.call("quick", 1) == 1


def test_an_interrupted_loop_closes_its_generator(client):
    place.answer.clear()
    items = client.call("gives_what_is_asked")
    assert next(items) == 1
    thread = interrupt_when(place.asked)
    with pytest.raises(KeyboardInterrupt):
        next(items)
    thread.join()
    assert place.ended.wait(LIMIT)
    assert isinstance(place.raised[0], TimeoutError)
    assert next(items, "over") == "over"
    assert client.call("quick", 1) == 1


def test_an_interrupted_plain_entry_goes_on_and_its_result_is_dropped(client):
    thread = interrupt_when(place.started)
    with pytest.raises(KeyboardInterrupt):
        client.call("plain")
    thread.join()
    assert not place.ended.is_set()
    place.go_on.set()
    assert place.ended.wait(LIMIT)
    assert client.call("quick", 1) == 1


def test_a_cancelled_future_cancels_its_coroutine(client):
    future = client.submit("for_ever")
    assert place.started.wait(LIMIT)
    assert future.cancel()
    assert place.cancelled.wait(LIMIT)
    with pytest.raises(CancelledError):
        future.result(LIMIT)
    assert client.submit("quick", 1).result(LIMIT) == 1


def test_a_cancelled_future_of_a_plain_entry(client):
    future = client.submit("plain")
    assert place.started.wait(LIMIT)
    assert future.cancel()
    assert client.submit("quick", 1).result(LIMIT) == 1
    place.go_on.set()
    assert place.ended.wait(LIMIT)


def test_a_cancelled_future_whose_function_is_being_executed(client):
    """Its thread is in the function: the call is given up when that returns."""
    future = client.submit("asks")
    assert place.asked.wait(LIMIT)
    assert future.cancel()
    place.answer.set()
    assert place.ended.wait(LIMIT)
    assert client.submit("quick", 1).result(LIMIT) == 1


def test_a_future_that_is_cancelled_before_its_call_is_made_makes_none(client, monkeypatch):
    monkeypatch.setattr("adyton.client.SUBMIT_THREADS", 1)
    busy = client.submit("plain")
    assert place.started.wait(LIMIT)
    before = client.stats()["entry_calls"]
    waiting = client.submit("quick", 1)
    assert waiting.cancel()
    place.go_on.set()
    assert busy.result(LIMIT) == 1
    assert client.submit("quick", 2).result(LIMIT) == 2
    assert client.stats()["entry_calls"] == before + 1


def test_a_future_that_has_a_result_cannot_be_cancelled(client):
    future = client.submit("quick", 1)
    assert future.result(LIMIT) == 1
    assert not future.cancel()


def test_the_time_of_a_call_cancels_its_coroutine(client):
    with pytest.raises(DeadlineError):
        client.options(timeout=0.2).call("for_ever")
    assert place.cancelled.wait(LIMIT)


# -- what waits under it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["asks", "asks_async"])
def test_a_function_takes_no_longer_than_its_caller_has_time(client, entry):
    """In the enclave it raises TimeoutError then, though it still runs here; and its caller gives up when it returns."""

    def answer() -> None:
        assert place.ended.wait(LIMIT)  # of the entry, meanwhile
        place.answer.set()

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(DeadlineError):
        client.options(timeout=0.3).call(entry)
    thread.join()
    (error,) = place.raised
    assert isinstance(error, TimeoutError)
    assert "slow()" in str(error)
    assert client.call("quick", 1) == 1
    assert client.call("asks") == 7  # on a link that owes nothing


def test_no_function_is_called_once_the_time_is_over(client):
    def answer() -> None:
        assert place.ended.wait(LIMIT)
        place.answer.set()

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(DeadlineError):
        client.options(timeout=0.3).call("asks_again")
    thread.join()
    assert len(place.raised) == 3
    assert client.stats()["host_calls"] == {"call": 1}


@pytest.mark.parametrize("entry", ["asks", "asks_async"])
def test_a_cancelled_task_ends_what_waits_for_a_function_under_it(client, entry):
    async def main() -> None:
        call = asyncio.ensure_future(client.acall(entry))
        while not place.asked.is_set():  # noqa: ASYNC110 - what another thread does
            await asyncio.sleep(0.002)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    asyncio.run(main())
    assert place.ended.wait(LIMIT)
    assert isinstance(place.raised[0], TimeoutError)
    assert not place.answer.is_set()
    assert asyncio.run(client.acall("quick", 1)) == 1


def test_a_task_whose_time_is_over_ends_what_waits_for_a_function_under_it(client):
    with pytest.raises(DeadlineError):
        asyncio.run(client.options(timeout=0.3).acall("asks"))
    assert place.ended.wait(LIMIT)
    assert isinstance(place.raised[0], TimeoutError)


def test_who_waits_for_an_item_waits_no_longer_than_the_caller(client):
    def numbers() -> Iterator[int]:
        yield 1
        place.answer.wait(LIMIT)

    with pytest.raises(DeadlineError):
        client.options(timeout=0.3).call("reads", numbers())
    assert place.ended.wait(LIMIT)
    assert isinstance(place.raised[0], TimeoutError)

    place.__init__()  # type: ignore[misc]
    future = client.submit("reads", numbers())
    threading.Event().wait(0.05)
    future.cancel()
    assert place.ended.wait(LIMIT)
    assert isinstance(place.raised[0], TimeoutError)
    assert client.call("quick", 1) == 1


def test_what_a_function_calls_that_was_given_up_is_answered_before_it():
    """It may have called in the moment in which the time was over. Its own answer comes after that of what it called."""
    place.__init__()  # type: ignore[misc]
    control, its_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine, other = socket.socketpair()
    with control, its_control, mine:
        guest = Guest(its_control, lambda _: [], lambda _: app)
        guest._application = Application(debug=False)
        guest._application.load(app, "app", [], b"")
        link = GuestLink(other)

        def answer() -> None:
            guest._become(link)
            guest._answer(link, protocol.Enter("enter", encode(EnterRequest("asks", arguments, left=0.1)), 1))

        reader = protocol.Reader(protocol.ToSupervisor)
        received: list[object] = []

        def next_message() -> object:
            while not received:
                received.extend(reader.receive(mine.recv(1 << 16)))
            return received.pop(0)

        arguments = encode_arguments("asks", [], {})
        thread = threading.Thread(target=answer)
        thread.start()
        mine.settimeout(LIMIT)
        asked = next_message()
        assert isinstance(asked, protocol.HostCall)
        assert asked.left is not None
        assert place.ended.wait(LIMIT)
        nested = EnterRequest("quick", encode_arguments("quick", [5], {}))
        mine.sendall(protocol.encode(protocol.Enter("enter", encode(nested), 2)))
        assert next_message() == protocol.Return(ok=True, body=encode_result("quick", 5))
        mine.sendall(protocol.encode(protocol.HostReturn(ok=True, body=b"")))
        returned = next_message()
        assert isinstance(returned, protocol.Return)
        assert not returned.ok
        thread.join(LIMIT)
        link.close()


# -- time that is shared -----------------------------------------------------------------------------------------------


def test_a_call_inside_a_function_has_the_time_that_is_left(client):
    def call_for_ever() -> str:
        try:
            client.options(timeout=LIMIT).call("for_ever")
        except DeadlineError as error:
            place.raised.append(error)
        return "late"

    place.nested = call_for_ever
    began = time.monotonic()
    with pytest.raises(DeadlineError):
        client.options(timeout=0.3).call("nests")
    assert time.monotonic() - began < LIMIT / 2
    (error,) = place.raised
    assert "the time left to the call around it" in str(error)
    assert place.cancelled.wait(LIMIT)


def test_so_has_one_inside_a_function_of_a_task(client):
    done = threading.Event()

    def call_for_ever() -> str:
        try:
            client.call("for_ever")
        except DeadlineError as error:
            place.raised.append(error)
        finally:
            done.set()
        return "late"

    place.nested = call_for_ever
    with pytest.raises(DeadlineError):
        asyncio.run(client.options(timeout=0.3).acall("nests"))
    assert done.wait(LIMIT)
    assert "the time left to the call around it" in str(place.raised[0])
    assert client._core.proxy.deadlines.until is None


def test_a_call_for_which_no_time_is_left_is_not_made(client):
    def late() -> str:
        while (left := client._core.proxy.deadlines.until - time.monotonic()) > 0:
            threading.Event().wait(left)
        before = client.stats()["entry_calls"]
        for call in (lambda: client.call("quick", 1), lambda: client.call("gives_what_is_asked")):
            with pytest.raises(DeadlineError, match="the time left"):
                call()
        place.raised.append(BaseException(client.stats()["entry_calls"] - before))
        return "late"

    place.nested = late
    with pytest.raises(DeadlineError):
        client.options(timeout=0.2).call("nests")
    assert place.raised[0].args == (0,)


# -- TrustedApplication.run --------------------------------------------------------------------------------------------


class Runs(TrustedApplication):
    """Calls the function that its input names, or says what that is."""

    def run(self, enclave_input: EnclaveInput) -> EnclaveOutput:
        text = enclave_input.Extensions[user_message]
        output = EnclaveOutput()
        output.Extensions[user_message] = {"slow": lambda: str(asks()), "nested": nests}.get(text, lambda: text)()
        return output


@pytest.fixture
def runs() -> Iterator[adyton.EnclaveClient]:
    with loaded(Runs()) as client:
        yield client


def said(text: str) -> EnclaveInput:
    enclave_input = EnclaveInput()
    enclave_input.Extensions[user_message] = text
    return enclave_input


def test_a_run_takes_no_longer_than_its_caller_has_time_nor_do_functions_that_it_calls(runs):
    def answer() -> None:
        assert place.ended.wait(LIMIT)  # in the enclave, though the function still runs here
        place.answer.set()

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(DeadlineError, match="the program's run within") as caught:
        runs.options(timeout=0.3).enter_and_run(said("slow"))
    thread.join()
    assert caught.value.exit_code == 1
    (error,) = place.raised
    assert isinstance(error, TimeoutError)
    assert runs.enter_and_run(said("slow")).Extensions[user_message] == "7"


def test_a_run_inside_a_function_has_the_time_that_is_left(runs):
    def run_again() -> str:
        try:
            runs.options(timeout=LIMIT).enter_and_run(said("slow"))
        except DeadlineError as error:
            place.raised.append(error)
        return "late"

    def answer() -> None:
        assert place.ended.wait(LIMIT)
        place.answer.set()

    place.nested = run_again
    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(DeadlineError):
        runs.options(timeout=0.3).enter_and_run(said("nested"))
    thread.join()
    enclaves, clients = place.raised
    assert isinstance(enclaves, TimeoutError)
    assert "the time left to the call around it" in str(clients)


@pytest.mark.parametrize("size", [0, BULK - 1, BULK, 5 << 20])
def test_a_run_has_its_input_whatever_its_size(runs, size):
    assert runs.options(timeout=LIMIT).enter_and_run(said("x" * size)).Extensions[user_message] == "x" * size
