"""Spans as an SDK makes them, with times of our own, and for the enclave's with an id that its program was told beforehand."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from opentelemetry import context, propagate, trace
from opentelemetry.trace import Span, SpanContext, SpanKind, StatusCode

from adyton.communicator.tracing import TraceContext

_reserved: contextvars.ContextVar[int] = contextvars.ContextVar("adyton_span_id", default=0)


class _Ids:
    """A tracer's generator of ids, but for an id that is reserved."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def generate_span_id(self) -> int:
        return _reserved.get() or int(self._inner.generate_span_id())


class Spans:
    """Makes them. `reserves`: whether ids can be told before their spans begin; no API says so, and only OpenTelemetry's SDK can."""

    def __init__(self, tracer: Any) -> None:
        self._tracer: Any = tracer
        inner = getattr(tracer, "id_generator", None)
        self.reserves = hasattr(inner, "generate_span_id")
        if self.reserves and not isinstance(inner, _Ids):
            tracer.id_generator = _Ids(inner)

    def start(
        self,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, str],
        start: int | None = None,
        parent: SpanContext | None = None,
        span_id: int = 0,
    ) -> Span:
        """A span from `start` (ns since 1970; now), below `parent`, else below the current one. `span_id`: one of `reserved`."""
        around = None if parent is None else _context(parent)
        token = _reserved.set(span_id)
        try:
            span: Span = self._tracer.start_span(name, around, kind, attributes, start_time=start)
            return span
        finally:
            _reserved.reset(token)

    def reserved(self) -> int:
        """An id for a span that begins later; 0 for none."""
        return int(self._tracer.id_generator.generate_span_id()) if self.reserves else 0


def with_id(found: SpanContext, span_id: int) -> SpanContext:
    """The same place in the trace, but for the span; 0: the same."""
    return SpanContext(found.trace_id, span_id or found.span_id, False, found.trace_flags, found.trace_state)


def told_of(found: SpanContext) -> TraceContext | None:
    """What an enclave is told of it, as far as the process's propagators say it in W3C's way. Nothing of it is invented, none of it baggage."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, _context(found))
    parent, state = carrier.get("traceparent", ""), carrier.get("tracestate", "")
    for each in ([parent, state], [parent, ""]):
        try:
            return msgspec.convert(each, TraceContext)
        except msgspec.ValidationError:
            continue
    return None


def failed(span: Span, kind: str) -> None:
    """Say that it failed, and with what kind of error. Never with which text: that may hold anything."""
    span.set_status(StatusCode.ERROR)
    span.set_attribute("error.type", kind)


@contextmanager
def current(span: Span) -> Iterator[None]:
    """With the span as the current one."""
    token = context.attach(trace.set_span_in_context(span))
    try:
        yield
    finally:
        context.detach(token)


def _context(found: SpanContext) -> context.Context:
    return trace.set_span_in_context(trace.NonRecordingSpan(found))
