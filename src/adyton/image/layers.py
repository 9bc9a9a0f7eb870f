"""Layers back into a folder: regular files and folders, never outside of it, never over something that is there.

A layer is measured, so nobody can change one on its way; but whoever built it may be hostile to whom unpacks it. Every name is
opened relative to its parent's descriptor without following links, and every file is created, never opened. A layer in a file is
read once, from its beginning to its end, and verified as it is read: what was unpacked counts when `unpack_layer` has returned.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from adyton.errors import ImageError, ResourceLimitError
from adyton.image.archive import Member, members

PACKAGES = "site-packages"  # folder of an unpacked image where its dependencies are: as everywhere, behind the standard library
PIECE = 1 << 20  # bytes that are read at a time

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class LayerFile:
    """A layer in a file, which somebody may have changed."""

    digest: str
    size: int
    path: str

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, unverified. ImageError: the file cannot be read."""
        return pieces_of(self.path, 0, self.size)


def pieces_of(path: str, offset: int, size: int) -> Iterator[bytes]:
    """A part of a file, or less if it ends before; ImageError: it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            while size and (piece := file.read(min(size, PIECE))):
                size -= len(piece)
                yield piece
    except OSError as error:
        raise ImageError(f"the image {path} cannot be read any more: {error.strerror}") from error


def unpack_layer(
    layer: bytes | LayerFile, directory: int | str | os.PathLike[str], programs: Collection[str] = ()
) -> None:
    """Unpack a layer (an uncompressed tar) into a folder, given by path or descriptor.

    Files get mode 0644 (0755 those whose paths are among `programs`, whatever the layer says), folders 0755, whatever the umask. ImageError: the
    layer holds what it must not, a name is taken, or the file's bytes are not the layer's; ResourceLimitError: there is
    no room. What was unpacked until then stays.
    """
    if isinstance(layer, bytes):
        file: BinaryIO = io.BytesIO(layer)
        _check(file, len(layer))
        _unpack(_Stream(file), len(layer), directory, programs)
        return
    try:
        file = open(layer.path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise ImageError(f"the layer {layer.digest} cannot be read: {error.strerror}") from error
    with file:
        unpack_file(file, layer.digest, layer.size, directory, programs)


def unpack_file(
    file: BinaryIO, digest: str, size: int, directory: int | str | os.PathLike[str], programs: Collection[str] = ()
) -> None:
    """`unpack_layer` from an open file, which is at its beginning."""
    stream = _Stream(file)
    try:
        _check(file, size)
        _unpack(stream, size, directory, programs)
    except ImageError:
        if stream.finish() != (size, digest):  # which explains what was wrong in it
            raise ImageError(f"the layer {digest} is damaged where it is stored") from None
        raise
    if stream.finish() != (size, digest):
        raise ImageError(f"the layer {digest} is damaged where it is stored")


class _Stream:
    """Bytes of a file, each read once, in order."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._state = hashlib.sha256()
        self._position = 0

    def read(self, length: int) -> bytes:
        """The next bytes: fewer at the end."""
        data = self._file.read(length)
        self._state.update(data)
        self._position += len(data)
        return data

    def at(self, offset: int, length: int) -> bytes:
        """The bytes from there on; what is before has been read or is passed over."""
        while (left := offset - self._position) > 0 and self.read(min(left, PIECE)):
            pass
        return self.read(length)

    def finish(self) -> tuple[int, str]:
        """Size and digest of the whole file."""
        while self.read(PIECE):
            pass
        return self._position, f"sha256:{self._state.hexdigest()}"


def _check(file: BinaryIO, size: int) -> None:
    """ImageError, before anything is made, for a layer that holds what it must not. The file is at its beginning again then."""

    def read(offset: int, length: int) -> bytes:
        file.seek(offset)
        return file.read(length)

    try:
        for _ in members(size, read):
            pass
    finally:
        file.seek(0)


def _unpack(stream: _Stream, size: int, directory: int | str | os.PathLike[str], programs: Collection[str]) -> None:
    root = os.dup(directory) if isinstance(directory, int) else os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    above, parent = "", os.dup(root)  # the last member's folder, which is mostly the next one's too
    try:
        for member in members(size, stream.at):
            folder, _, name = member.path.rpartition("/")
            try:
                if folder != above:
                    os.close(parent)
                    above, parent = "", -1
                    parent = _descend(root, folder)
                    above = folder
                if member.folder:
                    os.close(_folder(parent, name))
                else:
                    _file(parent, name, member, stream, 0o755 if member.path in programs else 0o644)
            except (FileExistsError, NotADirectoryError) as error:
                raise ImageError(f"the layer's {member.path!r} is where something else is already") from error
            except OSError as error:
                kind = ResourceLimitError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM) else ImageError
                raise kind(f"the layer's {member.path!r} cannot be unpacked: {error.strerror}") from error
    finally:
        os.close(root)
        if parent >= 0:
            os.close(parent)


def _descend(root: int, path: str) -> int:
    """A descriptor of the folder, whose missing parts are made."""
    current = os.dup(root)
    for name in path.split("/") if path else []:
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


def _file(parent: int, name: str, member: Member, stream: _Stream, mode: int) -> None:
    descriptor = os.open(name, _FILE_FLAGS, 0o600, dir_fd=parent)
    try:
        left = member.size
        while left:
            piece = stream.read(min(left, PIECE))
            if not piece:
                raise ImageError(f"the layer ends in the middle of {member.path!r}")
            left -= len(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(descriptor, view) :]
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
