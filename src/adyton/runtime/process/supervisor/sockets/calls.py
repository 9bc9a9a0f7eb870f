"""The system calls on sockets that the supervisor does in the kernel's stead. What a stand-in shows is what the client's socket has.

A socket that is no stand-in is a unix socket of the guest's own: the kernel does the call. Nothing is decided on a copy of memory there,
and whatever the guest changes meanwhile, it can do no more than the filter lets pass anyway: its sockets reach its own network
namespace, and a stand-in, were it put in place, is a connected pair that can be neither connected nor listened on.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.runtime.process.filter import number_of
from adyton.runtime.process.supervisor.looks import copying
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.notifications import FaultError, GoneError, Listener, Note
from adyton.runtime.process.supervisor.socket_memory import LARGEST_BUFFER
from adyton.runtime.process.supervisor.sockets import addresses, multicast, options
from adyton.runtime.process.supervisor.sockets import standin as standins
from adyton.runtime.process.supervisor.sockets.answering import INT, LATER, Answering, blocks, errno_of, failure
from adyton.runtime.process.supervisor.sockets.datagram_messages import MessageCalls
from adyton.runtime.process.supervisor.sockets.datagrams import DatagramCalls
from adyton.runtime.process.supervisor.sockets.descriptors import Descriptors
from adyton.runtime.process.supervisor.sockets.names import Names
from adyton.runtime.process.supervisor.sockets.pump import Client, Pump
from adyton.runtime.process.supervisor.sockets.standin import StandIn
from adyton.runtime.process.supervisor.sockets.streams import CLOEXEC, NONBLOCK, StreamCalls
from adyton.runtime.process.table import OUT_OF_BAND, number
from adyton.runtime.process.table_rows import Refused

_KIND_MASK = 0xF
_NETLINK_ROUTE = (
    0  # linux/netlink.h: lists of the interfaces of the guest's own network namespace, where it can change nothing
)
_FAMILIES: dict[int, net.Family] = {socket.AF_INET: "inet", socket.AF_INET6: "inet6"}
_FAMILY_OF: dict[int, net.Family] = {options.IPPROTO_IP: "inet", options.IPPROTO_IPV6: "inet6"}
_PROTOCOLS: dict[tuple[int, int], net.Kind] = {
    (socket.SOCK_STREAM, 0): "stream",
    (socket.SOCK_STREAM, socket.IPPROTO_TCP): "stream",
    (socket.SOCK_DGRAM, 0): "datagram",
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP): "datagram",
}
# SO_BINDTODEVICE, SO_ATTACH_FILTER and its kin, SO_LOCK_FILTER (asm-generic/socket.h): programs and devices of the kernel's
_NEVER_LOCAL = frozenset({25, 26, 27, 44, 50, 51, 52})
# Options that no stream has, and what it says of them
_OF_DATAGRAMS = {
    "IP_MULTICAST_IF": errno.EINVAL,
    "IP_MULTICAST_TTL": errno.EINVAL,
    "IP_ADD_MEMBERSHIP": errno.EPROTO,
    "IP_DROP_MEMBERSHIP": errno.EPROTO,
    "IPV6_MULTICAST_IF": errno.ENOPROTOOPT,
    "IPV6_MULTICAST_HOPS": errno.ENOPROTOOPT,
    "IPV6_JOIN_GROUP": errno.EPROTO,
    "IPV6_LEAVE_GROUP": errno.EPROTO,
}

_BEGIN = frozenset(("connect", "bind", "listen"))  # calls that need a stand-in that is not spent

_NAME_CACHE = b"/var/run/nscd/socket"


Step = Callable[[Note, StandIn, socket.socket], int | None]


class SocketCalls:
    """`handlers` are those of SystemCalls; `pump.take` is given the client's messages."""

    def __init__(
        self,
        listener: Listener,
        loop: Loop,
        client: Client,
        leader: int,
        own_name: str,
        tell: Callable[[str, Refused], None],
        fetch: Callable[[int, int], int],
        *,
        lists: bool,
    ) -> None:
        """`leader`: the guest's first process; `own_name`: its host name; `tell` is given what was dropped, by its call and why.

        `fetch`: a process' descriptor, see fetching.Fetcher. `lists`: sockets for lists of interfaces are counted, see
        socket_memory.listed; else there are none.
        """
        self._lists = lists
        self._tell = tell
        self._a = Answering(listener, loop, client)
        self._streams = StreamCalls(self._a)
        self._datagrams = DatagramCalls(self._a, Names(self._a, own_name), tell)
        self._messages = MessageCalls(self._a, self._datagrams)
        self.pump = self._a.pump = Pump(loop, client, leader, self._a.moved, self._datagrams.sent, fetch)
        self._descriptors = Descriptors(listener, self.pump)
        self._setting, self._connecting, self._sending = number("setsockopt"), number("connect"), number("sendto")
        self._defaults: dict[tuple[str, str, str], list[int]] = {}
        steps: dict[str, Step] = {
            "connect": self._connect,
            "bind": self._bind,
            "listen": self._streams.listen,
            "accept": lambda note, standin, fetched: self._streams.accept(note, standin, fetched, 0),
            "accept4": lambda note, standin, fetched: self._streams.accept(note, standin, fetched, note.argument(3)),
            "getsockname": self._getsockname,
            "getpeername": self._getpeername,
            "getsockopt": self._getsockopt,
            "setsockopt": self._setsockopt,
            "shutdown": self._shutdown,
            "sendto": self._datagrams.sendto,
            "recvfrom": self._recvfrom,
            "sendmsg": self._messages.sendmsg,
            "recvmsg": self._messages.recvmsg,
            "sendmmsg": self._messages.sendmmsg,
            "recvmmsg": self._messages.recvmmsg,
        }
        self.handlers = {
            "socket": self._handler(self._socket),
            "dup": self._handler(self._descriptors.duplicate),
            "fcntl": self._handler(self._descriptors.duplicate),
            **{name: self._on(step, begins=name in _BEGIN) for name, step in steps.items()},
        }
        again = {number(name): self._on(step, begins=name in _BEGIN, later=True) for name, step in steps.items()}
        self._a.again = lambda note: again[note.number](note)

    def close(self) -> None:
        self.pump.close()

    # -- whose a call is ------------------------------------------------------------------------------------------------

    def _handler(self, step: Callable[[Note], int | None]) -> Callable[[Note], None]:
        def handle(note: Note) -> None:
            try:
                result = step(note)
            except FaultError:
                self._a.listener.answer(note, error=errno.EFAULT)
            except OSError as error:
                self._a.listener.answer(note, error=error.errno or errno.EIO)
            else:
                if result is not LATER:
                    self._a.listener.answer(note, result)

        return handle

    def _on(self, step: Step, *, begins: bool, later: bool = False) -> Callable[[Note], None]:
        """A call whose first argument is a socket. `begins`: it needs one that is not spent. `later`: it has waited."""

        def find(note: Note) -> int | None:
            descriptor = self._a.listener.fetch(note, note.argument(0), later=later)
            with socket.socket(fileno=descriptor) as fetched:
                standin = self._a.pump.find(os.fstat(descriptor).st_ino)
                if standin is None:
                    self._not_ours(note, fetched)
                    return LATER
                standin.seen = (note.thread, note.argument(0))
                if begins and standin.spent:
                    return self._step_anew(step, note, standin, fetched)
                return step(note, standin, fetched)

        return self._handler(find)

    def _step_anew(self, step: Step, note: Note, spent: StandIn, fetched: socket.socket) -> int | None:
        """Put a fresh stand-in in a spent one's place, and do the call with it. Other copies of the descriptor keep the spent one."""
        made = self._a.pump.make_anew(spent)
        assert made.guest_end is not None
        with made.guest_end as guest_end:
            try:
                guest_end.setblocking(blocks(fetched))
                standins.inherit(made, spent)
                self._a.listener.replace(note, note.argument(0), guest_end.fileno(), close_on_exec=spent.close_on_exec)
            except (GoneError, OSError):
                self._a.pump.drop_refused(made)
                raise
            made.seen, made.guest_end = spent.seen, None
            return step(note, made, guest_end)

    def _not_ours(self, note: Note, fetched: socket.socket) -> None:
        if fetched.family not in (socket.AF_UNIX, socket.AF_NETLINK):
            raise failure(errno.EACCES)
        if note.number == self._setting and note.argument(1) == options.SOL_SOCKET:
            if note.argument(2) in _NEVER_LOCAL:
                raise failure(errno.EPERM)
            if note.argument(2) == socket.SO_SNDBUF:
                self._a.listener.answer(note, self._bound_buffer(note, fetched))
                return
        if note.number == self._sending and note.argument(3) & socket.MSG_OOB:
            self._tell("sendto", OUT_OF_BAND)
            raise failure(errno.EOPNOTSUPP)
        if note.number == self._connecting and self._is_name_cache(note):
            raise failure(errno.ENOENT)
        self._a.listener.go_on(note)

    def _bound_buffer(self, note: Note, fetched: socket.socket) -> int:
        """Of a unix socket: what waits in it is counted, but when its sender is gone it is not seen how much memory that is."""
        if note.argument(4) < INT.size:
            raise failure(errno.EINVAL)
        (size,) = INT.unpack(self._a.listener.read(note, note.arguments[3], INT.size))
        most = min(size % (1 << 32), LARGEST_BUFFER)  # which the kernel takes as unsigned
        fetched.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, most)
        return 0

    def _is_name_cache(self, note: Note) -> bool:
        """Whether a C library looks for a cache of names that no enclave has. The look-up of its path would be denied, and tell so."""
        return 0 < note.argument(2) <= addresses.MAX_LENGTH and _NAME_CACHE in self._a.read_address(note, 1, 2)

    # -- socket ---------------------------------------------------------------------------------------------------------

    def _socket(self, note: Note) -> int | None:
        family, kind, protocol = (note.argument(each) for each in range(3))
        if self._lists and (family, protocol) == (socket.AF_NETLINK, _NETLINK_ROUTE):
            self._a.listener.go_on(note)  # its arguments are in registers: the kernel does what was looked at
            return LATER
        if family not in _FAMILIES:
            raise failure(errno.EAFNOSUPPORT)
        if kind & ~(_KIND_MASK | CLOEXEC | NONBLOCK):
            raise failure(errno.EINVAL)
        if kind & _KIND_MASK == socket.SOCK_RAW:
            raise failure(errno.EPERM)
        if kind & _KIND_MASK not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            raise failure(errno.ESOCKTNOSUPPORT)
        try:
            sort = _PROTOCOLS[kind & _KIND_MASK, protocol]
        except KeyError:
            raise failure(errno.EPROTONOSUPPORT) from None
        made = self._a.pump.make(_FAMILIES[family], sort)
        assert made.guest_end is not None
        try:
            made.guest_end.setblocking(not kind & NONBLOCK)
            given = self._descriptors.give(note, made, made.guest_end, close_on_exec=bool(kind & CLOEXEC))
        except (GoneError, OSError):
            self._a.pump.drop_refused(made)
            raise
        made.seen, made.close_on_exec = (note.thread, given), bool(kind & CLOEXEC)
        made.guest_end.close()
        made.guest_end = None
        return LATER

    # -- connect, bind and shutdown --------------------------------------------------------------------------------------

    def _connect(self, note: Note, standin: StandIn, fetched: socket.socket) -> int | None:
        if standin.kind == "datagram":
            return self._datagrams.connect(note, standin)
        return self._streams.connect(note, standin, fetched)

    def _bind(self, note: Note, standin: StandIn, _fetched: socket.socket) -> int | None:
        local = addresses.parse(self._a.read_address(note, 1, 2), standin.family)
        flight = self._a.flights.get(standin.inode)
        has_port = standin.opened and (standin.local is None or standin.local.port != 0)
        if (has_port or standin.state != "new") and (flight is None or flight.result is None):
            raise failure(errno.EINVAL)

        def finish(result: net.Result | abi.Failed) -> int:
            if not isinstance(result, net.Bound):
                raise failure(errno_of(result))
            standin.opened, standin.local, standin.bound = True, result.local, local
            self._a.pump.watch(standin)
            return 0

        return self._a.ask(note, standin, net.Bind(standin.number, standin.new, local), finish)

    def _recvfrom(self, note: Note, standin: StandIn, fetched: socket.socket) -> int | None:
        if standin.kind == "stream" and standin.state in ("new", "listening"):
            raise failure(errno.ENOTCONN)
        if standin.kind == "stream" and standin.error:
            self._tell_error_after_data(standin, fetched)
        if note.arguments[4] or standin.kind == "datagram":
            return self._datagrams.recvfrom(note, standin, fetched)
        self._a.listener.go_on(note)
        return LATER

    @staticmethod
    def _tell_error_after_data(standin: StandIn, fetched: socket.socket) -> None:
        """OSError: why there is nothing more to receive, once. (To the kernel any loss is a reset.)"""
        try:
            with copying():
                fetched.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        except OSError:
            code, standin.error, standin.unreported = standin.error, 0, False  # the kernel's has just been taken
            standin.shown = False
            raise failure(code) from None

    # -- names and options ----------------------------------------------------------------------------------------------

    def _getsockname(self, note: Note, standin: StandIn, _fetched: socket.socket) -> int | None:
        def named() -> bool:
            if standin.state == "connecting" and not standin.begun:
                return False  # the client says it as soon as it has begun to connect
            self._a.write_address(note, 1, standin.local or addresses.ANY[standin.family], standin.family)
            self._a.listener.answer(note)
            return True

        if not named():
            self._a.wait(note, standin, named, None)
        return LATER

    def _getpeername(self, note: Note, standin: StandIn, _fetched: socket.socket) -> int | None:
        if standin.state != "connected" or standin.peer is None or standin.over:
            raise failure(errno.ENOTCONN)
        self._a.write_address(note, 1, standin.peer, standin.family)
        return 0

    @staticmethod
    def _check_option(name: str, standin: StandIn) -> None:
        """OSError: ENOPROTOOPT, EINVAL for an option of another kind of socket."""
        if (name.startswith("TCP_") and standin.kind != "stream") or (
            name.startswith("IPV6_") and standin.family != "inet6"
        ):
            raise failure(errno.ENOPROTOOPT)
        if standin.kind == "stream" and name in _OF_DATAGRAMS:
            raise failure(_OF_DATAGRAMS[name])

    def _setsockopt(self, note: Note, standin: StandIn, fetched: socket.socket) -> int | None:
        level, number, size = note.argument(1), note.argument(2), note.argument(4)
        option = options.known(level, number)
        if size < 0:
            raise failure(errno.EINVAL)
        data = self._a.listener.read(note, note.arguments[3], min(size, options.MAX_LENGTH))
        self._check_kept(option, "setsockopt")
        if option.place == "told":
            raise failure(errno.ENOPROTOOPT)
        if option.place == "local":
            fetched.setsockopt(level, number, data)
            standin.local_options[number] = data
            return 0
        self._check_option(option.name, standin)
        if option.place == "group":
            return self._join_or_leave(note, standin, multicast.group(data, _FAMILY_OF[level]), leaves=option.leaves)
        if option.place == "device":
            multicast.check_interface(data, _FAMILY_OF[level])
            return 0
        values = options.values_of(option, data)
        if option.place == "client":
            standin.options[option.name] = values
            if standin.opened:
                self._a.client.tell(net.SetOption(standin.number, net.Option(option.name, values)))
        else:
            standin.ignored[option.name] = values
        return 0

    def _check_kept(self, option: options.Known, call: str) -> None:
        """OSError of an option that is refused; the client's user is told of those that a program sets."""
        if option.refused is not None:
            if call == "setsockopt":
                self._tell(f"{call} {option.name}", option.refused)
            raise failure(number_of(option.refused))

    def _join_or_leave(self, note: Note, standin: StandIn, group: str, *, leaves: bool) -> int | None:
        """A multicast group, which the client's policy must allow."""

        def finish(result: net.Result | abi.Failed) -> int:
            if not isinstance(result, net.Bound):
                raise failure(errno_of(result))
            standin.opened, standin.local = True, result.local
            self._a.pump.watch(standin)
            return 0

        return self._a.ask(note, standin, net.Join(standin.number, standin.new, group, leaves), finish)

    def _getsockopt(self, note: Note, standin: StandIn, fetched: socket.socket) -> int | None:
        level, number = note.argument(1), note.argument(2)
        option = options.known(level, number)
        self._check_kept(option, "getsockopt")
        if option.place == "group":
            raise failure(errno.ENOPROTOOPT)
        if option.place == "local":
            (room,) = INT.unpack(self._a.listener.read(note, note.arguments[4], INT.size))
            self._a.write_sized(
                note, 3, fetched.getsockopt(level, number, max(0, min(room, options.MAX_LENGTH))), cut=True
            )
            return 0
        if option.place == "ignored":
            self._check_option(option.name, standin)
            self._a.write_sized(note, 3, options.data_of(standin.ignored.get(option.name, [0])), cut=True)
            return 0
        if option.place in ("told", "device"):
            if number == options.SO_ERROR and level == options.SOL_SOCKET:
                value = self._error(standin, fetched)
            else:
                value = self._told(number, standin) if option.place == "told" else 0
            self._a.write_sized(note, 3, options.data_of([value]), cut=True)
            return 0
        self._check_option(option.name, standin)
        default = (standin.family, standin.kind, option.name)
        values = standin.options.get(option.name)
        if (values is None or option.asked) and not standin.opened and not standin.options:
            values = self._defaults.get(default)
        elif option.asked:
            values = None
        if values is not None:
            self._a.write_sized(note, 3, options.data_of(values), cut=True)
            return 0
        plain = not standin.opened and not standin.options

        def finish(result: net.Result | abi.Failed) -> int:
            if not isinstance(result, net.OptionValue):
                raise failure(errno_of(result))
            if plain:
                self._defaults[default] = result.values
            flight = self._a.flights.get(standin.inode)
            if flight is not None:
                try:
                    self._a.write_sized(flight.note, 3, options.data_of(result.values), cut=True)
                except FaultError:
                    raise failure(errno.EFAULT) from None
            return 0

        request = net.GetOption(standin.number if standin.opened else None, standin.new, option.name)
        return self._a.ask(note, standin, request, finish)

    def _error(self, standin: StandIn, fetched: socket.socket) -> int:
        """What SO_ERROR has."""
        if standin.kind == "datagram":
            self._datagrams.drop_mark(standin, fetched)
        code = standins.take_error(standin, fetched)
        if standin.state != "connected":  # else a connect is still to say so
            standin.unreported = False
        return code

    @staticmethod
    def _told(number: int, standin: StandIn) -> int:
        stream = standin.kind == "stream"
        return {
            options.SO_SNDLOWAT: 1,
            options.SO_TYPE: socket.SOCK_STREAM if stream else socket.SOCK_DGRAM,
            options.SO_ACCEPTCONN: int(standin.state == "listening"),
            options.SO_PROTOCOL: socket.IPPROTO_TCP if stream else socket.IPPROTO_UDP,
            options.SO_DOMAIN: socket.AF_INET if standin.family == "inet" else socket.AF_INET6,
        }[number]

    def _shutdown(self, note: Note, standin: StandIn, fetched: socket.socket) -> int | None:
        how = note.argument(1)
        if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            raise failure(errno.EINVAL)
        if standin.state == "listening" and how != socket.SHUT_WR:
            self._a.pump.stop_listening(standin, fetched)
            return 0
        if standin.state == "connecting":
            self._streams.abort(standin)
            return 0
        if standin.state == "listening":
            return 0
        if standin.state != "connected" or standin.over:
            raise failure(errno.ENOTCONN)
        fetched.shutdown(how)
        standin.unreported = False
        if how != socket.SHUT_RD and standin.kind == "datagram":
            standin.shut = True
            self._a.pump.watch(standin)
        standin.over = how != socket.SHUT_RD and standin.kind == "stream" and standin.ended and not standin.incoming
        return 0
