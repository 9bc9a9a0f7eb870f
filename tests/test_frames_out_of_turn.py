"""A client that has joined, and then says each kind of frame when it is not its turn: its enclave ends with a reason, and no other does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import pytest
from hostile import Client, Ward

from adyton.communicator.frames import (
    CHUNK,
    CallFrame,
    CancelFrame,
    DisposeFrame,
    GoodbyeFrame,
    MarkFrame,
    MoreFrame,
    NotifyFrame,
    ReadFrame,
    ReplyFrame,
    encode,
)
from adyton.communicator.joining import Hello
from adyton.runtime.launch import Enclave

pytestmark = pytest.mark.sandbox
WAIT = 60  # seconds until a test gives up on something that takes milliseconds


@pytest.fixture(scope="module")
def ward(tmp_path_factory) -> Iterator[Ward]:
    directory = tmp_path_factory.mktemp("ward")
    for each in (directory, *directory.parents[:-1]):
        if "pytest" in str(each):
            each.chmod(0o755)
    ward = Ward(directory)
    ward.request = msgspec.structs.replace(ward.request, grace=WAIT)
    yield ward
    ward.close()


def joined(enclave: Enclave) -> Client:
    return Client(enclave.socket)


def loaded(enclave: Enclave) -> Client:
    client = joined(enclave)
    assert client.load().ok
    return client


def calling(enclave: Enclave) -> Client:
    """An entry runs, and goes on."""
    client = loaded(enclave)
    client.start("attempt", "[print('runs', flush=True), time.sleep(600)]")
    client.pump(lambda: b"runs" in client.output)
    return client


def resumed(enclave: Enclave) -> Client:
    """On another connection than the first."""
    first = loaded(enclave)
    client = Client(enclave.socket, secret=first.secret, read=first.session.read)
    client.session = first.session
    client.pump(lambda: client.joined is not None)
    assert client.joined is not None
    assert client.joined.joined
    client.session.resume(client.joined.read)
    first.socket.close()
    return client


STATES: tuple[Callable[[Enclave], Client], ...] = (joined, loaded, calling, resumed)
NEVER = 1 << 40  # a number that is nobody's
FRAMES = {
    "a call out of order": encode(CallFrame(NEVER, 1, "enter", 0, b"")),
    "a call that is too large": encode(CallFrame(NEVER, 0, "enter", 1 << 60, b"")),
    "a reply to no call": encode(ReplyFrame(NEVER, True, 0, b"")),
    "a notification out of order": encode(NotifyFrame(NEVER, "net", 0, b"")),
    "more of nothing": encode(MoreFrame("call", NEVER, memoryview(bytes(CHUNK)))),
    "a cancellation of no call": encode(CancelFrame(NEVER)),
    "the end of no pair": encode(DisposeFrame(NEVER)),
    "a mark out of order": encode(MarkFrame(NEVER)),
    "a mark that nobody set": encode(ReadFrame(NEVER)),
    "a goodbye, and more": encode(GoodbyeFrame("bye")) + encode(CancelFrame(1)),
    "a frame of no kind": b"\x03\0\0\0\x92\x7f\x01",
    "a frame that is too long": b"\xff\xff\xff\x7f",
    "a hello": Hello(bytes(32), 0).pack(),
}


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_frames_out_of_turn_end_their_enclave_with_a_reason_and_no_other(ward, state):
    with ward.enclave() as neighbour:
        assert neighbour.load().ok
        for what, frame in FRAMES.items():
            with ward.zygote.launch(ward.request) as enclave:
                client = state(enclave)
                with client.socket:
                    client.send_raw(frame)
                    reason = client.wait_for_end()
                    assert enclave.ended(WAIT), what
                if "goodbye" not in what:
                    assert reason is not None, what
                    assert "the enclave was ended" in reason, (what, reason)
                    assert "Traceback" not in reason
            assert neighbour.enter("attempt", "1 + 1") == "2", what
