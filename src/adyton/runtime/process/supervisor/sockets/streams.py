"""Streams: connect, listen and accept. See `answering` and `calls`."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.runtime.process.supervisor.looks import copying
from adyton.runtime.process.supervisor.notifications import GoneError, Note
from adyton.runtime.process.supervisor.sockets import addresses
from adyton.runtime.process.supervisor.sockets import standin as standins
from adyton.runtime.process.supervisor.sockets.answering import LATER, Answering, blocks, errno_of, failure, patience
from adyton.runtime.process.supervisor.sockets.standin import StandIn
from adyton.runtime.process.table import number

CLOEXEC, NONBLOCK = 0o2000000, 0o4000  # of socket and accept4, on every architecture of the table


class StreamCalls:
    """Each method is a system call: see calls.SocketCalls."""

    def __init__(self, answering: Answering) -> None:
        self._a = answering
        self._connecting = number("connect")

    def connect(self, note: Note, standin: StandIn, fetched: socket.socket) -> int | None:
        data = self._a.read_address(note, 1, 2)
        match standin.state:
            case "connecting":
                if not blocks(fetched):
                    raise failure(errno.EALREADY)
                self._wait_for_connect(note, standin, fetched)
                return LATER
            case "connected":
                if standin.unreported:
                    standin.unreported = False
                    return 0
                raise failure(errno.EISCONN)
            case "listening":
                raise failure(errno.EISCONN)
            case "failed" | "broken":
                code, standin.unreported, standin.state = standins.take_error(standin, fetched), False, "new"
                _forget_address(standin)
                raise failure(code or errno.ECONNABORTED)
            case _:
                pass
        peer = addresses.parse(data, standin.family)
        standin.state, standin.begun = "connecting", False
        self._a.pump.watch(standin)
        standins.discard(standin.end)  # what the guest wrote too early
        standins.fill(standin, fetched)
        if blocks(fetched):
            self._wait_for_connect(note, standin, fetched)
        if standin.bound is not None and not standin.opened:
            self._bind_and_connect(standin, standin.bound, peer)
        else:
            self._begin_to_connect(standin, peer)
        if blocks(fetched):
            return LATER
        raise failure(errno.EINPROGRESS)

    def _begin_to_connect(self, standin: StandIn, peer: net.Endpoint) -> None:
        self._a.client.request(
            net.Connect(standin.number, standin.new, peer), lambda result: self._connect_ended(standin, result)
        )

    def _bind_and_connect(self, standin: StandIn, local: net.Endpoint, peer: net.Endpoint) -> None:
        """In place of a socket whose connect has failed, which was bound."""

        def bound(result: net.Result | abi.Failed) -> None:
            if not isinstance(result, net.Bound):
                self._connect_ended(standin, result)
            elif self._a.pump.knows(standin):
                standin.opened, standin.local = True, result.local
                self._begin_to_connect(standin, peer)

        self._a.client.request(net.Bind(standin.number, standin.new, local), bound)

    def _wait_for_connect(self, note: Note, standin: StandIn, fetched: socket.socket) -> None:
        seconds = patience(fetched, socket.SO_SNDTIMEO)
        self._a.wait(note, standin, lambda: self._connect_over(note, standin), seconds, errno.EINPROGRESS)

    def _connect_ended(self, standin: StandIn, result: net.Result | abi.Failed) -> None:
        if standin.state != "connecting" or not self._a.pump.knows(standin):
            return
        standin.unreported = True
        if isinstance(result, net.Connected):
            standin.state, standin.opened = "connected", True
            standin.local, standin.peer = result.local, result.peer
            standins.drain(standin)
            self._a.moved(standin)
            self._a.pump.start(standin)
            return
        standin.state, standin.error = "new", errno_of(result)
        if any(note.number == self._connecting and self._a.listener.waits(note) for note, _ in standin.waiting):
            standins.drain(standin)  # before who waits goes on
            self._a.pump.watch(standin)
        self._a.moved(standin)
        if standin.unreported:  # nobody waits: who polls is to see it
            if standin.opened:  # it was bound
                self._a.client.tell(net.CloseSocket(standin.number, reset=False))
            self._a.pump.break_(standin, standin.error, "failed")
        else:
            standin.error = 0

    def _connect_over(self, note: Note, standin: StandIn) -> bool:
        if standin.state == "connecting":
            return False
        if not standin.unreported:
            self._a.listener.answer(note, error=errno.EISCONN)
            return True
        if standin.state == "connected":
            self._a.listener.answer(note)
        else:
            self._a.listener.answer(note, error=standin.error or errno.ECONNABORTED)
            _forget_address(standin)
        standin.unreported = False
        return True

    def abort(self, standin: StandIn) -> None:
        """Give up a connect that is under way."""
        self._a.client.tell(net.CloseSocket(standin.number, reset=False))
        standin.unreported = True
        self._a.pump.break_(standin, errno.ECONNRESET, "failed")

    def listen(self, note: Note, standin: StandIn, _fetched: socket.socket) -> int | None:
        if standin.kind != "stream":
            raise failure(errno.EOPNOTSUPP)
        backlog = note.argument(1)
        if standin.state == "listening":
            self._a.forget_answered(standin)
            return 0
        if standin.state != "new":
            raise failure(errno.EINVAL)
        wanted = max(1, min(backlog if backlog >= 0 else net.MAX_ACCEPTS, net.MAX_ACCEPTS))
        if not standin.promised:
            self._a.pump.promise(standin, wanted)

        def finish(result: net.Result | abi.Failed) -> int:
            if not isinstance(result, net.Bound):
                standin.promised.clear()
                raise failure(errno_of(result))
            standin.opened, standin.state, standin.local = True, "listening", result.local
            self._a.pump.watch(standin)
            found = self._a.pump.guest_end(standin)
            if found is not None:
                with found:
                    standins.show_listening(standin, found)
            return 0

        request = net.Listen(
            standin.number, standin.new, max(0, backlog) or wanted, sorted(standin.promised)[: net.MAX_ACCEPTS]
        )
        return self._a.ask(note, standin, request, finish)

    def accept(self, note: Note, standin: StandIn, fetched: socket.socket, flags: int) -> int | None:
        if flags & ~(CLOEXEC | NONBLOCK):
            raise failure(errno.EINVAL)
        if standin.kind != "stream":
            raise failure(errno.EOPNOTSUPP)
        if standin.state != "listening":
            raise failure(errno.EINVAL)
        if self._accept_first(note, standin, flags, fetched):
            return LATER
        if not blocks(fetched):
            raise failure(errno.EAGAIN)
        seconds = patience(fetched, socket.SO_RCVTIMEO)
        self._a.wait(note, standin, lambda: self._accept_first(note, standin, flags, None), seconds)
        return LATER

    def _accept_first(self, note: Note, standin: StandIn, flags: int, fetched: socket.socket | None) -> bool:
        """Give the first pending connection to who waits. False: there is none."""
        if standin.state != "listening" or not self._a.pump.knows(standin):
            raise failure(errno.EINVAL)
        if not standin.pending:
            return False
        if fetched is None:
            with socket.socket(fileno=self._a.listener.fetch(note, note.argument(0), later=True)) as again:
                if os.fstat(again.fileno()).st_ino != standin.inode:
                    raise failure(errno.EBADF)
                return self._accept_first(note, standin, flags, again)
        made = standin.pending[0]
        assert made.guest_end is not None
        assert made.peer is not None
        made.guest_end.setblocking(not flags & NONBLOCK)
        standins.inherit(made, standin)
        if note.arguments[1]:
            self._a.write_address(note, 1, made.peer, made.family)
        with contextlib.suppress(OSError), copying():  # the guest has read it, to its own confusion
            fetched.recv(1, socket.MSG_DONTWAIT)  # before it goes on, and looks whether there are more
        try:
            given = self._a.listener.give(note, made.guest_end.fileno(), close_on_exec=bool(flags & CLOEXEC))
        except (GoneError, OSError):
            self._a.pump.show_pending(standin)
            raise
        made.seen, made.close_on_exec = (note.thread, given), bool(flags & CLOEXEC)
        self._a.pump.accepted(standin)
        return True


def _forget_address(standin: StandIn) -> None:
    """A connect has told that it failed: an address that the system chose for it is the socket's no more, but its port is."""
    anywhere = addresses.ANY[standin.family].host
    if standin.local is not None and (standin.bound is None or standin.bound.host == anywhere):
        standin.local = net.Endpoint(anywhere, standin.local.port)
