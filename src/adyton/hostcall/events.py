"""What other programs do to the client's files where an enclave follows it (abi.Follow), as the client tells it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from adyton.hostcall.abi import MAX_NAME, Path
from adyton.hostcall.check import is_name

MAX_HAPPENED = 1024  # events in one Happened

Kind = Literal["created", "removed", "modified", "attributes", "closed", "moved-from", "moved-to", "lost"]


class Event(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What happened to `name` in a followed directory; a name "": to the directory itself.

    `cookie`: the same for the two halves of a move. "closed": by a program that could write. "lost": some of what happened, anywhere,
    is not told. After the end of a directory ("removed", "moved-from") nothing more is told of it.
    """

    directory: Path
    name: Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
    kind: Kind
    is_directory: bool = False
    cookie: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0


class Happened(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """In order."""

    events: Annotated[list[Event], msgspec.Meta(max_length=MAX_HAPPENED)]


def possible(happened: Happened) -> list[Event]:
    """Those of the events that can have happened: to names that a directory can hold."""
    return [event for event in happened.events if not event.name or is_name(event.name)]
