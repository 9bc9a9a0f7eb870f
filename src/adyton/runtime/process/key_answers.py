"""What a supervisor is told of its sealing keys, see `attesting`: bytes, or why there are none."""

from __future__ import annotations

import msgspec

from adyton.errors import AdytonError, IntegrityError, PlatformError


class Refused(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """In place of a key: why there is none. `kind`: the class of the error."""

    kind: str
    message: str


_KINDS: dict[str, type[AdytonError]] = {each.__name__: each for each in (IntegrityError, PlatformError)}
_SECRET: msgspec.msgpack.Decoder[bytes | Refused] = msgspec.msgpack.Decoder(bytes | Refused)


def told(answer: bytes | AdytonError) -> bytes:
    """A key, or a state, or why there is none, as it is sent."""
    if isinstance(answer, AdytonError):
        kind = next((name for name, each in _KINDS.items() if isinstance(answer, each)), "PlatformError")
        return msgspec.msgpack.encode(Refused(kind, answer.message[:4096]))
    return msgspec.msgpack.encode(answer)


def understood(message: bytes) -> bytes:
    """What was `told`; IntegrityError, PlatformError: why there is none."""
    try:
        answer = _SECRET.decode(message)
    except msgspec.MsgspecError:
        raise PlatformError("nothing can be sealed here: the process that has the keys is out of order") from None
    if isinstance(answer, Refused):
        raise _KINDS.get(answer.kind, PlatformError)(answer.message)
    return answer
