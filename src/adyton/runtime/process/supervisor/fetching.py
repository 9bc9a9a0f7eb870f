"""Duplicates of the guest's descriptors that are sockets. What else a guest has there never comes into the table in which /dev/fuse is.

A guest can give a system call a file where a socket belongs; to close a duplicate of that asks the file's server, as each close does
(FUSE_FLUSH), and the server is this very process. So a thread fetches, with a table of descriptors of its own (`own_table`), and hands
on what is a socket; another one with the same table closes what is none, and may wait for it. That takes two hand-overs, 40 µs.

So it is looked first what is there (`links`), and a socket is fetched at once. Who puts a file there in that very moment ends with its
enclave. What each datagram needs is fetched without a look: programs have no files under those numbers.

All of it is done as `looks` says. Sources: pidfd_getfd(2), pidfd_open(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable

from adyton.errors import RemoteProtocolError
from adyton.runtime.process.libc import system_call
from adyton.runtime.process.supervisor.links import Links
from adyton.runtime.process.supervisor.looks import looking
from adyton.runtime.process.supervisor.own_table import Apart, keep_only

_PIDFD_THREAD = os.O_EXCL  # Linux 6.9
_QUESTION = struct.Struct("=Ii")  # thread, descriptor
_ANSWER = struct.Struct("=i")  # errno
_DESCRIPTOR = struct.Struct("=i")
_ROOM = socket.CMSG_SPACE(_DESCRIPTOR.size)
_UNKNOWN = -1  # in its place


class UnknownProcessError(OSError):
    """Whose descriptors a thread has cannot be told: before Linux 6.9. To who calls it is EBADF."""


class NotSocketError(OSError):
    """There is something else under that number."""


class Fetcher:
    """`leader`: the guest's first process, as this process numbers it; `links`: of its /proc, if there is one.

    `start` it before the process's filter is installed.
    """

    def __init__(self, leader: int, links: Links | None = None) -> None:
        self._links = Links(lambda _thread: None, "") if links is None else links
        self._leaders = [leader]
        self._asks, self._answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._files: queue.SimpleQueue[int] = queue.SimpleQueue()

    def start(self) -> None:
        """PlatformError."""
        apart, theirs = Apart("the enclave's sockets cannot be had"), self._answers.fileno()
        threading.Thread(target=self._run, args=(apart,), name="adyton-fetcher", daemon=True).start()
        try:
            apart.wait()
        finally:
            os.close(theirs)  # in this table; in the other it is the thread's

    def fetch(self, thread: int, descriptor: int) -> int:
        """A duplicate of a descriptor of the thread's, close-on-exec, the caller's to close: of a socket.

        OSError EBADF, ESRCH, UnknownProcessError, NotSocketError.
        """
        with looking():
            self._asks.send(_QUESTION.pack(thread, descriptor))
            answer, items, _, _ = self._asks.recvmsg(_ANSWER.size, _ROOM, socket.MSG_CMSG_CLOEXEC)
        (code,) = _ANSWER.unpack(answer) if answer else (errno.EIO,)
        if code == _UNKNOWN:
            raise UnknownProcessError(errno.EBADF, "the process of the thread cannot be told")
        if code == errno.ENOTSOCK:
            raise NotSocketError(code, os.strerror(code))
        if not code and not items:  # there was no room for it in this table
            code = errno.EMFILE
        if code:
            raise OSError(code, os.strerror(code))
        (descriptor,) = _DESCRIPTOR.unpack(items[0][2])
        return int(descriptor)

    def fetch_of_waiting(self, thread: int, descriptor: int, check: Callable[[], None]) -> int:
        """As `fetch`; and RemoteProtocolError, as `fetch_at_once`. `check` raises something if the thread does not wait any more."""
        with looking():
            found = self._links.is_socket(thread, descriptor, check)
            if found:
                return self._fetch_at_once(thread, descriptor)
        if found is None:
            return self.fetch(thread, descriptor)
        raise NotSocketError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))

    def fetch_at_once(self, thread: int, descriptor: int) -> int:
        """As `fetch`. RemoteProtocolError, which has to end the enclave, if it is no socket: it stays open until all is closed."""
        with looking():
            return self._fetch_at_once(thread, descriptor)

    def _fetch_at_once(self, thread: int, descriptor: int) -> int:
        fetched = self._fetched(thread, descriptor)
        try:
            return socket.socket(fileno=fetched).detach()
        except OSError:
            raise RemoteProtocolError(
                f"a program of it gave a system call descriptor {descriptor} for a socket, and there was a file"
            ) from None

    def close(self) -> None:
        """Have the threads end. (One that waits for the guest's files ends with them.)"""
        self._asks.close()

    # -- the threads ----------------------------------------------------------------------------------------------------

    def _run(self, apart: Apart) -> None:
        try:
            keep_only([self._answers.fileno()])
            threading.Thread(target=self._close, name="adyton-closer", daemon=True).start()
        except BaseException:
            self._answers.detach()
            apart.tell(apart=False)
            raise
        apart.tell(apart=True)
        with contextlib.suppress(OSError):  # nobody asks any more
            while question := self._answers.recv(_QUESTION.size):
                self._answer(*_QUESTION.unpack(question))
        self._files.put(-1)
        os.close(self._answers.detach())

    def _answer(self, thread: int, descriptor: int) -> None:
        try:
            fetched = self._fetched(thread, descriptor)
        except OSError as error:
            code = _UNKNOWN if isinstance(error, UnknownProcessError) else error.errno or errno.EBADF
            self._answers.send(_ANSWER.pack(code))
            return
        try:
            found = socket.socket(fileno=fetched)
        except OSError:
            self._answers.send(_ANSWER.pack(errno.ENOTSOCK))
            self._files.put(fetched)
        else:
            with found:
                self._hand_on(found)

    def _hand_on(self, found: socket.socket) -> None:
        try:
            socket.send_fds(self._answers, [_ANSWER.pack(0)], [found.fileno()])
        except (
            OSError
        ) as error:  # ETOOMANYREFS: others of this user, its guest perhaps, have as many under way as there may be
            self._answers.send(_ANSWER.pack(error.errno or errno.EIO))

    def _close(self) -> None:
        while (descriptor := self._files.get()) >= 0:
            with contextlib.suppress(OSError):  # what the file's server said
                os.close(descriptor)

    def _fetched(self, thread: int, descriptor: int) -> int:
        process = self._process(thread)
        try:
            return system_call("pidfd_getfd", process, descriptor, 0)
        finally:
            os.close(process)

    def _process(self, thread: int) -> int:
        """A pidfd through which the thread's descriptors can be had."""
        try:
            return os.pidfd_open(thread, _PIDFD_THREAD)
        except ProcessLookupError:
            raise
        except OSError:
            return self._process_of_old(thread)

    def _process_of_old(self, thread: int) -> int:
        """The same before Linux 6.9, where only processes have pidfds: that of its process, if that is known."""
        try:
            found = os.pidfd_open(thread)
        except OSError:
            pass
        else:
            if thread not in self._leaders:
                self._leaders.append(thread)
                del self._leaders[1:-256]
            return found
        for leader in reversed(self._leaders):
            try:
                system_call("tgkill", leader, thread, 0)  # no signal, only the question whether it is a thread of it
                return os.pidfd_open(leader)
            except OSError:
                continue
        raise UnknownProcessError(errno.EBADF, "the process of the thread cannot be told")
