"""Functions of the client that its enclave may call by name: `functions=[lookup]`."""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from adyton.errors import EnclaveTypeError, NameInUseError, UsageError
from adyton.proto.values import Bulk, Signature, encode_or_bulk

Functions = Iterable[Callable[..., Any]] | Mapping[str, Callable[..., Any]]


class FunctionRaised(Exception):  # noqa: N818 - not an error of this program
    """A call of a registered function ended with `error`, which is for the enclave to see.

    `kind` as in adyton.communicator.messages.Raised: "raised" by the function's own code; "unknown-entry" and "type" before it ran (a
    result that cannot be sent is "type" too).
    """

    def __init__(self, kind: Literal["raised", "unknown-entry", "type"], error: Exception) -> None:
        super().__init__(str(error))
        self.kind = kind
        self.error = error

    def described(self) -> tuple[str, str, str, int]:
        """What the enclave is told of it: its type, its text, the built-in type that it is one of, and the errno of an OSError, or 0."""
        error = self.error
        builtin = next(
            (base.__name__ for base in type(error).__mro__ if getattr(builtins, base.__name__, None) is base),
            "Exception",
        )
        errno = error.errno if isinstance(error, OSError) and isinstance(error.errno, int) else 0
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return type(error).__qualname__[:256], text[:4096], builtin, errno


class HostFunctions:
    """Registered functions by name, each with the types that calls are checked against. Immutable."""

    def __init__(self, functions: Functions = ()) -> None:
        """`functions`: callables, registered as their `__name__`; or names with callables.

        UsageError for what has no usable name or is `async def`, NameInUseError for two of one name, EnclaveTypeError for annotations
        that cannot be carried.
        """
        if callable(functions):
            name = getattr(functions, "__name__", "lookup")
            raise UsageError(f"functions={name}: give a list of functions: functions=[{name}]")
        named = functions.items() if isinstance(functions, Mapping) else [(_name(each), each) for each in functions]
        self._functions: dict[str, tuple[Callable[..., Any], Signature]] = {}
        for name, function in named:
            if name in self._functions:
                raise NameInUseError(f"two functions are registered as {name}: rename one, or pass names as a mapping")
            if not name.isidentifier() or not callable(function):
                raise UsageError(
                    f"{name!r}: {function!r} cannot be registered; pass a function whose name is an identifier"
                )
            if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
                raise UsageError(
                    f"{name}() is `async def`, which an enclave cannot call on its client; register a plain function"
                )
            self._functions[name] = (function, Signature(function))

    @property
    def names(self) -> frozenset[str]:
        """What is registered."""
        return frozenset(self._functions)

    def call(self, name: str, arguments: bytes, bulk: Sequence[bytes] = ()) -> bytes | Bulk:
        """The function's encoded result for encoded arguments (adyton.proto.values), and what is beside them; FunctionRaised if it has none.

        KeyboardInterrupt and SystemExit pass through: they are for the client's thread that the function runs on.
        """
        if name not in self._functions:
            known = ", ".join(sorted(self._functions)) or "none"
            text = f"the client registered no function {name}() (registered: {known}); pass functions=[{name}] when loading"
            raise FunctionRaised("unknown-entry", LookupError(text))
        function, signature = self._functions[name]
        if bulk and not arguments:
            arguments, *bulk = bulk
        try:
            positional, keywords = signature.decode_arguments(arguments, bulk=bulk)
        except EnclaveTypeError as error:
            raise FunctionRaised("type", error) from error
        try:
            result = function(*positional, **keywords)
        except Exception as error:
            raise FunctionRaised("raised", error) from error
        try:
            return encode_or_bulk(name, result)
        except EnclaveTypeError as error:
            raise FunctionRaised("type", error) from error


def _name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", None)
    if not isinstance(name, str):
        raise UsageError(
            f"{function!r} has no name to be called by; pass a function, or a mapping of names to callables"
        )
    return name
