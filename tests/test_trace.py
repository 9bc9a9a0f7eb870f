"""--trace: what is in the file, by the rules of the Chrome trace format; whatever an enclave says of its own times."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import adyton
from adyton.cli.root import run
from adyton.communicator.messages import Counts, Wait
from adyton.errors import UsageError
from adyton.remote import trace as tracing
from adyton.remote.trace import Trace

PROGRAM = """
import adyton.trusted as trusted

@trusted.host_function
def ask(depth: int) -> int: ...

def nested(depth: int) -> int:
    return ask(depth) + 1 if depth else 0

def read(path: str) -> int:
    with open(path, "rb") as file:
        return len(file.read())
"""
CLIENT, ENCLAVE = 1, 2
STEP = 1e-3  # microseconds: the resolution of what is written


def checked(path: str | Path) -> list[dict[str, Any]]:
    """The events of a file, which keeps the format's rules: slices of one track lie one after the other or in one another."""
    events: list[dict[str, Any]] = json.loads(Path(path).read_bytes())
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = {}
    named = set()
    for event in events:
        assert {"ph", "name", "pid", "tid", "args"} <= set(event)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert event["args"]["name"]
            named.add((event["name"], event["pid"], event["tid"]))
            continue
        if event["ph"] == "i":
            assert (event["s"], event["cat"], event["name"], event["tid"]) == ("p", "statistics", "closed", 0)
            assert ("process_name", event["pid"], 0) in named
            continue
        assert event["ph"] == "X"
        assert event["cat"] in ("entry", "host call", "wait")
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        assert ("process_name", event["pid"], 0) in named
        assert ("thread_name", event["pid"], event["tid"]) in named
        tracks.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    for slices in tracks.values():
        around: list[float] = []
        for start, end in sorted(slices, key=lambda each: (each[0], -each[1])):
            while around and around[-1] <= start + STEP:
                around.pop()
            assert not around or end <= around[-1] + STEP, (start, end, around)
            around.append(end)
    return events


def of(events: list[dict[str, Any]], category: str) -> list[dict[str, Any]]:
    return [event for event in events if event.get("cat") == category]


def statistics(path: str | Path) -> list[dict[str, Any]]:
    """What is said of each enclave when it is closed."""
    return [event["args"] for event in of(checked(path), "statistics")]


class Clock:
    def __init__(self) -> None:
        self.now = 500.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("ahead", [-400.0, 0.0, 9e6])
def test_waits_lie_where_they_were_though_the_enclaves_clock_is_another(tmp_path, ahead):
    clock = Clock()
    trace = Trace(str(tmp_path / "t"), "name", clock)
    trace.entered(1)
    sent = clock.now
    enclave = sent + 0.05 + ahead  # it takes 50 ms each way
    waits = [Wait(round((enclave + each) * 1e9), 100_000_000, "Read") for each in (0.01, 0.2)]
    clock.now += 0.05 + 0.4 + 0.05
    trace.counted(Counts(2, 0, 0, 0, 1, round(enclave * 1e9), round((enclave + 0.4) * 1e9), 0, waits))
    trace.returned(1, "read")
    trace.close({"entry_calls": 1})
    events = checked(tmp_path / "t")
    assert [(event["ts"], event["dur"]) for event in of(events, "wait")] == [
        (pytest.approx(60_000, abs=1), pytest.approx(100_000, abs=1)),
        (pytest.approx(250_000, abs=1), pytest.approx(100_000, abs=1)),
    ]
    assert [(event["name"], event["ts"], event["dur"]) for event in of(events, "entry")] == [("read", 0, 500_000)]


numbers = st.integers(0, (1 << 63) - 1) | st.integers(0, 1 << 40)
waits = st.lists(st.builds(Wait, numbers, numbers, st.text(max_size=32)), max_size=5)
said = st.builds(Counts, numbers, numbers, numbers, numbers, st.integers(0, 4), numbers, numbers, numbers, waits)


@given(st.lists(said, max_size=10))
def test_whatever_an_enclave_says_of_its_times_the_file_keeps_the_rules(tmp_path_factory, says):
    path = tmp_path_factory.getbasetemp() / "any.json"
    clock = Clock()
    trace = Trace(str(path), "\ud800\0\x1b", clock)
    trace.entered(1)
    for counts in says:
        clock.now += 0.01
        trace.counted(counts)
    trace.returned(1, "entry")
    trace.close({})
    for event in of(checked(path), "wait"):
        assert event["pid"] == ENCLAVE
        assert event["ts"] + event["dur"] <= 0.01 * len(says) * 1e6 + STEP


def test_a_trace_has_an_end_however_long_the_enclave_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "MAX_EVENTS", 10)
    clock = Clock()
    trace = Trace(str(tmp_path / "t"), "name", clock)
    for _ in range(20):
        trace.note("stat", "ok", clock.now, 0)
    trace.close({})
    trace.close({})
    assert len(checked(tmp_path / "t")) == 10 + 1
    assert [each["events_left_out"] for each in statistics(tmp_path / "t")] == [14]


def test_the_trace_of_a_client_that_is_killed_has_what_happened_until_then(tmp_path):
    clock = Clock()
    trace = Trace(str(tmp_path / "t"), "name", clock)
    trace.note("stat", "ok", clock.now, 0)
    trace.note("read", "ok", clock.now, 1)
    until_then = (tmp_path / "t").read_bytes()  # in the format's array form, which needs no end
    trace.close({})
    assert [event["name"] for event in of(json.loads(until_then + b"]"), "host call")] == ["stat", "read"]
    assert [event["name"] for event in of(checked(tmp_path / "t"), "host call")] == ["stat", "read"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\xfc \u4e2d \U0001f600", "\xfc \u4e2d \U0001f600"),
        ('say "so"', 'say "so"'),
        ("\\", "?"),
        ('\\"\\\\u0041 \\', '?"??u0041 ?'),
        ("\ud800 \udfff", "? ?"),
        ("a\nb\0\x1b", "a?b??"),
    ],
)
def test_names_are_such_that_perfetto_opens_the_file_and_shows_them(tmp_path, name, shown):
    """Of escapes it decodes that of a quotation mark only, and some have it refuse the whole file."""
    clock = Clock()
    trace = Trace(str(tmp_path / "t"), name, clock)
    trace.note(name, "ok", clock.now, 0)
    trace.close({"host_calls": {name: 1}})
    assert b"\\" not in (tmp_path / "t").read_bytes().replace(b'\\"', b"")
    events = checked(tmp_path / "t")
    assert events[0]["args"]["name"] == f"client of {shown}"
    assert [event["name"] for event in of(events, "host call")] == [shown]
    assert [each["host_calls"] for each in statistics(tmp_path / "t")] == [{shown: 1}]


def test_a_disk_that_is_full_ends_the_trace_and_is_told_at_its_end():
    clock = Clock()
    trace = Trace("/dev/full", "name", clock)
    trace.note("stat", "ok", clock.now, 0)
    with pytest.raises(OSError, match="No space left on device"):
        trace.close({})
    trace.close({})


def test_enclaves_that_are_traced_into_one_file_are_processes_of_it(tmp_path):
    first, second = (Trace(str(tmp_path / "t"), name, Clock()) for name in ("first", "second"))
    for trace in (first, second):
        trace.note("stat", "ok", 500.0, 0)
    first.close({"seconds": 1})
    first.close({})
    second.note("read", "ok", 500.0, 7)
    second.close({"seconds": 2})
    second.note("late", "ok", 500.0, 0)
    events = checked(tmp_path / "t")
    assert [(event["pid"], event["name"]) for event in of(events, "host call")] == [
        (1, "stat"),
        (3, "stat"),
        (3, "read"),
    ]
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names == ["client of first", "enclave first", "client of second", "enclave second"]
    assert [(each["name"], each["seconds"]) for each in statistics(tmp_path / "t")] == [("first", 1), ("second", 2)]
    Trace(str(tmp_path / "t"), "later", Clock()).close({})
    assert of(checked(tmp_path / "t"), "host call") == []


@pytest.fixture
def program(workplace) -> str:
    Path("prog.py").write_text(PROGRAM)
    Path("secret-name.txt").write_bytes(b"x" * 1000)
    return "prog.py"


@pytest.mark.sandbox
def test_entries_host_calls_and_waits_of_an_enclave(program, on_the_server):
    def ask(depth: int) -> int:
        return int(client.call("nested", depth - 1))

    arguments = {"allow_read": ["secret-name.txt"], "allow_call": ["ask"], "functions": [ask]}
    with adyton.load(program, trace="t.json", stats="s.json", **arguments) as client:
        assert client.call("nested", 2) == 2
        assert client.submit("read", "secret-name.txt").result() == 1000
        with pytest.raises(PermissionError):
            client.call("read", "prog.py")
    events = checked("t.json")
    stats = json.loads(Path("s.json").read_text())
    assert "secret" not in Path("t.json").read_text()
    entries = [event["name"] for event in of(events, "entry")]
    assert sorted(entries) == ["finalize", "load", "nested", "nested", "nested", "read", "read"]
    calls = of(events, "host call")
    assert len(calls) == sum(stats["host_calls"].values())
    assert max(event["args"]["bytes"] for event in calls) == 1000
    assert {event["args"]["outcome"] for event in calls} == {"ok", "denied"}
    assert [event["name"] for event in calls if event["args"]["outcome"] == "denied"] == ["access"]
    own = next(event["tid"] for event in of(events, "entry") if event["name"] == "nested")
    assert {event["tid"] for event in calls if event["name"] == "call ask()"} == {own}
    waits = of(events, "wait")
    assert {event["pid"] for event in waits} == {ENCLAVE}
    assert {event["pid"] for event in calls} == {CLIENT}
    first = min(event["ts"] for event in of(events, "entry") if event["name"] != "load")
    assert [event for event in waits if event["ts"] > first]
    assert stats["round_trips"] > 0
    (told,) = statistics("t.json")
    assert (told["name"], told["waits_left_out"]) == ("prog", 0)
    assert {**told, **stats} == told


@pytest.mark.sandbox
def test_a_nested_entry_is_what_its_host_call_got_so_that_both_halves_are_round_trips(program, on_the_server):
    def ask(depth: int) -> int:
        return int(client.call("nested", depth - 1))

    with adyton.load(program, allow_call=["ask"], functions=[ask]) as client:
        before = client.stats()["round_trips"]
        assert client.call("nested", 0) == 0
        assert client.stats()["round_trips"] == before
        assert client.call("nested", 3) == 3
        assert client.stats()["round_trips"] == before + 6


@pytest.mark.sandbox
def test_the_last_line_of_a_verbose_call_says_what_it_has_cost(program, capfd):
    arguments = ["call", program, "read", "secret-name.txt", "--allow-read", "secret-name.txt", "-v"]
    with pytest.raises(SystemExit) as ended:
        run([*arguments, "--trace", "t.json"])
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (0, "1000\n")
    number = r"\d+\.\d\d s"
    line = rf"adyton: \d+ round trips, {number} waiting of {number}, \d+ of \d+ requests from cache"
    assert re.fullmatch(line, err.splitlines()[-1])
    assert of(checked("t.json"), "entry")


@pytest.mark.sandbox
def test_the_environment_asks_for_a_trace_too(program, monkeypatch):
    monkeypatch.setenv("ADYTON_TRACE", "t.json")
    with adyton.load(program, allow_read=["secret-name.txt"]) as client:
        client.call("read", "secret-name.txt")
    assert of(checked("t.json"), "wait")


def test_a_trace_that_cannot_be_written_is_said_before_anything_starts(program, capfd):
    with pytest.raises(UsageError, match=r"--trace missing/t\.json: no file can be written there"):
        adyton.load(program, trace="missing/t.json")
    assert capfd.readouterr() == ("", "")
