"""The client's end of a loaded enclave: calls in, host calls back, on one connection, from any number of threads.

Each client thread has a pair: an enclave thread of its own that runs its entries. While a thread waits for its call, host calls of
registered functions that belong to its pair are executed by that same thread, and may call the enclave again. Host calls without
a pair (files) are executed by a small pool. One reader thread sorts what arrives. Who waits also watches that the other end lives
(`pulse`): a connection on which nothing comes and no ping is answered is given up after seconds, and another one made (`line`). Nothing is
sent for that while nobody waits.

    caller ──► session ──► line        line's reader ──► mailbox of the pair ──► caller
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec

from adyton.attestation.expectation import Expectation
from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.verify import validate, verify
from adyton.channel import client as channel_client
from adyton.communicator import session as communicator
from adyton.communicator.messages import ORDER, Counts, LoadReply, LoadRequest, Raised, decode, encode
from adyton.communicator.sequence import Sequence
from adyton.errors import (
    AdytonError,
    AttestationError,
    ClosedError,
    ConnectionLostError,
    DeadlineError,
    RemoteProtocolError,
)
from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.hostcall.client.executor import Executor, FunctionRaised
from adyton.hostcall.client.lock_calls import may_wait
from adyton.hostcall.client.sockets import CAUGHT_UP, ClientSockets
from adyton.hostcall.encoding import encode as encode_result
from adyton.hostcall.encoding import restored, whole
from adyton.hostcall.events import MAX_HAPPENED, Happened
from adyton.processes_pb2 import ProcessReport
from adyton.remote.client_pairs import CallFailed, Pair, Token, note_end
from adyton.remote.line import Line
from adyton.remote.pulse import TICK
from adyton.remote.socket_way import SocketWay
from adyton.remote.time_teller import TimeTeller
from adyton.remote.trace import Trace
from adyton.remote.transport import Transport
from adyton.telemetry.switch import step

if TYPE_CHECKING:
    from adyton.telemetry.calls import Telemetry

POOL_THREADS = 8
MAX_AHEAD = 1 << 27  # bytes of ordered host calls that wait for one before them
ORDER_TIMEOUT = 1.0  # seconds, at the end, for what the enclave had written before
WAITED_FOR = {"load": "the program's initialize", "run": "the program's run", "finalize": "the program's finalize"}
EVIDENCE_TIMEOUT = 20.0  # seconds at most for evidence: until it is there, nothing of the program runs
_REQUEST: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(abi.Request)
_OUTPUT = msgspec.msgpack.Decoder(abi.Output)
_REFUSED = msgspec.msgpack.Decoder(abi.RefusedCall)


_NOBODY_WAITS = encode(
    Raised("raised", "TimeoutError", "the client's thread no longer waits for this call", "TimeoutError")
)


class ProxyClient:
    """See the module. `connect` first; after `close`, or when the connection was lost, every call raises."""

    def __init__(
        self,
        transport: Transport,
        executor: Executor,
        expectation: Expectation,
        trace: Trace | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._transport = transport
        self._executor = executor
        self._expectation = expectation
        self._lock = threading.Lock()
        self._session = communicator.Session(communicator.Side.CLIENT)
        self._line = Line(transport, self._session, self._lock, self)
        self._time = TimeTeller()
        self._numbers = itertools.count(1)
        self._pairs: dict[int, Pair] = {}
        self._ended_threads: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(POOL_THREADS, "adyton-host")
        self._sequence: Sequence[communicator.Called] = Sequence(communicator.Limits().in_flight, MAX_AHEAD)
        self._lock_waits = threading.Semaphore(abi.MAX_LOCK_WAITS)
        self._order = ThreadPoolExecutor(1, "adyton-order")  # what must happen one after the other
        executor.changed = self._files_changed
        self._sockets = ClientSockets(executor.net, SocketWay(self, executor))
        self._closing = False
        self._error: AdytonError | None = None
        self.ended_because = ""
        self._trace = trace
        self._entry_calls = 0
        self.telemetry = telemetry
        self._send_call = self._session.call
        if telemetry is not None:
            telemetry.count_traffic(self._line.traffic)
            self._send_call = functools.partial(telemetry.send, self._session)
        self._loading = self._counts = Counts(0, 0, 0, 0)  # what the enclave counted until it was loaded, and until now
        self._first_start: float | None = None
        self._last_end = 0.0
        self.identity: EnclaveIdentity | None = None
        self.evidence = b""

    # -- life ---------------------------------------------------------------------------------------------------------

    def connect(self, load: LoadRequest, timeout: float | None = None) -> LoadReply:
        """Make the attested channel, judge the evidence, then load the program. CallFailed with what its initialize raised.

        `timeout` in seconds, for all of it.
        """
        until = None if timeout is None else time.monotonic() + timeout
        handshake = self._line.begin()
        patience = EVIDENCE_TIMEOUT if timeout is None else min(timeout, EVIDENCE_TIMEOUT)
        try:
            with step(self.telemetry, "adyton.attest"):
                evidence = self._wait(handshake, time.monotonic() + patience)
                if isinstance(evidence, AdytonError):
                    raise self._error or evidence
                self.evidence = evidence
                self.identity = self._judged(evidence, self._line.channel)
                self._line.accept()
            left = None if until is None else max(0.0, until - time.monotonic())
            load = msgspec.structs.replace(load, time=self._time.told())
            with step(self.telemetry, "adyton.initialize"):
                reply = decode(self.call("load", encode(load), left), LoadReply)
            self._loading = self._counts
            return reply
        except queue.Empty:
            self.abort()
            raise DeadlineError(
                f"the enclave showed no evidence within {round(patience, 1):g} s: the proxy server hangs"
            ) from None
        except BaseException:
            self.abort()
            raise

    def _judged(self, evidence: bytes, channel: channel_client.ClientChannel) -> EnclaveIdentity:
        verified = verify(evidence)
        return validate(verified, self._expectation, channel.report_data(verified.identity.digest()))

    def close(self) -> None:
        """Say goodbye, and end the connection. No call may be under way."""
        with self._lock:
            if self._error is None and self._line.begun:
                self._session.close("the client is done")
            self._closing = True
        self._line.end(at_once=False)
        self._finish()

    def abort(self) -> None:
        """End the connection at once; waiting calls raise."""
        with self._lock:
            self._closing = True
        self._line.end(at_once=True)
        self._finish()

    def _finish(self) -> None:
        self._lost(ClosedError("the enclave was destroyed: load it again"))
        self._pool.shutdown(wait=False)
        self._order.shutdown(wait=False)
        self._sockets.close()
        self._executor.close()

    def _lost(self, error: AdytonError) -> None:
        with self._lock:
            if self._error is not None:
                return
            if self._closing:
                error = ClosedError(
                    "the enclave was destroyed; the outcome of calls under way is unknown. Load it again"
                )
            self._error = error
            pairs = list(self._pairs.values())
        for pair in pairs:
            pair.mailbox.put(error)
        self._line.wake()

    # -- calls --------------------------------------------------------------------------------------------------------

    def call(self, method: str, body: bytes, timeout: float | None = None, name: str = "") -> communicator.Body:
        """One call on the calling thread's pair; its result, or CallFailed. `name`: for the trace, if it is not the method's.

        `timeout` in seconds; a call from inside a host function has no more than is left to the call around it. A host function that
        runs is not interrupted: its caller's time is looked at when it returns.
        """
        pair = self._own_pair()
        around, own = pair.deadline, None if timeout is None else time.monotonic() + timeout
        deadline = min((each for each in (around, own) if each is not None), default=None)
        denied = self._executor.denials
        with self._lock:
            self._check_open()
            self._tell_changes()
            self._tell_time()
            call = self._send_call(pair.number, method, body)
            if method in ("enter", "run"):
                self._entry_calls += 1
                self._first_start = self._first_start or time.monotonic()
        self._line.wake()
        if self._trace is not None:
            self._trace.entered(call)
        pair.deadline = deadline
        try:
            while True:
                item = self._wait(pair.mailbox, deadline)
                if isinstance(item, communicator.Called):
                    self._serve(item)
                    if pair.abandoned:
                        raise DeadlineError(
                            "a call from inside a host function took too long, so its caller's outcome is unknown"
                        )
                elif isinstance(item, communicator.Replied) and item.call == call:
                    break
                elif isinstance(item, AdytonError):
                    pair.mailbox.put(item)  # for the calls around this one
                    raise type(item)(*item.args)
        except queue.Empty:
            self._abandon(pair, call)
            within = (
                "the time left to the call around it"
                if deadline != own or own is None
                else f"{round(timeout or 0, 2):g} s"
            )
            raise DeadlineError(
                f"no answer from {WAITED_FOR.get(method, 'the entry')} within {within}; its outcome is unknown. "
                "If it only needs longer, give a longer timeout"
            ) from None
        except AdytonError:
            raise
        except BaseException:  # KeyboardInterrupt and the like, while waiting
            self._abandon(pair, call)
            raise
        finally:
            pair.deadline = around
            self._last_end = time.monotonic()
            if self._trace is not None:
                self._trace.returned(call, name or method)
        if item.ok:
            result: communicator.Body = item.body
            return result
        raise CallFailed(decode(item.body, Raised), denied=self._executor.denials > denied)

    def _wait(self, mailbox: queue.SimpleQueue[Any], deadline: float | None) -> Any:
        """The next item; queue.Empty at the deadline. Meanwhile, look after the peer."""
        while True:
            left = TICK if deadline is None else min(TICK, deadline - time.monotonic())
            try:
                return mailbox.get(timeout=max(0.0, left))
            except queue.Empty:
                if left < TICK:
                    raise
            self._tick()

    def _tick(self) -> None:
        if self._error is None and (error := self._line.tick(self._tell_time)) is not None:
            self._break_off(error)

    def _break_off(self, error: AdytonError) -> None:
        self._lost(error)
        self._line.break_off()

    def _tell_time(self) -> None:
        """Under the lock: say what time it is, if the enclave cannot know."""
        if self._time.due():
            self._session.notify("time", self._time.told().to_bytes(8, "little", signed=True))

    def _check_open(self) -> None:
        if self._error is not None:
            raise type(self._error)(*self._error.args)
        if self._closing:
            raise ClosedError("the enclave is being destroyed: load it again")

    def _own_pair(self) -> Pair:
        token: Token | None = getattr(self._local, "token", None)
        if token is None or token.pair.abandoned:
            pair = Pair(next(self._numbers))
            token = self._local.token = Token(pair)
            # No lock may be taken when a thread's storage dies: the number is queued, and the sender disposes of the pair.
            weakref.finalize(token, note_end, self._ended_threads, self._line.wake, pair.number).atexit = False
            with self._lock:
                self._pairs[pair.number] = pair
        return token.pair

    def _abandon(self, pair: Pair, call: int) -> None:
        pair.abandoned = True
        with self._lock:
            if self._error is None:
                self._session.cancel(call)
        self._line.wake()

    def _dispose_ended(self) -> None:
        """Under the lock: pairs whose threads have ended and that nothing is under way on."""
        while True:
            try:
                number = self._ended_threads.get_nowait()
            except queue.Empty:
                return
            pair = self._pairs.get(number)
            if pair is not None and not pair.abandoned:
                del self._pairs[number]
                if self._error is None and self._line.begun and not self._closing:
                    self._session.dispose(number)

    # -- host calls ---------------------------------------------------------------------------------------------------

    def _serve(self, called: communicator.Called) -> None:
        """Execute one host call and reply."""
        if called.method not in ("host", "order"):
            body = encode(Raised("state", "Refused", f"no method {called.method!r} on the client"))
            self._answer(called, ok=False, body=body)
            return
        try:
            start = ORDER.size if called.method == "order" else 0
            request = restored(_REQUEST.decode(memoryview(called.body)[start:]), called.body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._break_off(RemoteProtocolError(f"malformed host call from the enclave: {error}"))
            return
        if may_wait(request) and not self._lock_waits.acquire(blocking=False):
            self._answer(called, ok=True, body=msgspec.msgpack.encode(abi.Failed("ENOLCK")))
        elif may_wait(request):
            # Not on a thread of the pool, nor on a caller's: it may wait for long.
            threading.Thread(
                target=self._wait_for_lock, args=(called, request), name="adyton-lock", daemon=True
            ).start()
        elif called.method == "order" and isinstance(request, abi.Sync | abi.SyncDirectory | abi.SyncAll):
            self._pool.submit(
                self._execute, called, request
            )  # what was written before it is; what comes next need not wait
        else:
            self._execute(called, request)

    def _wait_for_lock(self, called: communicator.Called, request: abi.Request) -> None:
        try:
            self._execute(called, request)
        finally:
            self._lock_waits.release()

    def _execute(self, called: communicator.Called, request: abi.Request) -> None:
        ok = True
        body: communicator.Parts
        try:
            if self.telemetry is None:
                body = encode_result(self._executor.execute(request))
            else:
                body = encode_result(self.telemetry.serving(called.pair, request, self._executor.execute))
        except FunctionRaised as raised:
            ok, body = False, encode(Raised(raised.kind, *raised.described()))
        except BaseException:  # KeyboardInterrupt and SystemExit are for this thread; the enclave's goes on
            self._reply(called.call, ok=False, body=_NOBODY_WAITS)
            raise
        self._answer(called, ok=ok, body=body)

    def _answer(self, called: communicator.Called, *, ok: bool, body: communicator.Parts) -> None:
        with self._lock:
            self._tell_changes()
            pair = self._pairs.get(called.pair)
            if pair is not None and pair.abandoned:
                pair.owed.append(
                    called.call
                )  # the enclave still runs a call inside of it, which must be answered first
            elif self._error is None:
                self._session.reply(called.call, ok, body)
        self._line.wake()

    def _tell_changes(self) -> None:
        """Under the lock: what others did to files comes before what is said after it."""
        if self._error is None and self._line.begun and not self._closing:
            changes = self._executor.take_changes()
            for start in range(0, len(changes), abi.MAX_CHANGED):
                self._session.notify("changed", whole(abi.Changed(changes[start : start + abi.MAX_CHANGED])))
            events = self._executor.take_events()
            for start in range(0, len(events), MAX_HAPPENED):
                happened = Happened(events[start : start + MAX_HAPPENED])
                self._session.notify("happened", whole(happened))

    def _files_changed(self) -> None:
        """From the executor's thread."""
        with self._lock:
            self._tell_changes()
        self._line.wake_if_due()

    def _reply(self, call: int, *, ok: bool, body: bytes) -> None:
        with self._lock:
            self._tell_changes()
            if self._error is None:
                self._session.reply(call, ok, body)
        self._line.wake()

    def notify(self, method: str, bodies: Iterable[communicator.Parts]) -> None:
        """Tell the enclave what has no answer."""
        with self._lock:
            if self._error is not None:
                return
            self._tell_changes()
            for body in bodies:
                self._session.notify(method, body)
        self._line.wake()

    def replied_host_call(self, call: int, body: bytes) -> None:
        """Answer a host call that something in the enclave waited for."""
        self._reply(call, ok=True, body=body)

    def sockets_failed(self, error: Exception) -> None:
        """End the connection: programs of the enclave wait for answers that will not come."""
        self._break_off(
            ConnectionLostError(
                f"this client can serve no sockets any more, which is a defect of it: {error!r}. "
                "The outcome of calls under way is unknown. Load it again"
            )
        )

    def bytes_pending(self) -> int:
        """How much is on its way out, and not sent yet."""
        return self._session.pending_bytes

    def submit(self, step: Callable[[], None]) -> None:
        """Run a step on a thread of the pool for host calls. RuntimeError: the client is closed."""
        self._pool.submit(step)

    # -- the connection -----------------------------------------------------------------------------------------------

    def judge(self, evidence: bytes, channel: channel_client.ClientChannel) -> None:
        """See line.Owner."""
        if self._judged(evidence, channel) != self.identity:
            raise AttestationError(
                "where the enclave was, there is another one now, though one that would do: load it again"
            )

    def made_again(self) -> None:
        """See line.Owner."""
        if self.telemetry is not None:
            self.telemetry.reconnected()

    def sending(self) -> None:
        """See line.Owner."""
        self._dispose_ended()

    def sent(self) -> None:
        """See line.Owner."""
        if self._session.pending_bytes < CAUGHT_UP:
            self._sockets.caught_up()

    def arrived(self, events: list[communicator.Event]) -> None:
        """See line.Owner."""
        for event in events:
            self._dispatch(event)

    def over(self, error: AdytonError) -> None:
        """See line.Owner."""
        # What the enclave had written is written before its files are closed.
        with contextlib.suppress(RuntimeError, TimeoutError):
            self._order.submit(lambda: None).result(ORDER_TIMEOUT)
        self._lost(error)
        self._executor.close()  # the enclave's locks and open files end with it, not when this client is closed

    def _dispatch(self, event: communicator.Event) -> None:
        match event:
            case communicator.Called(_, 0, "order", body):
                if len(body) < ORDER.size:
                    raise RemoteProtocolError("an ordered host call without its number")
                for each in self._sequence.arrived(ORDER.unpack_from(body)[0], event, len(body)):
                    self._order.submit(self._serve, each)
            case communicator.Called(call, 0, "net", body):
                self._sockets.request(call, net.request_of(body))
            case communicator.Called(_, 0, _, _):
                self._pool.submit(self._serve, event)
            case communicator.Called(call, number, _, _):
                pair = self._pairs.get(number)
                if pair is None or pair.abandoned:
                    with self._lock:
                        self._session.reply(call, ok=False, body=_NOBODY_WAITS)
                else:
                    pair.mailbox.put(event)
            case communicator.Replied():
                self._replied(event)
            case communicator.Notified("net", body):
                self._sockets.message(net.from_enclave(body))
            case communicator.Notified("refused", body):
                try:
                    self._executor.refused_call(_REFUSED.decode(body))
                except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                    raise RemoteProtocolError(f"malformed account of a refused call: {error}") from error
            case communicator.Notified("output", body):
                try:
                    self._executor.write_output(_OUTPUT.decode(body))
                except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                    raise RemoteProtocolError(f"malformed output from the enclave: {error}") from error
            case communicator.Notified("counts", body):
                self._counts = decode(body, Counts)
                if self._trace is not None:
                    self._trace.counted(self._counts)
            case communicator.Notified("spans", body) if self.telemetry is not None:
                self.telemetry.told(body)
            case communicator.Notified("ended", body):
                self.ended_because = body.decode("utf-8", "replace")[:1024]
            case _:
                pass

    def _replied(self, event: communicator.Replied) -> None:
        pair = self._pairs.get(event.pair)
        if pair is None:
            return
        if not pair.abandoned:
            pair.mailbox.put(event)
            return
        with self._lock:
            if pair.owed:
                self._session.reply(pair.owed.pop(0), ok=False, body=_NOBODY_WAITS)
            elif self._session.idle(event.pair):
                del self._pairs[event.pair]
                self._session.dispose(event.pair)

    def processes(self, timeout: float) -> dict[str, ProcessReport]:
        """What the server says of the enclave's processes: see Transport."""
        return self._transport.processes(timeout)

    @property
    def seconds(self) -> float:
        """From the first entry's start to the end of what came last."""
        return 0.0 if self._first_start is None else max(0.0, self._last_end - self._first_start)

    def counts(self) -> Counts:
        """What the enclave says that it has counted since it was loaded."""
        now, before = self._counts, self._loading
        return Counts(
            round_trips=max(0, now.round_trips - before.round_trips),
            waiting=max(0, now.waiting - before.waiting),
            hits=max(0, now.hits - before.hits),
            misses=max(0, now.misses - before.misses),
        )

    def refused(self) -> dict[str, int]:
        """How often the enclave's runtime has refused which system calls."""
        return dict(self._executor.refused)

    def stats(self) -> dict[str, Any]:
        """Counts since the load, as `--stats` writes them."""
        return {
            "entry_calls": self._entry_calls,
            "host_calls": dict(self._executor.counts),
            "denied": dict(self._executor.denied),
            "round_trips": self.counts().round_trips,
            "bytes_sent": self._line.traffic["bytes_sent"],
            "bytes_received": self._line.traffic["bytes_received"],
            "seconds": self.seconds,
        }
