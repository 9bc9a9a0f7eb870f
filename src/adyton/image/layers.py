"""Layers back into a folder: regular files and folders, never outside of it, never over something that is there.

A layer is measured, so nobody can change one on its way; but whoever built it may be hostile to whom unpacks it. Every name is
opened relative to its parent's descriptor without following links, and every file is created, never opened.
"""

from __future__ import annotations

import os

from adyton.errors import ImageError
from adyton.image.archive import Member, unpack

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def unpack_layer(data: bytes, directory: int | str | os.PathLike[str]) -> None:
    """Unpack a layer (an uncompressed tar) into a folder, given by path or descriptor.

    Files get mode 0644 (0755 if the layer says that somebody may execute them), folders 0755, whatever the umask. ImageError: the
    layer holds what it must not, or a name is taken; what was unpacked until then stays.
    """
    found = unpack(data)
    own = not isinstance(directory, int)
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if own else int(directory)  # type: ignore[arg-type]
    try:
        for member in found:
            _place(member, data, root)
    finally:
        if own:
            os.close(root)


def _place(member: Member, data: bytes, root: int) -> None:
    *above, name = member.path.split("/")
    try:
        parent = _descend(root, above)
        try:
            if member.folder:
                os.close(_folder(parent, name))
            else:
                _file(parent, name, member, data)
        finally:
            os.close(parent)
    except (FileExistsError, NotADirectoryError) as error:
        raise ImageError(f"the layer's {member.path!r} is where something else is already") from error
    except OSError as error:
        raise ImageError(f"the layer's {member.path!r} cannot be unpacked: {error.strerror}") from error


def _descend(root: int, names: list[str]) -> int:
    """A descriptor of the folder, whose missing parts are made."""
    current = os.dup(root)
    for name in names:
        try:
            below = _folder(current, name)
        finally:
            os.close(current)
        current = below
    return current


def _folder(parent: int, name: str) -> int:
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        return os.open(name, _FOLDER_FLAGS, dir_fd=parent)
    made = os.open(name, _FOLDER_FLAGS, dir_fd=parent)
    os.fchmod(made, 0o755)
    return made


def _file(parent: int, name: str, member: Member, data: bytes) -> None:
    descriptor = os.open(name, _FILE_FLAGS, 0o600, dir_fd=parent)
    try:
        view = memoryview(data)[member.offset : member.offset + member.size]
        while view:
            view = view[os.write(descriptor, view) :]
        os.fchmod(descriptor, 0o755 if member.executable else 0o644)
    finally:
        os.close(descriptor)
