"""System calls of the guest about which its filter asks: seccomp user notification, and the memory and descriptors of who waits.

    note = listener.receive()               a thread of the guest waits in a system call
    listener.read(note, address, size)      its arguments, copied once; what is decided, is decided on the copy
    listener.fetch(note, descriptor)        a duplicate of one of its descriptors, of a socket
    listener.write(note, address, data)
    listener.answer / give / go_on          once; None of them blocks. GoneError: a signal has ended the wait, or the thread

A thread that waits can be interrupted by its program's signals, as in any system call that blocks: then its number is void, and the
call, if it is restarted, comes with another one. Source: seccomp_unotify(2), linux/seccomp.h, process_vm_readv(2), pidfd_getfd(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from adyton.runtime.process.libc import system_call
from adyton.runtime.process.supervisor.looks import looking
from adyton.runtime.process.table import DATAGRAM_DESCRIPTORS, number

_RECEIVE = 0xC0502100
_SEND = 0xC0182101
_ID_VALID = 0x40082102
_ADD_DESCRIPTOR = 0x40182103
_SET_FLAGS = 0x40082104
_SYNCHRONOUS_WAKE_UP = 1  # who waits and who answers hand the CPU to one another (Linux 6.6)
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_ADD_AT, _ADD_AND_SEND = 1, 2  # SECCOMP_ADDFD_FLAG_SETFD, _SEND

_NOTE = struct.Struct("<QIIiIQ6Q")  # struct seccomp_notif: id, pid, flags; nr, arch, instruction pointer, args
_ANSWER = struct.Struct("<QqiI")  # struct seccomp_notif_resp: id, val, error, flags
_ADD = struct.Struct("<QIIII")  # struct seccomp_notif_addfd: id, flags, srcfd, newfd, newfd_flags
_MAX_ERRNO = 4095

_OF_DATAGRAMS = ("sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg")
_NOBODY_WAITS = (errno.ENOENT, errno.EINPROGRESS)


class GoneError(Exception):
    """Nobody waits for this answer any more."""


class FaultError(Exception):
    """There is no such memory."""


@dataclass(frozen=True, slots=True)
class Note:
    """Thread `thread` (as this process numbers it) waits in system call `number` of `architecture` with `arguments`, six of 64 bits."""

    id: int
    thread: int
    number: int
    architecture: int
    arguments: tuple[int, ...]

    def argument(self, position: int) -> int:
        """An argument that is an int: the low 32 bits, signed."""
        low = self.arguments[position] & 0xFFFFFFFF
        return low - (1 << 32) if low & 0x80000000 else low


def parse(data: bytes | bytearray) -> Note:
    """A struct seccomp_notif."""
    identity, thread, _, number, architecture, _, *arguments = _NOTE.unpack_from(data)
    return Note(identity, thread, number, architecture, tuple(arguments))


class Fetching(Protocol):
    """What a listener needs of fetching.Fetcher."""

    def fetch(self, thread: int, descriptor: int) -> int: ...
    def fetch_at_once(self, thread: int, descriptor: int) -> int: ...
    def fetch_of_waiting(self, thread: int, descriptor: int, check: Callable[[], None]) -> int: ...


class Listener:
    """A filter's listener. The holder closes it; a guest whose listener is closed gets ENOSYS for what it would have asked."""

    def __init__(self, descriptor: int, fetcher: Fetching) -> None:
        self._descriptor = descriptor
        self._fetcher = fetcher
        self._of_datagrams = frozenset(map(number, _OF_DATAGRAMS))
        with contextlib.suppress(OSError):  # an older kernel
            fcntl.ioctl(descriptor, _SET_FLAGS, _SYNCHRONOUS_WAKE_UP)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    def receive(self) -> Note | None:
        """The next that waits, when the descriptor is readable; None: it gave up meanwhile."""
        data = bytearray(_NOTE.size)  # the kernel wants zeros
        try:
            fcntl.ioctl(self._descriptor, _RECEIVE, data)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        return parse(data)

    # -- what the waiting thread has ------------------------------------------------------------------------------------

    def read(self, note: Note, address: int, size: int) -> bytes:
        """A copy of `size` bytes of its memory. FaultError; GoneError."""
        data = ctypes.create_string_buffer(size)
        self._copy("process_vm_readv", note, data, address, size)
        self.check(note)
        return data.raw

    def write(self, note: Note, address: int, data: bytes) -> None:
        """FaultError; GoneError."""
        self.check(note)  # else the number might be another thread's by now
        self._copy("process_vm_writev", note, ctypes.create_string_buffer(data, len(data)), address, len(data))

    def _copy(self, call: str, note: Note, buffer: ctypes.Array[ctypes.c_char], address: int, size: int) -> None:
        if not size:
            return
        here = struct.pack("<QQ", ctypes.addressof(buffer), size)
        there = struct.pack("<QQ", address, size)
        try:
            with looking():
                copied = system_call(call, note.thread, here, 1, there, 1, 0)
        except ProcessLookupError:
            raise GoneError from None
        except OSError as error:
            raise FaultError from error
        if copied != size:
            raise FaultError

    def fetch(self, note: Note, descriptor: int, *, later: bool = False) -> int:
        """A duplicate of its descriptor, which is a socket's, close-on-exec, the caller's to close. `later`: the call has waited.

        As Fetcher.fetch; GoneError; RemoteProtocolError, if not `later`, which has to end the enclave.
        """
        thread = note.thread
        try:
            if later:
                self.check(note)  # its number may be that of who has ended it by now, by execve, and cannot be asked
                fetched = self._fetcher.fetch(thread, descriptor)
            elif descriptor in DATAGRAM_DESCRIPTORS and note.number in self._of_datagrams:
                fetched = self._fetcher.fetch_at_once(thread, descriptor)
            else:
                fetched = self._fetcher.fetch_of_waiting(thread, descriptor, lambda: self.check(note))
        except ProcessLookupError:
            raise GoneError from None
        try:
            self.check(note)
        except GoneError:
            os.close(fetched)
            raise
        return fetched

    # -- answers --------------------------------------------------------------------------------------------------------

    def check(self, note: Note) -> None:
        """GoneError unless the thread still waits."""
        try:
            fcntl.ioctl(self._descriptor, _ID_VALID, struct.pack("<Q", note.id))
        except OSError as error:
            raise GoneError from error

    def waits(self, note: Note) -> bool:
        """Whether the thread still waits."""
        try:
            self.check(note)
        except GoneError:
            return False
        return True

    def answer(self, note: Note, value: int = 0, error: int = 0) -> None:
        """The call's result, or its errno. GoneError."""
        assert 0 <= error <= _MAX_ERRNO, error
        self._send(_ANSWER.pack(note.id, 0 if error else value, -error, 0))

    def go_on(self, note: Note) -> None:
        """The kernel does the call, with whatever its arguments point to by then: no decision may rest on a copy of that. GoneError."""
        self._send(_ANSWER.pack(note.id, 0, 0, _CONTINUE))

    def give(self, note: Note, descriptor: int, *, close_on_exec: bool, number: int | None = None) -> int:
        """Answer with a duplicate of our descriptor, in one step; its number there. GoneError; OSError EMFILE.

        `number`: the one that it is to have, in place of what has that; OSError EBADF where none can be so high.
        """
        if number is None:
            return self._add(note, descriptor, _ADD_AND_SEND, 0, close_on_exec=close_on_exec)
        return self._add(note, descriptor, _ADD_AND_SEND | _ADD_AT, number, close_on_exec=close_on_exec)

    def replace(self, note: Note, number: int, descriptor: int, *, close_on_exec: bool) -> None:
        """Put a duplicate of our descriptor where the thread has its own of that number, as dup2 does; the call still waits. GoneError; OSError."""
        self._add(note, descriptor, _ADD_AT, number, close_on_exec=close_on_exec)

    def _add(self, note: Note, descriptor: int, how: int, number: int, *, close_on_exec: bool) -> int:
        flags = os.O_CLOEXEC if close_on_exec else 0
        try:
            request = bytearray(_ADD.pack(note.id, how, descriptor, number, flags))
            given: int = fcntl.ioctl(self._descriptor, _ADD_DESCRIPTOR, request)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINPROGRESS, errno.EINTR, errno.ESRCH):
                raise GoneError from error
            raise
        return given

    def _send(self, answer: bytes) -> None:
        try:
            fcntl.ioctl(self._descriptor, _SEND, answer)
        except OSError as error:
            if error.errno in _NOBODY_WAITS:
                raise GoneError from error
            raise
