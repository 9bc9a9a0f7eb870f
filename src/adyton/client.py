"""EnclaveClient: a loaded enclave, called from any number of threads."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

from adyton.communicator.messages import RUN, EnterRequest, Raised
from adyton.communicator.session import Body
from adyton.errors import (
    CANONICAL_CODES,
    AdytonError,
    ClosedError,
    DeadlineError,
    EnclaveError,
    EnclaveTypeError,
    HostCallDeniedError,
    IntegrityError,
    PlatformError,
    RemoteProtocolError,
    UnknownEntryError,
    UsageError,
    enclave_error,
)
from adyton.proto.enclave import EnclaveFinal, EnclaveInput, EnclaveOutput, StatusProto
from adyton.proto.values import Bulk, Encoding, ItemDecoder, Signature, decode_result, encode_arguments
from adyton.remote.arguments import Argument
from adyton.remote.client_pairs import CallFailed, Cancellation
from adyton.remote.deadlines import Deadline
from adyton.remote.process_metrics import POLL_TIMEOUT
from adyton.remote.proxy_client import ProxyClient
from adyton.remote.results import AsyncResultStream, LoopMailbox, Results, ResultStream

if TYPE_CHECKING:
    from adyton.attestation.identity import EnclaveIdentity
    from adyton.processes_pb2 import ProcessReport
    from adyton.provision.client import RemoteProvision

_P = ParamSpec("_P")
_R = TypeVar("_R")

_UNSEEN: AbstractContextManager[Any] = contextlib.nullcontext()
SUBMIT_THREADS = 32  # that `submit` uses, each with an enclave thread of its own


class _Core:
    """What all views of one enclave share."""

    def __init__(self, name: str, proxy: ProxyClient, provision: RemoteProvision | None) -> None:
        self.name = name
        self.proxy = proxy
        self.provision = provision
        self.lock = threading.Lock()
        self.closed = False  # or about to be
        self.gone = False
        self.threads: ThreadPoolExecutor | None = None
        self.submitted: set[Future[Any]] = set()  # that have no outcome
        self.signatures: dict[Callable[..., Any], Signature] = {}
        self.on_close: list[Callable[[], None]] = []


class EnclaveClient:
    """A loaded enclave. Made by `adyton.load` and `EnclaveManager.load_enclave`; a context manager that closes it."""

    def __init__(self, core: _Core, timeout: float | None = None) -> None:
        self._core = core
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<EnclaveClient {self.name!r}{' closed' if self._core.closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finalize(EnclaveFinal())
            return
        with contextlib.suppress(AdytonError):  # what ended the block says more
            self.finalize(EnclaveFinal(), wait=False)

    @property
    def name(self) -> str:
        """The name that it was loaded under."""
        return self._core.name

    @property
    def identity(self) -> EnclaveIdentity:
        """What its evidence proved when it was loaded."""
        identity = self._core.proxy.identity
        assert identity is not None
        return identity

    @property
    def enclave_id(self) -> str:
        """By what its server knows it, for `adyton attest`; "" where it has none: of this machine's own, or one that dialled back."""
        return self._core.proxy.enclave_id

    @property
    def evidence(self) -> bytes:
        """The evidence itself, as the platform signed it."""
        return self._core.proxy.evidence

    @overload
    def call(self, entry: str, /, *args: Any, **kwargs: Any) -> Any: ...
    @overload
    def call(self, entry: Callable[_P, Coroutine[Any, Any, _R]], /, *args: _P.args, **kwargs: _P.kwargs) -> _R: ...
    @overload
    def call(self, entry: Callable[_P, AsyncIterator[_R]], /, *args: _P.args, **kwargs: _P.kwargs) -> Iterator[_R]: ...
    @overload
    def call(self, entry: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R: ...
    def call(self, entry: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run an entry in the enclave, and return its result; of an entry that gives a stream, an iterator over its items.

        The calling thread is paired with one enclave thread. While it waits, it executes registered functions that the entry
        calls. If it stops waiting (KeyboardInterrupt, or DeadlineError after `options(timeout=)`), the entry is cancelled: one that is
        `async def` ends with CancelledError, a generator is closed; any other goes on, and its outcome is unknown. Iterators among the
        arguments are read by threads of their own, as the entry takes their items.
        Raises UnknownEntryError, EnclaveTypeError, EnclaveError (an instance of the built-in
        exception that the entry raised, too), HostCallDeniedError, ConnectionLostError, ClosedError.
        """
        return self._called(entry, args, kwargs, None)

    def call_encoded(self, entry: str, arguments: bytes, encoding: Encoding) -> bytes:
        """Run an entry whose arguments are encoded already (adyton.proto.values); its result in MessagePack."""
        body = self._call("enter", EnterRequest(entry, arguments, encoding), entry)
        return _encoded(body)

    def stream_encoded(self, entry: str, arguments: bytes, encoding: Encoding) -> ResultStream:
        """The same of an entry that `gives_stream`: an iterator over its items."""
        return self._stream(entry, EnterRequest(entry, arguments, encoding), Any, [], [])

    def gives_stream(self, entry: str) -> bool:
        """Whether an entry's result is a stream."""
        return entry in self._core.proxy.streaming

    def submit(self, entry: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """`call` from a thread of ours. Cancelling the future, which can be done until there is a result, cancels the call."""
        future: Future[Any] = Future()
        cancellation = Cancellation()

        def run() -> None:
            result, error = None, None
            try:
                if not future.cancelled():
                    result = self._called(entry, args, kwargs, cancellation)
            except BaseException as raised:  # noqa: BLE001 - for who asks the future
                error = raised
            if not future.set_running_or_notify_cancel():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def done(_: object) -> None:
            self._core.submitted.discard(future)
            if future.cancelled():
                cancellation.cancel()

        with self._core.lock:
            if self._core.closed:
                raise _closed(self.name)
            if self._core.threads is None:
                self._core.threads = ThreadPoolExecutor(SUBMIT_THREADS, "adyton-submit")
            telemetry = self._core.proxy.telemetry
            self._core.threads.submit(run if telemetry is None else telemetry.bound(run))
        self._core.submitted.add(future)
        future.add_done_callback(done)
        return future

    @overload
    async def acall(self, entry: str, /, *args: Any, **kwargs: Any) -> Any: ...
    @overload
    async def acall(
        self, entry: Callable[_P, Coroutine[Any, Any, _R]], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> _R: ...
    @overload
    async def acall(
        self, entry: Callable[_P, AsyncIterator[_R] | Iterator[_R]], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> AsyncIterator[_R]: ...
    @overload
    async def acall(self, entry: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R: ...
    async def acall(self, entry: Any, /, *args: Any, **kwargs: Any) -> Any:
        """`call` for asyncio; of an entry that gives a stream, an asynchronous iterator. It takes no thread, and has no pair: any number of
        calls may be under way. Cancelling the task cancels the call. Registered functions that it calls are executed by threads of ours.
        """
        name, signature = self._entry(entry)
        self._check_open()
        request, arguments, bulk = self._request(name, args, kwargs)
        proxy = self._core.proxy
        if name in proxy.streaming:
            loop, item = asyncio.get_running_loop(), _item(name, signature)
            mailbox = LoopMailbox(loop)
            results = proxy.new_results(mailbox)
            deadline = proxy.stream(results, request, self._timeout, bulk)
            proxy.unpaired.watch.add(results, None, lambda: None)
            return AsyncResultStream(*self._opened(name, item, results, deadline, arguments, loop))
        annotation = _annotation(name, signature)
        with _UNSEEN if proxy.telemetry is None else proxy.telemetry.awaiting(name) as seen:
            call = proxy.async_call(request, self._timeout, arguments, bulk, seen)
            try:
                return decode_result(name, await call.future, annotation)
            except CallFailed as failed:
                error = _failure(failed, arguments)
            except BaseException:  # CancelledError, or GeneratorExit of a coroutine that is let go of
                call.cancel()
                raise
            raise error

    def options(self, *, timeout: float | None = None) -> EnclaveClient:
        """The same enclave, with other options: `timeout`, seconds for each call, and for the program's finalize."""
        return EnclaveClient(self._core, checked_timeout(timeout))

    def enter_and_run(self, enclave_input: EnclaveInput) -> EnclaveOutput:
        """Run the program's TrustedApplication.run. Raises as `call` does, and an EnclaveError of the output's status if that is not OK."""
        if not isinstance(enclave_input, EnclaveInput):
            raise EnclaveTypeError(f"enter_and_run takes an EnclaveInput, not {type(enclave_input).__name__}")
        body = self._call("run", EnterRequest(RUN, enclave_input.SerializeToString()))
        try:
            output = EnclaveOutput.FromString(_encoded(body))
        except Exception as error:  # noqa: BLE001 - DecodeError, whose module depends on protobuf's implementation
            raise RemoteProtocolError(f"the enclave's run() returned no serialized EnclaveOutput: {error}") from None
        if output.status.code:
            raise _of_status(output.status)
        return output

    def is_same(self, other: EnclaveClient) -> bool:
        """Whether both call the same enclave, be it with other options."""
        return self._core is other._core

    def stats(self) -> dict[str, Any]:
        """Counts since the load, as `--stats` writes them."""
        return self._core.proxy.tally.stats()

    def summary(self) -> str:
        """What its entries have cost so far, in one line: how often and how long they waited for this client, of how long they took, and
        how many requests about this client's files were answered without asking it. By the enclave's own count, but for the seconds.
        """
        counts, seconds = self._core.proxy.tally.counts(), self._core.proxy.tally.seconds
        waited = min(counts.waiting / 1e9, seconds)
        trips = f"{counts.round_trips} round trip{'' if counts.round_trips == 1 else 's'}"
        cached = f"{counts.hits} of {counts.hits + counts.misses} requests from cache"
        return f"{trips}, {waited:.2f} s waiting of {seconds:.2f} s, {cached}"

    @property
    def refused(self) -> dict[str, int]:
        """The system calls that the enclave's runtime refused to its program, or did not know, and how often: see `adyton syscalls`."""
        return self._core.proxy.tally.refused()

    def processes(self) -> dict[str, ProcessReport]:
        """What the server's kernel says of the enclave's processes now, by "proxy", "supervisor" and "guest": each has `stat` and `status`
        (/proc/PID/stat and /proc/PID/status), or an `error`. The server's operator can make it up: it is no evidence.

        Raises UsageError (an enclave of this process), ConnectionLostError, DeadlineError, PlatformError, ClosedError.
        """
        if self._core.closed:
            raise _closed(self.name)
        return self._core.proxy.processes(self._timeout or POLL_TIMEOUT)

    def close(self) -> None:
        """Finalize the program, and end the enclave, whatever finalize says; its error is raised afterwards. Idempotent.

        With a timeout, submitted calls and then finalize have so many seconds each; the enclave is ended then, and DeadlineError raised.
        """
        self.finalize(EnclaveFinal())

    def finalize(self, final: EnclaveFinal, *, skip: bool = False, wait: bool = True) -> bool:
        """`close` with what the program's finalize receives; False: somebody else has closed it, or is at it.

        `skip`: end the enclave without asking it. `wait`: for submitted calls. Other calls that are under way are not waited for: each
        that gets no answer any more raises ClosedError.
        """
        core = self._core
        with core.lock:
            if core.closed:
                return False
            core.closed = True
        error: BaseException | None = None
        try:
            if core.threads is not None:
                core.threads.shutdown(wait=False)  # what has not begun raises ClosedError when it does
            if wait and not skip:
                self._wait_for_submitted()
            if not skip:
                self._call("finalize", final.SerializeToString(), closing=True)
            core.proxy.close()
        except AdytonError as failure:
            error = failure
            core.proxy.abort()
        except BaseException:
            core.proxy.abort()
            raise
        finally:
            with core.lock:
                core.gone = True
            with contextlib.ExitStack() as ends:  # each of them, whatever another one raises; the first first
                for callback in reversed(core.on_close):
                    ends.callback(callback)
                if core.provision is not None:
                    ends.callback(core.provision.finalize)
        if error is not None:
            raise error
        return True

    def on_close(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once the enclave is gone; now, if it is."""
        with self._core.lock:
            gone = self._core.gone
            if not gone:
                self._core.on_close.append(callback)
        if gone:
            callback()

    # -- within -------------------------------------------------------------------------------------------------------

    def _wait_for_submitted(self) -> None:
        patience = self._timeout and min(self._timeout, threading.TIMEOUT_MAX)
        until = None if patience is None else time.monotonic() + patience
        left = len(wait(list(self._core.submitted), patience).not_done)
        left += self._core.proxy.unpaired.wait(None if until is None else max(0.0, until - time.monotonic()))
        if left:
            raise DeadlineError(
                f"{left} submitted calls had no outcome within {self._timeout:g} s of closing {self.name!r}: it was ended without "
                "finalize. Wait for them before, or give a longer timeout"
            )

    def _entry(self, entry: str | Callable[..., Any]) -> tuple[str, Signature | None]:
        if isinstance(entry, str):
            return entry, None
        if not callable(entry):
            raise EnclaveTypeError(f"an entry is a name or a function, not {type(entry).__name__}")
        signature = self._core.signatures.get(entry)
        if signature is None:
            signature = self._core.signatures[entry] = Signature(entry, streams=True)
        return signature.name, signature

    def _request(
        self, name: str, positional: Sequence[Any], keywords: Mapping[str, Any]
    ) -> tuple[EnterRequest, list[Argument], list[bytes]]:
        iterators: list[Any] = []
        bulk: list[bytes] = []
        encoded = encode_arguments(name, positional, keywords, iterators, bulk)
        return EnterRequest(name, encoded), self._core.proxy.arguments.of(name, iterators), bulk

    def _called(
        self,
        entry: str | Callable[..., Any],
        positional: Sequence[Any],
        keywords: Mapping[str, Any],
        cancellation: Cancellation | None,
    ) -> Any:
        name, signature = self._entry(entry)
        request, arguments, bulk = self._request(name, positional, keywords)
        if name in self._core.proxy.streaming:
            return self._stream(name, request, _item(name, signature), arguments, bulk)
        annotation = _annotation(name, signature)
        body = self._call("enter", request, name, arguments=arguments, bulk=bulk, cancellation=cancellation)
        return decode_result(name, body, annotation)

    def _stream(
        self, name: str, request: EnterRequest, item: Any, arguments: list[Argument], bulk: list[bytes]
    ) -> ResultStream:
        self._check_open()
        proxy = self._core.proxy
        results = proxy.new_results()
        try:
            deadline = proxy.stream(results, request, self._timeout, bulk)
            return ResultStream(*self._opened(name, item, results, deadline, arguments))
        except BaseException as error:  # KeyboardInterrupt and the like
            proxy.results.cancel(results)
            results.error = error
            results.over()
            for each in arguments:
                each.stop()
            raise

    def _opened(
        self,
        name: str,
        item: Any,
        results: Results,
        deadline: Deadline,
        arguments: list[Argument],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> tuple[Any, ...]:
        """What a stream that was called is made of. Its arguments are read until it ends."""
        proxy = self._core.proxy
        for each in arguments:
            each.begin(results.call, loop)

        def finished() -> None:
            for each in arguments:
                each.stop()
            proxy.unpaired.watch.remove(results)
            proxy.over(results.call, name)
            results.over()

        def error(failed: CallFailed) -> BaseException:
            return _failure(failed, arguments)

        results.finished = finished
        return proxy, results, ItemDecoder(item, f"{name}(): an item of the result"), error, deadline

    def _check_open(self) -> None:
        if self._core.closed:
            raise _closed(self.name)

    def _call(
        self,
        method: str,
        body: bytes | EnterRequest,
        name: str = "",
        *,
        closing: bool = False,
        arguments: Sequence[Argument] = (),
        bulk: Sequence[bytes] = (),
        cancellation: Cancellation | None = None,
    ) -> Body | Bulk:
        if not closing:
            self._check_open()
        with self._calling(name or method):
            return self._answer(method, body, name, arguments, bulk, cancellation)

    def _calling(self, name: str) -> AbstractContextManager[None]:
        telemetry = self._core.proxy.telemetry
        return _UNSEEN if telemetry is None else telemetry.calling(name)

    def _answer(
        self,
        method: str,
        body: bytes | EnterRequest,
        name: str,
        arguments: Sequence[Argument],
        bulk: Sequence[bytes],
        cancellation: Cancellation | None,
    ) -> Body | Bulk:
        try:
            return self._core.proxy.call(
                method, body, self._timeout, name, arguments=arguments, bulk=bulk, cancellation=cancellation
            )
        except CallFailed as failed:
            error = _failure(failed, arguments)
        raise error


def _encoded(body: Body | Bulk) -> bytes:
    return body.encoded() if isinstance(body, Bulk) else bytes(body)


def _annotation(name: str, signature: Signature | None) -> Any:
    """What a result is decoded as that is no stream."""
    if signature is None:
        return Any
    if signature.stream is not None:
        raise EnclaveTypeError(f"{name}(): the result is a stream here, and none in the enclave: load what you call")
    return signature.returns


def _item(name: str, signature: Signature | None) -> Any:
    """What an item of a stream is decoded as."""
    if signature is None or signature.returns is Any:
        return Any
    if signature.stream is None:
        raise EnclaveTypeError(f"{name}(): the result is a stream in the enclave, and none here: load what you call")
    return signature.stream.item


def _failure(failed: CallFailed, arguments: Sequence[Argument]) -> BaseException:
    """What a failed call raises: what one of its iterators raised, if that is what the entry ended with."""
    error = error_of(failed)
    number = failed.raised.argument
    own = arguments[number - 1].error if 0 < number <= len(arguments) else None
    if own is None:
        return error
    own.__cause__ = error
    return own


def checked_timeout(timeout: float | None) -> float | None:
    """The timeout as it is; UsageError unless it is a number of seconds above 0, or None."""
    if timeout is not None and not (isinstance(timeout, int | float) and 0 < timeout < math.inf):
        raise UsageError(f"timeout={timeout!r}: give a number of seconds above 0")
    return timeout


def _closed(name: str) -> ClosedError:
    return ClosedError(f"enclave {name!r} was destroyed: load it again")


def opened(name: str, proxy: ProxyClient, provision: RemoteProvision | None, timeout: float | None) -> EnclaveClient:
    """The client of an enclave that has just been loaded."""
    return EnclaveClient(_Core(name, proxy, provision), timeout)


def error_of(failed: CallFailed) -> AdytonError:
    """The public error for a call that the enclave answered with Raised."""
    raised = failed.raised
    match raised.kind:
        case "unknown-entry":
            return UnknownEntryError(raised.message)
        case "type":
            return EnclaveTypeError(raised.message)
        case "state":
            return ClosedError(raised.message)
        case "sealed":
            return IntegrityError(raised.message)
        case "platform":
            return PlatformError(raised.message)
        case "usage":
            return UsageError(raised.message)
        case _:
            return _raised(raised, denied=failed.denied)


def _of_status(status: StatusProto) -> EnclaveError:
    """What an output's status says went wrong."""
    code = CANONICAL_CODES[status.code] if 0 < status.code < len(CANONICAL_CODES) else "UNKNOWN"
    error = EnclaveError(code, status.error_message)
    error.code = code
    return error


def _raised(raised: Raised, *, denied: bool) -> EnclaveError:
    base = HostCallDeniedError if denied and raised.builtin == "PermissionError" else EnclaveError
    return enclave_error(base, raised.builtin, raised.type, raised.message, raised.traceback, raised.errno)
