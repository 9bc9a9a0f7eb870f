"""Datagram sockets: sendmsg, recvmsg and their plurals, with addresses and ancillary data. See `answering`, `datagrams` and `messages`.

The filter asks about these calls for the descriptors that datagram sockets are given: see table.DATAGRAM_DESCRIPTORS. Whatever else has
such a descriptor is the kernel's, and so is a datagram socket's copy under another one, which has neither addresses nor ancillary data.
"""

from __future__ import annotations

import errno
import socket
import struct

from adyton.hostcall import sockets as net
from adyton.runtime.process.supervisor.notifications import Note
from adyton.runtime.process.supervisor.sockets import addresses, messages
from adyton.runtime.process.supervisor.sockets.answering import LATER, Answering, failure
from adyton.runtime.process.supervisor.sockets.datagrams import DatagramCalls, Outgoing, refuse_parts
from adyton.runtime.process.supervisor.sockets.standin import StandIn


class MessageCalls:
    """Each public method is a system call: see calls.SocketCalls. The plurals do one message, as they may where more would have to wait."""

    def __init__(self, answering: Answering, datagrams: DatagramCalls) -> None:
        self._a = answering
        self._datagrams = datagrams

    def sendmsg(self, note: Note, standin: StandIn, fetched: socket.socket) -> int | None:
        return self._send(note, standin, fetched, note.argument(2), several=False)

    def sendmmsg(self, note: Note, standin: StandIn, fetched: socket.socket) -> int | None:
        if not note.arguments[2] & 0xFFFFFFFF:
            return 0
        return self._send(note, standin, fetched, note.argument(3), several=True)

    def recvmsg(self, note: Note, standin: StandIn, fetched: socket.socket) -> int | None:
        return self._receive(note, standin, fetched, note.argument(2), several=False)

    def recvmmsg(self, note: Note, standin: StandIn, fetched: socket.socket) -> int | None:
        if not note.arguments[2] & 0xFFFFFFFF:
            return 0
        return self._receive(note, standin, fetched, note.argument(3), several=True)

    def _send(self, note: Note, standin: StandIn, fetched: socket.socket, flags: int, *, several: bool) -> int | None:
        if standin.kind == "stream":
            return self._local(note)
        refuse_parts(flags)
        read = self._a.listener.read
        place = note.arguments[1]
        header = messages.header(read(note, place, messages.HEADER_SIZE))
        peer = None
        if header.name_size:
            peer = addresses.parse(read(note, header.name, min(header.name_size, addresses.MAX_LENGTH)), standin.family)
            if not peer.port:
                raise failure(errno.EINVAL)
        elif standin.peer is None:
            raise failure(errno.EDESTADDRREQ)
        elif not standin.opened:  # connected, and the client not asked yet
            return self._local(note)
        if header.control_size > messages.MAX_CONTROL:
            raise failure(errno.ENOBUFS)
        ancillary = messages.ancillary(read(note, header.control, header.control_size), standin.family)
        buffers = self._buffers(note, header)
        if sum(size for _, size in buffers) > net.MAX_DATAGRAM:
            raise failure(errno.EMSGSIZE)
        data = b"".join(read(note, where, size) for where, size in buffers)
        if several:
            self._a.listener.write(note, place + messages.LENGTH_AT, struct.pack("=I", len(data)))
        outgoing = Outgoing(peer, data, ancillary, not flags & socket.MSG_DONTWAIT, 1 if several else len(data))
        return self._datagrams.send(note, standin, fetched, outgoing)

    def _receive(
        self, note: Note, standin: StandIn, fetched: socket.socket, flags: int, *, several: bool
    ) -> int | None:
        if standin.kind == "stream":
            return self._local(note)

        def receive(end: socket.socket) -> bool:
            return self._receive_one(note, standin, end, flags, several=several)

        return self._datagrams.wait_for(note, standin, fetched, flags, receive)

    def _receive_one(self, note: Note, standin: StandIn, end: socket.socket, flags: int, *, several: bool) -> bool:
        place = note.arguments[1]
        write = self._a.listener.write
        header = messages.header(self._a.listener.read(note, place, messages.HEADER_SIZE))
        buffers = self._buffers(note, header)
        seen = self._datagrams.look(standin, end, min(sum(size for _, size in buffers), net.MAX_DATAGRAM))
        if seen is None:
            return False
        left = seen.data
        for where, size in buffers:
            write(note, where, left[:size])
            left = left[size:]
        peer = None if seen.sender is None else seen.sender.peer
        name = b"" if peer is None else addresses.pack(peer, standin.family)
        if header.name:
            write(note, header.name, name[: header.name_size])
        asked = [option for option, values in standin.options.items() if any(values)]
        told = None if seen.sender is None else seen.sender.ancillary
        control, cut = messages.control(told, standin.family, asked, header.control_size)
        write(note, header.control, control)
        told_flags = flags & socket.MSG_CMSG_CLOEXEC
        told_flags |= socket.MSG_TRUNC if seen.whole > len(seen.data) else 0
        told_flags |= socket.MSG_CTRUNC if cut else 0
        for offset, field in messages.answers(len(name) if header.name else 0, len(control), told_flags):
            write(note, place + offset, field)
        result = seen.whole if flags & socket.MSG_TRUNC else len(seen.data)
        if several:
            write(note, place + messages.LENGTH_AT, struct.pack("=I", result))
        if not flags & socket.MSG_PEEK:
            self._datagrams.take(standin, end, seen)
        self._a.listener.answer(note, 1 if several else result)
        return True

    def _buffers(self, note: Note, header: messages.Header) -> list[tuple[int, int]]:
        return messages.buffers(self._a.listener.read(note, header.vector, header.buffers * messages.BUFFER_SIZE))

    def _local(self, note: Note) -> int | None:
        self._a.listener.go_on(note)
        return LATER
