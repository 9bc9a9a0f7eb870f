"""Control groups, by which the kernel itself bounds the memory of all of an enclave's processes together: where a server may make them.

    the server's own group, or the one that was delegated to it
        adyton-server                 version 2 only, where groups that have others in them have no processes: the server
        adyton-XXXXXXXX               of one zygote, which holds its lock as long as it lives
            N                         of one enclave, whose supervisor holds its lock; its processes join it before they run any
                                      of the image's code

Which groups a server may make: below its own, of version 1, whoever may write there; of version 2, below one that was delegated to it, as
systemd's `Delegate=yes` does, and below the root. The first that starts there lets the leavings of those that were killed go.
Sources: cgroups(7), Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst, systemd.resource-control(5) (user.delegate).
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import secrets
from dataclasses import dataclass
from typing import NamedTuple

_PREFIX = "adyton-"
_SERVER = "adyton-server"
_JOINED = "cgroup.procs"
_KILLED = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)
_SIZE = 1 << 12  # bytes; what is read here has less
_MOVES = 100  # times that a delegated group is found to have processes, some of them new


class _Version(NamedTuple):
    """Of control groups: which files of a memory group say what."""

    name: str
    bounds: tuple[
        tuple[str, str | None], ...
    ]  # to be written in this order; None: the bound. All but the first may not be there
    told: str  # has a line "oom_kill N"


_VERSION_1 = _Version(
    "cgroup v1",
    (("memory.limit_in_bytes", None), ("memory.memsw.limit_in_bytes", None)),
    "memory.oom_control",
)
_VERSION_2 = _Version(
    "cgroup v2",
    (("memory.max", None), ("memory.swap.max", "0"), ("memory.oom.group", "1")),
    "memory.events",
)


class NoGroupError(Exception):
    """No control group can be made here: its text says why."""


@dataclass(frozen=True)
class Place:
    """A group below which others can be made."""

    path: str
    version: _Version
    is_root: bool = True  # of version 2: it may have processes all the same

    def prepare(self) -> None:
        """See to it that groups below have the memory controller. OSError."""
        if self.version is not _VERSION_2 or "memory" in _words(f"{self.path}/cgroup.subtree_control"):
            return
        if not self.is_root:
            server = f"{self.path}/{_SERVER}"
            os.makedirs(server, exist_ok=True)
            for _ in range(_MOVES):
                if (
                    not (processes := _words(f"{self.path}/cgroup.procs")) or "0" in processes
                ):  # it cannot be named from here
                    break
                for process in processes:
                    with contextlib.suppress(ProcessLookupError):
                        _write(f"{server}/cgroup.procs", process)
        _write(f"{self.path}/cgroup.subtree_control", "+memory")


def find(proc: str = "/proc/self") -> Place:
    """Where this process may make groups; nothing is changed. NoGroupError."""
    try:
        with open(f"{proc}/cgroup", encoding="utf-8") as file:
            own = [_membership(line) for line in file]
        with open(f"{proc}/mountinfo", encoding="utf-8") as file:
            mounted = [_mount(line) for line in file]
    except (OSError, ValueError) as error:
        raise NoGroupError(f"which control group this is cannot be read ({error})") from None
    for controllers, path in own:
        if "memory" in controllers:
            return _usable(Place(_found(mounted, "cgroup", "memory", path), _VERSION_1))
    for controllers, path in own:
        if not controllers:
            return _usable(_delegated(_found(mounted, "cgroup2", "", path), path))
    raise NoGroupError("the kernel has no control groups for memory")


def _membership(line: str) -> tuple[list[str], str]:
    """A line of /proc/PID/cgroup, see cgroups(7): its controllers (none: version 2) and the path. ValueError."""
    _, controllers, path = line.rstrip("\n").split(":", 2)
    return controllers.split(",") if controllers else [], path


class _Mount(NamedTuple):
    root: str
    point: str
    kind: str
    options: list[str]


def _mount(line: str) -> _Mount:
    """A line of proc_pid_mountinfo(5)."""
    before, _, behind = line.partition(" - ")
    _, _, _, root, point, *_ = before.split()
    kind, _, options = behind.split()[:3]
    return _Mount(_plain(root), _plain(point), kind, options.split(","))


def _plain(path: str) -> str:
    """Spaces and backslashes (systemd's names have them) are written as octal numbers there."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _found(mounted: list[_Mount], kind: str, option: str, path: str) -> str:
    for mount in mounted:
        inside = os.path.relpath(path, mount.root)
        if (
            mount.kind == kind
            and (not option or option in mount.options)
            and ".." not in f"{path}/{mount.root}/{inside}".split("/")
        ):
            return os.path.normpath(f"{mount.point}/{inside}")
    raise NoGroupError("the file system of its control group is not mounted here")


def _delegated(directory: str, path: str) -> Place:
    if not os.path.exists(f"{directory}/cgroup.type"):
        is_root = True
    else:
        is_root = False
        if os.path.basename(directory) == _SERVER:
            directory = os.path.dirname(directory)
        if not any(_attribute(directory, f"{kind}.delegate") == b"1" for kind in ("user", "trusted")):
            raise NoGroupError(f"control group {path} was not delegated to it (systemd: Delegate=yes)")
    try:
        controllers = _words(f"{directory}/cgroup.controllers")
    except OSError as error:  # it was removed, or something else is mounted there
        raise NoGroupError(f"control group {path} cannot be read ({error})") from None
    if "memory" not in controllers:
        raise NoGroupError(f"control group {path} has no memory controller")
    if not is_root and _words(f"{directory}/cgroup.type") != ["domain"]:
        raise NoGroupError(
            f"control group {path} has threads in groups of their own, so none of its can have a bound of memory"
        )
    return Place(directory, _VERSION_2, is_root)


def _usable(place: Place) -> Place:
    if not os.access(place.path, os.W_OK):
        raise NoGroupError("it may not make control groups")
    return place


def _attribute(path: str, name: str) -> bytes:
    try:
        return os.getxattr(path, name)
    except OSError:
        return b""


# -- of a zygote -----------------------------------------------------------------------------------------------------------


def make() -> int | None:
    """A directory descriptor of a new group, whose lock lasts until it is closed, for `Groups`; None: there can be none.

    Those that others have left, if nobody holds their locks, are removed.
    """
    with contextlib.suppress(NoGroupError, OSError):  # `adyton doctor` says why
        place = find()
        place.prepare()
        _sweep(place.path)
        name, descriptor = _made(place.path)
        with contextlib.ExitStack() as failed:
            failed.callback(os.close, descriptor)
            failed.callback(_try_rmdir, f"{place.path}/{name}")
            if place.version is _VERSION_2:
                _write(f"{place.path}/{name}/cgroup.subtree_control", "+memory")
            os.mkdir(f"{place.path}/{name}/0")  # who may not (cgroup.max.depth) would start no enclave
            os.rmdir(f"{place.path}/{name}/0")
            failed.pop_all()
        return descriptor
    return None


def _try_rmdir(path: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _made(path: str) -> tuple[str, int]:
    """A new group, locked: until it was, another zygote may have taken it for one that was left. OSError."""
    while True:
        name = f"{_PREFIX}{secrets.token_hex(4)}"
        os.mkdir(f"{path}/{name}", 0o700)  # no other user takes a lock in there
        with contextlib.suppress(FileNotFoundError):
            descriptor = _locked(f"{path}/{name}")
            if os.path.exists(f"{path}/{name}"):
                return name, descriptor
            os.close(descriptor)


def _locked(path: str, how: int = 0, directory: int | None = None) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sweep(path: str) -> None:
    for name in os.listdir(path):
        if name.startswith(_PREFIX) and name != _SERVER:
            with contextlib.suppress(OSError):  # it is in use, or another one was faster
                descriptor = _locked(f"{path}/{name}", fcntl.LOCK_NB)
                try:
                    _remove(descriptor)
                    os.rmdir(f"{path}/{name}")
                finally:
                    os.close(descriptor)


def _remove(directory: int) -> None:
    for name in filter(str.isdigit, os.listdir(directory)):
        with contextlib.suppress(OSError):  # it has processes still, or a supervisor
            descriptor = _locked(f"{name}/{_JOINED}", fcntl.LOCK_NB, directory)
            try:
                os.rmdir(name, dir_fd=directory)
            finally:
                os.close(descriptor)


class Groups:
    """A zygote's: one for each of its enclaves. `directory`: what `make` gave; it is this object's from now on."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._version = _VERSION_2 if "memory.max" in os.listdir(directory) else _VERSION_1
        self._numbers = itertools.count(1)

    def new(self) -> Group:
        """For one enclave. OSError."""
        name = str(next(self._numbers))
        os.mkdir(name, dir_fd=self._directory)
        with contextlib.ExitStack() as opened:

            def descriptor(file: str, how: int) -> int:
                found = os.open(f"{name}/{file}", how | os.O_CLOEXEC, dir_fd=self._directory)
                opened.callback(os.close, found)
                return found

            bounds = []
            for file, content in self._version.bounds:
                with contextlib.suppress(FileNotFoundError):  # this kernel does not bound swap
                    bounds.append((descriptor(file, os.O_WRONLY), content))
            joined = descriptor(_JOINED, os.O_WRONLY)
            fcntl.flock(joined, fcntl.LOCK_EX | fcntl.LOCK_NB)
            told = descriptor(self._version.told, os.O_RDONLY)
            return Group(bounds, joined, told, opened.pop_all())

    def sweep(self) -> None:
        """Let those go that have no processes and no supervisor any more."""
        _remove(self._directory)

    def remove(self) -> None:
        """Let them all go."""
        _remove(self._directory)
        with contextlib.suppress(OSError):  # the next zygote does it
            os.rmdir(f"../{os.path.basename(os.readlink(f'/proc/self/fd/{self._directory}'))}", dir_fd=self._directory)

    def close(self) -> None:
        """Leave them to the process that this one was forked from."""
        os.close(self._directory)


class Group:
    """One enclave's. Its files were opened by who may write to them, and can be written to by whom they were handed to."""

    def __init__(
        self, bounds: list[tuple[int, str | None]], joined: int, told: int, opened: contextlib.ExitStack
    ) -> None:
        self._bounds = bounds
        self._joined = joined
        self._told = told
        self._opened = opened

    def bound(self, size: int) -> None:
        """Let its processes have so many bytes together, swap and what the kernel holds for them included. OSError."""
        for descriptor, content in self._bounds:
            os.write(descriptor, str(size if content is None else content).encode())

    def join(self, process: int) -> None:
        """Make that process one of them; what it has already does not count. OSError."""
        os.write(self._joined, str(process).encode())

    def killed(self) -> int:
        """How many of them the kernel has ended, as they would have had more. OSError."""
        found = _KILLED.search(os.pread(self._told, _SIZE, 0))
        return int(found[1]) if found else 0

    def close(self) -> None:
        self._opened.close()


_client: Group | None = None


def connect(group: Group | None) -> None:
    """Let it be the one of this process's enclave, which is a new supervisor."""
    global _client  # noqa: PLW0603 - as there is one zygote
    _client = group


def client() -> Group | None:
    """What `connect` was given."""
    return _client


def _words(path: str) -> list[str]:
    with open(path, encoding="ascii") as file:
        return file.read().split()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
