"""Requests that wait side by side, end early, or end with the enclave: each gets one answer, and nothing stays open."""

from __future__ import annotations

import errno
import os

import pytest
from fake_client import FakeClient
from fake_kernel import FakeKernel
from hypothesis import given
from hypothesis import strategies as st

from adyton.hostcall import abi
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.files import PATIENCE_SECONDS
from adyton.runtime.process.supervisor.fuse_abi import Body, Opcode


@pytest.fixture
def kernel() -> FakeKernel:
    client = FakeClient({"/work/out": "write"})
    client.file("/work/out/f", b"content")
    return FakeKernel.loaded(client)


def test_requests_are_answered_in_the_order_in_which_the_client_answers(kernel: FakeKernel) -> None:
    node = kernel.lookup("/work/out/f").node
    first = kernel.send(Opcode.GETATTR, node, fuse_abi.Nothing())
    second = kernel.send(Opcode.OPEN, node, fuse_abi.Open(os.O_RDONLY))
    assert kernel.answers == {}
    kernel.asks.reverse()
    late = kernel.asks.pop()
    kernel.run()
    assert second in kernel.answers
    assert first not in kernel.answers
    kernel.asks.append(late)
    kernel.run()
    assert kernel.answers[first].errno == 0


def test_an_interrupted_open_is_done_though_signals_come_faster_than_the_client_answers(kernel: FakeKernel) -> None:
    node = kernel.lookup("/work/out/f").node
    for _ in range(3):
        unique = kernel.send(Opcode.OPEN, node, fuse_abi.Open(os.O_RDONLY))
        kernel.send(Opcode.INTERRUPT, 0, fuse_abi.Interrupt(unique))
        kernel.now += PATIENCE_SECONDS * 0.9
        kernel.apply(kernel.server.lose_patience())
        assert kernel.server.patience == pytest.approx(PATIENCE_SECONDS * 0.1)
        kernel.run()
        assert kernel.answers[unique].errno == 0
        kernel.now += PATIENCE_SECONDS
        assert kernel.server.lose_patience() == []
        assert kernel.server.patience is None


def test_an_interrupted_open_fails_after_a_while_and_is_undone_when_the_client_has_done_it(kernel: FakeKernel) -> None:
    node = kernel.lookup("/work/out/f").node
    unique = kernel.send(Opcode.OPEN, node, fuse_abi.Open(os.O_RDONLY))
    kernel.interrupt(unique)
    assert kernel.answers[unique].errno == errno.EINTR
    kernel.run()
    assert isinstance(kernel.client.log[-1], abi.Close)
    assert kernel.client.handles == {}
    assert len(kernel.server._handles) == 0


def test_an_interrupted_open_that_failed_needs_no_undoing(kernel: FakeKernel) -> None:
    node = kernel.lookup("/work/out/f").node
    unique = kernel.send(Opcode.OPEN, node, fuse_abi.Open(os.O_RDONLY))
    kernel.interrupt(unique)
    del kernel.client.things["/work/out/f"]
    kernel.run()
    assert isinstance(kernel.client.log[-1], abi.Open)


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (Opcode.CREATE, fuse_abi.Create(os.O_WRONLY | os.O_EXCL, 0o644, 0, b"new")),
        (Opcode.MKDIR, fuse_abi.MakeDir(0o755, 0, b"new")),
        (Opcode.UNLINK, fuse_abi.Name(b"f")),
        (Opcode.LOOKUP, fuse_abi.Name(b"f")),
    ],
)
def test_what_must_not_be_done_twice_is_not_interrupted(kernel: FakeKernel, opcode: Opcode, body: Body) -> None:
    node = kernel.lookup("/work/out").node
    unique = kernel.send(opcode, node, body)
    kernel.interrupt(unique)
    assert unique not in kernel.answers
    kernel.run()
    assert kernel.answers[unique].errno == 0


def test_fsync_is_not_interrupted(kernel: FakeKernel) -> None:
    node, handle = kernel.open("/work/out/f", os.O_WRONLY)
    unique = kernel.send(Opcode.FSYNC, node, fuse_abi.Sync(handle, 0))
    kernel.interrupt(unique)
    assert unique not in kernel.answers
    kernel.run()
    assert kernel.answers[unique].errno == 0


def test_a_write_has_its_place_or_is_not_interrupted(kernel: FakeKernel) -> None:
    placed = kernel.open("/work/out/f", os.O_WRONLY)
    appending = kernel.open("/work/out/f", os.O_WRONLY | os.O_APPEND)
    one = kernel.send(Opcode.WRITE, placed[0], fuse_abi.Write(placed[1], 0, 1, 0, os.O_WRONLY, b"x"))
    two = kernel.send(Opcode.WRITE, appending[0], fuse_abi.Write(appending[1], 7, 1, 0, os.O_APPEND, b"y"))
    kernel.interrupt(one)
    kernel.interrupt(two)
    assert kernel.answers[one].errno == errno.EINTR
    assert two not in kernel.answers
    kernel.run()
    assert fuse_answers.unpack_written(kernel.taken(two)) == 1


def test_an_interrupt_that_comes_too_late_changes_nothing(kernel: FakeKernel) -> None:
    opened = kernel.open("/work/out/f")
    kernel.interrupt(2)
    kernel.interrupt(1 << 60)
    assert kernel.pread(opened, 99, 0) == b"content"


def test_abort_answers_all_that_waits(kernel: FakeKernel) -> None:
    node = kernel.lookup("/work/out/f").node
    directory = kernel.lookup("/work/out").node
    waiting = [
        kernel.send(Opcode.OPEN, node, fuse_abi.Open(os.O_RDONLY)),
        kernel.send(Opcode.GETATTR, node, fuse_abi.Nothing()),
        kernel.send(Opcode.CREATE, directory, fuse_abi.Create(os.O_WRONLY, 0o644, 0, b"new")),
        kernel.send(Opcode.OPENDIR, directory, fuse_abi.Open(0)),
    ]
    kernel.apply(kernel.server.abort())
    assert [kernel.answers[unique].errno for unique in waiting] == [errno.EIO] * 4
    assert kernel.server.abort() == []
    kernel.run()
    assert kernel.client.handles == {}
    assert len(kernel.server._handles) == 0


def test_a_result_that_was_not_asked_for_is_ignored(kernel: FakeKernel) -> None:
    assert kernel.server.resume(999, abi.Done()) == []


steps = st.lists(
    st.tuples(
        st.sampled_from(["open", "create", "write", "append", "release", "unlink", "lookup", "list"])
        | st.just("answer"),
        st.integers(0, 7),
        st.booleans(),
    ),
    max_size=40,
)


@given(steps)
def test_whatever_the_order_each_request_has_one_answer_and_each_handle_one_close(
    steps: list[tuple[str, int, bool]],
) -> None:
    client = FakeClient({"/work/out": "write"})
    client.file("/work/out/f", b"content")
    kernel = FakeKernel.loaded(client)
    directory = kernel.lookup("/work/out").node
    node = kernel.lookup("/work/out/f").node
    sent: dict[int, bool] = {}  # unique → it opens a file
    opened: list[int] = []

    def collect() -> None:
        for unique in list(kernel.answers.keys() & sent.keys()):
            answer = kernel.answers.pop(unique)
            if sent.pop(unique) and not answer.errno:
                opened.append(fuse_answers.unpack_open(answer.body[-16:]).handle)

    for action, number, interrupted in steps:
        handle = opened[number % len(opened)] if opened else 12345
        name = b"n%d" % (number % 3)
        match action:
            case "open":
                unique = kernel.send(Opcode.OPEN, node, fuse_abi.Open(os.O_RDWR | (os.O_APPEND if number % 2 else 0)))
            case "create":
                unique = kernel.send(Opcode.CREATE, directory, fuse_abi.Create(os.O_RDWR, 0o644, 0, name))
            case "write":
                unique = kernel.send(Opcode.WRITE, node, fuse_abi.Write(handle, number, 1, number & 1, os.O_RDWR, b"w"))
            case "append":
                unique = kernel.send(
                    Opcode.WRITE, node, fuse_abi.Write(handle, number, 1, 0, os.O_RDWR | os.O_APPEND, b"a")
                )
            case "release" if opened and not sent:
                opened.remove(handle)
                unique = kernel.send(Opcode.RELEASE, node, fuse_abi.Release(handle))
            case "unlink":
                unique = kernel.send(Opcode.UNLINK, directory, fuse_abi.Name(name))
            case "lookup":
                unique = kernel.send(Opcode.LOOKUP, directory, fuse_abi.Name(name))
            case "list":
                unique = kernel.send(Opcode.READDIR, directory, fuse_abi.Read(handle, 0, 100))
            case _:
                if kernel.asks:
                    ask = kernel.asks.pop(number % len(kernel.asks))
                    kernel.apply(kernel.server.resume(ask.ticket, kernel.result(ask.request)))
                collect()
                continue
        sent[unique] = action in ("open", "create")
        if interrupted:
            kernel.interrupt(unique)
        collect()
    kernel.run()
    collect()
    assert sent == {}
    for handle in opened:
        kernel.request(Opcode.RELEASE, node, fuse_abi.Release(handle))
    assert client.handles == {}
    assert len(kernel.server._handles) == 0
    assert not kernel.server._waiting
