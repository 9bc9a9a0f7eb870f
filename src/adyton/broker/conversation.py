"""The broker's end of one connection, without IO: what its peer shows and asks, and what is due for it."""

from __future__ import annotations

import msgspec

from adyton.broker.protocol import Request, encode_answer, requests
from adyton.broker.secret_memory import wipe
from adyton.channel.credential import Credential
from adyton.channel.server import Closed, Data, EvidenceReceived, ServerChannel
from adyton.errors import RemoteProtocolError


class Shown(msgspec.Struct, frozen=True):
    """Evidence, hostile until judged; then `accept`, or the end."""

    evidence: bytes


class Asked(msgspec.Struct, frozen=True):
    """For the secret of that name; then `answer`."""

    name: str


class Left(msgspec.Struct, frozen=True):
    """The peer ended the channel."""


class Conversation:
    """Events in their order: Shown, Asked; Left at any time. Only RemoteProtocolError leaves `receive`."""

    def __init__(self, credential: Credential) -> None:
        self._channel = ServerChannel(verifies=True, credential=credential)
        self._reader = requests()
        self._asked = False

    def receive(self, data: bytes) -> list[Shown | Asked | Left]:
        """What the peer's bytes complete."""
        found: list[Shown | Asked | Left] = []
        for event in self._channel.receive(data):
            match event:
                case EvidenceReceived(evidence):
                    found.append(Shown(evidence))
                case Data(plaintext):
                    found += self._said(plaintext)
                case Closed():
                    found.append(Left())
                case _:
                    pass
        return found

    def _said(self, plaintext: bytes) -> list[Shown | Asked | Left]:
        if self._asked:
            raise RemoteProtocolError("the peer asked more than once")
        request: Request | None = self._reader.receive(plaintext)
        if request is None:
            return []
        self._asked = True
        return [Asked(request.name)]

    def report_data(self, identity_digest: bytes) -> bytes:
        """What evidence of that identity must be bound to, on this connection."""
        return self._channel.report_data(identity_digest)

    def accept(self) -> None:
        """The evidence is good."""
        self._channel.accept()

    def answer(self, secret: memoryview | None) -> None:
        """Give it, or refuse, and end the channel. Nothing, if the peer has ended it."""
        if self._channel.established:
            body = encode_answer(secret)
            try:
                self._channel.send(memoryview(body))
            finally:
                wipe(body)
        self.end()

    def end(self) -> None:
        """Say that nothing more comes."""
        self._channel.close()

    def data_to_send(self) -> bytes:
        """What is due for the peer."""
        return self._channel.data_to_send()
