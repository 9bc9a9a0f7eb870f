"""Arguments and results on the wire, checked against a function's annotations. Never pickle.

A call's arguments are one array `[positional, keywords]`, in MessagePack between programs or in JSON from a command line; each
element is decoded strictly as the annotation of the parameter that it binds to (no annotation: plain values). A result is one
MessagePack value. What can be carried is what msgspec carries.

A parameter or a result of an entry that is annotated `Iterator[T]`, or another of STREAMS, is a stream: its items are carried by themselves,
each as a T (adyton.communicator.streams). In the place of such an argument stands an extension of MessagePack with the stream's number; a
list there is a stream as well.

An argument that is nothing but large bytes, and a result that is, are bulk: carried beside what is encoded, as they are, so that nobody copies
them to encode or decode them. In the place of such an argument stands another extension.
"""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from adyton.errors import EnclaveTypeError

Encoding = Literal["msgpack", "json"]
LONGEST = 1e9  # seconds that anybody waits
Seconds = Annotated[
    float, msgspec.Meta(ge=-2 * LONGEST, le=2 * LONGEST)
]  # that are left, perhaps less than 0; neither NaN nor infinite
MAX_STREAMS = 64  # among the arguments of a call
MAX_BULK = 32  # the same
BULK = 1 << 16  # bytes that are worth it
_Packed = tuple[list[msgspec.Raw], dict[str, msgspec.Raw]]
_DECODE: Mapping[Encoding, Callable[..., Any]] = {"msgpack": msgspec.msgpack.decode, "json": msgspec.json.decode}
_STREAMS = (collections.abc.Iterator, collections.abc.Iterable, collections.abc.Generator)
_ASYNC_STREAMS = (collections.abc.AsyncIterator, collections.abc.AsyncIterable, collections.abc.AsyncGenerator)
_ANY_STREAM = (collections.abc.Iterator, collections.abc.AsyncIterator)
_NO_STREAMS = frozenset((bytes, str, int, float, bool, type(None), list, tuple, dict))  # which is found out sooner
_EXTENSION = 1  # a stream among arguments; its data: the number of it, one byte
_BULK_EXTENSION = 2  # the same of bulk
_BYTES = frozenset({bytes, bytearray, memoryview})


class Stream(NamedTuple):
    """What an annotation says: the type of the items, and whether they are awaited."""

    item: Any
    asynchronous: bool


def stream_of(annotation: Any) -> Stream | None:
    """What is said of the items of a stream; None if it is none."""
    origin = typing.get_origin(annotation) or annotation
    if origin not in _STREAMS and origin not in _ASYNC_STREAMS:
        return None
    return Stream((*typing.get_args(annotation), Any)[0], origin in _ASYNC_STREAMS)


def encode_arguments(
    name: str,
    positional: Sequence[Any],
    keywords: Mapping[str, Any],
    streams: list[Any] | None = None,
    bulk: list[bytes] | None = None,
) -> bytes:
    """The arguments of a call of `name`, in MessagePack; EnclaveTypeError if a value cannot be carried.

    `streams` gets the iterators among them, `bulk` what is large; of both, the first is number 1.
    """
    if bulk is not None:
        positional = [_or_bulk(each, bulk) for each in positional]
        keywords = {key: _or_bulk(each, bulk) for key, each in keywords.items()}
    if streams is not None:
        positional = [_or_stream(each, streams) for each in positional]
        keywords = {key: _or_stream(each, streams) for key, each in keywords.items()}
    try:
        return msgspec.msgpack.encode((list(positional), dict(keywords)))
    except (TypeError, ValueError, OverflowError, RecursionError, BufferError) as error:
        raise EnclaveTypeError(f"{name}(): an argument cannot be sent: {error}. {_CARRIED}") from error


def _or_stream(value: Any, streams: list[Any]) -> Any:
    if type(value) in _NO_STREAMS or not isinstance(value, _ANY_STREAM):
        return value
    streams.append(value)
    if len(streams) > MAX_STREAMS:
        raise EnclaveTypeError(f"more than {MAX_STREAMS} arguments of a call are streams")
    return msgspec.msgpack.Ext(_EXTENSION, bytes([len(streams)]))


def _or_bulk(value: Any, bulk: list[bytes]) -> Any:
    if type(value) not in _BYTES or not _is_bulk(value) or len(bulk) >= MAX_BULK:
        return value
    bulk.append(bytes(value))
    return msgspec.msgpack.Ext(_BULK_EXTENSION, bytes([len(bulk)]))


def _is_bulk(value: bytes | bytearray | memoryview) -> bool:
    """`bytes` of it are not a copy unless it may change while it is on its way."""
    if isinstance(value, memoryview):
        return value.nbytes >= BULK and value.c_contiguous
    return len(value) >= BULK


_CARRIED = "Use None, bool, int, float, str, bytes, datetime, UUID, Decimal, Enum, list, tuple, set, dict, dataclass or Struct."


def encode_result(name: str, value: Any) -> bytes:
    """The result of a call of `name`, in MessagePack; EnclaveTypeError if it cannot be carried."""
    try:
        return msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, BufferError) as error:
        raise EnclaveTypeError(f"{name}(): the result cannot be sent: {error}. {_CARRIED}") from error


class Bulk(NamedTuple):
    """A result that is nothing but large bytes, which are not encoded."""

    value: bytes

    def encoded(self) -> bytes:
        """In MessagePack after all."""
        return msgspec.msgpack.encode(self.value)


def encode_or_bulk(name: str, value: Any) -> bytes | Bulk:
    """As `encode_result`, unless it is bulk."""
    if type(value) in _BYTES and _is_bulk(value):
        return Bulk(bytes(value))
    return encode_result(name, value)


def decode_result(name: str, body: bytes | bytearray | Bulk, annotation: Any = Any) -> Any:
    """The result of a call of `name`, as `annotation`; EnclaveTypeError if it does not fit."""
    try:
        if isinstance(body, Bulk):
            return msgspec.convert(body.value, type=annotation)
        return msgspec.msgpack.decode(body, type=annotation)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise EnclaveTypeError(f"{name}(): the result does not fit its annotation: {error}") from error


OpenStream = Callable[[int, Stream, str], Any]  # (number, what it is, for texts of errors)


def _stream_number(raw: msgspec.Raw) -> int:
    """Of the stream that stands there; 0 for another value."""
    try:
        extension = msgspec.msgpack.decode(raw, type=msgspec.msgpack.Ext)
    except msgspec.MsgspecError:
        return 0
    data = bytes(extension.data)
    if extension.code != _EXTENSION or len(data) != 1 or not 0 < data[0] <= MAX_STREAMS:
        raise ValueError("malformed stream")
    return data[0]


def _bulk_of(raw: msgspec.Raw, bulk: Sequence[bytes]) -> bytes | None:
    """The bulk that stands there; None for another value."""
    try:
        extension = msgspec.msgpack.decode(raw, type=msgspec.msgpack.Ext)
    except msgspec.MsgspecError:
        return None
    if extension.code != _BULK_EXTENSION:
        return None
    data = bytes(extension.data)
    if len(data) != 1 or not 0 < data[0] <= len(bulk):
        raise ValueError("malformed bulk")
    return bulk[data[0] - 1]


async def _awaited(items: list[Any]) -> AsyncIterator[Any]:
    for each in items:
        yield each


class ItemDecoder:
    """Batches of a stream's items (a MessagePack array each) into items of one type."""

    def __init__(self, annotation: Any, what: str) -> None:
        """`what`: an item, for texts of errors."""
        self._what = what
        self._annotation = annotation
        self._each: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(annotation)
        self._all: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(list[annotation])

    def large(self, item: memoryview | bytes) -> tuple[list[Any], EnclaveTypeError | None]:
        """The same with one item that is not encoded."""
        try:
            return [msgspec.convert(bytes(item), type=self._annotation)], None
        except (msgspec.MsgspecError, ValueError) as error:
            return [], EnclaveTypeError(f"{self._what} does not fit: {error}")

    def decode(self, payload: memoryview | bytes) -> tuple[list[Any], EnclaveTypeError | None]:
        """The items up to the first that does not fit, and what is wrong with that."""
        try:
            return self._all.decode(payload), None
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass  # what is before the wrong one is still to be had
        items: list[Any] = []
        try:
            for raw in _RAWS.decode(payload):
                items.append(self._each.decode(raw))  # noqa: PERF401 - those before an error are kept
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            return items, EnclaveTypeError(f"{self._what} does not fit: {error}")
        return items, None


_RAWS: msgspec.msgpack.Decoder[list[msgspec.Raw]] = msgspec.msgpack.Decoder(list[msgspec.Raw])


class Signature:
    """A function's parameters and result as they are checked at a trust boundary."""

    def __init__(self, function: Callable[..., Any], *, skip_first: bool = False, streams: bool = False) -> None:
        """`skip_first`: leave out `self`. `streams`: they are carried. EnclaveTypeError if an annotation cannot be resolved or carried."""
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
        kinds = {parameter.kind for parameter in parameters}
        by_place = kinds <= {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
        self._plain = [*self.annotations] if by_place else None  # as many arguments without names need no binding
        self.stream = stream_of(self.returns)  # of results
        if self.returns is Any and (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)):
            self.stream = Stream(Any, inspect.isasyncgenfunction(function))
        streaming = False
        for where, annotation in (*self.annotations.items(), ("return", self.returns)):
            stream = stream_of(annotation)
            streaming = streaming or (stream is not None and where != "return")
            if stream is not None and not streams:
                raise EnclaveTypeError(
                    f"{self.name}(): {where} is a stream ({annotation}), and only entries have streams; use a list"
                )
            try:
                msgspec.json.Decoder(annotation if stream is None else stream.item)
            except TypeError as error:
                raise EnclaveTypeError(f"{self.name}(): the annotation of {where} cannot be sent: {error}") from error
        # All of them at once, where none has a name.
        self._whole: msgspec.msgpack.Decoder[tuple[tuple[Any, ...], dict[str, Any]]] | None = None
        if by_place and not streaming:
            each = tuple(self.annotations.values())
            self._whole = msgspec.msgpack.Decoder(tuple[tuple[each or ()], dict[str, msgspec.Raw]])  # type: ignore[misc]

    def __str__(self) -> str:
        return f"{self.name}{self._signature}"

    def decode_arguments(
        self,
        body: bytes,
        encoding: Encoding = "msgpack",
        open_stream: OpenStream | None = None,
        bulk: Sequence[bytes] = (),
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments, each decoded as its annotation; EnclaveTypeError names the first that does not fit.

        `open_stream`: what gives the code a stream that its caller has opened. `bulk`: what came beside them.
        """
        if self._whole is not None and encoding == "msgpack" and not bulk:
            try:
                arguments, names = self._whole.decode(body)
                if not names:
                    return arguments, {}
            except (msgspec.MsgspecError, ValueError, RecursionError):
                pass  # below it is seen which does not fit, or that it is left out
        decode = _DECODE[encoding]
        opened: set[int] = set()

        def decoded(name: str, raw: msgspec.Raw) -> Any:
            annotation = self.annotations[name]
            stream = stream_of(annotation)
            if bulk and encoding == "msgpack" and (found := _bulk_of(raw, bulk)) is not None:
                return msgspec.convert(found, type=annotation if stream is None else list[Any])
            if stream is None:
                return decode(raw, type=annotation)
            number = _stream_number(raw) if encoding == "msgpack" and open_stream is not None else 0
            if not number or open_stream is None:
                items = decode(raw, type=list[stream.item])  # type: ignore[name-defined]
                return _awaited(items) if stream.asynchronous else iter(items)
            if number in opened:
                raise ValueError(f"stream {number} stands twice among the arguments")
            opened.add(number)
            return open_stream(number, stream, f"{self}: an item of '{name}'")

        try:
            positional, keywords = decode(body, type=_Packed)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise EnclaveTypeError(f"{self.name}(): malformed arguments: {error}") from error
        if self._plain is not None and not keywords and len(positional) == len(self._plain):
            name = ""
            try:
                return tuple(
                    [decoded(name := each, raw) for each, raw in zip(self._plain, positional, strict=True)]
                ), {}
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise EnclaveTypeError(f"{self}: argument '{name}': {error}") from error
        try:
            bound = self._signature.bind(*positional, **keywords)
        except TypeError as error:
            raise EnclaveTypeError(f"{self}: {error}") from error
        for name, raw in bound.arguments.items():
            kind = self._signature.parameters[name].kind
            try:
                if kind is inspect.Parameter.VAR_POSITIONAL:
                    bound.arguments[name] = tuple(decoded(name, item) for item in raw)
                elif kind is inspect.Parameter.VAR_KEYWORD:
                    bound.arguments[name] = {key: decoded(name, item) for key, item in raw.items()}
                else:
                    bound.arguments[name] = decoded(name, raw)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise EnclaveTypeError(f"{self}: argument '{name}': {error}") from error
        return bound.args, bound.kwargs
