"""What is a round trip and what is not, by a clock that is moved by hand; and what the supervisor tells its client of it."""

from __future__ import annotations

import os

import pytest
from fake_client import FakeClient
from fake_kernel import FakeKernel
from hypothesis import given
from hypothesis import strategies as st

from adyton.communicator.messages import MAX_WAITS, Counts, Wait
from adyton.runtime.process.supervisor import fuse_abi
from adyton.runtime.process.supervisor.fuse_abi import Opcode
from adyton.runtime.process.supervisor.handles import STANDARD_INPUT_HANDLE
from adyton.runtime.process.supervisor.waits import REPORT_AFTER, Waits


class Clock:
    def __init__(self) -> None:
        self.now = 1000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_each_wait_after_an_answer_is_a_round_trip(clock):
    waits = Waits(clock)
    for _ in range(3):
        waits.began("thread", "Read")
        clock.now += 50
        waits.ended("thread")
        clock.now += 7
    assert waits.round_trips == 3
    assert waits.report(1).waiting == 150


def test_what_is_sent_together_and_waited_for_together_is_one_round_trip(clock):
    waits = Waits(clock)
    for thread in range(8):
        waits.began(thread, "Read")
    clock.now += 50
    for thread in range(8):
        waits.ended(thread)
    assert (waits.round_trips, waits.report(1).waiting) == (1, 50)


def test_what_is_asked_for_after_an_answer_came_is_the_next_round_trip(clock):
    waits = Waits(clock)
    waits.began("a", "Read")
    waits.began("b", "Read")
    waits.ended("a")
    waits.began("c", "Stat")  # beside b, which still waits
    waits.began("a", "Stat")
    waits.ended("b")
    waits.ended("a")
    waits.ended("c")
    assert waits.round_trips == 2


def test_a_waiter_that_waits_already_or_does_not_is_no_news(clock):
    waits = Waits(clock)
    waits.ended("thread")
    waits.began("thread", "Read")
    waits.began("thread", "Read")
    clock.now += 5
    waits.ended("thread")
    waits.ended("thread")
    assert (waits.round_trips, waits.report(1).waiting) == (1, 5)


def test_time_counts_once_however_many_wait(clock):
    waits = Waits(clock)
    waits.began("a", "Read")
    clock.now += 10
    waits.began("b", "Read")
    clock.now += 10
    waits.ended("a")
    clock.now += 10
    assert waits.report(1).waiting == 30  # in the middle of a wait, too
    clock.now += 10
    waits.ended("b")
    clock.now += 100
    waits.began("a", "Read")
    assert waits.report(2).waiting == 40


def test_a_report_is_made_when_something_has_changed_and_not_oftener_than_each_second(clock):
    waits = Waits(clock)
    assert waits.report(1) is None
    waits.hit()
    assert waits.report() is None
    assert waits.report(1) == Counts(0, 0, 1, 0, call=1)
    clock.now += REPORT_AFTER
    assert waits.report() is None
    waits.miss()
    assert waits.report() == Counts(0, 0, 1, 1, sent=REPORT_AFTER)
    waits.miss()
    assert waits.report() is None


def test_a_wait_that_was_told_of_while_it_lasted_is_told_of_once_more_when_it_is_over(clock):
    waits = Waits(clock)
    waits.began("thread", "Read")
    clock.now += REPORT_AFTER
    assert waits.report().waiting == REPORT_AFTER
    clock.now += 5
    waits.ended("thread")
    assert waits.report() is None
    assert waits.report(1).waiting == REPORT_AFTER + 5


def test_waits_are_kept_for_a_trace_only_and_not_without_end(clock):
    waits = Waits(clock)
    waits.began("a", "Read")
    waits.ended("a")
    assert waits.report(1).waits == []
    waits.keep = True
    clock.now += 7
    waits.entered(2)
    for number in range(MAX_WAITS + 3):
        clock.now = 2000 + number
        waits.began("a", "Read")
        clock.now += 1
        waits.ended("a")
    report = waits.report(2)
    assert (report.received, report.lost, len(report.waits)) == (7, 3, MAX_WAITS)
    assert report.waits[:2] == [Wait(1000, 1, "Read"), Wait(1001, 1, "Read")]
    assert waits.report(2) is None


def test_waits_for_a_trace_are_told_of_before_there_are_too_many(clock):
    waits = Waits(clock)
    waits.keep = True
    told = []
    for _ in range(5 * MAX_WAITS):
        waits.began("a", "Read")
        clock.now += 1
        waits.ended("a")
        told += [report] if (report := waits.report()) else []
    assert sum(len(report.waits) for report in told) == 5 * MAX_WAITS
    assert told[-1].lost == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 5))))
def test_any_order_gives_time_and_trips_that_hold(steps):
    clock = Clock()
    waits = Waits(clock)
    waits.keep = True
    waiting, begun, time = set(), 0, 0
    for waiter, begins, passed in steps:
        clock.now += passed
        time += passed if waiting else 0
        if begins:
            begun += waiter not in waiting
            waits.began(waiter, "Read")
            waiting.add(waiter)
        else:
            waits.ended(waiter)
            waiting.discard(waiter)
    for waiter in list(waiting):
        waits.ended(waiter)
    report = waits.report(1) or Counts(0, 0, 0, 0)
    assert report.waiting == time == sum(wait.duration for wait in report.waits)
    assert bool(begun) <= report.round_trips <= begun
    ends = 0
    for wait in report.waits:
        assert wait.start >= ends
        ends = wait.start + wait.duration


@pytest.fixture
def kernel(clock) -> FakeKernel:
    client = FakeClient({"/work/out": "write"})
    client.file("/work/out/f", b"content")
    kernel = FakeKernel.loaded(client)
    kernel.server.waits = Waits(clock)
    return kernel


def test_a_file_operation_waits_for_each_answer_that_it_needs_of_the_client(kernel):
    waits = kernel.server.waits
    kernel.lookup("/work/out/f")
    asked = len(kernel.client.log)
    assert waits.round_trips == asked > 1
    kernel.lookup("/usr")  # the enclave's own
    assert (waits.round_trips, waits.misses) == (asked, asked)


def test_operations_that_are_under_way_together_are_one_round_trip(kernel):
    waits = kernel.server.waits
    node = kernel.lookup("/work/out/f").node
    before = waits.round_trips
    kernel.send(Opcode.GETATTR, node, fuse_abi.Nothing())
    kernel.send(Opcode.OPEN, node, fuse_abi.Open(os.O_RDONLY))
    kernel.run()
    assert waits.round_trips == before + 1


def test_a_signal_ends_a_wait(kernel, clock):
    waits = kernel.server.waits
    node = kernel.lookup("/work/out/f").node
    kernel.server.open_standard_input()
    unique = kernel.send(Opcode.OPEN, node, fuse_abi.Open(os.O_RDONLY))
    read = kernel.send(Opcode.READ, node, fuse_abi.Read(STANDARD_INPUT_HANDLE, 0, 10))
    clock.now += 5
    for each in (unique, read):
        kernel.interrupt(each)
    clock.now += 50
    assert waits.report(1).waiting == 5
