"""Messages of one of grpcio's own RPCs, taken from gRPC's core and given to it without a thread in between. (A client's way: `core_stream`.)

grpcio hands each message of a stream over between the thread that serves its events and one that waits on a condition variable, which costs
several times what a relay does with it. Here the serving thread calls us instead. What this uses of grpcio is private to it, and used nowhere
else in a proxy server: of a server, a context's `_rpc_event.call` and `_state.initial_metadata_allowed`; of a client, `_call`, `_state.due` and
`_state.condition` of what a stub returned; and that the tag of a batch is called with its event, and says whether an RPC is over by that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from grpc._cython import cygrpc

_NO_FLAGS = 0


class Side(Protocol):
    """Whose the messages are. All is called on the thread that serves all RPCs: it must neither block nor raise."""

    def received(self, message: bytes | None) -> None:
        """After each `receive`. None: there are no more."""

    def sent(self) -> None:
        """After each `send`: gRPC takes the next one, or the RPC is over."""

    def ended(self) -> None:
        """Once, the last of all: the RPC is over."""


class EventStream:
    """The messages of one RPC, of which grpcio itself is given none and asked for none. Safe to use from several threads."""

    def __init__(
        self,
        side: Side,
        start: Callable[[Any, Any], bool],
        done: Callable[[Any], None],
        answer: Callable[[], object],
    ) -> None:
        """`start`: begins a batch, if it can; `done`: it is, with that event; `answer`: what grpcio expects of its tag after that."""
        self._side, self._start = side, start
        self._receiving, self._sending = threading.Lock(), threading.Lock()
        self._is_over = self._is_due = self._is_on_its_way = False

        def on_received(event: Any) -> object:
            done(event)
            if self._is_due:
                self._is_due = False
                side.received(event.batch_operations[0].message())
            return answer()

        def on_sent(event: Any) -> object:
            done(event)
            if self._is_on_its_way:
                self._is_on_its_way = False
                side.sent()
            return answer()

        self._on_received, self._on_sent = on_received, on_sent

    def receive(self) -> bool:
        """Ask for the next message, one at a time. Whether `received` will be called."""
        with self._receiving:
            self._is_due = not self._is_over  # before it can come
            if self._is_due and not self._start((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self._on_received):
                self._is_due = False
                return False
            return not self._is_over

    def send(self, message: bytes) -> bool:
        """Send, after `sent` was called for the message before. Whether it will be."""
        operations = self._operations(message)
        with self._sending:
            self._is_on_its_way = not self._is_over
            if self._is_on_its_way and not self._start(operations, self._on_sent):
                self._is_on_its_way = False
                return False
            return not self._is_over

    def _operations(self, message: bytes) -> tuple[Any, ...]:
        return (cygrpc.SendMessageOperation(message, _NO_FLAGS),)

    def _watch(self, rpc: Any) -> None:
        if not rpc.add_callback(self._end):
            self._end()

    def _end(self) -> None:
        with self._receiving, self._sending:  # afterwards gRPC's queue may be gone, which no batch must meet
            self._is_over = True
        if self._is_due:  # nobody may be there to say so
            self._is_due = False
            self._side.received(None)
        if self._is_on_its_way:
            self._is_on_its_way = False
            self._side.sent()
        self._side.ended()


class ServerStream(EventStream):
    """Of an RPC whose handler has got `context`, and is to respond with nothing."""

    def __init__(self, side: Side, context: Any) -> None:
        call = context._rpc_event.call  # noqa: SLF001 - see above
        self._state = context._state  # noqa: SLF001
        super().__init__(
            side,
            lambda operations, tag: not call.start_server_batch(operations, tag),
            lambda _: None,
            lambda: (None, ()),  # the RPC that is over, and what is to be called
        )
        self._watch(context)

    def _operations(self, message: bytes) -> tuple[Any, ...]:
        if not self._state.initial_metadata_allowed:
            return super()._operations(message)
        self._state.initial_metadata_allowed = (
            False  # it goes with this: a network may hold up the second of two small pieces
        )
        return (cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS), *super()._operations(message))


class ClientStream(EventStream):
    """Of `call`, which a stub has returned; its requests are to be none, and not to end while messages are sent."""

    def __init__(self, side: Side, call: Any) -> None:
        state = call._state  # noqa: SLF001 - see above

        def start(operations: tuple[Any], tag: Any) -> bool:
            kind = operations[0].type()
            with state.condition:
                state.due.add(kind)  # else the thread that would tell us of it may end before
                if not call._call.operate(operations, tag):  # noqa: SLF001
                    state.due.remove(kind)
                    return False
            return True

        def done(event: Any) -> None:
            with state.condition:
                state.due.remove(event.batch_operations[0].type())

        def is_over() -> bool:
            with state.condition:
                return not state.due

        super().__init__(side, start, done, is_over)
        self._watch(call)
