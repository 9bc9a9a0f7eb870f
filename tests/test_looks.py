"""Looks at a guest that take long: another thread attends to them, and is never in the way of who looks."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from adyton.runtime.process.supervisor import rescue
from adyton.runtime.process.supervisor.looks import Looks
from adyton.runtime.process.supervisor.rescue import Rescue

PATIENCE = 60


@pytest.fixture
def looks():
    return Looks()


def test_nobody_acts_for_who_does_not_look(looks):
    done = []
    assert not looks.meanwhile(0, lambda: done.append(1))
    with looks:
        look = looks.under_way
    assert not looks.meanwhile(look, lambda: done.append(1))
    with looks:
        assert not looks.meanwhile(look, lambda: done.append(1))
        assert looks.meanwhile(looks.under_way, lambda: done.append(2))
    assert done == [2]


def test_a_look_does_not_end_before_what_is_done_meanwhile(looks):
    acts, may_end, order = threading.Event(), threading.Event(), []

    def act() -> None:
        acts.set()
        may_end.wait(PATIENCE)
        order.append("acted")

    with looks:
        thread = threading.Thread(target=looks.meanwhile, args=(looks.under_way, act))
        thread.start()
        acts.wait(PATIENCE)
        threading.Timer(0.01, may_end.set).start()
    order.append("over")
    thread.join()
    assert order == ["acted", "over"]


def test_the_alarm_is_set_while_one_is_under_way(looks):
    looks.alarm_after = PATIENCE
    with looks:
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= PATIENCE
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_where_nobody_attends_there_is_no_alarm(looks):
    with looks:
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


class Device:
    """Ends the look after so many attempts to get it on."""

    def __init__(self, looks: Looks, attempts: int) -> None:
        self._looks = looks
        self.left = attempts

    def serve_looks(self) -> None:
        self.left -= 1

    def close(self) -> None:
        self.left = 0

    def wait(self) -> None:
        if not self.left:
            self._looks.__exit__()


class Ended(Exception):
    """Instead of this process."""


@pytest.fixture
def kills(monkeypatch):
    killed = []

    def kill(process: int, number: int) -> None:
        killed.append((process, number))
        raise Ended

    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda pidfd, number: killed.append((pidfd, number)))
    return killed


def test_a_look_that_ends_is_attended_to_until_then(looks, kills):
    device = Device(looks, 3)
    looks.__enter__()
    Rescue(-1, device, looks)._attend_to(looks.under_way)
    assert device.left == 0
    assert not kills


def test_who_reads_a_socket_is_not_helped(looks):
    device = Device(looks, 1)
    looks.can_be_helped = False
    with looks:
        Rescue(-1, device, looks)._help()
        looks.can_be_helped = True
        assert device.left == 1
        Rescue(-1, device, looks)._help()
    assert device.left == 0


def test_a_look_that_does_not_end_ends_the_guest_and_then_its_supervisor(looks, kills, monkeypatch):
    monkeypatch.setattr(rescue, "LONGEST", 0.0)
    device = Device(looks, 2)
    with looks, pytest.raises(Ended):
        Rescue(7, device, looks)._attend_to(looks.under_way)
    assert device.left == 0  # closed, so that nobody waits for it
    assert kills == [(7, signal.SIGKILL), (os.getpid(), signal.SIGKILL)]
