"""The requests of the kernel's FUSE protocol, bytes ↔ fields and nothing else. Source: include/uapi/linux/fuse.h, protocol 7.31 and later.

Every message that is read from /dev/fuse is a header and a body: fixed fields, then a name, two names, the data of a write, a name and
a value, or a list of forgotten nodes. `FORMS` has a row per operation that carries a body of interest; all others are decoded as `Nothing`.
Times are nanoseconds, names are bytes. Answers are in `fuse_answers`.

x86-64 and arm64 are little-endian, so are the layouts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from enum import IntEnum, IntFlag
from typing import Any, Literal, NamedTuple

MAJOR = 7
MINOR_AT_LEAST = 31  # Linux 5.4
MINOR_SPOKEN = 39  # the newest whose changes are accounted for here
ROOT_ID = 1
FOREVER = (1 << 31) - 1  # seconds; the longest lifetime that no kernel's arithmetic overflows
SECOND = 10**9  # nanoseconds
LARGEST = (1 << 63) - 1  # loff_t; of nanoseconds too, as host calls carry them


class FileError(Exception):
    """An operation failed in a way that the program in the guest may see: `number` is the errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class MalformedRequestError(Exception):
    """A message from the kernel that this codec cannot read. `unique`: whom to answer; 0 if not even that could be read."""

    def __init__(self, unique: int, text: str) -> None:
        super().__init__(text)
        self.unique = unique


class Opcode(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class InitFlag(IntFlag):
    """Capabilities agreed on by INIT; from the 33rd on with INIT_EXT only."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36


class SetFlag(IntFlag):
    """Which fields of a SETATTR are to be set (FATTR_…)."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


class OpenFlag(IntFlag):
    """How the kernel is to treat an open file (FOPEN_…)."""

    NONE = 0
    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    STREAM = 1 << 4
    NOFLUSH = 1 << 5


WRITE_CACHE = 1 << 0  # a WRITE of the page cache's, such as of a mapped file: nobody's file position is in it
FSYNC_DATA_ONLY = 1 << 0
WRITE_KILL_SUIDGID = 1 << 2  # the file must not stay one that runs as its owner
LOCK_FLOCK = 1 << 0  # of a lock request: flock, not fcntl
RENAME_NOREPLACE = 1 << 0  # linux/fs.h
RENAME_EXCHANGE = 1 << 1

# -- requests ---------------------------------------------------------------------------------------------------------


class Header(NamedTuple):
    """Of every request. `pid`: the calling thread's id, in the pid namespace of who mounted."""

    length: int
    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int


class Nothing(NamedTuple):
    pass


class Name(NamedTuple):
    """LOOKUP, UNLINK, RMDIR, REMOVEXATTR."""

    name: bytes


class Forget(NamedTuple):
    lookups: int


class BatchForget(NamedTuple):
    nodes: list[tuple[int, int]]  # node, lookups


def _nearest(nanoseconds: int) -> int:
    """A time that can be carried: as file systems do with times that they cannot hold."""
    return max(-LARGEST - 1, min(nanoseconds, LARGEST))


class SetAttr(NamedTuple):
    valid: int
    handle: int
    size: int
    accessed_seconds: int
    modified_seconds: int
    accessed_nanoseconds: int
    modified_nanoseconds: int
    mode: int
    uid: int
    gid: int

    @property
    def accessed(self) -> int:
        return _nearest(self.accessed_seconds * SECOND + self.accessed_nanoseconds)

    @property
    def modified(self) -> int:
        return _nearest(self.modified_seconds * SECOND + self.modified_nanoseconds)


class MakeNode(NamedTuple):
    mode: int
    device: int
    umask: int
    name: bytes


class MakeDir(NamedTuple):
    mode: int
    umask: int
    name: bytes


class Rename(NamedTuple):
    """RENAME2; a RENAME is one without flags."""

    directory: int
    flags: int
    source: bytes
    target: bytes


class OldRename(NamedTuple):
    directory: int
    source: bytes
    target: bytes


class Link(NamedTuple):
    node: int
    name: bytes


class SymLink(NamedTuple):
    name: bytes
    target: bytes


class Open(NamedTuple):
    """OPEN, OPENDIR."""

    flags: int


class Create(NamedTuple):
    """CREATE; TMPFILE, whose name means nothing."""

    flags: int
    mode: int
    umask: int
    name: bytes


class Read(NamedTuple):
    """READ, READDIR. `offset` of a READDIR: what the last entry got was given as its `offset`, or 0."""

    handle: int
    offset: int
    size: int


class Write(NamedTuple):
    handle: int
    offset: int
    size: int
    write_flags: int
    flags: int  # of the open file, at the time of the write
    data: bytes


class Release(NamedTuple):
    """RELEASE, RELEASEDIR, FLUSH."""

    handle: int


class Flush(NamedTuple):
    """A descriptor of an open file was closed. `owner`: of locks, of the process that closed it."""

    handle: int
    owner: int


class Lock(NamedTuple):
    """GETLK, SETLK, SETLKW. `end` is the last byte; `type`: of linux/fcntl.h; `flags`: LOCK_…"""

    handle: int
    owner: int
    start: int
    end: int
    type: int
    process: int
    flags: int


class GetXattr(NamedTuple):
    """`size`: of the caller's buffer; 0: only the length is wanted."""

    size: int
    name: bytes


class ListXattr(NamedTuple):
    size: int


class SetXattr(NamedTuple):
    """`flags`: XATTR_CREATE, XATTR_REPLACE."""

    size: int
    flags: int
    name: bytes
    value: bytes


class Allocate(NamedTuple):
    """`mode`: FALLOC_FL_…"""

    handle: int
    offset: int
    size: int
    mode: int


class Seek(NamedTuple):
    """`whence`: SEEK_DATA or SEEK_HOLE."""

    handle: int
    offset: int
    whence: int


class Copy(NamedTuple):
    """From the request's node to `node`."""

    handle: int
    offset: int
    node: int
    target: int
    target_offset: int
    size: int
    flags: int


class Statx(NamedTuple):
    """`mask`: STATX_…"""

    mask: int


class Sync(NamedTuple):
    """FSYNC, FSYNCDIR."""

    handle: int
    flags: int


class Access(NamedTuple):
    mask: int


class Interrupt(NamedTuple):
    unique: int


class Init(NamedTuple):
    """`flags`: all that the kernel said, with INIT_EXT those of both words."""

    major: int
    minor: int
    max_readahead: int
    flags: int


Body = (
    Nothing
    | Name
    | Forget
    | BatchForget
    | SetAttr
    | MakeNode
    | MakeDir
    | Rename
    | OldRename
    | Link
    | SymLink
    | Open
    | Create
    | Read
    | Write
    | Release
    | Flush
    | Lock
    | GetXattr
    | ListXattr
    | SetXattr
    | Allocate
    | Seek
    | Copy
    | Statx
    | Sync
    | Access
    | Interrupt
    | Init
)


class Request(NamedTuple):
    header: Header
    body: Any  # of the class that FORMS gives for the opcode


Tail = Literal["", "name", "names", "data", "name and data", "nodes", "more flags"]


class Form(NamedTuple):
    """How a body lies in memory: `fixed` fields, in the order of `make`'s, then a tail."""

    make: Callable[..., Body]
    fixed: struct.Struct
    tail: Tail = ""


def _form(make: Callable[..., Body], fixed: str, tail: Tail = "") -> Form:
    return Form(make, struct.Struct("<" + fixed), tail)


_NOTHING = _form(Nothing, "")
_OPEN = _form(Open, "I4x")
_READ = _form(Read, "QQI4x8x4x4x")
_RELEASE = _form(Release, "Q4x4x8x")
_SYNC = _form(Sync, "QI4x")
_LOCK = _form(Lock, "QqQQIII4x")
_CREATE = _form(Create, "III4x", "name")
_COPY = _form(Copy, "QQQQQQQ")

FORMS: Mapping[int, Form] = {
    Opcode.LOOKUP: _form(Name, "", "name"),
    Opcode.FORGET: _form(Forget, "Q"),
    Opcode.SETATTR: _form(SetAttr, "I4xQQ8xqq8xII4xI4xII4x"),
    Opcode.SYMLINK: _form(SymLink, "", "names"),
    Opcode.MKNOD: _form(MakeNode, "III4x", "name"),
    Opcode.MKDIR: _form(MakeDir, "II", "name"),
    Opcode.UNLINK: _form(Name, "", "name"),
    Opcode.RMDIR: _form(Name, "", "name"),
    Opcode.RENAME: _form(OldRename, "Q", "names"),
    Opcode.LINK: _form(Link, "Q", "name"),
    Opcode.OPEN: _OPEN,
    Opcode.READ: _READ,
    Opcode.WRITE: _form(Write, "QQII8xI4x", "data"),
    Opcode.RELEASE: _RELEASE,
    Opcode.FLUSH: _RELEASE,
    Opcode.FSYNC: _SYNC,
    Opcode.SETXATTR: _form(SetXattr, "II", "name and data"),
    Opcode.GETXATTR: _form(GetXattr, "I4x", "name"),
    Opcode.LISTXATTR: _form(ListXattr, "I4x"),
    Opcode.REMOVEXATTR: _form(Name, "", "name"),
    Opcode.FLUSH: _form(Flush, "Q4x4xq"),
    Opcode.INIT: _form(Init, "IIII", "more flags"),
    Opcode.OPENDIR: _OPEN,
    Opcode.READDIR: _READ,
    Opcode.RELEASEDIR: _RELEASE,
    Opcode.FSYNCDIR: _SYNC,
    Opcode.GETLK: _LOCK,
    Opcode.SETLK: _LOCK,
    Opcode.SETLKW: _LOCK,
    Opcode.ACCESS: _form(Access, "I4x"),
    Opcode.CREATE: _CREATE,
    Opcode.INTERRUPT: _form(Interrupt, "Q"),
    Opcode.BATCH_FORGET: _form(BatchForget, "I4x", "nodes"),
    Opcode.FALLOCATE: _form(Allocate, "QQQI4x"),
    Opcode.RENAME2: _form(Rename, "QI4x", "names"),
    Opcode.LSEEK: _form(Seek, "QQI4x"),
    Opcode.COPY_FILE_RANGE: _COPY,
    Opcode.TMPFILE: _CREATE,
    Opcode.STATX: _form(Statx, "4x4x8x4xI"),
    Opcode.COPY_FILE_RANGE_64: _COPY,
}

_NAMES = {"name": 1, "names": 2}
_HEADER = struct.Struct("<IIQQIII4x")
_MORE_FLAGS = struct.Struct("<I44x")  # of an INIT with INIT_EXT
_FORGET_ONE = struct.Struct("<QQ")
HEADER_SIZE = _HEADER.size


def decode(message: bytes) -> Request:
    """One message of the kernel's. MalformedRequestError, and no other error, if it is none."""
    if len(message) < HEADER_SIZE:
        raise MalformedRequestError(0, f"{len(message)} bytes are no request")
    header = Header._make(_HEADER.unpack_from(message))
    form = FORMS.get(header.opcode, _NOTHING)
    start = HEADER_SIZE + form.fixed.size
    if header.length != len(message) or len(message) < start:
        raise MalformedRequestError(header.unique, f"a request of operation {header.opcode} with {len(message)} bytes")
    fields = form.fixed.unpack_from(message, HEADER_SIZE)
    if form.make in (Read, Write) and fields[1] + fields[2] > LARGEST:
        raise MalformedRequestError(header.unique, f"{fields[2]} bytes at {fields[1]}, where no file can have any")
    if form.tail == "":
        return Request(header, form.make(*fields))
    tail = message[start:]
    if form.tail == "data":
        if len(tail) != fields[2]:
            raise MalformedRequestError(header.unique, f"a write of {fields[2]} bytes with {len(tail)}")
        return Request(header, form.make(*fields, tail))
    if form.tail == "nodes":
        if len(tail) != fields[0] * _FORGET_ONE.size:
            raise MalformedRequestError(header.unique, f"{fields[0]} forgotten nodes in {len(tail)} bytes")
        return Request(header, form.make(list(_FORGET_ONE.iter_unpack(tail))))
    if form.tail == "more flags":
        if fields[3] & InitFlag.INIT_EXT and len(tail) >= _MORE_FLAGS.size:
            fields = (*fields[:3], fields[3] | _MORE_FLAGS.unpack_from(tail)[0] << 32)
        return Request(header, form.make(*fields))
    if form.tail == "name and data":
        name, _, value = tail.partition(b"\0")
        if not name or len(value) != fields[0]:
            raise MalformedRequestError(header.unique, f"{fields[0]} bytes for a name with {len(value)}")
        return Request(header, form.make(*fields, name, value))
    expected = _NAMES[form.tail]
    names = tail.split(b"\0")
    if len(names) <= expected or not all(names[:expected]):
        raise MalformedRequestError(header.unique, f"a request of operation {header.opcode} without its name")
    return Request(header, form.make(*fields, *names[:expected]))


def encode(opcode: int, unique: int, node: int, body: Body, *, pid: int = 1, uid: int = 1000, gid: int = 1000) -> bytes:
    """A request as the kernel would send it."""
    form = FORMS.get(opcode, _NOTHING)
    if isinstance(body, BatchForget):
        packed = form.fixed.pack(len(body.nodes)) + b"".join(_FORGET_ONE.pack(*each) for each in body.nodes)
    elif isinstance(body, Write):
        packed = form.fixed.pack(*body[:-1]) + body.data
    elif isinstance(body, SetXattr):
        packed = form.fixed.pack(*body[:2]) + body.name + b"\0" + body.value
    elif isinstance(body, Init):
        packed = form.fixed.pack(*body[:3], body.flags & 0xFFFFFFFF)
        if body.flags & InitFlag.INIT_EXT:
            packed += _MORE_FLAGS.pack(body.flags >> 32)
    else:
        fields: tuple[Any, ...] = body
        split = len(fields) - _NAMES.get(form.tail, 0)
        packed = form.fixed.pack(*fields[:split]) + b"".join(name + b"\0" for name in fields[split:])
    return _HEADER.pack(HEADER_SIZE + len(packed), opcode, unique, node, uid, gid, pid) + packed
