"""OpenTelemetry's own recorders, in the place of providers that an application has set; and what telemetry must never say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler


class Recorder(NamedTuple):
    """What was exported so far."""

    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader
    tracer: trace.Tracer

    def spans(self, kind: str = "") -> list[ReadableSpan]:
        """In the order in which they began; of the kind, if that is given."""
        found = sorted(self.exporter.get_finished_spans(), key=lambda span: (span.start_time, -span.end_time))
        return [span for span in found if not kind or span.kind.name == kind]

    def of_calls(self) -> list[ReadableSpan]:
        """Those of an enclave "app"'s calls, and of the host's."""
        return [span for span in self.spans() if span.name.partition("/")[0] in ("app", "host")]

    def span(self, name: str, kind: str) -> ReadableSpan:
        (found,) = [span for span in self.spans(kind) if span.name == name]
        return found

    def values(self, metric: str) -> dict[frozenset[tuple[str, str]], Any]:
        """The values of a metric, or the counts of a histogram, by their attributes."""
        data = self.reader.get_metrics_data()
        found = [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for each in scope.metrics
            if each.name == metric
            for point in each.data.data_points
        ]
        return {
            frozenset(point.attributes.items()): getattr(point, "value", getattr(point, "count", 0)) for point in found
        }

    def everything(self) -> str:
        """All that was exported, as text."""
        spans = [span.to_json() for span in self.spans()]
        return "\n".join([*spans, self.reader.get_metrics_data().to_json()])


@contextmanager
def recording(sampler: Sampler = ALWAYS_ON) -> Iterator[Recorder]:
    """What is loaded meanwhile is recorded."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(sampler, shutdown_on_exit=False), MeterProvider([reader], shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: tracers)
        monkeypatch.setattr(metrics, "get_meter_provider", lambda: meters)
        yield Recorder(exporter, reader, tracers.get_tracer("test"))
    tracers.shutdown()
    meters.shutdown()


def parents(spans: list[ReadableSpan]) -> list[tuple[str, str, str]]:
    """Of each span its kind and name, and its parent's kind ("" for none, "?" for one that is not there)."""
    kinds = {span.context.span_id: span.kind.name for span in spans}
    return [(span.kind.name, span.name, kinds.get(span.parent.span_id, "?") if span.parent else "") for span in spans]


def chain(spans: list[ReadableSpan]) -> list[str]:
    """Kinds and names from the one span without a parent to the one without a child; each has one child at most."""
    below = {span.parent.span_id if span.parent else 0: span for span in spans}
    assert len(below) == len(spans)
    found, at = [], 0
    while at in below:
        found.append(f"{below[at].kind.name} {below[at].name}")
        at = below[at].context.span_id
    assert len(found) == len(spans)
    return found
