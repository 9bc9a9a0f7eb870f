"""When a peer is asked for a sign of life, and when it is given up."""

import pytest

from adyton.communicator.frames import MarkFrame, ReadFrame, encode
from adyton.communicator.session import Limits, Session, Side
from adyton.remote.pulse import LOST_AFTER, PING_AFTER, TICK, Pulse


def ticks(pulse, start, seconds, step=TICK):
    said = []
    for number in range(round(seconds / step)):
        now = start + number * step
        said.append((pulse.tick(now), now - start + step))
    return [(what, at) for what, at in said if what != "wait"]


def test_silence_asks_once_and_then_gives_up():
    said = ticks(Pulse(), 100.0, 6)
    assert [what for what, _ in said[:2]] == ["ping", "lost"]
    assert said[0][1] <= PING_AFTER + 2 * TICK
    assert said[1][1] <= LOST_AFTER + 2 * TICK <= 5


def test_whatever_is_heard_begins_anew():
    pulse = Pulse()
    for start in range(0, 300, 3):
        assert all(what == "ping" for what, _ in ticks(pulse, start, 3))
        pulse.heard()


def test_many_waiting_threads_do_not_shorten_the_wait():
    said = ticks(Pulse(), 0.0, 6, TICK / 64)
    assert said[1][1] >= LOST_AFTER - TICK


@pytest.mark.parametrize("pause", [3.0, 3600.0])
def test_own_silence_is_not_taken_for_the_peers(pause):
    pulse = Pulse()
    assert "lost" not in [what for what, _ in ticks(pulse, 0.0, LOST_AFTER)]
    said = ticks(pulse, 3.5 + pause, 5)
    assert [what for what, _ in said[:2]] == ["ping", "lost"]
    assert said[1][1] >= LOST_AFTER


def test_a_question_is_answered_by_the_session_itself():
    client, enclave = Session(Side.CLIENT), Session(Side.ENCLAVE)
    assert client.data_to_send() == enclave.data_to_send() == b""
    client.ask()
    assert enclave.receive(client.data_to_send()) == []
    assert enclave.due
    assert enclave.data_to_send() == encode(ReadFrame(1))
    assert not enclave.due
    assert enclave.data_to_send() == b""
    assert client.receive(encode(ReadFrame(1))) == []
    assert client.data_to_send() == b""


def test_any_number_of_marks_costs_one_answer():
    enclave = Session(Side.ENCLAVE)
    assert enclave.receive(b"".join(encode(MarkFrame(number)) for number in range(1, 10_001))) == []
    assert enclave.data_to_send() == encode(ReadFrame(10_000))
    assert enclave.data_to_send() == b""


@pytest.mark.parametrize("ended", ["client", "enclave"])
def test_nothing_is_said_after_a_goodbye(ended):
    client, enclave = Session(Side.CLIENT), Session(Side.ENCLAVE, Limits())
    client.ask()
    if ended == "enclave":
        enclave.close("bye")
        enclave.receive(client.data_to_send())
        client.receive(enclave.data_to_send())
    else:
        client.close("bye")
        enclave.receive(client.data_to_send())
    assert enclave.data_to_send() == b""
    client.ask()
    assert client.data_to_send() == b""
