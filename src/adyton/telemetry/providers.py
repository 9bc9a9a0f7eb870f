"""Where spans and metrics go: to the providers that the application has set, else to what OpenTelemetry's variables name.

The providers made for the variables are ours alone: an application may still set its own as the process's afterwards. The SDK reads all
other variables itself (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_…, OTEL_METRIC_EXPORT_INTERVAL, …), and exports
what is left when the process ends.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from opentelemetry import metrics, trace

from adyton.telemetry.switch import EXTRA

_PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


class Providers(NamedTuple):
    """OpenTelemetry's; one that nobody asked for does nothing."""

    tracer: trace.TracerProvider
    meter: metrics.MeterProvider


_made: dict[str, Any] = {}  # by signal, for the life of the process: None if it could not be made


def providers(asked: Mapping[str, Sequence[str]]) -> tuple[Providers | None, list[str]]:
    """The application's, else those of the exporters that are asked for by signal; None if there are neither. And what is to be told."""
    complaints: list[str] = []
    tracer: Any = trace.get_tracer_provider()
    meter: Any = metrics.get_meter_provider()
    if _is_stand_in(tracer):
        tracer = _provider("TRACES", asked["TRACES"], complaints)
    if _is_stand_in(meter):
        meter = _provider("METRICS", asked["METRICS"], complaints)
    if tracer is None and meter is None:
        return None, complaints
    return Providers(tracer or trace.NoOpTracerProvider(), meter or metrics.NoOpMeterProvider()), complaints


def _is_stand_in(provider: object) -> bool:
    """Whether it only waits for the one that an application may set."""
    return type(provider).__name__.lstrip("_") in ("ProxyTracerProvider", "ProxyMeterProvider")


def _provider(signal: str, names: Sequence[str], complaints: list[str]) -> Any:
    if not names:
        return None
    if signal not in _made:
        _made[signal] = None
        found = [each for name in names if (each := _exporter(signal, name, complaints)) is not None]
        if found:
            _made[signal] = _of_traces(found) if signal == "TRACES" else _of_metrics(found)
    return _made[signal]


def _of_traces(exporters: Sequence[Any]) -> trace.TracerProvider:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _of_metrics(exporters: Sequence[Any]) -> metrics.MeterProvider:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

    return MeterProvider(
        [each if isinstance(each, MetricReader) else PeriodicExportingMetricReader(each) for each in exporters]
    )


def _exporter(signal: str, name: str, complaints: list[str]) -> Any:
    """The exporter of that name, as an installed package registers it; None, and a complaint, if there is none."""
    group = f"opentelemetry_{signal.lower()}_exporter"
    wanted = [name]
    if name == "otlp":
        variables = (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        protocol = next((given for each in variables if (given := os.environ.get(each, "").strip())), "")
        wanted = list(_PROTOCOLS.values()) if not protocol else [_PROTOCOLS.get(protocol, protocol)]
    registered = next((each for one in wanted for each in entry_points(group=group, name=one)), None)
    if registered is None:
        package = "opentelemetry-exporter-otlp-proto-http" if wanted == ["otlp_proto_http"] else ""
        remedy = (
            EXTRA if "otlp_proto_grpc" in wanted else f"pip install {package}" if package else "install its package"
        )
        complaints.append(f"OpenTelemetry's {signal.lower()} exporter {wanted[0]} is not installed: {remedy}")
        return None
    try:
        return registered.load()()
    except ImportError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever an exporter makes of its variables, calls go on
        # Not its text: variables hold tokens.
        complaints.append(
            f"OpenTelemetry's {signal.lower()} exporter {registered.name} does not start: {type(error).__name__}"
        )
        return None
