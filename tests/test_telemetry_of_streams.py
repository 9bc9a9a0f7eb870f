"""Telemetry of calls with streams: one call until the stream's end, however that comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from recorded import Recorder, parents, recording
from target_tracing import inside

import adyton
from adyton import FakeEnclaveLoader
from adyton.config import Policy
from adyton.manager import LoadOrder
from adyton.proto.enclave import EnclaveLoadConfig
from adyton.trusted import Enclave, host_function

app = Enclave("app")
SECRET = "hunter2"


@host_function
def lookup(word: str) -> str: ...


@app.entry
def each(count: int) -> Iterator[str]:
    for _ in range(count):
        yield lookup("a")


@app.entry
def letters(count: int) -> Iterator[str]:
    yield from "a" * count


@app.entry
def count_of(words: Iterator[str]) -> int:
    return len([lookup(word) for word in words])


def loaded(lookup=lambda word: word) -> adyton.EnclaveClient:
    policy = Policy.read(None).extended(call=["lookup"])
    order = LoadOrder("app", EnclaveLoadConfig(name="app"), None, policy, {"lookup": lookup})
    return FakeEnclaveLoader(app).load(order)


@pytest.fixture
def record() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_of_results_is_a_call_until_it_ends(record, asynchronous):
    client = loaded()

    async def read() -> list[str]:
        return [item async for item in await client.acall("each", 2)]

    with record.tracer.start_as_current_span("outer"):
        assert (asyncio.run(read()) if asynchronous else list(client.call("each", 2))) == ["a", "a"]
    client.close()
    spans = [span for span in record.of_calls() if span.name != "app/finalize"]
    assert sorted(span.name for span in spans) == ["app/each"] * 2 + ["host/lookup"] * 4
    found = parents(record.spans())
    assert ("CLIENT", "app/each", "INTERNAL") in found
    assert ("SERVER", "app/each", "CLIENT") in found
    assert found.count(("CLIENT", "host/lookup", "SERVER")) == found.count(("SERVER", "host/lookup", "CLIENT")) == 2
    inside(spans)
    each = frozenset({"enclave": "app", "entry": "each", "outcome": "ok"}.items())
    assert record.values("adyton.client.calls")[each] == 1
    assert record.values("adyton.client.call.duration")[each] == 1


def test_a_call_with_a_stream_of_an_argument_is_one(record):
    client = loaded()
    assert client.submit("count_of", iter("ab")).result() == 2
    client.close()
    names = sorted(span.name for span in record.of_calls())
    assert names == ["app/count_of"] * 2 + ["app/finalize"] * 2 + ["host/lookup"] * 4
    shown = frozenset({"enclave": "app", "entry": "count_of", "outcome": "ok"}.items())
    assert record.values("adyton.client.calls")[shown] == 1


@pytest.mark.parametrize("how", ["raises", "late", "closed", "let go of", "lost"])
def test_a_stream_that_does_not_come_to_its_end_is_over_all_the_same(record, how):
    def lookup(word: str) -> str:
        if how == "raises":
            raise ValueError(SECRET)
        if how == "late":
            threading.Event().wait(0.5)
        return word

    client = loaded(lookup=lookup)
    stream = client.options(timeout=0.2 if how == "late" else None).call("each", 10_000)
    outcome = {"raises": "EnclaveError", "late": "DeadlineError", "lost": "ClosedError"}.get(how, "ok")
    if how in ("raises", "late"):
        with pytest.raises(adyton.AdytonError):
            list(stream)
    elif how == "closed":
        next(stream)
        stream.close()
    elif how == "lost":
        client.close()
    del stream
    for _ in range(1000):  # what is let go of is noticed by another thread
        if not any(record.values("adyton.client.calls_in_flight").values()):
            break
        threading.Event().wait(0.01)
    client.close()
    outcomes = {dict(key)["outcome"] for key in record.values("adyton.client.calls") if dict(key)["entry"] == "each"}
    assert outcomes == {outcome}
    assert list(record.values("adyton.client.calls_in_flight").values()) == [0]
    assert SECRET not in record.everything()


@pytest.mark.parametrize("outcome", ["ok", "ClosedError"])
def test_a_stream_that_is_let_go_of_when_all_of_it_is_there_is_over(record, outcome):
    client = loaded()
    stream = client.call("letters", 3)
    assert next(stream) == "a"
    while client._core.proxy.results._open:
        threading.Event().wait(0.001)
    if outcome == "ClosedError":
        client.close()
    del stream
    while record.values("adyton.client.calls_in_flight") != {frozenset({("enclave", "app")}): 0}:
        threading.Event().wait(0.01)
    client.close()
    outcomes = {dict(key)["outcome"] for key in record.values("adyton.client.calls") if dict(key)["entry"] == "letters"}
    assert outcomes == {outcome}
