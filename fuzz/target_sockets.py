"""Fuzz targets of sockets: the client's answers and messages, the enclave's requests, name queries and addresses of a program."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from typing import Any

import msgspec
from draw import Draw, packed

from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.hostcall.client.socket_ancillary import items
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.sockets import addresses, messages, multicast, options, resolver
from adyton.runtime.process.supervisor.sockets.pump import Pump
from adyton.runtime.process.supervisor.sockets.standin import StandIn

WORDS = (
    "127.0.0.1",
    "::1",
    "localhost",
    "db.example",
    "SO_LINGER",
    "TCP_NODELAY",
    "ECONNRESET",
    "ENOTDIR",
    "inet",
    "inet6",
    "stream",
)
FAMILIES: tuple[net.Family, ...] = ("inet", "inet6")
RESULTS: dict[type[Any], Any] = {
    net.Resolve: net.Addresses,
    net.Bind: net.Bound,
    net.Connect: net.Connected,
    net.Reach: net.Bound,
    net.Listen: net.Bound,
    net.Join: net.Bound,
    net.GetOption: net.OptionValue,
}


def socket_result(data: bytes) -> None:
    """What a client answers to a request of each kind."""
    draw = Draw(data, WORDS)
    request = draw.struct(draw.pick(tuple(RESULTS)))
    kind = draw.below(4)
    if kind == 0:
        answer = draw.rest()
    elif kind == 1:
        answer = packed(abi.Failed(draw.text()))
    else:
        answer = draw.spoilt(packed(draw.struct(RESULTS[type(request)])))
    result = net.check(request, answer)
    assert isinstance(result, RESULTS[type(request)] | abi.Failed)
    if isinstance(result, abi.Failed):
        assert result.errno in net.ERRNO_NAMES
    if isinstance(result, net.Connected | net.Bound):
        assert addresses.pack(result.local, request.new.family)


def socket_message(data: bytes) -> None:
    """Messages and requests, as either end decodes them."""
    body = data[1:]
    decode = (net.from_client, net.from_enclave, net.request_of)[(data[0] if data else 0) % 3]
    decoded = decode(body)
    assert decode(net.encode(decoded)) == decoded


def name_query(data: bytes) -> None:
    """What a program sends to its name server, or to where an address or an option is expected."""
    with contextlib.suppress(OSError):
        addresses.parse(data, "inet6" if data[:1] == b"\n" else "inet")
    with contextlib.suppress(OSError):
        options.values_of(options.known(*data[:2].ljust(2, b"\0")), data[2:])
    for family in FAMILIES:
        with contextlib.suppress(OSError):
            assert ipaddress.ip_address(multicast.group(data, family)).is_multicast
        with contextlib.suppress(OSError):
            multicast.check_interface(data, family)
    query = resolver.parse(data, "enclave")
    if query is None:
        return
    found = net.Addresses([net.Found(host, None) for host in ("127.0.0.1", "::1", "192.0.2.1") * 10])
    replies = (
        [resolver.own(query)]
        if query.name is None
        else [resolver.answer(query, each) for each in (found, abi.Failed("EIO"))]
    )
    for message in replies:
        assert len(message) <= resolver.MAX_MESSAGE
        assert message[:2] == data[:2]
        assert message[2] & 0x80


def datagram_message(data: bytes) -> None:
    """What a program points to with sendmsg and recvmsg; and what it is told fits where it wants it."""
    family: net.Family = "inet6" if data[:1] == b"\n" else "inet"
    body = data[1:]
    with contextlib.suppress(OSError):
        assert (
            messages.header(body[: messages.HEADER_SIZE].ljust(messages.HEADER_SIZE, b"\0")).buffers
            <= messages.MAX_BUFFERS
        )
    with contextlib.suppress(OSError):
        messages.buffers(body[: len(body) // messages.BUFFER_SIZE * messages.BUFFER_SIZE])
    try:
        wanted = messages.ancillary(body, family)
    except OSError:
        return
    if wanted is None:
        return
    asked = ("IP_PKTINFO", "IP_RECVTTL", "IP_RECVTOS", "IPV6_RECVPKTINFO", "IPV6_RECVHOPLIMIT", "IPV6_RECVTCLASS")
    told, cut = messages.control(wanted, family, asked, messages.MAX_CONTROL)
    assert not cut
    assert messages.ancillary(told, family) == wanted
    assert len(messages.control(wanted, family, asked, len(body) % 80)[0]) <= len(body) % 80
    assert items(wanted, family)


class _Enclave:
    """Stand-ins whose guest is this target, and a client that says what it likes."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self.loop = Loop()
        self.pump = Pump(
            self.loop,
            self,
            os.getpid(),
            lambda _standin: None,
            self._sent,
            lambda _process, descriptor: os.dup(descriptor),
        )
        self.made: list[StandIn] = []
        self.credit: dict[int, int] = {}

    def request(self, request: net.Request, done: Any) -> None:
        raise AssertionError("a pump asks nothing", request, done)

    def tell(self, message: net.FromEnclave) -> None:
        assert net.from_enclave(net.encode(message)) == message
        if isinstance(message, net.Send):
            left = self.credit[message.socket] = self.credit.get(message.socket, net.FIRST) - len(message.data)
            assert left >= 0

    def bytes_pending(self) -> int:
        return 0

    def _sent(self, standin: StandIn, data: bytes) -> None:
        self.pump.send_datagram(standin, None, data)

    def step(self) -> None:
        draw = self._draw
        match draw.below(8):
            case 0:
                made = self.pump.make(draw.pick(("inet", "inet6")), draw.pick(("stream", "datagram")))
                made.state = draw.pick(("new", "connected", "connected", "listening"))
                made.opened = made.state != "new"
                self.pump.promise(made, draw.below(4))
                self.pump.start(made)
                self.made.append(made)
            case 1 | 2 if self.made:
                end = draw.pick(self.made[:256]).guest_end
                if end is not None:
                    with contextlib.suppress(OSError):
                        end.send(draw.blob(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                    with contextlib.suppress(OSError):
                        end.recv(1 + draw.below(200) * 100, socket.MSG_DONTWAIT)
            case 3 if self.made:
                made = draw.pick(self.made[:256])
                if made.guest_end is not None and draw.below(2):
                    made.guest_end.close()
                    made.guest_end = None
            case 4:
                self.loop.alarm(0.0, lambda: None)
                self.loop.turn()
            case _:
                message = draw.struct(net.FromClient)
                number = 1 + draw.below(12)
                if isinstance(message, net.Credit):
                    self.credit[number] = min(net.MAX_WINDOW, self.credit.get(number, net.FIRST) + message.size)
                self.pump.take(msgspec.structs.replace(message, socket=number))


def stand_ins(data: bytes) -> None:
    """Messages of a client about stand-ins in any state, while their program uses and closes them."""
    draw = Draw(data, WORDS)
    enclave = _Enclave(draw)
    try:
        while draw:
            enclave.step()
    finally:
        enclave.pump.close()
        enclave.loop.close()
        for made in enclave.made:
            if made.guest_end is not None:
                made.guest_end.close()
