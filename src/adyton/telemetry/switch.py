"""Whether there is to be telemetry: OpenTelemetry is imported only if the application has set it up, or its variables ask for it.

OTEL_SDK_DISABLED=true                          the variables ask for nothing
OTEL_TRACES_EXPORTER, OTEL_METRICS_EXPORTER     names of exporters ("none": none); one that is not set is "otlp" if there is
OTEL_EXPORTER_OTLP_[TRACES_|METRICS_]ENDPOINT   an endpoint for it
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adyton.telemetry.calls import Telemetry

EXTRA = "pip install 'adyton[telemetry]'"
_lock = threading.Lock()
_warned: set[str] = set()


def exporters(environment: Mapping[str, str], signal: str) -> list[str]:
    """The exporters that the variables ask for, of `signal` "TRACES" or "METRICS"."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    named = environment.get(f"OTEL_{signal}_EXPORTER", "").strip()
    if not named:
        endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
        return ["otlp"] if any(environment.get(each, "").strip() for each in endpoints) else []
    return [name for each in named.split(",") if (name := each.strip()) and name.lower() != "none"]


def telemetry_of(enclave: str, functions: Collection[str], warn: Callable[[str], object]) -> Telemetry | None:
    """For an enclave that is about to be loaded under that name; None: nobody asked. `functions`: names that the client registered.

    `warn` is given, once in a process, what cannot be as the variables ask for it.
    """
    asked = {signal: exporters(os.environ, signal) for signal in ("TRACES", "METRICS")}
    set_up = "opentelemetry.trace" in sys.modules or "opentelemetry.metrics" in sys.modules
    if not set_up and not any(asked.values()):
        return None
    try:
        from adyton.telemetry.calls import Telemetry
        from adyton.telemetry.providers import providers

        with _lock:
            found, complaints = providers(asked)
    except ImportError:
        found, complaints = None, [f"OpenTelemetry's SDK is not all there, so there is no telemetry: {EXTRA}"]
        complaints = complaints if any(asked.values()) else []
    except ValueError:  # of opentelemetry.propagate, when it is imported
        found, complaints = None, ["OTEL_PROPAGATORS names what is not installed, so there is no telemetry"]
    for complaint in complaints:
        with _lock:
            new = complaint not in _warned
            _warned.add(complaint)
        if new:
            warn(complaint)
    return None if found is None else Telemetry(enclave, functions, found)


def step(telemetry: Telemetry | None, name: str) -> AbstractContextManager[object]:
    """A span of that name around a block, if there is telemetry."""
    return nullcontext() if telemetry is None else telemetry.step(name)
