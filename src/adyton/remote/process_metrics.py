"""What the proxy server reports of an enclave's processes, as OpenTelemetry metrics: polled while the enclave lives.

    poller, one thread for each enclave ──► its last reports ◄── gauges, of all enclaves with the same provider and root ◄── reader

The numbers are the server's operator's word, and no evidence. OpenTelemetry is imported when metrics are asked for, and only then.
"""

from __future__ import annotations

import math
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from adyton._version import __version__
from adyton.errors import AdytonError, UsageError
from adyton.processes_pb2 import ProcessReport, ProcStat

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

POLL_TIMEOUT = 5.0  # seconds for one poll
_LARGEST = (1 << 63) - 1  # of integers in OpenTelemetry's protocol
_ROOT = re.compile(
    r"[A-Za-z][A-Za-z0-9_./-]{0,199}"
)  # with what follows, an instrument's name as OpenTelemetry has them

Ask = Callable[[float], Mapping[str, ProcessReport]]


def _ticks(field: str) -> Callable[[ProcStat], float | None]:
    return lambda stat: getattr(stat, field) / stat.sc_clk_tck if stat.sc_clk_tck > 0 else None


def _whole(field: str) -> Callable[[ProcStat], int]:
    return lambda stat: min(getattr(stat, field), _LARGEST)


def _pages(field: str) -> Callable[[ProcStat], int]:
    return lambda stat: max(-_LARGEST, min(getattr(stat, field) * stat.page_size, _LARGEST))


class Gauge(NamedTuple):
    """A row of GAUGES. `value`: None if the report does not have it."""

    name: str
    unit: str
    description: str
    value: Callable[[ProcStat], int | float | None]


GAUGES = (
    Gauge("minflt", "{fault}", "Minor page faults", _whole("minflt")),
    Gauge("cminflt", "{fault}", "Minor page faults of ended children", _whole("cminflt")),
    Gauge("majflt", "{fault}", "Major page faults", _whole("majflt")),
    Gauge("cmajflt", "{fault}", "Major page faults of ended children", _whole("cmajflt")),
    Gauge("utime", "s", "CPU time in user mode", _ticks("utime")),
    Gauge("stime", "s", "CPU time in the kernel", _ticks("stime")),
    Gauge("cutime", "s", "CPU time in user mode of ended children", _ticks("cutime")),
    Gauge("cstime", "s", "CPU time in the kernel of ended children", _ticks("cstime")),
    Gauge("starttime", "s", "When it was started, since the server's boot", _ticks("starttime")),
    Gauge("vsize", "By", "Virtual memory", _whole("vsize")),
    Gauge("rss", "By", "Resident memory", _pages("rss")),
    Gauge("rsslim", "By", "Limit of resident memory; 2^63-1 is none", _whole("rsslim")),
    Gauge("guesttime", "s", "CPU time of virtual machines that it runs", _ticks("guest_time")),
    Gauge("cguesttime", "s", "CPU time of virtual machines that ended children ran", _ticks("cguest_time")),
)


class _Instruments:
    """The gauges of one provider and root, and the enclaves that they show now.

    OpenTelemetry has one instrument of a name in a provider, ignores the callback of a second one, and can take none back.
    """

    def __init__(self, provider: MeterProvider, root: str) -> None:
        meter = provider.get_meter("adyton", __version__)
        self._lock = threading.Lock()
        self._shown: dict[str, _Poller] = {}
        for gauge in GAUGES:
            meter.create_observable_gauge(
                f"{root}/proc/stat/{gauge.name}", [self._callback(gauge)], gauge.unit, gauge.description
            )

    def _callback(self, gauge: Gauge) -> Callable[[CallbackOptions], Iterator[Observation]]:
        from opentelemetry.metrics import Observation

        def observe(_: CallbackOptions) -> Iterator[Observation]:
            with self._lock:
                shown = [(name, poller.latest) for name, poller in self._shown.items()]
            for name, reports in shown:
                for process, report in reports.items():
                    value = gauge.value(report.stat) if report.HasField("stat") else None
                    if value is not None:
                        yield Observation(value, {"enclave": name, "process": process})

        return observe

    def show(self, name: str, poller: _Poller) -> str:
        """Under that name, or "NAME#2" and so on while another enclave has it; the name it got."""
        with self._lock:
            candidates = (f"{name}#{number}" if number > 1 else name for number in range(1, len(self._shown) + 2))
            free = next(each for each in candidates if each not in self._shown)
            self._shown[free] = poller
            return free

    def hide(self, name: str) -> None:
        """Show that enclave no more."""
        with self._lock:
            del self._shown[name]


class _Poller:
    """Asks again and again on a thread of its own, whatever single answers are."""

    def __init__(self, ask: Ask, granularity: float) -> None:
        self.latest: Mapping[str, ProcessReport] = {}  # empty after a poll that failed: what is not known is not shown
        self._ask = ask
        self._granularity = granularity
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adyton-metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.latest = self._ask(POLL_TIMEOUT)
            except AdytonError:
                self.latest = {}
            self._stopped.wait(self._granularity)

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(POLL_TIMEOUT + 1)


_lock = threading.Lock()
_known: weakref.WeakKeyDictionary[MeterProvider, dict[str, _Instruments]] = weakref.WeakKeyDictionary()
_process_wide: MeterProvider | None = None  # what stood for this process's provider when that was first needed


def _instruments(provider: MeterProvider | None, root: str) -> _Instruments:
    """Those of this provider (None: this process's) and root."""
    from opentelemetry.metrics import get_meter_provider

    global _process_wide  # noqa: PLW0603 - as OpenTelemetry's own is
    with _lock:
        current = get_meter_provider()
        if provider is None or provider is current:
            # Until the application sets one, a stand-in, whose instruments pass into the one that is set.
            provider = _process_wide = _process_wide or current
        roots = _known.setdefault(provider, {})
        key = root.lower()  # OpenTelemetry's names are case-insensitive
        if key not in roots:
            roots[key] = _Instruments(provider, root)
        return roots[key]


@dataclass(frozen=True)
class ProcessMetrics:
    """The metrics that a load is to have. Made by `create`. `granularity`: seconds from poll to poll."""

    granularity: float
    view_name_root: str
    _instruments: _Instruments

    @classmethod
    def create(cls, granularity: float, view_name_root: str, meter_provider: MeterProvider | None) -> ProcessMetrics:
        """Make the instruments, which show nothing yet. UsageError if OpenTelemetry is not installed, or an argument is no good."""
        if isinstance(granularity, bool) or not isinstance(granularity, int | float):
            raise UsageError(f"granularity={granularity!r}: give the seconds from poll to poll")
        if not (granularity > 0 and math.isfinite(granularity)):
            raise UsageError(f"granularity={granularity}: give a number of seconds above 0")
        if not isinstance(view_name_root, str) or not _ROOT.fullmatch(view_name_root):
            raise UsageError(
                f"view_name_root={view_name_root!r}: metrics are named ROOT/proc/stat/…, and OpenTelemetry wants names that begin with a "
                "letter and have only letters, digits and _ . - / (200 at most in the root)"
            )
        if meter_provider is not None and not hasattr(meter_provider, "get_meter"):
            raise UsageError(
                f"meter_provider={meter_provider!r}: give an OpenTelemetry MeterProvider, or None for this process's"
            )
        root = view_name_root.rstrip("/")
        try:
            return cls(float(granularity), root, _instruments(meter_provider, root))
        except ImportError as error:
            raise UsageError(
                f"metrics need OpenTelemetry, which is not installed ({error}): pip install adyton[otel]"
            ) from None

    def start(self, enclave: str, ask: Ask) -> Callable[[], None]:
        """Poll `ask` (timeout in seconds -> reports; AdytonError) and show what it says under that name, until the result is called."""
        poller = _Poller(ask, self.granularity)
        name = self._instruments.show(enclave, poller)

        def stop() -> None:
            self._instruments.hide(name)
            poller.close()

        return stop
