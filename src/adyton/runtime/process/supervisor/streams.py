"""What goes over the guest's link aside, and the batches of streams: between session and links, each checked, none kept longer than it has to.

    session ──► "enter" without a pair, "items" of arguments, cancels ──► link aside ──► guest
    session ◄── "items" of results ◄── a thread's link ◄── guest         what was taken goes the other way

What breaks a rule is a RemoteProtocolError, which ends the enclave, whoever did.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from adyton.communicator.messages import StreamEnd, encode
from adyton.communicator.session import Body, Session
from adyton.communicator.streams import (
    FED,
    HUNGRY,
    ITEMS,
    LARGE,
    MOST_BATCHES,
    MOST_BYTES,
    RESULT,
    Incoming,
    ItemCalls,
    batch_of,
)
from adyton.communicator.tracing import TraceContext
from adyton.errors import RemoteProtocolError
from adyton.runtime.process.guest import link as protocol
from adyton.runtime.process.supervisor.bulk import MOST
from adyton.runtime.process.supervisor.guest_process import Item, Link


class _Argument:
    def __init__(self) -> None:
        self.incoming = Incoming()
        self.unanswered: set[int] = set()  # calls of "items"
        self.given: deque[tuple[int, int]] = deque()  # to the guest: calls of "items", and their bytes


class _Results:
    def __init__(self, link: Link) -> None:
        self.link = link
        self.batches = 0
        self.untaken: deque[int] = deque()  # bytes of each
        self.bytes = 0


class Streams:
    """See the module. `new_link` makes the link aside; `then` has something done when what was printed before is on its way; `slow_down` is
    called when more comes from the client than the link aside takes.
    """

    def __init__(
        self,
        session: Session,
        new_link: Callable[[], Link],
        then: Callable[[Callable[[], None]], None],
        slow_down: Callable[[], None],
    ) -> None:
        self._session = session
        self._new_link = new_link
        self._then = then
        self._slow_down = slow_down
        self.link: Link | None = None
        self._under_way: dict[int, Link] = {}  # calls of entries, and the links that they are on
        self._told: set[int] = set()  # those of them that the link aside has told of
        self._arguments: dict[int, dict[int, _Argument]] = {}
        self._results: dict[int, _Results] = {}
        self.held = 0  # bytes of large items of the guest's that have not come completely
        self._out: ItemCalls[int] = ItemCalls(session)  # each of a call

    # -- calls --------------------------------------------------------------------------------------------------------

    def began(self, call: int, link: Link, method: str) -> None:
        """The client's call was given to the guest on that link. Of a load, or a finalize, nothing is told aside: a guest that is not loaded
        has no thread for it.
        """
        if method not in ("enter", "stream"):
            return
        self._under_way[call] = link
        if method == "stream":
            self._results[call] = _Results(link)

    def enter(self, call: int, body: Body, bulk: tuple[bytes, ...], trace: TraceContext | None = None) -> None:
        """One without a pair."""
        link = self._under_way[call] = self._aside()
        if not bulk:
            self._give(link, protocol.Enter("enter", bytes(body), call, trace))
            return
        sizes = tuple(map(len, (body, *bulk)))
        self._give(link, protocol.Enter("enter", b"", call, trace, sizes), body, *bulk)

    def _give(self, link: Link, message: protocol.Enter | protocol.Batch, *bulk: Body | memoryview) -> None:
        """What the client sent, over the link aside: no faster for long than the guest takes it."""
        link.outbox.gather(protocol.encode(message))
        for part in bulk:
            link.outbox.put(part)
        if len(link.outbox) > MOST:
            self._slow_down()

    def cancel(self, call: int) -> None:
        """The client does not wait for it any more."""
        if call in self._under_way:
            self._tells(call).outbox.gather(protocol.encode(protocol.Cancel(call)))

    def ended(self, call: int, message: protocol.Return) -> protocol.Return:
        """The guest has returned; what the client is to be told."""
        self._under_way.pop(call, None)
        if self._arguments:
            for argument in self._arguments.pop(call, {}).values():
                for each in argument.unanswered:
                    self._session.reply(each, True, FED)
        if call in self._told:
            self._told.discard(call)
            assert self.link is not None
            self.link.outbox.gather(protocol.encode(protocol.Forget(call)))
        results = self._results.pop(call, None) if self._results else None
        if results is None:
            return message
        if message.sizes:
            raise RemoteProtocolError("its guest returned bulk from a stream")
        end = StreamEnd(results.batches, b"" if message.ok else message.body)
        return protocol.Return(ok=True, body=encode(end))

    def from_guest(self, link: Link, message: protocol.ToSupervisor) -> int | None:
        """A message of the guest's that is none of the calls on a thread's link. None: it is one; else 0, or a call without a pair that
        it returned from.
        """
        match message:
            case protocol.Items():
                self._items_out(link, message)
            case protocol.Took():
                self._took(link, message)
            case protocol.Return() if link is self.link:
                if self._under_way.pop(message.call, None) is not link or message.sizes:
                    raise RemoteProtocolError("its guest returned from a call that nobody made")
                return message.call
            case protocol.Return() if message.sizes and link.own and not link.stack:
                if self.link is None or self._under_way.get(message.call) is not self.link:
                    raise RemoteProtocolError("its guest returned from a call that nobody made")
                return message.call
            case _ if link is self.link:
                raise RemoteProtocolError("its guest made a host call on the link aside")
            case _:
                return None
        return 0

    def _aside(self) -> Link:
        if self.link is None:
            self.link = self._new_link()
        return self.link

    def _tells(self, call: int) -> Link:
        """The link aside, to tell more of a call than that it begins."""
        self._told.add(call)
        return self._aside()

    # -- arguments ----------------------------------------------------------------------------------------------------

    def items(self, number: int, body: Body, bulk: tuple[bytes, ...]) -> None:
        """The client's call of "items" of that number."""
        batch = batch_of(body, bulk)
        if batch.call >= number or batch.stream == RESULT:
            raise RemoteProtocolError(f"the client sent items of stream {batch.stream} of call {batch.call}")
        if batch.call not in self._under_way:  # it has returned meanwhile
            self._session.reply(number, True, FED)
            return
        arguments = self._arguments.setdefault(batch.call, {})
        argument = arguments.get(batch.stream)
        if argument is None:
            argument = arguments[batch.stream] = _Argument()
        argument.unanswered.add(number)
        for due, each in argument.incoming.arrived(number, batch):
            argument.given.append((due, len(each.payload)))
            link = self._tells(each.call)
            if each.kind == LARGE:
                head = protocol.Batch(each.call, each.stream, LARGE, b"", (len(each.payload),))
                self._give(link, head, each.payload)
            else:
                message = protocol.Batch(each.call, each.stream, each.kind, each.payload)  # type: ignore[arg-type]
                self._give(link, message)

    def _took(self, link: Link, took: protocol.Took) -> None:
        if took.call not in self._under_way:
            return  # a thread that goes on after its entry's return
        argument = self._arguments.get(took.call, {}).get(took.stream)
        if link is not self.link or argument is None or not argument.given:
            raise RemoteProtocolError("its guest took items that it was not given")
        number, size = argument.given.popleft()
        argument.incoming.taken(size)
        argument.unanswered.discard(number)
        self._session.reply(number, True, HUNGRY if took.hungry else FED)

    # -- results ------------------------------------------------------------------------------------------------------

    def _items_out(self, link: Link, items: protocol.Items) -> None:
        results = self._results.get(items.call)
        if results is None or results.link is not link:
            raise RemoteProtocolError("its guest sent items of a call that has none")
        if len(results.untaken) >= MOST_BATCHES or (results.untaken and results.bytes >= MOST_BYTES):
            raise RemoteProtocolError("its guest sent more items than there was room for")
        size = sum(items.sizes) or len(items.payload)
        results.untaken.append(size)
        results.bytes += size
        number = results.batches
        results.batches += 1
        if items.sizes:
            link.item = Item(items.call, number, size)
            return
        self._then(lambda: self._out.send(items.call, items.call, RESULT, number, ITEMS, (items.payload,)))

    def piece(self, link: Link, data: memoryview) -> None:
        """Bytes of the large item that has been begun on that link."""
        item = link.item
        assert item is not None
        item.parts.append(data)
        item.left -= len(data)
        self.held += len(data)
        if not item.left:
            link.item = None
            self.held -= sum(map(len, item.parts))
            parts = tuple(item.parts)
            self._then(lambda: self._out.send(item.call, item.call, RESULT, item.number, LARGE, parts))

    def replied(self, number: int, body: Body) -> bool:
        """The client's answer to a call of ours; False: it is none of "items"."""
        call = self._out.replied(number)
        if call is None:
            return False
        results = self._results.get(call)
        if results is not None:
            results.bytes -= results.untaken.popleft()
            taken = protocol.Taken(call, hungry=body == HUNGRY)
            self._tells(call).outbox.gather(protocol.encode(taken))
        return True
