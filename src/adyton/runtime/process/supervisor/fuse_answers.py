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
    unit: int = 4096  # bytes that are best read or written at once: st_blksize


class EntryAnswer(NamedTuple):
    """To LOOKUP, MKDIR, MKNOD, SYMLINK, LINK. Lifetimes in seconds, of the name and of the attributes."""

    node: int
    name_lifetime: float
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


class FileSystem(NamedTuple):
    """Blocks of `block_size` bytes; `available`: free for others than root."""

    block_size: int
    blocks: int
    free: int
    available: int
    files: int
    files_free: int


class DirectoryEntry(NamedTuple):
    """`offset`: what a READDIR asks for that goes on behind this entry. `type`: the type bits of a mode."""

    number: int
    offset: int
    type: int
    name: bytes


_ANSWER = struct.Struct("<IiQ")
_STALE = struct.Struct("<Qqq")
_NOTIFY_INVAL_INODE = 2
_ATTR = struct.Struct("<QQQqqqIIIIIII4xI4x")
_ENTRY = struct.Struct("<Q8xQQI4x")
_ATTR_LIFETIME = struct.Struct("<Q8x")
_OPENED = struct.Struct("<QI4x")
_WRITTEN = struct.Struct("<I4x")
_STATFS = struct.Struct("<QQQQQIII4x24x")
_LOCK = struct.Struct("<QQII")
_XATTR_SIZE = struct.Struct("<I4x")
_OFFSET = struct.Struct("<Q")
_STATX = struct.Struct("<Q4x4x16x" + "IIQIIIH2xQQQQ" + "qI4x" * 4 + "16x112x")
_STATX_BASIC, _STATX_BTIME = 0x7FF, 0x800  # linux/stat.h
_NAME_LENGTH = 255  # NAME_MAX
_INITED = struct.Struct("<IIIIHHIIHHI28x")
_DIRECTORY_ENTRY = struct.Struct("<QQII")
ANSWER_SIZE = _ANSWER.size


def success(unique: int, size: int = 0) -> bytes:
    """The message that answers request `unique`, without its body of `size` bytes, which follows."""
    return _ANSWER.pack(ANSWER_SIZE + size, 0, unique)


def failure(unique: int, number: int) -> bytes:
    """The message that answers request `unique` with an errno."""
    return _ANSWER.pack(ANSWER_SIZE, -number, unique)


def stale_attributes(node: int) -> bytes:
    """The message, unasked, that a node's attributes have to be asked for again. It never makes its sender wait: no page is touched."""
    return _ANSWER.pack(ANSWER_SIZE + _STALE.size, _NOTIFY_INVAL_INODE, 0) + _STALE.pack(node, -1, 0)


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
        attr.unit,
    )


def pack_attr(lifetime: int, attr: Attr) -> bytes:
    """Answers GETATTR and SETATTR; `lifetime` in seconds."""
    return _ATTR_LIFETIME.pack(lifetime) + _pack_attr(attr)


def pack_entry(entry: EntryAnswer) -> bytes:
    """Answers LOOKUP, MKDIR, MKNOD, SYMLINK, LINK; with `pack_open` behind it, CREATE and TMPFILE."""
    seconds = int(entry.name_lifetime)
    part = round((entry.name_lifetime - seconds) * SECOND)
    return _ENTRY.pack(entry.node, seconds, entry.attr_lifetime, part) + _pack_attr(entry.attr)


def pack_open(opened: OpenAnswer) -> bytes:
    """Answers OPEN and OPENDIR."""
    return _OPENED.pack(*opened)


def pack_written(size: int) -> bytes:
    """Answers WRITE and COPY_FILE_RANGE."""
    return _WRITTEN.pack(size)


def pack_statfs(system: FileSystem) -> bytes:
    """Answers STATFS."""
    size = system.block_size
    counts = (system.blocks, system.free, system.available, system.files, system.files_free)
    return _STATFS.pack(*counts, size, _NAME_LENGTH, size)


def pack_lock(start: int, end: int, kind: int, process: int) -> bytes:
    """Answers GETLK; `kind`: F_RDLCK, F_WRLCK or F_UNLCK."""
    return _LOCK.pack(start, end, kind, process)


def pack_xattr(value: bytes, size: int) -> bytes:
    """Answers GETXATTR and LISTXATTR; the length alone if `size` is 0."""
    return value if size else _XATTR_SIZE.pack(len(value))


def pack_offset(offset: int) -> bytes:
    """Answers LSEEK, and COPY_FILE_RANGE_64."""
    return _OFFSET.pack(offset)


def pack_statx(lifetime: int, attr: Attr, born: int | None) -> bytes:
    """Answers STATX; `born` in nanoseconds, None if it is not known."""
    mask = _STATX_BASIC if born is None else _STATX_BASIC | _STATX_BTIME
    times: list[int] = []
    for time in (attr.accessed, 0 if born is None else born, attr.changed, attr.modified):
        times += divmod(time, SECOND)
    owner = (attr.uid, attr.gid)
    sizes = (attr.number, attr.size, attr.blocks)
    return _STATX.pack(lifetime, mask, attr.unit, 0, attr.links, *owner, attr.mode, *sizes, 0, *times)


def pack_init(answer: InitAnswer) -> bytes:
    """Answers INIT; times are given in nanoseconds."""
    return _INITED.pack(
        MAJOR,
        answer.minor,
        answer.max_readahead,
        answer.flags & 0xFFFFFFFF,
        answer.max_background,
        answer.max_background * 3 // 4,
        answer.max_write,
        1,
        answer.max_pages,
        0,
        answer.flags >> 32,
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
    return Attr(*fields[:3], *times, *fields[9:14])


def unpack_attr(body: bytes) -> tuple[int, Attr]:
    """`pack_attr` undone."""
    (lifetime,) = _ATTR_LIFETIME.unpack_from(body)
    return lifetime, _unpack_attr(body, _ATTR_LIFETIME.size)


def unpack_entry(body: bytes) -> tuple[EntryAnswer, bytes]:
    """`pack_entry` undone, and what follows it."""
    end = _ENTRY.size + _ATTR.size
    node, seconds, attr_lifetime, part = _ENTRY.unpack_from(body)
    return EntryAnswer(node, seconds + part / SECOND, attr_lifetime, _unpack_attr(body, _ENTRY.size)), body[end:]


def unpack_open(body: bytes) -> OpenAnswer:
    """`pack_open` undone."""
    return OpenAnswer(*_OPENED.unpack(body))


def unpack_written(body: bytes) -> int:
    """`pack_written` undone."""
    size: int = _WRITTEN.unpack(body)[0]
    return size


def unpack_statfs(body: bytes) -> FileSystem:
    """`pack_statfs` undone."""
    fields = _STATFS.unpack(body)
    return FileSystem(fields[5], *fields[:5])


def unpack_lock(body: bytes) -> tuple[int, int, int, int]:
    """`pack_lock` undone."""
    start, end, kind, process = _LOCK.unpack(body)
    return start, end, kind, process


def unpack_offset(body: bytes) -> int:
    """`pack_offset` undone."""
    offset: int = _OFFSET.unpack(body)[0]
    return offset


def unpack_xattr_size(body: bytes) -> int:
    """`pack_xattr` undone, of size 0."""
    size: int = _XATTR_SIZE.unpack(body)[0]
    return size


def unpack_statx(body: bytes) -> tuple[int, int]:
    """Of `pack_statx`: mask, and when it was born in nanoseconds."""
    fields = _STATX.unpack(body)
    return fields[1], fields[14] * SECOND + fields[15]


def unpack_init(body: bytes) -> InitAnswer:
    """`pack_init` undone."""
    _, minor, readahead, flags, background, _, write, _, pages, _, more = _INITED.unpack(body)
    return InitAnswer(minor, readahead, flags | more << 32, background, write, pages)


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
