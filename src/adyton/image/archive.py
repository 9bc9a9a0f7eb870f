"""Tar archives without IO: files to bytes in one reproducible way, and back, strictly.

Written: POSIX ustar (POSIX.1-1988, pax(1) "ustar Interchange Format"), regular files only, sorted by the bytes of their names, owner
and group 0, no names of them, time 0, mode 0644, two blocks of zeros at the end. Equal files give equal bytes.

Read: headers of ustar and of GNU tar, regular files and folders; anything else (links, devices, sparse files, long-name records) is
an ImageError, and so is a name that could lead out of the folder it is unpacked into. Nothing but ImageError leaves the reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from adyton.errors import ImageError, UsageError

BLOCK = 512
MAX_MEMBERS = 100_000
MAX_DEPTH = 64  # names in a path
MAX_NAME = 255  # bytes of one name
MAX_FILE = (1 << 33) - 1  # bytes; what eleven octal digits hold

_POSIX = b"ustar\x00" + b"00"  # magic and version
_END = bytes(BLOCK)
_FILE, _OLD_FILE, _FOLDER = b"0", b"\0", b"5"


@dataclass(frozen=True)
class Member:
    """One member. `offset`: where its bytes begin in the archive."""

    path: str
    folder: bool
    offset: int
    size: int


def pack(files: Mapping[str, bytes]) -> bytes:
    """The archive of files by path ("pkg/module.py"); UsageError for a path that cannot be in one."""
    parts: list[bytes] = []
    for path in sorted(files, key=lambda path: path.encode("utf-8", "surrogatepass")):
        data = files[path]
        parts += [header(path, len(data)), data, bytes(-len(data) % BLOCK)]
    return b"".join([*parts, _END, _END])


def header(path: str, size: int) -> bytes:
    """The header block of a regular file; UsageError for a path or size that has no place in it."""
    try:
        check_path(path)
    except ImageError as error:
        raise UsageError(str(error)) from None
    if size > MAX_FILE:
        raise UsageError(f"{path} is {size} bytes long; at most {MAX_FILE} have a place in an image")
    prefix, name = _split(path)
    block = bytearray(BLOCK)
    fields = (
        (0, name),
        (100, b"0000644\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (124, b"%011o\0" % size),
        (136, b"%011o\0" % 0),
        (148, b"        "),
        (156, _FILE),
        (257, _POSIX),
        (329, b"0000000\0"),
        (337, b"0000000\0"),
        (345, prefix),
    )
    for offset, value in fields:
        block[offset : offset + len(value)] = value
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _split(path: str) -> tuple[bytes, bytes]:
    """Prefix (at most 155 bytes) and name (at most 100) of a path."""
    raw = path.encode()
    if len(raw) <= 100:
        return b"", raw
    for cut in (index for index in range(min(len(raw), 156)) if raw[index : index + 1] == b"/"):
        if cut and len(raw) - cut - 1 <= 100:
            return raw[:cut], raw[cut + 1 :]
    raise UsageError(f"the path {path} is too long for an image: shorten it to 100 bytes, or its folders to 155")


def check_path(path: str) -> None:
    """ImageError for anything but a relative path of plain names."""
    names = path.split("/")
    if len(names) > MAX_DEPTH or any(len(name.encode("utf-8", "surrogatepass")) > MAX_NAME for name in names):
        raise ImageError(f"the path {path[:80]!r} is too deep, or a name in it too long")
    if any(name in ("", ".", "..") for name in names) or not path.isprintable():
        raise ImageError(f"the path {path[:80]!r} is not a relative path of plain names")


def members(size: int, read: Callable[[int, int], bytes]) -> Iterator[Member]:
    """The members of an archive of `size` bytes, read by `read(offset, length)`; ImageError as soon as something is wrong.

    Members are yielded in order, and each path once.
    """
    seen: set[str] = set()
    offset = 0
    while True:
        block = read(offset, BLOCK)
        if offset == 0 and block[257:262] != b"ustar" and block != _END:
            raise ImageError("the file is empty" if not block else "it is no archive such as `adyton build` makes")
        if len(block) != BLOCK:
            raise ImageError("the archive ends in the middle of a member, or without its end marker: it was cut off")
        if block == _END:
            return
        offset += BLOCK
        member = _parse(block, offset)
        if member.path in seen:
            raise ImageError(f"the archive has {member.path[:80]!r} twice")
        if len(seen) >= MAX_MEMBERS:
            raise ImageError(f"the archive has more than {MAX_MEMBERS} members")
        if member.size > size - offset:
            raise ImageError(f"the archive ends in the middle of {member.path[:80]!r}: it was cut off")
        seen.add(member.path)
        yield member
        offset += member.size + -member.size % BLOCK


def unpack(data: bytes) -> list[Member]:
    """The members of an archive in memory, all checked before the first is returned; ImageError."""
    return list(members(len(data), lambda offset, length: data[offset : offset + length]))


def _parse(block: bytes, offset: int) -> Member:
    if _octal(block[148:156], "checksum") != sum(block) - sum(block[148:156]) + 8 * 0x20:
        raise ImageError("a header in the archive has a wrong checksum: the file is damaged, or not a tar archive")
    kind = block[156:157]
    posix, gnu = block[257:265] == _POSIX, block[257:265] == b"ustar  \0"
    if not posix and not gnu:
        raise ImageError("the archive is neither of the ustar nor of the GNU format")
    raw = _text(block[0:100])
    if posix and block[345]:
        raw = _text(block[345:500]) + b"/" + raw
    try:
        path = raw.decode()
    except UnicodeDecodeError:
        raise ImageError(f"the name {raw[:80]!r} in the archive is not UTF-8") from None
    if kind not in (_FILE, _OLD_FILE, _FOLDER):
        raise ImageError(f"{path[:80]!r} in the archive is neither a file nor a folder (type {kind!r})")
    folder = kind == _FOLDER
    if folder:
        path = path.removesuffix("/")
    check_path(path)
    size = _octal(block[124:136], "size")
    if folder and size:
        raise ImageError(f"the folder {path[:80]!r} in the archive has content")
    _octal(block[100:108], "mode")  # well-formed, and of no effect: what may be executed is the manifest's to say
    return Member(path, folder, offset, size)


def _text(field: bytes) -> bytes:
    value, _, rest = field.partition(b"\0")
    if rest.strip(b"\0"):
        raise ImageError("a name in the archive goes on after its end")
    return value


def _octal(field: bytes, what: str) -> int:
    digits = field.strip(b" \0")
    if not digits or len(digits) != len(digits.translate(None, b" \0+-_")) or digits.translate(None, b"01234567"):
        raise ImageError(f"a {what} in the archive is not an octal number")
    return int(digits, 8)
