"""Host calls: what an enclave may ask of its client, and what the client may answer.

Independent of architecture and operating system: calls, errors, flags and kinds of file have names, not numbers. Every runtime
uses this ABI. Paths are absolute and normalised ("/a/b": no ".", "..", "//" or NUL). Handles are numbers that the *enclave*
chooses; the client only maps them to its open files. Names are bytes, and on the wire as `names` has them. Times are nanoseconds
since the epoch (UTC); sizes and offsets are bytes.

    request            result            what the client does
    Access             Done              say whether the policy (which reports a denial) and the file's permissions allow `right` on `path`
    Stat               Attributes        lstat; fstat of an open handle
    ReadLink           Target            readlink, if what the link finally leads to is allowed
    List               Entries           names, kinds and attributes, from `cookie` on
    StatFileSystem     FileSystem        statfs: how much room there is
    Open               Attributes        open or create a regular file, as `handle`
    OpenUnnamed        Attributes        the same for a new file without a name, in the file system of a directory (O_TMPFILE)
    OpenAgain          Attributes        what is open as `opened` once more, as `handle`, whatever its name is by now (/proc/self/fd)
    Read               Data              at most `size` bytes at `offset`; fewer only at the end of the file
    Write              Written           at `offset`, or at the end with append
    SetAttributes      Attributes        of an open handle, or of a path
    Seek               Position          where the next data, or the next hole, begins
    Allocate           Done              fallocate: room, zeros or holes, as far as the client's file system knows how
    Copy               Copied            from one open file to another, or within one; fewer bytes than asked only at the end of the file
    Sync               Done              fsync / fdatasync: durable on the client when answered
    SyncDirectory      Done              fsync of a directory: so are its names
    SyncAll            Done              syncfs of the file systems on which the enclave may have changed something since the last one
    Close              Done
    MakeDirectory      Attributes
    Remove             Done              a file or link, or an empty directory
    Rename             Done              both names below allowed paths
    Link               Attributes        one more name for a file that has one, or that is open
    SymbolicLink       Attributes        which leads to a path that the enclave may write
    GetExtended        Data              an extended attribute's value; names begin with "user."
    ListExtended       Names
    SetExtended        Done
    RemoveExtended     Done
    Lock               Done              fcntl lock of a range, of an owner among this enclave's; "none": unlock
    GetLock            Conflict          a lock in the way of one, if there is any
    Flock              Done              flock of a file
    StopWaiting        Done              the Lock or Flock with that `wait` fails with EINTR, unless it is over
    Look               Found             lstat; that nothing is there is an answer like another
    Peek               Content           attributes and the whole content of a regular file, if it is no longer than `size`
    Watch              Done              promise to tell of changes in a directory (Changed), from now on; Failed: no promise
    Unwatch            Done              the promise is not needed any more
    Follow             Done              tell of each thing that other programs do in a directory (Happened), from now on
    Unfollow           Done              no more of that
    Hold               Done              keep other programs' locks off an open file until it is closed; EBUSY if there are any
    Compound           Results           several of these, in order; the results of as many as were carried out
    Recall             Data              the note that the client has of the enclave's sealed files on the server's disk; empty: none
    Remember           Done              keep `note` in the place of `known`, durable when answered; ESTALE: by now there is another one than either
    ReadInput          Data              standard input, if the client gave it: some bytes as soon as there are any; none: its end
    Call               Value             a registered function; what it raises is a Raised of the communicator

A Changed comes unasked, before whatever the client sends that was done after the change; and so does a Happened (see `events`), behind it.

Any request may be answered with Failed instead. Source of the names: POSIX.1-2017.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from adyton.proto.values import Seconds

MAX_BLOCK = 1 << 20  # bytes of one Read or Write
MAX_ENTRIES = 512  # of one List
MAX_COMPOUND = 64  # requests in one Compound
MAX_PEEKED = 1 << 16  # bytes of one Peek
MAX_CHANGED = 1024  # names in one Changed
MAX_PATH = 4096
MAX_NAME = 255
HANDLE_LIMIT = 1 << 16  # open handles of one enclave
MAX_COPY = 1 << 26  # bytes of one Copy
MAX_EXTENDED = 1 << 16  # bytes of an extended attribute's value, or of all names: linux/limits.h
EXTENDED_PREFIX = "user."  # of the extended attributes that there are; others belong to the machine: xattr(7)
MAX_NOTE = 128  # bytes
MAX_LOCKS = 1 << 13  # ranges and files that one enclave holds locked (ENOLCK)
MAX_LOCK_WAITS = 256  # of one enclave at a time (ENOLCK)

Path = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PATH)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
Unsigned = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Handle = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Mode = Annotated[int, msgspec.Meta(ge=0, le=0o7777)]  # permission bits only
Umask = Annotated[
    int, msgspec.Meta(ge=0, le=0o777)
]  # the maker's: what a mode loses unless the directory has a default ACL
Time = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Right = Literal["read", "write", "net", "listen", "env", "call"]
Kind = Literal["file", "directory", "symlink", "other"]
OpenMode = Literal["read", "write", "read-write"]
LockKind = Literal["read", "write", "none"]
Allocation = Literal["extend", "keep-size", "punch-hole", "zero", "zero-keep-size", "collapse", "insert", "unshare"]
ExtendedName = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Note = Annotated[bytes, msgspec.Meta(max_length=MAX_NOTE)]
Owned = Literal["measurement", "signer"]  # to what of the enclave's identity its sealed files belong
Owner = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]  # of locks, as the enclave numbers them

# What an answer may say went wrong, by name; anything else from the client becomes EIO in the enclave.
# fmt: off
ERRNO_NAMES = frozenset((
    "E2BIG", "EACCES", "EAGAIN", "EBADF", "EBUSY", "EDEADLK", "EDQUOT", "EEXIST", "EFBIG", "EINTR", "EINVAL", "EIO",
    "EISDIR", "ELOOP", "EMFILE", "EMLINK", "ENAMETOOLONG", "ENFILE", "ENODATA", "ENODEV", "ENOENT", "ENOLCK",
    "ENOMEM", "ENOSPC", "ENOSYS", "ENOTDIR", "ENOTEMPTY", "ENXIO", "EOPNOTSUPP", "EOVERFLOW", "EPERM", "ERANGE",
    "EROFS", "ESTALE", "ETXTBSY", "EXDEV",
))
# fmt: on


class _Struct(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    pass


class Access(_Struct, frozen=True):
    path: Path
    right: Literal["read", "write"]


class Stat(_Struct, frozen=True):
    """`handle` (if not None) is used rather than `path`. `birth`: say when it was made, too."""

    path: Path
    handle: Handle | None = None
    birth: bool = False


class StatFileSystem(_Struct, frozen=True):
    path: Path


class ReadLink(_Struct, frozen=True):
    path: Path


class List(_Struct, frozen=True):
    path: Path
    cookie: Unsigned  # how many entries to leave out: 0, then Entries.next
    listing: Handle = 0  # whose parts these are, of several listings of a directory at a time


class Open(_Struct, frozen=True):
    path: Path
    handle: Handle
    access: OpenMode
    create: bool = False
    exclusive: bool = False
    truncate: bool = False
    append: bool = False
    mode: Mode = 0o644  # of a file that is created, whatever the umask of the client's process
    umask: Umask = 0


class OpenUnnamed(_Struct, frozen=True):
    path: Path  # of the directory
    handle: Handle
    access: Literal["write", "read-write"]
    append: bool = False
    linkable: bool = True  # it may get a name later (no O_EXCL)
    mode: Mode = 0o600
    umask: Umask = 0


class OpenAgain(_Struct, frozen=True):
    path: Path  # that it had
    opened: Handle
    handle: Handle
    access: OpenMode
    truncate: bool = False
    append: bool = False


class Read(_Struct, frozen=True):
    handle: Handle
    offset: Unsigned
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOCK)]


class Write(_Struct, frozen=True):
    handle: Handle
    offset: Unsigned
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_BLOCK)]


class Seek(_Struct, frozen=True):
    handle: Handle
    offset: Unsigned
    what: Literal["data", "hole"]


class Allocate(_Struct, frozen=True):
    """`way`: the mode of fallocate(2); "extend" is its mode 0, "zero" makes the file longer where it ends before."""

    handle: Handle
    way: Allocation
    offset: Unsigned
    size: Unsigned


class Copy(_Struct, frozen=True):
    source: Handle
    source_offset: Unsigned
    target: Handle
    target_offset: Unsigned
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_COPY)]


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


class SyncAll(_Struct, frozen=True):
    pass


class Close(_Struct, frozen=True):
    handle: Handle


class MakeDirectory(_Struct, frozen=True):
    path: Path
    mode: Mode
    umask: Umask = 0


class Remove(_Struct, frozen=True):
    path: Path
    directory: bool


class Rename(_Struct, frozen=True):
    source: Path
    target: Path
    replace: bool = True  # False: EEXIST if the target is there
    exchange: bool = False  # both must be there, and change places


class Link(_Struct, frozen=True):
    """`handle` (if not None) is the file that gets the name `target`, rather than what is at `source`."""

    source: Path
    target: Path
    handle: Handle | None = None


class SymbolicLink(_Struct, frozen=True):
    path: Path
    target: Path  # what it will hold: absolute or relative


class GetExtended(_Struct, frozen=True):
    """Here and in the others: `handle` (if not None) is used rather than `path`."""

    path: Path
    name: ExtendedName
    handle: Handle | None = None


class ListExtended(_Struct, frozen=True):
    path: Path
    handle: Handle | None = None


class SetExtended(_Struct, frozen=True):
    path: Path
    name: ExtendedName
    value: Annotated[bytes, msgspec.Meta(max_length=MAX_EXTENDED)]
    how: Literal["set", "create", "replace"] = "set"  # create: EEXIST if it is there; replace: ENODATA if it is not
    handle: Handle | None = None


class RemoveExtended(_Struct, frozen=True):
    path: Path
    name: ExtendedName
    handle: Handle | None = None


class Lock(_Struct, frozen=True):
    """Bytes `start` to `end`, both included; None: without an end. An owner's locks go when a handle that it locked by is closed.

    `wait`: how StopWaiting names it while it waits; None: EAGAIN rather than a wait.
    """

    handle: Handle
    owner: Owner
    kind: LockKind
    start: Unsigned = 0
    end: Unsigned | None = None
    wait: Unsigned | None = None


class GetLock(_Struct, frozen=True):
    handle: Handle
    owner: Owner
    kind: Literal["read", "write"]
    start: Unsigned = 0
    end: Unsigned | None = None


class Flock(_Struct, frozen=True):
    """Another kind of lock than Lock's: neither is in the other's way."""

    handle: Handle
    owner: Owner
    kind: LockKind
    wait: Unsigned | None = None


class StopWaiting(_Struct, frozen=True):
    wait: Unsigned


class Look(_Struct, frozen=True):
    path: Path


class Peek(_Struct, frozen=True):
    path: Path
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_PEEKED)]


class Watch(_Struct, frozen=True):
    """`name`: in the directory; "": each name in it."""

    directory: Path
    name: Annotated[str, msgspec.Meta(max_length=MAX_NAME)] = ""


class Unwatch(_Struct, frozen=True):
    directory: Path


class Follow(_Struct, frozen=True):
    """As Watch; but each thing is told."""

    directory: Path
    name: Annotated[str, msgspec.Meta(max_length=MAX_NAME)] = ""


class Unfollow(Follow, frozen=True):
    """What was asked by the Follow of the same fields."""


class Hold(_Struct, frozen=True):
    handle: Handle


class Compound(_Struct, frozen=True):
    """`through`: go on after a Failed, else it is the last result."""

    requests: Annotated[
        list[Stat | Look | Peek | Watch | List | Open | OpenAgain | Read | Hold | Lock | Flock],
        msgspec.Meta(min_length=1, max_length=MAX_COMPOUND),
    ]
    through: bool = False


class Recall(_Struct, frozen=True):
    owner: Owned


class Remember(_Struct, frozen=True):
    owner: Owned
    known: Note  # b"": none
    note: Note


class ReadInput(_Struct, frozen=True):
    """One is under way at a time: what it brings is in order."""

    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOCK)]


class Call(_Struct, frozen=True):
    """A registered function; `arguments` as adyton.proto.values encodes them, b"" if they are the first of the bulk, which on the way is beside this."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    arguments: bytes
    left: Seconds | None = None  # that its caller will wait at most
    bulk: tuple[bytes, ...] = ()


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
    | SyncAll
    | Close
    | MakeDirectory
    | Remove
    | Rename
    | Link
    | SymbolicLink
    | StatFileSystem
    | OpenUnnamed
    | OpenAgain
    | Seek
    | Allocate
    | Copy
    | GetExtended
    | ListExtended
    | SetExtended
    | RemoveExtended
    | Lock
    | GetLock
    | Flock
    | StopWaiting
    | Look
    | Peek
    | Watch
    | Unwatch
    | Follow
    | Unfollow
    | Hold
    | Compound
    | Recall
    | Remember
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
    born: Time | None = None  # None: not asked for, or not known there


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
    """`modified` and `changed`: the file's times afterwards."""

    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOCK)]
    modified: Time = 0
    changed: Time = 0


class Found(_Struct, frozen=True):
    """None: there is nothing at that name."""

    attributes: Attributes | None


class Content(_Struct, frozen=True):
    attributes: Attributes
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_PEEKED)]


class Results(_Struct, frozen=True):
    """Of a Compound: each a result as its request has it, still encoded; after a Failed only if it went through."""

    results: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_COMPOUND)]


class Changed(_Struct, frozen=True):
    """Of watched directories: (directory, name) of what other programs changed. A name "": all of it, and the promise is over."""

    names: Annotated[
        list[tuple[Path, Annotated[str, msgspec.Meta(max_length=MAX_NAME)]]], msgspec.Meta(max_length=MAX_CHANGED)
    ]


class FileSystem(_Struct, frozen=True):
    """Blocks of `block_size` bytes; `available`: free for others than root."""

    block_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    blocks: Unsigned
    free: Unsigned
    available: Unsigned
    files: Unsigned
    files_free: Unsigned


class Position(_Struct, frozen=True):
    offset: Unsigned


class Copied(_Struct, frozen=True):
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_COPY)]


class Names(_Struct, frozen=True):
    names: Annotated[list[ExtendedName], msgspec.Meta(max_length=MAX_EXTENDED // 6)]  # of at least "user.", a letter


class Conflict(_Struct, frozen=True):
    """The lock in the way; `kind` "none": there is none, and the rest means nothing."""

    kind: LockKind
    start: Unsigned = 0
    end: Unsigned | None = None


class Value(_Struct, frozen=True):
    result: bytes  # as adyton.proto.values encodes it, or nothing but large bytes; if it is large, on the way it is beside this
    encoded: bool = True


Result = (
    Done
    | Failed
    | Attributes
    | Target
    | Entries
    | Data
    | Written
    | FileSystem
    | Position
    | Copied
    | Names
    | Conflict
    | Value
    | Found
    | Content
    | Results
)


class Output(_Struct, frozen=True):
    """What the enclave wrote to its standard output or error."""

    stream: Literal["stdout", "stderr"]
    data: Annotated[bytes, msgspec.Meta(max_length=1 << 16)]


class RefusedCall(_Struct, frozen=True):
    """A system call that the enclave's runtime refused; `count` times so far. Unknown calls are named by their number."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    errno: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    reason: Annotated[str, msgspec.Meta(max_length=256)]
    count: Unsigned
