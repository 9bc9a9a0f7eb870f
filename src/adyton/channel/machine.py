"""What both ends of a channel do, whichever of them proves what it is."""

from __future__ import annotations

import os
from collections.abc import Mapping

from adyton.attestation.binding import NONCE_SIZE, VERSION
from adyton.attestation.evidence import MAX_EVIDENCE, Bound
from adyton.channel.events import Closed, Data, Established, Event, EvidenceReceived, EvidenceRequested
from adyton.channel.messages import Accept, AttestRequest, Evidence, Message, MessageReader, encode
from adyton.channel.steps import STEPS, Input, Part, State
from adyton.channel.tls import KEY_BYTES, Tls
from adyton.errors import LocalProtocolError, RemoteProtocolError

_INPUT: Mapping[type[Message], Input] = {
    AttestRequest: "AttestRequest",
    Evidence: "Evidence",
    Accept: "Accept",
}


class Channel:
    """See `ClientChannel` and `ServerChannel`. Only RemoteProtocolError leaves `receive`, and after it, `receive` raises it again."""

    def __init__(
        self,
        tls: Tls,
        part: Part | None,
        roles: tuple[bytes, bytes],
        identity_digest: bytes | None,
        nonce: bytes | None,
    ) -> None:
        """`roles`: ours and the peer's, as evidence names them. `identity_digest`: what our evidence says we are, if there will be some."""
        if part is None:
            raise LocalProtocolError("a channel on which nobody proves anything is not an attested one")
        if nonce is not None and len(nonce) != NONCE_SIZE:
            raise LocalProtocolError(f"a nonce has {NONCE_SIZE} bytes, not {len(nonce)}")
        self._tls = tls
        self._steps = STEPS[part]
        self._own_role, self._peer_role = roles
        self._identity_digest = identity_digest
        self._nonce = nonce or os.urandom(NONCE_SIZE)
        self._state: State = "handshake"
        self._messages = MessageReader()
        self._failure: RemoteProtocolError | None = None
        self._own_key = self._peer_key = b""  # digests, once the handshake is over
        self._asked: Bound | None = None

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def established(self) -> bool:
        """Whether data can be sent."""
        return self._state == "open"

    @property
    def peer_key_digest(self) -> bytes:
        """SHA-256 of the DER SubjectPublicKeyInfo of the key that the peer has proven to hold; b"": of none, or not yet."""
        return self._peer_key

    @property
    def is_worn(self) -> bool:
        """Whether its keys were used for so much that another connection is to take its place: see `tls`."""
        return max(self._tls.received, self._tls.sent) >= KEY_BYTES

    def peer_certificates(self) -> tuple[bytes, ...]:
        """What the peer has shown in the handshake, in DER: its own certificate, then others. Only its key was checked. RemoteProtocolError."""
        return self._tls.peer_certificates()

    @property
    def awaits_evidence(self) -> bool:
        """The peer was asked for it, on a connection that works, and has not answered."""
        return self._state == "evidence"

    @property
    def bound(self) -> Bound:
        """What the peer's evidence must be bound to besides its identity, once the handshake is over."""
        if not self._tls.finished:
            raise LocalProtocolError("there is nothing to bind evidence to before the handshake is over")
        exporter = self._tls.exporter(self._peer_role)
        return Bound(self._peer_role.decode(), self._nonce, exporter, self._peer_key, self._own_key)

    @property
    def asked(self) -> Bound:
        """What our evidence is to be bound to besides our identity, once it was asked for."""
        if self._asked is None:
            raise LocalProtocolError("no evidence was asked for")
        return self._asked

    def report_data(self, identity_digest: bytes) -> bytes:
        """The 64 bytes of `bound`, for an identity."""
        return self.bound.report_data(identity_digest)

    # -- the peer's bytes ---------------------------------------------------------------------------------------------

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

    def _received(self, plaintext: bytes) -> list[Event]:
        events: list[Event] = []
        if self._state == "handshake" and self._tls.finished:
            self._own_key, self._peer_key = self._tls.own_key_digest(), self._tls.peer_key_digest()
            if "evidence" in self._steps and not self._peer_key:
                raise RemoteProtocolError("the peer has no key that its evidence could be bound to")
            self._step_of_peer("handshake finished")
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
            events += self._message_received(message)
        if self._tls.ended:
            self._state = "closed" if self._state == "closed" else "ended"
            events.append(Closed())
        return events

    def _message_received(self, message: Message) -> list[Event]:
        """What a message that has its turn means to the owner."""
        if isinstance(message, Evidence):
            return [EvidenceReceived(message.evidence)]
        if isinstance(message, Accept):
            return [Established()] if self._state == "open" else []
        if message.version != VERSION:
            raise RemoteProtocolError(
                f"the peer speaks version {message.version} of the attested channel, and this end version {VERSION}: "
                "use the same release on both sides"
            )
        assert self._identity_digest is not None
        exporter = self._tls.exporter(self._own_role)
        self._asked = Bound(self._own_role.decode(), message.nonce, exporter, self._own_key, self._peer_key)
        return [EvidenceRequested.of(self._asked, self._identity_digest)]

    # -- ours ---------------------------------------------------------------------------------------------------------

    def provide(self, evidence: bytes) -> None:
        """Send evidence, unless the channel has ended meanwhile. LocalProtocolError if it was not asked for, or is empty or too large."""
        if not 0 < len(evidence) <= MAX_EVIDENCE:
            raise LocalProtocolError(f"evidence has 1 to {MAX_EVIDENCE} bytes, not {len(evidence)}")
        self._say("provide", Evidence(evidence))

    def accept(self) -> None:
        """The evidence has been verified and validated: what it was to prove is proven, unless the channel has ended meanwhile.

        LocalProtocolError if there is no evidence to accept.
        """
        self._say("accept", Accept())

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

    def release(self) -> Tls:
        """The connection alone, once all is proven, for an owner that ends each direction by itself; the channel is not used any more."""
        if self._state not in ("open", "ended"):
            raise LocalProtocolError(f"the channel has nothing to release: its state is {self._state}")
        return self._tls

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
        if following == "evidence":
            self._tls.send(encode(AttestRequest(VERSION, self._nonce)))
