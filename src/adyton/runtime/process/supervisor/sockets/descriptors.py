"""The descriptors by which the filter knows datagram sockets: new ones are given these, and so are copies, made by dup and by fcntl.

See table.DATAGRAM_DESCRIPTORS. A copy whose number the program chooses (dup2), or that comes over a unix socket, has another; so has one
when all of these are taken. One that a fork leaves to a child has the same.
"""

from __future__ import annotations

import errno
import os
import socket

from adyton.runtime.process.supervisor.fetching import NotSocketError, UnknownProcessError
from adyton.runtime.process.supervisor.notifications import Listener, Note
from adyton.runtime.process.supervisor.sockets.answering import LATER
from adyton.runtime.process.supervisor.sockets.pump import Pump
from adyton.runtime.process.supervisor.sockets.standin import StandIn
from adyton.runtime.process.table import DATAGRAM_DESCRIPTORS, number

_DUP, _DUP_CLOSE_ON_EXEC = 0, 1030  # linux/fcntl.h: F_DUPFD, F_DUPFD_CLOEXEC


class Descriptors:
    """`dup` and `fcntl` are system calls, see calls.SocketCalls."""

    def __init__(self, listener: Listener, pump: Pump) -> None:
        self._listener = listener
        self._pump = pump
        self._next = DATAGRAM_DESCRIPTORS.start
        self._dup = number("dup")

    def give(self, note: Note, made: StandIn, end: socket.socket, *, close_on_exec: bool) -> int:
        """Answer with a descriptor of a stand-in's end; which number it has. GoneError; OSError EMFILE."""
        if made.kind == "datagram" and (wanted := self._free(note, 0)) is not None:
            try:
                return self._listener.give(note, end.fileno(), close_on_exec=close_on_exec, number=wanted)
            except OSError:  # the guest's limit of descriptors is below
                pass
        return self._listener.give(note, end.fileno(), close_on_exec=close_on_exec)

    def duplicate(self, note: Note) -> int | None:
        """dup and fcntl, of a descriptor that a datagram socket may have: what else there is to them is the kernel's."""
        plain = note.number == self._dup
        command, least = (_DUP, 0) if plain else (note.argument(1), note.arguments[2] & 0xFFFFFFFF)
        try:
            descriptor = self._listener.fetch(note, note.argument(0))
        except NotSocketError:
            self._listener.go_on(note)
            return LATER
        with socket.socket(fileno=descriptor):
            standin = self._pump.find(os.fstat(descriptor).st_ino)
            wanted = None
            if standin is not None and standin.kind == "datagram" and command in (_DUP, _DUP_CLOSE_ON_EXEC):
                wanted = self._free(note, least)
            if wanted is not None:
                try:
                    self._listener.give(note, descriptor, close_on_exec=command == _DUP_CLOSE_ON_EXEC, number=wanted)
                except OSError:  # as above
                    self._listener.go_on(note)
            else:
                self._listener.go_on(note)
        return LATER

    def _free(self, note: Note, least: int) -> int | None:
        """One under which the guest has nothing, not below `least`.

        It could only come to have something there meanwhile if another of its threads asked for that very number.
        """
        for _ in DATAGRAM_DESCRIPTORS:
            wanted = self._next
            self._next = wanted + 1 if wanted + 1 in DATAGRAM_DESCRIPTORS else DATAGRAM_DESCRIPTORS.start
            if wanted < least:
                continue
            try:
                os.close(self._listener.fetch(note, wanted))
            except NotSocketError:
                continue
            except UnknownProcessError:
                return None
            except OSError as error:
                return wanted if error.errno == errno.EBADF else None
        return None
