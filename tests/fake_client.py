"""A client for tests of the file server: host calls executed in memory, under a policy of allowed prefixes."""

from __future__ import annotations

import errno
import itertools
import os
from dataclasses import dataclass, field

from adyton.communicator.messages import Grant
from adyton.hostcall import abi
from adyton.hostcall.lock_ranges import LAST, LockRanges
from adyton.runtime.process.supervisor.layout import Layout

ERRNO_NAMES = {getattr(errno, name): name for name in abi.ERRNO_NAMES}  # of two names of a number, the ABI's


@dataclass
class Thing:
    """A file, directory or link of the fake client's."""

    kind: abi.Kind
    identity: int
    mode: int
    data: bytearray = field(default_factory=bytearray)
    target: str = ""
    modified: int = 0
    extended: dict[str, bytes] = field(default_factory=dict)


class FakeClient:
    """Files in memory by path, under a policy of allowed prefixes. `log`: all requests; `denied`: what the policy refused."""

    def __init__(self, allowed: dict[str, str] | None = None, cwd: str = "/work") -> None:
        self.allowed = allowed or {}
        self.cwd = cwd
        self.identities = itertools.count(1)
        self.things: dict[str, Thing] = {}
        self.notes: dict[str, bytes] = {}
        self.handles: dict[int, tuple[Thing, abi.Open | abi.OpenUnnamed | abi.OpenAgain]] = {}
        self.locks = LockRanges()  # of all files together: enough for one
        self.flocks = LockRanges()
        self.log: list[abi.Request] = []
        self.denied: list[tuple[str, str]] = []
        self.synced: list[int] = []
        self.directory("/")
        self.directory(cwd)

    def layout(self) -> Layout:
        return Layout([Grant(path, right) for path, right in self.allowed.items()], self.cwd)  # type: ignore[arg-type]

    def directory(self, path: str) -> None:
        if path != "/":
            self.directory(os.path.dirname(path))
        self.things.setdefault(path, Thing("directory", next(self.identities), 0o755))

    def file(self, path: str, data: bytes = b"", mode: int = 0o644) -> Thing:
        self.directory(os.path.dirname(path))
        self.things[path] = Thing("file", next(self.identities), mode, bytearray(data))
        return self.things[path]

    def link(self, path: str, target: str) -> None:
        self.directory(os.path.dirname(path))
        self.things[path] = Thing("symlink", next(self.identities), 0o777, target=target)

    # -- host calls ---------------------------------------------------------------------------------------------------

    def execute(self, request: abi.Request) -> abi.Result:
        self.log.append(request)
        try:
            return getattr(self, "_" + type(request).__name__.lower())(request)
        except OSError as error:
            return abi.Failed(ERRNO_NAMES[error.errno])

    def _allow(self, path: str, right: str) -> None:
        for prefix, given in self.allowed.items():
            if (path == prefix or path.startswith(prefix.rstrip("/") + "/")) and (right == "read" or given == "write"):
                return
        self.denied.append((path, right))
        raise OSError(errno.EACCES, path)

    def _get(self, path: str) -> Thing:
        above = os.path.dirname(path)
        if path != "/" and self.things.get(above) is not None and self.things[above].kind != "directory":
            raise OSError(errno.ENOTDIR, path)
        if path not in self.things:
            raise OSError(errno.ENOENT, path)
        return self.things[path]

    def _parent(self, path: str) -> None:
        if self._get(os.path.dirname(path)).kind != "directory":
            raise OSError(errno.ENOTDIR, path)

    def _below(self, path: str) -> list[str]:
        return [each for each in self.things if each != path and each.startswith(path.rstrip("/") + "/")]

    def attributes(self, thing: Thing, *, birth: bool = False) -> abi.Attributes:
        size = len(thing.data) or len(thing.target)
        links = sum(each is thing for each in self.things.values())
        born = 77 if birth else None
        return abi.Attributes(thing.kind, thing.identity, size, thing.mode, links, 0, thing.modified, 0, born=born)

    def _access(self, request: abi.Access) -> abi.Result:
        self._allow(request.path, request.right)
        return abi.Done()

    def _stat(self, request: abi.Stat) -> abi.Result:
        if request.handle is not None:
            return self.attributes(self._handle(request.handle)[0], birth=request.birth)
        leads = any(path.startswith(request.path.rstrip("/") + "/") for path in [*self.allowed, self.cwd + "/"])
        if not leads:
            self._allow(request.path, "read")
        return self.attributes(self._get(request.path), birth=request.birth)

    def _readlink(self, request: abi.ReadLink) -> abi.Result:
        thing = self._get(request.path)
        if thing.kind != "symlink":
            raise OSError(errno.EINVAL, request.path)
        return abi.Target(thing.target)

    def _list(self, request: abi.List) -> abi.Result:
        self._allow(request.path, "read")
        if self._get(request.path).kind != "directory":
            raise OSError(errno.ENOTDIR, request.path)
        names = sorted(
            {os.path.basename(path) for path in self._below(request.path) if os.path.dirname(path) == request.path}
        )
        part = names[request.cookie : request.cookie + 3]
        end = request.cookie + len(part)
        entries = [abi.Entry(name, self.attributes(self.things[os.path.join(request.path, name)])) for name in part]
        return abi.Entries(entries, end if end < len(names) else 0)

    def _open(self, request: abi.Open) -> abi.Result:
        self._allow(request.path, "read" if request.access == "read" and not request.create else "write")
        assert request.handle not in self.handles
        self._parent(request.path)
        if request.path not in self.things:
            if not request.create:
                raise OSError(errno.ENOENT, request.path)
            self.file(request.path, mode=request.mode & ~request.umask)
        elif request.exclusive:
            raise OSError(errno.EEXIST, request.path)
        thing = self.things[request.path]
        if thing.kind != "file":
            raise OSError(errno.EISDIR if thing.kind == "directory" else errno.ELOOP, request.path)
        if request.truncate:
            thing.data.clear()
        self.handles[request.handle] = (thing, request)
        return self.attributes(thing)

    def _openunnamed(self, request: abi.OpenUnnamed) -> abi.Result:
        self._allow(request.path, "write")
        assert self._get(request.path).kind == "directory"
        assert request.handle not in self.handles
        thing = Thing("file", next(self.identities), request.mode & ~request.umask)
        self.handles[request.handle] = (thing, request)
        return self.attributes(thing)

    def _openagain(self, request: abi.OpenAgain) -> abi.Result:
        thing, _ = self._handle(request.opened)
        assert request.handle not in self.handles
        if request.truncate:
            thing.data.clear()
        self.handles[request.handle] = (thing, request)
        return self.attributes(thing)

    def _read(self, request: abi.Read) -> abi.Result:
        thing, opened = self._handle(request.handle)
        assert opened.access != "write"
        return abi.Data(bytes(thing.data[request.offset : request.offset + request.size]))

    def _write(self, request: abi.Write) -> abi.Result:
        thing, opened = self._handle(request.handle)
        assert opened.access != "read"
        offset = len(thing.data) if opened.append else request.offset
        if offset > len(thing.data):
            thing.data.extend(bytes(offset - len(thing.data)))
        thing.data[offset : offset + len(request.data)] = request.data
        thing.modified += 1
        return abi.Written(len(request.data))

    def _handle(self, handle: int) -> tuple[Thing, abi.Open | abi.OpenUnnamed | abi.OpenAgain]:
        if handle not in self.handles:
            raise OSError(errno.EBADF, "handle")
        return self.handles[handle]

    def _setattributes(self, request: abi.SetAttributes) -> abi.Result:
        if request.handle is not None:
            thing = self._handle(request.handle)[0]
        else:
            self._allow(request.path, "write")
            thing = self._get(request.path)
        if request.size is not None:
            del thing.data[request.size :]
            thing.data.extend(bytes(request.size - len(thing.data)))
        if request.mode is not None:
            thing.mode = request.mode
        if isinstance(request.modified, int):
            thing.modified = request.modified
        return self.attributes(thing)

    def _sync(self, request: abi.Sync) -> abi.Result:
        self._handle(request.handle)
        self.synced.append(request.handle)
        return abi.Done()

    def _syncdirectory(self, request: abi.SyncDirectory) -> abi.Result:
        self._allow(request.path, "read")
        return abi.Done()

    def _close(self, request: abi.Close) -> abi.Result:
        self._handle(request.handle)
        del self.handles[request.handle]
        return abi.Done()

    def _makedirectory(self, request: abi.MakeDirectory) -> abi.Result:
        self._allow(request.path, "write")
        self._parent(request.path)
        if request.path in self.things:
            raise OSError(errno.EEXIST, request.path)
        self.things[request.path] = Thing("directory", next(self.identities), request.mode & ~request.umask)
        return self.attributes(self.things[request.path])

    def _remove(self, request: abi.Remove) -> abi.Result:
        self._allow(request.path, "write")
        thing = self._get(request.path)
        if request.directory and thing.kind != "directory":
            raise OSError(errno.ENOTDIR, request.path)
        if not request.directory and thing.kind == "directory":
            raise OSError(errno.EISDIR, request.path)
        if self._below(request.path):
            raise OSError(errno.ENOTEMPTY, request.path)
        del self.things[request.path]
        return abi.Done()

    def _rename(self, request: abi.Rename) -> abi.Result:
        self._allow(request.source, "write")
        self._allow(request.target, "write")
        source = self._get(request.source)
        self._parent(request.target)
        existing = self.things.get(request.target)
        if existing is source:
            return abi.Done()
        if request.exchange:
            self._get(request.target)
            moved = {
                new + path[len(old) :]: self.things.pop(path)
                for old, new in ((request.source, request.target), (request.target, request.source))
                for path in [old, *self._below(old)]
            }
            self.things.update(moved)
            return abi.Done()
        if existing is not None:
            if not request.replace:
                raise OSError(errno.EEXIST, request.target)
            if source.kind != "directory" and existing.kind == "directory":
                raise OSError(errno.EISDIR, request.target)
            if source.kind == "directory" and existing.kind != "directory":
                raise OSError(errno.ENOTDIR, request.target)
            if self._below(request.target):
                raise OSError(errno.ENOTEMPTY, request.target)
        for path in [request.source, *self._below(request.source)]:
            self.things[request.target + path[len(request.source) :]] = self.things.pop(path)
        return abi.Done()

    def _link(self, request: abi.Link) -> abi.Result:
        self._allow(request.target, "write")
        if request.handle is None:
            self._allow(request.source, "write")
        thing = self._get(request.source) if request.handle is None else self._handle(request.handle)[0]
        self._parent(request.target)
        if thing.kind == "directory":
            raise OSError(errno.EPERM, request.source)
        if request.target in self.things:
            raise OSError(errno.EEXIST, request.target)
        self.things[request.target] = thing
        return self.attributes(thing)

    def _symboliclink(self, request: abi.SymbolicLink) -> abi.Result:
        self._allow(request.path, "write")
        self._parent(request.path)
        if request.path in self.things:
            raise OSError(errno.EEXIST, request.path)
        self.link(request.path, request.target)
        return self.attributes(self.things[request.path])

    def _statfilesystem(self, request: abi.StatFileSystem) -> abi.Result:
        self._allow(request.path, "read")
        return abi.FileSystem(512, 1000, 600, 500, 90, 80)

    def _seek(self, request: abi.Seek) -> abi.Result:
        data = self._handle(request.handle)[0].data
        if request.offset >= len(data):
            raise OSError(errno.ENXIO, "beyond")
        return abi.Position(request.offset if request.what == "data" else len(data))

    def _allocate(self, request: abi.Allocate) -> abi.Result:
        data = self._handle(request.handle)[0].data
        if request.way == "extend":
            data.extend(bytes(max(0, request.offset + request.size - len(data))))
        elif request.way == "punch-hole":
            end = min(request.offset + request.size, len(data))
            data[request.offset : end] = bytes(max(0, end - request.offset))
        else:
            raise OSError(errno.EOPNOTSUPP, request.way)
        return abi.Done()

    def _copy(self, request: abi.Copy) -> abi.Result:
        source, target = self._handle(request.source)[0], self._handle(request.target)[0]
        data = source.data[request.source_offset : request.source_offset + request.size]
        target.data.extend(bytes(max(0, request.target_offset - len(target.data))))
        target.data[request.target_offset : request.target_offset + len(data)] = data
        return abi.Copied(len(data))

    def _extended(self, request: abi.Request, right: str) -> dict[str, bytes]:
        if request.handle is not None:  # type: ignore[union-attr]
            return self._handle(request.handle)[0].extended  # type: ignore[union-attr]
        self._allow(request.path, right)  # type: ignore[union-attr]
        return self._get(request.path).extended  # type: ignore[union-attr]

    def _getextended(self, request: abi.GetExtended) -> abi.Result:
        found = self._extended(request, "read")
        if request.name not in found:
            raise OSError(errno.ENODATA, request.name)
        return abi.Data(found[request.name])

    def _listextended(self, request: abi.ListExtended) -> abi.Result:
        return abi.Names(list(self._extended(request, "read")))

    def _setextended(self, request: abi.SetExtended) -> abi.Result:
        found = self._extended(request, "write")
        if request.how == "create" and request.name in found:
            raise OSError(errno.EEXIST, request.name)
        if request.how == "replace" and request.name not in found:
            raise OSError(errno.ENODATA, request.name)
        found[request.name] = request.value
        return abi.Done()

    def _removeextended(self, request: abi.RemoveExtended) -> abi.Result:
        if self._extended(request, "write").pop(request.name, None) is None:
            raise OSError(errno.ENODATA, request.name)
        return abi.Done()

    def _lock(self, request: abi.Lock) -> abi.Result:
        return self._take(self.locks, request, request.start, LAST if request.end is None else request.end)

    def _flock(self, request: abi.Flock) -> abi.Result:
        return self._take(self.flocks, request, 0, LAST)

    def _take(self, locks: LockRanges, request: abi.Lock | abi.Flock, start: int, end: int) -> abi.Result:
        self._handle(request.handle)
        if request.kind != "none" and any(locks.in_the_way(request.owner, request.kind, start, end)):
            raise OSError(errno.EINTR if request.wait is not None else errno.EAGAIN, "locked")
        locks.set(request.owner, request.kind, start, end)
        return abi.Done()

    def _getlock(self, request: abi.GetLock) -> abi.Result:
        end = LAST if request.end is None else request.end
        for held in self.locks.in_the_way(request.owner, request.kind, request.start, end):
            return abi.Conflict(held.kind, held.start, held.end)
        return abi.Conflict("none")

    def _stopwaiting(self, _request: abi.StopWaiting) -> abi.Result:
        return abi.Done()

    def _recall(self, request: abi.Recall) -> abi.Result:
        return abi.Data(self.notes.get(request.owner, b""))

    def _remember(self, request: abi.Remember) -> abi.Result:
        if self.notes.get(request.owner, b"") not in (request.known, request.note):
            raise OSError(errno.ESTALE, request.owner)
        self.notes[request.owner] = request.note
        return abi.Done()
