"""The guest's side of asking a broker: the program's own socket carries ciphertext between the broker and the supervisor, which has the keys.

    guest → supervisor    Ask(name, keys), then what came from the broker, piece by piece; b"" is not sent: END says that it has closed
    supervisor → guest    one answer to each: MORE ‖ what is due for the broker, GIVEN ‖ the secret, or REFUSED ‖ Refusal

Each question has a socket of its own (SEQPACKET), and one message is one packet, so any thread may ask at any time.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Sequence
from typing import Annotated

import msgspec

from adyton import errors
from adyton.attestation.evidence import MAX_EVIDENCE
from adyton.errors import AdytonError, RemoteProtocolError
from adyton.runtime.process.guest.conversation import Conversation

SECRET = b"secret"  # guest → supervisor, on the control socket: a socket for one question, attached
MAX_PIECE = 1 << 15  # bytes
MAX_PACKET = MAX_EVIDENCE + MAX_PIECE  # bytes; the largest holds evidence
PIECE, END = b"\0", b"\1"
MORE, GIVEN, REFUSED = b"\0", b"\1", b"\2"


class Ask(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    name: Annotated[str, msgspec.Meta(max_length=1024)]
    keys: Annotated[list[Annotated[str, msgspec.Meta(max_length=128)]], msgspec.Meta(max_length=64)]


class Refusal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`kind`: the error's class, of adyton.errors; "": the broker does not give it."""

    kind: str
    message: str


class SupervisorAsker:
    """A trusted.secrets.Asker, by the supervisor at the other end of `control`."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self.image: tuple[str, Sequence[str]] | None = None

    def ask(self, name: str, host: str, port: int, keys: Sequence[str], timeout: float) -> bytes:
        until = time.monotonic() + timeout

        def left() -> float:
            seconds = until - time.monotonic()
            if seconds <= 0:  # however much comes meanwhile
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            return seconds

        def asked(message: bytes) -> bytes:
            answer = question.exchange(message, MAX_PACKET, left())
            if not answer:
                raise ConnectionError("the supervisor takes no more questions, or is gone")
            return answer

        with (
            _connected(name, host, port, timeout) as broker,
            Conversation(self._control, SECRET) as question,
        ):
            answer = asked(msgspec.msgpack.encode(Ask(name, list(keys))))
            while answer[:1] == MORE:
                broker.settimeout(left())
                broker.sendall(answer[1:])
                try:
                    piece = broker.recv(MAX_PIECE)
                except ConnectionError:
                    piece = b""
                answer = asked(PIECE + piece if piece else END)
        if answer[:1] == GIVEN:
            return answer[1:]
        refusal = msgspec.msgpack.decode(memoryview(answer)[1:], type=Refusal)
        if not refusal.kind:
            raise PermissionError(f"secret({name!r}): {refusal.message}")
        kind = getattr(errors, refusal.kind, RemoteProtocolError)
        assert isinstance(kind, type)
        assert issubclass(kind, AdytonError)
        raise kind(f"secret({name!r}): {refusal.message}")


def _connected(name: str, host: str, port: int, timeout: float) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout)
    except OSError as error:  # as it is, but for what it says
        error.strerror = f"secret({name!r}): the broker {host}:{port} cannot be reached: {error.strerror or error}"
        raise
