"""Datagram sockets: connect, sendto and recvfrom, and what the guest sends without an address. See `answering` and `calls`."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.runtime.process.supervisor.looks import copying
from adyton.runtime.process.supervisor.notifications import Note
from adyton.runtime.process.supervisor.sockets import addresses, resolver
from adyton.runtime.process.supervisor.sockets import standin as standins
from adyton.runtime.process.supervisor.sockets.answering import (
    INT,
    LATER,
    Answering,
    blocks,
    errno_of,
    failure,
    patience,
)
from adyton.runtime.process.supervisor.sockets.names import Names
from adyton.runtime.process.supervisor.sockets.standin import Sender, StandIn
from adyton.runtime.process.table_rows import Refused

_NO_ADDRESS = Refused(
    "EDESTADDRREQ",
    "datagrams go to an address by sendto, or without one after connect; what sendmsg of a copied descriptor was to send is lost",
)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A datagram that a system call is to send. `peer` None: to the socket's one peer; `result`: of the call."""

    peer: net.Endpoint | None
    data: bytes
    ancillary: net.Ancillary | None
    waits: bool
    result: int

    @property
    def cost(self) -> int:
        return len(self.data) + net.DATAGRAM_COST


@dataclass(frozen=True, slots=True)
class Seen:
    """What a receiving call would receive: `whole`: the datagram's size."""

    data: bytes
    whole: int
    sender: Sender | None


def refuse_parts(flags: int) -> None:
    """OSError for a part of a datagram (MSG_MORE), which would be sent as one by itself, and for an urgent one."""
    if flags & (socket.MSG_MORE | socket.MSG_OOB):
        raise failure(errno.EOPNOTSUPP)


class DatagramCalls:
    """`connect`, `sendto` and `recvfrom` are system calls, see calls.SocketCalls; `send`, `wait_for`, `look` and `take` what others are made of."""

    def __init__(self, answering: Answering, names: Names, tell: Callable[[str, Refused], None]) -> None:
        """`tell` is given what was dropped, by its call and why."""
        self._a = answering
        self._names = names
        self._tell = tell

    def connect(self, note: Note, standin: StandIn) -> int | None:
        data = self._a.read_address(note, 1, 2)
        if addresses.family_of(data) == addresses.UNSPECIFIED:
            if standin.opened:
                self._a.pump.renumber(standin)
            standin.peer, standin.local, standin.state = None, None, "new"
            self._a.pump.watch(standin)
            return 0
        peer = addresses.parse(data, standin.family)
        if peer == resolver.ADDRESS or (peer.host in self._names.sources and not standin.opened):
            return self._connect_locally(standin, peer)

        def finish(result: net.Result | abi.Failed) -> int:
            if not isinstance(result, net.Connected):
                raise failure(errno_of(result))
            standin.opened, standin.state = True, "connected"
            standin.local, standin.peer = result.local, peer
            self._a.pump.start(standin)
            return 0

        return self._a.ask(note, standin, net.Connect(standin.number, standin.new, peer), finish)

    def _connect_locally(self, standin: StandIn, peer: net.Endpoint) -> int:
        """To the name server; or to what a name resolved to, where a C library only wants to know whether there is a way."""
        source = "127.0.0.1" if peer == resolver.ADDRESS else self._names.sources[peer.host]
        if source is None:
            raise failure(errno.ENETUNREACH)
        standin.peer, standin.local = peer, net.Endpoint(source, 0)
        standin.state = "connected"
        self._a.pump.start(standin)
        return 0

    def sendto(self, note: Note, standin: StandIn, fetched: socket.socket) -> int | None:
        size = note.arguments[2]
        if standin.kind == "stream":
            if not (note.arguments[4] or note.argument(3) & socket.MSG_OOB):  # under a datagram socket's descriptor
                self._a.listener.go_on(note)
                return LATER
            return self._send_on_stream(note, standin, fetched)
        refuse_parts(note.argument(3))
        if size > net.MAX_DATAGRAM:
            raise failure(errno.EMSGSIZE)
        peer = addresses.parse(self._a.read_address(note, 4, 5), standin.family)
        if not peer.port:
            raise failure(errno.EINVAL)
        data = self._a.listener.read(note, note.arguments[1], size)
        waits = not note.argument(3) & socket.MSG_DONTWAIT
        return self.send(note, standin, fetched, Outgoing(peer, data, None, waits, size))

    def send(self, note: Note, standin: StandIn, fetched: socket.socket, outgoing: Outgoing) -> int | None:
        """To a peer that may have to be asked about; or to the one that it is connected to, on the client."""
        peer, data = outgoing.peer, outgoing.data
        if peer == resolver.ADDRESS:
            self._names.query(standin, data)
            return outgoing.result
        if standin.shut:
            raise failure(errno.EPIPE)
        self.raise_error(standin)
        if peer is None or (peer in standin.reachable and standin.opened):
            return self._send_when_there_is_room(note, standin, fetched, outgoing)

        def finish(result: net.Result | abi.Failed) -> int:
            if not isinstance(result, net.Bound):
                raise failure(errno_of(result))
            standin.opened = True
            standin.local = result.local
            if len(standin.reachable) >= net.MAX_SOCKETS:
                standin.reachable.clear()
            standin.reachable.add(peer)
            if standin.credit < outgoing.cost:
                raise failure(errno.EAGAIN)
            self._a.pump.send_datagram(standin, peer, data, outgoing.ancillary)
            return outgoing.result

        return self._a.ask(note, standin, net.Reach(standin.number, standin.new, peer), finish)

    @staticmethod
    def raise_error(standin: StandIn) -> None:
        """OSError: what an ICMP message told of, once."""
        if standin.error:
            code, standin.error = standin.error, 0
            raise failure(code)

    def _send_when_there_is_room(
        self, note: Note, standin: StandIn, fetched: socket.socket, outgoing: Outgoing
    ) -> int | None:
        def send() -> bool:
            if standin.credit < outgoing.cost:
                return False
            self._a.listener.answer(note, outgoing.result)
            self._a.pump.send_datagram(standin, outgoing.peer, outgoing.data, outgoing.ancillary)
            return True

        if standin.credit >= outgoing.cost:
            send()
            return LATER
        if not (blocks(fetched) and outgoing.waits):
            raise failure(errno.EAGAIN)
        self._a.wait(note, standin, send, patience(fetched, socket.SO_SNDTIMEO))
        return LATER

    def _send_on_stream(self, note: Note, standin: StandIn, fetched: socket.socket) -> int | None:
        """The address is of no use there, as with TCP. It may send less than was asked for, of which none is urgent then."""
        if code := standins.take_error(standin, fetched):
            raise failure(code)
        if standin.state not in ("connected", "connecting"):
            raise failure(errno.EPIPE)
        data = self._a.listener.read(note, note.arguments[1], min(note.arguments[2], net.CHUNK))
        urgent = bool(note.argument(3) & socket.MSG_OOB)

        def send(end: socket.socket) -> bool:
            try:
                sent = end.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            if urgent and 0 < sent == note.arguments[2]:
                standins.mark_urgent(standin)
            self._a.listener.answer(note, sent)
            return True

        return self.wait_for(note, standin, fetched, note.argument(3), send, socket.SO_SNDTIMEO)

    def recvfrom(self, note: Note, standin: StandIn, fetched: socket.socket) -> int | None:
        """With the sender's address, if that is asked for."""
        return self.wait_for(note, standin, fetched, note.argument(3), lambda end: self._receive(note, standin, end))

    def wait_for(
        self,
        note: Note,
        standin: StandIn,
        fetched: socket.socket,
        flags: int,
        step: Callable[[socket.socket], bool],
        option: int = socket.SO_RCVTIMEO,
    ) -> int | None:
        """Call `step` with the guest's end until it is True: it has received, or sent, and answered. `option`: how long that may take."""
        if step(fetched):
            return LATER
        if not blocks(fetched) or flags & socket.MSG_DONTWAIT:
            raise failure(errno.EAGAIN)

        def ready() -> bool:
            with socket.socket(fileno=self._a.listener.fetch(note, note.argument(0), later=True)) as again:
                if os.fstat(again.fileno()).st_ino != standin.inode:
                    raise failure(errno.EBADF)
                return step(again)

        self._a.wait(note, standin, ready, patience(fetched, option))
        return LATER

    def look(self, standin: StandIn, fetched: socket.socket, size: int) -> Seen | None:
        """What there is to receive, up to so many bytes of it; it stays where it is. None: nothing. OSError: what an ICMP message told of."""
        if standin.kind == "datagram":
            self.drop_mark(standin, fetched)
            self.raise_error(standin)
        try:
            with copying():
                data, _, _, _ = fetched.recvmsg(size, 0, socket.MSG_DONTWAIT | socket.MSG_PEEK)
                whole = fetched.recv_into(bytearray(1), 1, socket.MSG_DONTWAIT | socket.MSG_PEEK | socket.MSG_TRUNC)
        except BlockingIOError:
            return None
        if standin.kind == "stream":
            return Seen(data, len(data), None)
        standins.forget_read(standin)
        return Seen(data, max(whole, len(data)), standin.senders[0][0] if standin.senders else None)

    @staticmethod
    def drop_mark(standin: StandIn, fetched: socket.socket) -> None:
        """The error that it shows is about to be told."""
        standins.forget_read(standin)
        if standin.senders and standin.senders[0][0].peer is None:
            with contextlib.suppress(OSError), copying():
                fetched.recv(1, socket.MSG_DONTWAIT)
            standin.senders.popleft()
            standin.marked = False

    @staticmethod
    def take(standin: StandIn, fetched: socket.socket, seen: Seen) -> None:
        """Receive what was seen, before the guest goes on, and reads the next."""
        if seen.data or standin.kind == "datagram":
            with copying():
                fetched.recv_into(bytearray(max(1, len(seen.data))), 0, socket.MSG_DONTWAIT)
            if standin.senders:
                standin.senders.popleft()

    def _receive(self, note: Note, standin: StandIn, fetched: socket.socket) -> bool:
        """Receive in the guest's stead, if there is something; False: nothing."""
        seen = self.look(standin, fetched, min(note.arguments[2], net.MAX_DATAGRAM))
        if seen is None:
            return False
        # Written before it is taken: what cannot be written to where the guest wants it stays where it is.
        self._a.listener.write(note, note.arguments[1], seen.data)
        if note.arguments[4] and seen.sender is not None and seen.sender.peer is not None:
            self._a.write_address(note, 4, seen.sender.peer, standin.family)
        elif note.arguments[4] and note.arguments[5]:
            self._a.listener.write(note, note.arguments[5], INT.pack(0))
        flags = note.argument(3)
        if not flags & socket.MSG_PEEK:
            self.take(standin, fetched, seen)
        self._a.listener.answer(note, seen.whole if flags & socket.MSG_TRUNC else len(seen.data))
        return True

    def sent(self, standin: StandIn, data: bytes) -> None:
        """A datagram that the guest wrote without an address."""
        if standin.peer is None:
            self._tell("sendmsg", _NO_ADDRESS)
            standin.error = errno.EDESTADDRREQ
            self._a.moved(standin)
        elif standin.peer == resolver.ADDRESS:
            self._names.query(standin, data)
        elif standin.opened:
            self._a.pump.send_datagram(standin, None, data)
        else:
            self._open_and_send(standin, standin.peer, data)

    def _open_and_send(self, standin: StandIn, peer: net.Endpoint, data: bytes) -> None:
        """The first datagrams of a socket whose connect has not asked the client yet."""
        standin.credit -= len(data) + net.DATAGRAM_COST
        standin.held.append(data)
        if len(standin.held) > 1:
            return

        def done(result: net.Result | abi.Failed) -> None:
            held, standin.held = standin.held, []
            if not self._a.pump.knows(standin):
                self._a.let_go(request, result)
                return
            if standin.peer != peer:
                return
            if isinstance(result, net.Connected):
                standin.opened, standin.local = True, result.local
                for each in held:
                    self._a.client.tell(net.SendTo(standin.number, None, each))
            else:
                standin.error = errno_of(result)
                standin.credit += sum(len(each) + net.DATAGRAM_COST for each in held)
            self._a.pump.watch(standin)

        request = net.Connect(standin.number, standin.new, peer)
        self._a.client.request(request, done)
