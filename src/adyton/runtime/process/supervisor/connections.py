"""The client's connections, as the relay hands them over: each with an attested channel of its own, one after the other for one session.

    handed over ──► handshake, evidence ──► Hello of the session ──► current, in place of the one before
                                        └─► of another one: told so, and closed

The key that the first client showed, or that it showed none, is the session's: a connection with another one is of another client, whatever it
has learnt. What comes on a connection before it has shown the session's secret moves nothing but this. When the current one is lost, the enclave goes
on for as long as the grace lasts; then its client is taken to be gone, and so it is when it ends the channel in good order.
"""

from __future__ import annotations

import hmac
import mmap
import select
import socket
import time
from collections.abc import Callable
from functools import partial

from adyton.attestation.identity import EnclaveIdentity
from adyton.channel import server as channel_server
from adyton.communicator.joining import FIRST_GRACE_SECONDS, Answer, Hello, HelloReader
from adyton.communicator.session import Event, Session
from adyton.errors import RemoteProtocolError
from adyton.handing_over import accept
from adyton.runtime.process.supervisor.arrivals import Arrivals
from adyton.runtime.process.supervisor.loop import Callback, Loop, Outbox
from adyton.runtime.process.supervisor.proving import Prove
from adyton.trusted.callers import Caller

READ_SIZE = 1 << 19
HIGH_WATER = 1 << 20  # bytes for the relay that wait to be written
SLOW_SECONDS = 0.02
END_PATIENCE = 5.0  # seconds, at the end, for a client that takes nothing
END_SECONDS = 10.0  # for one that takes what is left slowly
_MOST = 4  # that have not joined; of more, the oldest goes


class _Connection:
    def __init__(
        self, sock: socket.socket, channel: channel_server.ServerChannel, loop: Loop, refill: Callback
    ) -> None:
        self.socket = sock
        self.channel = channel
        self.hello = HelloReader()
        self.outbox = Outbox(loop, sock, refill)
        self.refused = False

    def push(self) -> None:
        if data := self.channel.data_to_send():
            self.outbox.put(data)


class Connections:
    """Of one enclave. `take` is given the session's events, which may hold those that come (`arrivals`); `gone` is called when the client is, for good."""

    def __init__(
        self,
        control: socket.socket,
        loop: Loop,
        session: Session,
        identity: EnclaveIdentity,
        prove: Prove,
        take: Callable[[Event], None],
        gone: Callback,
        flush: Callback,
        guarded: Callable[[Callback], Callback],
        grace: float,
    ) -> None:
        """`flush`: called when the current connection takes more. `guarded` wraps what the loop calls and may end the enclave. `grace`: seconds."""
        self.joined = False  # once
        self.caller: Caller | None = None  # that has, if it has shown a key
        self._control = control
        self._loop = loop
        self._session = session
        self._identity = identity
        self._prove = prove
        self.arrivals: Arrivals[Event] = Arrivals(loop, self._listen, take, guarded)
        self._gone = gone
        self._flush = flush
        self._guarded = guarded
        self._grace = grace
        self._secret = self._key = b""
        # Its key takes a moment, which the first client shall not wait for.
        self._first: channel_server.ServerChannel | None = channel_server.ServerChannel(identity.digest())
        self._current: _Connection | None = None
        self._joining: list[_Connection] = []
        self._listens = True
        self._slow = False
        self._lost = 0  # times that there was no connection any more
        self._received = memoryview(mmap.mmap(-1, READ_SIZE))  # no memory until much comes

    def begin(self) -> None:
        """Take what is handed over from now on."""
        self._loop.read(self._control, self._guarded(self._handed_over))

    def _listen(self, on: bool) -> None:
        self._listens = on
        if self._current is not None:
            self._watch(self._current)

    def slow_down(self) -> None:
        """Receive no more for a moment, or until `go_on`. No longer: what the guest waits for may be what comes next."""
        if not self._slow:
            self._slow = True
            self._loop.later(SLOW_SECONDS, self.go_on)
            self._listen(self._listens)

    def go_on(self) -> None:
        """Receive again."""
        if self._slow:
            self._slow = False
            self._listen(self._listens)

    # -- out ----------------------------------------------------------------------------------------------------------

    def flush(self) -> bool:
        """Send what is due, as far as the connection takes it. Whether something was."""
        connection, sent = self._current, False
        if connection is None or connection.refused or not (self._session.due or connection.channel.due):
            return False
        while len(connection.outbox) < HIGH_WATER:
            if connection.channel.established:
                for part in self._session.parts_to_send(READ_SIZE):
                    connection.channel.send(part)
            data = connection.channel.data_to_send()
            if not data:
                break
            sent = True
            try:
                connection.outbox.put(data)
            except OSError:
                self._drop(connection)
                break
            if not self._session.due:
                break
        return sent

    # -- in -----------------------------------------------------------------------------------------------------------

    def _handed_over(self) -> None:
        sock = None
        try:
            sock = accept(self._control)
        except OSError:
            pass
        if sock is None:
            self._gone()
            return
        channel, self._first = self._first or channel_server.ServerChannel(self._identity.digest()), None
        connection = _Connection(sock, channel, self._loop, lambda: self._takes_more(connection))
        self._joining.append(connection)
        for each in self._joining[:-_MOST]:
            self._drop(each)
        self._watch(connection)

    def _takes_more(self, connection: _Connection) -> None:
        if connection is self._current:
            self._guarded(self._flush)()

    def _watch(self, connection: _Connection) -> None:
        reads = (self._listens and not self._slow) or connection is not self._current
        self._loop.read(connection.socket, self._guarded(partial(self._readable, connection)) if reads else None)

    def _readable(self, connection: _Connection) -> None:
        try:
            size = connection.socket.recv_into(self._received)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._drop(connection)
            return
        try:
            events = connection.channel.receive(self._received[:size])
        except RemoteProtocolError:  # whoever changed the bytes: the client dials again
            self._drop(connection)
            return
        for event in events:
            match event:
                case channel_server.EvidenceRequested(report_data):
                    self._prove(self._loop, report_data, partial(self._proved, connection))
                case channel_server.Data(plaintext):
                    self._said(connection, plaintext)
                case channel_server.Closed() if connection is self._current or self._alone(connection):
                    self._gone()
                case channel_server.Closed():
                    self._drop(connection)
                case _:
                    pass
        if connection is not self._current:
            try:
                connection.push()
            except OSError:
                self._drop(connection)

    def _proved(self, connection: _Connection, evidence: bytes | None) -> None:
        """There is evidence for a connection, or none to be had: its client may dial again."""
        if connection not in self._joining:
            return  # meanwhile
        if evidence is None:
            self._drop(connection)
            return
        connection.channel.provide(evidence)
        try:
            connection.push()
        except OSError:
            self._drop(connection)

    def _said(self, connection: _Connection, plaintext: bytes) -> None:
        if connection.refused:
            return
        if connection is not self._current:
            try:
                greeted = connection.hello.receive(plaintext)
            except RemoteProtocolError:
                self._drop(connection)
                return
            if greeted is None:
                return
            hello, plaintext = greeted
            if not self._join(connection, hello):
                return
        if plaintext:
            for event in self._session.receive(plaintext):
                self.arrivals.take(event)

    def _join(self, connection: _Connection, hello: Hello) -> bool:
        """Let it carry the session, if it is this one."""
        try:
            if not self.joined:
                if fits := hello.read == 0:
                    self.caller = _caller(connection.channel)
            elif fits := hmac.compare_digest(
                hello.secret + connection.channel.peer_key_digest, self._secret + self._key
            ):
                self._session.resume(hello.read)
        except RemoteProtocolError:
            fits = False
        answer = Answer(fits, self._session.read if fits else 0, int(self._grace * 1000))
        connection.channel.send(answer.pack())
        if not fits:
            connection.refused = True
            return False
        self.joined, self._secret, self._key = True, hello.secret, connection.channel.peer_key_digest
        before, self._current = self._current, connection
        self._joining.remove(connection)
        if before is not None:
            self._close(before)
        self._watch(connection)
        return True

    def _drop(self, connection: _Connection) -> None:
        """It is of no use any more."""
        if connection in self._joining:
            self._joining.remove(connection)
            if not self.joined and not self._joining:
                self._wait(min(self._grace, FIRST_GRACE_SECONDS))
        elif connection is self._current:
            self._current = None
            self._wait(self._grace)
        else:
            return
        self._close(connection)

    def _alone(self, connection: _Connection) -> bool:
        """Nobody has joined, and nobody else is about to."""
        return not self.joined and self._joining == [connection]

    def _wait(self, seconds: float) -> None:
        self._lost += 1
        lost = self._lost
        self._loop.later(seconds, lambda: self._grace_over(lost))

    def _grace_over(self, lost: int) -> None:
        if self._lost == lost and self._current is None and (self.joined or not self._joining):
            self._gone()

    def _close(self, connection: _Connection) -> None:
        self._loop.forget(connection.socket)
        connection.socket.close()
        connection.outbox.drop()  # it refers to the connection: neither, nor their TLS, shall wait for the garbage collector

    # -- the end ------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Send all that is left, without the loop, to a client that may be behind. OSError, AdytonError: it is gone as well."""
        self._flush()
        deadline = time.monotonic() + END_SECONDS
        while (
            (connection := self._current) is not None
            and (connection.outbox or self._session.due)
            and time.monotonic() < deadline
        ):
            sock = connection.socket
            ready = select.select([sock], [sock] if connection.outbox else [], [], END_PATIENCE)
            if not any(ready):
                break
            if ready[0] and not self._hear(connection):
                break
            if ready[1]:
                connection.outbox.push()
            self._flush()

    def _hear(self, connection: _Connection) -> bool:
        """What the client says moves nothing any more but its own reading. False: it is gone."""
        size = connection.socket.recv_into(self._received)
        for event in connection.channel.receive(self._received[:size]):
            if isinstance(event, channel_server.Data):
                self._session.receive(event.data)
        return size > 0

    def close(self) -> None:
        """End them all. The loop has been stopped."""
        for each in [*self._joining, *([] if self._current is None else [self._current])]:
            each.socket.close()
        self._joining, self._current = [], None
        self._control.close()


def _caller(channel: channel_server.ServerChannel) -> Caller | None:
    """RemoteProtocolError: it shows certificates that cannot be read."""
    if not channel.peer_key_digest:
        return None
    certificate, *chain = channel.peer_certificates()
    return Caller(f"sha256:{channel.peer_key_digest.hex()}", certificate, tuple(chain))
