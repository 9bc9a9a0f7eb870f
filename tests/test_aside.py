"""What a thread of its own does for who cannot wait: its result, its error, and that it is done once at a time."""

from __future__ import annotations

import threading

import pytest

from adyton.runtime.process.supervisor.aside import Aside


def test_what_has_no_thread_is_done_at_once():
    assert Aside(threading.current_thread).call(0) is threading.current_thread()


def test_what_takes_long_is_done_once_and_told_when_it_has_ended():
    goes_on, calls = threading.Event(), []

    def function():
        calls.append(threading.current_thread())
        goes_on.wait(60)
        return len(calls)

    aside = Aside(function)
    aside.start("aside")
    assert [aside.call(0), aside.call(0.01)] == [None, None]
    assert aside.under_way
    goes_on.set()
    assert aside.call(60) == 1
    assert not aside.under_way
    assert aside.call(60) == 2
    assert {each.name for each in calls} == {"aside"}


def test_an_error_is_the_callers_and_does_not_end_the_thread():
    errors = iter([OSError(24, "too many"), ValueError("no number")])

    def function():
        raise next(errors)

    aside = Aside(function)
    aside.start("aside")
    for kind in (OSError, ValueError):
        with pytest.raises(kind):
            aside.call(60)
        assert not aside.under_way
