"""What the client says is acted upon in its order, and held back for as long as it must be."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from adyton.runtime.process.supervisor.arrivals import Arrivals
from adyton.runtime.process.supervisor.loop import Loop

MOMENT = 0.001


class Supervisor:
    """It acts upon the bytes of a pipe; `does`: what else it does upon one."""

    def __init__(self) -> None:
        self.source, self.client = os.pipe()
        self.loop = Loop()
        self.acted: list[str] = []
        self.does: dict[str, Callable[[], object]] = {}
        self.guarded = 0
        self.arrivals: Arrivals[str] = Arrivals(self.loop, self.listen, self.act, self.guard)
        self.listen(True)

    def listen(self, on: bool) -> None:
        self.loop.read(self.source, self.guard(self.receive) if on else None)

    def guard(self, step: Callable[[], None]) -> Callable[[], None]:
        def guarded() -> None:
            self.guarded += 1
            step()

        return guarded

    def receive(self) -> None:
        for each in os.read(self.source, 100).decode():
            self.arrivals.take(each)

    def act(self, event: str) -> None:
        self.acted.append(event)
        self.does.get(event, lambda: None)()

    def hold(self) -> None:
        self.arrivals.hold(MOMENT)

    def until(self, count: int) -> str:
        while len(self.acted) < count:
            self.loop.turn()
        return "".join(self.acted)


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    supervisor.loop.close()
    os.close(supervisor.source)
    os.close(supervisor.client)


def test_events_are_acted_upon_as_they_come(supervisor: Supervisor) -> None:
    os.write(supervisor.client, b"abc")
    assert supervisor.until(3) == "abc"


def test_what_came_behind_waits_and_nothing_more_is_received(supervisor: Supervisor) -> None:
    supervisor.does["b"] = supervisor.hold
    os.write(supervisor.client, b"abcd")
    supervisor.loop.turn()
    os.write(supervisor.client, b"ef")
    assert supervisor.acted == ["a", "b"]
    supervisor.loop.turn()  # there is nothing else to wake it than that the time is over
    assert supervisor.acted == ["a", "b", "c", "d"]
    assert supervisor.until(6) == "abcdef"
    assert supervisor.guarded == 3  # received twice, gone on once


def test_what_waited_may_make_the_rest_wait_again(supervisor: Supervisor) -> None:
    for each in "bd":
        supervisor.does[each] = supervisor.hold
    os.write(supervisor.client, b"abcdef")
    seen = []
    while len(supervisor.acted) < 6:
        supervisor.loop.turn()
        seen.append("".join(supervisor.acted))
    os.write(supervisor.client, b"g")
    assert (seen, supervisor.until(7)) == (["ab", "abcd", "abcdef"], "abcdefg")


def test_a_hold_upon_the_last_event_receives_again(supervisor: Supervisor) -> None:
    supervisor.does["a"] = supervisor.hold
    os.write(supervisor.client, b"a")
    assert supervisor.until(1) == "a"
    os.write(supervisor.client, b"a")
    assert supervisor.until(2) == "aa"
