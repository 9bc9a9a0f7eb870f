"""The image's code inside the guest: import it, and run its entries, with arguments checked before any of it runs.

What is taken when is in `lifecycle`.
"""

from __future__ import annotations

import asyncio
import builtins
import contextvars
import functools
import inspect
import os
import threading
import traceback
from collections.abc import Callable, Coroutine
from types import CoroutineType, TracebackType
from typing import Any

from adyton.communicator.messages import EnterRequest, Raised, decode, encode
from adyton.errors import AdytonError, ClosedError, EnclaveTypeError, UsageError
from adyton.proto.values import Bulk, Signature, Stream, encode_or_bulk
from adyton.runtime.process.guest.calls import ArgumentStream, AsyncArgumentStream, Call
from adyton.runtime.process.guest.exceptions import exception_of
from adyton.runtime.process.guest.lifecycle import Input, Lifecycle
from adyton.runtime.process.guest.results import send_all, send_all_async
from adyton.trusted.application import TrustedApplication

_RUNTIME = os.path.dirname(__file__)
MAX_TEXT = 16 << 10  # characters of a message or traceback that leave the enclave


class Refused(Exception):  # noqa: N818 - not an error of the enclave's code
    """A call that is answered without running any of the enclave's code."""

    def __init__(self, raised: Raised) -> None:
        super().__init__(raised.message)
        self.raised = raised


def _refuse(kind: Any, message: str) -> Refused:
    return Refused(Raised(kind=kind, type="Refused", message=message))


class Application:
    """One TrustedApplication, or the plain functions of a module, with its lifecycle."""

    def __init__(self, *, debug: bool) -> None:
        self._debug = debug
        self._lifecycle = Lifecycle()
        self._instance: TrustedApplication | None = None
        self._entries: dict[str, tuple[Callable[..., Any], Signature | EnclaveTypeError]] = {}
        self._loops = threading.local()

    def _apply(self, what: Input) -> None:
        try:
            self._lifecycle.apply(what)
        except ClosedError as error:
            raise _refuse("state", error.message) from None

    def load(self, found: Any, entry: str, names: list[str], config: bytes) -> list[str]:
        """Initialize `found` (what `entry` names: an Enclave, a TrustedApplication class, or a module of which `names` are the
        entries), and return the entries' names."""
        self._apply(Input.LOAD)
        try:
            if inspect.ismodule(found):
                functions = {name: getattr(found, name) for name in names}
            else:
                self._instance = _instance(entry, found)
                functions = self._instance.entries()
            self._entries = {name: (function, _signature(function)) for name, function in functions.items()}
            if self._instance is not None:
                from adyton.proto.enclave import EnclaveConfig

                self._instance.initialize(_message(EnclaveConfig, config))
        except BaseException:
            self._apply(Input.LOAD_FAILED)
            raise
        self._apply(Input.LOADED)
        return sorted(self._entries)

    def enter(self, body: bytes, call: Call | None = None) -> bytes | Bulk:
        """Run one entry; `body` is an EnterRequest. The result, encoded if it is no bulk."""
        request, call = self.request(body), call or Call()
        value = self._begun(request, call)()
        return encode_or_bulk(request.entry, self._awaited(value, call) if isinstance(value, CoroutineType) else value)

    def request(self, body: bytes) -> EnterRequest:
        """What the client wants to be entered."""
        self._apply(Input.ENTER)
        return decode(body, EnterRequest)

    def enter_request(self, request: EnterRequest, call: Call) -> bytes | Bulk:
        """The same with what is decoded already."""
        value = self._begun(request, call)()
        return encode_or_bulk(request.entry, self._awaited(value, call) if isinstance(value, CoroutineType) else value)

    async def enter_async(self, request: EnterRequest, call: Call) -> bytes | Bulk:
        """The same in a task."""
        value = self._begun(request, call)()
        return encode_or_bulk(request.entry, await value if inspect.isawaitable(value) else value)

    def stream(self, body: bytes, call: Call) -> bytes:
        """Run one entry whose result is a stream, and send its items; b""."""
        request = self.request(body)
        function = self._begun(request, call, stream=True)
        try:
            value = function()
            if isinstance(value, CoroutineType):
                value = self._awaited(value, call)
            if hasattr(value, "__aiter__"):
                self._awaited(send_all_async(call, request.entry, value), call)
            else:
                send_all(call, request.entry, value)
        finally:
            call.end_results()
        return b""

    def is_async(self, entry: str) -> bool:
        """Whether it is run by a task."""
        found = self._entries.get(entry)
        return found is not None and inspect.iscoroutinefunction(found[0])

    def streams(self) -> list[str]:
        """The entries whose results are streams."""
        found = self._entries.items()
        return sorted(name for name, (_, each) in found if isinstance(each, Signature) and each.stream is not None)

    def _begun(self, request: EnterRequest, call: Call, *, stream: bool = False) -> Callable[[], Any]:
        """The entry with its arguments, which have been checked."""
        call.begin(request.left)
        if request.entry not in self._entries:
            known = (
                "; ".join(_known(name, signature) for name, (_, signature) in sorted(self._entries.items())) or "none"
            )
            raise _refuse("unknown-entry", f"no entry {request.entry!r}; entries are: {known}")
        function, signature = self._entries[request.entry]
        if isinstance(signature, EnclaveTypeError):
            raise _refuse("type", signature.message)
        if (signature.stream is not None) != stream:
            raise _refuse("type", f"{signature}: the result is {'no' if stream else 'a'} stream")
        opened: list[int] = []

        def open_stream(number: int, of: Stream, what: str) -> Any:
            opened.append(number)
            kind = AsyncArgumentStream if of.asynchronous else ArgumentStream
            return kind(call, number, of, what, exception_of)

        (arguments, bulk), call.bulk = (request.arguments, call.bulk), ()
        if bulk and not arguments:
            arguments, *bulk = bulk
        try:
            positional, keywords = signature.decode_arguments(arguments, request.encoding, open_stream, bulk)
        except EnclaveTypeError as error:
            raise _refuse("type", str(error)) from None
        call.opened(opened)
        return functools.partial(function, *positional, **keywords)

    def _awaited(self, coroutine: Coroutine[Any, Any, Any], call: Call) -> Any:
        """What it comes to, in the calling thread's context: a Runner's own is that of its first call."""
        return self._runner().run(call.cancellable(coroutine), context=contextvars.copy_context())

    def run(self, body: bytes, call: Call | None = None) -> bytes:
        """TrustedApplication.run; `body` is an EnterRequest of a serialized EnclaveInput, the result a serialized EnclaveOutput."""
        request, call = self.request(body), call or Call()
        from adyton.proto.enclave import EnclaveInput, EnclaveOutput

        call.begin(request.left)
        given, call.bulk = request.arguments or b"".join(call.bulk), ()
        instance = self._instance or TrustedApplication()
        output = instance.run(_message(EnclaveInput, given))
        if output is None:
            return b""
        if not isinstance(output, EnclaveOutput):
            raise TypeError(f"run() must return an EnclaveOutput or None, not {type(output).__name__}")
        return output.SerializeToString()

    def finalize(self, body: bytes) -> bytes:
        """TrustedApplication.finalize; `body` is a serialized EnclaveFinal."""
        self._apply(Input.FINALIZE)
        try:
            if self._instance is not None:
                from adyton.proto.enclave import EnclaveFinal

                self._instance.finalize(_message(EnclaveFinal, body))
        finally:
            self._apply(Input.FINALIZE_ENDED)
        return b""

    def _runner(self) -> asyncio.Runner:
        if not hasattr(self._loops, "runner"):
            self._loops.runner = asyncio.Runner()
        runner: asyncio.Runner = self._loops.runner
        return runner

    def end_of_thread(self) -> None:
        """Close what the calling thread kept for its `async def` entries."""
        if hasattr(self._loops, "runner"):
            self._loops.runner.close()
            del self._loops.runner  # the main thread goes on

    def raised(self, error: BaseException) -> bytes:
        """An encoded Raised for what a call ended with."""
        if isinstance(error, Refused):
            return encode(error.raised)
        kind: Any = "raised"
        if isinstance(error, EnclaveTypeError):
            kind = "type"
        text = "".join(traceback.format_exception(error.with_traceback(_of_program(error)))) if self._debug else ""
        message = error.message if isinstance(error, AdytonError) else str(error)
        return encode(
            Raised(
                kind=kind,
                type=type(error).__qualname__[:256],
                message=_sendable(message)[:MAX_TEXT],
                builtin=_builtin(error),
                errno=error.errno or 0 if isinstance(error, OSError) and isinstance(error.errno, int) else 0,
                traceback=_sendable(text)[-MAX_TEXT:],
                argument=getattr(error, "adyton_argument", 0),
            )
        )


def _message(kind: Any, body: bytes) -> Any:
    """A protobuf message of the client's."""
    try:
        return kind.FromString(body)
    except Exception as error:  # noqa: BLE001 - DecodeError, whose module depends on protobuf's implementation
        raise _refuse("type", f"this is no serialized {kind.DESCRIPTOR.name}: {error}") from None


def _known(name: str, signature: Signature | EnclaveTypeError) -> str:
    return str(signature) if isinstance(signature, Signature) else name


def _signature(function: Callable[..., Any]) -> Signature | EnclaveTypeError:
    """An entry whose annotations cannot be carried is refused when it is called, and no hindrance to the others."""
    try:
        return Signature(function, streams=True)
    except EnclaveTypeError as error:
        return error


def _instance(entry: str, found: Any) -> TrustedApplication:
    if isinstance(found, type) and issubclass(found, TrustedApplication):
        found = found()
    if not isinstance(found, TrustedApplication):
        raise UsageError(
            f"{entry} is neither an Enclave nor a TrustedApplication class: correct `entry` in pyproject.toml"
        )
    return found


def _of_program(error: BaseException) -> TracebackType | None:
    """The part of the traceback that is the program's."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None and step.tb_frame.f_code.co_filename.startswith(_RUNTIME):
        step = step.tb_next
    return step


def _builtin(error: BaseException) -> str:
    for base in type(error).__mro__:
        if base.__module__ == "builtins" and getattr(builtins, base.__name__, None) is base:
            return str(base.__name__)
    return "Exception"


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
