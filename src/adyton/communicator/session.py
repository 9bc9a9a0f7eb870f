"""A session: calls both ways between a client and an enclave, on one ordered stream of bytes. Both ends are the same machine.

Sans-IO: `call`, `reply`, `notify`, `cancel`, `dispose` and `close` queue what is to be sent, `data_to_send` gives the bytes of it, and
`receive` turns the peer's bytes into events. No socket, thread or log; who owns a session serializes the use of it.

    call ───────────────────────────────────► Called          each exactly once, in the order of its numbers
    Replied ◄─────────────────────────────── reply            exactly one for each call, cancelled or not
    notify ─────────────────────────────────► Notified        before the replies and calls that are sent after it
    cancel ─────────────────────────────────► Cancelled       unless the reply has been sent already
    dispose ────────────────────────────────► Disposed        by the client, of an idle pair
    close ──────────────────────────────────► Closed          after all that was queued before; then nothing more
    mark ───────────────────────────────────►                 no event: the peer's session says by itself that it has read it

There are marks between what is sent, so that no more is on its way than the way carries (`flow`), and while much is sent, signs of
life come back. The owner can ask for one. By them it is known as well what the peer has read: the rest is kept (`replay`), and sent again on
another connection if the owner says with `resume` how much the peer had read when the one before was lost.

Only RemoteProtocolError and ResourceLimitError leave `receive`, whatever comes in; after either, `receive` raises it again, but what is
due can still be sent, so that the peer may hear why. All that a peer can make this end hold is bounded by `Limits`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Literal

import msgspec

from adyton.communicator.arriving import Arriving, Head, Passing, sizes_of
from adyton.communicator.events import (
    Begun,
    Body,
    Called,
    Cancelled,
    Closed,
    Disposed,
    Event,
    Notified,
    Piece,
    Replied,
    ReplyBegun,
)
from adyton.communicator.flow import CLOSEST, LEAST, LIGHT, Flow
from adyton.communicator.frames import (
    CHUNK,
    MAX_BULK,
    MAX_CHUNK,
    MAX_METHOD,
    MAX_NUMBER,
    MAX_REASON,
    CallFrame,
    CancelFrame,
    DisposeFrame,
    Frame,
    FrameReader,
    GoodbyeFrame,
    MarkFrame,
    MoreFrame,
    NotifyFrame,
    ReadFrame,
    ReplyFrame,
    encode,
    more_head,
)
from adyton.communicator.outbox import Outbox, Part, together
from adyton.communicator.pairs import PairTable, PairViolation, Side
from adyton.communicator.replay import Replay
from adyton.errors import (
    ConnectionLostError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    ResourceLimitError,
)

__all__ = [
    "Begun",
    "Body",
    "Called",
    "Cancelled",
    "Closed",
    "Disposed",
    "Event",
    "Limits",
    "Notified",
    "Parts",
    "Piece",
    "Replied",
    "ReplyBegun",
    "Session",
    "Side",
]


class Limits(msgspec.Struct, frozen=True):
    """What one end may make the other hold. Both ends of a session have the same.

    `message`, `notification`: bytes of a body. `buffered`: bytes of bodies that have not arrived completely; at least both. What holds them
    may take twice as much, see `arriving`.
    `pairs`: at once; `nesting`: calls under way on one pair. `in_flight`: calls of one end that are not answered, as that end sees it.
    """

    message: int = 1 << 30
    notification: int = 1 << 20
    buffered: int = 1 << 31
    pairs: int = 4096
    nesting: int = 64
    in_flight: int = 4096


Parts = bytes | tuple[Part, ...]  # a body to be sent, perhaps in parts, which are not copied if they are large


def _parts(body: Parts) -> tuple[Part, ...]:
    return body if isinstance(body, tuple) else (body,)


def _with_bulk(body: Parts, bulk: Sequence[Parts]) -> tuple[tuple[Part, ...], bytes]:
    """All parts of a message, and what its head says of how they are cut: nothing if there is no bulk."""
    if not bulk:
        return _parts(body), b""
    each = [*map(_parts, (body, *bulk))]
    return tuple(chain.from_iterable(each)), _cut(*[sum(map(len, parts)) for parts in each])


def _cut(body: int, *bulk: int) -> bytes:
    """What the head of a large message says of its bulk: sizes in bytes."""
    if len(bulk) > MAX_BULK or body + sum(bulk) <= CHUNK:
        raise LocalProtocolError(f"a message of {body + sum(bulk)} bytes with {len(bulk)} of bulk")
    return msgspec.msgpack.encode((body, *bulk))


class Session:
    """One end. See the module."""

    def __init__(
        self,
        side: Side,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        clock: Callable[[], float] = time.monotonic,
        passes: Callable[[CallFrame | ReplyFrame], bool] = lambda _head: False,
    ) -> None:
        """`clock`: seconds that never go back, by which it is seen what the way carries. `passes`: whether the large call or reply with that
        head is told of as it comes, by Begun or ReplyBegun and Piece, in place of Called or Replied.
        """
        if limits.buffered < limits.message + limits.notification:
            raise LocalProtocolError("Limits.buffered must be enough for one message and one notification")
        self.side = side
        self._limits = limits
        self._pairs = PairTable(side, limits.pairs, limits.nesting)
        self._outbox = Outbox(limits.buffered - limits.notification)
        self._reader = FrameReader()
        self._sent_calls: dict[int, int] = {}  # ours that are not answered → their pair
        self._received_calls: dict[int, int] = {}  # the peer's that are not answered → their pair
        self._replies: deque[int] = deque()  # small ones that may not be sent, as the outbox numbers them
        self._last_sent = 0
        self._last_received = 0
        self._last_notification_sent = 0
        self._last_notification_received = 0
        self._passes = passes
        self._arriving: dict[tuple[str, int], Arriving[Head] | Passing] = {}
        self._arrived = 0  # bytes that _arriving holds
        self._flow = Flow(clock)
        self._replay = Replay()
        self._again: deque[Part] = deque()  # that goes out before what is new
        self.read = 0  # bytes of the peer's
        self._read_mark = 0  # the peer's last one, if it is to be told
        self._last_mark = 0
        self._asks = False  # for a sign of life
        self._closed = False  # by us
        self._peer_reason: str | None = None  # of the peer's goodbye
        self._failure: ProtocolError | ResourceLimitError | None = None

    # -- out ----------------------------------------------------------------------------------------------------------

    def call(self, pair: int, method: str, body: Parts, bulk: Sequence[Parts] = ()) -> int:
        """Call the peer on a pair (0: unpaired, any number at once); the call's number. `bulk`: large bytes, which come there as they are.

        LocalProtocolError: not our turn on the pair, or after `close`. ResourceLimitError: one call, pair, nesting or byte too many.
        ConnectionLostError: the peer has said goodbye.
        """
        return self._call(pair, method, *_with_bulk(body, bulk))

    def begin_call(self, pair: int, method: str, body: bytes, *sizes: int) -> int:
        """The same with bulk of such sizes, which `go_on` gives."""
        return self._call(pair, method, (body,), _cut(len(body), *sizes), sum(sizes))

    def _call(self, pair: int, method: str, parts: tuple[Part, ...], cut: bytes, more: int = 0) -> int:
        """`more`: bytes that are yet to come."""
        if self._closed:
            raise LocalProtocolError(f"{method} was called after the session was closed")
        if self._peer_reason is not None:
            raise ConnectionLostError(f"the other side has ended the session: {self._peer_reason}")
        size = sum(map(len, parts)) + more
        self._check_message(method, size, self._limits.message)
        if len(self._sent_calls) >= self._limits.in_flight:
            raise ResourceLimitError(
                f"{self._limits.in_flight} calls are waiting for their answers, and no more may: wait for some of them"
            )
        number = self._last_sent + 1
        if pair:
            if not 0 < pair <= MAX_NUMBER:
                raise LocalProtocolError(f"{pair} is no number of a pair")
            self._apply(pair, "send call", number)
        self._last_sent = number
        self._sent_calls[number] = pair
        if size <= CHUNK:
            self._put_small(encode(CallFrame(number, pair, method, size, b"".join(parts))))
        else:
            self._outbox.put_body(encode(CallFrame(number, pair, method, size, cut)), "call", number, parts, more)
        return number

    def _put_small(self, frame: bytes) -> int:
        if self._outbox.has_bodies:
            self._flow.hurry()
        return self._outbox.put(frame)

    @property
    def next_call(self) -> int:
        """The number that `call` gives to the next one, if it raises nothing."""
        return self._last_sent + 1

    def reply(self, call: int, ok: bool, body: Parts, bulk: Sequence[Parts] = ()) -> None:
        """Answer a call of the peer's. LocalProtocolError: no such call waits; ResourceLimitError: too large, and it waits on."""
        if self._closed or self._peer_reason is not None:
            return
        parts, cut = _with_bulk(body, bulk)
        size = sum(map(len, parts))
        self._replies_to(call, size)
        if size <= CHUNK:
            self._replies.append(self._put_small(encode(ReplyFrame(call, ok, size, b"".join(parts)))))
        else:
            self._outbox.put_body(encode(ReplyFrame(call, ok, size, cut)), "reply", call, parts)

    def begin_reply(self, call: int, size: int, *, bulk: bool) -> None:
        """Answer with a body, or nothing but bulk, of so many bytes, which `go_on` gives. Errors as of `reply`."""
        if self._open:
            cut = _cut(*(0, size) if bulk else (size,))
            self._replies_to(call, size)
            self._outbox.put_body(encode(ReplyFrame(call, True, size, cut if bulk else b"")), "reply", call, (), size)

    def go_on(self, call: int, data: Part, kind: Literal["call", "reply"] = "reply") -> None:
        """The next bytes of what was begun, which are not copied. LocalProtocolError: it has no more."""
        if self._open:
            try:
                self._outbox.add(kind, call, data)
            except ValueError as error:
                raise LocalProtocolError(str(error)) from None

    def _replies_to(self, call: int, size: int) -> None:
        """With a message of so many bytes."""
        pair = self._received_calls.get(call)
        if pair is None or (self._arriving and ("call", call) in self._arriving):
            raise LocalProtocolError(f"call {call} was replied to, but waits for no reply")
        if size > self._limits.message:
            raise ResourceLimitError(f"the result has {size} bytes; at most {self._limits.message} are carried")
        if pair:
            self._apply(pair, "send reply", call)
        del self._received_calls[call]

    def notify(self, method: str, body: Parts) -> None:
        """Tell the peer something. ResourceLimitError: too large."""
        if not self._open:
            return
        parts = _parts(body)
        size = sum(map(len, parts))
        self._check_message(method, size, self._limits.notification)
        number = self._last_notification_sent = self._last_notification_sent + 1
        if size <= CHUNK:
            self._outbox.put(encode(NotifyFrame(number, method, size, b"".join(parts))))
            return
        # All of it is urgent, because nothing that is sent later may arrive before it. On a slow line, little of it at a time.
        head = encode(NotifyFrame(number, method, size, b""))
        most = MAX_CHUNK if self._flow.window > MAX_CHUNK else 2 * CHUNK
        if size <= most:
            self._outbox.put(head + more_head("notification", number, size), *parts)
            return
        whole = memoryview(b"".join(parts))
        for start in range(0, size, most):
            chunk = whole[start : start + most]
            self._outbox.put(head + more_head("notification", number, len(chunk)), chunk)
            head = b""

    def cancel(self, call: int) -> None:
        """Tell the peer that the answer to a call of ours is not needed; it comes all the same. Nothing if it has come."""
        if not self._open:
            return
        if not 0 < call <= self._last_sent:
            raise LocalProtocolError(f"call {call}, which was never made, cannot be cancelled")
        if call in self._sent_calls:
            self._outbox.put_behind(call, encode(CancelFrame(call)))

    def dispose(self, pair: int) -> None:
        """The client's thread of this pair has ended. Nothing if the pair was never used; LocalProtocolError if it is not idle."""
        if not self._open:
            return
        if self.side is Side.CLIENT and pair not in self._pairs:
            return
        self._apply(pair, "send dispose")
        self._outbox.put(encode(DisposeFrame(pair)))

    def close(self, reason: str) -> None:
        """Say goodbye, after all that is due and there. Later only `call` raises; replies and the like have no taker."""
        if not self._closed:
            self._closed = True
            self._outbox.drop_incomplete()
            text = reason.encode("utf-8", "replace").decode()[:MAX_REASON]
            self._outbox.put_last(encode(GoodbyeFrame(text)))

    def ask(self) -> None:
        """Have the peer say something. Nothing once either end has said goodbye."""
        self._asks = self._open

    def data_to_send(self, limit: int = 1 << 18) -> bytes:
        """Bytes for the peer, about `limit` of them at most; b"" when nothing is due, or much is on its way."""
        return b"".join(self.parts_to_send(limit))

    def parts_to_send(self, limit: int) -> list[Part]:
        """The same in parts, none of them empty, of which large ones are not copied."""
        if self._again:
            return self._take_again(limit)
        flow = self._flow
        if self._peer_reason is not None:  # it tells of no marks any more
            return together(self._outbox.take(limit, limit))
        if self._outbox.ended or not (self._outbox.pending or self._read_mark or self._asks):
            return []
        room = flow.room
        if self._outbox.pending > CLOSEST:
            limit = min(limit, flow.apart)  # a peer may see it only when all of it is there
        urgent = min(limit, room + (LEAST if flow.window > LIGHT else 0))
        parts = self._outbox.take(urgent, min(limit, room))
        if self._read_mark:
            parts.insert(0, encode(ReadFrame(self._read_mark)))
            self._read_mark = 0
        due = flow.sent(sum(map(len, parts)))
        if (due or self._asks) and not self._outbox.ended:
            mark = encode(MarkFrame(flow.mark()))
            parts.append(mark)
            flow.sent(len(mark))
            self._asks = False
        if len(parts) > 1:
            parts = together(parts)
        self._replay.add(parts)
        return parts

    def _take_again(self, limit: int) -> list[Part]:
        parts: list[Part] = []
        while self._again and limit > 0:
            part = self._again.popleft()
            if len(part) > limit:
                view = memoryview(part)
                self._again.appendleft(view[limit:])
                part = view[:limit]
            parts.append(part)
            limit -= len(part)
        return parts

    def resume(self, read: int) -> None:
        """Go on, on another connection: the peer has read so many bytes. RemoteProtocolError: that cannot be.

        What `parts_to_send` gave before and the peer has not read comes again; what had not been received does from the peer.
        """
        self._again = self._replay.after(read)
        self._flow.interrupted()

    @property
    def due(self) -> bool:
        """Whether `data_to_send` may have something."""
        speaks = self._peer_reason is None and not self._outbox.ended
        return bool(self._again) or self._outbox.pending > 0 or (speaks and bool(self._read_mark or self._asks))

    @property
    def pending_bytes(self) -> int:
        """How many bytes wait for `data_to_send`."""
        return self._outbox.pending

    @property
    def _open(self) -> bool:
        """Whether neither end has said goodbye."""
        return not self._closed and self._peer_reason is None

    def owed_on(self, pair: int) -> int | None:
        """The peer's call that is the innermost one on that pair, is all there, and waits for our reply; None: none does."""
        call = self._pairs.received(pair)
        return None if call is None or ("call", call) in self._arriving else call

    def idle(self, pair: int) -> bool:
        """Whether no call is under way on the pair."""
        return not self._pairs.depth(pair)

    def _check_message(self, method: str, size: int, limit: int) -> None:
        if not 0 < len(method) <= MAX_METHOD:
            raise LocalProtocolError(f"a method's name has 1 to {MAX_METHOD} characters, not {len(method)}")
        if size > limit:
            raise ResourceLimitError(f"{method}: the message has {size} bytes; at most {limit} are carried")

    def _apply(self, pair: int, action: Any, call: int = 0) -> None:
        try:
            self._pairs.apply(pair, action, call)
        except PairViolation as violation:
            raise LocalProtocolError(f"not allowed: {violation}") from None

    # -- in -----------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """What the peer's bytes complete. RemoteProtocolError: misbehaviour; ResourceLimitError: more than `Limits` of anything."""
        if self._failure is not None:
            raise self._failure
        self.read += len(data)
        events: list[Event] = []
        try:
            for frame in self._reader.receive(data):
                if self._peer_reason is not None:
                    raise RemoteProtocolError("the peer sent something after its goodbye")
                event = self._received(frame)
                if event is not None:
                    events.append(event)
        except PairViolation as violation:
            self._failure = RemoteProtocolError(f"the peer broke the order of calls: {violation}")
            raise self._failure from None
        except (RemoteProtocolError, ResourceLimitError) as error:
            self._failure = error
            raise
        return events

    def _received(self, frame: Frame) -> Event | None:
        match frame:
            case CallFrame():
                return self._call_received(frame)
            case ReplyFrame():
                return self._reply_received(frame)
            case MoreFrame():
                return self._more_received(frame)
            case NotifyFrame():
                return self._notification_received(frame)
            case CancelFrame(call):
                return self._cancel_received(call)
            case DisposeFrame(pair):
                self._pairs.apply(pair, "receive dispose")
                return Disposed(pair)
            case GoodbyeFrame(reason):
                self._arriving.clear()  # what the peer itself had only begun to get
                self._peer_reason = reason
                return Closed(reason)
            case MarkFrame(mark):
                if mark != self._last_mark + 1:
                    raise RemoteProtocolError(f"the peer's mark {mark} came after its mark {self._last_mark}")
                self._last_mark = self._read_mark = mark
                return None
            case ReadFrame(mark):
                if not self._flow.read(mark):
                    raise RemoteProtocolError(f"the peer says that it has read mark {mark}, which is not under way")
                self._replay.arrived(self._flow.arrived)
                return None

    def _call_received(self, frame: CallFrame) -> Event | None:
        call, pair = frame.call, frame.pair
        if call != self._last_received + 1:
            raise RemoteProtocolError(f"the peer's call {call} came after its call {self._last_received}")
        # Most of them are sent by now: to look which is for when it matters.
        at_most = len(self._received_calls) + len(self._replies) + self._outbox.replies
        if at_most >= self._limits.in_flight and self._unanswered() >= self._limits.in_flight:
            raise ResourceLimitError(f"the peer has more than {self._limits.in_flight} calls under way")
        if pair:
            if self._arriving and self._reply_arrives_on(pair):
                raise RemoteProtocolError(f"the peer called on pair {pair} in the middle of a reply on it")
            self._pairs.apply(pair, "receive call", call)
        self._last_received = call
        self._received_calls[call] = pair
        if frame.size != len(frame.chunk):
            return self._head_received("call", call, frame, self._limits.message)
        return Called(call, pair, frame.method, frame.chunk)

    def _unanswered(self) -> int:
        """Calls of the peer's that are under way as it sees it. Who reads no answers cannot have any number of them kept here."""
        while self._replies and self._outbox.has_sent(self._replies[0]):
            self._replies.popleft()
        return len(self._received_calls) + len(self._replies) + self._outbox.replies

    def _reply_received(self, frame: ReplyFrame) -> Event | None:
        call = frame.call
        pair = self._sent_calls.get(call)
        if pair is None or (self._arriving and ("reply", call) in self._arriving):
            raise RemoteProtocolError(f"the peer replied to call {call}, which waits for no reply")
        if self._outbox.unsent("call", call):
            raise RemoteProtocolError(f"the peer replied to call {call} before it was sent completely")
        if frame.size != len(frame.chunk):
            return self._head_received("reply", call, frame, self._limits.message)
        return self._reply_complete(call, frame.ok, frame.chunk)

    def _reply_complete(self, call: int, ok: bool, body: Body, bulk: tuple[bytes, ...] = ()) -> Replied:
        pair = self._sent_calls[call]
        if pair:
            self._pairs.apply(pair, "receive reply", call)
        del self._sent_calls[call]
        return Replied(call, ok, body, pair, bulk)

    def _notification_received(self, frame: NotifyFrame) -> Notified | None:
        number = frame.notification
        if number != self._last_notification_received + 1:
            raise RemoteProtocolError(
                f"the peer's notification {number} came after its notification {self._last_notification_received}"
            )
        if self._arriving and ("notification", number - 1) in self._arriving:
            raise RemoteProtocolError("the peer began a notification in the middle of another")
        self._last_notification_received = number
        if frame.size != len(frame.chunk):
            self._head_received("notification", number, frame, self._limits.notification)
            return None
        return Notified(frame.method, frame.chunk)

    def _head_received(self, kind: str, number: int, frame: Head, limit: int) -> Event | None:
        if frame.size <= CHUNK or (frame.chunk and kind == "notification"):
            raise RemoteProtocolError(
                f"the head of a {kind} of {frame.size} bytes came with {len(frame.chunk)} of them"
            )
        sizes = sizes_of(frame)
        if frame.size > limit:
            raise ResourceLimitError(f"the peer announced a {kind} of {frame.size} bytes; at most {limit} are carried")
        if not isinstance(frame, NotifyFrame) and self._passes(frame):
            self._arriving[kind, number] = Passing(frame)
            if isinstance(frame, ReplyFrame):
                return ReplyBegun(number, frame.ok, sizes)
            return Begun(number, frame.pair, frame.method, sizes)
        self._arriving[kind, number] = Arriving(frame, sizes)
        return None

    def _more_received(self, frame: MoreFrame) -> Event | None:
        key = frame.kind, frame.number
        arriving = self._arriving.get(key)
        if arriving is None:
            raise RemoteProtocolError(f"the peer continued {frame.kind} {frame.number}, which it had not begun")
        size, head, remaining = len(frame.chunk), arriving.head, arriving.left
        if not min(CHUNK, remaining) <= size <= min(MAX_CHUNK, remaining):
            raise RemoteProtocolError(f"the peer cut {frame.kind} {frame.number} into a piece of {size} bytes")
        if isinstance(arriving, Passing):
            return self._passed(arriving, frame)
        # What was announced costs nothing; only what arrives is kept, and only so much of it.
        self._arrived += size
        if self._arrived > self._limits.buffered:
            raise ResourceLimitError(f"the peer has more than {self._limits.buffered} bytes of messages under way")
        arriving.add(frame.chunk)
        if size < remaining:
            return None
        del self._arriving[key]
        self._arrived -= head.size
        body, bulk = arriving.whole()
        match head:
            case CallFrame():
                return Called(head.call, head.pair, head.method, body, bulk)
            case ReplyFrame():
                return self._reply_complete(head.call, head.ok, body, bulk)
            case NotifyFrame():
                return Notified(head.method, body)

    def _passed(self, passing: Passing, frame: MoreFrame) -> Piece:
        call, head = frame.number, passing.head
        passing.left -= len(frame.chunk)
        kind: Literal["call", "reply"] = "call" if isinstance(head, CallFrame) else "reply"
        if not passing.left:
            del self._arriving[kind, call]
            if isinstance(head, ReplyFrame):
                self._reply_complete(call, head.ok, b"")
        return Piece(call, frame.chunk, not passing.left, kind)

    def _cancel_received(self, call: int) -> Cancelled | None:
        if call > self._last_received or ("call", call) in self._arriving:
            raise RemoteProtocolError(f"the peer cancelled call {call}, which it had not made")
        return Cancelled(call) if call in self._received_calls else None

    def _reply_arrives_on(self, pair: int) -> bool:
        return any(kind == "reply" and self._sent_calls[number] == pair for kind, number in self._arriving)
