"""The telemetry of one loaded enclave: a span for each call, for what the enclave says of it, and for what it calls back; and metrics.

    CLIENT  pay/mean            the call, as the client's thread saw it
      SERVER  pay/mean            the entry: from the enclave's word, put between the client's own times
        CLIENT  host/lookup         its call of a registered function: likewise
          SERVER  host/lookup         the function, as the client's thread executed it; what it calls of the enclave is below it

Thread-safe. What an enclave tells of calls that are not under way, twice, or in a wrong order is nothing; of one call at most MAX_HOST_SPANS
host calls become spans.
"""

from __future__ import annotations

import builtins
import contextvars
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from opentelemetry.trace import Span, SpanKind

from adyton import errors
from adyton._version import __version__
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
HOST = "host"  # the service that registered functions are
_R = TypeVar("_R")


class _Session(Protocol):
    """What of the communicator's session is needed here."""

    def notify(self, method: str, body: bytes) -> None: ...
    def call(self, pair: int, method: str, body: bytes, bulk: Sequence[bytes]) -> int: ...


class _Results(Protocol):
    """What of a stream of results is needed here."""

    error: BaseException | None
    over: Callable[[], None]


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
        self.sent = 0
        self.entry_id = 0  # that the entry's span is to have
        self.entry: Span | None = None  # in the enclave
        self.entered: int | None = None  # by the enclave's clock
        self.returned = False
        self.over = False  # its caller waits no longer, or has its result
        self.reached = 0  # until when it is known what happened in the enclave
        self.asked: tuple[int, str] | None = None  # when, and in which span of the program's
        self.host: Span | None = None  # the enclave's call of a function, until the enclave has its answer
        self.serves = False  # the client executes that function: the enclave has nothing to tell
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
        self._calls: dict[int, _Call] = {}  # by number
        self._pairs: dict[int, _Call] = {}  # the innermost on each
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
        """Around one call of the enclave's, on the thread or task that makes it."""
        call = self.began(entry)
        error: BaseException | None = None
        try:
            with self.within(call):
                yield
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
        self._instruments.in_flight(-1, {"enclave": self._enclave})
        self._instruments.count("adyton.client.calls", 1, shown)
        self._instruments.took("adyton.client.call.duration", (end - call.began) / 1e9, shown)
        self.tell_traffic()

    def bound(self, function: Callable[..., _R]) -> Callable[..., _R]:
        """The function, for another thread, in what is current here."""
        here = contextvars.copy_context()
        return lambda *positional, **keywords: here.run(function, *positional, **keywords)

    # -- what the proxy client does ---------------------------------------------------------------------------------------

    def send(self, session: _Session, pair: int, method: str, body: bytes, bulk: Sequence[bytes]) -> int:
        """`session.call`, after what the enclave is to know of the trace. Under the lock of the session's owner."""
        call = _call.get()
        if (
            call is None or call.number or call.over or not pair
        ):  # what has no pair is not told of: its context would be taken for another's
            return session.call(pair, method, body, bulk)
        found, tell = call.span.get_span_context(), call.span.is_recording()
        if found.is_valid:
            call.entry_id = self._spans.reserved() if tell else 0
            context = told_of(with_id(found, call.entry_id))
            if tell or context is not None:
                session.notify("trace", encode(Traced(pair, context, tell)))
        call.sent = call.reached = time.monotonic_ns()
        number = session.call(pair, method, body, bulk)
        with self._lock:
            if call.over:  # meanwhile
                return number
            call.number, call.pair, call.outer = number, pair, self._pairs.get(pair)
            self._pairs[pair] = call
            if tell:
                self._calls[number] = call
        return number

    def told(self, body: bytes | bytearray) -> None:
        """The enclave's account of a call of ours. RemoteProtocolError."""
        now = time.monotonic_ns()
        account = decode(body, Told)
        with self._lock:
            call = self._calls.get(account.call)
            if call is None or call.serves or not account.moments:
                return
            first, last = account.moments[0], account.moments[-1]
            if call.entered is None:
                if first.what != "entered":
                    return
                call.entered = first.at
            difference = self._clocks.match(call.sent, call.entered, last.at, now)
            for moment in account.moments:
                call.reached = min(max(moment.at + difference, call.reached), now)
                self._happened(call, moment)

    def serving(self, pair: int, request: Any, execute: Callable[[Any], _R]) -> _R:
        """`execute(request)`, a host call on that pair, with spans if it is one of a function that a traced call made."""
        with self._lock:
            call = self._pairs.get(pair)
            if call is None or not isinstance(request, abi.Call) or not self._may_show(call):
                call = None
            else:
                span = self._asked(call, request.name)
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
                call.reached, call.serves = max(call.reached, end), False

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
            under_way = list(self._pairs.values())
        for call in under_way:
            each: _Call | None = call
            while each is not None:
                each.span.add_event("reconnected", timestamp=each.since_1970(time.monotonic_ns()))
                each = each.outer

    def note(self, name: str, outcome: str, started: float, size: int) -> None:  # noqa: ARG002 - a HostCallLog
        """See HostCallLog. Of its name the kind only."""
        shown = {"enclave": self._enclave, "kind": name.partition(" ")[0], "outcome": outcome.partition(" ")[0]}
        self._instruments.count("adyton.client.host_calls", 1, shown)
        self._instruments.took("adyton.client.host_call.duration", time.monotonic() - started, shown)

    # -- under the lock ---------------------------------------------------------------------------------------------------

    def _happened(self, call: _Call, moment: Moment) -> None:
        at = call.since_1970(call.reached)
        match moment.what:
            case "entered" if call.entry is None and not call.returned:
                call.entry = self._spans.start(
                    *(call.name, SpanKind.SERVER, call.attributes, at, call.span.get_span_context(), call.entry_id)
                )
            case "asked":
                call.asked = call.reached, moment.span
            case "answered":
                self._answered(call)
            case "returned" if call.entry is not None:
                self._answered(call)
                call.entry.end(at)
                call.entry, call.returned = None, True
            case _:
                pass

    def _may_show(self, call: _Call) -> bool:
        if call.entry is None:
            return False
        call.host_calls += 1
        if call.host_calls > MAX_HOST_SPANS:
            call.entry.set_attribute("adyton.host_calls_left_out", call.host_calls - MAX_HOST_SPANS)
        return call.host_calls <= MAX_HOST_SPANS

    def _asked(self, call: _Call, name: str) -> Span:
        """The entry calls a function: the enclave's side of it begins, and the client's, which is returned."""
        assert call.entry is not None
        now = time.monotonic_ns()
        self._answered(call)  # of the one before nothing was told
        at, span_id = call.asked or (now, "")
        call.asked, call.serves, call.reached = None, True, max(call.reached, now)
        name = name if name in self._functions else "unknown"
        attributes = _attributes(HOST, name)
        parent = with_id(call.entry.get_span_context(), int(span_id or "0", 16))
        call.host = self._spans.start(f"{HOST}/{name}", SpanKind.CLIENT, attributes, call.since_1970(at), parent)
        return self._spans.start(
            *(f"{HOST}/{name}", SpanKind.SERVER, attributes, call.since_1970(now)), call.host.get_span_context()
        )

    def _answered(self, call: _Call) -> None:
        if call.host is not None:
            call.host.end(call.since_1970(call.reached))
            call.host = None

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
            self._answered(call)
            call.entry.set_attribute("adyton.unfinished", value=True)
            call.entry.end(call.since_1970(now))
            call.entry = None


def _attributes(service: str, method: str) -> dict[str, str]:
    return {"rpc.system": "adyton", "rpc.service": service, "rpc.method": method}


def _kind(error: BaseException) -> str:
    """The error's class, as far as it is ours or Python's; never its text."""
    for each in type(error).__mro__:
        name: str = each.__name__
        if getattr(errors, name, None) is each or getattr(builtins, name, None) is each:
            return name
    return "BaseException"
