"""The enclave's sockets on its client's machine: opened under the policy, moved by one thread at a time that never waits for any of them.

    request ──► policy (in a pool: names may have to be looked up) ──► the thread ──► result
    message ─────────────────────────────────────────────────────────► the thread ──► message

`socket_thread` says which thread that is.

Nothing is read from a socket beyond what its enclave has credit for, nor while the connection to the enclave is behind; nothing is
taken from the enclave beyond what the socket has credit for. So a peer that is slow or fast costs a bounded amount of memory here.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.hostcall.client.net_policy import NetPolicy
from adyton.hostcall.client.policy import Denied
from adyton.hostcall.client.socket_ancillary import ROOM, Item, ancillary, items
from adyton.hostcall.client.socket_decisions import Decisions, Opening
from adyton.hostcall.client.socket_entry import NOTHING, Entry
from adyton.hostcall.client.socket_options import get_option, set_membership, set_option
from adyton.hostcall.client.socket_system import check_way, endpoint, is_bound, name_of, open_socket
from adyton.hostcall.client.socket_thread import SocketThread
from adyton.hostcall.client.socket_way import COUNTED_AS, Result, Way

BEHIND = 1 << 20  # bytes on their way to the enclave, from which on nothing more is read from sockets
CAUGHT_UP = 1 << 18
_CLOSE_WITH_RESET = struct.pack("ii", 1, 0)  # SO_LINGER
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_DENIED = abi.Failed("EACCES")


class ClientSockets:
    """See the module. `request` and `message` may be called from one thread; `close` from any."""

    def __init__(self, policy: NetPolicy, way: Way) -> None:
        self._policy = policy
        self._way = way
        self._sockets: dict[int, Entry] = {}
        self._decisions = Decisions(policy)
        self._thread = SocketThread(self._ready, self._release, way.failed)
        self._behind = False
        self._grown = 0  # bytes, by which windows are larger than at first
        self._starved = False  # a connection could not be accepted for lack of descriptors

    # -- from the enclave, any thread -----------------------------------------------------------------------------------

    def request(self, call: int, request: net.Request) -> None:
        """Answered later, by `Way.reply`."""
        started = time.monotonic()
        name = COUNTED_AS[type(request)]
        if isinstance(request, net.GetOption):
            self._thread.put(lambda: self._answer(call, name, started, lambda: self._get_option(request)))
            return
        if not isinstance(request, net.Resolve):
            self._decisions.begin(request.socket)
        self._way.submit(lambda: self._decide(call, name, started, request))

    def message(self, message: net.FromEnclave) -> None:
        self._thread.do(lambda: self._take(message))

    def caught_up(self) -> None:
        """The connection to the enclave has room again, if `behind`."""
        if self._behind:
            self._thread.put(self._go_on)

    def close(self) -> None:
        """Close all sockets. Idempotent."""
        self._thread.close()

    def _decide(self, call: int, name: str, started: float, request: net.Request) -> None:
        """In the pool, which keeps an exception to itself."""
        try:
            self._judge(call, name, started, request)
        except Exception as error:  # noqa: BLE001 - the enclave would wait for ever
            self._way.failed(error)

    def _judge(self, call: int, name: str, started: float, request: net.Request) -> None:
        if isinstance(request, net.Resolve):
            self._done(call, name, started, self._decisions.resolve(request.name))
            return
        assert not isinstance(request, net.GetOption)
        judged = self._decisions.judge(request)
        if judged is None:
            self._thread.put(lambda: self._answer(call, name, started, lambda: self._open(call, started, request)))
            return
        self._decisions.end(request.socket)
        if isinstance(judged, Denied):
            self._way.denied(name, judged)
            judged = _DENIED
        self._done(call, name, started, judged)

    # -- the thread -----------------------------------------------------------------------------------------------------

    def _ready(self, number: int, events: int) -> None:
        """What is looked for may have changed since the selector saw it."""
        entry = self._sockets.get(number)
        if entry is not None and events & entry.watched & selectors.EVENT_WRITE:
            self._writable(entry)
        if entry is not None and events & entry.watched & selectors.EVENT_READ:
            self._readable(entry)

    def _release(self) -> None:
        for entry in list(self._sockets.values()):
            self._forget(entry)

    def _done(self, call: int, name: str, started: float, result: Result) -> None:
        outcome = "denied" if result is _DENIED else result.errno if isinstance(result, abi.Failed) else "ok"
        self._way.note(name, outcome, started)
        self._way.reply(call, result)

    def _answer(self, call: int, name: str, started: float, step: Callable[[], Result | None]) -> None:
        """Reply with what the step gives; None: it replies later."""
        try:
            result = step()
        except OSError as error:
            result = abi.Failed(name_of(error))
        except (ValueError, OverflowError):
            result = abi.Failed("EINVAL")
        if result is not None:
            self._done(call, name, started, result)

    # -- requests -------------------------------------------------------------------------------------------------------

    def _open(self, call: int, started: float, request: Opening) -> Result | None:
        if not self._decisions.end(request.socket):
            return abi.Failed("EBADF")
        entry = self._entry(request.socket, request.new)
        try:
            match request:
                case net.Bind(_, _, local):
                    entry.sock.bind((local.host, local.port))
                    entry.bound = True
                    entry.serves = local.port != 0 or self._policy.listen(local.host, 0) is None
                case net.Reach(_, new, peer):
                    check_way(entry.sock, new, peer)
                    if not is_bound(entry.sock):
                        entry.sock.bind(("::" if new.family == "inet6" else "0.0.0.0", 0))  # noqa: S104 - as sending does
                case net.Listen(_, _, backlog, accepts):
                    self._listen(entry, backlog, accepts)
                case net.Join(_, _, group, leaves):
                    if not leaves:  # what is sent to a group comes from anybody: it takes what listening there does
                        self._check("setsockopt", self._policy.listen(group, entry.sock.getsockname()[1]))
                    set_membership(entry.sock, entry.family, group, leaves=leaves)
                    entry.joined = True
                case net.Connect(_, _, peer):
                    return self._connect(call, started, entry, peer)
        except (OSError, ValueError):
            if not (is_bound(entry.sock) or entry.joined):
                self._forget(entry)
            raise
        self._watch(entry)
        return net.Bound(endpoint(entry.sock.getsockname()))

    def _entry(self, number: int, new: net.New) -> Entry:
        entry = self._sockets.get(number)
        if entry is not None:
            if (entry.kind, entry.family) != (new.kind, new.family):
                raise OSError(errno.EINVAL, "the socket is of another kind")
            return entry
        if len(self._sockets) >= net.MAX_SOCKETS:
            raise OSError(errno.EMFILE, "too many sockets")
        sock = open_socket(new)
        entry = self._sockets[number] = Entry(number, sock, new.kind, new.family)
        for option in new.options:
            entry.note(option)
        return entry

    def _check(self, name: str, denied: Denied | None) -> None:
        if denied is not None:
            self._way.denied(name, denied)
            raise OSError(errno.EACCES, "denied")

    def _listen(self, entry: Entry, backlog: int, accepts: list[int]) -> None:
        if entry.kind != "stream":
            raise OSError(errno.EOPNOTSUPP, "not a stream")
        local = endpoint(entry.sock.getsockname())
        self._check("listen", self._policy.listen(local.host, local.port))
        entry.sock.listen(min(backlog, 4096))
        entry.state = "listening"
        entry.accepts.extend(accepts[: net.MAX_ACCEPTS - len(entry.accepts)])

    def _connect(self, call: int, started: float, entry: Entry, peer: net.Endpoint) -> Result | None:
        address = (peer.host, peer.port)
        if entry.state == "connecting":
            raise OSError(errno.EALREADY, "connecting")
        if entry.kind == "datagram":
            entry.sock.connect(address)
            entry.state = "connected"
            self._watch(entry)
            return self._connected(entry, peer)
        code = entry.sock.connect_ex(address)
        if code == errno.ECONNABORTED:  # so the system ends the attempt before, which has failed
            code = entry.sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            entry.state = "connecting"
            entry.connecting = (call, started)
            with suppress(OSError):
                self._way.send(net.Begun(entry.number, endpoint(entry.sock.getsockname())))
            self._watch(entry)
            return None
        if code:
            raise OSError(code, os.strerror(code))
        entry.state = "connected"
        self._watch(entry)
        return self._connected(entry, peer)

    def _connected(self, entry: Entry, peer: net.Endpoint | None = None) -> Result:
        connected = net.Connected(
            endpoint(entry.sock.getsockname()), endpoint(entry.sock.getpeername()) if peer is None else peer
        )
        if entry.kind == "stream":
            self._widen(entry, net.opening(self._grown))
        return connected

    def _connect_ended(self, entry: Entry) -> None:
        assert entry.connecting is not None
        call, started = entry.connecting
        entry.connecting = None
        code = entry.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        result: Result
        if not code:
            entry.state = "connected"
            try:
                result = self._connected(entry)
            except OSError as error:  # reset in the same moment
                code = error.errno or errno.ECONNRESET
        if code:
            result = abi.Failed(name_of(OSError(code, "")))
            entry.state = "open"
        if code and not entry.bound:
            self._forget(entry)
        else:
            self._watch(entry)
        self._done(call, "connect", started, result)

    def _get_option(self, request: net.GetOption) -> Result:
        entry = None if request.socket is None else self._sockets.get(request.socket)
        if entry is not None:
            return net.OptionValue(get_option(entry.sock, request.name))
        with open_socket(request.new) as sock:
            return net.OptionValue(get_option(sock, request.name))

    # -- messages -------------------------------------------------------------------------------------------------------

    def _take(self, message: net.FromEnclave) -> None:
        entry = self._sockets.get(message.socket)
        if entry is None:  # closed here already, or not opened yet
            if isinstance(message, net.CloseSocket):
                self._decisions.give_up(message.socket)
            return
        try:
            match message:
                case net.Send(_, data):
                    self._send(entry, data, None, len(data))
                case net.SendUrgent(_, data) if entry.kind == "stream":
                    self._send(entry, data, None, len(data), flags=socket.MSG_OOB)
                case net.SendTo(_, peer, data, wanted):
                    self._send_to(entry, peer, data, NOTHING if wanted is None else items(wanted, entry.family))
                case net.ShutWrite():
                    entry.shut = True
                    self._shut_when_sent(entry)
                case net.Credit(_, size):
                    entry.credit = min(entry.credit + size, net.MAX_WINDOW)
                    self._watch(entry)
                case net.Blocked():
                    self._grow(entry)
                case net.Accepts(_, accepts):
                    entry.accepts.extend(accepts[: net.MAX_ACCEPTS - len(entry.accepts)])
                    self._watch(entry)
                case net.SetOption(_, option):
                    with suppress(OSError, OverflowError):
                        set_option(entry.sock, option)
                        entry.note(option)
                case net.CloseSocket(_, reset):
                    self._close_socket(entry, reset=reset)
        except OSError as error:
            self._break(entry, error)
        except ValueError:  # of ancillary data
            self._break(entry, OSError(errno.EIO, "no address"))

    def _send(
        self,
        entry: Entry,
        data: bytes,
        address: tuple[Any, ...] | None,
        cost: int,
        told: list[Item] = NOTHING,
        flags: int = 0,
    ) -> None:
        if cost > entry.room or entry.shut or entry.state == "listening":
            self._break(entry, OSError(errno.EIO, "more than there was credit for"))
            return
        entry.room -= cost
        entry.out.append((data, address, told, flags))
        if len(entry.out) == 1 and entry.state != "connecting":
            self._push(entry)
        self._watch(entry)

    def _send_to(self, entry: Entry, peer: net.Endpoint | None, data: bytes, told: list[Item]) -> None:
        if entry.kind != "datagram":
            self._break(entry, OSError(errno.EIO, "a datagram on a stream"))
            return
        cost = len(data) + net.DATAGRAM_COST
        if entry.state == "connected" if peer is None else self._policy.allows(peer.host, peer.port):
            self._send(entry, data, None if peer is None else (peer.host, peer.port), cost, told)
            return
        entry.room -= cost  # it goes nowhere
        self._taken(entry, cost)
        if peer is not None:
            self._way.submit(lambda: self._deny(peer))

    def _deny(self, peer: net.Endpoint) -> None:
        """In the pool: a name may have to be looked up to tell why."""
        denied = self._policy.connect(peer.host, peer.port)
        if denied is not None:
            self._way.denied("sendto", denied)

    def _push(self, entry: Entry) -> None:
        """Write what waits, as far as the socket takes it."""
        while entry.out:
            data, address, told, flags = entry.out[0]
            try:
                if entry.kind == "stream":
                    sent = entry.sock.send(data, flags)
                    if sent < len(data):
                        entry.out[0] = (data[sent:], None, NOTHING, 0)
                        self._taken(entry, sent)
                        return
                    self._taken(entry, sent)
                elif told:
                    entry.sock.sendmsg([data], told, 0, address)
                elif address is None:
                    entry.sock.send(data)
                else:
                    entry.sock.sendto(data, address)
            except BlockingIOError:
                return
            except OSError as error:
                if entry.kind == "stream":
                    raise
                self._way.send(net.Broken(entry.number, name_of(error)))
            if entry.kind == "datagram":
                self._taken(entry, len(data) + net.DATAGRAM_COST)
            entry.out.popleft()

    def _taken(self, entry: Entry, size: int) -> None:
        entry.taken += size
        if entry.taken >= entry.window // net.STEPS:
            self._give_credit(entry)

    def _give_credit(self, entry: Entry) -> None:
        size, entry.taken = entry.taken, 0
        entry.room += size
        self._way.send(net.Credit(entry.number, size))

    def _grow(self, entry: Entry) -> None:
        if entry.kind == "stream":
            self._widen(entry, net.growth(entry.window, entry.waiting, self._grown))

    def _widen(self, entry: Entry, size: int) -> None:
        if size:
            self._grown += size
            entry.window += size
            entry.room += size
            self._way.send(net.Credit(entry.number, size))

    def _shut_when_sent(self, entry: Entry) -> None:
        if entry.shut and not entry.out and entry.kind == "stream":
            with suppress(OSError):  # the peer is gone already, which reading tells
                entry.sock.shutdown(socket.SHUT_WR)

    def _close_socket(self, entry: Entry, *, reset: bool) -> None:
        if reset:
            with suppress(OSError):
                entry.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_WITH_RESET)
            self._forget(entry)
        elif entry.out:
            entry.closing = True
            self._watch(entry)
        else:
            self._forget(entry)

    # -- the sockets ----------------------------------------------------------------------------------------------------

    def _watch(self, entry: Entry) -> None:
        """Have the selector look for what is of use now."""
        wanted = 0
        if entry.state == "connecting" or entry.out:
            wanted |= selectors.EVENT_WRITE
        if entry.state == "listening":
            if entry.accepts and not self._starved:
                wanted |= selectors.EVENT_READ
        elif (
            (entry.state == "connected" or entry.kind == "datagram")
            and not (entry.ended or entry.closing or self._behind)
            and entry.credit > (net.MAX_DATAGRAM + net.DATAGRAM_COST if entry.kind == "datagram" else 0)
        ):
            wanted |= selectors.EVENT_READ
        if wanted == entry.watched:
            return
        if not entry.watched:
            self._thread.selector.register(entry.sock, wanted, entry.number)
        elif not wanted:
            self._thread.selector.unregister(entry.sock)
        else:
            self._thread.selector.modify(entry.sock, wanted, entry.number)
        entry.watched = wanted

    def _writable(self, entry: Entry) -> None:
        if entry.state == "connecting":
            self._connect_ended(entry)
            return
        try:
            self._push(entry)
        except OSError as error:
            self._break(entry, error)
            return
        if not entry.out:
            self._shut_when_sent(entry)
            if entry.closing:
                self._forget(entry)
                return
        self._watch(entry)

    def _readable(self, entry: Entry) -> None:
        if self._way.bytes_pending() > BEHIND:
            self._behind = True
            for each in self._sockets.values():
                self._watch(each)
            if self._way.bytes_pending() < CAUGHT_UP:  # it was sent in this very moment, and nobody will tell
                self._go_on()
            return
        try:
            if entry.state == "listening":
                self._accept(entry)
            elif entry.kind == "stream":
                self._read_stream(entry)
            else:
                self._read_datagrams(entry)
        except BlockingIOError:
            pass
        except OSError as error:
            self._break(entry, error)

    def _go_on(self) -> None:
        self._behind = False
        for each in self._sockets.values():
            self._watch(each)

    def _accept(self, entry: Entry) -> None:
        while entry.accepts:
            try:
                sock, address = entry.sock.accept()
            except BlockingIOError:
                break
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _OUT_OF_DESCRIPTORS:
                    raise
                self._starved = True
                break
            sock.setblocking(False)
            number = entry.accepts.popleft()
            if number in self._sockets or len(self._sockets) >= net.MAX_SOCKETS:
                sock.close()
                continue
            accepted = self._sockets[number] = Entry(number, sock, "stream", entry.family, "connected")
            try:
                local = endpoint(sock.getsockname())
            except OSError:
                self._forget(accepted)
                continue
            self._way.send(net.Incoming(entry.number, number, local, endpoint(address)))
            self._widen(accepted, net.opening(self._grown))
            self._watch(accepted)
        self._watch(entry)

    def _read_stream(self, entry: Entry) -> None:
        data = entry.sock.recv(min(net.CHUNK, entry.credit))
        entry.credit -= len(data)
        entry.ended = not data
        self._way.send(net.Received(entry.number, data) if data else net.EndOfStream(entry.number))
        if not entry.credit:
            self._way.send(net.Blocked(entry.number))
        self._watch(entry)

    def _read_datagrams(self, entry: Entry) -> None:
        told = None
        if entry.asked:
            data, received, _, address = entry.sock.recvmsg(net.MAX_DATAGRAM, ROOM)
            told = ancillary(received, entry.family)
        else:
            data, address = entry.sock.recvfrom(net.MAX_DATAGRAM)
        peer = endpoint(address)
        if entry.state == "connected" or entry.serves or self._policy.allows(peer.host, peer.port):
            entry.credit -= len(data) + net.DATAGRAM_COST
            self._way.send(net.ReceivedFrom(entry.number, peer, data, told))
        self._watch(entry)

    def _break(self, entry: Entry, error: OSError) -> None:
        self._way.send(net.Broken(entry.number, name_of(error)))
        if entry.kind == "stream":
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        if entry.watched:
            self._thread.selector.unregister(entry.sock)
            entry.watched = 0
        del self._sockets[entry.number]
        self._grown -= entry.window - net.first(entry.kind)
        entry.sock.close()
        if entry.connecting is not None and not self._thread.closed:
            call, started = entry.connecting
            self._done(call, "connect", started, abi.Failed("ECONNABORTED"))
        if self._starved and not self._thread.closed:
            self._starved = False
            for each in self._sockets.values():
                self._watch(each)
