"""What a thread of the guest wants to open, read from where it waits in the kernel.

The kernel looks names up one by one: a program that opens /home/ann/.netrc is refused at /home already, and a denial that says
"/home" helps nobody. While the look-up waits for its answer the thread waits in its system call, whose arguments say the whole path
and whether it is to be read or written.

It is a hint and nothing else: the guest can change its memory at any time. A hint can change which denial the client's owner reads,
never what is allowed. Memory that is a mapped file is left alone if this process serves the file: a page of it, were it not there, would
have to be asked of this very process while it waits for the page. (Where a guest maps one in the moment between look and copy, there is no
hint, see rescue.) Which file systems are served, the guest's mounts say, which no program of it can change.
Source: proc_pid_syscall(5), proc_pid_mem(5), proc_pid_maps(5), proc_pid_mountinfo(5); argument orders as in the syscalls' man pages.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import posixpath
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from adyton.hostcall import abi
from adyton.hostcall.names import in_text
from adyton.runtime.process.supervisor.layout import is_normal
from adyton.runtime.process.supervisor.looks import looking
from adyton.runtime.process.supervisor.notifications import Note

AT_FDCWD = -100
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ACCESS_WRITE = 2  # W_OK
_LOOKS, _LOOK_SECONDS = 20, 0.0005
MAX_THREADS = 4096  # looked at to find one
_HOW_FLAGS = 8  # bytes at the start of struct open_how
_MOUNTS = 1 << 20  # bytes, of which a guest's mounts take a few thousand

Way = Literal["read", "write", "flags", "how", "mode"]


@dataclass(frozen=True)
class Wanted:
    path: str
    right: Literal["read", "write"]


class PathCall(NamedTuple):
    """A system call that takes paths. `paths`: for each, the arguments that hold its directory (None: the working one) and it.

    `way`: read or write; or told by the open flags, by the struct open_how or by the access mode in argument `argument`.
    """

    x86_64: int | None
    arm64: int | None
    paths: tuple[tuple[int | None, int], ...]
    way: Way
    argument: int = 0


_FIRST: tuple[tuple[int | None, int], ...] = ((None, 0),)
_AT: tuple[tuple[int | None, int], ...] = ((0, 1),)

# Numbers: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h.
CALLS: tuple[PathCall, ...] = (
    PathCall(2, None, _FIRST, "flags", 1),  # open
    PathCall(4, None, _FIRST, "read"),  # stat
    PathCall(6, None, _FIRST, "read"),  # lstat
    PathCall(21, None, _FIRST, "mode", 1),  # access
    PathCall(76, 45, _FIRST, "write"),  # truncate
    PathCall(80, 49, _FIRST, "read"),  # chdir
    PathCall(82, None, ((None, 0), (None, 1)), "write"),  # rename
    PathCall(83, None, _FIRST, "write"),  # mkdir
    PathCall(84, None, _FIRST, "write"),  # rmdir
    PathCall(85, None, _FIRST, "write"),  # creat
    PathCall(86, None, ((None, 0), (None, 1)), "write"),  # link
    PathCall(87, None, _FIRST, "write"),  # unlink
    PathCall(88, None, ((None, 1),), "write"),  # symlink
    PathCall(89, None, _FIRST, "read"),  # readlink
    PathCall(90, None, _FIRST, "write"),  # chmod
    PathCall(92, None, _FIRST, "write"),  # chown
    PathCall(94, None, _FIRST, "write"),  # lchown
    PathCall(132, None, _FIRST, "write"),  # utime
    PathCall(133, None, _FIRST, "write"),  # mknod
    PathCall(137, 43, _FIRST, "read"),  # statfs
    PathCall(188, 5, _FIRST, "write"),  # setxattr
    PathCall(189, 6, _FIRST, "write"),  # lsetxattr
    PathCall(191, 8, _FIRST, "read"),  # getxattr
    PathCall(192, 9, _FIRST, "read"),  # lgetxattr
    PathCall(194, 11, _FIRST, "read"),  # listxattr
    PathCall(195, 12, _FIRST, "read"),  # llistxattr
    PathCall(197, 14, _FIRST, "write"),  # removexattr
    PathCall(198, 15, _FIRST, "write"),  # lremovexattr
    PathCall(235, None, _FIRST, "write"),  # utimes
    PathCall(257, 56, _AT, "flags", 2),  # openat
    PathCall(258, 34, _AT, "write"),  # mkdirat
    PathCall(259, 33, _AT, "write"),  # mknodat
    PathCall(260, 54, _AT, "write"),  # fchownat
    PathCall(261, None, _AT, "write"),  # futimesat
    PathCall(262, 79, _AT, "read"),  # newfstatat
    PathCall(263, 35, _AT, "write"),  # unlinkat
    PathCall(264, 38, ((0, 1), (2, 3)), "write"),  # renameat
    PathCall(265, 37, ((0, 1), (2, 3)), "write"),  # linkat
    PathCall(266, 36, ((1, 2),), "write"),  # symlinkat
    PathCall(267, 78, _AT, "read"),  # readlinkat
    PathCall(268, 53, _AT, "write"),  # fchmodat
    PathCall(269, 48, _AT, "mode", 2),  # faccessat
    PathCall(280, 88, _AT, "write"),  # utimensat
    PathCall(316, 276, ((0, 1), (2, 3)), "write"),  # renameat2
    PathCall(332, 291, _AT, "read"),  # statx
    PathCall(437, 437, _AT, "how", 2),  # openat2
    PathCall(439, 439, _AT, "mode", 2),  # faccessat2
    PathCall(452, 452, _AT, "write"),  # fchmodat2
)


def calls_of(machine: str) -> Mapping[int, PathCall]:
    """CALLS by their number on `machine` (as of platform.machine())."""
    arm = machine == "aarch64"
    numbered = ((call.arm64 if arm else call.x86_64, call) for call in CALLS)
    return {number: call for number, call in numbered if number is not None}


class GuestThreads:
    """Answers `wanted` for the guest whose first process is `pid`, as `proc` (a mounted proc file system) numbers it.

    `init`: who has the guest's orphans; 0: they are not looked for. `inside`: see thread_numbers.ThreadNumbers.
    """

    def __init__(
        self,
        pid: int,
        proc: str = "/proc",
        init: int = 0,
        inside: Callable[[int], int | None] = lambda _thread: None,
    ) -> None:
        self._inside = inside
        self._first = [pid, *([init] if init else [])]
        self._proc = proc
        self._known: dict[int, str] = {}
        self._served: frozenset[int] = (
            frozenset()
        )  # devices of the file systems that this process serves, once they are looked for
        self._calls = calls_of(platform.machine())

    def wanted(self, thread: int, denied: str) -> Wanted | None:
        """What `thread` (numbered as in the guest's pid namespace) wants that is `denied`, or below it; None if it cannot be told.

        A path that does not lead through `denied` (a symbolic link's target was denied) gives `denied` with the right wanted.
        """
        try:
            directory = self._directory(thread)
            return self._wanted(directory, denied) if directory is not None else None
        except (OSError, ValueError, LookupError, OverflowError):
            return None

    def _wanted(self, directory: str, denied: str) -> Wanted | None:
        words = _syscall(directory)
        if len(words) < 7:  # still running, or blocked outside of a system call
            return None
        call = self._calls.get(int(words[0]))
        if call is None:
            return None
        arguments = [int(word, 16) for word in words[1:7]]
        memory = os.open(f"{directory}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            right = self._right(call, arguments, directory, memory)
            for base, argument in call.paths:
                text = self._text(directory, memory, arguments[argument])
                path = _absolute(directory, None if base is None else arguments[base], text)
                if path is not None and is_below(path, denied):
                    return Wanted(path, right)
        finally:
            os.close(memory)
        return Wanted(denied, right)

    def directory(self, note: Note) -> str | None:
        """The working directory of a thread that waits in a system call; None if it cannot be told.

        Where the thread cannot be told by its number, it is by what it waits for; of several that wait for the same, if they are all there.
        """
        inside = self._inside(note.thread)
        if inside is not None:
            found = self._directory(inside)
            try:
                return os.readlink(f"{found}/cwd") if found is not None else None
            except OSError:
                return None
        directories = set(self._working_directories(note))
        return directories.pop() if len(directories) == 1 else None

    def _working_directories(self, note: Note) -> Iterator[str]:
        """Of all threads that wait in this system call with these arguments."""
        waits = [str(note.number).encode(), *(hex(each).encode() for each in note.arguments)]
        for directory in itertools.islice(self._threads(), MAX_THREADS):
            with contextlib.suppress(OSError):
                with looking(), open(f"{directory}/syscall", "rb") as file:
                    found = file.read(512).split()[:7]
                if found == waits:
                    yield os.readlink(f"{directory}/cwd")

    # -- its memory -------------------------------------------------------------------------------------------------

    def _right(self, call: PathCall, arguments: list[int], directory: str, memory: int) -> Literal["read", "write"]:
        if call.way == "flags":
            return "write" if arguments[call.argument] & _WRITING else "read"
        if call.way == "how":
            how = self._copy(directory, memory, arguments[call.argument], _HOW_FLAGS)
            return "write" if int.from_bytes(how, "little") & _WRITING else "read"
        if call.way == "mode":
            return "write" if arguments[call.argument] & _ACCESS_WRITE else "read"
        return "write" if call.way == "write" else "read"

    def _text(self, directory: str, memory: int, address: int) -> str:
        """The string at an address; ValueError if there is none of a path's length."""
        found = self._copy(directory, memory, address, abi.MAX_PATH + 1)
        length = found.find(b"\0")
        if length < 0:
            raise ValueError("no path there")
        return in_text(found[:length])

    def _copy(self, directory: str, memory: int, address: int, size: int) -> bytes:
        """Memory at an address, `size` bytes of it or what its mapping has; ValueError if it may not be read."""
        if not self._served:
            with open(f"{self._proc}/{self._first[0]}/mountinfo", "rb") as file:
                self._served = served_devices(file.read(_MOUNTS))
        end = _end_of_mapping(directory, address, self._served)
        with looking():
            return os.pread(memory, min(size, end - address), address)

    # -- finding the thread -----------------------------------------------------------------------------------------

    def _directory(self, thread: int) -> str | None:
        """The proc directory of the thread."""
        known = self._known.get(thread)
        if known is not None and _number_inside(known) == thread:
            return known
        self._known.clear()
        for count, directory in enumerate(self._threads()):
            if count >= MAX_THREADS:
                break
            number = _number_inside(directory)
            if number is not None:
                self._known[number] = directory
                if number == thread:
                    return directory
        return None

    def _threads(self) -> Iterator[str]:
        """The proc directories of all threads of the guest's processes, the first process's first."""
        processes = list(self._first)
        for process in processes:  # grows: each process's children follow
            try:
                threads = os.listdir(f"{self._proc}/{process}/task")
            except OSError:
                continue
            for thread in threads:
                directory = f"{self._proc}/{process}/task/{thread}"
                yield directory
                try:
                    with open(f"{directory}/children", "rb") as file:
                        processes.extend(int(child) for child in file.read(1 << 16).split()[:MAX_THREADS])
                except OSError:
                    continue


def is_below(path: str, denied: str) -> bool:
    """Whether a hint may stand for what was denied: normalised, and equal to it or below it."""
    return is_normal(path) and (path == denied or path.startswith(denied.rstrip("/") + "/"))


def _syscall(directory: str) -> list[bytes]:
    """Number, arguments, stack pointer and program counter of the call in which the thread waits, or what else there is. proc_pid_syscall(5)."""
    for _ in range(_LOOKS):
        with open(f"{directory}/syscall", "rb") as file:
            words = file.read(512).split()
        if words != [b"running"]:
            break
        time.sleep(_LOOK_SECONDS)  # it has queued its request, and was interrupted on its way to sleep
    return words


def _number_inside(directory: str) -> int | None:
    """The innermost number of a thread: as its own pid namespace has it."""
    try:
        with open(f"{directory}/status", "rb") as file:
            for line in file:
                if line.startswith(b"NSpid:"):
                    return int(line.split()[-1])
    except OSError:
        pass
    return None


def _end_of_mapping(directory: str, address: int, served: frozenset[int]) -> int:
    """Where the mapping ends that an address is in; ValueError if there is none, or it is of a file on one of these devices."""
    with open(f"{directory}/maps", "rb") as file:
        for line in file:
            bounds, _, _, device, inode, *_ = line.split()
            start, end = (int(bound, 16) for bound in bounds.split(b"-"))
            if start <= address < end:
                if int(inode) and _device(device, 16) in served:
                    break
                return end
    raise ValueError("not to be read")


def _device(text: bytes, base: int) -> int:
    major, minor = (int(number, base) for number in text.split(b":"))
    return os.makedev(major, minor)


def served_devices(mounts: bytes) -> frozenset[int]:
    """The devices of all FUSE file systems in a mountinfo file. ValueError if there are none: a guest has one."""
    found = set()
    for line in mounts.splitlines():
        fields, _, rest = line.partition(b" - ")
        if rest.startswith(b"fuse"):
            found.add(_device(fields.split()[2], 10))
    if not found:
        raise ValueError("no FUSE file system is mounted")
    return frozenset(found)


def _absolute(directory: str, base: int | None, path: str) -> str | None:
    """The path with its directory, lexically normalised; None if the directory has no name."""
    if not path.startswith("/"):
        number = AT_FDCWD if base is None else (base & 0xFFFFFFFF) - ((base & 0x80000000) << 1)
        above = os.readlink(f"{directory}/cwd" if number == AT_FDCWD else f"{directory}/fd/{number}")
        if not above.startswith("/"):
            return None
        path = f"{above}/{path}"
    return posixpath.normpath("/" + path.lstrip("/"))
