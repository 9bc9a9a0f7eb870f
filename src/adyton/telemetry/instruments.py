"""The metrics of calls: what there is, in one table. docs/telemetry.md says what they mean."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.metrics import Counter, Histogram, Meter, UpDownCounter

# Seconds: a call on one machine takes a fraction of a millisecond, one to another continent's file a second.
BOUNDARIES = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

COUNTERS: Mapping[str, tuple[str, str]] = {
    "adyton.client.calls": ("{call}", "Calls of entries that are over"),
    "adyton.client.host_calls": ("{call}", "Host calls of the enclave that the client executed"),
    "adyton.client.bytes_sent": ("By", "Bytes sent to the enclave, as they are encrypted"),
    "adyton.client.bytes_received": ("By", "Bytes received from it"),
    "adyton.client.reconnects": ("{reconnect}", "Lost connections that were made again"),
}
HISTOGRAMS: Mapping[str, tuple[str, str]] = {
    "adyton.client.call.duration": ("s", "How long calls of entries took"),
    "adyton.client.host_call.duration": ("s", "How long host calls took on the client"),
}
IN_FLIGHT = "adyton.client.calls_in_flight"


class Instruments:
    """Of one meter: an SDK gives the same ones again to who asks again."""

    def __init__(self, meter: Meter) -> None:
        self._counters: dict[str, Counter] = {
            name: meter.create_counter(name, unit, text) for name, (unit, text) in COUNTERS.items()
        }
        self._histograms: dict[str, Histogram] = {
            name: meter.create_histogram(name, unit, text, explicit_bucket_boundaries_advisory=BOUNDARIES)
            for name, (unit, text) in HISTOGRAMS.items()
        }
        self._in_flight: UpDownCounter = meter.create_up_down_counter(IN_FLIGHT, "{call}", "Calls of entries under way")

    def count(self, name: str, amount: int, attributes: Mapping[str, str]) -> None:
        """Add to a row of COUNTERS."""
        self._counters[name].add(amount, attributes)

    def took(self, name: str, seconds: float, attributes: Mapping[str, str]) -> None:
        """One more of a row of HISTOGRAMS."""
        self._histograms[name].record(seconds, attributes)

    def in_flight(self, change: int, attributes: Mapping[str, str]) -> None:
        """A call has begun (1), or is over (-1)."""
        self._in_flight.add(change, attributes)
