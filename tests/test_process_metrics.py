"""Metrics of an enclave's processes, without an enclave: names, units, polling that survives, enclaves that stay apart."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from adyton import RemoteProvision, RemoteProxyClientConfig
from adyton.errors import AdytonError, ConnectionLostError, UsageError
from adyton.processes_pb2 import ProcessReport, ProcStat
from adyton.remote.process_metrics import ProcessMetrics

ORIGINALS = (
    *("minflt", "cminflt", "majflt", "cmajflt", "utime", "stime", "cutime", "cstime"),
    *("starttime", "vsize", "rss", "rsslim", "guesttime", "cguesttime"),
)
WAIT = 30


class Server:
    """Answers polls with `reports`, or raises `error`; `polled(n)` waits until n more polls have been answered."""

    def __init__(self, **reports: ProcessReport) -> None:
        self.reports = reports
        self.error: AdytonError | None = None
        self.answered = threading.Semaphore(0)

    def __call__(self, timeout: float) -> dict[str, ProcessReport]:
        assert timeout > 0
        self.answered.release()
        if self.error:
            raise self.error
        return self.reports

    def polled(self, times: int = 2) -> None:
        """The last of them but one has been taken in."""
        while self.answered.acquire(blocking=False):
            pass
        for _ in range(times):
            assert self.answered.acquire(timeout=WAIT)


class Provider:
    """A provider whose metrics a test reads."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    def read(self) -> dict[str, dict[tuple[str, str], float]]:
        """name → (enclave, process) → value"""
        return {
            metric.name: {(p.attributes["enclave"], p.attributes["process"]): p.value for p in metric.data.data_points}
            for metric in self.metrics()
        }

    def metrics(self) -> list:
        data = self.reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        assert all(scope.scope.name == "adyton" for scope in scopes)
        return [metric for scope in scopes for metric in scope.metrics]


@pytest.fixture
def provider():
    made = Provider()
    yield made
    made.meters.shutdown()


@pytest.fixture
def start(provider):
    """Start metrics, and stop all of them at the end."""
    stops: list[Callable[[], None]] = []

    def start(name: str, server: Server, root: str = "r", granularity: float = 0.005) -> Callable[[], None]:
        stop = ProcessMetrics.create(granularity, root, provider.meters).start(name, server)
        stops.append(stop)
        return lambda: (stops.remove(stop), stop())[0]

    yield start
    for stop in stops:
        stop()
    assert "adyton-metrics" not in {thread.name for thread in threading.enumerate()}


def report(**fields: int) -> ProcessReport:
    return ProcessReport(stat=ProcStat(**{"sc_clk_tck": 100, "page_size": 4096, **fields}))


def test_names_units_and_values(provider, start):
    stat = ProcStat(sc_clk_tck=250, page_size=16384)
    for number, name in enumerate(("minflt", "cminflt", "majflt", "cmajflt", "vsize", "rss", "rsslim"), 1):
        setattr(stat, name, number)
    for number, name in enumerate(("utime", "stime", "cutime", "cstime", "starttime", "guest_time", "cguest_time"), 1):
        setattr(stat, name, 100 * number)
    server = Server(guest=ProcessReport(stat=stat))
    start("pay", server, "an/y.root-1")
    server.polled()
    metrics = provider.metrics()
    assert [metric.name for metric in metrics] == [f"an/y.root-1/proc/stat/{name}" for name in ORIGINALS]
    found = {metric.name.rpartition("/")[2]: (metric.data.data_points[0].value, metric.unit) for metric in metrics}
    assert found == {
        "minflt": (1, "{fault}"),
        "cminflt": (2, "{fault}"),
        "majflt": (3, "{fault}"),
        "cmajflt": (4, "{fault}"),
        "vsize": (5, "By"),
        "rss": (6 * 16384, "By"),
        "rsslim": (7, "By"),
        "utime": (0.4, "s"),
        "stime": (0.8, "s"),
        "cutime": (1.2, "s"),
        "cstime": (1.6, "s"),
        "starttime": (2.0, "s"),
        "guesttime": (2.4, "s"),
        "cguesttime": (2.8, "s"),
    }
    assert all(metric.description for metric in metrics)


def test_the_last_value_is_shown_and_nothing_after_the_end(provider, start):
    server = Server(proxy=report(minflt=1), guest=report(minflt=2))
    stop = start("pay", server)
    server.polled()
    assert provider.read()["r/proc/stat/minflt"] == {("pay", "proxy"): 1, ("pay", "guest"): 2}
    server.reports = {"proxy": report(minflt=5)}
    server.polled(3)
    assert provider.read()["r/proc/stat/minflt"] == {("pay", "proxy"): 5}
    stop()
    assert provider.read() == {}


def test_polling_survives_failures(provider, start):
    server = Server(proxy=report(minflt=1))
    server.error = ConnectionLostError("gone")
    start("pay", server)
    server.polled(3)
    assert provider.read() == {}
    server.error = None
    server.polled(3)
    assert provider.read()["r/proc/stat/minflt"] == {("pay", "proxy"): 1}
    server.error = ConnectionLostError("gone again")
    server.polled(3)
    assert provider.read() == {}  # rather than numbers that are true no more
    server.error = None
    server.polled(3)
    assert provider.read()["r/proc/stat/minflt"] == {("pay", "proxy"): 1}


def test_two_enclaves_with_one_root(provider, start):
    servers = [Server(guest=report(minflt=number)) for number in (1, 2)]
    stops = [start(name, server) for name, server in zip("ab", servers, strict=True)]
    for server in servers:
        server.polled()
    assert provider.read()["r/proc/stat/minflt"] == {("a", "guest"): 1, ("b", "guest"): 2}
    stops[0]()
    assert provider.read()["r/proc/stat/minflt"] == {("b", "guest"): 2}
    start("a", servers[0])
    servers[0].polled()
    assert provider.read()["r/proc/stat/minflt"] == {("a", "guest"): 1, ("b", "guest"): 2}


def test_two_enclaves_with_one_root_and_one_name(provider, start):
    for number in (1, 2, 3):
        server = Server(guest=report(minflt=number))
        start("a", server)
        server.polled()
    assert provider.read()["r/proc/stat/minflt"] == {("a", "guest"): 1, ("a#2", "guest"): 2, ("a#3", "guest"): 3}


def test_roots_and_providers_of_their_own(provider, start):
    one, two, other = (Server(guest=report(minflt=number)) for number in (1, 2, 3))
    start("a", one, "one")
    start("b", two, "two/")
    elsewhere = Provider()
    stop = ProcessMetrics.create(0.005, "one", elsewhere.meters).start("c", other)
    for server in (one, two, other):
        server.polled()
    found = provider.read()
    assert found["one/proc/stat/minflt"] == {("a", "guest"): 1}
    assert found["two/proc/stat/minflt"] == {("b", "guest"): 2}
    assert elsewhere.read()["one/proc/stat/minflt"] == {("c", "guest"): 3}
    stop()
    elsewhere.meters.shutdown()


def test_a_root_in_other_letters_is_the_same_to_opentelemetry(provider, start):
    one, two = Server(guest=report(minflt=1)), Server(guest=report(minflt=2))
    start("a", one, "Root")
    start("b", two, "root")
    for server in (one, two):
        server.polled()
    assert provider.read()["root/proc/stat/minflt"] == {("a", "guest"): 1, ("b", "guest"): 2}


def test_what_a_server_leaves_out_or_makes_up(provider, start):
    largest = (1 << 64) - 1
    server = Server(
        proxy=ProcessReport(error="hidden"),
        supervisor=ProcessReport(stat=ProcStat(utime=1, rss=-largest >> 1, sc_clk_tck=0, page_size=9)),
        guest=ProcessReport(
            stat=ProcStat(
                minflt=largest, rsslim=largest, vsize=largest, rss=largest >> 1, page_size=largest >> 1, sc_clk_tck=-1
            )
        ),
    )
    start("a", server)
    server.polled()
    found = provider.read()
    assert "r/proc/stat/utime" not in found  # of so many ticks in no second
    assert found["r/proc/stat/rss"] == {("a", "supervisor"): -(largest >> 1), ("a", "guest"): largest >> 1}
    for name in ("minflt", "rsslim", "vsize"):
        assert found[f"r/proc/stat/{name}"][("a", "guest")] == largest >> 1


def test_a_poll_under_way_when_the_enclave_closes(provider):
    polling, release = threading.Event(), threading.Event()

    def ask(_: float) -> dict[str, ProcessReport]:
        polling.set()
        assert release.wait(WAIT)
        raise ConnectionLostError("closed")

    stop = ProcessMetrics.create(100, "r", provider.meters).start("a", ask)
    assert polling.wait(WAIT)
    threading.Timer(0, release.set).start()
    stop()
    assert provider.read() == {}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        pytest.param({"granularity": 0}, "above 0", id="zero"),
        pytest.param({"granularity": -1.0}, "above 0", id="negative"),
        pytest.param({"granularity": float("inf")}, "above 0", id="for-ever"),
        pytest.param({"granularity": float("nan")}, "above 0", id="nan"),
        pytest.param({"granularity": "1"}, "seconds from poll to poll", id="text"),
        pytest.param({"view_name_root": ""}, "begin with a letter", id="no-root"),
        pytest.param({"view_name_root": "/asylo"}, "begin with a letter", id="slash"),
        pytest.param({"view_name_root": "a b"}, "begin with a letter", id="space"),
        pytest.param({"view_name_root": "a" * 201}, "200 at most", id="long"),
        pytest.param({"meter_provider": "otlp"}, "MeterProvider", id="no-provider"),
    ],
)
def test_arguments_that_are_no_good(arguments, text):
    config = RemoteProxyClientConfig.defaults_with_provision(RemoteProvision.instantiate())
    with pytest.raises(UsageError, match=text):
        config.enable_opentelemetry_metrics(**{"granularity": 1, "view_name_root": "r", **arguments})
    assert config.metrics is None


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


CONFIG = (
    "import sys\n"
    "from adyton import AdytonError, RemoteProvision, RemoteProxyClientConfig\n"
    "config = RemoteProxyClientConfig.defaults_with_provision(RemoteProvision.instantiate())\n"
)


def test_without_the_extra():
    code = (
        f"{CONFIG}sys.modules['opentelemetry'] = None\n"
        "try:\n    config.enable_opentelemetry_metrics(1, 'r')\nexcept AdytonError as error:\n    print(error.code, error)"
    )
    said = python(code)
    assert said.startswith("INVALID_ARGUMENT")
    assert "pip install adyton[otel]" in said


def test_opentelemetry_is_loaded_only_for_who_wants_it():
    code = (
        f"{CONFIG}import adyton.client, adyton.loader, adyton.provision.proxy, adyton.cli\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert python(code) == "[]\n"


def test_a_provider_that_is_set_later():
    """Of two enclaves, one from before and one from after the application has set its process's provider, both are shown."""
    code = """
import threading
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from adyton.processes_pb2 import ProcessReport, ProcStat
from adyton.remote.process_metrics import ProcessMetrics

polled = threading.Semaphore(0)
def ask(_):
    polled.release()
    return {"guest": ProcessReport(stat=ProcStat(minflt=1))}

stops = [ProcessMetrics.create(0.005, "r", None).start("before", ask)]
reader = InMemoryMetricReader()
provider = MeterProvider([reader])
metrics.set_meter_provider(provider)
stops.append(ProcessMetrics.create(0.005, "r", None).start("after", ask))
stops.append(ProcessMetrics.create(0.005, "r", provider).start("named", ask))
for _ in range(20):
    assert polled.acquire(timeout=30)
while len(found := [point.attributes["enclave"] for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
          if metric.name == "r/proc/stat/minflt" for point in metric.data.data_points]) < 3:
    assert polled.acquire(timeout=30)
print(sorted(found))
for stop in stops:
    stop()
"""
    assert python(code) == "['after', 'before', 'named']\n"
