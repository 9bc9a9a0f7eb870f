"""Arguments and results on the wire, checked against a function's annotations. Never pickle.

A call's arguments are one array `[positional, keywords]`, in MessagePack between programs or in JSON from a command line; each
element is decoded strictly as the annotation of the parameter that it binds to (no annotation: plain values). A result is one
MessagePack value. What can be carried is what msgspec carries.
"""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from adyton.errors import EnclaveTypeError

Encoding = Literal["msgpack", "json"]
_Packed = tuple[list[msgspec.Raw], dict[str, msgspec.Raw]]
_DECODE: Mapping[Encoding, Callable[..., Any]] = {"msgpack": msgspec.msgpack.decode, "json": msgspec.json.decode}
_STREAMS = (
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncGenerator,
)


def encode_arguments(name: str, positional: Sequence[Any], keywords: Mapping[str, Any]) -> bytes:
    """The arguments of a call of `name`, in MessagePack; EnclaveTypeError if a value cannot be carried."""
    try:
        return msgspec.msgpack.encode((list(positional), dict(keywords)))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EnclaveTypeError(f"{name}(): an argument cannot be sent: {error}. {_CARRIED}") from error


_CARRIED = "Use None, bool, int, float, str, bytes, datetime, UUID, Decimal, Enum, list, tuple, set, dict, dataclass or Struct."


def encode_result(name: str, value: Any) -> bytes:
    """The result of a call of `name`, in MessagePack; EnclaveTypeError if it cannot be carried."""
    try:
        return msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EnclaveTypeError(f"{name}(): the result cannot be sent: {error}. {_CARRIED}") from error


def decode_result(name: str, body: bytes | bytearray, annotation: Any = Any) -> Any:
    """The result of a call of `name`, as `annotation`; EnclaveTypeError if it does not fit."""
    try:
        return msgspec.msgpack.decode(body, type=annotation)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise EnclaveTypeError(f"{name}(): the result does not fit its annotation: {error}") from error


class Signature:
    """A function's parameters and result as they are checked at a trust boundary."""

    def __init__(self, function: Callable[..., Any], *, skip_first: bool = False) -> None:
        """`skip_first`: leave out `self`. EnclaveTypeError if an annotation cannot be resolved or carried."""
        self.name = getattr(function, "__name__", str(function))
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except Exception as error:
            raise EnclaveTypeError(f"{self.name}(): its annotations cannot be resolved: {error}") from error
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())[1 if skip_first else 0 :]
        self._signature = signature.replace(parameters=parameters)
        self.returns: Any = hints.get("return", Any)
        self.annotations: dict[str, Any] = {parameter.name: hints.get(parameter.name, Any) for parameter in parameters}
        for where, annotation in (*self.annotations.items(), ("return", self.returns)):
            if typing.get_origin(annotation) in _STREAMS or annotation in _STREAMS:
                raise EnclaveTypeError(
                    f"{self.name}(): {where} is a stream ({annotation}), and streams are not carried yet; use a list"
                )
            try:
                msgspec.json.Decoder(annotation)
            except TypeError as error:
                raise EnclaveTypeError(f"{self.name}(): the annotation of {where} cannot be sent: {error}") from error

    def __str__(self) -> str:
        return f"{self.name}{self._signature}"

    def decode_arguments(self, body: bytes, encoding: Encoding = "msgpack") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments, each decoded as its annotation; EnclaveTypeError names the first that does not fit."""
        decode = _DECODE[encoding]
        try:
            positional, keywords = decode(body, type=_Packed)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise EnclaveTypeError(f"{self.name}(): malformed arguments: {error}") from error
        try:
            bound = self._signature.bind(*positional, **keywords)
        except TypeError as error:
            raise EnclaveTypeError(f"{self}: {error}") from error
        for name, raw in bound.arguments.items():
            kind = self._signature.parameters[name].kind
            annotation = self.annotations[name]
            try:
                if kind is inspect.Parameter.VAR_POSITIONAL:
                    bound.arguments[name] = tuple(decode(item, type=annotation) for item in raw)
                elif kind is inspect.Parameter.VAR_KEYWORD:
                    bound.arguments[name] = {key: decode(item, type=annotation) for key, item in raw.items()}
                else:
                    bound.arguments[name] = decode(raw, type=annotation)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise EnclaveTypeError(f"{self}: argument '{name}': {error}") from error
        return bound.args, bound.kwargs
