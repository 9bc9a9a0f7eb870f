"""The enclave's host calls, executed: on the thread that waits on their pair; else on a few threads, in order where that matters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from adyton.communicator import session as communicator
from adyton.communicator.messages import ORDER, Raised, encode
from adyton.communicator.sequence import Sequence
from adyton.errors import AdytonError, RemoteProtocolError
from adyton.hostcall import abi
from adyton.hostcall.client.executor import Executor, FunctionRaised
from adyton.hostcall.client.lock_calls import may_wait
from adyton.hostcall.encoding import encode as encode_result
from adyton.hostcall.encoding import restored
from adyton.proto.values import BULK
from adyton.remote.client_pairs import NOBODY_WAITS
from adyton.remote.deadlines import Deadlines

if TYPE_CHECKING:
    from adyton.telemetry.calls import Telemetry

_T = TypeVar("_T")
POOL_THREADS = 8
FUNCTION_THREADS = (
    32  # for registered functions that no thread waits for: they may wait for the enclave, which waits for its files
)
MAX_AHEAD = 1 << 27  # bytes of ordered host calls that wait for one before them
_REQUEST: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(abi.Request)
_OUTPUT = msgspec.msgpack.Decoder(abi.Output)
_REFUSED = msgspec.msgpack.Decoder(abi.RefusedCall)


class Answer(Protocol):
    """How a host call is answered."""

    def __call__(
        self, called: communicator.Called, *, ok: bool, body: communicator.Parts, bulk: tuple[bytes, ...] = ()
    ) -> None: ...


class HostCalls:
    """`fail` ends the connection: the enclave misbehaves. `deadlines`: the client's, whose calls have no more time than that."""

    def __init__(
        self,
        executor: Executor,
        answer: Answer,
        fail: Callable[[AdytonError], None],
        deadlines: Deadlines,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._telemetry = telemetry
        self._executor = executor
        self._answer = answer
        self._fail = fail
        self._deadlines = deadlines
        self._sequence: Sequence[communicator.Called] = Sequence(communicator.Limits().in_flight, MAX_AHEAD)
        self._lock_waits = threading.Semaphore(abi.MAX_LOCK_WAITS)
        self.pool = ThreadPoolExecutor(POOL_THREADS, "adyton-host")
        self.functions = ThreadPoolExecutor(FUNCTION_THREADS, "adyton-function")
        self.order = ThreadPoolExecutor(1, "adyton-order")  # what must happen one after the other

    def shutdown(self) -> None:
        """Begin no more."""
        for each in (self.pool, self.functions, self.order):
            each.shutdown(wait=False)

    def unpaired(self, called: communicator.Called) -> None:
        """One without a pair has come."""
        if called.method == "order":
            if len(called.body) < ORDER.size:
                raise RemoteProtocolError("an ordered host call without its number")
            for each in self._sequence.arrived(ORDER.unpack_from(called.body)[0], called, len(called.body)):
                self.order.submit(self.serve, each)
        else:
            (self.functions if called.method == "function" else self.pool).submit(self.serve, called)

    def wrote(self, body: communicator.Body) -> None:
        """The enclave wrote to its standard output or error. RemoteProtocolError."""
        self._executor.write_output(_decoded(_OUTPUT, body, "output from the enclave"))

    def refused(self, body: communicator.Body) -> None:
        """A system call of its program was refused there. RemoteProtocolError."""
        self._executor.refused_call(_decoded(_REFUSED, body, "account of a refused call"))

    def serve(self, called: communicator.Called) -> None:
        """Execute one host call and reply."""
        if called.method not in ("host", "function", "order"):
            body = encode(Raised("state", "Refused", f"no method {called.method!r} on the client"))
            self._answer(called, ok=False, body=body)
            return
        try:
            start = ORDER.size if called.method == "order" else 0
            request = restored(_REQUEST.decode(memoryview(called.body)[start:]), called.body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._fail(RemoteProtocolError(f"malformed host call from the enclave: {error}"))
            return
        if isinstance(request, abi.Call):
            request = msgspec.structs.replace(request, bulk=called.bulk)
        elif called.bulk:
            self._fail(RemoteProtocolError("a host call from the enclave with bulk that it cannot have"))
            return
        if may_wait(request) and not self._lock_waits.acquire(blocking=False):
            self._answer(called, ok=True, body=msgspec.msgpack.encode(abi.Failed("ENOLCK")))
        elif may_wait(request):
            # Not on a thread of the pool, nor on a caller's: it may wait for long.
            threading.Thread(
                target=self._wait_for_lock, args=(called, request), name="adyton-lock", daemon=True
            ).start()
        elif called.method == "order" and isinstance(request, abi.Sync | abi.SyncDirectory | abi.SyncAll):
            self.pool.submit(
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
        bulk: tuple[bytes, ...] = ()
        around = self._deadlines.until
        if isinstance(request, abi.Call) and request.left is not None:
            ends = time.monotonic() + request.left
            self._deadlines.until = ends if around is None else min(around, ends)
        try:
            if self._telemetry is None:
                result = self._executor.execute(request)
            else:
                result = self._telemetry.serving(called, request, self._executor.execute)
            if isinstance(result, abi.Value) and len(result.result) >= BULK:
                result, bulk = msgspec.structs.replace(result, result=b""), (result.result,)
            body = encode_result(result)
        except FunctionRaised as raised:
            ok, body = False, encode(Raised(raised.kind, *raised.described()))
        except BaseException:  # KeyboardInterrupt and SystemExit are for this thread; the enclave's goes on
            self._answer(called, ok=False, body=NOBODY_WAITS)
            raise
        finally:
            self._deadlines.until = around
        self._answer(called, ok=ok, body=body, bulk=bulk)


def _decoded(decoder: msgspec.msgpack.Decoder[_T], body: communicator.Body, what: str) -> _T:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"malformed {what}: {error}") from error
