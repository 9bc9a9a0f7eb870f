"""What ends a server process: the first of a signal, the end of its session, or of the process that it was started for."""

import os
import signal
import threading

import pytest

from adyton.provision.lifetime import Stop


@pytest.fixture
def stop():
    stop = Stop()
    yield stop
    stop.close()


@pytest.fixture
def _own_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_own_signals")
@pytest.mark.parametrize(
    ("number", "interrupted"), [(signal.SIGTERM, False), (signal.SIGINT, True)], ids=["term", "int"]
)
def test_a_signal(stop, number, interrupted):
    stop.on_signals()
    signal.raise_signal(number)
    assert stop.wait() == b"s"
    assert stop.interrupted is interrupted


@pytest.mark.usefixtures("_own_signals")
def test_an_interrupt_is_remembered_whatever_follows(stop):
    stop.on_signals()
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    assert (stop.wait(), stop.wait(), stop.interrupted) == (b"s", b"s", True)


@pytest.mark.usefixtures("_own_signals")
def test_a_signal_that_the_kernel_gives_to_another_thread(stop):
    stop.on_signals()

    def take() -> None:
        threading.Event().wait(0.2)  # until the main thread waits; whatever it does, it must come back
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    thread = threading.Thread(target=take)
    thread.start()
    assert stop.wait() == b"s"
    thread.join()


def test_the_end_of_the_parent_is_the_end_of_its_pipe_whatever_it_said_before(stop):
    reading, writing = os.pipe()
    stop.on_end_of(reading)
    os.write(writing, b"noise" * 100)
    os.close(writing)
    assert stop.wait() == b"p"


def test_it_can_be_set_from_any_thread_any_number_of_times(stop):
    threads = [threading.Thread(target=lambda: [stop.set() for _ in range(20_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)  # none of them blocks, though nobody reads
        assert not thread.is_alive()
    assert stop.wait() == b"f"
