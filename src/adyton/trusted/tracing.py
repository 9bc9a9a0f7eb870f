"""The distributed trace that an entry is called in, for the program in the enclave.

`trace_context()` is a carrier as OpenTelemetry's propagators `extract` from. A program that has imported `opentelemetry` by itself finds the
context as the current one: its spans become children of the entry's, and calls of the client's functions children of its spans.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

_A = TypeVar("_A")
_R = TypeVar("_R")


class _Context(Protocol):
    @property
    def traceparent(self) -> str: ...
    @property
    def tracestate(self) -> str: ...


_current: ContextVar[_Context | None] = ContextVar("adyton_trace", default=None)


def trace_context() -> dict[str, str]:
    """`traceparent` and, if there is one, `tracestate` of the entry that the calling thread or task is in, as W3C has them; {} if it is not traced."""
    context = _current.get()
    if context is None:
        return {}
    state = {"tracestate": context.tracestate} if context.tracestate else {}
    return {"traceparent": context.traceparent, **state}


def within(context: _Context, function: Callable[[_A], _R], argument: _A) -> _R:
    """Call the function in that context; the runtime does this."""
    token = _current.set(context)
    try:
        with _attached():
            return function(argument)
    finally:
        _current.reset(token)


def begin(context: _Context) -> None:
    """What the calling task does from here on is in that context; the runtime does this."""
    _current.set(context)
    _attach()


def current_span() -> str:
    """Trace and span that the program is in by OpenTelemetry's current context, in hex, one behind the other; "" if it is not traced."""
    trace = sys.modules.get("opentelemetry.trace") if _current.get() is not None else None
    if trace is None:
        return ""
    found = trace.get_current_span().get_span_context()
    return f"{found.trace_id:032x}{found.span_id:016x}" if found.is_valid else ""


@contextmanager
def _attached() -> Iterator[None]:
    """With the context as OpenTelemetry's current one, if the program has imported that."""
    token = _attach()
    try:
        yield
    finally:
        if token is not None:
            from opentelemetry import context

            context.detach(token)


def _attach() -> Any:
    """What undoes it; None: the program has not imported OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return context.attach(TraceContextTextMapPropagator().extract(trace_context()))
