"""The links between supervisor and guest: one stream socketpair for each enclave thread that is entered, and one aside.

A thread's link strictly nests. The supervisor sends Enter; the guest answers with Return, or first makes HostCalls, during each of which
the supervisor may Enter again before it sends HostReturn. Items of a stream of results may come at any time before its call's Return.

    supervisor → guest    Enter(method, body, call, trace)    HostReturn(ok, body)
    guest → supervisor    Return(ok, body)                    HostCall(name, arguments, left, span, sizes, call)    Items(call, payload)

A thread of the program's own that calls functions of the client makes a link for that, on which nothing is entered. So does a thread that has a
large result of a call without a pair: that Return says of which call.

The link aside is for what belongs to no thread, and nothing on it nests: calls without a pair, each of which has its Return; items of
arguments, which the guest says it Took one by one; that items of results were Taken; and which calls are cancelled. Forget: no more of that call comes.

    supervisor → guest    Enter(method, body, call, trace)    Batch(call, stream, kind, payload)    Taken(call, hungry)    Cancel(call)    Forget(call)
    guest → supervisor    Return(ok, body, call)       Took(call, stream, hungry)

Each message is a four-byte little-endian length and a MessagePack array. Some may be followed by bulk: raw bytes, as many as their
`sizes` say together. An Enter's and a HostReturn's are those of the body, which it then has not itself, and of what is beside that; a Return's
are the whole result, or a body that is large; a HostCall's what is beside the arguments, perhaps after those themselves, if they are large;
those of Items and a Batch are one large item, in place of a payload.
The guest trusts the supervisor; the supervisor treats what comes from the guest as hostile.
"""

from __future__ import annotations

import contextlib
import io
import select
import socket
import struct
import threading
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from adyton.attestation.identity import EnclaveIdentity
from adyton.communicator.messages import Logging, Streams, Unsigned
from adyton.communicator.tracing import TraceContext
from adyton.errors import RemoteProtocolError
from adyton.proto.values import BULK, MAX_BULK, Seconds
from adyton.proto.values import Bulk as LargeResult
from adyton.trusted.callers import Caller

MAX_MESSAGE = (1 << 30) + (1 << 16)  # bytes; a call's largest body and some
_LENGTH = struct.Struct("<I")
# Trace and span that the program is in, in hex, one behind the other; "" for none.
ProgramSpan = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{48})?\Z", max_length=48)]
_Size = Annotated[int, msgspec.Meta(ge=BULK, le=MAX_MESSAGE)]
Bulk = Annotated[tuple[_Size, ...], msgspec.Meta(max_length=1)]
_DAY = 86400.0  # seconds: poll() takes no number of milliseconds
_READ_SIZE = 1 << 14  # bytes: most messages come by one system call
_PIECE = 1 << 18  # bytes of bulk
_poll = select.poll  # a program may put its own in its place


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    pass


class Enter(_Message, frozen=True):
    method: str  # of adyton.communicator.messages, towards the enclave
    body: bytes
    call: int = 0  # as the session numbers it
    trace: TraceContext | None = None
    sizes: tuple[int, ...] = ()


class HostReturn(_Message, frozen=True):
    ok: bool
    body: bytes  # an encoded result, or a Raised
    sizes: tuple[int, ...] = ()


class Return(_Message, frozen=True):
    ok: bool
    body: bytes
    call: int = 0  # without a pair
    sizes: Bulk = ()
    encoded: bool = False  # what follows is no bulk, but a large body


class HostCall(_Message, frozen=True):
    name: str
    arguments: bytes
    left: Seconds | None = None  # that it may take
    span: ProgramSpan = ""
    sizes: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=1 + MAX_BULK)] = ()
    call: Unsigned = 0  # that it is made in, of a thread of the guest's own; 0: none


class Items(_Message, frozen=True):
    call: int
    payload: bytes  # a MessagePack array
    sizes: Bulk = ()


class Took(_Message, frozen=True):
    """The oldest batch of an argument's. `hungry`: see adyton.communicator.streams."""

    call: int
    stream: int
    hungry: bool


class Batch(_Message, frozen=True):
    """See adyton.communicator.streams."""

    call: int
    stream: int
    kind: int
    payload: bytes
    sizes: tuple[int, ...] = ()


class Taken(_Message, frozen=True):
    """The oldest batch of results."""

    call: int
    hungry: bool


class Cancel(_Message, frozen=True):
    call: int


class Forget(_Message, frozen=True):
    call: int


class GuestLoad(_Message, frozen=True):
    """Body of the Enter("load") that the guest's main thread receives first."""

    entry: str  # "module:attribute", or "module:" for plain functions
    entries: list[str]  # what the manifest calls entries
    debug: bool
    mount_tmp: bool
    config: bytes
    working_directory: str
    time_zone: str
    environment: dict[str, str]
    name: str = ""
    host_name: str = "enclave"
    streams: Streams = Streams()
    logging: Logging | None = None
    umask: int = 0o022
    broker: tuple[str, list[str]] | None = None  # address and keys, if the image names one
    caller: Caller | None = None
    identity: EnclaveIdentity | None = None  # as far as the runtime knows it


ToThread = Enter | HostReturn
Aside = Enter | Batch | Taken | Cancel | Forget
ToGuest = ToThread | Aside
ToSupervisor = Return | HostCall | Items | Took


_ENCODER = msgspec.msgpack.Encoder()


def encode(message: ToGuest | ToSupervisor) -> bytearray:
    """A message with its length, in one copy: it may be large."""
    whole = bytearray(_LENGTH.size)
    _ENCODER.encode_into(message, whole, _LENGTH.size)
    _LENGTH.pack_into(whole, 0, len(whole) - _LENGTH.size)
    return whole


def returned(ok: bool, body: bytes | LargeResult, call: int = 0) -> tuple[Return, bytes]:
    """A Return, and the bytes that follow it."""
    if isinstance(body, LargeResult):
        return Return(ok, b"", call, (len(body.value),)), body.value
    if ok and len(body) >= BULK:
        return Return(ok, b"", call, (len(body),), encoded=True), body
    return Return(ok, body, call), b""


class Reader:
    """Bytes in, messages out, and a memoryview for each piece of the bulk that follows one; sans-IO. Only RemoteProtocolError leaves it.

    `held`: bytes of a message that is not complete; `bulk`: those that are to come.
    """

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()
        self.held = 0
        self.bulk = 0

    def receive(self, data: bytes) -> list[Any]:
        """The messages that `data` completes, and its bulk, which is not copied."""
        if not self.bulk:
            return self._received(data)
        size = min(self.bulk, len(data))
        self.bulk -= size
        if size == len(data):
            return [memoryview(data)]
        return [memoryview(data)[:size], *self._received(data[size:])]

    def _received(self, data: bytes) -> list[Any]:
        if self.held:
            self._buffer += data
        messages, start, bulk = [], 0, b""
        with memoryview(self._buffer if self.held else data) as whole:
            size = len(whole)
            while size - start >= _LENGTH.size and not self.bulk:
                (length,) = _LENGTH.unpack_from(whole, start)
                if length > MAX_MESSAGE:
                    raise RemoteProtocolError(
                        f"a message of {length} bytes on a guest's link; at most {MAX_MESSAGE} are allowed"
                    )
                stop = start + _LENGTH.size + length
                if stop > size:
                    break
                try:
                    messages.append(self._decoder.decode(whole[start + _LENGTH.size : stop]))
                except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                    raise RemoteProtocolError(f"malformed message on a guest's link: {error}") from error
                start = stop
                if sizes := getattr(messages[-1], "sizes", None):
                    self.bulk = sum(sizes)
                    bulk, start = bytes(whole[start:]), size
            if not self.held:
                self._buffer += whole[start:]
        if self.held:
            del self._buffer[:start]
        self.held = size - start
        if bulk:
            messages += self.receive(bulk)
        return messages


class GuestLink:
    """The guest's end of a thread's link: blocking, received from by that thread. `owed`: host calls that it gave up, and whose HostReturn is to come.

    What comes is one message, and the next one when that was answered: see the module. `bulk`: what came beside the body of the last.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.owed = 0
        self.bulk: tuple[bytes, ...] = ()
        self._socket = sock
        self._sending = threading.Lock()
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToThread)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __del__(self) -> None:
        self._socket.close()  # its thread has ended

    def send(self, *messages: ToSupervisor) -> None:
        """Send them together, from any thread; OSError when the supervisor is gone."""
        data = encode(messages[0]) if len(messages) == 1 else b"".join(map(encode, messages))
        with self._sending:
            self._socket.sendall(data)

    def send_bulk(self, message: ToSupervisor, *bulk: bytes) -> None:
        """Send one that is followed by bulk, if there is any: the supervisor may close the link once it has all of it."""
        data = encode(message)
        with self._sending:
            self._socket.sendall(data)
            try:
                for each in filter(None, bulk):
                    self._socket.sendall(each)
            except BaseException:  # of a signal's handler: what is sent next would be taken for the rest
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
                raise

    def read(self, size: int) -> bytes:
        """So many bytes at most, in place of `receive`; b"" when the supervisor closed the link."""
        return self._socket.recv(size)

    def interrupt(self) -> None:
        """Have `receive` return None, now and from now on. From any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def receive(self, seconds: float | None = None) -> ToThread | None:
        """The next message; None when the supervisor closed the link. TimeoutError: none began within that time."""
        if seconds is not None:
            poller = _poll()
            poller.register(self._socket, select.POLLIN)
            if not poller.poll(max(0.0, min(seconds, _DAY)) * 1000):
                raise TimeoutError
        data: bytes | bytearray | None = self._socket.recv(_READ_SIZE)
        if not data:
            return None
        size = len(data)
        if size < _LENGTH.size or size < _LENGTH.size + _LENGTH.unpack_from(data)[0]:
            data = self._completed(data)
            if data is None:
                return None
        stop = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        message: ToThread = self._decoder.decode(memoryview(data)[_LENGTH.size : stop])
        if isinstance(message, Enter | HostReturn) and message.sizes:
            body, *bulk = self._bulk(message.sizes, memoryview(data)[stop:])
            self.bulk = tuple(bulk)
            return msgspec.structs.replace(message, body=body, sizes=())
        assert stop == len(data), "two messages at once"
        return message

    def _bulk(self, sizes: Iterable[int], begun: memoryview) -> list[bytes]:
        """What follows a message, of which that is the beginning. ConnectionError: the supervisor is gone."""
        found, piece = [], memoryview(bytearray(_PIECE))
        for size in sizes:
            part = io.BytesIO()  # gives away what it has grown to as it is
            part.write(begun[:size])
            begun = begun[size:]
            while left := size - part.tell():
                count = self._socket.recv_into(piece, min(left, _PIECE))
                if not count:
                    raise ConnectionError("the supervisor is gone")
                part.write(piece[:count])
            found.append(part.getvalue())
        return found

    def _completed(self, begun: bytes | bytearray) -> bytearray | None:
        """The message of which that is the beginning; None when the supervisor closed the link."""
        while len(begun) < _LENGTH.size:
            more = self._socket.recv(_LENGTH.size - len(begun))
            if not more:
                return None
            begun += more
        whole = bytearray(_LENGTH.size + _LENGTH.unpack_from(begun)[0])
        assert len(begun) <= len(whole), "two messages at once"
        whole[: len(begun)] = begun
        view = memoryview(whole)[len(begun) :]
        while view:
            count = self._socket.recv_into(view)
            if not count:
                return None
            view = view[count:]
        return whole
