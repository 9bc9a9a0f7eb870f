"""The codec of the kernel's messages: both directions, and anything else that could be read from a descriptor."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.files import Answer, FileServer
from adyton.runtime.process.supervisor.fuse_abi import FORMS, Form, InitFlag, MalformedRequestError, Opcode, Read, Write

# Sizes of the structs of include/uapi/linux/fuse.h, 7.38.
SIZES = {
    Opcode.FORGET: 8,
    Opcode.SETATTR: 88,
    Opcode.MKNOD: 16,
    Opcode.MKDIR: 8,
    Opcode.RENAME: 8,
    Opcode.RENAME2: 16,
    Opcode.LINK: 8,
    Opcode.OPEN: 8,
    Opcode.CREATE: 16,
    Opcode.READ: 40,
    Opcode.WRITE: 40,
    Opcode.RELEASE: 24,
    Opcode.FSYNC: 16,
    Opcode.ACCESS: 8,
    Opcode.INTERRUPT: 8,
    Opcode.BATCH_FORGET: 8,
    Opcode.SETXATTR: 8,
    Opcode.GETXATTR: 8,
    Opcode.FLUSH: 24,
    Opcode.GETLK: 48,
    Opcode.SETLKW: 48,
    Opcode.FALLOCATE: 32,
    Opcode.LSEEK: 24,
    Opcode.COPY_FILE_RANGE: 56,
    Opcode.TMPFILE: 16,
    Opcode.STATX: 24,
}


@pytest.mark.parametrize(("opcode", "size"), SIZES.items())
def test_bodies_lie_in_memory_as_the_kernel_lays_them(opcode: Opcode, size: int) -> None:
    assert FORMS[opcode].fixed.size == size
    assert fuse_abi.HEADER_SIZE == 40


def test_answers_lie_in_memory_as_the_kernel_lays_them() -> None:
    attr = fuse_answers.Attr(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    assert len(fuse_answers.success(1)) == 16
    assert len(fuse_answers.pack_attr(0, attr)) == 104
    assert len(fuse_answers.pack_entry(fuse_answers.EntryAnswer(1, 0, 0, attr))) == 128
    assert len(fuse_answers.pack_open(fuse_answers.OpenAnswer(1, 0))) == 16
    assert len(fuse_answers.pack_written(1)) == 8
    assert len(fuse_answers.pack_statfs(fuse_answers.FileSystem(512, 1, 2, 3, 4, 5))) == 80
    assert len(fuse_answers.pack_lock(0, 1, 2, 3)) == 24
    assert len(fuse_answers.pack_xattr(b"four", 0)) == 8
    assert len(fuse_answers.pack_offset(1)) == 8
    assert len(fuse_answers.pack_statx(0, attr, None)) == 288
    assert len(fuse_answers.pack_init(fuse_answers.InitAnswer(31, 0, 0, 0, 0, 0))) == 64


def fields(fixed: struct.Struct) -> st.SearchStrategy[tuple[int, ...]]:
    bounds = {4: (0, (1 << 32) - 1), 8: (0, (1 << 64) - 1)}
    parts: list[st.SearchStrategy[int]] = []
    for code in fixed.format.replace("4x", "").replace("8x", "")[1:]:
        low, high = (-(1 << 63), (1 << 63) - 1) if code == "q" else bounds[struct.calcsize("<" + code)]
        parts.append(st.integers(low, high))
    return st.tuples(*parts)


name = st.binary(min_size=1, max_size=20).filter(lambda text: b"\0" not in text)


def bodies(form: Form) -> st.SearchStrategy[Any]:
    plain = fields(form.fixed)
    match form.tail:
        case "name":
            return st.tuples(plain, name).map(lambda parts: form.make(*parts[0], parts[1]))
        case "names":
            return st.tuples(plain, name, name).map(lambda parts: form.make(*parts[0], *parts[1:]))
        case "data":
            return st.tuples(plain, st.binary(max_size=20)).map(
                lambda parts: form.make(*parts[0][:2], len(parts[1]), *parts[0][3:], parts[1])
            )
        case "name and data":
            return st.tuples(plain, name, st.binary(max_size=20)).map(
                lambda parts: form.make(len(parts[2]), *parts[0][1:], *parts[1:])
            )
        case "more flags":
            return st.tuples(plain, st.integers(0, (1 << 32) - 1)).map(
                lambda parts: form.make(
                    *parts[0][:3], parts[0][3] | (parts[1] << 32 if parts[0][3] & InitFlag.INIT_EXT else 0)
                )
            )
        case "nodes":
            numbers = st.integers(0, (1 << 64) - 1)
            return st.lists(st.tuples(numbers, numbers), max_size=4).map(form.make)
    return plain.map(lambda parts: form.make(*parts))


def lies_in_a_file(body: Any) -> bool:
    return not isinstance(body, Read | Write) or body.offset + body.size <= fuse_abi.LARGEST


requests = st.sampled_from(sorted(FORMS)).flatmap(
    lambda opcode: st.tuples(
        st.just(opcode),
        st.integers(1, (1 << 64) - 1),
        st.integers(0, 20),
        bodies(FORMS[opcode]).filter(lies_in_a_file),
    )
)


@given(requests)
def test_every_request_is_read_as_it_was_written(request_: tuple[int, int, int, Any]) -> None:
    opcode, unique, node, body = request_
    message = fuse_abi.encode(opcode, unique, node, body, pid=7)
    header, got = fuse_abi.decode(message)
    assert (header.opcode, header.unique, header.node, header.pid, header.length) == (
        opcode,
        unique,
        node,
        7,
        len(message),
    )
    assert got == body
    assert type(got) is type(body)


@pytest.mark.parametrize("size", [1, (1 << 32) - 1])
def test_bytes_where_no_file_can_have_any_are_malformed(size: int) -> None:
    last = fuse_abi.encode(Opcode.READ, 1, 0, Read(0, fuse_abi.LARGEST - size, size), pid=7)
    assert fuse_abi.decode(last)[1] == Read(0, fuse_abi.LARGEST - size, size)
    with pytest.raises(MalformedRequestError, match="where no file can have any"):
        fuse_abi.decode(fuse_abi.encode(Opcode.READ, 1, 0, Read(0, fuse_abi.LARGEST - size + 1, size), pid=7))


@given(requests, st.integers(0, 80), st.binary(max_size=3))
def test_a_cut_or_lengthened_request_is_malformed(request_: tuple[int, int, int, Any], cut: int, more: bytes) -> None:
    message = fuse_abi.encode(*request_)
    with pytest.raises(MalformedRequestError):
        fuse_abi.decode(message[: min(cut, len(message) - 1)])
    if more:
        with pytest.raises(MalformedRequestError):
            fuse_abi.decode(message + more)


@given(requests, st.binary(max_size=60))
def test_no_message_gets_more_than_one_answer_or_an_exception(
    request_: tuple[int, int, int, Any], garbage: bytes
) -> None:
    server = FileServer(wanted=lambda _thread, _path: None, now=lambda: 0, capacity=1 << 16)
    opcode, unique, _, _ = request_
    for message in (
        garbage,
        fuse_abi.encode(*request_),
        struct.pack("<IIQQIII4x", 40 + len(garbage), opcode, unique, 1, 0, 0, 0) + garbage,
    ):
        effects = server.receive(message)
        assert len(effects) <= 1
        for effect in effects:
            assert isinstance(effect, Answer)
            answer = fuse_answers.decode_answer(b"".join(effect.parts))
            assert 0 <= answer.errno < 512


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.integers(0, 2), st.integers(0, 1 << 20))
def test_other_answers_are_written_as_they_are_read(start: int, end: int, kind: int, process: int) -> None:
    assert fuse_answers.unpack_lock(fuse_answers.pack_lock(start, end, kind, process)) == (start, end, kind, process)
    assert fuse_answers.unpack_offset(fuse_answers.pack_offset(start)) == start
    system = fuse_answers.FileSystem(kind + 1, start, end, process, start, end)
    assert fuse_answers.unpack_statfs(fuse_answers.pack_statfs(system)) == system
    assert fuse_answers.pack_xattr(b"value", 5) == b"value"
    assert fuse_answers.unpack_xattr_size(fuse_answers.pack_xattr(b"value", 0)) == 5


@given(st.none() | st.integers(-(1 << 62), 1 << 62))
def test_when_a_file_was_made_is_said_where_it_is_known(born: int | None) -> None:
    mask, time = fuse_answers.unpack_statx(fuse_answers.pack_statx(0, fuse_answers.Attr(*range(10)), born))
    assert (mask, time) == ((0x7FF, 0) if born is None else (0xFFF, born))


times = st.integers(-(1 << 62), 1 << 62)
attrs = st.builds(
    fuse_answers.Attr,
    *[st.integers(0, (1 << 64) - 1)] * 3,
    *[times] * 3,
    *[st.integers(0, (1 << 32) - 1)] * 5,
)


@given(attrs, st.integers(0, (1 << 31) - 1), st.integers(1, 1 << 60), st.binary(max_size=16))
def test_attributes_and_entries_are_written_as_they_are_read(
    attr: fuse_answers.Attr, lifetime: int, node: int, rest: bytes
) -> None:
    assert fuse_answers.unpack_attr(fuse_answers.pack_attr(lifetime, attr)) == (lifetime, attr)
    entry = fuse_answers.EntryAnswer(node, lifetime, 0, attr)
    assert fuse_answers.unpack_entry(fuse_answers.pack_entry(entry) + rest) == (entry, rest)


@given(
    st.lists(st.tuples(name, st.sampled_from([0o100000, 0o040000, 0o120000, 0o140000])), max_size=30),
    st.integers(32, 400),
)
def test_a_listing_holds_whole_entries_in_order(listed: list[tuple[bytes, int]], size: int) -> None:
    entries = [fuse_answers.DirectoryEntry(i + 5, i + 1, kind, text) for i, (text, kind) in enumerate(listed)]
    body = fuse_answers.pack_directory(entries, size)
    assert len(body) <= size
    got = fuse_answers.unpack_directory(body)
    assert got == entries[: len(got)]
    assert len(body) % 8 == 0
