"""Telemetry of calls that tasks make: any number at once, each with its own spans, each counted once, however it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from recorded import Recorder, chain, parents, recording
from target_tracing import inside

import adyton
from adyton import FakeEnclaveLoader
from adyton.communicator.messages import decode, encode
from adyton.communicator.session import Called
from adyton.communicator.tracing import Moment, Told, Traced
from adyton.config import Policy
from adyton.errors import AdytonError, ClosedError, DeadlineError, EnclaveError, ResourceLimitError, UnknownEntryError
from adyton.hostcall import abi
from adyton.manager import LoadOrder
from adyton.proto.enclave import EnclaveLoadConfig
from adyton.remote import unpaired
from adyton.telemetry.calls import Telemetry
from adyton.telemetry.providers import Providers
from adyton.trusted import Enclave, host_function, trace_context

# A link that a thread of the enclave made for itself is freed with the enclave, which in this process is garbage in cycles.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

MANY = 60
SECRETS = ("s3cr3t-argument", "s3cr3t-raised", "s3cr3t-answer", "s3cr3t-item")
WAITS = ("for_ever", "block")

app = Enclave("app")
let_go = threading.Event()
started = threading.Event()
_rounds: dict[str, tuple[list[int], asyncio.Event]] = {}


@host_function
def where() -> str: ...


@host_function
def again(depth: int) -> int: ...


async def _together(count: int) -> None:
    """Once so many are here."""
    here, all_here = _rounds.setdefault("together", ([], asyncio.Event()))
    here.append(1)
    if len(here) == count:
        all_here.set()
    await all_here.wait()


@app.entry
def nested(depth: int) -> int:
    return again(depth) + 1 if depth else 0


@app.entry
async def nested_task(depth: int) -> int:
    return again(depth) + 1 if depth else 0


@app.entry
def of_a_thread(count: int) -> list[str]:
    return [_here(), where(), _here()]


@app.entry
async def of_a_task(count: int) -> list[str]:
    before = _here()
    await _together(count)
    return [before, where(), _here()]


@app.entry
async def ask() -> str:
    return where()


@app.entry
async def for_ever() -> None:
    started.set()
    await asyncio.Event().wait()


@app.entry
def block() -> None:
    started.set()
    let_go.wait(100)


@app.entry
def fail(text: str) -> str:
    raise ValueError(text + where())


@app.entry
async def fail_in_a_task(text: str) -> str:
    return fail(text)


@app.entry
def each(words: Iterator[str]) -> Iterator[str]:
    for word in words:
        yield word + where()


def _here() -> str:
    return trace_context().get("traceparent", "").partition("-")[2][:49]


def current() -> str:
    found = trace.get_current_span().get_span_context()
    return f"{found.trace_id:032x}-{found.span_id:016x}"


def loaded(**functions) -> adyton.EnclaveClient:
    functions = functions or {"where": current}
    policy = Policy.read(None).extended(call=list(functions))
    return FakeEnclaveLoader(app).load(LoadOrder("app", EnclaveLoadConfig(name="app"), None, policy, functions))


@pytest.fixture(autouse=True)
def afresh():
    let_go.clear()
    started.clear()
    _rounds.clear()
    yield
    let_go.set()


@pytest.fixture
def record() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


def outcomes(record: Recorder) -> dict[tuple[str, str], int]:
    """How often each entry ended how, but for finalize; those of the histogram are the same, and none is under way."""
    counted = record.values("adyton.client.calls")
    assert record.values("adyton.client.call.duration") == counted
    assert list(record.values("adyton.client.calls_in_flight").values()) == [0]
    found = {(dict(key)["entry"], dict(key)["outcome"]): count for key, count in counted.items()}
    return {key: count for key, count in found.items() if key[0] != "finalize"}


# -- one trace ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("entry", "depth"), [("nested", 3), ("nested_task", 1)])
def test_one_trace_from_a_tasks_call_through_the_entry_to_what_it_calls_back(record, entry, depth):
    def again(depth: int) -> int:
        return client.call(entry, depth - 1) if depth % 2 else asyncio.run(client.acall(entry, depth - 1))

    client = loaded(again=again)
    with record.tracer.start_as_current_span("mine"):
        assert asyncio.run(client.acall(entry, depth)) == depth
    client.close()
    spans = [span for span in record.spans() if span.name in ("mine", f"app/{entry}", "host/again")]
    inner = [f"CLIENT app/{entry}", f"SERVER app/{entry}", "CLIENT host/again", "SERVER host/again"]
    assert chain(spans) == ["INTERNAL mine", *inner * depth, *inner[:2]]
    assert len({span.context.trace_id for span in spans}) == 1
    inside(spans)


@pytest.mark.parametrize("entry", ["of_a_thread", "of_a_task"])
def test_of_many_calls_at_once_each_has_its_own_spans_and_knows_them(record, entry):
    """What the enclave says of its place, and the functions of theirs, is compared with the spans that were exported."""
    client, said = loaded(), {}

    async def call(number: int) -> None:
        with record.tracer.start_as_current_span(f"mine {number}"):
            said[number] = await client.acall(entry, MANY)

    async def main() -> None:
        await asyncio.gather(*map(call, range(MANY)))

    asyncio.run(main())
    client.close()
    spans = {f"{span.context.trace_id:032x}-{span.context.span_id:016x}": span for span in record.spans()}
    above = {
        place: f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" for place, span in spans.items() if span.parent
    }
    for number in range(MANY):
        before, *asked, after = said[number]
        assert before == after
        assert (spans[before].name, spans[before].kind.name) == (f"app/{entry}", "SERVER")
        call_span = above[before]
        assert (spans[call_span].name, spans[call_span].kind.name) == (f"app/{entry}", "CLIENT")
        assert spans[above[call_span]].name == f"mine {number}"
        assert len(set(asked)) == len(asked) > 0
        for place in asked:
            assert (spans[place].name, spans[place].kind.name) == ("host/where", "SERVER")
            assert (spans[above[place]].name, spans[above[place]].kind.name) == ("host/where", "CLIENT")
            assert above[above[place]] == before
    inside(list(spans.values()))
    assert all("adyton.unfinished" not in span.attributes for span in spans.values())
    assert outcomes(record) == {(entry, "ok"): MANY}


def test_calls_that_wait_for_others_to_end_are_below_what_they_were_made_in(record, monkeypatch):
    monkeypatch.setattr(unpaired, "MOST_CALLS", 2)
    client, said = loaded(), {}

    async def call(number: int) -> None:
        with record.tracer.start_as_current_span(f"mine {number}"):
            said[number] = await client.acall("ask")

    async def main() -> None:
        await asyncio.gather(*map(call, range(8)))

    asyncio.run(main())
    client.close()
    mine = {span.context.trace_id: span.name for span in record.spans() if span.name.startswith("mine")}
    assert {number: mine[int(place[:32], 16)] for number, place in said.items()} == {n: f"mine {n}" for n in range(8)}


def test_a_call_that_is_not_sampled_costs_no_account_and_goes_on_in_the_enclave(monkeypatch):
    told = []
    with recording(ALWAYS_OFF) as record:
        client = loaded()
        monkeypatch.setattr(type(client._core.proxy.telemetry), "told", lambda _, body: told.append(body))
        said = asyncio.run(client.acall("of_a_task", 1))
        client.close()
        assert len(said[0]) == 49
        assert outcomes(record) == {("of_a_task", "ok"): 1}
        assert record.spans() == []
    assert told == []


def test_an_async_entry_runs_in_the_context_of_its_own_call_and_not_of_its_threads_first():
    """Its caller's time, too, is its own."""
    client = loaded()
    until = time.monotonic() + 0.3
    client.options(timeout=0.3).call("ask")
    while time.monotonic() < until:
        client.call("ask")
    assert client.call("ask") == f"{0:032x}-{0:016x}"
    client.close()


# -- each is counted once -------------------------------------------------------------------------------------------------


def test_calls_that_fail_are_counted_once_with_their_kind(record):
    def where() -> str:
        raise KeyError(SECRETS[1])

    client = loaded(where=where)

    async def main() -> None:
        for entry, argument, kind in (
            ("fail", SECRETS[0], EnclaveError),
            ("fail_in_a_task", SECRETS[0], EnclaveError),
            ("fail", 1, AdytonError),
            (SECRETS[2], "", UnknownEntryError),
        ):
            with pytest.raises(kind):
                await client.acall(entry, argument)

    asyncio.run(main())
    client.close()
    assert outcomes(record) == {
        ("fail", "EnclaveError"): 1,
        ("fail_in_a_task", "EnclaveError"): 1,
        ("fail", "EnclaveTypeError"): 1,
        ("unknown", "UnknownEntryError"): 1,
    }
    inside(record.spans())


@pytest.mark.parametrize("entry", WAITS)
def test_a_call_that_is_cancelled_or_late_or_lost_is_counted_once(record, entry):
    client, others = loaded(), loaded()

    async def begun(task: asyncio.Task[None]) -> asyncio.Task[None]:
        await asyncio.to_thread(started.wait, 60)
        started.clear()
        return task

    async def main() -> None:
        task = await begun(asyncio.create_task(client.acall(entry)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(DeadlineError):
            await client.options(timeout=0.05).acall(entry)
        task = await begun(asyncio.create_task(others.acall(entry)))
        others._core.proxy.abort()
        with pytest.raises(ClosedError):
            await task
        let_go.set()

    asyncio.run(main())
    client.close()
    with pytest.raises(ClosedError):
        others.close()
    ended = outcomes(record)
    assert ended == {(entry, "CancelledError"): 1, (entry, "DeadlineError"): 1, (entry, "ClosedError"): 1}
    spans = [span for span in record.spans("CLIENT") if span.name == f"app/{entry}"]
    assert [span.attributes["error.type"] for span in spans] == ["CancelledError", "DeadlineError", "ClosedError"]
    inside(record.spans())


def test_a_task_that_is_let_go_of_with_its_loop_is_counted_and_leaves_nothing_current(record, caplog):
    client = loaded()
    loop = asyncio.new_event_loop()
    task = loop.create_task(client.acall("for_ever"))
    loop.run_until_complete(loop.run_in_executor(None, started.wait, 60))
    task.get_coro().close()  # as who collects garbage does, in another context
    task._log_destroy_pending = False
    del task
    gc.collect()
    assert not trace.get_current_span().get_span_context().is_valid
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    client._core.proxy.abort()  # nobody has cancelled that call
    with pytest.raises(ClosedError):
        client.close()
    assert outcomes(record) == {("for_ever", "GeneratorExit"): 1}
    assert [each for each in caplog.records if "context" in each.getMessage()] == []


def test_bytes_are_those_that_the_client_counts(record):
    client = loaded()
    with pytest.raises(EnclaveError):
        asyncio.run(client.acall("fail", "a" * 3000))
    client.close()
    stats = client.stats()
    for name in ("bytes_sent", "bytes_received"):
        assert list(record.values(f"adyton.client.{name}").values()) == [stats[name]]
        assert stats[name] > 3000


def test_a_connection_that_is_made_again_is_an_event_of_all_calls_under_way(record):
    client: adyton.EnclaveClient

    def where() -> str:
        client._core.proxy.telemetry.reconnected()
        return current()

    client = loaded(where=where)
    asyncio.run(client.acall("ask"))
    client.close()
    assert [event.name for event in record.span("app/ask", "CLIENT").events] == ["reconnected"]


# -- what is never in it --------------------------------------------------------------------------------------------------


def test_nothing_that_tasks_carry_is_in_spans_metrics_or_logs(record, caplog):
    caplog.set_level(logging.DEBUG)

    def where() -> str:
        if fails:
            raise ValueError(SECRETS[1])
        return SECRETS[2]

    fails: list[int] = []
    client = loaded(where=where)

    async def words():
        yield SECRETS[3]

    async def main() -> None:
        assert await client.acall("ask") == SECRETS[2]
        assert [item async for item in await client.acall("each", words())] == [SECRETS[3] + SECRETS[2]]
        fails.append(1)
        for entry in ("fail", "fail_in_a_task"):
            with pytest.raises(EnclaveError, match=SECRETS[1]):
                await client.acall(entry, SECRETS[0])

    asyncio.run(main())
    client.close()
    said = record.everything() + caplog.text
    assert "app/fail_in_a_task" in said
    assert [secret for secret in SECRETS if secret in said] == []


# -- what the client does of it -------------------------------------------------------------------------------------------


class _Session:
    def __init__(self, error: AdytonError | None = None) -> None:
        self.error = error
        self.sent: list[Traced | str] = []
        self.next_call = 1

    def notify(self, method: str, body: bytes) -> None:
        self.sent.append(decode(body, Traced))

    def call(self, pair: int, method: str, body: bytes, bulk: object) -> int:
        self.sent.append(method)
        if self.error is not None:
            raise self.error
        self.next_call += 1
        return self.next_call - 1


def telemetry_of(record: Recorder) -> Telemetry:
    return Telemetry("app", ["lookup"], Providers(trace.get_tracer_provider(), NoOpMeterProvider()))


def test_a_context_comes_before_its_call_and_is_taken_back_if_that_cannot_be_made(record):
    telemetry, session = telemetry_of(record), _Session()
    with telemetry.calling("entry"):
        telemetry.send(session, 0, "enter", b"", ())
    told, method = session.sent
    assert (told.call, told.tell, method) == (1, True, "enter")
    full = _Session(ResourceLimitError("full"))
    with pytest.raises(ResourceLimitError), telemetry.calling("entry"):
        telemetry.send(full, 0, "enter", b"", ())
    assert full.sent[2] == Traced(1, None, tell=False)
    assert full.sent[0].context is not None


@pytest.mark.parametrize(
    ("moments", "pair", "shown"),
    [
        ([Moment("asked", 1, "", 9)], 0, True),
        ([Moment("asked", 1, "", 9)], 3, False),
        ([Moment("asked", 1, "", 8)], 0, False),
        ([Moment("asked", 1, "", 9), Moment("answered", 1, "", 9)], 0, False),
        ([Moment("asked", 1, "", 9), Moment("returned", 1)], 0, False),
    ],
    ids=["asked", "on-a-pair", "another", "not-made", "returned"],
)
def test_a_host_call_without_a_pair_is_of_the_call_that_told_of_its_number(record, moments, pair, shown):
    telemetry, session = telemetry_of(record), _Session()
    with telemetry.calling("entry"):
        call = telemetry.send(session, 0, "enter", b"", ())
        telemetry.told(encode(Told(call, [Moment("entered", 0), *moments])))
        telemetry.serving(Called(9, pair, "function", b""), abi.Call("lookup", b""), lambda _: None)
    assert ("SERVER", "host/lookup", "CLIENT") in parents(record.spans()) or not shown
    assert len(record.spans()) == 2 + 2 * shown


def test_off_means_that_a_tasks_call_does_nothing_of_it():
    client = loaded()
    seen: set[str] = set()
    sys.setprofile(lambda frame, _event, _argument: seen.add(frame.f_code.co_filename))
    try:
        asyncio.run(client.acall("ask"))
    finally:
        sys.setprofile(None)
    client.close()
    assert any("adyton/remote/unpaired" in name for name in seen)
    assert [name for name in seen if "/adyton/telemetry/" in name or "/opentelemetry/sdk" in name] == []
