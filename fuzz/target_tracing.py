"""Fuzz targets of what crosses of a trace: the client's contexts in the enclave, and the enclave's accounts on the client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from draw import Draw, packed
from msgspec import structs
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind

from adyton.communicator.messages import decode
from adyton.communicator.session import Called
from adyton.communicator.tracing import MAX_MOMENTS, Told, Traced
from adyton.hostcall import abi
from adyton.runtime.process.supervisor.spans import Spans
from adyton.telemetry.calls import Telemetry
from adyton.telemetry.providers import Providers

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
APART = "apart"  # a function that only threads of the enclave's own call
WORDS = ("", f"00-{TRACE}-{SPAN}-01", SPAN, "a=b,c=d")


def trace_contexts(data: bytes) -> None:
    """A client's contexts, among calls, and host calls of several at once; the guest's word for its spans is held to its form by the link."""
    draw, sent, calls = Draw(data, WORDS), [], 0
    spans = Spans(lambda method, body: sent.append((method, body)), lambda: len(sent))
    while draw:
        match draw.below(5):
            case 0:
                spans.expect(draw.spoilt(packed(draw.struct(Traced))))
            case 1:
                calls += 1
                spans.entered(calls)
            case 2:
                spans.asked(draw.below(16), draw.below(16), draw.pick(("", TRACE + SPAN, "1" * 48)))
            case 3:
                spans.answered(draw.below(16))
            case _:
                spans.returned(draw.below(16))
    for method, body in sent:
        assert method == "spans"
        decode(body, Told)


class _Kept(SpanProcessor):
    def __init__(self) -> None:
        self.started = 0
        self.ended: list[ReadableSpan] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:  # noqa: ARG002
        self.started += 1

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)


class _Sessions:
    """Numbers calls, and sends nothing."""

    def __init__(self) -> None:
        self.calls = 0

    @property
    def next_call(self) -> int:
        return self.calls + 1

    def notify(self, method: str, body: Any) -> None:
        assert method == "trace"
        decode(body, Traced)

    def call(self, pair: int, method: str, body: Any, bulk: Any) -> int:  # noqa: ARG002
        self.calls += 1
        return self.calls


_kept = _Kept()
_provider = TracerProvider(shutdown_on_exit=False)
_provider.add_span_processor(_kept)


def told_spans(data: bytes) -> None:
    """An enclave's accounts of calls that nest, with and without a pair, as they are under way: what becomes of them lies in its parents, and all
    of it ends. Only what threads of the enclave's own have called may end later than these.
    """
    draw, session = Draw(data, WORDS), _Sessions()
    telemetry = Telemetry("app", ["lookup", APART], Providers(_provider, NoOpMeterProvider()))
    _kept.started, served = 0, [0]
    _kept.ended.clear()

    def call(depth: int) -> None:
        with telemetry.calling("entry"):
            telemetry.send(session, draw.below(2), "enter", b"", ())
            while draw and (action := draw.below(8)):
                if action == 1 and depth < 4:
                    pair = draw.below(2)
                    name = draw.pick(("lookup", "other")) if pair else APART
                    served[0] += 1
                    called = Called(draw.below(4), pair, "host", b"")
                    telemetry.serving(called, abi.Call(name, b""), lambda _: call(depth + 1))
                elif action == 2:
                    telemetry.told(draw.blob())
                else:
                    account = draw.struct(Told)
                    if draw.often():
                        moments = [structs.replace(each, host=each.host % 4) for each in account.moments[:MAX_MOMENTS]]
                        account = Told(1 + draw.below(session.calls), moments)
                    telemetry.told(draw.spoilt(packed(account)))

    try:
        call(0)
    finally:
        inside(_kept.ended, outlast=[f"host/{APART}"])
        assert _kept.started == len(_kept.ended) <= 2 * (session.calls + served[0])


def inside(spans: list[ReadableSpan], outlast: Sequence[str] = ()) -> None:
    """Each span lies in its parent, if that is one of them. `outlast`: names of functions whose spans on the client may end later."""
    places = {span.context.span_id: span for span in spans if span.context is not None}
    assert len(places) == len(spans)
    for span in spans:
        around = places.get(span.parent.span_id) if span.parent is not None else None
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
        if around is not None:
            assert around.start_time <= span.start_time, (around.name, span.name)
            late = span.name in outlast and span.kind is SpanKind.SERVER
            assert late or span.end_time <= around.end_time, (around.name, span.name)
