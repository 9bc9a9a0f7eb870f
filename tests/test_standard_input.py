"""The supervisor's half of a standard input: in order, nothing lost, nothing asked for that no read waits for."""

from __future__ import annotations

import errno
import os

import pytest
from fake_client import FakeClient
from fake_kernel import FakeKernel
from hypothesis import given
from hypothesis import strategies as st

from adyton.hostcall import abi
from adyton.runtime.process.supervisor import fuse_abi
from adyton.runtime.process.supervisor.files import Answer, Ask
from adyton.runtime.process.supervisor.fuse_abi import Opcode
from adyton.runtime.process.supervisor.standard_input import Answered, StandardInput

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(1, 40)),
        st.tuples(st.just("answer"), st.integers(0, 40)),
        st.tuples(st.just("fail"), st.just(0)),
        st.tuples(st.just("interrupt"), st.integers(0, 5)),
    ),
    max_size=60,
)


@given(STEPS)
def test_bytes_come_in_order_whatever_is_interrupted(steps):
    stdin, source, got = StandardInput(), bytes(range(256)) * 20, b""
    stdin.open()
    given_away, asked, waiting = 0, None, {}
    for number, (what, size) in enumerate(steps, 1):
        answered: list[Answered] = []
        if what == "read":
            waiting[number] = size
            answered = stdin.read(number, size)
        elif what == "interrupt" and waiting:
            unique = list(waiting)[size % len(waiting)]
            answered = stdin.interrupt(unique)
            assert answered == [Answered(unique, errno.EINTR, b"")]
        elif what in ("answer", "fail") and asked is not None:
            data = source[given_away : given_away + min(size, asked.size)]
            given_away += len(data) if what == "answer" else 0
            asked = None
            result = abi.Data(data) if what == "answer" else abi.Failed("EIO")
            answered = stdin.receive(result, errno.EIO)
        for each in answered:
            assert len(each.data) <= waiting.pop(each.unique)
            got += each.data
        wanted = stdin.wanted()
        if wanted is not None:
            assert asked is None  # one at a time
            assert wanted.size == next(iter(waiting.values()))  # what the first one waits for
            asked = wanted
        assert not waiting or asked is not None  # nobody is forgotten
    assert source.startswith(got)
    assert given_away - len(got) <= 40  # of one read that was interrupted
    assert {each.unique for each in stdin.abort()} == set(waiting)


def test_the_end_is_for_one_read_only():
    stdin = StandardInput()
    assert stdin.read(1, 5) == [Answered(1, 0, b"")]  # without a client's input
    stdin.open()
    assert stdin.read(2, 5) == []
    assert stdin.wanted() == abi.ReadInput(5)
    assert stdin.read(3, 5) == []
    assert stdin.wanted() is None
    assert stdin.receive(abi.Data(b""), 0) == [Answered(2, 0, b"")]
    assert stdin.wanted() == abi.ReadInput(5)
    assert stdin.receive(abi.Data(b"more"), 0) == [Answered(3, 0, b"more")]
    assert stdin.read(4, 1 << 24) == []
    assert stdin.wanted() == abi.ReadInput(abi.MAX_BLOCK)


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel.loaded(FakeClient({"/work/out": "write"}))


def test_its_file_is_read_only_and_its_reads_are_host_calls(kernel):
    node = kernel.lookup("/dev/stdin").node
    for flags in (os.O_WRONLY, os.O_RDWR):
        assert kernel.server.receive(request(Opcode.OPEN, 7, node, fuse_abi.Open(flags))) == [
            Answer.failure(7, errno.EACCES)
        ]
    read = request(Opcode.READ, 8, node, fuse_abi.Read(0, 123, 10))
    assert kernel.server.receive(read) == [Answer.success(8)]
    kernel.server.open_standard_input()
    (ask,) = kernel.server.receive(read)
    assert ask == Ask(0, abi.ReadInput(10))
    assert kernel.server.resume(0, abi.Failed("ENOSYS")) == [Answer.failure(8, errno.EOPNOTSUPP)]
    assert kernel.server.resume(0, abi.Data(b"late")) == []
    assert kernel.server.receive(read) == [Answer.success(8, b"late")]
    assert kernel.server.receive(request(Opcode.RELEASE, 9, node, fuse_abi.Release(0))) == [Answer.success(9)]


def request(opcode, unique, node, body):
    return fuse_abi.encode(opcode, unique, node, body)
