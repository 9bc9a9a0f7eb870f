"""The line to an enclave's session: a connection with an attested channel, and another one when that is lost.

    transport ──► handshake ──► evidence, judged ──► Hello ──► Answer ──► the session's bytes, from where both ends are

So is one that has lasted for an hour of use, or carried so much that its keys are worn (`channel.tls`): it is ended between two pieces of what comes, and
the next one dialled at once.

The first connection is made once. After that each loss is followed by attempts to have another one, with pauses that grow, for as long as the
enclave waits for that (its grace). Each has a channel and evidence of its own. Who waits for answers meanwhile waits on; nothing is lost or done
twice (`communicator.replay`). It is over at once when the enclave has said why it ended, when whoever answers knows of no such session, when
the evidence is another's, and, after a moment, when nobody listens there any more.

One reader thread; what is to be sent is sent by who asks for it, if the transport can do that (`Transport.wake`). What the session is asked to
do is serialized by its owner's lock.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Protocol

from adyton.channel import client as channel_client
from adyton.channel.credential import Credential
from adyton.communicator.joining import FIRST_GRACE_SECONDS, Answer, AnswerReader, Hello, new_secret
from adyton.communicator.session import Closed, Event, Session
from adyton.errors import (
    AdytonError,
    ClosedError,
    ConnectionLostError,
    RemoteProtocolError,
    ResourceLimitError,
    UnauthenticatedError,
    UnreachableError,
)
from adyton.remote.pulse import HANDSHAKE_LOST_AFTER, LOST_AFTER, Pulse
from adyton.remote.transport import Bytes, Transport

PIECE = 1 << 19  # bytes sent at a time, about
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds between two attempts
ATTEMPT_SECONDS = 8.0  # that one of them may take
PARTING_SECONDS = 0.5  # for the last to go out to who may not take it
KEY_SECONDS = 3600.0  # that a connection is used for; an idle one may stay
LEAST_GRACE = 5.0  # seconds: of an enclave that waits less, no connection is ended that might not be had again
CLOSE_TIMEOUT = 3.0  # seconds for the other end to hang up after our goodbye

_UNKNOWN = "the enclave's server knows of no such session any more: it has been restarted, or gave it up"


class Owner(Protocol):
    """Of a line; called by its reader, `sending` and `sent` by who sends, under the lock."""

    def judge(self, evidence: bytes, channel: channel_client.ClientChannel) -> None:
        """Of another connection than the first: raise AdytonError unless it is the same enclave's."""

    def made_again(self) -> None:
        """The connection was lost, and there is another one. Under the lock."""

    def sending(self) -> None:
        """Have the session be told what there is."""

    def sent(self) -> None:
        """Something was."""

    def arrived(self, events: list[Event]) -> None:
        """Act on what the session's peer said. AdytonError: it is a breach."""

    @property
    def ended_because(self) -> str:
        """What the enclave said at its end; empty: nothing."""

    def over_for_good(self, error: AdytonError) -> None:
        """There is no connection any more, and will be none."""


class _Connection:
    def __init__(self, credential: Credential | None) -> None:
        self.channel = channel_client.ClientChannel(credential=credential)
        self.answer = AnswerReader()
        self.answered = False
        self.since = time.monotonic()
        self.carries = False  # the session's bytes go out
        self.over = False
        self.said_all = threading.Event()  # what goes out has ended


class _BrokenError(Exception):
    """A connection is of no use; another one may be."""


class _WornError(_BrokenError):
    """It has been used for long enough."""


class Line:
    """See the module. `begin` first; after `end`, or when it is over, nothing goes out."""

    def __init__(
        self,
        transport: Transport,
        session: Session,
        lock: threading.Lock,
        owner: Owner,
        credential: Credential | None = None,
    ) -> None:
        """`credential`: what the enclave is to know this client by, on each connection."""
        self.traffic = {"bytes_sent": 0, "bytes_received": 0}
        self.begun = False  # the evidence was accepted once, so that the session may be spoken to
        self._transport = transport
        self._session = session
        self._lock = lock
        self._owner = owner
        self._secret = new_secret()
        self._pulse = Pulse()
        self._credential = credential
        self._connection = _Connection(credential)
        self._dispatching = False  # the reader has bytes, and does not listen
        self._ending = threading.Event()
        self._final = False  # what ended this connection would end every other one
        self._grace = 0.0  # seconds; none until the enclave has said so
        self._worn = False  # that is why the last connection ended
        self._handshake: queue.SimpleQueue[bytes | AdytonError] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="adyton-reader", daemon=True)

    # -- life ---------------------------------------------------------------------------------------------------------

    def begin(self) -> queue.SimpleQueue[bytes | AdytonError]:
        """Dial. What comes: the evidence, or why there is none."""
        self._reader.start()
        return self._handshake

    @property
    def channel(self) -> channel_client.ClientChannel:
        """Of the connection there is, or that is being made."""
        return self._connection.channel

    def accept(self) -> None:
        """The first evidence was judged, and is good: the session begins."""
        with self._lock:
            if not self._connection.over:  # meanwhile; its owner is told why
                self._accepted(self._connection)
                self._grace = FIRST_GRACE_SECONDS
            self.begun = True
        self.wake()

    def end(self, *, at_once: bool) -> None:
        """Have no other connection, and this one end when all is sent, or `at_once`. Idempotent; from any thread but the reader."""
        self._ending.set()
        if at_once:
            self._part(self._connection)
        self.wake()
        self._reader.join(timeout=PARTING_SECONDS if at_once else CLOSE_TIMEOUT)
        self._transport.close()

    def break_off(self) -> None:
        """End it for good, from any thread, without waiting."""
        self._ending.set()
        self._part(self._connection)
        closing = threading.Timer(PARTING_SECONDS, self._transport.close)
        closing.daemon = True
        closing.start()

    def _part(self, connection: _Connection) -> None:
        """Tell the enclave that its client is gone for good: it need not wait for another connection."""
        with self._lock:
            if not connection.over:
                connection.channel.close()
                connection.over = True
        self.wake()

    def wake(self) -> None:
        """There is something to send. Not under the lock."""
        self._transport.wake()

    def wake_if_due(self) -> None:
        """The same, if it is so."""
        if self._session.due or self._connection.channel.due:
            self._transport.wake()

    def wake_later(self) -> None:
        """The same at any moment: under the lock, and where storage dies."""
        self._transport.wake_later()

    def tick(self, before_ping: Callable[[], None]) -> ConnectionLostError | None:
        """Somebody has waited for a while: ask the peer for a sign of life; give the connection, or the first one all, up when there is none.

        `before_ping` is called under the lock.
        """
        with self._lock:
            connection = self._connection
            proving = (
                connection.channel.awaits_evidence
            )  # of which hardware may take its time, and who waits has a limit of his own
            if self._dispatching or connection.over or proving or (self.begun and not connection.carries):
                self._pulse.heard()
                return None
            before_ping()
            limit = LOST_AFTER if self.begun else HANDSHAKE_LOST_AFTER
            due = self._pulse.tick(time.monotonic(), limit)
            if due == "wait" or (due == "ping" and not self.begun):
                return None
            if due == "ping":
                self._session.ask()
        if due == "ping":
            self.wake()
            return None
        if self.begun and self._grace and self._transport.redials:
            self._pulse.heard()
            self._transport.hang_up()
            return None
        return ConnectionLostError(
            f"the enclave's server has been silent for {limit:g} s: it hangs, or the connection is gone. "
            "The outcome of calls under way is unknown. Load it again"
        )

    # -- the reader ---------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        error = self._carry(self._connection)
        lost, pause, nobody = time.monotonic(), FIRST_PAUSE, None
        while self._may_go_on(error):
            now = time.monotonic()
            if self._connection.answered:  # it was a good one
                lost, pause = now, FIRST_PAUSE
            patience = self._transport.nobody_listens
            nobody = None if patience is None else nobody or now
            if nobody is not None and patience is not None and now - nobody >= patience:
                error = _BrokenError(
                    "the connection to the enclave was lost, and nobody listens any more where its proxy server did, so it has ended"
                )
                break
            if now - lost >= self._grace:
                error = _BrokenError(
                    f"the connection to the enclave was lost, and could not be had again within {self._grace:g} s"
                )
                break
            if isinstance(error, _WornError):
                pause = 0.0
            if self._ending.wait(pause * random.uniform(0.5, 1.0)):  # noqa: S311 - so that many do not come at once
                break
            pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
            with self._lock:
                self._worn = isinstance(error, _WornError)
                self._connection = _Connection(self._credential)
            error = self._carry(self._connection)
        if self.begun and isinstance(error, UnauthenticatedError):
            error = _BrokenError(f"{_UNKNOWN} ({error})")
        because = self._owner.ended_because
        if because or isinstance(error, _BrokenError | ClosedError):
            error = ConnectionLostError(because or f"{error}; the outcome of calls under way is unknown. Load it again")
        self._handshake.put(error)
        self._owner.over_for_good(error)
        self._transport.close()

    def _may_go_on(self, error: _BrokenError | AdytonError) -> bool:
        if self._final or self._ending.is_set() or not (self._grace and self._transport.redials):
            return False
        return isinstance(error, _BrokenError | ConnectionLostError | UnreachableError | ResourceLimitError)

    def _carry(self, connection: _Connection) -> _BrokenError | AdytonError:
        """Make it, and read from it; why it ended."""
        attempt = threading.Timer(
            min(ATTEMPT_SECONDS, max(self._grace, 1.0)),
            lambda: None if connection.answered else self._transport.hang_up(),
        )
        attempt.daemon = True
        if self.begun:
            attempt.start()
        try:
            with contextlib.closing(self._transport.run(_Outgoing(self, connection))) as incoming:
                for data in incoming:
                    try:
                        self._take(connection, data)
                    except AdytonError as error:
                        if not self._may_go_on(error):
                            self._part(connection)
                            connection.said_all.wait(PARTING_SECONDS)
                        raise
                    if self._is_worn(connection):
                        self._transport.hang_up()
                        return _WornError("the connection to the enclave was to be replaced")
            return _BrokenError("the connection to the enclave ended")
        except (_BrokenError, AdytonError) as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever a transport raises, nobody may wait for ever
            return _BrokenError(f"the connection to the enclave failed: {error!r}")
        finally:
            attempt.cancel()
            self._dispatching = False
            with self._lock:
                connection.over, connection.carries = True, False
            self.wake()

    def _is_worn(self, connection: _Connection) -> bool:
        if not connection.answered or self._grace < LEAST_GRACE or not self._transport.redials:
            return False
        return connection.channel.is_worn or time.monotonic() - connection.since >= KEY_SECONDS

    def _take(self, connection: _Connection, data: Bytes) -> None:
        self.traffic["bytes_received"] += len(data)
        with self._lock:
            self._dispatching = True
            events = self._feed(connection, data)
            self._pulse.heard()
        self._owner.arrived(events)
        self._dispatching = False
        self.wake_if_due()

    def _feed(self, connection: _Connection, data: Bytes) -> list[Event]:
        """Under the lock: what the bytes complete."""
        events: list[Event] = []
        try:
            happened = connection.channel.receive(data)
        except RemoteProtocolError as error:
            if not self.begun:
                raise
            raise _BrokenError(f"the connection to the enclave was tampered with ({error})") from None
        for each in happened:
            match each:
                case channel_client.EvidenceReceived(evidence):
                    if self.begun:
                        self._owner.judge(evidence, connection.channel)
                        self._accepted(connection)
                    else:
                        self._handshake.put(evidence)
                case channel_client.Data(plaintext):
                    rest = plaintext if connection.answered else self._answered(connection, plaintext)
                    if rest:
                        events += self._said(rest)
                case _:
                    pass
        return events

    def _accepted(self, connection: _Connection) -> None:
        connection.channel.accept()
        if connection.channel.established:
            connection.channel.send(Hello(self._secret, self._session.read).pack())
            connection.carries = not self.begun

    def _answered(self, connection: _Connection, plaintext: bytes) -> bytes:
        """What follows the answer, if all of that is there."""
        answered = connection.answer.receive(plaintext)
        if answered is None:
            return b""
        answer, rest = answered
        if not answer.joined:
            self._final = True
            raise _BrokenError(
                "somebody else has joined the enclave before its client did, over its server or the network"
                if connection.carries
                else _UNKNOWN
            )
        self._grace = answer.grace / 1000
        if not connection.carries:
            self._resume(answer)
            connection.carries = True
            if not self._worn:
                self._owner.made_again()
        connection.answered = True
        return rest

    def _resume(self, answer: Answer) -> None:
        try:
            self._session.resume(answer.read)
        except RemoteProtocolError:
            self._final = True
            raise

    def _said(self, plaintext: bytes) -> list[Event]:
        try:
            events = self._session.receive(plaintext)
        except AdytonError:
            self._final = True
            raise
        if any(isinstance(event, Closed) for event in events):
            self._final = True
        return events

    def due(self, connection: _Connection) -> bool:
        """Whether there is something to send on it."""
        ends = connection.over or self._ending.is_set()
        return ends or connection.channel.due or (connection.carries and self._session.due)

    def pull(self, connection: _Connection) -> bytes | None:
        """What is to be sent on it: see Source."""
        with self._lock:
            if connection.carries and connection.channel.established:
                self._owner.sending()
                for part in self._session.parts_to_send(PIECE):
                    connection.channel.send(part)
                self._owner.sent()
            data = connection.channel.data_to_send()
            over = connection.over or self._ending.is_set()
        self.traffic["bytes_sent"] += len(data)
        if data or not over:
            return data
        connection.said_all.set()
        return None


class _Outgoing:
    """Of one connection."""

    def __init__(self, line: Line, connection: _Connection) -> None:
        self._line = line
        self._connection = connection

    @property
    def due(self) -> bool:
        """See Source."""
        return self._line.due(self._connection)

    def pull(self) -> bytes | None:
        """See Source."""
        return self._line.pull(self._connection)
