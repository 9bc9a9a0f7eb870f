"""The steps that both ends of a channel go through, and what each allows."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Literal

from adyton.channel.events import Closed, Data, Event
from adyton.channel.messages import Accept, AttestRequest, Evidence, Message, MessageReader, encode
from adyton.channel.tls import Tls
from adyton.errors import LocalProtocolError, RemoteProtocolError

State = Literal[
    "handshake", "request", "attesting", "evidence", "judging", "acceptance", "open", "closed", "ended", "failed"
]
Input = Literal["handshake finished", "AttestRequest", "provide", "Evidence", "accept", "Accept", "send", "close"]

# state → our call, or what comes from the peer → next state. What is missing is a violation; data is read in "open" alone. The peer
# may end ("ended") or fail while evidence is made or judged: what we then say has no taker, and is no mistake.
CLIENT_STEPS: Mapping[State, Mapping[Input, State]] = {
    "handshake": {"handshake finished": "evidence", "close": "closed"},
    "evidence": {"Evidence": "judging", "close": "closed"},
    "judging": {"accept": "open", "close": "closed"},
    "open": {"send": "open", "close": "closed"},
    "closed": {"close": "closed"},
    "ended": {"accept": "ended", "close": "closed"},
    "failed": {"accept": "failed", "close": "failed"},
}
SERVER_STEPS: Mapping[State, Mapping[Input, State]] = {
    "handshake": {"handshake finished": "request", "close": "closed"},
    "request": {"AttestRequest": "attesting", "close": "closed"},
    "attesting": {"provide": "acceptance", "close": "closed"},
    "acceptance": {"Accept": "open", "close": "closed"},
    "open": {"send": "open", "close": "closed"},
    "closed": {"close": "closed"},
    "ended": {"provide": "ended", "close": "closed"},
    "failed": {"provide": "failed", "close": "failed"},
}


_INPUT: Mapping[type[Message], Input] = {
    AttestRequest: "AttestRequest",
    Evidence: "Evidence",
    Accept: "Accept",
}


class Channel(abc.ABC):
    """What both ends have. Only RemoteProtocolError leaves `receive`, and after it, `receive` raises it again."""

    def __init__(self, tls: Tls, steps: Mapping[State, Mapping[Input, State]]) -> None:
        self._tls = tls
        self._steps = steps
        self._state: State = "handshake"
        self._messages = MessageReader()
        self._failure: RemoteProtocolError | None = None

    @property
    def established(self) -> bool:
        """Whether data can be sent."""
        return self._state == "open"

    def receive(self, data: bytes | memoryview) -> list[Event]:
        """What the peer's bytes complete."""
        if self._failure is not None:
            raise self._failure
        try:
            plaintext = self._tls.receive(data)
            if self._state == "open" and not self._tls.ended:
                return [Data(plaintext)] if plaintext else []
            return self._received(plaintext)
        except RemoteProtocolError as error:
            self._failure = error
            self._state = "failed"
            raise

    def send(self, plaintext: bytes | memoryview) -> None:
        """Send data. LocalProtocolError before the channel is established, and after its end."""
        if self._state != "open":
            self._step_of_ours("send")
        self._tls.send(plaintext)

    @property
    def due(self) -> bool:
        """Whether `data_to_send` may have something."""
        return self._tls.due

    def data_to_send(self) -> bytes:
        """All bytes that are due for the peer; b"" when none are."""
        return self._tls.data_to_send() if self._tls.due else b""

    def close(self) -> None:
        """Tell the peer that nothing more comes; what still comes from it is dropped."""
        self._step_of_ours("close")
        self._tls.close()

    def _received(self, plaintext: bytes) -> list[Event]:
        events: list[Event] = []
        if self._state == "handshake" and self._tls.finished:
            self._step_of_peer("handshake finished")
            self._handshake_finished()
        while plaintext:
            if self._state == "open":
                events.append(Data(plaintext))
                break
            if self._state == "closed":
                break
            if self._state in ("attesting", "judging"):
                raise RemoteProtocolError(f"the peer sent {len(plaintext)} bytes when it was not its turn")
            message = self._messages.next(plaintext)
            if message is None:
                break
            plaintext, self._messages.rest = self._messages.rest, b""
            self._step_of_peer(_INPUT[type(message)])
            events.append(self._message_received(message))
        if self._tls.ended:
            self._state = "closed" if self._state == "closed" else "ended"
            events.append(Closed())
        return events

    @abc.abstractmethod
    def _handshake_finished(self) -> None:
        """The first moment at which something can be sent."""

    @abc.abstractmethod
    def _message_received(self, message: Message) -> Event:
        """What a message that has its turn means to the owner."""

    def _say(self, what: Input, message: Message) -> None:
        """Send a message of ours that has its turn."""
        self._step_of_ours(what)
        if self._state not in ("ended", "failed"):
            self._tls.send(encode(message))

    def _step_of_ours(self, what: Input) -> None:
        following = self._steps[self._state].get(what)
        if following is None:
            raise LocalProtocolError(f"the channel cannot {what}: its state is {self._state}")
        self._state = following

    def _step_of_peer(self, what: Input) -> None:
        following = self._steps[self._state].get(what)
        if following is None:
            raise RemoteProtocolError(f"the peer sent {what}, which is out of order: the state is {self._state}")
        self._state = following
