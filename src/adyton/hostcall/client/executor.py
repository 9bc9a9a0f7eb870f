"""Host calls, executed: the one place where what an enclave asks for happens on its client's machine.

    request ──► policy (may it?) ──► ConfinedTree (where is it, without links) ──► the operating system ──► result

Every operation asks the policy about the path, then works from a descriptor of the directory that holds it. What an open file may be
used for is decided when it is opened. An error of the operating system is answered with its name; nothing is raised, but by
registered functions.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar, Self

from adyton.hostcall import abi
from adyton.hostcall.client import openat, paths
from adyton.hostcall.client.exit_log import ExitLog
from adyton.hostcall.client.functions import FunctionRaised, Functions, HostFunctions
from adyton.hostcall.client.openat import ConfinedTree
from adyton.hostcall.client.policy import Denied, HostCallPolicy, PathRight, Resolved
from adyton.hostcall.client.streams import StandardInput
from adyton.hostcall.own_paths import leads_to_own, own_path

__all__ = ["Executor", "FunctionRaised"]

SHOWN_DENIALS = 4096  # lines, each for one path and right
KEPT_LISTINGS = 16  # directories whose names are kept while they are read in parts

_ERRNO = {number: name for name in sorted(abi.ERRNO_NAMES) if (number := getattr(errno, name, None)) is not None}
_ACCESS = {"read": os.O_RDONLY, "write": os.O_WRONLY, "read-write": os.O_RDWR}
_DENIED = abi.Failed("EACCES")  # by the policy; this very object
_SET_ID = stat.S_ISUID | stat.S_ISGID


class _Refused(Exception):  # noqa: N818 - an answer
    """The policy denies what was asked."""

    def __init__(self, denied: Denied) -> None:
        super().__init__(str(denied))
        self.denied = denied


@dataclass
class _File:
    """An open file. `writable`: the policy lets its content and attributes be changed; `users`: threads at work on it."""

    descriptor: int
    path: str
    writable: bool
    users: int = 0
    closed: bool = False


class Executor:
    """See the module. Thread-safe; `close` it, or use it in a `with`."""

    def __init__(
        self,
        policy: HostCallPolicy,
        functions: HostFunctions | Functions,
        *,
        denied: Callable[[str], None],
        output: Callable[[abi.Output], None],
        standard_input: StandardInput | None = None,
        log: ExitLog | None = None,
        walk: bool | None = None,
    ) -> None:
        """`denied` is given a line for each path and right that was refused, once; `output` what the enclave prints.

        `standard_input` is closed with this. `log` is told of each host call.
        `walk`: reach files without openat2 (True), with it (False), as this machine allows (None).
        """
        self._policy = policy
        self._functions = functions if isinstance(functions, HostFunctions) else HostFunctions(functions)
        self._tell = denied
        self._output = output
        self._input = standard_input
        self._log = log
        self._tree = ConfinedTree(walk=walk)
        self._lock = threading.Lock()
        self._files: dict[int, _File] = {}
        self._shown: set[Denied] = set()
        self._listings: OrderedDict[str, list[str]] = OrderedDict()
        self._active = 0  # calls under way
        self._closed = False
        self.counts: Counter[str] = Counter()
        self.denied: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def denials(self) -> int:
        """How many host calls the policy has denied so far."""
        with self._lock:
            return self.denied.total()

    def close(self) -> None:
        """Close all that the enclave has open, as soon as nobody is at work on it. Whatever is asked afterwards fails with EIO."""
        with self._lock:
            self._closed = True
            idle = self._active == 0
        if self._input is not None:
            self._input.interrupt()
        if idle:
            self._release()

    def _release(self) -> None:
        """Closed, and no call is under way any more: no descriptor is in use."""
        with self._lock:
            files = list(self._files.values())
            self._files.clear()
        for file in files:
            with suppress(OSError):  # what a late write met; nobody is left to tell
                os.close(file.descriptor)
        if self._input is not None:
            self._input.close()
        self._tree.close()

    def write_output(self, output: abi.Output) -> None:
        """Hand on what the enclave wrote to its standard output or error; always allowed."""
        with self._lock:
            self.counts["output"] += 1
        started = time.monotonic()
        self._output(output)
        if self._log is not None:
            self._log.note("output", "ok", started)

    def execute(self, request: abi.Request) -> abi.Result:
        """What the client answers. Only FunctionRaised leaves, and KeyboardInterrupt or SystemExit of a registered function."""
        name, handler = self._HANDLERS[type(request)]
        with self._lock:
            if self._closed:
                return abi.Failed("EIO")
            self.counts[name] += 1
            self._active += 1
        started, outcome = time.monotonic(), "ok"
        try:
            result = self._answer(name, handler, request)
            if isinstance(result, abi.Failed):
                outcome = "denied" if result is _DENIED else result.errno
            return result
        except BaseException as error:
            outcome = f"raised {type(error.error if isinstance(error, FunctionRaised) else error).__name__}"
            raise
        finally:
            with self._lock:
                self._active -= 1
                last = self._closed and self._active == 0
            if last:
                self._release()
            if self._log is not None:
                self._log.note(_logged(name, request), outcome, started)

    def _answer(self, name: str, handler: Callable[[Executor, Any], abi.Result], request: abi.Request) -> abi.Result:
        try:
            return handler(self, request)
        except _Refused as refused:
            self._report(name, refused.denied)
            return _DENIED
        except OSError as error:
            if error.errno == errno.ELOOP:
                return abi.Failed("EACCES")
            return abi.Failed(_ERRNO.get(error.errno or 0, "EIO"))
        except (ValueError, OverflowError):  # a malformed path, a number beyond what the operating system takes
            return abi.Failed("EINVAL")
        except MemoryError:
            return abi.Failed("ENOMEM")

    # -- the policy ---------------------------------------------------------------------------------------------------

    def _report(self, name: str, denied: Denied) -> None:
        with self._lock:
            self.denied[name] += 1
            if denied in self._shown or len(self._shown) > SHOWN_DENIALS:
                return
            self._shown.add(denied)
            line = str(denied)
            if len(self._shown) > SHOWN_DENIALS:
                line = f"denied: more than {SHOWN_DENIALS} paths; those that follow are counted, and not shown"
        with suppress(OSError, ValueError):  # standard error is closed
            self._tell(line)

    def _allowed(self, path: str, right: PathRight) -> str:
        """Where the name `path` is on this machine; it may be a symbolic link there."""
        return self._resolved(path, right).path

    def _followed(self, path: str, right: PathRight) -> str:
        """The same; but where the policy's own path is a symbolic link, what that led to when the policy was made."""
        found = self._resolved(path, right)
        if found.target is None:
            return found.path
        try:
            return found.path if self._link(found.path) is None else found.target
        except FileNotFoundError:
            return found.path

    def _resolved(self, path: str, right: PathRight) -> Resolved:
        _check_path(path)
        found = self._policy.resolve(path, right)
        if isinstance(found, Denied):
            raise _Refused(found)
        return found

    def _enterable(self, path: str) -> str:
        _check_path(path)
        found = self._policy.enter(path)
        if isinstance(found, Denied):
            raise _Refused(found)
        return found.path

    # -- paths --------------------------------------------------------------------------------------------------------

    def _access(self, request: abi.Access) -> abi.Result:
        self._allowed(request.path, request.right)
        return abi.Done()

    def _stat(self, request: abi.Stat) -> abi.Result:
        with self._tree.parent(self._enterable(request.path)) as (directory, name):
            return _attributes(os.stat(name, dir_fd=directory, follow_symlinks=False))

    def _read_link(self, request: abi.ReadLink) -> abi.Result:
        path = self._enterable(request.path)
        target = self._link(path)
        if target is None:
            raise OSError(errno.EINVAL, "not a symbolic link")
        self._check_target(path, target)
        if not paths.is_utf8(target):
            raise OSError(errno.EIO, "the link's target is not UTF-8")
        return abi.Target(target)

    def _link(self, path: str) -> str | None:
        """What the link at `path`, a place on this machine, holds; None if there is something else."""
        with self._tree.parent(path) as (directory, name):
            if not stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                return None
            return os.readlink(name, dir_fd=directory)

    def _check_target(self, link: str, target: str) -> None:
        """_Refused unless each step of where a link leads, and its end, is what the enclave may enter or read.

        Nothing is looked at that the enclave may not see, so that an answer tells it nothing about the rest of this machine.
        """
        done, rest = paths.split(link)[0], _names(target)
        if target.startswith("/"):
            done = "/"
        links = 0
        while rest:
            name = rest.pop(0)
            if name == "..":
                done = paths.split(done)[0]
                continue
            here = paths.join(done, name)
            if isinstance(self._policy.enter(here), Denied):
                end = os.path.normpath("/".join([here, *rest]))
                found = self._policy.enter(end)
                raise _Refused(found if isinstance(found, Denied) else Denied("read", here))
            try:
                following = self._link(here)
            except (FileNotFoundError, NotADirectoryError):
                following = None  # its end is missing, which the enclave finds out when it looks there
            if following is None:
                done = here
                continue
            links += 1
            if links > paths.MAX_LINKS:
                raise OSError(errno.EACCES, "a circle of symbolic links")
            if following.startswith("/"):
                done = "/"
            rest = _names(following) + rest

    def _list(self, request: abi.List) -> abi.Result:
        descriptor = self._tree.list_directory(self._followed(request.path, "read"))
        try:
            names = self._names_of(request.path, descriptor, fresh=request.cookie == 0)
            entries: list[abi.Entry] = []
            position = request.cookie
            while position < len(names) and len(entries) < abi.MAX_ENTRIES:
                name = names[position]
                position += 1
                try:
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # gone since the names were read
                entries.append(abi.Entry(name, _attributes(status)))
        finally:
            os.close(descriptor)
        if position < len(names):
            return abi.Entries(entries, position)
        with self._lock:
            self._listings.pop(request.path, None)
        return abi.Entries(entries, 0)

    def _names_of(self, path: str, descriptor: int, *, fresh: bool) -> list[str]:
        """The names in a directory that a host call can carry; the same ones from the first part of a listing to the last."""
        with self._lock:
            kept = None if fresh else self._listings.get(path)
        if kept is not None:
            return kept
        names = sorted(name for name in os.listdir(descriptor) if len(name) <= abi.MAX_NAME and paths.is_utf8(name))
        if leads_to_own(path):
            names = [name for name in names if own_path(paths.join(path, name)) is None]
        if len(names) > abi.MAX_ENTRIES:
            with self._lock:
                self._listings[path] = names
                self._listings.move_to_end(path)
                while len(self._listings) > KEPT_LISTINGS:
                    self._listings.popitem(last=False)
        return names

    def _make_directory(self, request: abi.MakeDirectory) -> abi.Result:
        with self._tree.parent(self._allowed(request.path, "write")) as (directory, name):
            os.mkdir(name, request.mode & ~_SET_ID, dir_fd=directory)
            return _attributes(os.stat(name, dir_fd=directory, follow_symlinks=False))

    def _remove(self, request: abi.Remove) -> abi.Result:
        with self._tree.parent(self._allowed(request.path, "write")) as (directory, name):
            if request.directory:
                os.rmdir(name, dir_fd=directory)
            else:
                os.unlink(name, dir_fd=directory)
        return abi.Done()

    def _rename(self, request: abi.Rename) -> abi.Result:
        source = self._allowed(request.source, "write")
        target = self._allowed(request.target, "write")
        with self._tree.parent(source) as old, self._tree.parent(target) as new:
            openat.rename(old, new, replace=request.replace)
        return abi.Done()

    def _set_attributes(self, request: abi.SetAttributes) -> abi.Result:
        if request.handle is not None:
            with self._using(request.handle) as file:
                if not file.writable:
                    raise _Refused(Denied("write", file.path))
                return _set_open(file.descriptor, request)
        path = self._allowed(request.path, "write")
        if request.size is not None:
            descriptor = self._tree.open_file(path, os.O_WRONLY)
            try:
                os.ftruncate(descriptor, request.size)
            finally:
                os.close(descriptor)
        with self._tree.parent(path) as (directory, name):
            if request.mode is not None:
                openat.set_mode(directory, name, request.mode)
            if request.accessed is not None or request.modified is not None:
                openat.set_times(directory, name, request.accessed, request.modified)
            return _attributes(os.stat(name, dir_fd=directory, follow_symlinks=False))

    # -- open files ---------------------------------------------------------------------------------------------------

    def _open(self, request: abi.Open) -> abi.Result:
        writes = request.access != "read" or request.create or request.truncate
        path = self._followed(request.path, "write" if writes else "read")
        with self._lock:
            if request.handle in self._files:
                raise OSError(errno.EINVAL, "the handle is in use")
            if len(self._files) >= abi.HANDLE_LIMIT:
                raise OSError(errno.EMFILE, "too many open files")
        if request.create and request.mode & _SET_ID:
            raise PermissionError(errno.EPERM, "an enclave makes no set-user-id or set-group-id files")
        flags = _ACCESS[request.access]
        flags |= os.O_CREAT if request.create else 0
        flags |= os.O_EXCL if request.create and request.exclusive else 0
        flags |= os.O_TRUNC if request.truncate else 0
        flags |= os.O_APPEND if request.append else 0
        descriptor = self._tree.open_file(path, flags, request.mode)
        try:
            attributes = _attributes(os.fstat(descriptor))
            writable = not isinstance(self._policy.resolve(request.path, "write"), Denied)
            with self._lock:
                if request.handle in self._files:
                    raise OSError(errno.EINVAL, "the handle is in use")
                self._files[request.handle] = _File(descriptor, request.path, writable)
        except OSError:
            os.close(descriptor)
            raise
        return attributes

    @contextmanager
    def _using(self, handle: int) -> Iterator[_File]:
        """The open file of a handle, which stays open until the end of the block even if it is closed meanwhile."""
        with self._lock:
            file = self._files.get(handle)
            if file is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            file.users += 1
        try:
            yield file
        finally:
            with self._lock:
                file.users -= 1
                last = file.closed and file.users == 0
            if last:
                os.close(file.descriptor)

    def _forget(self, handle: int) -> None:
        with self._lock:
            file = self._files.pop(handle, None)
            if file is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            file.closed = True
            if file.users:
                return  # the last of them closes it
        os.close(file.descriptor)

    def _read(self, request: abi.Read) -> abi.Result:
        with self._using(request.handle) as file:
            data = os.pread(file.descriptor, request.size, request.offset)
            while data and len(data) < request.size:
                more = os.pread(file.descriptor, request.size - len(data), request.offset + len(data))
                if not more:
                    break
                data += more
        return abi.Data(data)

    def _write(self, request: abi.Write) -> abi.Result:
        written = 0
        with self._using(request.handle) as file, memoryview(request.data) as data:
            while True:
                try:
                    written += os.pwrite(file.descriptor, data[written:], request.offset + written)
                except OSError:
                    if not written:
                        raise
                    break
                if written == len(data):
                    break
        return abi.Written(written)

    def _sync(self, request: abi.Sync) -> abi.Result:
        with self._using(request.handle) as file:
            (os.fdatasync if request.data_only else os.fsync)(file.descriptor)
        return abi.Done()

    def _sync_directory(self, request: abi.SyncDirectory) -> abi.Result:
        descriptor = self._tree.list_directory(self._followed(request.path, "read"))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return abi.Done()

    def _close(self, request: abi.Close) -> abi.Result:
        self._forget(request.handle)
        return abi.Done()

    # -- standard input -----------------------------------------------------------------------------------------------

    def _read_input(self, request: abi.ReadInput) -> abi.Result:
        if self._input is None:
            raise OSError(errno.EBADF, "the client gave the enclave no standard input")
        return abi.Data(self._input.read(request.size))

    # -- functions ----------------------------------------------------------------------------------------------------

    def _call(self, request: abi.Call) -> abi.Result:
        denied = self._policy.allows_call(request.name)
        if denied is not None:
            raise _Refused(denied)
        return abi.Value(self._functions.call(request.name, request.arguments))

    # The name under which a request is counted, and what answers it.
    _HANDLERS: ClassVar[dict[type[Any], tuple[str, Callable[[Executor, Any], abi.Result]]]] = {
        abi.Access: ("access", _access),
        abi.Stat: ("stat", _stat),
        abi.ReadLink: ("readlink", _read_link),
        abi.List: ("list", _list),
        abi.Open: ("open", _open),
        abi.Read: ("read", _read),
        abi.Write: ("write", _write),
        abi.SetAttributes: ("setattr", _set_attributes),
        abi.Sync: ("fsync", _sync),
        abi.SyncDirectory: ("fsync", _sync_directory),
        abi.Close: ("close", _close),
        abi.MakeDirectory: ("mkdir", _make_directory),
        abi.Remove: ("remove", _remove),
        abi.Rename: ("rename", _rename),
        abi.ReadInput: ("input", _read_input),
        abi.Call: ("call", _call),
    }


def _logged(name: str, request: abi.Request) -> str:
    return f"{name} {paths.visible(request.name)}()" if isinstance(request, abi.Call) else name


def _check_path(path: str) -> None:
    if not paths.is_normalised(path):
        raise ValueError("not an absolute and normalised path")


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in {"", "."}]


def _set_open(descriptor: int, request: abi.SetAttributes) -> abi.Attributes:
    if request.size is not None:
        os.ftruncate(descriptor, request.size)
    if request.mode is not None:
        openat.check_set_id(stat.S_IFREG, request.mode)
        os.fchmod(descriptor, request.mode)
    if request.accessed is not None or request.modified is not None:
        openat.set_times(descriptor, "", request.accessed, request.modified)
    return _attributes(os.fstat(descriptor))


_KINDS: dict[int, abi.Kind] = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
_LARGEST = (1 << 63) - 1


def _attributes(status: os.stat_result) -> abi.Attributes:
    identity = blake2b(b"%d:%d" % (status.st_dev, status.st_ino), digest_size=8).digest()
    return abi.Attributes(
        kind=_KINDS.get(stat.S_IFMT(status.st_mode), "other"),
        identity=(int.from_bytes(identity, "little") & _LARGEST) or 1,
        size=min(status.st_size, _LARGEST),
        mode=stat.S_IMODE(status.st_mode),
        links=min(status.st_nlink, (1 << 32) - 1),
        accessed=_time(status.st_atime_ns),
        modified=_time(status.st_mtime_ns),
        changed=_time(status.st_ctime_ns),
        blocks=status.st_blocks,
    )


def _time(nanoseconds: int) -> int:
    """A time that 64 bits hold; file systems know later ones."""
    return max(-_LARGEST, min(nanoseconds, _LARGEST))
