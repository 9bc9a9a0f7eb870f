"""Asking a proxy server that has dialled about its processes: each question has its own answer, late ones harm nothing, nobody waits for ever."""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from adyton.errors import AdytonError, ConnectionLostError, DeadlineError
from adyton.processes_pb2 import ProcessesReply, ProcessReport
from adyton.remote.connection import SESSION_METADATA
from adyton.remote.dial_address import ListenAddress
from adyton.remote.dial_back import DialBack, DialBackTransport
from adyton.remote.dialling import Dialler

WAIT = 60


def reply(text: str = "so") -> ProcessesReply:
    return ProcessesReply(processes=[ProcessReport(kind=ProcessReport.PROXY, error=text)])


class Pair:
    """A client that waits for its proxy server, and what dials it."""

    def __init__(self, directory: str) -> None:
        self.listener = DialBack(ListenAddress.parse(f"unix:{directory}/client.sock"), None)
        self.transport = DialBackTransport(self.listener, None)
        self.dialler = Dialler(grpc.insecure_channel(str(self.listener.address)), "client")

    def report(self, answer) -> None:
        self.dialler.report(self.listener.offer().session, answer)

    def ask(self, seconds: float = WAIT) -> str:
        return self.transport.processes(seconds)["proxy"].error


@pytest.fixture
def pair() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="a", dir="/tmp") as directory:  # short: a socket lies there
        pair = Pair(directory)
        yield pair
        pair.dialler.close()
        pair.listener.close()


def test_every_question_of_several_threads_is_answered(pair):
    pair.report(reply)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: pair.ask(), range(64))) == ["so"] * 64


def test_a_question_before_the_stream_is_there(pair):
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(pair.ask())).start()
    pair.report(reply)
    assert answers.get(timeout=WAIT) == "so"


def test_a_late_answer_ends_nothing(pair):
    """It is not taken for the next question's; and while it is owed, no more are asked."""
    release, asked = threading.Event(), []

    def answer() -> ProcessesReply:
        asked.append(len(asked))
        if len(asked) > 1:
            release.wait(WAIT)
        return reply(str(asked[-1]))

    pair.report(answer)
    assert pair.ask() == "0"  # the stream is there: until it is, no question is
    for _ in range(4):
        with pytest.raises(DeadlineError, match=r"within 0\.1 s"):
            pair.ask(0.1)
    release.set()
    assert [pair.ask() for _ in range(3)] == ["2", "3", "4"]


def test_answers_that_nobody_asked_for_end_the_reports(pair):
    """They would be kept until there is no memory left."""
    method = pair.dialler._channel.stream_stream("/adyton.DialBack/Report", ProcessesReply.SerializeToString)
    asked, flood = threading.Event(), threading.Event()

    def replies() -> Iterator[ProcessesReply]:
        asked.wait(WAIT)
        yield reply()
        flood.wait(WAIT)
        for _ in range(10_000):
            yield reply("late")

    metadata = ((SESSION_METADATA, pair.listener.offer().session),)
    call = method(replies(), metadata=metadata)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(pair.ask)
        next(call)  # the question
        asked.set()
        assert answer.result(WAIT) == "so"
    flood.set()
    with pytest.raises(grpc.RpcError) as ended:
        list(call)  # gRPC tells of the end after what came before it
    assert ended.value.code() is grpc.StatusCode.CANCELLED
    with pytest.raises(ConnectionLostError):
        pair.ask()
    assert pair.transport._questions._replies.qsize() <= 2


@pytest.mark.parametrize("who", ["client", "proxy"])
def test_an_end_in_the_middle_of_a_question(pair, who):
    asked, release = threading.Event(), threading.Event()

    def stuck() -> ProcessesReply:
        asked.set()
        release.wait(WAIT)
        return reply()

    pair.report(stuck)
    errors: queue.SimpleQueue[AdytonError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            pair.ask()
        except AdytonError as error:
            errors.put(error)

    threading.Thread(target=ask).start()
    assert asked.wait(WAIT)
    (pair.listener if who == "client" else pair.dialler).close()
    assert isinstance(errors.get(timeout=WAIT), ConnectionLostError)
    for _ in range(3):
        with pytest.raises(AdytonError, match=r"closed|ended"):
            pair.ask()
    release.set()
