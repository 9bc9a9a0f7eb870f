"""Asks brokers for the guest, which is hostile here: it carries ciphertext, and is given the secret. See guest.secrets for the messages."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from adyton.broker.asking import Asking
from adyton.channel.events import EvidenceRequested
from adyton.errors import AdytonError, RemoteProtocolError
from adyton.runtime.process.guest.secrets import END, GIVEN, MAX_PIECE, MORE, PIECE, REFUSED, Ask, Refusal
from adyton.runtime.process.supervisor.guest_sockets import Answer, GuestSockets, Hear
from adyton.runtime.process.supervisor.loop import Callback, Loop
from adyton.runtime.process.supervisor.proving import Prove

MOST = 32  # questions at a time; of more, the newest is not taken
NOT_GIVEN = "the broker does not give it to this enclave, or has none of that name: the broker's log says which"
_DECODER: msgspec.msgpack.Decoder[Ask] = msgspec.msgpack.Decoder(Ask)

NO_EVIDENCE = "the enclave's platform gave no evidence: its server's standard error says why"


class Question:
    """One, sans-IO: a message in, the answer out, which the caller overwrites. Only RemoteProtocolError leaves it."""

    def __init__(self, identity_digest: bytes) -> None:
        self._identity_digest = identity_digest
        self._asking: Asking | None = None
        self._ended = False

    @property
    def wanted(self) -> EvidenceRequested | None:
        """The evidence that `proved` is to be given before anything else."""
        return None if self._asking is None else self._asking.wanted

    def receive(self, message: bytes) -> bytearray | None:
        """The answer; None: evidence is wanted. RemoteProtocolError: no guest of this runtime says that."""
        if self._ended or self.wanted is not None:
            raise RemoteProtocolError("its guest goes on with a question that is answered, or is about to be")
        ask, piece = (_ask(message), b"") if self._asking is None else (None, _piece(message))
        try:
            if ask is not None:
                self._asking = Asking(ask.name, ask.keys, self._identity_digest)
            else:
                assert self._asking is not None
                self._asking.receive(piece)
        except AdytonError as error:
            return self._refused(type(error).__name__, error.message)
        return None if self.wanted is not None else self._answer()

    def proved(self, evidence: bytes | None) -> bytearray:
        """The answer, with the evidence that was wanted; None: there is none."""
        assert self._asking is not None
        if evidence is None:
            return self._refused("PlatformError", NO_EVIDENCE)
        try:
            self._asking.provide(evidence)
        except AdytonError as error:
            return self._refused(type(error).__name__, error.message)
        return self._answer()

    def _answer(self) -> bytearray:
        assert self._asking is not None
        if self._asking.answer is None:
            return bytearray(MORE + self._asking.data_to_send())
        secret = self._asking.secret
        if secret is None:
            return self._refused("", NOT_GIVEN)
        self._ended = True
        try:
            answer = bytearray(len(GIVEN) + len(secret))
            answer[: len(GIVEN)], answer[len(GIVEN) :] = GIVEN, secret
            return answer
        finally:
            self._asking.wipe()

    def _refused(self, kind: str, message: str) -> bytearray:
        self._ended = True
        return bytearray(REFUSED + msgspec.msgpack.encode(Refusal(kind, message)))


def _ask(message: bytes) -> Ask:
    try:
        return _DECODER.decode(message)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"malformed question for a secret: {error}") from error


def _piece(message: bytes) -> bytes:
    if message == END:
        return b""
    if message[:1] != PIECE or len(message) == 1:
        raise RemoteProtocolError("malformed piece of a broker's answer")
    return message[1:]


def secret_links(
    loop: Loop, guarded: Callable[[Callback], Callback], identity_digest: bytes, prove: Prove
) -> GuestSockets:
    """The sockets on which the guest has brokers asked."""

    def begin() -> Hear:
        question = Question(identity_digest)

        def hear(message: bytes, answer: Answer) -> None:
            said = question.receive(message)
            if said is not None:
                _give(answer, said)
                return
            assert question.wanted is not None
            prove(loop, question.wanted, lambda evidence: _give(answer, question.proved(evidence)))

        return hear

    return GuestSockets(loop, guarded, begin, MOST, 1 + MAX_PIECE)


def _give(answer: Answer, said: bytearray) -> None:
    """And overwrite it."""
    try:
        answer(said)
    finally:
        said[:] = bytes(len(said))
