"""Spans and metrics of calls, with an enclave of this process: what there is, by which names, and what is never in them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags, TraceState
from recorded import Recorder, chain, parents, recording
from target_tracing import inside, told_spans

import adyton
from adyton import FakeEnclaveLoader
from adyton.config import Policy
from adyton.errors import DeadlineError, EnclaveError, RemoteProtocolError, UnknownEntryError
from adyton.manager import LoadOrder
from adyton.proto.enclave import EnclaveInput, EnclaveLoadConfig, EnclaveOutput, user_message
from adyton.remote.proxy_client import ProxyClient
from adyton.telemetry import calls as telemetry_calls
from adyton.telemetry import switch
from adyton.telemetry.clocks import DRIFT, Clocks
from adyton.trusted import Enclave, host_function, trace_context

app = Enclave("app")
over = threading.Event()
SECRETS = ("hunter2", "s3cr3t-result", "/home/ann/.netrc", "s3cr3t-message")


@host_function
def lookup(word: str) -> str: ...


@host_function
def again(depth: int) -> int: ...


@app.entry
def nested(depth: int) -> int:
    return again(depth) + 1 if depth else 0


@app.entry
def ask(word: str) -> str:
    return lookup(word)


@app.entry
def many(count: int) -> None:
    for _ in range(count):
        lookup("a")


@app.entry
def fail(text: str) -> None:
    raise ValueError(text)


@app.entry
def where() -> dict[str, str]:
    return trace_context()


@app.entry
async def where_of_a_task() -> tuple[dict[str, str], int]:
    return trace_context(), trace.get_current_span().get_span_context().span_id


@app.entry
def current() -> str:
    found = trace.get_current_span().get_span_context()
    return f"{found.trace_id:032x} {found.span_id:016x}"


@app.entry
def ask_in_a_span(span: str, trace_id: str) -> str:
    """In a span of the program's own, in that trace or in the one that it is called in."""
    mine = int(trace_id, 16) if trace_id else trace.get_current_span().get_span_context().trace_id
    with trace.use_span(NonRecordingSpan(SpanContext(mine, int(span, 16), is_remote=False))):
        return lookup("a")


@app.entry
def wait() -> None:
    over.wait(100)


class Runs(adyton.trusted.TrustedApplication):
    def run(self, enclave_input):
        output = EnclaveOutput()
        output.Extensions[user_message] = trace_context().get("traceparent", "")
        return output


def loaded(application=app, **functions) -> adyton.EnclaveClient:
    functions = functions or {"lookup": lambda word: word}
    policy = Policy.read(None).extended(call=list(functions))
    return FakeEnclaveLoader(application).load(LoadOrder("app", EnclaveLoadConfig(name="app"), None, policy, functions))


@pytest.fixture
def record() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


def test_one_trace_from_the_call_through_the_entry_to_what_it_calls_back(record):
    def again(depth: int) -> int:
        return client.call("nested", depth - 1)

    client = loaded(again=again)
    with record.tracer.start_as_current_span("mine") as mine:
        assert client.call("nested", 2) == 2
    spans = [span for span in record.spans() if span.name in ("mine", "app/nested", "host/again")]
    inner = ["CLIENT app/nested", "SERVER app/nested", "CLIENT host/again", "SERVER host/again"]
    assert chain(spans) == ["INTERNAL mine", *inner, *inner, *inner[:2]]
    assert {span.context.trace_id for span in spans} == {mine.get_span_context().trace_id}
    inside(spans)
    entry = record.spans("SERVER")[0]
    assert entry.attributes == {"rpc.system": "adyton", "rpc.service": "app", "rpc.method": "nested"}
    client.close()


def test_the_load_is_a_span_with_its_steps(record):
    loaded().close()
    found = [each for each in parents(record.spans()) if each[1].startswith("adyton.")]
    assert found == [
        ("INTERNAL", "adyton.load", ""),
        ("INTERNAL", "adyton.provision", "INTERNAL"),
        ("INTERNAL", "adyton.attest", "INTERNAL"),
        ("INTERNAL", "adyton.initialize", "INTERNAL"),
    ]
    inside(record.spans())


def test_an_entry_knows_the_span_that_it_runs_in(record):
    client = loaded()
    for entry in ("where", "where_of_a_task"):
        told = client.call(entry)
        told = told[0] if entry == "where_of_a_task" else told
        entered = record.span(f"app/{entry}", "SERVER").context
        assert told == {"traceparent": f"00-{entered.trace_id:032x}-{entered.span_id:016x}-{entered.trace_flags:02x}"}
    assert client.call("where_of_a_task")[1] == record.spans("SERVER")[-1].context.span_id
    assert client.call("where_of_a_task")[1] == record.spans("SERVER")[-1].context.span_id  # the loop is an old one
    said, entered = client.call("current"), record.span("app/current", "SERVER").context
    assert said == f"{entered.trace_id:032x} {entered.span_id:016x}"
    client.close()
    assert trace_context() == {}


def test_run_is_a_call_like_others(record):
    client = loaded(application=Runs())
    said = client.enter_and_run(EnclaveInput()).Extensions[user_message]
    assert said.split("-")[2] == f"{record.span('app/run', 'SERVER').context.span_id:016x}"
    client.close()
    assert ("SERVER", "app/finalize", "CLIENT") in parents(record.spans())


def test_a_call_of_another_thread_is_below_what_was_current_when_it_was_submitted(record):
    client = loaded()
    with record.tracer.start_as_current_span("mine"):
        submitted = client.submit("where")
    assert submitted.result()
    assert chain([span for span in record.spans() if span.name in ("mine", "app/where")])[1] == "CLIENT app/where"
    client.close()


def test_a_program_that_has_spans_of_its_own_calls_back_from_them(record):
    client = loaded()
    client.call("ask_in_a_span", "000000000000abcd", "")
    host = record.span("host/lookup", "CLIENT")
    assert host.parent.span_id == 0xABCD
    assert host.context.trace_id == record.span("app/ask_in_a_span", "SERVER").context.trace_id
    client.close()


def test_a_program_cannot_put_its_calls_into_another_trace(record):
    client = loaded()
    client.call("ask_in_a_span", "000000000000abcd", "ab" * 16)
    assert parents(record.of_calls()) == [
        ("CLIENT", "app/ask_in_a_span", ""),
        ("SERVER", "app/ask_in_a_span", "CLIENT"),
        ("CLIENT", "host/lookup", "SERVER"),
        ("SERVER", "host/lookup", "CLIENT"),
    ]
    client.close()


def test_a_trace_that_is_not_sampled_goes_on_in_the_enclave_and_costs_no_account(monkeypatch):
    told = []
    with recording(ALWAYS_OFF) as record:
        client = loaded()
        monkeypatch.setattr(type(client._core.proxy.telemetry), "told", lambda _, body: told.append(body))
        place = SpanContext(7, 9, is_remote=True, trace_flags=TraceFlags(0), trace_state=TraceState([("a", "b")]))
        with trace.use_span(NonRecordingSpan(place)):
            said = client.call("where")
        assert said["traceparent"].startswith(f"00-{7:032x}-")
        assert said["traceparent"].endswith("-00")
        assert said["tracestate"] == "a=b"
        client.close()
        assert record.spans() == []
        assert sum(record.values("adyton.client.calls").values()) == 2
    assert told == []


@pytest.mark.parametrize("state", ["v" * 513, "a=b\x7f"])
def test_a_state_that_is_too_long_or_no_text_stays_here(record, monkeypatch, state):
    monkeypatch.setattr(TraceState, "to_header", lambda _: state)
    client = loaded()
    place = SpanContext(7, 9, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("a", "b")]))
    with trace.use_span(NonRecordingSpan(place)):
        assert set(client.call("where")) == {"traceparent"}
    client.close()


def test_baggage_stays_here(record):
    from opentelemetry import baggage, context

    client = loaded()
    token = context.attach(baggage.set_baggage("user", SECRETS[0]))
    assert set(client.call("where")) == {"traceparent"}
    context.detach(token)
    client.close()


# -- what ends otherwise --------------------------------------------------------------------------------------------------


def test_calls_that_fail_say_which_kind_of_error_and_no_more(record):
    def lookup(word: str) -> str:
        raise KeyError(word)

    client = loaded(lookup=lookup)
    for entry, argument, kind in (
        ("fail", SECRETS[3], EnclaveError),
        ("ask", SECRETS[0], EnclaveError),
        (SECRETS[1], "", UnknownEntryError),
    ):
        with pytest.raises(kind):
            client.call(entry, argument)
    client.close()
    client_spans = [span for span in record.spans("CLIENT") if span.name.startswith("app/")]
    assert [span.attributes.get("error.type", "") for span in client_spans] == [
        *("EnclaveError", "EnclaveError", "UnknownEntryError", "")
    ]
    assert [span.status.status_code for span in client_spans] == [StatusCode.ERROR] * 3 + [StatusCode.UNSET]
    assert record.span("host/lookup", "SERVER").attributes["error.type"] == "KeyError"
    assert {span.status.description for span in record.spans()} == {None}
    assert all(not span.events for span in record.spans())
    shown = {
        (dict(key)["entry"], dict(key)["outcome"]): count for key, count in record.values("adyton.client.calls").items()
    }
    assert shown == {
        ("fail", "EnclaveError"): 1,
        ("ask", "EnclaveError"): 1,
        ("unknown", "UnknownEntryError"): 1,
        ("finalize", "ok"): 1,
    }


def test_a_call_whose_end_the_enclave_never_told_is_over_with_its_caller(record):
    over.clear()
    client = loaded()
    with pytest.raises(DeadlineError):
        client.options(timeout=0.05).call("wait")
    over.set()
    entry = record.span("app/wait", "SERVER") if len(record.spans("SERVER")) else None
    if entry is not None:  # the enclave's account of its start had come
        assert entry.attributes["adyton.unfinished"] is True
    assert record.span("app/wait", "CLIENT").attributes["error.type"] == "DeadlineError"
    inside(record.spans())
    client.close()


def test_of_one_call_so_many_host_calls_are_spans(record, monkeypatch):
    monkeypatch.setattr(telemetry_calls, "MAX_HOST_SPANS", 3)
    client = loaded()
    client.call("many", 5)
    client.close()
    assert len([span for span in record.spans() if span.name == "host/lookup"]) == 2 * 3
    assert record.span("app/many", "SERVER").attributes["adyton.host_calls_left_out"] == 2


def test_what_the_enclave_calls_that_the_client_has_not_is_no_name_of_a_span(record):
    client = loaded(other=lambda: None)
    with pytest.raises(EnclaveError):
        client.call("ask", "a")
    client.close()
    assert {span.name for span in record.spans() if span.name.startswith("host/")} == {"host/unknown"}
    assert record.span("host/unknown", "SERVER").attributes["error.type"] == "EACCES"


def test_a_connection_that_is_made_again_is_counted_and_seen_in_what_was_under_way(record):
    client: adyton.EnclaveClient

    def lookup(word: str) -> str:
        client._core.proxy.telemetry.reconnected()
        return word

    client = loaded(lookup=lookup)
    client.call("ask", "a")
    client.close()
    assert list(record.values("adyton.client.reconnects").values()) == [1]
    assert [event.name for event in record.span("app/ask", "CLIENT").events] == ["reconnected"]


# -- what an enclave says -------------------------------------------------------------------------------------------------


@given(st.binary(max_size=600))
@example(bytes(range(256)))
def test_whatever_an_enclave_says_spans_lie_in_their_parents_and_end(data):
    try:
        told_spans(data)
    except RemoteProtocolError:
        pass


times = st.integers(0, 1 << 63)


@given(times, times, times, times)
def test_the_enclaves_times_of_a_call_lie_between_the_clients_if_they_can(sent, received, working, way):
    answered, arrived = received + working, sent + working + way
    difference = Clocks().match(sent, received, answered, arrived)
    assert sent <= received + difference <= answered + difference <= arrived


def test_the_shortest_way_tells_the_difference_until_the_clocks_have_drifted():
    clocks, ahead = Clocks(), 5_000_000
    assert abs(clocks.match(1000, 1100 - ahead, 1200 - ahead, 1300) - ahead) <= 100
    best = clocks.match(2000, 2050 - ahead, 2100 - ahead, 2150)
    assert best == ahead
    # A way that took long in one direction tells less.
    assert clocks.match(3000, 3900 - ahead, 4000 - ahead, 4010) == best
    later = 10_000 + 2000 * DRIFT
    drifted = ahead + 700
    assert clocks.match(later, later + 500 - drifted, later + 600 - drifted, later + 1100) == drifted


# -- metrics --------------------------------------------------------------------------------------------------------------


def test_metrics_of_calls_host_calls_and_bytes(record):
    flying = []

    def lookup(word: str) -> str:
        flying.append(record.values("adyton.client.calls_in_flight"))
        return word

    client = loaded(lookup=lookup)
    for _ in range(3):
        client.call("ask", "a" * 1000)
    client.close()
    key = {"enclave": "app", "outcome": "ok"}
    asked, finalized = (frozenset({**key, "entry": entry}.items()) for entry in ("ask", "finalize"))
    assert record.values("adyton.client.calls") == {asked: 3, finalized: 1}
    assert record.values("adyton.client.call.duration") == {asked: 3, finalized: 1}
    assert [list(each.values()) for each in flying] == [[1]] * 3
    assert list(record.values("adyton.client.calls_in_flight").values()) == [0]
    kinds = frozenset({**key, "kind": "call"}.items())
    assert record.values("adyton.client.host_calls")[kinds] == 3
    assert record.values("adyton.client.host_call.duration")[kinds] == 3
    stats = client.stats()
    for name in ("bytes_sent", "bytes_received"):
        assert list(record.values(f"adyton.client.{name}").values()) == [stats[name]]
        assert stats[name] > 3000


def test_nothing_of_what_is_carried_is_in_spans_metrics_or_logs(record, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)

    def lookup(word: str) -> str:
        raise ValueError(SECRETS[3])

    client = loaded(lookup=lookup)
    for entry, argument in (("fail", SECRETS[0]), ("ask", SECRETS[1]), ("fail", SECRETS[2]), ("nested", SECRETS[1])):
        with pytest.raises(adyton.AdytonError):
            client.call(entry, argument)
    client.close()
    said = record.everything() + caplog.text
    assert "app/fail" in said
    assert [secret for secret in SECRETS if secret in said] == []


# -- on and off -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "traces", "metrics"),
    [
        ({}, [], []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, ["otlp"], ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, ["otlp"], []),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4317"}, [], ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ["console", "otlp"], []),
        ({"OTEL_METRICS_EXPORTER": "console"}, [], ["console"]),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, [], ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "True"}, [], []),
        ({"OTEL_SERVICE_NAME": "a"}, [], []),
    ],
)
def test_what_the_variables_ask_for(variables, traces, metrics):
    assert (switch.exporters(variables, "TRACES"), switch.exporters(variables, "METRICS")) == (traces, metrics)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert run.returncode == 0, run.stderr
    return run


CALL = """
import sys
from adyton import EnclaveManager, FakeEnclaveLoader, trusted
from adyton.manager import LoadOrder
from adyton.config import Policy
from adyton.proto.enclave import EnclaveLoadConfig
app = trusted.Enclave("app")
@app.entry
def one() -> int:
    return 1
def load():
    return FakeEnclaveLoader(app).load(LoadOrder("app", EnclaveLoadConfig(name="app"), None, Policy.read(None), []))
def call():
    with load() as client:
        assert client.call("one") == 1
"""


def test_off_means_that_opentelemetry_is_not_loaded():
    code = f"{CALL}call()\nprint([name for name in sys.modules if name.startswith('opentelemetry')])"
    assert python(code).stdout == "[]\n"
    assert python(code, OTEL_SDK_DISABLED="true", OTEL_TRACES_EXPORTER="otlp").stdout == "[]\n"


def test_off_means_that_a_call_does_nothing_of_it():
    """Not one function of the package is called; and the client's session is called without one in between."""
    client = loaded()
    assert client._core.proxy.telemetry is None
    assert client._core.proxy._speaker._send_call == client._core.proxy._session.call
    seen: set[str] = set()
    sys.setprofile(lambda frame, _event, _argument: seen.add(frame.f_code.co_filename))
    try:
        client.call("ask", "a")
    finally:
        sys.setprofile(None)
    client.close()
    assert any(ProxyClient.__module__.replace(".", "/") in name for name in seen)
    assert [name for name in seen if "/adyton/telemetry/" in name or "/opentelemetry/" in name] == []


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk.trace"])
def test_without_the_extra_one_warning_says_what_to_install(missing):
    code = f"{CALL}sys.modules[{missing!r}] = None\ncall()\ncall()"
    said = python(code, OTEL_TRACES_EXPORTER="console").stderr
    assert said.count("adyton: warning:") == 1
    assert "pip install 'adyton[telemetry]'" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "traces exporter zipkin is not installed"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "pip install opentelemetry-exporter-otlp-proto-http"),
        ({"OTEL_PROPAGATORS": "nobody"}, "OTEL_PROPAGATORS names what is not installed"),
        (
            {"OTEL_EXPORTER_OTLP_COMPRESSION": "hunter2", "OTEL_EXPORTER_OTLP_HEADERS": "token=hunter2"},
            "exporter otlp_proto_grpc does not start",
        ),
    ],
)
def test_what_cannot_be_exported_is_said_once_and_calls_go_on(variables, text):
    environment = {"OTEL_TRACES_EXPORTER": "otlp", **variables}
    said = python(f"{CALL}call()\ncall()", **environment).stderr
    assert said.count(text) == 1, said
    assert "hunter2" not in said


def test_variables_alone_export_spans_and_the_processs_providers_stay_as_they_are():
    code = (
        f"{CALL}call()\nfrom opentelemetry import trace, metrics\n"
        "print(type(trace.get_tracer_provider()).__name__, file=sys.stderr)"
    )
    run = python(code, OTEL_TRACES_EXPORTER="console", OTEL_METRICS_EXPORTER="console", OTEL_SERVICE_NAME="payer")
    assert '"name": "app/one"' in run.stdout
    assert '"service.name": "payer"' in run.stdout
    assert '"name": "adyton.client.calls"' in run.stdout
    assert "ProxyTracerProvider" in run.stderr


def test_a_provider_that_is_not_the_sdks_is_enough(record, monkeypatch):
    """One that has no generator of ids: what the enclave does is below the call all the same."""
    monkeypatch.setattr("adyton.telemetry.calls.Spans", _without_reserving)
    client = loaded()
    said = client.call("where")
    entry, call = record.span("app/where", "SERVER"), record.span("app/where", "CLIENT")
    assert said["traceparent"].split("-")[2] == f"{call.context.span_id:016x}"
    assert entry.parent.span_id == call.context.span_id
    client.close()


def _without_reserving(tracer):
    from adyton.telemetry.spans import Spans

    spans = Spans(tracer)
    spans.reserves = False
    return spans
