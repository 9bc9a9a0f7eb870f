"""What /dev/fuse is answered with, fields → bytes, and back for tests. Source: include/uapi/linux/fuse.h.

An answer is `success` or `failure` of a request's `unique`; the `pack_…` functions build the bodies. Times are nanoseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from adyton.runtime.process.supervisor.fuse_abi import MAJOR, SECOND


class Attr(NamedTuple):
    """A node's attributes. Times in nanoseconds; `mode` with the type of file."""

    number: int
    size: int
    blocks: int
    accessed: int
    modified: int
    changed: int
    mode: int
    links: int
    uid: int
    gid: int


class EntryAnswer(NamedTuple):
    """To LOOKUP, MKDIR, SYMLINK. Lifetimes in seconds, of the name and of the attributes."""

    node: int
    name_lifetime: int
    attr_lifetime: int
    attr: Attr


class OpenAnswer(NamedTuple):
    handle: int
    flags: int


class InitAnswer(NamedTuple):
    minor: int
    max_readahead: int
    flags: int
    max_background: int
    max_write: int
    max_pages: int


class DirectoryEntry(NamedTuple):
    """`offset`: what a READDIR asks for that goes on behind this entry. `type`: the type bits of a mode."""

    number: int
    offset: int
    type: int
    name: bytes


_ANSWER = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQqqqIIIIIII4xI4x")
_ENTRY = struct.Struct("<Q8xQQ8x")
_ATTR_LIFETIME = struct.Struct("<Q8x")
_OPENED = struct.Struct("<QI4x")
_WRITTEN = struct.Struct("<I4x")
_STATFS = struct.Struct("<QQQQQIII4x24x")
_INITED = struct.Struct("<IIIIHHIIHH32x")
_DIRECTORY_ENTRY = struct.Struct("<QQII")
ANSWER_SIZE = _ANSWER.size
_BLOCK = 4096


def success(unique: int, body: bytes = b"") -> bytes:
    """The message that answers request `unique`."""
    return _ANSWER.pack(ANSWER_SIZE + len(body), 0, unique) + body


def failure(unique: int, number: int) -> bytes:
    """The message that answers request `unique` with an errno."""
    return _ANSWER.pack(ANSWER_SIZE, -number, unique)


def _pack_attr(attr: Attr) -> bytes:
    accessed, accessed_part = divmod(attr.accessed, SECOND)
    modified, modified_part = divmod(attr.modified, SECOND)
    changed, changed_part = divmod(attr.changed, SECOND)
    return _ATTR.pack(
        attr.number,
        attr.size,
        attr.blocks,
        accessed,
        modified,
        changed,
        accessed_part,
        modified_part,
        changed_part,
        attr.mode,
        attr.links,
        attr.uid,
        attr.gid,
        _BLOCK,
    )


def pack_attr(lifetime: int, attr: Attr) -> bytes:
    """Answers GETATTR and SETATTR; `lifetime` in seconds."""
    return _ATTR_LIFETIME.pack(lifetime) + _pack_attr(attr)


def pack_entry(entry: EntryAnswer) -> bytes:
    """Answers LOOKUP, MKDIR, SYMLINK; with `pack_open` behind it, CREATE."""
    return _ENTRY.pack(entry.node, entry.name_lifetime, entry.attr_lifetime) + _pack_attr(entry.attr)


def pack_open(opened: OpenAnswer) -> bytes:
    """Answers OPEN and OPENDIR."""
    return _OPENED.pack(*opened)


def pack_written(size: int) -> bytes:
    """Answers WRITE."""
    return _WRITTEN.pack(size)


def pack_statfs(*, blocks: int, free: int, files: int, files_free: int, name_length: int) -> bytes:
    """Answers STATFS; blocks of 4096 bytes."""
    return _STATFS.pack(blocks, free, free, files, files_free, _BLOCK, name_length, _BLOCK)


def pack_init(answer: InitAnswer) -> bytes:
    """Answers INIT; times are given in nanoseconds."""
    return _INITED.pack(
        MAJOR,
        answer.minor,
        answer.max_readahead,
        answer.flags,
        answer.max_background,
        answer.max_background * 3 // 4,
        answer.max_write,
        1,
        answer.max_pages,
        0,
    )


def pack_directory(entries: Iterable[DirectoryEntry], size: int) -> bytes:
    """Answers READDIR: as many of `entries` as fit into `size` bytes."""
    packed = bytearray()
    for entry in entries:
        length = _DIRECTORY_ENTRY.size + len(entry.name)
        padding = -length % 8
        if len(packed) + length + padding > size:
            break
        packed += _DIRECTORY_ENTRY.pack(entry.number, entry.offset, len(entry.name), entry.type >> 12)
        packed += entry.name + bytes(padding)
    return bytes(packed)


class Answer(NamedTuple):
    unique: int
    errno: int  # 0: success
    body: bytes


def decode_answer(message: bytes) -> Answer:
    """A message to the kernel, as the kernel splits it."""
    length, error, unique = _ANSWER.unpack_from(message)
    assert length == len(message), (length, len(message))
    return Answer(unique, -error, message[ANSWER_SIZE:])


def _unpack_attr(body: bytes, start: int) -> Attr:
    assert len(body) - start >= _ATTR.size, len(body)
    fields = _ATTR.unpack_from(body, start)
    seconds, parts = fields[3:6], fields[6:9]
    assert all(part < SECOND for part in parts), parts
    times = [second * SECOND + part for second, part in zip(seconds, parts, strict=True)]
    return Attr(*fields[:3], *times, *fields[9:13])


def unpack_attr(body: bytes) -> tuple[int, Attr]:
    """`pack_attr` undone."""
    (lifetime,) = _ATTR_LIFETIME.unpack_from(body)
    return lifetime, _unpack_attr(body, _ATTR_LIFETIME.size)


def unpack_entry(body: bytes) -> tuple[EntryAnswer, bytes]:
    """`pack_entry` undone, and what follows it."""
    end = _ENTRY.size + _ATTR.size
    node, name_lifetime, attr_lifetime = _ENTRY.unpack_from(body)
    return EntryAnswer(node, name_lifetime, attr_lifetime, _unpack_attr(body, _ENTRY.size)), body[end:]


def unpack_open(body: bytes) -> OpenAnswer:
    """`pack_open` undone."""
    return OpenAnswer(*_OPENED.unpack(body))


def unpack_written(body: bytes) -> int:
    """`pack_written` undone."""
    size: int = _WRITTEN.unpack(body)[0]
    return size


def unpack_init(body: bytes) -> InitAnswer:
    """`pack_init` undone."""
    _, minor, readahead, flags, background, _, write, _, pages, _ = _INITED.unpack(body)
    return InitAnswer(minor, readahead, flags, background, write, pages)


def unpack_directory(body: bytes) -> list[DirectoryEntry]:
    """`pack_directory` undone."""
    entries = []
    start = 0
    while start < len(body):
        number, offset, length, kind = _DIRECTORY_ENTRY.unpack_from(body, start)
        start += _DIRECTORY_ENTRY.size
        entries.append(DirectoryEntry(number, offset, kind << 12, body[start : start + length]))
        start += length + -(_DIRECTORY_ENTRY.size + length) % 8
    return entries
