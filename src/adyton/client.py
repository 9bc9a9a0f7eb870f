"""EnclaveClient: a loaded enclave, called from any number of threads."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

from adyton.communicator.messages import EnterRequest, Raised, encode
from adyton.communicator.session import Body
from adyton.errors import (
    CANONICAL_CODES,
    AdytonError,
    ClosedError,
    DeadlineError,
    EnclaveError,
    EnclaveTypeError,
    HostCallDeniedError,
    RemoteProtocolError,
    UnknownEntryError,
    UsageError,
    enclave_error,
)
from adyton.proto.enclave import EnclaveFinal, EnclaveInput, EnclaveOutput, StatusProto
from adyton.proto.values import Encoding, Signature, decode_result, encode_arguments
from adyton.remote.client_pairs import CallFailed
from adyton.remote.process_metrics import POLL_TIMEOUT
from adyton.remote.proxy_client import ProxyClient

if TYPE_CHECKING:
    from adyton.attestation.identity import EnclaveIdentity
    from adyton.processes_pb2 import ProcessReport
    from adyton.provision.client import RemoteProvision

_P = ParamSpec("_P")
_R = TypeVar("_R")

SUBMIT_THREADS = 32  # that `submit` and `acall` use, each with an enclave thread of its own


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
    def evidence(self) -> bytes:
        """The evidence itself, as the platform signed it."""
        return self._core.proxy.evidence

    @overload
    def call(self, entry: str, /, *args: Any, **kwargs: Any) -> Any: ...
    @overload
    def call(self, entry: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R: ...
    def call(self, entry: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run an entry in the enclave, and return its result.

        The calling thread is paired with one enclave thread. While it waits, it executes registered functions that the entry
        calls. If it stops waiting (KeyboardInterrupt, or DeadlineError after `options(timeout=)`), the entry goes on and its
        outcome is unknown. Raises UnknownEntryError, EnclaveTypeError, EnclaveError (an instance of the built-in
        exception that the entry raised, too), HostCallDeniedError, ConnectionLostError, ClosedError.
        """
        name, annotation = self._entry(entry)
        body = encode(EnterRequest(name, encode_arguments(name, args, kwargs)))
        return decode_result(name, self._call("enter", body, name), annotation)

    def call_encoded(self, entry: str, arguments: bytes, encoding: Encoding) -> bytes:
        """Run an entry whose arguments are encoded already (adyton.proto.values); its result in MessagePack."""
        return bytes(self._call("enter", encode(EnterRequest(entry, arguments, encoding)), entry))

    def submit(self, entry: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """`call` from a thread of ours."""
        with self._core.lock:
            if self._core.closed:
                raise _closed(self.name)
            if self._core.threads is None:
                self._core.threads = ThreadPoolExecutor(SUBMIT_THREADS, "adyton-submit")
            call: Callable[..., Any] = self.call
            if self._core.proxy.telemetry is not None:
                call = self._core.proxy.telemetry.bound(call)
            future = self._core.threads.submit(call, entry, *args, **kwargs)
        self._core.submitted.add(future)
        future.add_done_callback(self._core.submitted.discard)
        return future

    async def acall(self, entry: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """`call` for asyncio. Cancelling it stops the waiting; the entry goes on."""
        return await asyncio.wrap_future(self.submit(entry, *args, **kwargs))

    def options(self, *, timeout: float | None = None) -> EnclaveClient:
        """The same enclave, with other options: `timeout`, seconds for each call, and for the program's finalize."""
        return EnclaveClient(self._core, checked_timeout(timeout))

    def enter_and_run(self, enclave_input: EnclaveInput) -> EnclaveOutput:
        """Run the program's TrustedApplication.run. Raises as `call` does, and an EnclaveError of the output's status if that is not OK."""
        if not isinstance(enclave_input, EnclaveInput):
            raise EnclaveTypeError(f"enter_and_run takes an EnclaveInput, not {type(enclave_input).__name__}")
        body = self._call("run", enclave_input.SerializeToString())
        try:
            output = EnclaveOutput.FromString(bytes(body))
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
        return self._core.proxy.stats()

    def summary(self) -> str:
        """What its entries have cost so far, in one line: how often and how long they waited for this client, of how long they took, and
        how many requests about this client's files were answered without asking it. By the enclave's own count, but for the seconds.
        """
        counts, seconds = self._core.proxy.counts(), self._core.proxy.seconds
        waited = min(counts.waiting / 1e9, seconds)
        trips = f"{counts.round_trips} round trip{'' if counts.round_trips == 1 else 's'}"
        cached = f"{counts.hits} of {counts.hits + counts.misses} requests from cache"
        return f"{trips}, {waited:.2f} s waiting of {seconds:.2f} s, {cached}"

    @property
    def refused(self) -> dict[str, int]:
        """The system calls that the enclave's runtime refused to its program, or did not know, and how often: see `adyton syscalls`."""
        return self._core.proxy.refused()

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
        left = wait(list(self._core.submitted), self._timeout and min(self._timeout, threading.TIMEOUT_MAX)).not_done
        if left:
            raise DeadlineError(
                f"{len(left)} submitted calls had no outcome within {self._timeout:g} s of closing {self.name!r}: it was ended without "
                "finalize. Wait for them before, or give a longer timeout"
            )

    def _entry(self, entry: str | Callable[..., Any]) -> tuple[str, Any]:
        if isinstance(entry, str):
            return entry, Any
        if not callable(entry):
            raise EnclaveTypeError(f"an entry is a name or a function, not {type(entry).__name__}")
        signature = self._core.signatures.get(entry)
        if signature is None:
            signature = self._core.signatures[entry] = Signature(entry)
        return signature.name, signature.returns

    def _call(self, method: str, body: bytes, name: str = "", *, closing: bool = False) -> Body:
        if self._core.closed and not closing:
            raise _closed(self.name)
        telemetry = self._core.proxy.telemetry
        if telemetry is None:
            return self._called(method, body, name)
        with telemetry.calling(name or method):
            return self._called(method, body, name)

    def _called(self, method: str, body: bytes, name: str) -> Body:
        try:
            return self._core.proxy.call(method, body, self._timeout, name)
        except CallFailed as failed:
            raise error_of(failed) from None


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
