"""A signal's handler may raise at any line of what a call does in the main thread: that call is given up, and all others go on."""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Self

import pytest

import adyton
from adyton.config import Policy
from adyton.loader import LoadArguments, load_in_process
from adyton.proto.values import BULK
from adyton.remote import steps
from adyton.trusted import Enclave, host_function

LIMIT = 20.0  # seconds until a test gives up on something that takes milliseconds
OURS = str(Path(adyton.__file__).parent)

app = Enclave("interrupts")


@host_function
def lookup(number: int) -> int: ...


@app.entry
def same(data: bytes) -> bytes:
    return data


@app.entry
def looked_up(number: int) -> int:
    return lookup(number) + lookup(number)


@app.entry
def total(numbers: Iterator[int]) -> int:
    return sum(numbers)


@app.entry
def counted(number: int) -> Iterator[int]:
    for each in range(number):
        yield lookup(each)


class Interrupt(BaseException):
    pass


@functools.cache
def passed_over(code: CodeType) -> frozenset[int]:
    """Where a line begins, but no handler can run: where a `with` is left, before its lock is released, and where an exception was caught."""
    found = list(dis.get_instructions(code))
    offsets = {each.offset for each in found if each.opname == "POP_EXCEPT"}
    for before, *three in zip(found, found[1:], found[2:], found[3:], strict=False):
        if all(each.opname == "LOAD_CONST" and each.argval is None for each in three):
            offsets |= {three[0].offset, before.offset} if before.opname == "SWAP" else {three[0].offset}
    return frozenset(offsets)


class Interrupting:
    """Raises at the line of that number, from 1, of adyton's code in this thread. `at`: where it did; empty: there are fewer."""

    def __init__(self, number: int) -> None:
        self._left = number
        self.at = ""

    def __enter__(self) -> Self:
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, _event: str, _arg: object) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename.startswith(OURS) else None

    def _line(self, frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:
        if event == "line" and frame.f_lasti not in passed_over(frame.f_code):
            self._left -= 1
            if not self._left:
                self.at = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
                sys.settrace(None)
                raise Interrupt
        return self._line


@pytest.fixture
def client() -> Iterator[adyton.EnclaveClient]:
    def lookup(number: int) -> int:
        return client.call("looked_up", -number) if number < 0 else number

    arguments = LoadArguments(functions=[lookup], policy=Policy().extended(call=["lookup"]))
    with load_in_process(app, arguments) as loaded:
        client = loaded.options(timeout=LIMIT)
        yield client


def left_of(client: adyton.EnclaveClient) -> tuple[int, int, int]:
    """Calls that the client's session has not done with, both ways, and pairs that have threads."""
    session = client._core.proxy._session
    return len(session._sent_calls), len(session._received_calls), len(client._core.proxy._pairs)


def until(condition: Callable[[], bool]) -> None:
    over = threading.Event()
    for _ in range(int(LIMIT / 0.01)):
        if condition():
            return
        over.wait(0.01)
    raise AssertionError("it never came to that")


CALLS: dict[str, Callable[[adyton.EnclaveClient], object]] = {
    "a call": lambda client: client.call("same", b"x"),
    "a large one": lambda client: client.call("same", bytes(2 * BULK)),
    "one that calls back": lambda client: client.call("looked_up", 1),
    "nested ones": lambda client: client.call("looked_up", -1),
    "a stream of an argument": lambda client: client.call("total", iter(range(3))),
    "a stream of a result": lambda client: list(client.call("counted", 3)),
}


def test_who_answers_late_answers_no_call_that_was_answered_for_it(client, monkeypatch):
    """As of a stream that nobody has any more. What the main thread has noted for it is noted late here."""
    take = steps.take

    def take_late(step: Callable[[], None]) -> None:
        if threading.current_thread() is threading.main_thread():
            take(functools.partial(time.sleep, 0.001))
        take(step)

    monkeypatch.setattr(steps, "take", take_late)
    call, number = CALLS["a stream of a result"], 1
    while True:
        with Interrupting(number) as interrupting, contextlib.suppress(Interrupt):
            call(client)
        if not interrupting.at:
            break
        number += 1
    gc.collect()
    until(lambda: client.call("same", b"x") == b"x" and left_of(client) == (0, 0, 1))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it may come while storage dies
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_that_is_interrupted_at_any_line_leaves_all_others_possible(client, call):
    expected = call(client)
    lines: list[str] = []
    while True:
        with Interrupting(len(lines) + 1) as interrupting, contextlib.suppress(Interrupt):
            assert call(client) == expected
        if not interrupting.at:
            break
        lines.append(interrupting.at)
        assert client.call("looked_up", 5) == 10, interrupting.at
    assert len(lines) > 50
    gc.collect()
    until(lambda: client.call("same", b"x") == b"x" and left_of(client) == (0, 0, 1))
