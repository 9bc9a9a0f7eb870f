"""Streams of arguments and results: items in batches, no more of them under way than their taker has room for. Sans-IO.

A batch is an unpaired call of the method "items" (BATCH_HEAD, then a MessagePack array), and its reply, sent when its taker has taken it,
makes room for another:

    Outgoing.add, Outgoing.take ──► "items" ──► Incoming.arrived ──► the taker
    Outgoing.taken              ◄── reply (HUNGRY, or FED)       ◄── has taken one

An item goes out as soon as there is room, alone or not; while there is none, others join it. A taker that has had to wait (HUNGRY) for a
sender that had no room is given more: up to MOST_BATCHES and MOST_BYTES. Batches may overtake one another on the way; the taker
gets them in order.

    stream     whose items                                    its end
    RESULT     the entry's, to the client                     the reply to the call says how many batches there were
    1, 2, …    an argument's, to the enclave                  a batch of the kind END, or of the kind RAISED with a Raised

An item that is nothing but large bytes is a batch of its own (LARGE): bulk beside the head, not encoded.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Generic, NamedTuple, TypeVar

from adyton.communicator.outbox import Part
from adyton.communicator.sequence import Sequence
from adyton.communicator.session import Parts, Session
from adyton.errors import RemoteProtocolError
from adyton.proto.values import MAX_STREAMS

BATCH = 1 << 18  # bytes of items: one that has so many is full
MOST_ITEMS = 4096  # of a batch
FIRST_BATCHES = 4  # unacknowledged, to begin with
MOST_BATCHES = 64
MOST_BYTES = 1 << 23  # unacknowledged, and one batch more: each process on the way may have them two or three times
LARGEST = (1 << 30) - 64  # bytes of an item: what a message carries
MOST_CALLS = 1024  # of "items", unanswered; the rest of what a session allows is for other calls
BATCH_HEAD = struct.Struct("<QIQB")  # call, stream, number of the batch (from 0), kind
RESULT = 0  # the stream
ITEMS, END, RAISED, LARGE = range(4)  # kinds
FED, HUNGRY = b"", b"\1"
_ARRAY = struct.Struct(">BI")


T = TypeVar("T")


class Batch(NamedTuple):
    """`payload`: a MessagePack array of items; of the kind END nothing, of RAISED an encoded Raised, of LARGE the item as it is."""

    call: int
    stream: int
    number: int
    kind: int
    payload: memoryview | bytes


def batch_of(body: bytes | bytearray, bulk: tuple[bytes, ...] = ()) -> Batch:
    """What the body of a call of "items" says, and its bulk; RemoteProtocolError if it is none."""
    if len(body) < BATCH_HEAD.size:
        raise RemoteProtocolError("a batch of items without its head")
    call, stream, number, kind = BATCH_HEAD.unpack_from(body)
    if kind > LARGE or stream > MAX_STREAMS or len(bulk) != (kind == LARGE):
        raise RemoteProtocolError(f"a batch of kind {kind} of stream {stream}")
    if bulk:
        if len(body) != BATCH_HEAD.size:
            raise RemoteProtocolError("a large item with others beside it")
        return Batch(call, stream, number, kind, bulk[0])
    return Batch(call, stream, number, kind, memoryview(body)[BATCH_HEAD.size :])


class Outgoing:
    """The sender's end. `batches`: how many were taken to be sent."""

    def __init__(self) -> None:
        self.batches = 0
        self._most = FIRST_BATCHES
        self._under_way: deque[int] = deque()  # bytes of each
        self._bytes = 0
        self._items: list[bytes] = []
        self._size = 0
        self._large: bytes | None = None  # behind them
        self._end: tuple[int, bytes] | None = None
        self._held = False  # something was due, and there was no room

    @property
    def full(self) -> bool:
        """Whether no item may be added before a batch was taken."""
        return self._large is not None or self._size >= BATCH or len(self._items) >= MOST_ITEMS

    @property
    def pending(self) -> bool:
        """Whether something that was added was not taken to be sent."""
        return bool(self._items) or self._large is not None or self._end is not None

    @property
    def room(self) -> bool:
        """Whether another batch may be sent."""
        under_way = len(self._under_way)
        return not under_way or (under_way < self._most and self._bytes < min(self._most * BATCH, MOST_BYTES))

    def add(self, item: bytes) -> None:
        """An encoded item. ValueError: it is too large."""
        if len(item) > LARGEST:
            raise ValueError(f"an item of {len(item)} bytes; at most {LARGEST} are carried")
        self._items.append(item)
        self._size += len(item)

    def add_large(self, item: bytes) -> None:
        """One that is nothing but large bytes, not encoded. ValueError: as above."""
        if len(item) > LARGEST:
            raise ValueError(f"an item of {len(item)} bytes; at most {LARGEST} are carried")
        self._large = item

    def end(self, kind: int, payload: bytes = b"") -> None:
        """What was added was the last: a batch of that kind is due behind it."""
        self._end = kind, payload

    def take(self) -> tuple[int, tuple[bytes, ...]] | None:
        """The kind and the parts of the payload of a batch that is due, and may be sent now."""
        if not self.pending:
            return None
        if not self.room:
            self._held = True
            return None
        if self._items:
            kind, parts = ITEMS, self._payload()
        elif self._large is not None:
            kind, parts = LARGE, (self._large,)
            self._large = None
        else:
            assert self._end is not None
            kind, parts = self._end[0], (self._end[1],)
            self._end = None
        size = sum(map(len, parts))
        self._under_way.append(size)
        self._bytes += size
        self.batches += 1
        return kind, parts

    def _payload(self) -> tuple[bytes, ...]:
        """Of what was added. A single item may be large, and is not copied."""
        items, self._items, self._size = self._items, [], 0
        head = _ARRAY.pack(0xDD, len(items))
        return (head, items[0]) if len(items) == 1 else (b"".join([head, *items]),)

    def taken(self, *, hungry: bool) -> None:
        """The oldest batch under way was taken. RemoteProtocolError: there is none."""
        if not self._under_way:
            raise RemoteProtocolError("items were taken that had not been sent")
        self._bytes -= self._under_way.popleft()
        if hungry and self._held:
            self._most = min(2 * self._most, MOST_BATCHES)
        self._held = False


class Incoming:
    """The taker's end; `T`: what a batch is known by to its owner. Only RemoteProtocolError leaves it."""

    def __init__(self) -> None:
        self._sequence: Sequence[tuple[int, Batch]] = Sequence(MOST_BATCHES, LARGEST + MOST_BYTES)
        self._batches = 0  # that are not taken
        self._bytes = 0
        self._next = 0
        self._total: int | None = None

    def arrived(self, call: int, batch: Batch) -> list[tuple[int, Batch]]:
        """A batch came as that call: which of them are due now."""
        if self._batches >= MOST_BATCHES or (self._batches and self._bytes >= MOST_BYTES):
            raise RemoteProtocolError("the peer sent more items than there was room for")
        self._batches += 1
        self._bytes += len(batch.payload)
        due = self._sequence.arrived(batch.number, (call, batch), len(batch.payload))
        for _, each in due:
            if self._total is not None and self._next >= self._total:
                raise RemoteProtocolError("the peer sent items after the end of their stream")
            self._next += 1
            if each.kind in (END, RAISED):
                self._total = self._next
        return due

    def taken(self, size: int) -> None:
        """One that was due, with a payload of so many bytes, was taken."""
        self._batches -= 1
        self._bytes -= size

    def ends(self, total: int) -> None:
        """There are so many batches."""
        if total < self._next or self._total is not None:
            raise RemoteProtocolError(f"the peer ended a stream after {total} batches, and had sent {self._next}")
        self._total = total

    @property
    def complete(self) -> bool:
        """Whether all that there is was due."""
        return self._next == self._total


class ItemCalls(Generic[T]):
    """Batches as calls of a session, MOST_CALLS at once; the others wait in order. `T`: to whom the answer matters."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._due: deque[tuple[T, Parts, tuple[Parts, ...]]] = deque()
        self._sent: dict[int, T] = {}

    def send(self, owner: T, call: int, stream: int, number: int, kind: int, parts: tuple[Part, ...]) -> None:
        """A batch: see Batch."""
        head = BATCH_HEAD.pack(call, stream, number, kind)
        self._due.append((owner, head, (parts,)) if kind == LARGE else (owner, (head, *parts), ()))
        self._send_due()

    def _send_due(self) -> None:
        while self._due and len(self._sent) < MOST_CALLS:
            owner, body, bulk = self._due.popleft()
            self._sent[self._session.call(0, "items", body, bulk)] = owner

    def replied(self, number: int) -> T | None:
        """Whose batch that call was; None: it is none of these."""
        owner = self._sent.pop(number, None)
        if owner is not None:
            self._send_due()
        return owner
