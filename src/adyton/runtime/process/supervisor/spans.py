"""When the entries of traced calls began and ended, and what they asked of registered functions: for the client's trace. Without IO.

Nothing is kept or told of a call whose context the client did not send. Of one that it did: a few times, told before the next host call
or the reply leaves, so that nothing piles up. The guest is told the context, so that the program finds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from adyton.communicator.messages import decode, encode
from adyton.communicator.tracing import MAX_MOMENTS, Moment, Told, TraceContext, Traced

MAX_EXPECTED = (
    4096  # contexts whose calls have not come, as many as calls may be under way; of more, the oldest is forgotten
)


class Spans:
    """See the module. `notify`: method and body, for the client."""

    def __init__(self, notify: Callable[[str, bytes], None], now: Callable[[], int] = time.monotonic_ns) -> None:
        """`now`: nanoseconds. What is told counts from here: the machine's clock says when it was started."""
        self._notify = notify
        self._clock, self._start = now, now()
        self.expected: dict[int, Traced] = {}  # by call
        self._under_way: dict[int, tuple[TraceContext | None, list[Moment]]] = {}  # by call: what is not told yet
        self._asked: dict[int, int] = {}  # host call → the call under way that asked

    def expect(self, body: bytes | bytearray) -> None:
        """The client's Traced. RemoteProtocolError."""
        traced = decode(body, Traced)
        self.expected.pop(traced.call, None)
        if traced.context is None and not traced.tell:  # there is no such call
            return
        if len(self.expected) >= MAX_EXPECTED:
            del self.expected[next(iter(self.expected))]
        self.expected[traced.call] = traced

    def entered(self, call: int) -> TraceContext | None:
        """A call has arrived; what the program is to know of its trace."""
        traced = self.expected.pop(call, None) if self.expected else None
        if traced is None:
            return None
        if traced.tell:
            self._under_way[call] = traced.context, []
            self._add(call, "entered")
        return traced.context

    def asked(self, call: int, host: int, span: str) -> None:
        """The entry is about to call a registered function, by the host call of that number. `span`: trace and span that its program says it is
        in, in hex; or "".
        """
        if call not in self._under_way:
            return
        context, _ = self._under_way[call]
        own = ""
        if context is not None and span:
            _, trace, sent, _ = context.traceparent.split("-")
            own = span[32:] if span[:32] == trace and span[32:] != sent else ""
        self._asked[host] = call
        self._add(call, "asked", own, host)
        self._tell(call)

    def answered(self, host: int) -> None:
        """The function's answer has arrived, or it cannot be called."""
        call = self._asked.pop(host, 0)
        if call in self._under_way:
            self._add(call, "answered", "", host)

    def returned(self, call: int) -> None:
        """The call is about to be replied to."""
        if call in self._under_way:
            self._add(call, "returned")
            self._tell(call)
            del self._under_way[call]

    def _add(
        self, call: int, what: Literal["entered", "asked", "answered", "returned"], span: str = "", host: int = 0
    ) -> None:
        _, moments = self._under_way[call]
        moments.append(Moment(what, self._clock() - self._start, span, host))
        if len(moments) == MAX_MOMENTS:
            self._tell(call)

    def _tell(self, call: int) -> None:
        _, moments = self._under_way[call]
        if moments:
            self._notify("spans", encode(Told(call, moments)))
            moments.clear()
