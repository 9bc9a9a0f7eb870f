"""The telemetry of one loaded enclave: a span for each call, for what the enclave says of it, and for what it calls back; and metrics.

    CLIENT  pay/mean            the call, as the client's thread saw it
      SERVER  pay/mean            the entry: from the enclave's word, put between the client's own times
        CLIENT  host/lookup         its call of a registered function: likewise
          SERVER  host/lookup         the function, as the client's thread executed it; what it calls of the enclave is below it

Thread-safe. What an enclave tells of calls that are not under way, twice, or in a wrong order is nothing; of one call at most MAX_HOST_SPANS
host calls become spans.
"""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import contextvars
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from opentelemetry.trace import Span, SpanKind

from adyton import errors
from adyton._version import __version__
from adyton.communicator import session as communicator
from adyton.communicator.messages import decode, encode
from adyton.communicator.tracing import Moment, Told, Traced
from adyton.hostcall import abi
from adyton.hostcall.client.functions import FunctionRaised
from adyton.telemetry.clocks import Clocks
from adyton.telemetry.instruments import Instruments
from adyton.telemetry.providers import Providers
from adyton.telemetry.spans import Spans, current, failed, told_of, with_id

MAX_HOST_SPANS = 1000  # of one call
MAX_NAME = 128  # characters of an entry's name
_CANCELLED = (asyncio.CancelledError, concurrent.futures.CancelledError)
HOST = "host"  # the service that registered functions are
_R = TypeVar("_R")


class _Session(Protocol):
    """What of the communicator's session is needed here."""

    @property
    def next_call(self) -> int: ...
    def notify(self, method: str, body: bytes) -> None: ...
    def call(self, pair: int, method: str, body: bytes, bulk: Sequence[bytes]) -> int: ...


class _Results(Protocol):
    """What of a stream of results is needed here."""

    error: BaseException | None
    over: Callable[[], None]


class _Host:
    """An entry's call of a function, until the enclave has its answer."""

    def __init__(self, span: Span, pair: int, reached: int) -> None:
        self.span = span  # as the enclave sees it
        self.pair = pair
        self.reached = reached  # until when it is known not to be answered
        self.serves = True  # the client executes it: that it is answered, the enclave cannot say


class _Call:
    """A call under way. Times: of the client's monotonic clock, in ns; `base` makes them times since 1970."""

    def __init__(self, service: str, method: str, base: int, began: int) -> None:
        self.name = f"{service}/{method}"
        self.attributes = _attributes(service, method)
        self.base = base
        self.began = began
        self.span: Span
        self.number = 0  # of the session; 0: not sent
        self.pair = 0
        self.outer: _Call | None = None  # on the same pair
        self.tells = False  # the enclave was asked to tell of it
        self.sent = 0
        self.entry_id = 0  # that the entry's span is to have
        self.entry: Span | None = None  # in the enclave
        self.entered: int | None = None  # by the enclave's clock
        self.returned = False
        self.over = False  # its caller waits no longer, or has its result
        self.reached = 0  # until when it is known what happened in the enclave
        self.asked: dict[
            int, tuple[int, str]
        ] = {}  # by host calls that have not come: when, and in which span of the program's
        self.hosts: dict[int, _Host] = {}  # by host calls that have, and are not answered
        self.host_calls = 0

    def since_1970(self, moment: int) -> int:
        return self.base + moment


_call: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("adyton_call", default=None)


class Telemetry:
    """See the module. `functions`: the names that host calls may be shown under."""

    def __init__(self, enclave: str, functions: Collection[str], providers: Providers) -> None:
        self._enclave = enclave
        self._functions = frozenset(functions)
        self._spans = Spans(providers.tracer.get_tracer("adyton", __version__))
        self._instruments = Instruments(providers.meter.get_meter("adyton", __version__))
        self._clocks = Clocks()
        self._lock = threading.Lock()
        self._calls: dict[int, _Call] = {}  # under way, by number
        self._pairs: dict[int, _Call] = {}  # the innermost on each
        self._asked: dict[int, _Call] = {}  # by host calls that have not come
        self._traffic: Mapping[str, int] = {}
        self._told_traffic = {"bytes_sent": 0, "bytes_received": 0}

    # -- what the loader and the client do ------------------------------------------------------------------------------

    @contextmanager
    def step(self, name: str) -> Iterator[Span]:
        """A span around a step of the load."""
        span = self._spans.start(name, SpanKind.INTERNAL, {"adyton.enclave": self._enclave})
        try:
            with current(span):
                yield span
        except BaseException as error:
            failed(span, _kind(error))
            raise
        finally:
            span.end()

    @contextmanager
    def calling(self, entry: str) -> Iterator[None]:
        """Around one call of the enclave's, on the thread that makes it."""
        with self.awaiting(entry) as call, self.within(call):
            yield

    @contextmanager
    def awaiting(self, entry: str) -> Iterator[_Call]:
        """The same for a task, which may be let go of in any context: it is `within` the call only where that is made."""
        call = self.began(entry)
        error: BaseException | None = None
        try:
            yield call
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.ended(call, error)

    def began(self, entry: str) -> _Call:
        """A call of the enclave's, which may outlive what makes it, as a stream does: `within` it is made, and there is one `ended`."""
        around, now = _call.get(), time.monotonic_ns()
        base = time.time_ns() - now if around is None else around.base
        call = _Call(self._enclave, entry[:MAX_NAME], base, now)
        call.span = self._spans.start(call.name, SpanKind.CLIENT, call.attributes, call.since_1970(now))
        self._instruments.in_flight(1, {"enclave": self._enclave})
        return call

    @contextmanager
    def within(self, call: _Call) -> Iterator[None]:
        """What is made or executed here is that call's."""
        token = _call.set(call)
        try:
            with current(call.span):
                yield
        finally:
            _call.reset(token)

    def stream(self, results: _Results, entry: str, begin: Callable[[], None]) -> None:
        """A call whose result is a stream, which `begin` makes, and which ends with that."""
        call = self.began(entry)
        results.over = lambda: self.ended(call, results.error)
        try:
            with self.within(call):
                begin()
        except BaseException as error:
            self.ended(call, error)
            raise

    def ended(self, call: _Call, error: BaseException | None) -> None:
        """It is over; nothing, if it was before."""
        if call.over:
            return
        shown = {"enclave": self._enclave, "entry": call.attributes["rpc.method"], "outcome": "ok"}
        if error is not None:
            shown["outcome"] = _kind(error)
            if isinstance(error, errors.UnknownEntryError):
                shown["entry"] = "unknown"  # any text is one
            failed(call.span, shown["outcome"])
        end = time.monotonic_ns()
        with self._lock:
            self._over(call, end)
        call.span.end(call.since_1970(end))
        self._instruments.count("adyton.client.calls", 1, shown)
        self._instruments.took("adyton.client.call.duration", (end - call.began) / 1e9, shown)
        self.tell_traffic()
        # After it is counted: there are none that are neither.
        self._instruments.in_flight(-1, {"enclave": self._enclave})

    def bound(self, function: Callable[..., _R]) -> Callable[..., _R]:
        """The function, for another thread, in what is current here."""
        here = contextvars.copy_context()
        return lambda *positional, **keywords: here.run(function, *positional, **keywords)

    # -- what the proxy client does ---------------------------------------------------------------------------------------

    def send(self, session: _Session, pair: int, method: str, body: bytes, bulk: Sequence[bytes]) -> int:
        """`session.call`, after what the enclave is to know of the trace. Under the lock of the session's owner."""
        call = _call.get()
        if call is None or call.number or call.over:
            return session.call(pair, method, body, bulk)
        found, tell = call.span.get_span_context(), call.span.is_recording()
        context = None
        if found.is_valid:
            call.entry_id = self._spans.reserved() if tell else 0
            context = told_of(with_id(found, call.entry_id))
        told = session.next_call if tell or context is not None else 0
        if told:
            session.notify("trace", encode(Traced(told, context, tell)))
        call.sent = call.reached = time.monotonic_ns()
        try:
            number = session.call(pair, method, body, bulk)
        except BaseException:
            if told:  # it would be another's
                session.notify("trace", encode(Traced(told, None, tell=False)))
            raise
        with self._lock:
            if call.over:  # meanwhile
                return number
            call.number, call.tells = number, tell
            self._calls[number] = call
            if pair:
                call.pair, call.outer = pair, self._pairs.get(pair)
                self._pairs[pair] = call
        return number

    def told(self, body: bytes | bytearray) -> None:
        """The enclave's account of a call of ours. RemoteProtocolError."""
        account = decode(body, Told)
        with self._lock:
            now = time.monotonic_ns()
            call = self._calls.get(account.call)
            if call is None or not call.tells or not account.moments:
                return
            first, last = account.moments[0], account.moments[-1]
            if call.entered is None:
                if first.what != "entered":
                    return
                call.entered = first.at
            difference = self._clocks.match(call.sent, call.entered, last.at, now)
            for moment in account.moments:
                host = call.hosts.get(moment.host)
                least = call.reached if host is None or moment.what != "answered" else max(call.reached, host.reached)
                call.reached = min(max(moment.at + difference, least), now)
                self._happened(call, moment)

    def serving(self, called: communicator.Called, request: Any, execute: Callable[[Any], _R]) -> _R:
        """`execute(request)`, that host call, with spans if it is one of a function that a traced call told of.

        On a pair it is one of the innermost call's there; else of the enclave's own threads, which may be of any call.
        """
        if not isinstance(request, abi.Call):
            return execute(request)
        with self._lock:
            call = self._asked.get(called.call)
            if call is None or (called.pair and self._pairs.get(called.pair) is not call):
                call = None
            else:
                host, span = self._came(call, called, request.name)
        if call is None:
            return execute(request)
        token = _call.set(call)
        try:
            with current(span):
                result = execute(request)
            if isinstance(result, abi.Failed):
                failed(span, result.errno)
            return result
        except BaseException as error:
            failed(span, error.described()[2] if isinstance(error, FunctionRaised) else _kind(error))
            raise
        finally:
            _call.reset(token)
            end = time.monotonic_ns()
            span.end(call.since_1970(end))
            with self._lock:
                host.reached, host.serves = end, False

    def count_traffic(self, traffic: Mapping[str, int]) -> None:
        """Where "bytes_sent" and "bytes_received" so far are to be read from now on."""
        self._traffic = traffic

    def tell_traffic(self) -> None:
        """Count what was sent and received since the last time."""
        for name, before in self._told_traffic.items():
            with self._lock:
                more = self._traffic.get(name, 0) - before
                self._told_traffic[name] += more
            if more > 0:
                self._instruments.count(f"adyton.client.{name}", more, {"enclave": self._enclave})

    def reconnected(self) -> None:
        """A lost connection was made again: counted, and an event of each call that was under way."""
        self._instruments.count("adyton.client.reconnects", 1, {"enclave": self._enclave})
        with self._lock:
            under_way = list(self._calls.values())
        for each in under_way:
            each.span.add_event("reconnected", timestamp=each.since_1970(time.monotonic_ns()))

    def note(self, name: str, outcome: str, started: float, size: int) -> None:  # noqa: ARG002 - a HostCallLog
        """See HostCallLog. Of its name the kind only."""
        shown = {"enclave": self._enclave, "kind": name.partition(" ")[0], "outcome": outcome.partition(" ")[0]}
        self._instruments.count("adyton.client.host_calls", 1, shown)
        self._instruments.took("adyton.client.host_call.duration", time.monotonic() - started, shown)

    # -- under the lock ---------------------------------------------------------------------------------------------------

    def _happened(self, call: _Call, moment: Moment) -> None:
        match moment.what:
            case "entered" if call.entry is None and not call.returned:
                at, around = call.since_1970(call.reached), call.span.get_span_context()
                call.entry = self._spans.start(
                    *(call.name, SpanKind.SERVER, call.attributes, at, around, call.entry_id)
                )
            case "asked" if call.entry is not None and moment.host not in self._asked and moment.host not in call.hosts:
                self._asks(call, call.entry, moment)
            case "answered":
                self._answered(call, moment.host)
            case "returned" if call.entry is not None and not any(
                each.serves and each.pair for each in call.hosts.values()
            ):
                self._forget_hosts(call)
                call.entry.end(call.since_1970(call.reached))
                call.entry, call.returned = None, True
            case _:
                pass

    def _asks(self, call: _Call, entry: Span, moment: Moment) -> None:
        """The entry will call a function by that host call."""
        call.host_calls += 1
        if call.host_calls > MAX_HOST_SPANS:
            entry.set_attribute("adyton.host_calls_left_out", call.host_calls - MAX_HOST_SPANS)
            return
        call.asked[moment.host] = call.reached, moment.span
        self._asked[moment.host] = call

    def _came(self, call: _Call, called: communicator.Called, name: str) -> tuple[_Host, Span]:
        """The host call is here: the enclave's side of it begins, and the client's, whose span is given too."""
        assert call.entry is not None
        now = time.monotonic_ns()
        del self._asked[called.call]
        at, span_id = call.asked.pop(called.call)
        name = name if name in self._functions else "unknown"
        attributes = _attributes(HOST, name)
        parent = with_id(call.entry.get_span_context(), int(span_id or "0", 16))
        span = self._spans.start(f"{HOST}/{name}", SpanKind.CLIENT, attributes, call.since_1970(at), parent)
        host = call.hosts[called.call] = _Host(span, called.pair, now)
        return host, self._spans.start(
            *(f"{HOST}/{name}", SpanKind.SERVER, attributes, call.since_1970(now)), span.get_span_context()
        )

    def _answered(self, call: _Call, number: int) -> None:
        """Or it was not made."""
        host = call.hosts.get(number)
        if host is not None and not host.serves:
            host.span.end(call.since_1970(call.reached))
            del call.hosts[number]
        elif call.asked.pop(number, None) is not None:
            del self._asked[number]

    def _forget_hosts(self, call: _Call) -> None:
        """Of its host calls nothing more is told. A function that a thread of the enclave's own called may go on, and its span be the longer."""
        for number in call.asked:
            del self._asked[number]
        for host in call.hosts.values():
            call.reached = max(call.reached, host.reached)
        for host in call.hosts.values():
            host.span.end(call.since_1970(call.reached))
        call.asked.clear()
        call.hosts.clear()

    def _over(self, call: _Call, now: int) -> None:
        """Of what the enclave has not told until now, it tells nothing any more."""
        call.over = True
        self._calls.pop(call.number, None)
        if call.outer is not None:
            self._pairs[call.pair] = call.outer
        elif self._pairs.get(call.pair) is call:
            del self._pairs[call.pair]
        if call.entry is not None:
            call.reached = now
            self._forget_hosts(call)
            call.entry.set_attribute("adyton.unfinished", value=True)
            call.entry.end(call.since_1970(now))
            call.entry = None


def _attributes(service: str, method: str) -> dict[str, str]:
    return {"rpc.system": "adyton", "rpc.service": service, "rpc.method": method}


def _kind(error: BaseException) -> str:
    """The error's class, as far as it is ours or Python's; never its text."""
    for each in type(error).__mro__:
        name: str = each.__name__
        if each in _CANCELLED or getattr(errors, name, None) is each or getattr(builtins, name, None) is each:
            return name
    return "BaseException"
