"""inotify_init, inotify_add_watch and inotify_rm_watch, emulated.

What a program gets as an inotify descriptor is one of a pair of sockets that carry packets (unix(7), SOCK_SEQPACKET): this process sends one
event in one packet, so that a read takes a whole event, and polls, blocks and is interrupted as any. The other one tells when nobody has
it any more. (Not a pipe: who reads one keeps it locked while the event is copied, and may have it copied to a page that this process has
to serve first.) A path is copied once, and what it leads to is found here (`walk`).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import struct
import termios
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from typing import Any

from adyton.hostcall import abi
from adyton.runtime.process.supervisor.descriptors import identity_of
from adyton.runtime.process.supervisor.fetching import NotSocketError
from adyton.runtime.process.supervisor.files import Effect, FileServer
from adyton.runtime.process.supervisor.fuse_abi import FileError
from adyton.runtime.process.supervisor.loop import Callback, Loop
from adyton.runtime.process.supervisor.notifications import FaultError, GoneError, Listener, Note
from adyton.runtime.process.supervisor.watching.instances import MAX_INSTANCES, Instance, Mask, check_mask
from adyton.runtime.process.supervisor.watching.watching import Watched

_PATH = 4096  # bytes of a path, with its NUL
_INT = struct.Struct("i")


class _End:
    """An instance with our end of its pair; `identity`: of the other."""

    def __init__(self, sock: socket.socket, identity: tuple[int, int]) -> None:
        self.socket = sock
        self.identity = identity
        self.instance: Instance[Watched]

    def unread(self) -> bool:
        """Whether the program has not read all."""
        size = bytearray(_INT.size)
        fcntl.ioctl(self.socket, termios.TIOCOUTQ, size)
        return bool(_INT.unpack(size)[0])


class WatchCalls:
    """See the module. `do` carries out what the file server wants; `directory`: of a waiting thread's, see wanted.GuestThreads."""

    def __init__(
        self,
        files: FileServer,
        loop: Loop,
        guarded: Callable[[Callback], Callback],
        do: Callable[[list[Effect]], None],
        directory: Callable[[Note], str | None],
    ) -> None:
        self._files = files
        self._watching = files.watching
        self._loop = loop
        self._guarded = guarded
        self._do = do
        self._directory = directory
        self._ends: dict[tuple[int, int], _End] = {}  # by the identity of what the program has

    def handlers(self, listener: Listener) -> Mapping[str, Callable[[Note], None]]:
        """Who emulates the calls that `listener` tells of."""
        steps: dict[str, Callable[[Listener, Note], None]] = {
            "inotify_init": lambda at, note: self._open(at, note, 0),
            "inotify_init1": lambda at, note: self._open(at, note, note.argument(0)),
            "inotify_add_watch": self._add,
            "inotify_rm_watch": self._remove,
        }

        def handler(step: Callable[[Listener, Note], None]) -> Callable[[Note], None]:
            def handle(note: Note) -> None:
                try:
                    step(listener, note)
                except FaultError:
                    listener.answer(note, error=errno.EFAULT)
                except OSError as error:
                    listener.answer(note, error=error.errno or errno.EIO)

            return handle

        return {name: handler(step) for name, step in steps.items()}

    # -- the calls ----------------------------------------------------------------------------------------------------

    def _open(self, listener: Listener, note: Note, flags: int) -> None:
        if flags & ~(os.O_NONBLOCK | os.O_CLOEXEC):
            raise OSError(errno.EINVAL, "flags that there are not")
        if len(self._ends) >= MAX_INSTANCES:
            raise OSError(errno.EMFILE, "too many instances")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            with theirs:
                theirs.setblocking(not flags & os.O_NONBLOCK)
                end = _End(ours, identity_of(theirs.fileno()))
                listener.give(note, theirs.fileno(), close_on_exec=bool(flags & os.O_CLOEXEC))
        except (GoneError, OSError):
            ours.close()
            raise
        self._ends[end.identity] = end
        end.instance = self._watching.open(end.unread)
        self._loop.read(ours, self._guarded(lambda: self._received(end)))

    def _find(self, listener: Listener, note: Note) -> _End:
        """What the first argument is a descriptor of. OSError EBADF, EINVAL."""
        try:
            descriptor = listener.fetch(note, note.argument(0))
        except NotSocketError:
            raise OSError(errno.EINVAL, "not an inotify descriptor") from None
        try:
            end = self._ends.get(identity_of(descriptor))
        finally:
            os.close(descriptor)
        if end is None:
            raise OSError(errno.EINVAL, "not an inotify descriptor")
        return end

    def _add(self, listener: Listener, note: Note) -> None:
        mask = note.arguments[2] & 0xFFFFFFFF
        check_mask(mask)
        end = self._find(listener, note)
        path = self._path(listener, note)
        directory = "/" if path.startswith(b"/") else self._directory(note)
        if directory is None:
            raise OSError(errno.ENOENT, "the working directory is not known")

        def done(number: int | None, error: int) -> None:
            with suppress(GoneError):
                listener.answer(note, number or 0, error)

        self._do(self._files.begin(self._watch(listener, note, end, directory, path, mask), done))

    def _watch(
        self, listener: Listener, note: Note, end: _End, directory: str, path: bytes, mask: int
    ) -> Generator[Any, abi.Result, int]:
        node = yield from self._files.walking.find(
            directory, path, follow=not mask & Mask.DONT_FOLLOW, only_directory=bool(mask & Mask.ONLYDIR)
        )
        try:
            if not listener.waits(note):
                raise FileError(errno.EINTR)  # if it is made again, it begins anew
            return (yield from self._watching.watched(end.instance, node, mask))
        except OSError as error:
            raise FileError(error.errno or errno.EIO) from None
        finally:
            self._files.release(node)

    def _remove(self, listener: Listener, note: Note) -> None:
        self._watching.unwatch(self._find(listener, note).instance, note.argument(1))
        self._do(self._files.flush())
        listener.answer(note)

    @staticmethod
    def _path(listener: Listener, note: Note) -> bytes:
        """The second argument. FaultError; OSError ENAMETOOLONG."""
        address, path = note.arguments[1], b""
        while len(path) < _PATH:
            size = min(_PATH - len(path), mmap.PAGESIZE - address % mmap.PAGESIZE)
            part = listener.read(note, address, size)
            end = part.find(b"\0")
            if end >= 0:
                return path + part[:end]
            path += part
            address += size
        raise OSError(errno.ENAMETOOLONG, "no path is as long")

    # -- events -------------------------------------------------------------------------------------------------------

    def tell(self) -> None:
        """Send what has happened, as far as there is room; before the answers to the calls that did it."""
        for end in [end for end in self._ends.values() if end.instance.queue]:
            self._send(end)

    def _send(self, end: _End) -> None:
        queue = end.instance.queue
        try:
            while queue:
                end.socket.send(queue[0], socket.MSG_DONTWAIT)
                end.instance.taken()
        except BlockingIOError:
            self._loop.write(end.socket, self._guarded(lambda: self._send(end)))
            return
        except OSError:
            end.instance.clear()  # nobody has it any more, as the loop will tell
        self._loop.write(end.socket, None)

    def _received(self, end: _End) -> None:
        """Nobody has the other end any more; or a program has written into it, which means nothing."""
        try:
            if end.socket.recv(_PATH, socket.MSG_DONTWAIT):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(end)

    def _close(self, end: _End) -> None:
        if self._ends.pop(end.identity, None) is None:
            return
        self._loop.forget(end.socket)
        end.socket.close()
        self._watching.close(end.instance)
        self._do(self._files.flush())

    def close(self) -> None:
        for end in self._ends.values():
            end.socket.close()
        self._ends.clear()
