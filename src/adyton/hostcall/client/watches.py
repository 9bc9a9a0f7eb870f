"""Which of the client's files other programs change: promised to an enclave by `watch`, told by `take`; and by `follow`, what they do.

inotify(7) tells of each change in a watched directory, the enclave's own among them. Those are known by what the file looked like right
after: `changing` is held around each change that the enclave makes, and `made` notes the file's status there, `removed_at` that there is
none any more: until the enclave looks at the name again (`looked`), for what it finds there others have made, and may remove. A change is told
once, until then. What happens where the enclave follows it is told each time, one by one.

inotify watches a directory wherever it is moved to, and says nothing when one above it is moved: so nothing of a directory is told but while
the path under which the enclave has it leads there (`_is_there`). Where it does not, promises end, and it is told as moved away.

What others do while the enclave changes something is told after that. What else is said to the enclave waits for it, but for SLOW_SECONDS only:
a disk may be slow, and what is told of it is then late.

What inotify does not see is not promised: file systems that other machines change (REMOTE). What another program writes into a mapped file
shows when it is unmapped or synced to disk at the latest, and only if its time of modification shows it.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import select
import struct
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from adyton.hostcall.client.paths import join, split
from adyton.hostcall.client.removed_paths import RemovedPaths
from adyton.hostcall.events import Event, Kind

# sys/inotify.h
_MODIFY, _ATTRIB, _CLOSE_WRITE = 0x2, 0x4, 0x8
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _UNMOUNT, _OVERFLOW, _IGNORED = 0x400, 0x800, 0x2000, 0x4000, 0x8000
_ONLYDIR, _ISDIR = 0x01000000, 0x40000000
_NAMES = _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_ENDS = _DELETE_SELF | _MOVE_SELF | _UNMOUNT
_EVENT = struct.Struct("=iIII")
_BUFFER = 1 << 16
_LATER_MS = 10  # in which a directory that is there no more is said to be removed, if it is

# statfs(2), linux/magic.h: NFS SMB CIFS SMB2 FUSE 9P Ceph AFS Lustre GFS2 OCFS2 VirtualBox' and VMware's shared folders
REMOTE = frozenset(
    {
        0x6969, 0x517B, 0xFF534D42, 0xFE534D42, 0x65735546, 0x01021997, 0x00C36400, 0x5346414F, 0x0BD00BD0, 0x01161970,
        0x7461636F, 0x786F4256, 0xBACBACBC,
    }
)  # fmt: skip

MAX_WATCHES = 4096  # directories
MAX_FOLLOWED = 8192  # names, or whole directories, that an enclave follows
MAX_EVENTS = 1 << 14  # that are not taken
MAX_PROMISED = 4096  # names of one directory, one by one
MAX_NOTED = 1 << 15
SLOW_SECONDS = 0.1  # that what is said to the enclave waits for a change of the enclave's own

_KINDS: dict[int, Kind] = {
    _CREATE: "created", _DELETE: "removed", _MODIFY: "modified", _ATTRIB: "attributes", _CLOSE_WRITE: "closed",
    _MOVED_FROM: "moved-from", _MOVED_TO: "moved-to", _DELETE_SELF: "removed", _MOVE_SELF: "moved-from",
}  # fmt: skip

Seen = tuple[int, int, int, int, int]
Identity = tuple[int, int]  # device and inode


def _seen(status: os.stat_result) -> Seen:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode, status.st_nlink


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


class _Watch:
    """A watched directory. `spelt`: as the enclave spells it → the names that it was promised; None: all.

    `followed`: the same → the names that it follows; "": all, and the directory itself.
    """

    __slots__ = ("above", "followed", "identity", "path", "spelt")

    def __init__(self) -> None:
        self.path = ""
        self.identity: Identity | None = None
        self.above: Identity | None = None  # of the directory that holds it
        self.spelt: dict[str, set[str] | None] = {}
        self.followed: dict[str, set[str]] = {}

    def place(self, path: str, descriptor: int) -> None:
        """It is found there."""
        self.path = path
        self.identity = _identity(os.fstat(descriptor))
        self.above = None
        with suppress(OSError):
            self.above = _identity(os.stat("..", dir_fd=descriptor))


class _Batch:
    """What one read has brought: number of the watch, mask, cookie, name. `there`: which directories have been looked at since, and found."""

    def __init__(self, data: bytes) -> None:
        self.events = list(_events(data))
        self.removed = _removed(data)
        self.there: dict[int, bool] = {}


def _removed(data: bytes) -> set[int]:
    """Watches of directories that are removed."""
    return {number for number, mask, _, _ in _events(data) if mask & _DELETE_SELF}


def _events(data: bytes) -> Iterator[tuple[int, int, int, str]]:
    start = 0
    while start < len(data):
        number, mask, cookie, length = _EVENT.unpack_from(data, start)
        start += _EVENT.size
        yield number, mask, cookie, os.fsdecode(data[start : start + length].rstrip(b"\0"))
        start += length


class Watches:
    """See the module. Thread-safe. `changed` is called, from a thread of this, when there may be something to `take`.

    `enter`: a descriptor of the directory at a path that was given to `watch` or `follow`, by the same way: ConfinedTree.enter_directory.
    """

    def __init__(self, changed: Callable[[], object], enter: Callable[[str], int]) -> None:
        self._changed = changed
        self._enter = enter
        self._lock = threading.RLock()
        self._inotify = -1
        self._arrived = select.poll()  # in place of a read that fails, which takes many times as long
        self._closed = False
        self._stop: tuple[int, int] | None = None
        self._watches: dict[int, _Watch] = {}
        self._by_path: dict[str, int] = {}
        self._own: OrderedDict[tuple[int, int], Seen] = OrderedDict()
        self._removed = RemovedPaths()
        self._told: set[str] = set()
        self._found: dict[tuple[str, str], None] = {}
        self._followed: dict[tuple[str, str], int] = {}  # directory and name, as the enclave spells them → watch
        self._events: list[Event] = []
        self._changing = False
        self._change = 0  # the number of the enclave's that is under way; 0: none is
        self._slow = 0  # the number of the last one for which somebody did not wait
        self._numbers = itertools.count(1)
        self._read_ahead: deque[bytes] = deque()

    @property
    def watching(self) -> bool:
        """Whether anything is promised."""
        return bool(self._watches)

    @property
    def following(self) -> bool:
        """Whether it is told of events."""
        return bool(self._followed)

    @property
    def has_told(self) -> bool:
        """Whether `looked` and `listed` matter."""
        return bool(self._told or self._removed)

    # -- promises -----------------------------------------------------------------------------------------------------

    def watch(self, descriptor: int, path: str, spelt: str, name: str) -> None:
        """Promise to tell of changes of `name` ("": of every name) in the directory `path`, which `descriptor` is. OSError: no promise."""
        if file_system(descriptor) in REMOTE:
            raise OSError(errno.EOPNOTSUPP, "other machines change it unseen")
        with self._lock:
            if len(self._watches) >= MAX_WATCHES and path not in self._by_path:
                raise OSError(errno.ENOSPC, "too many directories are watched")
            watch = self._watches[self._watched(descriptor, path)]
            promised = watch.spelt.get(spelt, set())
            if not name:
                watch.spelt[spelt] = None
            elif promised is not None:
                if len(promised) >= MAX_PROMISED:
                    raise OSError(errno.ENOSPC, "too many names of one directory are promised")
                watch.spelt[spelt] = promised | {name}

    def follow(self, descriptor: int, path: str, spelt: str, name: str) -> None:
        """From now on, tell what happens to `name` ("": to every name, and the directory). As `watch` otherwise."""
        if file_system(descriptor) in REMOTE:
            raise OSError(errno.EOPNOTSUPP, "other machines change it unseen")
        with self._lock:
            if len(self._followed) >= MAX_FOLLOWED and (spelt, name) not in self._followed:
                raise OSError(errno.ENOSPC, "too much is followed")
            number = self._watched(descriptor, path)
            if self._followed.get((spelt, name), number) != number:
                self.unfollow(spelt, name)  # where it was before
            self._drain()  # what happened before is no news
            if number not in self._watches:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._followed[spelt, name] = number
            self._watches[number].followed.setdefault(spelt, set()).add(name)

    def _watched(self, descriptor: int, path: str) -> int:
        """The number of the directory's watch."""
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._start()
        number: int = _libc.inotify_add_watch(
            self._inotify, os.fsencode(f"/proc/self/fd/{descriptor}"), _NAMES | _ENDS | _ONLYDIR
        )
        if number < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        watch = self._watches.setdefault(number, _Watch())
        if watch.path != path:
            if watch.path and self._identity_at(watch.path) != watch.identity:  # it has another name by now
                self._end_what_is_told(number, "moved-from")
            self._drop_path(number)
        watch.place(path, descriptor)
        self._by_path[path] = number
        return number

    def _drop_path(self, number: int) -> None:
        path = self._watches[number].path
        if self._by_path.get(path) == number:
            del self._by_path[path]

    def unwatch(self, path: str, spelt: str) -> None:
        """The enclave does not need the promise any more."""
        with self._lock:
            number = self._by_path.get(path)
            if number is None:
                return
            watch = self._watches[number]
            watch.spelt.pop(spelt, None)
            self._forget_unused(number)

    def unfollow(self, spelt: str, name: str) -> None:
        """No more of what `follow` asked for."""
        with self._lock:
            number = self._followed.pop((spelt, name), None)
            if number is None:
                return
            watch = self._watches[number]
            watch.followed[spelt].discard(name)
            if not watch.followed[spelt]:
                del watch.followed[spelt]
            self._forget_unused(number)

    def looked(self, path: str) -> None:
        """The enclave is about to learn what is at this path."""
        if self._told or self._removed:
            with self._lock:
                if path in self._removed:
                    self._drain()  # of what was removed
                    self._removed.forget(path)
                self._told.discard(path)

    def listed(self, path: str) -> None:
        """The enclave is about to learn what names are in this directory."""
        if self._told or self._removed:
            with self._lock:
                if self._removed.any_in(path):
                    self._drain()
                    self._removed.forget_all_in(path)
                self._told = {each for each in self._told if split(each)[0] != path}

    # -- the enclave's own changes ------------------------------------------------------------------------------------

    @contextmanager
    def changing(self) -> Iterator[None]:
        """The enclave changes something: nothing is told until it has been noted. Not within another one."""
        number = next(self._numbers)
        try:
            with self._lock:
                self._change = number
                try:
                    with self._noting_others():
                        yield
                finally:
                    self._change = 0
        finally:
            if self._slow == number:
                self._changed()

    @contextmanager
    def _noting_others(self) -> Iterator[None]:
        self._drain()  # what others did before it is not taken for the enclave's own
        if not self._followed:
            yield
            return
        self._changing = True
        try:
            yield
            self._drain()  # and what they do afterwards, neither
        finally:
            self._changing = False

    def made(self, status: os.stat_result) -> None:
        """The enclave changed this file."""
        if self._watches:
            key = status.st_dev, status.st_ino
            self._own[key] = _seen(status)
            self._own.move_to_end(key)
            if len(self._own) > MAX_NOTED:
                self._own.popitem(last=False)

    def made_at(self, path: str, identity: Identity | None = None) -> None:
        """The enclave changed what is at the path; it is that file, if one is given: else others have been there since."""
        if self._watches:
            self._told.discard(path)
            self._removed.forget(path)
            with suppress(OSError):  # others have removed it
                status = os.lstat(path)
                if identity is None or identity == _identity(status):
                    self.made(status)

    def removed_at(self, path: str) -> None:
        """The enclave removed what was at the path."""
        if self._watches:
            self._told.discard(path)
            self._removed.note(path)

    # -- telling ------------------------------------------------------------------------------------------------------

    def take(self) -> list[tuple[str, str]]:
        """What others changed since the last time: (directory, name) as the enclave spells it. A name "": all, the promise is over."""
        if self._inotify < 0 or not self._reached():
            return []
        try:
            self._drain()
            found, self._found = list(self._found), {}
        finally:
            self._lock.release()
        return found

    def take_events(self) -> list[Event]:
        """What `take` has seen happen where the enclave follows it, since the last time."""
        if not self._reached():
            return []
        try:
            events, self._events = self._events, []
        finally:
            self._lock.release()
        return events

    def _reached(self) -> bool:
        """Whether the lock is held: not where that would take long. What is not told then is told after the change that has it."""
        while True:
            change = self._change
            if change and change == self._slow:
                return False
            if self._lock.acquire(timeout=SLOW_SECONDS):
                return True
            self._slow = change
            if change and change == self._change:  # which sees it when it is over
                return False

    def _drain(self) -> None:
        while self._inotify >= 0:
            if not self._read_ahead and not self._read_on():
                return
            self._read(self._read_ahead.popleft())

    def _read_on(self) -> bool:
        """Whether there was more."""
        if not self._arrived.poll(0):
            return False
        try:
            self._read_ahead.append(os.read(self._inotify, _BUFFER))
        except BlockingIOError:
            return False
        return True

    def moved(self, path: str) -> None:
        """The enclave gave another name to what was at the path: promises about what is below it end."""
        if self._watches:
            with self._lock:
                self._end_below(path)

    def _end_below(self, path: str, kind: Kind | None = None) -> None:
        below = path.rstrip("/") + "/"
        for number, watch in list(self._watches.items()):
            if watch.path == path or watch.path.startswith(below):
                self._end(number, kind)

    def _read(self, data: bytes) -> None:
        batch, seen = _Batch(data), set()
        for number, mask, cookie, name in batch.events:
            if mask & _OVERFLOW:
                self._overflowed()
                continue
            watch = self._watches.get(number)
            if watch is None:
                continue
            if mask & (_ENDS | _IGNORED):
                own = self._is_own(watch.path, gone=self._changing)
                self._end_below(watch.path, None if own else "removed" if mask & _DELETE_SELF else "moved-from")
                continue
            if watch.followed:
                self._happened(number, name, mask, cookie, batch)
            if not name:
                self._tell_of_itself(number, batch)
            elif (number, name) not in seen:
                seen.add((number, name))
                self._event(number, name, batch)

    def _is_there(self, number: int, batch: _Batch) -> bool:
        """Whether what the batch says of a directory may be told; if not, it is watched no more.

        It may while the path leads to the directory, by a look *after* the event was read: what the enclave could list now, it may know,
        and a move that comes later makes no secret of what was told before it. What had been removed by then, with all in it, was
        removed where it stood, if the directory above stands: its own move would have ended the watch.
        """
        if number not in batch.there:
            batch.there[number] = self._leads_there(self._watches[number], batch)
        if not batch.there[number] and number in self._watches:
            self._end(number, "removed" if number in batch.removed else "moved-from")
        return batch.there[number]

    def _leads_there(self, watch: _Watch, batch: _Batch) -> bool:
        path, identity = watch.path, watch.identity
        while (found := self._identity_at(path)) is None:
            number = self._by_path.get(path)
            if number is None or self._watches[number].identity != identity or not self._is_removed(number, batch):
                return False
            path, identity = split(path)[0], self._watches[number].above
        return found == identity

    def _is_removed(self, number: int, batch: _Batch) -> bool:
        """Whether the directory was removed, be it that this is told only by what is read next."""
        batch.removed |= {each for data in self._read_ahead for each in _removed(data)}
        if number not in batch.removed:
            poller = select.poll()
            poller.register(self._inotify, select.POLLIN)
            poller.poll(_LATER_MS)
            while self._read_on():
                batch.removed |= _removed(self._read_ahead[-1])
        return number in batch.removed

    def _identity_at(self, path: str) -> Identity | None:
        try:
            descriptor = self._enter(path)
        except OSError:
            return None
        try:
            return _identity(os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def _happened(self, number: int, name: str, mask: int, cookie: int, batch: _Batch) -> None:
        """Tell who follows it, unless the enclave did it."""
        watch = self._watches[number]
        kind = next((kind for bit, kind in _KINDS.items() if mask & bit), None)
        path = join(watch.path, name) if name else watch.path
        if kind is None or self._is_own(path, gone=self._changing or kind == "closed"):
            return
        if kind == "closed" and self._changing and not os.path.lexists(path):
            return  # others removed it before the enclave closed it
        if not self._is_there(number, batch):
            return
        for spelt, names in watch.followed.items():
            if "" in names or name in names:
                self._tell_event(Event(spelt, name, kind, is_directory=bool(mask & _ISDIR), cookie=cookie))

    def _tell_event(self, event: Event) -> None:
        if len(self._events) >= MAX_EVENTS:
            self._events = [Event("/", "", "lost")]
        self._events.append(event)

    def _overflowed(self) -> None:
        for number in list(self._watches):
            self._end_promises(number)  # what is followed goes on being told
            self._forget_unused(number)
        if self._followed:
            self._tell_event(Event("/", "", "lost"))

    def _is_own(self, path: str, *, gone: bool) -> bool:
        """Whether it was the enclave that made what is at the path what it is. `gone`: or that there is nothing."""
        try:
            status = os.lstat(path)
        except OSError:
            return gone and path in self._removed
        return self._own.get((status.st_dev, status.st_ino)) == _seen(status)

    def _event(self, number: int, name: str, batch: _Batch) -> None:
        watch = self._watches.get(number)
        if watch is None:
            return
        path = join(watch.path, name)
        if path in self._told:
            return
        if self._is_own(path, gone=True):
            return
        self._removed.forget(path)
        if not watch.spelt or not self._is_there(number, batch):
            return
        for spelt, names in watch.spelt.items():
            if names is None or name in names:
                if len(self._told) >= MAX_NOTED:
                    self._told.clear()  # some are told once more
                self._told.add(path)
                self._found[spelt, name] = None

    def _tell_of_itself(self, number: int, batch: _Batch) -> None:
        """A directory's own attributes."""
        watch = self._watches.get(number)
        if watch is None or not watch.spelt:
            return
        with suppress(OSError):
            status = os.lstat(watch.path)
            if self._own.get((status.st_dev, status.st_ino)) == _seen(status):
                return
        if not self._is_there(number, batch):
            return
        for spelt in watch.spelt:
            above, name = split(spelt)
            if name:
                self._found[above, name] = None

    def _end(self, number: int, kind: Kind | None) -> None:
        """Watch it no more. `kind`: what is told to who follows it; None: nothing."""
        self._end_what_is_told(number, kind)
        self._forget(number)

    def _end_what_is_told(self, number: int, kind: Kind | None) -> None:
        watch = self._watches[number]
        for spelt, names in watch.followed.items():
            for name in sorted(names):
                del self._followed[spelt, name]
                if kind is not None:
                    self._tell_event(Event(spelt, name, kind))
        watch.followed.clear()
        self._end_promises(number)

    def _end_promises(self, number: int) -> None:
        for spelt in self._watches[number].spelt:
            self._found[spelt, ""] = None
        self._watches[number].spelt.clear()

    def _forget_unused(self, number: int) -> None:
        if not self._watches[number].spelt and not self._watches[number].followed:
            self._forget(number)

    def _forget(self, number: int) -> None:
        self._drop_path(number)
        watch = self._watches.pop(number)
        _libc.inotify_rm_watch(self._inotify, number)  # gone already, where the kernel said so
        self._told = {each for each in self._told if split(each)[0] != watch.path}

    # -- life ---------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._inotify >= 0:
            return
        descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._inotify = descriptor
        self._arrived.register(descriptor, select.POLLIN)
        self._stop = os.pipe2(os.O_CLOEXEC)
        threading.Thread(target=self._wait, args=(descriptor, self._stop[0]), name="adyton-watch", daemon=True).start()

    def _wait(self, inotify: int, stopped: int) -> None:
        poller = select.poll()
        poller.register(inotify, select.POLLIN)
        poller.register(stopped, select.POLLIN)
        while True:
            if any(descriptor == stopped for descriptor, _ in poller.poll()):
                os.close(inotify)
                os.close(stopped)
                return
            with self._lock:
                pass  # nothing can be taken before
            self._changed()

    def close(self) -> None:
        """Stop watching."""
        with self._lock:
            self._closed = True
            self._watches.clear()
            self._by_path.clear()
            self._followed.clear()
            stop, self._stop = self._stop, None
            self._inotify = -1
        if stop is not None:
            os.close(stop[1])


_libc = ctypes.CDLL(None, use_errno=True)


def file_system(descriptor: int) -> int:
    """The type of the file system that an open file is on: statfs(2)."""
    buffer = (ctypes.c_long * 64)()  # struct statfs: f_type is its first word, on x86-64 and arm64
    if _libc.fstatfs(ctypes.c_int(descriptor), buffer) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(buffer[0]) & 0xFFFFFFFF
