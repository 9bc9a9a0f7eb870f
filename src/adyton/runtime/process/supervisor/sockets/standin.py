"""A stand-in: a pair of unix sockets, of which the guest has one end as if it were the client's socket.

What the guest writes is read from the other end and goes to the client, as far as there is credit; what the client sends is written
there, as far as the guest reads. So the guest's read, write, poll and epoll are the kernel's own. A stream is a pair of streams; a
datagram socket is a pair of SEQPACKET sockets, which keep boundaries and yet tell of their end.

    hidden behind it                          how the guest's kernel is made to show it
    a connect that is under way               the guest's end is filled: it is not writable
    a socket that listens                     the guest's end is filled, and shut for writing
    a connection to accept                    one byte each is readable
    end of stream                             shutdown of our end
    a reset                                   our end is closed while something in it is unread: ECONNRESET
    an error of a datagram socket             a datagram that is none is readable
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from adyton.hostcall import sockets as net
from adyton.runtime.process.supervisor.notifications import Note
from adyton.runtime.process.supervisor.socket_memory import LARGEST_BUFFER

# failed: a connect has, and no connect has told so yet; broken: a connection was lost
State = Literal["new", "connecting", "connected", "listening", "failed", "broken"]

_SIOCOUTQ = 0x5411  # linux/sockios.h: bytes that the other end has not read, with what the kernel needs to keep them
_FILLING = bytes(1 << 16)
FULL = 1 << 17  # bytes that are there at once: about what the kernel keeps of a stream by itself
_WIDE = LARGEST_BUFFER  # bytes that it is to keep of one through which much goes; it doubles them, as far as its wmem_max goes


@dataclass(frozen=True, slots=True)
class Sender:
    """Where a datagram comes from, and what the client told with it. `peer` None: it is none, but shows that there is an error to tell.

    `local`: it was made here, and takes none of the client's credit.
    """

    peer: net.Endpoint | None
    ancillary: net.Ancillary | None = None
    local: bool = False


@dataclass(eq=False)
class StandIn:
    """One of them. `credit`: bytes that the client takes; `room`: of our `window`, that it may still send; `taken`: of those, what it is not told of yet."""

    family: net.Family
    kind: net.Kind
    number: int  # on the client
    end: socket.socket
    guest_end: socket.socket | None  # until the guest has it
    inode: int
    guest_buffer: int  # bytes that the kernel keeps of what the guest writes, in its own measure
    state: State = "new"
    opened: bool = False  # the client has a socket for it
    begun: bool = False  # so far is a connect that `local` is known
    close_on_exec: bool = False  # as it was made
    bound: net.Endpoint | None = None  # where the guest wanted it
    local: net.Endpoint | None = None
    peer: net.Endpoint | None = None
    options: dict[str, list[int]] = field(default_factory=dict)
    local_options: dict[int, bytes] = field(
        default_factory=dict
    )  # of SOL_SOCKET, those that the guest's end has itself
    ignored: dict[str, list[int]] = field(default_factory=dict)  # options without effect: what was set is what is read
    error: int = 0  # what SO_ERROR has
    shown: bool = False  # its kernel has an error for the guest's end, as long as nobody was told of it
    unreported: bool = False  # a connect has ended, and nobody has been told
    filled: int = 0  # bytes in our end that are none of the guest's
    credit: int = 0
    window: int = 0
    room: int = 0
    taken: int = 0
    incoming: deque[bytes] = field(default_factory=deque)
    incoming_from: deque[Sender] = field(default_factory=deque)  # where each of them comes from, of datagrams
    ended: bool = False  # the client sends nothing more
    lost: str = ""  # the errno with which the connection was lost, to be shown once all has been read
    wide_in: bool = False  # the kernel keeps more for the guest than by itself
    wide_out: bool = False  # the same of what the guest writes
    shut: bool = False  # the guest sends nothing more
    over: bool = False  # nor does the client, and that was shown
    hung: bool = False  # the guest has closed all its copies
    seen: tuple[int, int] = (0, -1)  # a thread of the guest, and the descriptor under which it had this last
    pending: deque[StandIn] = field(default_factory=deque)  # connections to accept
    promised: set[int] = field(default_factory=set)  # numbers that the client has for connections to come
    waiting: list[tuple[Note, Callable[[], bool]]] = field(default_factory=list)
    senders: deque[tuple[Sender, int]] = field(
        default_factory=deque
    )  # of datagrams in the guest's end, and what each counts there
    marked: bool = False  # one of those is none, but shows an error
    written: int = 0  # bytes of a stream that the guest wrote, and the client was sent
    urgent: deque[int] = field(default_factory=deque)  # which of its bytes are urgent: how many are before each
    reachable: set[net.Endpoint] = field(default_factory=set)
    held: list[bytes] = field(default_factory=list)  # datagrams, until the client has a socket for them

    def __post_init__(self) -> None:
        self.credit = self.window = self.room = net.first(self.kind)

    @property
    def spent(self) -> bool:
        """Whether our end is closed, to show a failure, while the guest may begin anew with the socket: in a fresh one's place."""
        return self.state == "new" and self.end.fileno() < 0

    @property
    def new(self) -> net.New:
        return net.New(self.family, self.kind, [net.Option(name, values) for name, values in self.options.items()])


def make(family: net.Family, kind: net.Kind, number: int) -> StandIn:
    """A new one. OSError EMFILE."""
    end, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM if kind == "stream" else socket.SOCK_SEQPACKET)
    end.setblocking(False)
    buffer = other.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    return StandIn(family, kind, number, end, other, os.fstat(other.fileno()).st_ino, buffer)


def inherit(made: StandIn, other: StandIn) -> None:
    """Before the guest has it: the options of another, its listener, say, but for those of the client's socket, which its kernel passes on."""
    assert made.guest_end is not None
    made.local_options, made.ignored = other.local_options.copy(), other.ignored.copy()
    for number, value in made.local_options.items():
        made.guest_end.setsockopt(socket.SOL_SOCKET, number, value)


def has_hung_up(end: socket.socket) -> bool:
    """Whether the guest has closed its end, all copies of it; or both directions are shut."""
    return _shows(end, 0)


def is_shut(end: socket.socket) -> bool:
    """Whether the guest writes nothing more."""
    return _shows(end, select.POLLRDHUP)


def _shows(end: socket.socket, events: int) -> bool:
    poller = select.poll()
    poller.register(end, events)
    return bool(poller.poll(0))


# -- streams through which much goes: each time that one end is woken costs more than some bytes do --------------------------


def widen_in(standin: StandIn) -> bool:
    """Have the kernel keep more for the guest; False: it does already."""
    if standin.wide_in or standin.kind != "stream":
        return False
    standin.wide_in = True
    standin.end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _WIDE)
    return True


def widen_out(standin: StandIn, guest_end: socket.socket) -> None:
    """Have it keep more of what the guest writes."""
    guest_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _WIDE)
    standin.guest_buffer = guest_end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


# -- the look of a connect that is under way --------------------------------------------------------------------------------


def fill(standin: StandIn, guest_end: socket.socket) -> None:
    """Make the guest's end not writable."""
    with contextlib.suppress(BlockingIOError):
        while True:
            standin.filled += guest_end.send(_FILLING, socket.MSG_DONTWAIT)


def drain(standin: StandIn) -> None:
    """Make it writable again."""
    while standin.filled > 0:
        standin.filled -= len(standin.end.recv(standin.filled, socket.MSG_DONTWAIT))


def discard(end: socket.socket) -> int:
    """Read all that the guest has written, and forget it. How many bytes that was."""
    size = 0
    with contextlib.suppress(OSError):
        while data := end.recv(net.CHUNK, socket.MSG_DONTWAIT):
            size += len(data)
    return size


def refuse_what_is_written(end: socket.socket) -> int:
    """Forget what the guest has written, and have it told EPIPE from now on, if that is anything. How many bytes that was.

    Were a byte written between the last read and the close, the kernel would show a reset.
    """
    size = discard(end)
    if size:
        end.shutdown(socket.SHUT_RD)
        discard(end)
    return size


def thin(standin: StandIn) -> None:
    """Leave so little unread in our end, which is about to be closed, as still keeps the guest's from being writable.

    The kernel shows a reset, wakes who polls for it, and only then frees what was unread, which makes the guest's end writable. A TCP
    socket becomes both at once; here the second comes the sooner the less there is to be freed.
    """
    end = standin.end
    surplus = unread_of(end) - standin.guest_buffer // 4 - 1  # it is writable while a quarter is taken
    with contextlib.suppress(OSError):
        while surplus > 0 and (data := end.recv(surplus, socket.MSG_DONTWAIT)):
            surplus -= len(data)


def unread_of(end: socket.socket) -> int:
    """How many bytes the guest has written that we have not read."""
    return int(struct.unpack("=i", fcntl.ioctl(end, termios.FIONREAD, bytes(4)))[0])


def mark_urgent(standin: StandIn) -> None:
    """The last byte that the guest has written is urgent. (Its other threads should not write in this very moment.)"""
    standin.urgent.append(standin.written + unread_of(standin.end) - 1)


def take_error(standin: StandIn, guest_end: socket.socket) -> int:
    """The errno of what became of it, 0 if there is none: it is told once, be it here or by the guest's kernel in a call of its own."""
    code, standin.error = standin.error, 0
    if standin.shown and not guest_end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        code = 0
    standin.shown = False
    return code


def show_listening(standin: StandIn, guest_end: socket.socket) -> None:
    """Have nothing writable, and EPIPE for who writes all the same."""
    fill(standin, guest_end)
    thin(standin)
    guest_end.shutdown(socket.SHUT_WR)


# -- which datagram the guest reads next ------------------------------------------------------------------------------------


def unread(end: socket.socket) -> int:
    """What the guest has not read of what was written to `end`, in the kernel's own measure."""
    return int(struct.unpack("=i", fcntl.ioctl(end, _SIOCOUTQ, bytes(4)))[0])


class Costs:
    """What a datagram of some size counts in `unread`: found out once for each size, on a pair of our own."""

    def __init__(self) -> None:
        self._pair: tuple[socket.socket, socket.socket] | None = None
        self._known: dict[int, int] = {}

    def of(self, size: int) -> int:
        """In the kernel's measure."""
        found = self._known.get(size)
        if found is None:
            if self._pair is None:
                self._pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            here, there = self._pair
            here.send(bytes(size), socket.MSG_DONTWAIT)
            found = self._known[size] = unread(here)
            there.recv(1, socket.MSG_DONTWAIT)
        return found

    def close(self) -> None:
        for each in self._pair or ():
            each.close()


def forget_read(standin: StandIn) -> None:
    """Drop the senders of datagrams that the guest has read by itself."""
    left = unread(standin.end)
    senders = standin.senders
    total = sum(cost for _, cost in senders)
    while senders and total > left:
        sender, cost = senders.popleft()
        standin.marked = standin.marked and sender.peer is not None
        total -= cost


def would_block(error: OSError) -> bool:
    return error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS)
