"""What the supervisor tells of traced calls, and what it takes of contexts, by a clock that is moved by hand."""

from __future__ import annotations

import pytest

from adyton.communicator.messages import decode, encode
from adyton.communicator.tracing import MAX_MOMENTS, Moment, Told, TraceContext, Traced
from adyton.errors import RemoteProtocolError
from adyton.runtime.process.guest import link
from adyton.runtime.process.supervisor.spans import MAX_EXPECTED, Spans

TRACE, SENT, OWN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"
CONTEXT = TraceContext(f"00-{TRACE}-{SENT}-01", "a=b")


class Enclave:
    def __init__(self) -> None:
        self.now = 1000
        self.told: list[Told] = []
        self.spans = Spans(self._notify, lambda: self.now)

    def _notify(self, method: str, body: bytes) -> None:
        assert method == "spans"
        self.told.append(decode(body, Told))

    def expect(self, call: int, *, tell: bool = True, context: TraceContext | None = CONTEXT) -> None:
        self.spans.expect(encode(Traced(call, context, tell)))

    def after(self, nanoseconds: int) -> Spans:
        self.now += nanoseconds
        return self.spans


@pytest.fixture
def enclave() -> Enclave:
    return Enclave()


def test_an_entry_is_told_in_one_account_before_its_reply(enclave):
    enclave.expect(1)
    assert enclave.after(10).entered(1) == CONTEXT
    assert enclave.told == []
    enclave.after(5).returned(1)
    assert enclave.told == [Told(1, [Moment("entered", 10), Moment("returned", 15)])]


def test_a_host_call_is_preceded_by_what_came_before_it(enclave):
    enclave.expect(1)
    enclave.after(10).entered(1)
    enclave.after(10).asked(1, 5, "")
    enclave.after(10).answered(5)
    enclave.after(10).asked(1, 6, "")
    enclave.after(10).answered(6)
    enclave.after(10).returned(1)
    assert enclave.told == [
        Told(1, [Moment("entered", 10), Moment("asked", 20, "", 5)]),
        Told(1, [Moment("answered", 30, "", 5), Moment("asked", 40, "", 6)]),
        Told(1, [Moment("answered", 50, "", 6), Moment("returned", 60)]),
    ]


def test_a_context_is_for_the_call_of_its_number_whatever_else_comes_between(enclave):
    enclave.expect(2)
    enclave.expect(4)
    assert enclave.spans.entered(1) is None
    assert enclave.spans.entered(4) == CONTEXT
    assert enclave.spans.entered(2) == CONTEXT
    assert enclave.spans.entered(3) is None
    for call in (1, 3):
        enclave.spans.asked(call, 5, "")
        enclave.spans.answered(5)
        enclave.spans.returned(call)
    assert enclave.told == []


def test_a_context_can_be_taken_back(enclave):
    enclave.expect(1)
    enclave.expect(1, context=None, tell=False)
    assert enclave.spans.entered(1) is None
    enclave.spans.returned(1)
    assert enclave.told == []


def test_host_calls_of_many_entries_and_threads_at_once_are_told_of_each_ones_own(enclave):
    for call in (1, 2):
        enclave.expect(call)
        enclave.spans.entered(call)
    enclave.spans.asked(1, 5, "")
    enclave.spans.asked(2, 6, "")
    enclave.spans.asked(1, 7, "")
    enclave.told.clear()
    for host in (7, 6, 5, 5, 8):
        enclave.after(1).answered(host)
    enclave.spans.returned(2)
    enclave.spans.returned(1)
    enclave.spans.answered(9)
    assert enclave.told == [
        Told(2, [Moment("answered", 2, "", 6), Moment("returned", 5)]),
        Told(1, [Moment("answered", 1, "", 7), Moment("answered", 3, "", 5), Moment("returned", 5)]),
    ]


def test_an_entry_with_many_answers_tells_of_them_in_several_accounts(enclave):
    enclave.expect(1)
    enclave.spans.entered(1)
    for host in range(1, 10):
        enclave.spans.asked(1, host, "")
    for host in range(1, 10):
        enclave.spans.answered(host)
    enclave.spans.returned(1)
    assert max(len(account.moments) for account in enclave.told) <= MAX_MOMENTS
    moments = [moment for account in enclave.told for moment in account.moments]
    assert [moment.host for moment in moments if moment.what == "answered"] == [*range(1, 10)]
    assert all(account.moments for account in enclave.told)


def test_a_host_call_that_is_answered_when_its_entry_has_returned_is_told_of_no_more(enclave):
    enclave.expect(1)
    enclave.spans.entered(1)
    enclave.spans.asked(1, 5, "")
    enclave.spans.returned(1)
    enclave.told.clear()
    enclave.spans.answered(5)
    enclave.spans.asked(1, 6, "")
    assert enclave.told == []


def test_nothing_is_told_where_the_client_does_not_ask_for_it(enclave):
    enclave.expect(1, tell=False)
    assert enclave.spans.entered(1) == CONTEXT
    enclave.spans.asked(1, 5, "")
    enclave.spans.returned(1)
    assert enclave.told == []


def test_a_client_may_want_to_be_told_and_say_nothing(enclave):
    enclave.expect(1, context=None)
    assert enclave.spans.entered(1) is None
    enclave.spans.asked(1, 5, TRACE + OWN)
    assert enclave.told == [Told(1, [Moment("entered", 0), Moment("asked", 0, "", 5)])]


@pytest.mark.parametrize(
    ("span", "told"),
    [(TRACE + OWN, OWN), (TRACE + SENT, ""), ("f" * 32 + OWN, ""), ("", "")],
    ids=["its-own", "the-entrys", "another-trace", "none"],
)
def test_only_a_span_in_the_entrys_trace_is_passed_on(enclave, span, told):
    enclave.expect(1)
    enclave.spans.entered(1)
    enclave.spans.asked(1, 5, span)
    assert enclave.told[0].moments[1].span == told


def test_contexts_of_calls_that_never_come_are_bounded(enclave):
    for call in range(1, MAX_EXPECTED + 3):
        enclave.expect(call)
    assert [enclave.spans.entered(call) for call in (1, 2, 3)] == [None, None, CONTEXT]
    assert enclave.spans.entered(MAX_EXPECTED + 2) == CONTEXT


@pytest.mark.parametrize(
    ("parent", "state"),
    [
        (f"00-{TRACE}-{SENT}", ""),
        (f"01-{TRACE}-{SENT}-01", ""),
        (f"00-{TRACE.upper()}-{SENT}-01", ""),
        (f"00-{TRACE}-{SENT}-01\n", ""),
        (f"00-{TRACE}-{SENT}-01-more", ""),
        (CONTEXT.traceparent, "a" * 513),
        (CONTEXT.traceparent, "a=\n"),
        (CONTEXT.traceparent, "a=ä"),
    ],
)
def test_a_context_is_w3cs_and_bounded_or_a_breach(enclave, parent, state):
    with pytest.raises(RemoteProtocolError):
        enclave.expect(1, context=TraceContext(parent, state))


@pytest.mark.parametrize("span", ["a", "g" * 48, "A" * 48, "a" * 47 + "\n", "a" * 64])
def test_a_guests_word_for_its_span_is_hex_or_a_breach(span):
    with pytest.raises(RemoteProtocolError):
        link.Reader(link.ToSupervisor).receive(link.encode(link.HostCall("f", b"", span)))


@pytest.mark.parametrize(
    "account",
    [
        Told(1, [Moment("entered", 0)] * 5),
        Told(-1, []),
        Told(1, [Moment("entered", -1)]),
        Told(1, [Moment("entered", 0, "a")]),
        Told(1, [Moment("asked", 0, "", -1)]),
        Told(1, [Moment("slept", 0)]),  # type: ignore[arg-type]
    ],
)
def test_an_account_is_bounded_or_a_breach(account):
    with pytest.raises(RemoteProtocolError):
        decode(encode(account), Told)
