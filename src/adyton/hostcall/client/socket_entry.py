"""One of an enclave's sockets on its client's machine, as the client knows it."""

from __future__ import annotations

import socket
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from adyton.hostcall import sockets as net
from adyton.hostcall.client.socket_ancillary import RECEIVING, Item

NOTHING: list[Item] = []


@dataclass
class Entry:
    """One open socket. `credit`: bytes that may be sent to the enclave; `room`: of our `window`, that it may send us; `taken`: not yet told of."""

    number: int
    sock: socket.socket
    kind: net.Kind
    family: net.Family
    state: str = "open"  # open, connecting, connected, listening
    credit: int = 0
    window: int = 0
    room: int = 0
    taken: int = 0
    out: deque[tuple[bytes, tuple[Any, ...] | None, list[Item], int]] = field(default_factory=deque)  # and flags
    accepts: deque[int] = field(default_factory=deque)
    connecting: tuple[int, float] | None = None  # the call, and when it began
    ended: bool = False  # nothing more is read
    shut: bool = False  # nothing more will come from the enclave
    closing: bool = False  # to be closed when `out` has been written
    bound: bool = False  # by the enclave
    joined: bool = False  # groups, which it would leave if it were closed
    serves: bool = False  # a datagram socket that takes from everybody
    asked: set[str] = field(default_factory=set)  # options by which it wants to be told with a datagram
    watched: int = 0

    def __post_init__(self) -> None:
        self.credit = self.window = self.room = net.first(self.kind)

    @property
    def waiting(self) -> int:
        """How many bytes the socket has not taken yet."""
        return sum(len(data) for data, *_ in self.out)

    def note(self, option: net.Option) -> None:
        """It has been set."""
        if option.name in RECEIVING:
            (self.asked.add if option.values[0] else self.asked.discard)(option.name)
