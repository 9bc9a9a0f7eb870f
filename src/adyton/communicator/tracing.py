"""What of a distributed trace crosses the channel: where in it a call is, and when the enclave began and ended what it did for it.

    method    from client to enclave
    trace     (one way) Traced: the call of that number, which follows, has this context

    method    from enclave to client
    spans     (one way) Told: before each host call of a traced entry, and before its reply

A context is W3C's traceparent (version 00) and tracestate, and nothing else. What the enclave tells has no names, and no more
than MAX_MOMENTS times in one message.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from adyton.communicator.messages import Message, Unsigned

MAX_MOMENTS = 4

TraceParent = Annotated[str, msgspec.Meta(pattern=r"\A00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z", max_length=55)]
TraceState = Annotated[str, msgspec.Meta(pattern=r"\A[ -~]*\Z", max_length=512)]
SpanId = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{16})?\Z", max_length=16)]


class TraceContext(Message, frozen=True):
    """Where in a trace something is, as W3C's headers say it."""

    traceparent: TraceParent
    tracestate: TraceState = ""


class Traced(Message, frozen=True):
    """The context of the call of that number; None: its program is not to know. `tell`: the client wants to be told of its times."""

    call: Annotated[int, msgspec.Meta(gt=0, le=(1 << 63) - 1)]
    context: TraceContext | None
    tell: bool


class Moment(Message, frozen=True):
    """When something happened, in ns of the enclave's own clock.

    "entered", "returned": the entry's call has arrived, its reply is sent. "asked", "answered": a registered function is called in
    it, its answer has arrived, by the host call of number `host`; `span`: of the program's own that it is called in, "" for none.
    """

    what: Literal["entered", "asked", "answered", "returned"]
    at: Unsigned
    span: SpanId = ""
    host: Unsigned = 0


class Told(Message, frozen=True):
    """Of the client's call of that number, in order."""

    call: Unsigned
    moments: Annotated[list[Moment], msgspec.Meta(max_length=MAX_MOMENTS)]
