"""Loads, calls and destroys of one name from many threads at once: one wins, each call ends, nothing is left."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sandbox import children, wait_until_ended

from adyton import (
    EnclaveFinal,
    EnclaveLoadConfig,
    EnclaveManager,
    EnclaveManagerOptions,
    FakeEnclaveLoader,
    remote_load_config,
)
from adyton.errors import AdytonError, ClosedError, ConnectionLostError, NameInUseError
from adyton.trusted import Enclave, host_function

app = Enclave("racing")
alive = Counter()
lock = threading.Lock()

PROGRAM = """
import adyton.trusted as trusted

@trusted.host_function
def back(number: int) -> int: ...

def through(number: int) -> int:
    return back(number) + 1
"""


@host_function
def back(number: int) -> int: ...


@app.on_initialize
def initialize(config) -> None:
    with lock:
        alive["begun"] += 1


@app.on_finalize
def finalize(final) -> None:
    with lock:
        alive["ended"] += 1


@app.entry
def through(number: int) -> int:
    return back(number) + 1


def client_back(number: int) -> int:
    return number * 2


client_back.__name__ = "back"
REGISTERED = {"allow": {"call": ["back"]}, "functions": [client_back]}


@pytest.fixture
def manager():
    """Of enclaves on threads of this process; afterwards no thread of theirs is left."""
    EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(app)))
    alive.clear()
    before = set(threading.enumerate())
    yield EnclaveManager.instance()
    EnclaveManager.configure(EnclaveManagerOptions())
    for _ in range(3000):  # not joined: one that is about to start cannot be
        if set(threading.enumerate()) <= before:
            break
        threading.Event().wait(0.01)
    assert set(threading.enumerate()) <= before
    assert alive["begun"] == alive["ended"]


def config(name: str) -> EnclaveLoadConfig:
    load_config = EnclaveLoadConfig(name=name)
    load_config.Extensions[remote_load_config].sgx_load_config.file_enclave_config.enclave_path = "racing.py"
    return load_config


def at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """What each of `count` threads got, or the AdytonError that it met, all begun together."""
    barrier = threading.Barrier(count)

    def one(number: int) -> object:
        barrier.wait(30)
        try:
            return work(number)
        except AdytonError as error:
            return error

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, range(count), timeout=60))


def kinds(outcomes: list[object]) -> Counter[str]:
    return Counter(type(outcome).__name__ for outcome in outcomes)


def one_round_of_loads(manager: EnclaveManager, count: int) -> None:
    outcomes = at_once(count, lambda _: manager.load_enclave(config("one"), **REGISTERED))
    assert kinds(outcomes) == {"EnclaveClient": 1, "NameInUseError": count - 1}
    (client,) = (each for each in outcomes if not isinstance(each, AdytonError))
    assert manager.get_client("one") is client
    assert client.call("through", 1) == 3
    ends = at_once(count, lambda _: manager.destroy_enclave(client, EnclaveFinal()))
    assert kinds(ends) == {"NoneType": 1, "ClosedError": count - 1}
    assert manager.get_client("one") is None


def one_round_of_calls(manager: EnclaveManager, callers: int) -> Counter[str]:
    client = manager.load_enclave(config("one"), **REGISTERED)
    under_way = threading.Semaphore(0)

    def work(number: int) -> object:
        if number == callers:
            for _ in range(callers):  # each of the others has had an answer, and is at its next calls
                under_way.acquire(timeout=30)
            return manager.destroy_enclave(client, EnclaveFinal())
        turn = 0
        while True:
            assert client.call("through", turn) == 2 * turn + 1
            if turn == 0:
                under_way.release()
            turn += 1

    outcomes = at_once(callers + 1, work)
    assert outcomes.pop() is None
    assert manager.get_client("one") is None
    return kinds(outcomes)


def loop(manager: EnclaveManager, threads: int, turns: int) -> None:
    """Loads and destroys of two names for all, by whoever gets them."""

    def work(number: int) -> int:
        loaded = 0
        for turn in range(turns):
            name = f"shared-{(number + turn) % 2}"
            try:
                client = manager.load_enclave(config(name), **REGISTERED)
            except NameInUseError:
                other = manager.get_client(name)
                if other is not None:
                    try:
                        assert other.call("through", 4) == 9
                    except (ClosedError, ConnectionLostError):
                        pass  # destroyed meanwhile
                continue
            loaded += 1
            assert client.call("through", turn) == 2 * turn + 1
            manager.destroy_enclave(client, EnclaveFinal(), skip_finalize=False)
        return loaded

    outcomes = at_once(threads, work)
    assert all(isinstance(each, int) for each in outcomes), outcomes
    assert sum(outcomes) >= turns
    assert [manager.get_client(f"shared-{number}") for number in range(2)] == [None, None]


@pytest.mark.parametrize("_turn", range(10))
def test_of_many_loads_of_one_name_one_wins(manager, _turn):
    one_round_of_loads(manager, 12)


@pytest.mark.parametrize("_turn", range(20))
def test_calls_while_another_thread_destroys_each_end(manager, _turn):
    assert set(one_round_of_calls(manager, 8)) <= {"ClosedError"}


def test_submitted_calls_end_too_when_the_enclave_is_destroyed(manager):
    client = manager.load_enclave(config("one"), **REGISTERED)
    futures = [client.submit("through", number) for number in range(200)]
    manager.destroy_enclave(client, EnclaveFinal())
    for number, future in enumerate(futures):
        error = future.exception(30)
        assert isinstance(error, ClosedError) if error else future.result() == 2 * number + 1


def test_load_and_destroy_in_a_loop_from_many_threads(manager):
    loop(manager, 6, 15)


def test_closing_it_oneself_frees_the_name_too(manager):
    for _ in range(20):
        client = manager.load_enclave(config("one"), **REGISTERED)
        outcomes = at_once(
            3, lambda number, client=client: [client.close, lambda: destroy(manager, client)][number % 2]()
        )
        assert set(kinds(outcomes)) <= {"NoneType", "ClosedError"}
        assert manager.get_client("one") is None


def destroy(manager: EnclaveManager, client) -> None:
    manager.destroy_enclave(client, EnclaveFinal())


def test_a_client_that_is_closed_before_the_load_returns_keeps_no_name(manager):
    """Somebody else's thread gets it from get_client at the first moment that it is there."""
    for _ in range(10):
        done = threading.Event()

        def close_early(done: threading.Event = done) -> None:
            while not done.wait(0.0002):
                client = manager.get_client("one")
                if client is not None:
                    client.close()

        thread = threading.Thread(target=close_early)
        thread.start()
        client = manager.load_enclave(config("one"), **REGISTERED)
        done.set()
        thread.join(30)
        client.close()
        assert manager.get_client("one") is None


@pytest.mark.sandbox
def test_the_same_races_with_real_enclaves(workplace):
    Path("racing.py").write_text(PROGRAM)
    manager = EnclaveManager.instance()
    before = children(os.getpid())
    one_round_of_loads(manager, 6)
    assert set(one_round_of_calls(manager, 6)) <= {"ClosedError"}
    loop(manager, 3, 2)
    assert wait_until_ended(children(os.getpid()) - before) == set()
