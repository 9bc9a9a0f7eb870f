"""Operations on open files: open, create, read, write, seek, allocate, copy, fsync, close. Operations: see `view`.

What is read ahead and written behind is the business of `caching`; how much of a file the kernel caches is said when it is opened. Where a
file is opened to append, the kernel caches nothing: the client says where the end is, and the kernel would keep what was written where
it thought the end to be.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import msgspec

from adyton.hostcall import abi
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.caching.cache import Cache, Flush
from adyton.runtime.process.supervisor.fuse_abi import FileError, Header, OpenFlag
from adyton.runtime.process.supervisor.fuse_answers import OpenAnswer
from adyton.runtime.process.supervisor.handles import STANDARD_INPUT_HANDLE, Handles, OpenFile
from adyton.runtime.process.supervisor.layout import Place
from adyton.runtime.process.supervisor.locks import LockOperations
from adyton.runtime.process.supervisor.private import Directory, File
from adyton.runtime.process.supervisor.tree import Node, is_same, learn
from adyton.runtime.process.supervisor.view import (
    Body,
    Steps,
    View,
    ask,
    done,
    private_directory,
    private_file,
    right_of,
    sendable,
)
from adyton.runtime.process.supervisor.waits import Waits

_ACCESS: dict[int, abi.OpenMode] = {os.O_RDONLY: "read", os.O_WRONLY: "write", os.O_RDWR: "read-write"}
_SET_ID = 0o6000
_ALLOCATIONS: dict[int, abi.Allocation] = {  # linux/falloc.h
    0: "extend",
    0x01: "keep-size",
    0x02 | 0x01: "punch-hole",
    0x08: "collapse",
    0x10: "zero",
    0x10 | 0x01: "zero-keep-size",
    0x20: "insert",
    0x40: "unshare",
}


class OpenOperations:
    """See the module."""

    def __init__(self, view: View, handles: Handles, locks: LockOperations, cache: Cache, waits: Waits) -> None:
        self._view = view
        self._cache = cache
        self._waits = waits
        self._tree = view.tree
        self._handles = handles
        self._locks = locks

    # -- opening ----------------------------------------------------------------------------------------------------

    def open(self, header: Header, body: fuse_abi.Open) -> Steps:
        """Opens a file that is there."""
        node = self._tree.get(header.node)
        if node.private is not None:
            return (yield from self._open_private(node, body.flags))
        if node is self._tree.standard_input:
            return _open_standard_input(body.flags)
        if node.own:
            raise FileError(errno.EISDIR)
        path = node.path
        if path is None:
            return (yield from self._open_again(node, body.flags))
        if self._view.place(path) is not Place.CLIENT:
            yield from self._view.denied(header, path, right_of(body.flags))
        name = next(iter(node.names))
        number = self._handles.reserve()
        try:
            try:
                attributes = yield from ask(_open_request(path, number, body.flags), abi.Attributes)
            except FileError as error:
                if error.number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
                    raise self._gone(node, name) from None
                raise
            if not is_same(node, attributes):
                self._view.tells.append(abi.Close(number))
                raise self._gone(node, name)
            learn(node, attributes)
            return self._opened(number, node, body.flags)
        finally:
            self._handles.release(number)

    def _gone(self, node: Node, name: tuple[Node, str]) -> FileError:
        """It was removed or replaced since the look-up: the kernel looks again, and opens or makes what is there then.

        Where no name led to it, but /proc/self/fd, it comes back with this very node: then that has no name any more.
        """
        if name[0].children.get(name[1]) is node:
            self._tree.gone(*name)
        return FileError(errno.ESTALE)

    def _open_again(self, node: Node, flags: int) -> Steps:
        """Opens a file that has no name by what is open of it; ESTALE if nothing is."""
        number = self._handles.reserve()
        try:
            request = abi.OpenAgain(
                sendable(node.last_path),
                number,
                number,
                _access(flags),
                truncate=bool(flags & os.O_TRUNC),
                append=bool(flags & os.O_APPEND),
            )
            attributes = yield from self._handles.ask_open(
                node, lambda opened: msgspec.structs.replace(request, opened=opened), abi.Attributes
            )
            if attributes is None:
                raise FileError(errno.ESTALE)
            if not is_same(node, attributes):
                self._view.tells.append(abi.Close(number))
                raise FileError(errno.EIO)
            learn(node, attributes)
            return self._opened(number, node, flags)
        finally:
            self._handles.release(number)

    def create(self, header: Header, body: fuse_abi.Create) -> Steps:
        """Opens, and makes the file if it is not there."""
        parent = self._tree.get(header.node)
        name, path = self._view.child_path(parent, body.name)
        mode, umask = body.mode & 0o7777, body.umask & 0o777
        match self._view.place(path):
            case Place.OWN:
                raise FileError(errno.EACCES)
            case Place.PRIVATE:
                return (yield from self._create_private(parent, name, body.flags, mode & ~umask))
            case Place.LEADING | Place.OUTSIDE:
                yield from self._view.denied(header, path, "write")
        number = self._handles.reserve()
        try:
            request = _open_request(path, number, body.flags, create=True, mode=mode, umask=umask)
            attributes = yield from ask(request, abi.Attributes)
            with self._closing(number):
                node = self._tree.found_client(parent, name, attributes)
            return self._view.entry(node) + self._opened(number, node, body.flags)
        finally:
            self._handles.release(number)

    @contextmanager
    def _closing(self, number: int) -> Iterator[None]:
        """What the client has opened is closed if it cannot be taken in."""
        try:
            yield
        except FileError:
            self._view.tells.append(abi.Close(number))
            raise

    def _opened(self, number: int, node: Node, flags: int) -> bytes:
        appends = bool(flags & os.O_APPEND)
        self._handles.add(OpenFile(number, node, _access(flags), appends))
        return fuse_answers.pack_open(OpenAnswer(number, self._treatment(number, appends=appends)))

    def _treatment(self, number: int, *, appends: bool) -> OpenFlag:
        """What the kernel may cache of an open file of the client's."""
        if self._cache.opening.caches(number):
            kept = self._cache.opening.keeps(number)
            return OpenFlag.DIRECT_IO if appends else OpenFlag.KEEP_CACHE if kept else OpenFlag.NONE
        return OpenFlag.DIRECT_IO if appends or self._view.direct else OpenFlag.NONE

    def tmpfile(self, header: Header, body: fuse_abi.Create) -> Steps:
        """Opens a new file without a name, in the file system of a directory."""
        parent = self._tree.get(header.node)
        path = self._tree.path(parent)
        mode, umask = body.mode & 0o7777, body.umask & 0o777
        access = _access(body.flags)
        if access == "read":
            raise FileError(errno.EINVAL)
        if parent.private is not None:
            files = parent.private.files
            file = files.make_unnamed(mode & ~umask)
            try:
                node = self._tree.unnamed(file)
                opened = yield from self._open_private(node, body.flags)
            finally:
                files.close(file)
            return self._view.entry(node) + opened
        place = self._view.place(path)
        if place is not Place.CLIENT:
            if parent.own or place is Place.OWN:
                raise FileError(errno.EACCES)
            yield from self._view.denied(header, path, "write")
        number = self._handles.reserve()
        try:
            request = abi.OpenUnnamed(
                sendable(path),
                number,
                access,
                append=bool(body.flags & os.O_APPEND),
                linkable=not body.flags & os.O_EXCL,
                mode=mode,
                umask=umask,
            )
            attributes = yield from ask(request, abi.Attributes)
            with self._closing(number):
                node = self._tree.unnamed(attributes)
            node.left = path
            return self._view.entry(node) + self._opened(number, node, body.flags)
        finally:
            self._handles.release(number)

    def _create_private(self, parent: Node, name: str, flags: int, mode: int) -> Steps:
        _access(flags)  # before anything is made
        directory = private_directory(parent)
        existing = directory.entries.get(name)
        if existing is None:
            inode = directory.files.make_file(directory, name, mode)
        elif flags & os.O_EXCL:
            raise FileError(errno.EEXIST)
        elif not isinstance(existing, File):
            raise FileError(errno.EISDIR if isinstance(existing, Directory) else errno.ELOOP)
        else:
            inode = existing
        node = self._tree.found_private(parent, name, inode)
        opened = yield from self._open_private(node, flags)
        return self._view.entry(node) + opened

    def _open_private(self, node: Node, flags: int) -> Steps:
        file, access = private_file(node), _access(flags)
        number = self._handles.reserve()
        try:
            file.files.open(file)
            try:
                if flags & os.O_TRUNC:
                    yield from done(file.files.resize(file, 0))
            except BaseException:
                file.files.close(file)
                raise
            self._handles.add(OpenFile(number, node, access, bool(flags & os.O_APPEND), private=file))
        finally:
            self._handles.release(number)
        return fuse_answers.pack_open(OpenAnswer(number, OpenFlag.KEEP_CACHE))

    # -- content ----------------------------------------------------------------------------------------------------

    def read(self, _header: Header, body: fuse_abi.Read) -> Steps | Body:
        """At most `size` bytes; fewer are the end of the file, to the kernel too. There are many, so most are done in one step."""
        opened = self._handles.file(body.handle)
        if opened.private is not None:
            return opened.private.files.read(opened.private, body.offset, body.size)
        here = self._cache.read_here(opened.number, body.offset, body.size)
        if here is None:
            return self._read(opened, body)
        self._waits.hit()
        return here

    def _read(self, opened: OpenFile, body: fuse_abi.Read) -> Steps:
        parts: list[bytes] = []
        done = 0
        while done < body.size:
            size = min(body.size - done, abi.MAX_BLOCK)
            part = (yield from ask(abi.Read(opened.number, body.offset + done, size), abi.Data)).data
            parts.append(part)
            done += len(part)
            if len(part) < size:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, _header: Header, body: fuse_abi.Write) -> Steps | bytes:
        """At the offset, or at the end in append mode; may be less than all of it. There are many, so most are done in one step."""
        opened = self._handles.file(body.handle)
        if opened.private is not None:
            file = opened.private
            if body.write_flags & fuse_abi.WRITE_KILL_SUIDGID and file.mode & _SET_ID:
                file.files.set_attributes(file, mode=file.mode & ~_SET_ID)
            offset = body.offset
            if opened.append and not body.write_flags & fuse_abi.WRITE_CACHE and body.flags & os.O_APPEND:
                offset = file.size
            written = file.files.write(file, offset, body.data)
            return fuse_answers.pack_written(written) if isinstance(written, int) else _written(written)
        if (
            not opened.append
            and len(body.data) <= abi.MAX_BLOCK
            and self._cache.write_behind(opened.number, body.offset, body.data)
        ):
            self._waits.hit()
            return fuse_answers.pack_written(len(body.data))
        return self._write(opened, body)

    def _write(self, opened: OpenFile, body: fuse_abi.Write) -> Steps:
        handle = opened.number
        if opened.append and (body.write_flags & fuse_abi.WRITE_CACHE or not body.flags & os.O_APPEND):
            handle = yield from self._positional(opened)
        data = body.data[: abi.MAX_BLOCK]
        written = (yield from ask(abi.Write(handle, body.offset, data), abi.Written)).size
        return fuse_answers.pack_written(written)

    def _positional(self, opened: OpenFile) -> Generator[abi.Request, abi.Result, int]:
        """A handle for a write that has its place (a page of a mapping) though the file was opened to append: that would move it."""
        if opened.positional is None:
            number = self._handles.reserve()
            try:
                # Not by its name: it may have none, or one whose way permissions have closed since.
                request = abi.OpenAgain(sendable(opened.node.last_path), opened.number, number, "write")
                attributes = yield from ask(request, abi.Attributes)
                if is_same(opened.node, attributes) and opened.positional is None:
                    opened.positional = number
                else:
                    self._view.tells.append(abi.Close(number))
            finally:
                if opened.positional != number:
                    self._handles.release(number)
        if opened.positional is None:
            raise FileError(errno.ESTALE)
        return opened.positional

    def fsync(self, _header: Header, body: fuse_abi.Sync) -> Steps:
        """Durable on the client when answered."""
        opened = self._handles.file(body.handle)
        if opened.private is not None:
            yield from done(opened.private.files.sync())
        else:
            data_only = bool(body.flags & fuse_abi.FSYNC_DATA_ONLY)
            yield from ask(abi.Sync(opened.number, data_only), abi.Done)
        return b""

    def lseek(self, _header: Header, body: fuse_abi.Seek) -> Steps:
        """Where data or a hole begins. Private files have no holes but at their end. ENXIO beyond that."""
        opened = self._handles.file(body.handle)
        if body.whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise FileError(errno.EINVAL)
        if body.offset > fuse_abi.LARGEST:
            raise FileError(errno.ENXIO)
        what: Literal["data", "hole"] = "data" if body.whence == os.SEEK_DATA else "hole"
        if opened.private is not None:
            if body.offset >= opened.private.size:
                raise FileError(errno.ENXIO)
            return fuse_answers.pack_offset(body.offset if what == "data" else opened.private.size)
        position = yield from ask(abi.Seek(opened.number, body.offset, what), abi.Position)
        return fuse_answers.pack_offset(position.offset)

    def fallocate(self, _header: Header, body: fuse_abi.Allocate) -> Steps:
        """Room, zeros or holes."""
        opened = self._handles.file(body.handle)
        way = _ALLOCATIONS.get(body.mode)
        if way is None:
            raise FileError(errno.EOPNOTSUPP)
        if body.offset + body.size > fuse_abi.LARGEST:
            raise FileError(errno.EFBIG)
        if opened.access == "read":
            raise FileError(errno.EBADF)
        if opened.private is not None:
            yield from done(opened.private.files.allocate(opened.private, way, body.offset, body.size))
        else:
            yield from ask(abi.Allocate(opened.number, way, body.offset, body.size), abi.Done)
        return b""

    def copy_file_range(self, header: Header, body: fuse_abi.Copy) -> Steps:
        """From one file to another on the same side; EXDEV from one side to the other: the kernel then reads and writes."""
        copied = yield from self._copy(header, body)
        return fuse_answers.pack_written(copied)

    def copy_file_range_64(self, header: Header, body: fuse_abi.Copy) -> Steps:
        """The same, of newer kernels."""
        copied = yield from self._copy(header, body)
        return fuse_answers.pack_offset(copied)

    def _copy(self, _header: Header, body: fuse_abi.Copy) -> Generator[abi.Request, abi.Result, int]:
        source, target = self._handles.file(body.handle), self._handles.file(body.target)
        size = min(body.size, abi.MAX_COPY)
        if body.flags or max(body.offset, body.target_offset) + size > fuse_abi.LARGEST:
            raise FileError(errno.EINVAL)
        if source.private is not None and target.private is not None:
            size = min(size, abi.MAX_BLOCK) if source.private.stored or target.private.stored else size
            data = yield from done(source.private.files.read(source.private, body.offset, size))
            if not data:
                return 0
            return (yield from done(target.private.files.write(target.private, body.target_offset, data)))
        if source.private is not None or target.private is not None or target.append:
            raise FileError(errno.EXDEV)
        request = abi.Copy(source.number, body.offset, target.number, body.target_offset, size)
        return (yield from ask(request, abi.Copied)).size

    def flush(self, header: Header, body: fuse_abi.Flush) -> Steps:
        """A descriptor is closed: what was written has reached the client, or what went wrong is said here; and locks go."""
        error: FileError | None = None
        if body.handle != STANDARD_INPUT_HANDLE and self._handles.file(body.handle).private is None:
            try:
                yield from ask(Flush(body.handle), abi.Done)
            except FileError as failed:
                error = failed
        yield from self._locks.flush(header, body)
        if error is not None:
            raise error
        return b""

    def release(self, _header: Header, body: fuse_abi.Release) -> Steps:
        """The last descriptor of an open file is closed. Nobody waits for the client; but others for the locks that go with it."""
        if body.handle == STANDARD_INPUT_HANDLE:
            return b""
        opened = self._handles.file(body.handle)
        self._handles.remove(opened)
        if opened.private is not None:
            opened.private.files.close(opened.private)
            self._locks.released(opened)
            return b""
        if opened.positional is not None:
            self._view.tells.append(abi.Close(opened.positional))
            self._handles.release(opened.positional)
        if not opened.locked:
            self._view.tells.append(abi.Close(opened.number))
            return b""
        yield from self._locks.release(opened)
        return b""


def _written(steps: Generator[Any, Any, int]) -> Steps:
    return fuse_answers.pack_written((yield from steps))


def _access(flags: int) -> abi.OpenMode:
    """EINVAL for the fourth mode, which some kernels' device drivers know: open(2)."""
    access = _ACCESS.get(flags & os.O_ACCMODE)
    if access is None:
        raise FileError(errno.EINVAL)
    return access


def _open_standard_input(flags: int) -> bytes:
    """Its reads are served by `files`."""
    if _access(flags) != "read":
        raise FileError(errno.EACCES)
    treatment = OpenFlag.DIRECT_IO | OpenFlag.NONSEEKABLE | OpenFlag.STREAM | OpenFlag.NOFLUSH
    return fuse_answers.pack_open(OpenAnswer(STANDARD_INPUT_HANDLE, treatment))


def _open_request(
    path: str, number: int, flags: int, *, create: bool = False, mode: int = 0o644, umask: int = 0
) -> abi.Open:
    return abi.Open(
        sendable(path),
        number,
        _access(flags),
        create=create,
        exclusive=create and bool(flags & os.O_EXCL),
        truncate=bool(flags & os.O_TRUNC),
        append=bool(flags & os.O_APPEND),
        mode=mode,
        umask=umask,
    )
