"""What a session tells its owner of what its peer said."""

from __future__ import annotations

from typing import Literal

import msgspec

Body = bytes | bytearray  # of a message: the latter, nobody else's, if it is large


class Called(msgspec.Struct, frozen=True, gc=False):
    """The peer calls, and must be replied to. `pair` 0: unpaired."""

    call: int
    pair: int
    method: str
    body: Body
    bulk: tuple[bytes, ...] = ()


class Begun(msgspec.Struct, frozen=True, gc=False):
    """The peer calls, and its message comes in pieces: as many bytes as `sizes` together. It must be replied to when all are there."""

    call: int
    pair: int
    method: str
    sizes: tuple[int, ...]  # of the body and its bulk


class ReplyBegun(msgspec.Struct, frozen=True, gc=False):
    """The answer to our call comes in pieces; when all are there, it is answered."""

    call: int
    ok: bool
    sizes: tuple[int, ...]  # of the body and its bulk


class Piece(msgspec.Struct, frozen=True, gc=False):
    """The next bytes of a call of the peer's that was begun, or of the reply to one of ours; `last`: there are no more."""

    call: int
    data: memoryview
    last: bool
    kind: Literal["call", "reply"] = "call"


class Replied(msgspec.Struct, frozen=True, gc=False):
    """The answer to our call; `pair` is the call's."""

    call: int
    ok: bool
    body: Body
    pair: int
    bulk: tuple[bytes, ...] = ()


class Notified(msgspec.Struct, frozen=True, gc=False):
    """A message that has no answer."""

    method: str
    body: Body


class Cancelled(msgspec.Struct, frozen=True, gc=False):
    """The peer does not need the answer to its call any more; it must be replied to all the same."""

    call: int


class Disposed(msgspec.Struct, frozen=True, gc=False):
    """The client's thread of this pair has ended; the pair is gone."""

    pair: int


class Closed(msgspec.Struct, frozen=True, gc=False):
    """The peer's last word."""

    reason: str


Event = Called | Begun | ReplyBegun | Piece | Replied | Notified | Cancelled | Disposed | Closed
