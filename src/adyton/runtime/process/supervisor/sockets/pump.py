"""What flows between stand-ins and the client, both ways, within the windows. One thread, no waiting."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
from collections.abc import Callable
from typing import Protocol

from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.runtime.process.supervisor.looks import copying
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.sockets import standin as standins
from adyton.runtime.process.supervisor.sockets.standin import Sender, StandIn, State

BEHIND = 1 << 18  # bytes on their way to the client, from which on nothing more is read from stand-ins
MAX_HELD = 256 << 20  # bytes for the guest, of all stand-ins together, that it has not read: beyond, datagrams are lost
# Each needs a descriptor here, and the supervisor some of its own.
MOST = min(net.MAX_SOCKETS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 256)
KEPT_BROKEN = 1024  # stand-ins whose connection was lost, for what the guest still asks about them

Done = Callable[[net.Result | abi.Failed], None]


class Client(Protocol):
    """The client, as stand-ins see it."""

    def request(self, request: net.Request, done: Done) -> None:
        """Ask; `done` is given the checked answer, once, later."""

    def tell(self, message: net.FromEnclave) -> None: ...
    def bytes_pending(self) -> int: ...


class Pump:
    """All stand-ins of a guest, by the inode of its end. `leader`: the guest's first process.

    `moved` is called when something has changed that a system call may wait for; `datagram` with each that the guest sends to no
    address, and sees to it that it takes of the credit; `fetch`: a process' descriptor, see fetching.Fetcher.
    """

    def __init__(
        self,
        loop: Loop,
        client: Client,
        leader: int,
        moved: Callable[[StandIn], None],
        datagram: Callable[[StandIn, bytes], None],
        fetch: Callable[[int, int], int],
    ) -> None:
        self._loop = loop
        self._client = client
        self._leader = leader
        self._moved = moved
        self._datagram = datagram
        self._fetch = fetch
        self._by_inode: dict[int, StandIn] = {}
        self._by_number: dict[int, StandIn] = {}
        self._broken: dict[int, StandIn] = {}
        self._numbers = 0
        self._behind = False
        self._held = 0  # bytes
        self._grown = 0  # bytes, by which windows are larger than at first
        self._costs = standins.Costs()
        # A selector asks for something; this only learns that the guest has closed its end.
        self._hangups = select.epoll()
        self._hung: dict[int, StandIn] = {}
        loop.read(self._hangups, self._hang_ups)

    def close(self) -> None:
        for each in list(self._by_number.values()):
            self._drop(each)
        self._loop.forget(self._hangups)
        self._hangups.close()
        self._costs.close()

    # -- making and finding ---------------------------------------------------------------------------------------------

    def number(self) -> int:
        """A number that no socket has had."""
        self._numbers += 1
        return self._numbers

    def make(self, family: net.Family, kind: net.Kind, number: int | None = None) -> StandIn:
        """A new stand-in. OSError: EMFILE when there are too many."""
        if len(self._by_number) >= MOST:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made = standins.make(family, kind, self.number() if number is None else number)
        self._by_inode[made.inode] = made
        self._by_number[made.number] = made
        self._hung[made.end.fileno()] = made
        self._hangups.register(made.end, select.EPOLLET)
        self._watch(made)
        return made

    def make_anew(self, spent: StandIn) -> StandIn:
        """One in a spent one's place. OSError: EMFILE."""
        made = self.make(spent.family, spent.kind)
        made.options, made.bound, made.close_on_exec = spent.options, spent.bound, spent.close_on_exec
        return made

    def renumber(self, standin: StandIn) -> None:
        """Let go of the client's socket: the stand-in begins anew."""
        self._let_go_of_pending(standin)
        self._client.tell(net.CloseSocket(standin.number, reset=False))
        del self._by_number[standin.number]
        standin.number = self.number()
        self._by_number[standin.number] = standin
        self._shrink(standin)
        standin.opened, standin.local, standin.taken = False, None, 0
        standin.credit = standin.room = standin.window

    def find(self, inode: int) -> StandIn | None:
        """The stand-in whose end in the guest has this inode."""
        return self._by_inode.get(inode)

    def knows(self, standin: StandIn) -> bool:
        """Whether it is still there: the guest may close it while the client is asked."""
        return self._by_inode.get(standin.inode) is standin

    # -- from the guest to the client -----------------------------------------------------------------------------------

    def start(self, standin: StandIn) -> None:
        """It is connected: let its bytes flow."""
        if standin.window < net.WINDOW:
            self._widen(standin, net.opening(self._grown))
        self._watch(standin)

    def _watch(self, standin: StandIn) -> None:
        if standin.end.fileno() < 0:
            return
        flows = (
            (standin.state in ("connected", "new") or standin.kind == "datagram")
            and not standin.shut
            and not self._behind
            and standin.credit > (0 if standin.kind == "stream" else net.MAX_DATAGRAM + net.DATAGRAM_COST)
        )
        self._loop.read(standin.end, (lambda: self._readable(standin)) if flows else None)

    def watch(self, standin: StandIn) -> None:
        """Its state has changed."""
        self._watch(standin)

    def caught_up(self) -> None:
        """The connection to the client may have room again."""
        if self._behind and self._client.bytes_pending() < BEHIND:
            self._behind = False
            for each in list(self._by_number.values()):
                self._watch(each)

    def _readable(self, standin: StandIn) -> None:
        if self._client.bytes_pending() > BEHIND:
            self._behind = True
            for each in self._by_number.values():
                self._loop.read(each.end, None)
            return
        if standin.kind == "datagram":
            self._read_datagram(standin)
            return
        if standin.state == "new":
            self._written_too_early(standin)
            return
        size = min(net.CHUNK, standin.credit)
        if standin.urgent:  # what is before that byte, or it alone
            size = min(size, max(1, standin.urgent[0] - standin.written))
        try:
            data = standin.end.recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:  # it closed its end, and left something unread
            self._closed(standin, reset=True)
            return
        if not data:
            self._no_more(standin)
            return
        standin.credit -= len(data)
        if standin.urgent and standin.urgent[0] == standin.written:
            standin.urgent.popleft()
            self._client.tell(net.SendUrgent(standin.number, data))
        else:
            self._client.tell(net.Send(standin.number, data))
        standin.written += len(data)
        if len(data) >= standins.FULL and not standin.wide_out:
            self._widen_out(standin)
        if standin.waiting:  # for room
            self._moved(standin)
        if not standin.credit:
            self._client.tell(net.Blocked(standin.number))
        self._watch(standin)

    def _widen_out(self, standin: StandIn) -> None:
        standin.wide_out = True  # even if not: it would be tried again and again
        found = self.guest_end(standin)
        if found is not None:
            with found:
                standins.widen_out(standin, found)

    def _written_too_early(self, standin: StandIn) -> None:
        """What is written to a stream before it is connected goes nowhere, and what comes after it is EPIPE."""
        if standins.refuse_what_is_written(standin.end):
            if standin.opened:  # it was bound
                self._client.tell(net.CloseSocket(standin.number, reset=False))
            self._end(standin, 0, "new")
        elif self._has_closed(standin):
            self._closed(standin, reset=False)
        elif standins.is_shut(standin.end):  # by a call that became another's while it was looked at
            standin.shut = True
            self._watch(standin)

    def _no_more(self, standin: StandIn) -> None:
        if self._has_closed(standin):
            self._closed(standin, reset=False)
            return
        standin.shut = True
        if standin.kind == "stream":
            self._client.tell(net.ShutWrite(standin.number))
        self._watch(standin)

    def _read_datagram(self, standin: StandIn) -> None:
        try:
            data = standin.end.recv(net.MAX_DATAGRAM + 1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._closed(standin, reset=False)
            return
        if not data and self._has_closed(standin):
            self._closed(standin, reset=False)
            return
        if not data and standins.is_shut(standin.end):
            standin.shut = True
        elif len(data) <= net.MAX_DATAGRAM:
            self._datagram(standin, data)
        else:
            standin.error = errno.EMSGSIZE  # that of the next call that can be told
            self._moved(standin)
        self._watch(standin)

    def send_datagram(
        self, standin: StandIn, peer: net.Endpoint | None, data: bytes, ancillary: net.Ancillary | None = None
    ) -> None:
        """Send one to a peer, or to the socket's own."""
        standin.credit -= len(data) + net.DATAGRAM_COST
        self._client.tell(net.SendTo(standin.number, peer, data, ancillary))

    # -- the guest's end ------------------------------------------------------------------------------------------------

    def _hang_ups(self) -> None:
        for descriptor, _ in self._hangups.poll(0):
            standin = self._hung.get(descriptor)
            if standin is None or not self._has_closed(standin):
                continue
            standin.hung = True
            if standin.state != "connected" or standin.shut:
                self._closed(standin, reset=standin.state == "connected" and self._was_reset(standin))
            # else what it wrote goes out first, as far as there is credit

    def _has_closed(self, standin: StandIn) -> bool:
        """Whether the guest has no copy of its end any more. Where both directions are shut, our end looks the same as if it were so."""
        if standin.hung:
            return True
        if not standins.has_hung_up(standin.end):
            return False
        found = self.guest_end(standin)
        if found is None:
            return True
        found.close()
        return False

    @staticmethod
    def _was_reset(standin: StandIn) -> bool:
        return bool(standin.end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _closed(self, standin: StandIn, *, reset: bool) -> None:
        """The guest has no copy of its end any more."""
        if standin.opened or standin.state == "connecting":
            linger = standin.options.get("SO_LINGER")
            self._client.tell(net.CloseSocket(standin.number, reset=reset or linger == [1, 0]))
        self._let_go_of_pending(standin)
        self._drop(standin)
        self._moved(standin)

    def _let_go_of_pending(self, standin: StandIn) -> None:
        for each in standin.pending:
            self._client.tell(net.CloseSocket(each.number, reset=True))
            self._drop(each)
        standin.pending.clear()
        standin.promised.clear()

    def _drop(self, standin: StandIn) -> None:
        self._by_number.pop(standin.number, None)
        self._forget(standin)
        self._held -= sum(map(len, standin.incoming))
        standin.incoming.clear()
        self._shrink(standin)
        self._close_end(standin)
        if standin.guest_end is not None:
            standin.guest_end.close()
            standin.guest_end = None

    def _close_end(self, standin: StandIn) -> None:
        descriptor = standin.end.fileno()
        if descriptor >= 0:
            self._hung.pop(descriptor, None)
            self._loop.forget(standin.end)
            self._hangups.unregister(standin.end)
            standin.end.close()

    def drop_refused(self, standin: StandIn) -> None:
        """The guest did not get it after all."""
        self._drop(standin)

    # -- from the client to the guest -----------------------------------------------------------------------------------

    def take(self, message: net.FromClient) -> None:
        """A message of the client's. What is about no socket of ours is late, and dropped."""
        standin = self._by_number.get(message.socket)
        if standin is None:
            return
        match message:
            case net.Credit(_, size):
                standin.credit = min(standin.credit + size, net.MAX_WINDOW)
                self._watch(standin)
                self._moved(standin)
            case net.Blocked():
                self._grow(standin)
            case net.Received(_, data) if (
                standin.kind == "stream" and standin.state == "connected" and not standin.ended
            ):
                self._take_bytes(standin, data)
            case net.ReceivedFrom(_, peer, data, ancillary) if standin.kind == "datagram":
                own = None if ancillary is None else ancillary.local
                if net.is_address(peer.host, standin.family) and (own is None or net.is_address(own, standin.family)):
                    self.take_datagram(standin, Sender(peer, ancillary), data)
            case net.EndOfStream() if standin.kind == "stream" and standin.state == "connected":
                standin.ended = True
                self._show_end(standin)
            case net.Begun(_, local) if (
                standin.state == "connecting" and not standin.begun and net.is_address(local.host, standin.family)
            ):
                standin.begun, standin.local = True, local
                self._moved(standin)
            case net.Broken(_, name):
                self._lost(standin, name if name in net.ERRNO_NAMES else "EIO")
            case net.Incoming(_, accepted, local, peer):
                self._incoming(standin, accepted, local, peer)
            case _:
                self._lost(standin, "EIO")

    def _take_bytes(self, standin: StandIn, data: bytes) -> None:
        if not self._keeps_to_credit(standin, len(data)):
            return
        self._held += len(data)
        standin.incoming.append(data)
        if len(standin.incoming) == 1:
            self._push(standin)

    def _keeps_to_credit(self, standin: StandIn, cost: int) -> bool:
        """Whether the client does; else the connection is lost."""
        standin.room -= cost
        if standin.room < 0:
            self._lost(standin, "EIO")
        return standin.room >= 0

    def take_datagram(self, standin: StandIn, sender: Sender, data: bytes) -> None:
        """A datagram for the guest."""
        cost = 0 if sender.local else len(data) + net.DATAGRAM_COST
        if not self._keeps_to_credit(standin, cost):
            return
        if cost and self._held + len(data) > MAX_HELD:
            self._taken(standin, cost)
            return
        self._held += len(data)
        standin.incoming.append(data)
        standin.incoming_from.append(sender)
        if len(standin.incoming) == 1:
            self._push(standin)
        self._moved(standin)

    def _push(self, standin: StandIn) -> None:
        """Write what waits for the guest, as far as it takes it."""
        incoming = standin.incoming
        while incoming:
            data = incoming[0]
            try:
                sent = standin.end.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError as error:
                if standins.would_block(error):
                    if standins.widen_in(standin):
                        continue
                    break
                sent = len(data)  # the guest reads no more: as good as taken
            self._held -= sent
            if standin.kind == "datagram":
                incoming.popleft()
                sender = standin.incoming_from.popleft()
                standin.senders.append((sender, self._costs.of(len(data))))
                standins.forget_read(standin)
                if not sender.local:
                    self._taken(standin, len(data) + net.DATAGRAM_COST)
                self._moved(standin)
                continue
            self._taken(standin, sent)
            if sent == len(data):
                incoming.popleft()
            else:
                incoming[0] = data[sent:]
        if standin.end.fileno() < 0:
            return
        self._loop.write(standin.end, (lambda: self._push(standin)) if incoming else None)
        if not incoming:
            self._show_end(standin)
        if standin.waiting:
            self._moved(standin)

    def _taken(self, standin: StandIn, size: int) -> None:
        standin.taken += size
        if standin.taken >= standin.window // net.STEPS and standin.opened:
            size, standin.taken = standin.taken, 0
            standin.room += size
            self._client.tell(net.Credit(standin.number, size))

    def _grow(self, standin: StandIn) -> None:
        """The client would send more than it has credit for."""
        if standin.kind != "stream" or standin.state != "connected":
            return
        self._widen(standin, net.growth(standin.window, sum(map(len, standin.incoming)), self._grown))

    def _widen(self, standin: StandIn, size: int) -> None:
        if size:
            self._grown += size
            standin.window += size
            standin.room += size
            self._client.tell(net.Credit(standin.number, size))

    def _shrink(self, standin: StandIn) -> None:
        first = net.first(standin.kind)
        self._grown -= standin.window - first
        standin.window = first

    def _show_end(self, standin: StandIn) -> None:
        """Nothing more comes: show that to the guest, once it has got all that came before."""
        if standin.incoming:
            return
        if standin.lost:
            self.break_(standin, getattr(errno, standin.lost))
        elif standin.ended:
            standin.over = standin.over or standin.shut
            with contextlib.suppress(OSError):  # it has closed its end
                standin.end.shutdown(socket.SHUT_WR)
            self._moved(standin)

    def _lost(self, standin: StandIn, name: str) -> None:
        if standin.kind == "datagram":  # an ICMP message: the socket goes on
            standin.error = getattr(errno, name)
            if not standin.marked:  # who polls is to see that there is something
                standin.marked = True
                self.take_datagram(standin, Sender(None, local=True), b"")
            self._moved(standin)
            return
        standin.lost = name
        self._let_go_of_pending(standin)
        self._show_end(standin)

    def break_(self, standin: StandIn, code: int, state: State = "broken") -> None:
        """Show the guest a connection that was lost, or did not come about."""
        if standin.end.fileno() >= 0:
            standin.shown = self._leave_something_unread(standin)
            standins.thin(standin)
        self._end(standin, code, state)

    def _end(self, standin: StandIn, code: int, state: State) -> None:
        """Have nothing behind it any more."""
        standin.error, standin.state, standin.opened = code, state, False
        self._shrink(standin)
        self._close_end(standin)
        self._by_number.pop(standin.number, None)
        self._broken[standin.inode] = standin
        if len(self._broken) > KEPT_BROKEN:
            self._forget(self._broken.pop(next(iter(self._broken))))
        self._moved(standin)

    def _forget(self, standin: StandIn) -> None:
        if self._by_inode.get(standin.inode) is standin:
            del self._by_inode[standin.inode]

    def _leave_something_unread(self, standin: StandIn) -> bool:
        """Have a byte in our end, which the kernel takes for one of the guest's: it has to come from there. False: there is none."""
        if standin.filled:
            return True
        found = self.guest_end(standin)
        if found is not None:
            with found:
                self._send_byte(found)
        return standins.unread_of(standin.end) > 0

    def guest_end(self, standin: StandIn) -> socket.socket | None:
        """A duplicate of the guest's end, if it is where it was seen last."""
        if standin.guest_end is not None:
            return standin.guest_end.dup()
        thread, descriptor = standin.seen
        for process in (thread, self._leader):
            found = self._fetched(process, descriptor)
            if found is not None:
                if os.fstat(found.fileno()).st_ino == standin.inode:
                    return found
                found.close()
        return None

    def _fetched(self, process: int, descriptor: int) -> socket.socket | None:
        try:
            return socket.socket(fileno=self._fetch(process, descriptor))
        except OSError:
            return None

    @staticmethod
    def _send_byte(guest_end: socket.socket) -> None:
        try:
            guest_end.send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            pass  # full: there is something unread; or shut down: it knows of its end

    def stop_listening(self, standin: StandIn, guest_end: socket.socket) -> None:
        """It begins anew, in a fresh one's place."""
        self._let_go_of_pending(standin)
        self._client.tell(net.CloseSocket(standin.number, reset=False))
        with copying():
            for end in (standin.end, guest_end):  # what only was to be seen
                standins.discard(end)
        self._end(standin, 0, "new")

    # -- connections that come ------------------------------------------------------------------------------------------

    def promise(self, standin: StandIn, count: int) -> list[int]:
        """Numbers for connections to come."""
        numbers = [self.number() for _ in range(count)]
        standin.promised.update(numbers)
        return numbers

    def _incoming(self, standin: StandIn, number: int, local: net.Endpoint, peer: net.Endpoint) -> None:
        fits = net.is_address(local.host, standin.family) and net.is_address(peer.host, standin.family)
        if number not in standin.promised or not fits:
            self._lost(standin, "EIO")
            return
        standin.promised.discard(number)
        try:
            made = self.make(standin.family, "stream", number)
        except OSError:
            self._client.tell(net.CloseSocket(number, reset=True))
            self._client.tell(net.Accepts(standin.number, self.promise(standin, 1)))
            return
        made.state, made.opened, made.local, made.peer = "connected", True, local, peer
        standin.pending.append(made)
        self.show_pending(standin)
        self._moved(standin)

    @staticmethod
    def show_pending(standin: StandIn) -> None:
        """Make the guest's end readable for one more connection."""
        with contextlib.suppress(OSError):  # it has closed its end, which is seen elsewhere
            standin.end.send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def accepted(self, standin: StandIn) -> None:
        """The first pending connection is the guest's now."""
        made = standin.pending.popleft()
        if made.guest_end is not None:
            made.guest_end.close()
            made.guest_end = None
        self._client.tell(net.Accepts(standin.number, self.promise(standin, 1)))
        self.start(made)
