"""The client's end of a loaded enclave: calls in, host calls back, on one connection, from any number of threads.

Each client thread has a pair: an enclave thread of its own that runs its entries. While a thread waits for its call, host calls of
registered functions that belong to its pair are executed by that same thread, and may call the enclave again. Host calls without
a pair (files) are executed by a small pool. One reader thread sorts what arrives. Who waits also watches that the other end lives
(`pulse`): a connection on which nothing comes and no ping is answered is given up after seconds, and another one made (`line`). Nothing is
sent for that while nobody waits.

    caller ──► speaker ──► session ──► line        line's reader ──► mailbox of the pair ──► caller
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import msgspec

from adyton.attestation.acl import Acl
from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.vendors import collateral_for
from adyton.attestation.verify import validate, verify
from adyton.channel import client as channel_client
from adyton.channel.credential import Credential
from adyton.communicator import session as communicator
from adyton.communicator.messages import Counts, EnterRequest, LoadReply, LoadRequest, Raised, decode, encode
from adyton.errors import (
    AdytonError,
    AttestationError,
    ClosedError,
    DeadlineError,
)
from adyton.hostcall import sockets as net
from adyton.hostcall.client.executor import Executor
from adyton.hostcall.client.sockets import CAUGHT_UP, ClientSockets
from adyton.processes_pb2 import ProcessReport
from adyton.proto.values import Bulk
from adyton.remote import steps
from adyton.remote.arguments import Argument, ArgumentStreams
from adyton.remote.client_pairs import (
    CallFailed,
    Cancellation,
    Mailbox,
    NotMade,
    Pair,
    ThreadPairs,
    result_of,
    settle,
)
from adyton.remote.deadlines import Deadline, Deadlines
from adyton.remote.host_calls import HostCalls
from adyton.remote.line import Line
from adyton.remote.pulse import TICK
from adyton.remote.results import Results, ResultStreams
from adyton.remote.socket_way import SocketWay
from adyton.remote.speaker import WAITED_FOR, Speaker
from adyton.remote.stream_way import StreamWay
from adyton.remote.tally import Tally
from adyton.remote.time_teller import TimeTeller
from adyton.remote.trace import Trace
from adyton.remote.transport import Transport
from adyton.remote.unpaired import UnpairedCall, UnpairedCalls
from adyton.telemetry.switch import step

if TYPE_CHECKING:
    from adyton.telemetry.calls import Telemetry

ORDER_TIMEOUT = 1.0  # seconds, at the end, for what the enclave had written before
EVIDENCE_TIMEOUT = 60.0  # seconds at most for evidence, which hardware makes one at a time; until it is there, nothing of the program runs


class ProxyClient:
    """See the module. `connect` first; after `close`, or when the connection was lost, every call raises."""

    def __init__(
        self,
        transport: Transport,
        executor: Executor,
        expectation: Acl,
        trace: Trace | None = None,
        telemetry: Telemetry | None = None,
        credential: Credential | None = None,
    ) -> None:
        """`credential`: what the enclave is to know this client by."""
        self._transport = transport
        self._executor = executor
        self._expectation = expectation
        self._lock = threading.Lock()
        self.ended_because = ""
        self._session = communicator.Session(communicator.Side.CLIENT)
        self._line = Line(transport, self._session, self._lock, self, credential)
        self._time = TimeTeller()
        self._pairs: dict[int, Pair] = {}
        self._threads = ThreadPairs(self._pairs, self._lock, self._session, self._line.wake_later)
        self.deadlines = Deadlines()
        self.tally = Tally(executor, self._line.traffic)
        self._speaker = Speaker(
            *(self._session, self._lock, self._line, self._pairs, executor, self._time, self.tally, trace, telemetry)
        )
        self._is_open = self._speaker.is_open
        executor.changed = self._speaker.files_changed
        self._hosts = HostCalls(executor, self._speaker.answer, self.fail, self.deadlines, telemetry)
        way = StreamWay(self._lock, self._session, self._line.wake, self._line.wake_later, self._is_open)
        self.results: ResultStreams = ResultStreams(way, self._pairs)
        self.arguments = ArgumentStreams(way)
        self.unpaired = UnpairedCalls(self, self._speaker)
        self._sockets = ClientSockets(executor.net, SocketWay(self._speaker, executor, self._hosts.pool, self.fail))
        self._trace = trace
        self.telemetry = telemetry
        if telemetry is not None:
            telemetry.count_traffic(self._line.traffic)
        self.streaming: frozenset[str] = frozenset()  # the entries whose results are streams
        self.enclave_id = transport.enclave_id
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
                evidence = self.wait(handshake, time.monotonic() + patience)
                if isinstance(evidence, AdytonError):
                    raise self._speaker.error or evidence
                self.evidence = evidence
                self.identity = self._judged(evidence, self._line.channel)
                self._line.accept()
            left = None if until is None else max(0.0, until - time.monotonic())
            load = msgspec.structs.replace(load, time=self._time.told())
            with step(self.telemetry, "adyton.initialize"):
                answer = self.call("load", encode(load), left)
                reply = decode(b"" if isinstance(answer, Bulk) else answer, LoadReply)
            self.tally.loaded()
            self.streaming = frozenset(reply.streams)
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
        verified = verify(evidence, collateral_for(evidence))
        return validate(verified, self._expectation, channel.report_data(verified.identity_digest))

    def close(self) -> None:
        """Say goodbye, and end the connection. No call may be under way."""
        with self._lock:
            if self._speaker.error is None and self._line.begun:
                self._session.close("the client is done")
            self._speaker.closing = True
        self._line.end(at_once=False)
        self._finish()

    def abort(self) -> None:
        """End the connection at once; waiting calls raise."""
        with self._lock:
            self._speaker.closing = True
        self._line.end(at_once=True)
        self._finish()

    def _finish(self) -> None:
        self._lost(ClosedError("the enclave was destroyed: load it again"))
        self._hosts.shutdown()
        self._sockets.close()
        self._executor.close()

    def _lost(self, error: AdytonError) -> None:
        with self._lock:
            if self._speaker.error is not None:
                return
            if self._speaker.closing:
                error = ClosedError(
                    "the enclave was destroyed; the outcome of calls under way is unknown. Load it again"
                )
            self._speaker.error = error
            streams = self.results.lost()
            mailboxes = {each.mailbox for each in self._pairs.values()}
        mailboxes |= {each.pair.mailbox for each in streams if each.wanted}
        for each in streams:
            each.error = each.error or error
            each.over()
        for mailbox in mailboxes:
            mailbox.put(error)
        self.arguments.lost()
        self.unpaired.lost(error)
        self._line.wake()

    # -- calls --------------------------------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        body: bytes | EnterRequest,
        timeout: float | None = None,
        name: str = "",
        *,
        arguments: Sequence[Argument] = (),
        bulk: Sequence[bytes] = (),
        cancellation: Cancellation | None = None,
    ) -> communicator.Body | Bulk:
        """One call on the calling thread's pair; its result, or CallFailed. `name`: for the trace, if it is not the method's.

        `timeout` in seconds; a call from inside a host function has no more than is left to the call around it. A host function that
        runs is not interrupted: its caller's time is looked at when it returns. `arguments`: iterators of the request's; `bulk`: beside it.
        """
        pair = self._threads.own()
        around = self.deadlines.until
        deadline = self.deadlines.of(timeout)
        denied = self.denials
        began: list[int] = []

        def begin() -> None:
            if pair.abandoned:  # before it was made
                return
            try:
                call = self._speaker.made(pair.number, method, body, deadline, began.append, bulk)
                for each in arguments:
                    each.begin(call)
            except BaseException as error:  # noqa: BLE001 - for who waits
                pair.mailbox.put(NotMade(error))

        try:
            steps.take(begin if self.telemetry is None else self.telemetry.bound(begin))
            if cancellation is not None:
                cancellation.begin(pair)
            while True:
                item = self.wait(pair.mailbox, deadline.until)
                if isinstance(item, communicator.Called):
                    self.serve(item, deadline)
                    item = None  # and what is beside it
                    if pair.abandoned:
                        raise DeadlineError(
                            "a call from inside a host function took too long, so its caller's outcome is unknown"
                        )
                elif isinstance(item, communicator.Replied) and item.call in began:
                    break
                elif isinstance(item, NotMade):
                    raise item.error
                elif isinstance(item, AdytonError):
                    pair.mailbox.put(item)  # for the calls around this one
                    raise type(item)(*item.args)
                elif isinstance(item, Cancellation):
                    pair.cancelled = item  # perhaps of a call around this one
                if cancellation is not None and pair.cancelled is cancellation:
                    raise CancelledError
        except queue.Empty:
            self._abandon(pair, began, name or method)
            raise deadline.error(WAITED_FOR.get(method, "the entry")) from None
        except AdytonError:
            self._over(began, name or method)
            raise
        except BaseException:  # KeyboardInterrupt and the like, at any moment
            self._abandon(pair, began, name or method)
            self.deadlines.until = around
            raise
        finally:
            for each in arguments:
                each.stop()
        self._over(began, name or method)
        if item.ok:
            return result_of(item)
        if deadline.over:  # the enclave may have been the first to notice
            raise deadline.error(WAITED_FOR.get(method, "the entry"))
        raise CallFailed(decode(item.body, Raised), denied=self.denials > denied)

    def new_results(self, mailbox: Mailbox | None = None) -> Results:
        """For a `stream`: of the calling thread, or of the task whose mailbox it is. `results.cancel` them unless they come to their end."""
        return Results(self._threads.new(mailbox))

    def stream(
        self, results: Results, request: EnterRequest, timeout: float | None, bulk: Sequence[bytes] = ()
    ) -> Deadline:
        """Call an entry whose result is a stream, on a pair of its own."""
        pair, deadline = results.pair, self.deadlines.of(timeout)

        def begin() -> None:
            self._speaker.made(
                pair.number, "stream", request, deadline, lambda call: self.results.began(call, results), bulk
            )

        begin_here = begin if pair.pooled else functools.partial(steps.take_and_wait, begin)
        if self.telemetry is None:
            begin_here()
        else:
            self.telemetry.stream(results, request.entry, begin_here)
        return deadline

    def async_call(
        self,
        request: EnterRequest,
        timeout: float | None,
        arguments: list[Argument],
        bulk: Sequence[bytes] = (),
        seen: Any = None,
    ) -> UnpairedCall:
        """Call an entry from a task, without a pair. `seen`: what telemetry, if there is any, has `began`."""
        if self.telemetry is None:
            return self.unpaired.begin(request, self.deadlines.of(timeout), arguments, bulk)
        with self.telemetry.within(seen):
            return self.unpaired.begin(request, self.deadlines.of(timeout), arguments, bulk, contextvars.copy_context())

    @property
    def denials(self) -> int:
        """How many host calls the policy has refused."""
        return self._executor.denials

    def over(self, call: int, name: str) -> None:
        """A call has come to its end, or is waited for no longer."""
        self.tally.ended()
        if self._trace is not None:
            self._trace.returned(call, name)

    def _over(self, calls: list[int], name: str) -> None:
        while calls:
            self.over(calls.pop(), name)

    def wait(self, mailbox: Mailbox | queue.SimpleQueue[Any], deadline: float | None) -> Any:
        """The next item; queue.Empty at the deadline. Meanwhile, look after the peer."""
        while True:
            left = TICK if deadline is None else min(TICK, deadline - time.monotonic())
            try:
                return mailbox.get(timeout=max(0.0, left))
            except queue.Empty:
                if left < TICK:
                    raise
            steps.take(self.tick)

    def tick(self) -> None:
        """Somebody waits, twice a second: look whether the peer lives."""
        if self._speaker.error is None and (error := self._line.tick(self._speaker.tell_time)) is not None:
            self.fail(error)

    def _abandon(self, pair: Pair, began: list[int], name: str) -> None:
        """Nobody waits on it any more; `began`: the call that was made, if one was."""
        pair.abandoned = True

        def step() -> None:
            with self._lock:
                if self._speaker.error is None:
                    for call in began:
                        self._session.cancel(call)
                    settle(self._session, pair.number, pair)
                    self._threads.drop_if_idle(pair.number)
            self._over(began, name)
            self._line.wake()

        steps.take(step)

    # -- host calls ---------------------------------------------------------------------------------------------------

    def serve(self, called: communicator.Called, deadline: Deadline) -> None:
        """Execute a host call on the thread that waits on its pair, in a call that has so much time."""
        around, self.deadlines.until = self.deadlines.until, deadline.until
        pair = self._pairs.get(called.pair)
        serving = set() if pair is None else pair.serving
        try:
            serving.add(called.call)
            self._hosts.serve(called)
        finally:
            serving.discard(called.call)
            self.deadlines.until = around

    def fail(self, error: AdytonError) -> None:
        """End the connection: the enclave, or this client, does what it must not."""
        self._lost(error)
        self._line.break_off()

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
        for finished in self.results.drop_ended():
            with contextlib.suppress(RuntimeError):  # the client is closed
                self._hosts.order.submit(finished)
        self._threads.dispose_ended(is_open=self._line.begun and self._is_open())

    def sent(self) -> None:
        """See line.Owner."""
        if self._session.pending_bytes < CAUGHT_UP:
            self._sockets.caught_up()

    def arrived(self, events: list[communicator.Event]) -> None:
        """See line.Owner."""
        for event in events:
            self._dispatch(event)

    def over_for_good(self, error: AdytonError) -> None:
        """See line.Owner."""
        # What the enclave had written is written before its files are closed.
        with contextlib.suppress(RuntimeError, TimeoutError):
            self._hosts.order.submit(lambda: None).result(ORDER_TIMEOUT)
        self._lost(error)
        self._executor.close()  # the enclave's locks and open files end with it, not when this client is closed

    def _dispatch(self, event: communicator.Event) -> None:
        match event:
            case communicator.Called(call, 0, "net", body):
                self._sockets.request(call, net.request_of(body))
            case communicator.Called(_, 0, "items", _):
                self.results.arrived(event)
            case communicator.Called(_, 0, _, _):
                self._hosts.unpaired(event)
            case communicator.Called(call, number, _, _):
                with self._lock:
                    pair = self._pairs.get(number)
                    if pair is None or pair.abandoned:
                        settle(self._session, number, pair)  # if that was not done since it came
                    elif pair.pooled:
                        pair.serving.add(call)
                        self._hosts.functions.submit(self._hosts.serve, event)
                    else:
                        pair.mailbox.put(event)  # the last: its thread serves it from now on
            case communicator.Replied():
                self._replied(event)
            case communicator.Notified("net", body):
                self._sockets.message(net.from_enclave(body))
            case communicator.Notified("refused", body):
                self._hosts.refused(body)
            case communicator.Notified("output", body):
                self._hosts.wrote(body)
            case communicator.Notified("counts", body):
                self.tally.told = decode(body, Counts)
                if self._trace is not None:
                    self._trace.counted(self.tally.told)
            case communicator.Notified("spans", body) if self.telemetry is not None:
                self.telemetry.told(body)
            case communicator.Notified("ended", body):
                self.ended_because = body.decode("utf-8", "replace")[:1024]
            case _:
                pass

    def _replied(self, event: communicator.Replied) -> None:
        if not event.pair:
            if not self.arguments.replied(event):
                self.unpaired.answered(event)
            return
        ended = self.results.replied(event)
        pair = self._pairs.get(event.pair)
        if pair is None:
            return
        if not (pair.abandoned or ended):
            pair.mailbox.put(event)
            return
        with self._lock:
            settle(self._session, event.pair, pair)
            self._threads.drop_if_idle(event.pair)

    def processes(self, timeout: float) -> dict[str, ProcessReport]:
        """What the server says of the enclave's processes: see Transport."""
        return self._transport.processes(timeout)
