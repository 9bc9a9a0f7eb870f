"""Host calls that spare an enclave round trips: several in one, attributes or content ahead, promises to tell of changes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import msgspec

from adyton.hostcall import abi
from adyton.hostcall.client import openat, paths
from adyton.hostcall.client.attributes import attributes_at, attributes_of
from adyton.hostcall.client.handlers import Handlers
from adyton.hostcall.client.open_files import OpenFiles
from adyton.hostcall.client.places import Places
from adyton.hostcall.client.watches import Watches
from adyton.hostcall.encoding import whole

UNCOUNTED = ""  # the requests in a Compound are counted
_MOST_ATTEMPTS = 3  # at a file that changes while it is read


class AheadCalls:
    """See the module. `execute`: carries out one request."""

    def __init__(
        self,
        places: Places,
        files: OpenFiles,
        watches: Watches,
        execute: Callable[[abi.Request], abi.Result],
    ) -> None:
        self._places = places
        self._tree = places.tree
        self._files = files
        self._watches = watches
        self._execute = execute

    @property
    def handlers(self) -> Handlers:
        return {
            abi.Look: ("stat", self._look),
            abi.Peek: ("read", self._peek),
            abi.Watch: ("watch", self._watch),
            abi.Unwatch: ("watch", self._unwatch),
            abi.Follow: ("watch", self._follow),
            abi.Unfollow: ("watch", self._unfollow),
            abi.Hold: ("hold", self._hold),
            abi.Compound: (UNCOUNTED, self._compound),
        }

    def _look(self, request: abi.Look) -> abi.Result:
        path = self._places.enterable(request.path)
        self._watches.looked(path)
        try:
            with self._tree.parent(path) as (directory, name):
                return abi.Found(attributes_at(directory, name))
        except (FileNotFoundError, NotADirectoryError):
            return abi.Found(None)

    def _peek(self, request: abi.Peek) -> abi.Result:
        path = self._places.followed(request.path, "read")
        self._watches.looked(path)
        descriptor = self._tree.open_file(path, os.O_RDONLY)
        try:
            for _ in range(_MOST_ATTEMPTS):
                status = os.fstat(descriptor)
                if status.st_size > request.size:
                    return abi.Failed("EFBIG")
                data = os.pread(descriptor, request.size + 1, 0)
                if len(data) == status.st_size:
                    return abi.Content(attributes_of(status, openat.born(descriptor)[1]), data)
        finally:
            os.close(descriptor)
        return abi.Failed("EAGAIN")

    def _watch(self, request: abi.Watch) -> abi.Result:
        return self._promise(request, self._watches.watch)

    def _follow(self, request: abi.Follow) -> abi.Result:
        """Only what may be read, as inotify_add_watch(2) has it."""
        path = paths.join(request.directory, request.name) if request.name else request.directory
        with self._tree.parent(self._places.allowed(path, "read")) as (directory, name):
            if not os.access(name, os.R_OK, dir_fd=directory, follow_symlinks=False):
                os.stat(name, dir_fd=directory, follow_symlinks=False)  # ENOENT
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return self._promise(request, self._watches.follow)

    def _promise(self, request: abi.Watch | abi.Follow, promise: Callable[[int, str, str, str], None]) -> abi.Result:
        if request.name:
            path = paths.split(self._places.enterable(paths.join(request.directory, request.name)))[0]
        else:
            path = self._places.followed(request.directory, "read")
        descriptor = self._tree.enter_directory(path)
        try:
            promise(descriptor, path, request.directory, request.name)
        finally:
            os.close(descriptor)
        return abi.Done()

    def _unwatch(self, request: abi.Unwatch) -> abi.Result:
        self._watches.unwatch(self._places.enterable(request.directory), request.directory)
        return abi.Done()

    def _unfollow(self, request: abi.Unfollow) -> abi.Result:
        self._watches.unfollow(request.directory, request.name)
        self._places.enterable(request.directory)
        return abi.Done()

    def _hold(self, request: abi.Hold) -> abi.Result:
        with self._files.using(request.handle) as file:
            self._files.holds.hold(request.handle, file.descriptor)
            if file.closed:  # meanwhile: nobody would give the hold back
                self._files.holds.release(request.handle)
        return abi.Done()

    def _compound(self, request: abi.Compound) -> abi.Result:
        if sum(isinstance(each, abi.Read) for each in request.requests) > 1:
            raise ValueError("more than one read in a compound")
        results: list[msgspec.Raw] = []
        for each in request.requests:
            result = self._execute(each)
            results.append(msgspec.Raw(whole(result)))
            if isinstance(result, abi.Failed) and not request.through:
                break
        return abi.Results(results)
