"""How a system call on a socket is answered: at once, when the client has answered, or when something has changed.

A call that the client has to be asked for is answered when its answer comes, and others are answered meanwhile. A signal may end the
wait: a call that is restarted with the same arguments joins what it had begun. The client is asked for one call on a socket at a time:
those that other threads make meanwhile are done anew when that has been answered, as the kernel has them wait for the socket's lock.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.notifications import FaultError, GoneError, Listener, Note
from adyton.runtime.process.supervisor.sockets import addresses
from adyton.runtime.process.supervisor.sockets.pump import Client, Pump
from adyton.runtime.process.supervisor.sockets.standin import StandIn

INT = struct.Struct("=i")
_TIMEVAL = struct.Struct("=qq")
LATER: Final = None  # the call is answered later
MOST_WAITING = 4096  # calls of one stand-in


def failure(number: int) -> OSError:
    """The error that a system call fails with."""
    return OSError(number, os.strerror(number))


def errno_of(result: net.Result | abi.Failed) -> int:
    """The errno of an answer that is not the one that was hoped for."""
    return int(getattr(errno, result.errno)) if isinstance(result, abi.Failed) else errno.EIO


def blocks(fetched: socket.socket) -> bool:
    """Whether the guest's end is in blocking mode."""
    return os.get_blocking(fetched.fileno())


def patience(fetched: socket.socket, option: int) -> float | None:
    """How long a blocking call waits: SO_RCVTIMEO or SO_SNDTIMEO of the guest's end in seconds, None for ever."""
    seconds, microseconds = _TIMEVAL.unpack(fetched.getsockopt(socket.SOL_SOCKET, option, _TIMEVAL.size))
    return seconds + microseconds / 1e6 or None


@dataclass
class Flight:
    """A call that the client was asked for. `key`: what makes a restarted call the same; `result`: of one that nobody waited for."""

    key: tuple[object, ...]
    note: Note
    result: int | OSError | None = None


class Answering:
    """See the module. `pump` and `again` are set before the first call; `again` does a call anew that has waited."""

    pump: Pump
    again: Callable[[Note], None]

    def __init__(self, listener: Listener, loop: Loop, client: Client) -> None:
        self.listener = listener
        self._loop = loop
        self.client = client
        self.flights: dict[int, Flight] = {}  # by inode

    def _finish(self, note: Note, result: int | OSError) -> bool:
        """Answer late; False: nobody waits any more."""
        try:
            if isinstance(result, OSError):
                self.listener.answer(note, error=result.errno or errno.EIO)
            else:
                self.listener.answer(note, result)
        except GoneError:
            return False
        return True

    def ask(
        self,
        note: Note,
        standin: StandIn,
        request: net.Request,
        finish: Callable[[net.Result | abi.Failed], int],
    ) -> int | None:
        """Ask the client, once for a call and its restarts; `finish` says what comes of the answer.

        While it is asked for another thread's call, this one waits, and then is done anew from its beginning.
        """
        if self._is_anothers_turn(note, standin):
            self.wait(note, standin, lambda: self._is_done_anew(note, standin), None)
            return LATER
        key = (note.number, note.arguments[1:], request)
        flight = self.flights.get(standin.inode)
        if flight is not None and flight.key == key:
            if flight.result is None:
                flight.note = note
                return LATER
            del self.flights[standin.inode]
            if isinstance(flight.result, OSError):
                raise flight.result
            return flight.result
        flight = self.flights[standin.inode] = Flight(key, note)

        def done(result: net.Result | abi.Failed) -> None:
            land(result)
            self.moved(standin)  # who waits for its turn

        def land(result: net.Result | abi.Failed) -> None:
            outcome: int | OSError
            if not self.pump.knows(standin):
                self.flights.pop(standin.inode, None)
                self.let_go(request, result)
                outcome = failure(errno.EBADF)
            else:
                try:
                    outcome = finish(result)
                except OSError as error:
                    outcome = error
                except GoneError:  # what it was to write is not written: a restarted call asks again
                    self.flights.pop(standin.inode, None)
                    return
            if self._finish(flight.note, outcome):
                if self.flights.get(standin.inode) is flight:
                    del self.flights[standin.inode]
            else:
                flight.result = outcome  # for the restarted call

        self.client.request(request, done)
        return LATER

    def _is_anothers_turn(self, note: Note, standin: StandIn) -> bool:
        """Whether the client is being asked for a call of another thread, which still waits for it."""
        flight = self.flights.get(standin.inode)
        return (
            flight is not None
            and flight.result is None
            and flight.note.thread != note.thread
            and self.listener.waits(flight.note)
        )

    def _is_done_anew(self, note: Note, standin: StandIn) -> bool:
        """Do a call that has waited for its turn, if it has come."""
        if self._is_anothers_turn(note, standin):
            return False
        self.again(note)
        return True

    def forget_answered(self, standin: StandIn) -> None:
        """What the client has answered for a call that a signal had ended is of no use any more."""
        flight = self.flights.get(standin.inode)
        if flight is not None and flight.result is not None:
            del self.flights[standin.inode]

    def let_go(self, request: net.Request, result: net.Result | abi.Failed) -> None:
        """The guest has closed a socket meanwhile: what the client has opened for it is of no use."""
        if isinstance(result, net.Bound | net.Connected) and not isinstance(request, net.Resolve | net.GetOption):
            self.client.tell(net.CloseSocket(request.socket, reset=False))

    def wait(
        self,
        note: Note,
        standin: StandIn,
        ready: Callable[[], bool],
        seconds: float | None,
        too_late: int = errno.EAGAIN,
    ) -> None:
        """Call `ready` whenever something has changed, until it is True; after `seconds` the call fails with `too_late`."""
        standin.waiting = [each for each in standin.waiting if self.listener.waits(each[0])]
        if len(standin.waiting) >= MOST_WAITING:
            raise failure(errno.ENOBUFS)
        entry = (note, ready)
        standin.waiting.append(entry)

        def expire() -> None:
            if entry in standin.waiting:
                standin.waiting.remove(entry)
                self._finish(note, failure(too_late))

        if seconds is not None:
            self._loop.later(seconds, expire)

    def moved(self, standin: StandIn) -> None:
        """Something has changed about a stand-in, or it is gone: see what waits for that."""
        if not self.pump.knows(standin):
            self.flights.pop(standin.inode, None)
        waiting, standin.waiting = standin.waiting, []
        standin.waiting = [each for each in waiting if not self._is_over(standin, *each)] + standin.waiting

    def _is_over(self, standin: StandIn, note: Note, ready: Callable[[], bool]) -> bool:
        try:
            if not self.pump.knows(standin):
                raise failure(errno.EBADF)
            return ready()
        except GoneError:
            return True
        except FaultError:
            self._finish(note, failure(errno.EFAULT))
        except OSError as error:
            self._finish(note, error)
        return True

    # -- arguments ------------------------------------------------------------------------------------------------------

    def read_address(self, note: Note, pointer: int, length: int) -> bytes:
        size = note.argument(length)
        if not 0 <= size <= addresses.MAX_LENGTH:
            raise failure(errno.EINVAL)
        return self.listener.read(note, note.arguments[pointer], size)

    def write_address(self, note: Note, pointer: int, endpoint: net.Endpoint, family: net.Family) -> None:
        """To where argument `pointer` points; the next argument points to the room there, which becomes the size."""
        data = addresses.pack(endpoint, family)
        self.write_sized(note, pointer, data, cut=False)

    def write_sized(self, note: Note, pointer: int, data: bytes, *, cut: bool) -> None:
        """`cut`: the size that is told is that of what was written."""
        place, size = note.arguments[pointer], note.arguments[pointer + 1]
        (room,) = INT.unpack(self.listener.read(note, size, INT.size))
        if room < 0:
            raise failure(errno.EINVAL)
        self.listener.write(note, place, data[:room])
        self.listener.write(note, size, INT.pack(min(room, len(data)) if cut else len(data)))
