"""One RPC with a stream in each direction on gRPC's core, without the threads that grpcio has for it: who has something to send sends it.

    wake, any thread ──► source.pull ──► core          core ──► messages, one thread

grpcio's own streams hand each message from thread to thread: to one that takes requests, and from one that handles what happens, which is most
of what a small call costs (docs/performance.md). Here one message at a time is in the core's hands; what is to be sent meanwhile is pulled
together when that is done. The names of grpcio that this needs are its own, those of its `SingleThreadedUnaryStream`; all are in this module.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any

import grpc
from grpc._common import CYGRPC_STATUS_CODE_TO_STATUS_CODE
from grpc._cython import cygrpc

from adyton.remote import envelopes
from adyton.remote.transport import Bytes, Source

_BEGUN, _RECEIVED, _SENT, _STATUS = "begun", "received", "sent", "status"  # tags of events


def _receive() -> tuple[Any]:
    """Anew for each message: it holds the message."""
    return (cygrpc.ReceiveMessageOperation(0),)


class CoreStreamError(Exception):
    """How it ended, if not well; with what grpcio's own errors tell."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing_metadata: Any) -> None:
        super().__init__(f"{code}: {details}")
        self._told = code, details, trailing_metadata

    def code(self) -> grpc.StatusCode:
        """See grpc.Call."""
        return self._told[0]

    def details(self) -> str:
        """See grpc.Call."""
        return self._told[1]

    def trailing_metadata(self) -> Any:
        """See grpc.Call."""
        return self._told[2]


class CoreStream:
    """It sends what `source` gives. The channel is not owned."""

    def __init__(
        self, channel: grpc.Channel, method: str, metadata: tuple[tuple[str, str | bytes], ...], source: Source
    ) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._taken = True  # somebody sends, or is about to: at first who iterates `messages`
        self._more = False  # the source may have more since
        self._over = False  # nothing can be sent
        self._in_flight = False  # the core has a message, and has not said that it is sent
        stub: Any = channel.stream_stream(method)
        begin = (cygrpc.SendInitialMetadataOperation(metadata, 0), cygrpc.ReceiveStatusOnClientOperation(0))
        operations = (
            (begin, _STATUS),
            ((cygrpc.ReceiveInitialMetadataOperation(0),), _BEGUN),
            (_receive(), _RECEIVED),
        )
        self._call: Any = stub._channel.segregated_call(  # noqa: SLF001
            *(cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS, method.encode(), None, None, metadata, None),
            *(operations, stub._context, stub._registered_call_handle),  # noqa: SLF001
        )

    def wake(self) -> None:
        """The source may have something: send it, unless somebody else does already. From any thread but the main one, which has signals."""
        try:
            with self._lock:
                self._more = True
                if self._taken:
                    return
                self._taken = True
            self._send()
        except BaseException:  # what was pulled may not have been sent
            self.cancel()
            raise

    def _send(self) -> None:
        """By who has set `_taken`."""
        while self._may_send():
            data = self._source.pull()
            if data:
                self._operate(cygrpc.SendMessageOperation(envelopes.pack(data), 0))
                return
            if data is None:
                self._operate(cygrpc.SendCloseFromClientOperation(0))
                self._over = True
                return

    def _may_send(self) -> bool:
        with self._lock:
            self._taken, self._more = self._more and not self._over, False
            return self._taken

    def _operate(self, operation: Any) -> None:
        with self._lock:
            self._in_flight = not self._over and self._call.operate((operation,), _SENT)

    def messages(self) -> Generator[Bytes, None, None]:
        """What arrives, until the peer ends the RPC; CoreStreamError. On one thread, which iterates to the end or closes it."""
        due = {_BEGUN, _RECEIVED, _STATUS}
        status: Any = None
        try:
            self._more = True
            self._send()
            while due or self._in_flight:
                event = self._next(due)
                if event.tag == _STATUS:
                    status = event.batch_operations[-1]
                elif event.tag == _RECEIVED and (message := event.batch_operations[0].message()) is not None:
                    yield envelopes.unpack(message)
                    if status is None and self._call.operate(_receive(), _RECEIVED):
                        due.add(_RECEIVED)
        finally:
            if due:
                self.cancel()
            while due or self._in_flight:
                self._next(due)
        if status.code():
            code = CYGRPC_STATUS_CODE_TO_STATUS_CODE.get(status.code(), grpc.StatusCode.UNKNOWN)
            raise CoreStreamError(code, status.details() or "", status.trailing_metadata())

    def _next(self, due: set[str]) -> Any:
        """What the core says next, of what is due."""
        event = self._call.next_event()
        due.discard(event.tag)
        if event.tag == _STATUS:
            with self._lock:
                self._over = True
        elif event.tag == _SENT:
            with self._lock:
                self._in_flight = False
                self._more |= self._source.due
            self._send()
        return event

    def cancel(self) -> None:
        """End it at once, from any thread; its messages end too."""
        self._call.cancel(cygrpc.StatusCode.cancelled, "the client hung up")
