"""A session goes on where it was when its connection is another one: each call, reply and chunk once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.communicator.flow import MOST
from adyton.communicator.frames import CHUNK
from adyton.communicator.joining import SECRET, Answer, AnswerReader, Hello, HelloReader, new_secret
from adyton.communicator.replay import Replay
from adyton.communicator.session import Called, Session, Side
from adyton.errors import RemoteProtocolError


def ends() -> tuple[Session, Session]:
    return Session(Side.CLIENT, clock=lambda: 0.0), Session(Side.ENCLAVE, clock=lambda: 0.0)


@pytest.mark.parametrize("size", [0, 10, CHUNK, 5 * CHUNK])
def test_a_call_arrives_once_wherever_its_bytes_are_cut(size):
    client, _ = ends()
    client.call(1, "m", bytes(size))
    whole = b"".join(iter(client.data_to_send, b""))
    for cut in {0, 1, 3, 4, 5, 20, len(whole) // 2, len(whole) - 1, len(whole)}:
        client, enclave = ends()
        client.call(1, "m", bytes(size))
        sent = b"".join(iter(client.data_to_send, b""))
        events = enclave.receive(sent[:cut])
        client.resume(enclave.read)
        events += enclave.receive(b"".join(iter(client.data_to_send, b"")))
        assert events == [Called(1, 1, "m", bytes(size))]
        assert not client.due


def test_what_is_new_comes_behind_what_is_sent_again():
    client, enclave = ends()
    client.call(0, "first", b"")
    client.data_to_send()
    client.resume(0)
    client.call(0, "second", b"")
    assert [event.method for event in enclave.receive(b"".join(iter(lambda: client.data_to_send(7), b"")))] == [
        "first",
        "second",
    ]


def test_a_connection_may_be_lost_while_things_are_sent_again():
    client, enclave = ends()
    client.call(0, "m", bytes(3 * CHUNK))
    b"".join(iter(client.data_to_send, b""))
    events = []
    for _ in range(1000):
        client.resume(enclave.read)
        if not client.due:
            break
        events += enclave.receive(client.data_to_send(100)[:77])
    assert events == [Called(1, 0, "m", bytes(3 * CHUNK))]


@pytest.mark.parametrize("read", [1 << 40, -1])
def test_a_peer_that_says_what_cannot_be_is_refused(read):
    client, _ = ends()
    client.call(0, "m", b"x")
    client.data_to_send()
    with pytest.raises(RemoteProtocolError, match="says that it has read"):
        client.resume(read)


def test_what_was_read_is_kept_no_longer():
    client, enclave = ends()
    for _ in range(200):
        client.call(0, "m", bytes(CHUNK))
        enclave.receive(b"".join(iter(client.data_to_send, b"")))
        client.receive(b"".join(iter(enclave.data_to_send, b"")))
    assert client._replay.sent - client._replay.first < 20 * CHUNK
    with pytest.raises(RemoteProtocolError):
        client.resume(0)


def test_what_is_kept_is_bounded_though_nothing_is_read():
    client, _ = ends()
    for _ in range(20):
        client.call(0, "m", bytes(1 << 20))
    while client.data_to_send():
        pass
    assert client._replay.sent <= MOST


@given(st.lists(st.binary(min_size=1, max_size=5)), st.data())
def test_replay_gives_back_what_follows(parts, data):
    replay, whole = Replay(), b"".join(parts)
    replay.add(parts)
    read = data.draw(st.integers(0, len(whole)))
    replay.arrived(read)
    again = data.draw(st.integers(replay.first, len(whole)))
    assert b"".join(replay.after(again)) == whole[again:]
    assert replay.first <= again
    assert b"".join(replay.after(again)) == whole[again:]


# -- joining ----------------------------------------------------------------------------------------------------------------


@given(
    st.binary(min_size=SECRET, max_size=SECRET), st.integers(0, 2**64 - 1), st.binary(max_size=9), st.integers(1, 60)
)
def test_a_hello_is_read_however_it_is_cut(secret, read, rest, size):
    reader, data, found = HelloReader(), Hello(secret, read).pack() + rest, None
    while found is None:
        found = reader.receive(data[:size])
        data = data[size:]
    assert found[0] == Hello(secret, read)
    assert found[1] + data == rest


@given(st.booleans(), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_an_answer_is_read_however_it_is_cut(joined, read, grace, size):
    reader, data, found = AnswerReader(), Answer(joined, read, grace).pack() + b"rest", None
    while found is None:
        found = reader.receive(data[:size])
        data = data[size:]
    assert found[0] == Answer(joined, read, grace)
    assert found[1] + data == b"rest"


def test_an_answer_that_is_neither_yes_nor_no_is_refused():
    answer = bytearray(Answer(True, 5, 0).pack())
    answer[1] = 8
    with pytest.raises(RemoteProtocolError, match="8, and neither yes nor no"):
        AnswerReader().receive(bytes(answer))


@pytest.mark.parametrize("reader", [HelloReader(), AnswerReader()])
def test_another_version_is_told_at_the_first_byte(reader):
    with pytest.raises(RemoteProtocolError, match="by version 9; this one knows 1"):
        reader.receive(b"\x09")


def test_secrets_are_not_guessed():
    assert len({new_secret() for _ in range(100)}) == 100
