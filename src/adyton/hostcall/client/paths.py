"""Spellings of paths: checked when they come from an enclave, resolved when they come from a policy, escaped when they are shown.

Nothing here opens a file or decides what is allowed. The paths of host calls are absolute and normalised (see adyton.hostcall.abi); a
path of a policy may be spelt in any way that the operating system takes.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator

from adyton.errors import UsageError
from adyton.hostcall.abi import MAX_PATH

MAX_LINKS = 40  # symbolic links followed in one resolution, as the kernel does: path_resolution(7)


def is_normalised(path: str) -> bool:
    """Whether `path` is one that a host call may carry: absolute, without ".", "..", empty names and NUL."""
    if path == "/":
        return True
    if not path.startswith("/") or "\0" in path or len(path) > MAX_PATH:
        return False
    return all(name not in {"", ".", ".."} for name in path[1:].split("/"))


def is_utf8(name: str) -> bool:
    """Whether a name that the operating system gave is UTF-8 (Python stands in surrogates for what is not), as the layout carries it."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def join(directory: str, name: str) -> str:
    """The normalised path of `name` in the normalised `directory`."""
    return f"/{name}" if directory == "/" else f"{directory}/{name}"


def split(path: str) -> tuple[str, str]:
    """Directory and last name of a normalised path; ("/", ".") for "/"."""
    directory, _, name = path.rpartition("/")
    return directory or "/", name or "."


def upwards(path: str) -> Iterator[str]:
    """A normalised path and all above it, "/" last."""
    while path != "/":
        yield path
        path = split(path)[0]
    yield "/"


def visible(text: str) -> str:
    """`text` with all that is not printable escaped, so that a hostile name cannot write to a terminal what it likes."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def quoted(text: str) -> str:
    """`text` as one argument of a shell's command line; escaped as `visible` does where it could not be shown."""
    return shlex.quote(visible(text) if not text.isprintable() else text)


def absolute(path: str | os.PathLike[str], base: str, where: str) -> str:
    """A policy's path made absolute: below `base` if it is relative. UsageError, beginning with `where`, if it is no path at all."""
    if not isinstance(path, str | bytes | os.PathLike):
        raise UsageError(f"{where}: {path!r} is no path")
    spelt = os.fspath(path)
    if not isinstance(spelt, str):
        raise UsageError(f"{where}: {spelt!r} is no text; write the path as a string")
    if not spelt:
        raise UsageError(f'{where}: an empty path; write "." for the current folder')
    if "\0" in spelt:
        raise UsageError(f"{where}: the path {spelt!r} holds a NUL, which no path can")
    try:
        spelt.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where}: the path {spelt!r} is not UTF-8, which only names below an allowed folder may be: rename it, or allow the folder"
        ) from error
    joined = os.path.join(base, spelt)
    if len(joined) > MAX_PATH:
        raise UsageError(f"{where}: a path of {len(joined)} characters; at most {MAX_PATH} are possible")
    return joined


def spellings(path: str) -> list[str]:
    """All spellings under which an absolute path is met while its symbolic links are followed: as given first, resolved last.

    `/a/link/x`, where /a/link leads to /b and /b to /c, gives /a/link/x, /b/x and /c/x. Each is normalised. ".." goes to the parent of
    what the path before it leads to, as in the kernel. What does not exist is left as it is spelt. OSError(ELOOP) for a circle.
    """
    found: dict[str, None] = {}
    done = "/"  # holds no symbolic link
    rest = _names(path)
    links = 0
    while True:
        if ".." not in rest:
            found[_below(done, rest)] = None
        if not rest:
            return list(found)
        name = rest.pop(0)
        if name == "..":
            done = split(done)[0]
            continue
        here = join(done, name)
        target = _link(here)
        if target is None:
            done = here
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(40, "Too many levels of symbolic links", path)
        if target.startswith("/"):
            done = "/"
        rest = _names(target) + rest


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in {"", "."}]


def _below(directory: str, names: list[str]) -> str:
    for name in names:
        directory = join(directory, name)
    return directory


def _link(path: str) -> str | None:
    try:
        return os.readlink(path) if stat.S_ISLNK(os.lstat(path).st_mode) else None
    except OSError:
        return None  # missing, or not ours to see: nothing to follow
