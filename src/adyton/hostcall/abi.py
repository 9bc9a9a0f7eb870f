"""Host calls: what an enclave may ask of its client, and what the client may answer.

Independent of architecture and operating system: calls, errors, flags and kinds of file have names, not numbers. Every runtime
uses this ABI. Paths are absolute and normalised ("/a/b": no ".", "..", "//" or NUL). Handles are numbers that the *enclave*
chooses; the client only maps them to its open files. Times are nanoseconds since the epoch (UTC); sizes and offsets are bytes.

    request            result            what the client does
    Access             Done              say whether the policy allows `right` on `path` (and report a denial)
    Stat               Attributes        lstat
    ReadLink           Target            readlink, if what the link finally leads to is allowed
    List               Entries           names, kinds and attributes, from `cookie` on
    Open               Attributes        open or create a regular file, as `handle`
    Read               Data              at most `size` bytes at `offset`; fewer only at the end of the file
    Write              Written           at `offset`, or at the end with append
    SetAttributes      Attributes        of an open handle, or of a path
    Sync               Done              fsync / fdatasync: durable on the client when answered
    SyncDirectory      Done              fsync of a directory: so are its names
    Close              Done
    MakeDirectory      Attributes
    Remove             Done              a file or link, or an empty directory
    Rename             Done              both names below allowed paths
    ReadInput          Data              standard input, if the client gave it: some bytes as soon as there are any; none: its end
    Call               Value             a registered function; what it raises is a Raised of the communicator

Any request may be answered with Failed instead. Source of the names: POSIX.1-2017.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

MAX_BLOCK = 1 << 20  # bytes of one Read or Write
MAX_ENTRIES = 512  # of one List
MAX_PATH = 4096
MAX_NAME = 255
HANDLE_LIMIT = 1 << 16  # open handles of one enclave

Path = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PATH)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
Unsigned = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Handle = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Mode = Annotated[int, msgspec.Meta(ge=0, le=0o7777)]  # permission bits only
Time = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Right = Literal["read", "write", "net", "listen", "env", "call"]
Kind = Literal["file", "directory", "symlink", "other"]
OpenMode = Literal["read", "write", "read-write"]

# What an answer may say went wrong, by name; anything else from the client becomes EIO in the enclave.
ERRNO_NAMES = frozenset(
    [
        "EACCES",
        "EAGAIN",
        "EBADF",
        "EBUSY",
        "EDQUOT",
        "EEXIST",
        "EFBIG",
        "EINTR",
        "EINVAL",
        "EIO",
        "EISDIR",
        "ELOOP",
        "EMFILE",
        "EMLINK",
        "ENAMETOOLONG",
        "ENFILE",
        "ENODEV",
        "ENOENT",
        "ENOMEM",
        "ENOSPC",
        "ENOSYS",
        "ENOTDIR",
        "ENOTEMPTY",
        "ENXIO",
        "EOPNOTSUPP",
        "EOVERFLOW",
        "EPERM",
        "EROFS",
        "ESTALE",
        "ETXTBSY",
        "EXDEV",
    ]
)


class _Struct(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    pass


class Access(_Struct, frozen=True):
    path: Path
    right: Literal["read", "write"]


class Stat(_Struct, frozen=True):
    path: Path


class ReadLink(_Struct, frozen=True):
    path: Path


class List(_Struct, frozen=True):
    path: Path
    cookie: Unsigned  # how many entries to leave out: 0, then Entries.next


class Open(_Struct, frozen=True):
    path: Path
    handle: Handle
    access: OpenMode
    create: bool = False
    exclusive: bool = False
    truncate: bool = False
    append: bool = False
    mode: Mode = 0o644  # of a file that is created; the client's umask holds too


class Read(_Struct, frozen=True):
    handle: Handle
    offset: Unsigned
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOCK)]


class Write(_Struct, frozen=True):
    handle: Handle
    offset: Unsigned
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_BLOCK)]


class SetAttributes(_Struct, frozen=True):
    """None: leave as it is. `handle` (if not None) is used rather than `path`. Times: "now" or nanoseconds."""

    path: Path
    handle: Handle | None = None
    size: Unsigned | None = None
    mode: Mode | None = None
    accessed: Time | Literal["now"] | None = None
    modified: Time | Literal["now"] | None = None


class Sync(_Struct, frozen=True):
    handle: Handle
    data_only: bool


class SyncDirectory(_Struct, frozen=True):
    path: Path


class Close(_Struct, frozen=True):
    handle: Handle


class MakeDirectory(_Struct, frozen=True):
    path: Path
    mode: Mode


class Remove(_Struct, frozen=True):
    path: Path
    directory: bool


class Rename(_Struct, frozen=True):
    source: Path
    target: Path
    replace: bool = True  # False: EEXIST if the target is there


class ReadInput(_Struct, frozen=True):
    """One is under way at a time: what it brings is in order."""

    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOCK)]


class Call(_Struct, frozen=True):
    """A registered function; `arguments` as adyton.proto.values encodes them."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    arguments: bytes


Request = (
    Access
    | Stat
    | ReadLink
    | List
    | Open
    | Read
    | Write
    | SetAttributes
    | Sync
    | SyncDirectory
    | Close
    | MakeDirectory
    | Remove
    | Rename
    | ReadInput
    | Call
)


class Done(_Struct, frozen=True):
    pass


class Failed(_Struct, frozen=True):
    errno: str  # its name, such as "ENOENT"


class Attributes(_Struct, frozen=True):
    """Of one file. `identity`: equal for two names of the same file while both exist (from device and inode), never 0."""

    kind: Kind
    identity: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
    size: Unsigned
    mode: Mode
    links: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    accessed: Time
    modified: Time
    changed: Time
    blocks: Unsigned = 0  # of 512 bytes


class Target(_Struct, frozen=True):
    path: Path  # as the link holds it: absolute or relative


class Entry(_Struct, frozen=True):
    name: Name
    attributes: Attributes


class Entries(_Struct, frozen=True):
    entries: Annotated[list[Entry], msgspec.Meta(max_length=MAX_ENTRIES)]
    next: Unsigned  # cookie of what follows; 0: that was all


class Data(_Struct, frozen=True):
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_BLOCK)]


class Written(_Struct, frozen=True):
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOCK)]


class Value(_Struct, frozen=True):
    result: bytes  # as adyton.proto.values encodes it


Result = Done | Failed | Attributes | Target | Entries | Data | Written | Value


class Output(_Struct, frozen=True):
    """What the enclave wrote to its standard output or error."""

    stream: Literal["stdout", "stderr"]
    data: Annotated[bytes, msgspec.Meta(max_length=1 << 16)]
