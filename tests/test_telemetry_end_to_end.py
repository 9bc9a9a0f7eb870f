"""Telemetry of real enclaves: across a provision server, out of the program's own OpenTelemetry, and to a collector."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from command import adyton as command
from opentelemetry import trace
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from recorded import chain, recording
from target_tracing import inside

import adyton
from adyton.errors import EnclaveError

pytestmark = pytest.mark.sandbox

PROGRAM = """
import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import adyton.trusted as trusted

@trusted.host_function
def where() -> str: ...

def _here() -> str:
    return trusted.trace_context()["traceparent"][3:52]

async def of_threads() -> list[str]:
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(contextvars.copy_context().run, where)
        asked = await asyncio.gather(*(asyncio.to_thread(where) for _ in range(2)))
        return [_here(), *asked, third.result(), _here()]

def of_threads_without_a_context() -> list[str]:
    found = []
    thread = threading.Thread(target=lambda: found.extend([where(), str(trusted.trace_context())]))
    thread.start()
    thread.join()
    with ThreadPoolExecutor(1) as pool:
        return [*found, pool.submit(where).result()]

async def nested_in_a_thread(depth: int) -> int:
    return await asyncio.to_thread(ask, depth) + 1 if depth else 0

async def fail_in_a_task(text: str) -> None:
    where()
    fail(text)

async def read_in_a_task(path: str) -> str:
    return read(path)

@trusted.host_function
def ask(depth: int) -> int: ...

def nested(depth: int) -> int:
    return ask(depth) + 1 if depth else 0

def read(path: str) -> str:
    with open(path) as file:
        return file.read()

def fail(text: str) -> None:
    print(text)
    raise ValueError(text)
"""


@pytest.fixture
def program(workplace: Path) -> Path:
    (workplace / "prog.py").write_text(PROGRAM)
    return workplace / "prog.py"


def test_one_trace_across_a_server(program, on_the_server):
    def ask(depth: int) -> int:
        return client.call("nested", depth - 1)

    with recording() as record:
        with adyton.load(program, functions=[ask], allow_call=["ask"]) as client:
            for _ in range(5):
                record.exporter.clear()
                with record.tracer.start_as_current_span("mine"):
                    assert client.call("nested", 2) == 2
                spans = record.spans()
                inner = ["CLIENT prog/nested", "SERVER prog/nested", "CLIENT host/ask", "SERVER host/ask"]
                assert chain(spans) == ["INTERNAL mine", *inner, *inner, *inner[:2]]
                assert len({span.context.trace_id for span in spans}) == 1
                inside(spans)
                # The enclave's own times are no copies of the client's.
                for call, entry in zip(record.spans("CLIENT")[::2], record.spans("SERVER")[::2], strict=True):
                    assert call.start_time < entry.start_time < entry.end_time < call.end_time
        hosts = record.values("adyton.client.host_calls")
        assert hosts[frozenset({"enclave": "prog", "kind": "call", "outcome": "ok"}.items())] == 10


def test_secrets_stay_out_of_all_that_is_exported(program, on_the_server, capfd):
    secrets = ["s3cr3t-argument", "s3cr3t-content", "s3cr3t-file", "s3cr3t-result"]
    (program.parent / f"{secrets[2]}.txt").write_text(secrets[1])

    def ask(depth: int) -> int:
        raise ValueError(secrets[3])

    with recording() as record:
        folder = str(program.parent)
        with adyton.load(program, functions=[ask], allow_call=["ask"], allow_read=[folder], token=None) as client:
            assert client.call("read", f"{secrets[2]}.txt") == secrets[1]
            for entry, argument in (("fail", secrets[0]), ("nested", 1), ("read", "/etc/s3cr3t-file")):
                with pytest.raises(EnclaveError):
                    client.call(entry, argument)
        said = record.everything()
    assert "prog/read" in said
    assert [secret for secret in (*secrets, folder) if secret in said] == []
    errors = capfd.readouterr().err
    assert [secret for secret in (secrets[0], secrets[1], secrets[3]) if secret in errors] == []


def place() -> str:
    found = trace.get_current_span().get_span_context()
    return f"{found.trace_id:032x}-{found.span_id:016x}"


def test_one_trace_of_tasks_and_their_threads_across_a_server(program, on_the_server):
    def ask(depth: int) -> int:
        return asyncio.run(client.acall("nested_in_a_thread", depth - 1))

    with recording() as record, adyton.load(program, functions=[ask], allow_call=["ask"]) as client:
        record.exporter.clear()
        with record.tracer.start_as_current_span("mine"):
            assert asyncio.run(client.acall("nested_in_a_thread", 2)) == 2
        entry = "prog/nested_in_a_thread"
        inner = [f"CLIENT {entry}", f"SERVER {entry}", "CLIENT host/ask", "SERVER host/ask"]
        assert chain(record.spans()) == ["INTERNAL mine", *inner, *inner, *inner[:2]]
        inside(record.spans())


@pytest.mark.parametrize("asynchronous", [True, False])
def test_host_calls_of_one_entrys_threads_at_the_same_time_are_all_below_it(program, on_the_server, asynchronous):
    all_there = threading.Barrier(3)

    def where() -> str:
        all_there.wait(60)
        return place()

    def call(name: str) -> list[str]:
        return asyncio.run(client.acall(name)) if asynchronous else client.call(name)

    with recording() as record, adyton.load(program, functions=[where], allow_call=["where"]) as client:
        record.exporter.clear()
        before, *asked, after = call("of_threads")
        spans = {f"{span.context.trace_id:032x}-{span.context.span_id:016x}": span for span in record.spans()}
        assert (before, spans[before].name) == (after, "prog/of_threads")
        assert len(spans) == 2 + 2 * len(set(asked)) == 8
        for each in asked:
            host = spans[f"{spans[each].parent.trace_id:032x}-{spans[each].parent.span_id:016x}"]
            assert (host.kind.name, host.parent.span_id) == ("CLIENT", spans[before].context.span_id)
        inside(record.spans())


@pytest.mark.parametrize("asynchronous", [True, False])
def test_host_calls_of_threads_that_carry_no_context_are_no_spans(program, on_the_server, asynchronous):
    """Neither threading.Thread nor a pool's have one by themselves; `asyncio.to_thread` has."""
    with recording() as record, adyton.load(program, functions=[where], allow_call=["where"]) as client:
        name, nowhere = "of_threads_without_a_context", f"{0:032x}-{0:016x}"
        assert (asyncio.run(client.acall(name)) if asynchronous else client.call(name)) == [nowhere, "{}", nowhere]
        assert [span for span in record.spans() if span.name.startswith("host/")] == []


def where() -> str:
    return place()


def test_secrets_of_tasks_stay_out_of_all_that_is_exported(program, on_the_server, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    secrets = ["s3cr3t-argument", "s3cr3t-content", "s3cr3t-file", "s3cr3t-raised"]
    (program.parent / f"{secrets[2]}.txt").write_text(secrets[1])

    def where() -> str:
        raise KeyError(secrets[3])

    with recording() as record:
        folder = str(program.parent)
        with adyton.load(program, functions=[where], allow_call=["where"], allow_read=[folder]) as client:
            assert asyncio.run(client.acall("read_in_a_task", f"{secrets[2]}.txt")) == secrets[1]
            for entry, argument in (
                ("fail_in_a_task", secrets[0]),
                ("fail", secrets[0]),
                ("read_in_a_task", f"/{secrets[2]}"),
            ):
                with pytest.raises(EnclaveError):
                    asyncio.run(client.acall(entry, argument))
        said = record.everything() + caplog.text
    assert "prog/read_in_a_task" in said
    assert [secret for secret in (*secrets, folder) if secret in said] == []
    errors = capfd.readouterr().err
    assert [secret for secret in (secrets[0], secrets[1], secrets[3]) if secret in errors] == []


# -- the program's own OpenTelemetry --------------------------------------------------------------------------------------

OWN = """
# /// script
# dependencies = ["opentelemetry-api==1.45.2"]
# ///
import adyton.trusted as trusted
from opentelemetry import trace

@trusted.host_function
def ask(depth: int) -> int: ...

def _here() -> str:
    found = trace.get_current_span().get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"

def here() -> list[str]:
    return [_here(), trusted.trace_context()["traceparent"]]

async def here_in_a_task() -> list[str]:
    return here()

def nested(depth: int) -> list[str]:
    before = _here()
    if depth:
        ask(depth)
    return [before, _here()]

def ask_from(span: str) -> int:
    place = trace.SpanContext(trace.get_current_span().get_span_context().trace_id, int(span, 16), is_remote=False)
    with trace.use_span(trace.NonRecordingSpan(place)):
        return ask(0)
"""


def test_a_program_with_opentelemetry_finds_its_entry_as_the_current_span(workplace, published_wheels, on_the_server):
    (workplace / "prog.py").write_text(OWN)
    nested = []

    def ask(depth: int) -> int:
        if depth:
            nested.append(client.call("nested", depth - 1))
        return 0

    with recording() as record, adyton.load("prog.py", functions=[ask], allow_call=["ask"]) as client:
        for entry in ("here", "here_in_a_task", "here_in_a_task"):
            record.exporter.clear()
            said = client.call(entry)
            entered = record.span(f"prog/{entry}", "SERVER").context
            assert said == [f"00-{entered.trace_id:032x}-{entered.span_id:016x}-{entered.trace_flags:02x}"] * 2
        record.exporter.clear()
        for entry in ("here", "here_in_a_task"):
            said = asyncio.run(client.acall(entry))
            entered = record.span(f"prog/{entry}", "SERVER").context
            assert said == [f"00-{entered.trace_id:032x}-{entered.span_id:016x}-{entered.trace_flags:02x}"] * 2
        record.exporter.clear()
        outer = client.call("nested", 1)
        assert outer[0] == outer[1]
        first, second = (span.context for span in record.spans("SERVER") if span.name == "prog/nested")
        assert f"{first.span_id:016x}" in outer[0]
        assert f"{second.span_id:016x}" in nested[0][0]
        client.call("ask_from", "00f067aa0ba902b7")
        assert record.spans()[-4].name == "prog/ask_from"
        assert record.spans("CLIENT")[-1].parent.span_id == 0x00F067AA0BA902B7


# -- a collector ----------------------------------------------------------------------------------------------------------


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(self, request, context):
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self) -> None:
        self.requests: list[metrics_service_pb2.ExportMetricsServiceRequest] = []

    def Export(self, request, context):
        self.requests.append(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, _Traces, _Metrics]]:
    """What stands for an OpenTelemetry collector: its endpoint, and what it received."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    traces, metrics = _Traces(), _Metrics()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(traces, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(metrics, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}", traces, metrics
    finally:
        server.stop(0).wait()


def test_adyton_call_exports_with_nothing_but_variables_set(program, server):
    (program.parent / "data.txt").write_text("s3cr3t-content")
    with collector() as (endpoint, traces, metrics):
        done = command(
            *("call", "prog.py", "read", "data.txt", "--allow-read", "data.txt", "--on", server, "--allow-sim"),
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_SERVICE_NAME="payer",
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == "s3cr3t-content"
    resources = [each for request in traces.requests for each in request.resource_spans]
    assert {
        (attribute.key, attribute.value.string_value) for each in resources for attribute in each.resource.attributes
    } >= {("service.name", "payer"), ("deployment.environment.name", "test")}
    spans = {(span.name, span.kind): span for each in resources for scope in each.scope_spans for span in scope.spans}
    call, entry = spans["prog/read", 3], spans["prog/read", 2]  # SPAN_KIND_CLIENT, SPAN_KIND_SERVER
    assert entry.parent_span_id == call.span_id
    assert entry.trace_id == call.trace_id
    assert {"adyton.load", "adyton.provision", "adyton.attest", "adyton.initialize"} <= {name for name, _ in spans}
    names = {
        metric.name
        for request in metrics.requests
        for each in request.resource_metrics
        for scope in each.scope_metrics
        for metric in scope.metrics
    }
    assert {"adyton.client.calls", "adyton.client.call.duration", "adyton.client.host_calls"} <= names
    assert {"adyton.client.bytes_sent", "adyton.client.bytes_received", "adyton.client.calls_in_flight"} <= names
    said = str([traces.requests, metrics.requests])
    assert [secret for secret in ("s3cr3t-content", "data.txt", os.fspath(program.parent)) if secret in said] == []


def test_a_collector_that_is_not_there_fails_no_call(program, server):
    done = command(
        *("call", "prog.py", "nested", "0", "--on", server, "--allow-sim"),
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        OTEL_EXPORTER_OTLP_TIMEOUT="0.2",
    )
    assert (done.returncode, done.stdout) == (0, "0\n")
    assert "Traceback" not in done.stderr
