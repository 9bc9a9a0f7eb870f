"""Files reached without following a symbolic link anywhere on the way, and the system calls that Python's `os` lacks.

A path is taken apart by the kernel once, from a descriptor of "/", with openat2(2) and RESOLVE_NO_SYMLINKS (which implies
RESOLVE_NO_MAGICLINKS) and RESOLVE_BENEATH. Where openat2 is missing (Linux before 5.6, and some containers' filters) the path is
walked with O_NOFOLLOW, one descriptor per directory. Either way a directory that is swapped for a symbolic link between two calls,
or in the middle of one, leads nowhere: EACCES. All further work goes through the descriptor that was got, never through the path
again.

Sources: openat2(2), renameat2(2), utimensat(2), statx(2), fallocate(2), statfs(2), linux/openat2.h, linux/magic.h, linux/falloc.h,
linux/stat.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from adyton.hostcall import abi
from adyton.hostcall.client.paths import split

_SYS_OPENAT2 = 437  # the same number on every architecture
_RESOLVE = 0x02 | 0x04 | 0x08  # NO_MAGICLINKS | NO_SYMLINKS | BENEATH
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_UTIME_NOW = (1 << 30) - 1
_UTIME_OMIT = (1 << 30) - 2
_AT_SYMLINK_NOFOLLOW = 0x100
_DEFAULT_ACL = "system.posix_acl_default"  # acl(5)
_PROC_SUPER_MAGIC = 0x9FA0
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_ATTEMPTS = 8  # openat2 may ask for another when names are renamed meanwhile


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _openat2(directory: int, path: str, flags: int) -> int:
    how = _OpenHow(flags, 0, _RESOLVE)
    arguments = (
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(directory),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    attempts = 0
    while True:
        try:
            return _check(_libc.syscall(*arguments))
        except InterruptedError:
            continue
        except BlockingIOError:
            attempts += 1
            if attempts == _ATTEMPTS:
                raise


def has_openat2() -> bool:
    """Whether this kernel, and whatever filters this process is under, know openat2."""
    try:
        os.close(_openat2(-100, ".", _DIRECTORY))
    except OSError:
        return False
    return True


class ConfinedTree:
    """The file tree from "/" on, without its symbolic links. Paths are absolute and normalised; thread-safe.

    A symbolic link where a directory or file is to be opened is EACCES; all else is as the operating system says.
    """

    def __init__(self, *, walk: bool | None = None) -> None:
        """`walk`: do (True) or do not (False) without openat2; None: as this machine allows."""
        self._walk = not has_openat2() if walk is None else walk
        self._root = os.open("/", _DIRECTORY)

    def close(self) -> None:
        """Give the root's descriptor back. Nothing can be opened afterwards: EBADF."""
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    @contextmanager
    def parent(self, path: str) -> Iterator[tuple[int, str]]:
        """A descriptor of the directory that holds `path`, for *at calls only, and the last name."""
        directory, name = split(path)
        descriptor = self._open(directory, _DIRECTORY)
        try:
            yield descriptor, name
        finally:
            os.close(descriptor)

    def enter_directory(self, path: str) -> int:
        """A descriptor of the directory `path`, for *at calls only."""
        return self._open(path, _DIRECTORY)

    def list_directory(self, path: str) -> int:
        """A descriptor of the directory `path` that can be listed."""
        return self._open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_file(self, path: str, flags: int, mode: int = 0, umask: int = 0) -> int:
        """A descriptor of the regular file `path`. Anything else: EISDIR for a directory, else EACCES, mostly before it is opened."""
        with self.parent(path) as (directory, name):
            status = _status(directory, name)
            if status is None and not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if status is not None:
                if flags & os.O_CREAT and flags & os.O_EXCL:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                _check_regular(status)
            flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
            descriptor = _refuse_links(lambda: _open_or_make(directory, name, flags, mode, umask))
        try:
            _check_regular(os.fstat(descriptor))
            if is_procfs(descriptor):
                raise PermissionError(errno.EACCES, "a file of procfs is not the client's to give")
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def open_unnamed(self, directory: str, flags: int, mode: int, umask: int) -> int:
        """A descriptor of a new file without a name, in the file system of a directory; EOPNOTSUPP where that has none."""
        above = self._open(directory, _DIRECTORY)
        try:
            mode = _masked(above, mode, umask)
            descriptor = os.open(".", flags | os.O_TMPFILE | os.O_CLOEXEC, mode, dir_fd=above)
            _complete_mode(above, descriptor, mode)
            return descriptor
        finally:
            os.close(above)

    @contextmanager
    def found(self, path: str) -> Iterator[int]:
        """A descriptor (of O_PATH) of what is at `path`, itself if that is a symbolic link."""
        with self.parent(path) as (directory, name):
            descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, path: str, flags: int) -> int:
        if self._walk:
            return self._open_walking([name for name in path.split("/") if name], flags)
        return _refuse_links(lambda: _openat2(self._root, path[1:] or ".", flags))

    def _open_walking(self, names: list[str], flags: int) -> int:
        descriptor = os.open(".", _DIRECTORY, dir_fd=self._root)
        try:
            for name in names:
                below = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
                kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
                if kind == stat.S_IFLNK:
                    raise _link_refused()
                if kind != stat.S_IFDIR:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return os.open(".", flags, dir_fd=descriptor)
        finally:
            os.close(descriptor)


def _refuse_links(opening: Callable[[], int]) -> int:
    try:
        return opening()
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EXDEV}:
            raise _link_refused() from error
        raise


def _link_refused() -> PermissionError:
    return PermissionError(errno.EACCES, "a symbolic link is not followed here")


def _status(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _check_regular(status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise PermissionError(errno.EACCES, "not a regular file")


def is_procfs(descriptor: int) -> bool:
    """Whether an open file is procfs's, wherever that is mounted: its files are this very process's memory and secrets."""
    buffer = (ctypes.c_long * 64)()  # struct statfs: f_type is its first word, on x86-64 and arm64
    _check(_libc.fstatfs(ctypes.c_int(descriptor), buffer))
    return int(buffer[0]) == _PROC_SUPER_MAGIC


def rename(source: tuple[int, str], target: tuple[int, str], *, replace: bool = True, exchange: bool = False) -> None:
    """renameat2 of (directory's descriptor, name) pairs; not `replace`: EEXIST if the target is there; `exchange`: ENOENT if not."""
    if replace and not exchange:
        os.rename(source[1], target[1], src_dir_fd=source[0], dst_dir_fd=target[0])
        return
    if not hasattr(_libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    _check(
        _libc.renameat2(
            ctypes.c_int(source[0]),
            ctypes.c_char_p(os.fsencode(source[1])),
            ctypes.c_int(target[0]),
            ctypes.c_char_p(os.fsencode(target[1])),
            ctypes.c_uint(_RENAME_EXCHANGE * exchange | _RENAME_NOREPLACE * (not replace)),
        )
    )


Instant = int | Literal["now"] | None  # nanoseconds since the epoch; None: leave as it is


def set_times(directory: int, name: str, accessed: Instant, modified: Instant) -> None:
    """Set the times of `name` in a directory, itself if it is a symbolic link; of the descriptor `directory` if `name` is ""."""
    times = (_Timespec * 2)(_timespec(accessed), _timespec(modified))
    if name:
        path = ctypes.c_char_p(os.fsencode(name))
        _check(_libc.utimensat(ctypes.c_int(directory), path, times, ctypes.c_int(_AT_SYMLINK_NOFOLLOW)))
    else:
        _check(_libc.futimens(ctypes.c_int(directory), times))


def _timespec(instant: Instant) -> _Timespec:
    if instant is None:
        return _Timespec(0, _UTIME_OMIT)
    if instant == "now":
        return _Timespec(0, _UTIME_NOW)
    return _Timespec(*divmod(instant, 1_000_000_000))


def set_mode(directory: int, name: str, mode: int) -> None:
    """Set the permission bits of the regular file or directory `name` in a directory; EOPNOTSUPP for anything else."""
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind not in {stat.S_IFREG, stat.S_IFDIR}:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        check_set_id(kind, mode)
        os.chmod(f"/proc/self/fd/{descriptor}", mode)  # the only way to a descriptor of O_PATH: fchmodat(2)
    finally:
        os.close(descriptor)


def make_directory(directory: int, name: str, mode: int, umask: int) -> None:
    """Make the directory `name` with these permission bits under the maker's umask, whatever this process' own."""
    mode = _masked(directory, mode, umask)
    os.mkdir(name, mode, dir_fd=directory)
    made = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        _complete_mode(directory, made, mode)
    finally:
        os.close(made)


def _open_or_make(directory: int, name: str, flags: int, mode: int, umask: int) -> int:
    """As openat(2) under the maker's umask, whatever this process' own."""
    if not flags & os.O_CREAT:
        return os.open(name, flags, dir_fd=directory)
    mode = _masked(directory, mode, umask)
    try:
        descriptor = os.open(name, flags | os.O_EXCL, mode, dir_fd=directory)
    except FileExistsError:
        if flags & os.O_EXCL:
            raise
        # Still with O_CREAT, so that fs.protected_regular keeps what others have laid ready from being taken for one's own: proc_sys_fs(5).
        return os.open(name, flags, mode, dir_fd=directory)
    _complete_mode(directory, descriptor, mode)
    return descriptor


def _masked(directory: int, mode: int, umask: int) -> int:
    """The permission bits to make a file with. Where the directory has a default ACL, no umask is applied: umask(2)."""
    return mode if not mode & umask or _has_default_acl(directory) else mode & ~umask


def _has_default_acl(directory: int) -> bool:
    try:
        os.getxattr(by_descriptor(directory), _DEFAULT_ACL)
    except OSError:
        return False
    return True


def _complete_mode(directory: int, made: int, mode: int) -> None:
    """Give what was just made the permission bits that this process' umask, which is not the maker's, has taken.

    The umask is a process' and not a thread's, so it is not set meanwhile. Where the directory has a default ACL, no umask was
    applied (umask(2)); a file system without permission bits stays as it is.
    """
    has = stat.S_IMODE(os.fstat(made).st_mode)
    missing = mode & 0o777 & ~has
    if not missing:
        return
    if not _has_default_acl(directory):
        with suppress(OSError):
            os.chmod(by_descriptor(made), has | missing)


def check_set_id(kind: int, mode: int) -> None:
    """EPERM for a file that would run as its owner or group: what an enclave writes must not gain the client's rights."""
    if not stat.S_ISDIR(kind) and mode & (stat.S_ISUID | stat.S_ISGID):
        raise PermissionError(errno.EPERM, "an enclave makes no set-user-id or set-group-id files")


def by_descriptor(descriptor: int) -> str:
    """A path of what is open, for calls that take no descriptor, or none of O_PATH. proc_pid_fd(5)."""
    return f"/proc/self/fd/{descriptor}"


_WAYS: dict[abi.Allocation, int] = {  # FALLOC_FL_…
    "extend": 0,
    "keep-size": 0x01,
    "punch-hole": 0x02 | 0x01,
    "collapse": 0x08,
    "zero": 0x10,
    "zero-keep-size": 0x10 | 0x01,
    "insert": 0x20,
    "unshare": 0x40,
}


def allocate(descriptor: int, way: abi.Allocation, offset: int, size: int) -> None:
    """fallocate of an open file."""
    _check(
        _libc.fallocate(
            ctypes.c_int(descriptor), ctypes.c_int(_WAYS[way]), ctypes.c_int64(offset), ctypes.c_int64(size)
        )
    )


_STATX_INO, _STATX_BTIME = 0x100, 0x800
_AT_EMPTY_PATH = 0x1000
_INODE, _BORN = 32, 80  # where struct statx holds stx_ino, and stx_btime: seconds, nanoseconds


def born(descriptor: int, name: str = "") -> tuple[int, int | None]:
    """The inode number of what is open, or has this name in the directory that is, and when it was made, in nanoseconds.

    0, None: its file system, or this C library, does not know, or there is nothing of that name.
    """
    if not hasattr(_libc, "statx"):
        return 0, None
    buffer = ctypes.create_string_buffer(256)
    arguments = (
        ctypes.c_int(descriptor),
        ctypes.c_char_p(os.fsencode(name)),
        ctypes.c_int(_AT_EMPTY_PATH | _AT_SYMLINK_NOFOLLOW),
        ctypes.c_uint(_STATX_INO | _STATX_BTIME),
        buffer,
    )
    if _libc.statx(*arguments):
        return 0, None
    (mask,) = struct.unpack_from("<I", buffer.raw)
    if not mask & _STATX_BTIME:
        return 0, None
    (inode,) = struct.unpack_from("<Q", buffer.raw, _INODE)
    seconds, nanoseconds = struct.unpack_from("<qI", buffer.raw, _BORN)
    return int(inode), int(seconds) * 1_000_000_000 + int(nanoseconds)
