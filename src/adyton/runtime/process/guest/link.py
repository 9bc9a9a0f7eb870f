"""The link between supervisor and guest: one stream socketpair for each enclave thread that is entered.

A link strictly nests. The supervisor sends Enter; the guest answers with Return, or first makes HostCalls, during each of which the
supervisor may Enter again before it sends HostReturn:

    supervisor → guest    Enter(method, body, trace)    HostReturn(ok, body)
    guest → supervisor    Return(ok, body)              HostCall(name, arguments, span)

Each message is a four-byte little-endian length and a MessagePack array. The guest trusts the supervisor; the supervisor
treats what comes from the guest as hostile.
"""

from __future__ import annotations

import socket
import struct
from typing import Annotated, Any

import msgspec

from adyton.communicator.messages import Logging, Streams
from adyton.communicator.tracing import TraceContext
from adyton.errors import RemoteProtocolError

MAX_MESSAGE = (1 << 30) + (1 << 16)  # bytes; a call's largest body and some
_LENGTH = struct.Struct("<I")
# Trace and span that the program is in, in hex, one behind the other; "" for none.
ProgramSpan = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{48})?\Z", max_length=48)]


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    pass


class Enter(_Message, frozen=True):
    method: str  # of adyton.communicator.messages, towards the enclave
    body: bytes
    trace: TraceContext | None = None


class HostReturn(_Message, frozen=True):
    ok: bool
    body: bytes  # an encoded result, or a Raised


class Return(_Message, frozen=True):
    ok: bool
    body: bytes


class HostCall(_Message, frozen=True):
    name: str
    arguments: bytes
    span: ProgramSpan = ""


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


ToGuest = Enter | HostReturn
ToSupervisor = Return | HostCall


_ENCODER = msgspec.msgpack.Encoder()


def encode(message: ToGuest | ToSupervisor) -> bytearray:
    """A message with its length, in one copy: it may be large."""
    whole = bytearray(_LENGTH.size)
    _ENCODER.encode_into(message, whole, _LENGTH.size)
    _LENGTH.pack_into(whole, 0, len(whole) - _LENGTH.size)
    return whole


class Reader:
    """Bytes in, messages out; sans-IO. Only RemoteProtocolError leaves it. Its length: bytes of a message that is not complete."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def __len__(self) -> int:
        return len(self._buffer)

    def receive(self, data: bytes) -> list[Any]:
        """The messages that `data` completes."""
        buffer = self._buffer
        buffer += data
        messages = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > MAX_MESSAGE:
                raise RemoteProtocolError(
                    f"a message of {length} bytes on a guest's link; at most {MAX_MESSAGE} are allowed"
                )
            if len(buffer) - start - _LENGTH.size < length:
                break
            start += _LENGTH.size
            with memoryview(buffer) as view, view[start : start + length] as body:
                try:
                    messages.append(self._decoder.decode(body))
                except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                    raise RemoteProtocolError(f"malformed message on a guest's link: {error}") from error
            start += length
        del buffer[:start]
        return messages


class GuestLink:
    """The guest's end: blocking, used by one thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToGuest)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __del__(self) -> None:
        self._socket.close()  # its thread has ended

    def send(self, message: ToSupervisor) -> None:
        """Send one message; OSError when the supervisor is gone."""
        self._socket.sendall(encode(message))

    def receive(self) -> ToGuest | None:
        """The next message; None when the supervisor closed the link."""
        head = self._read(_LENGTH.size)
        if head is None:
            return None
        body = self._read(_LENGTH.unpack(head)[0])
        if body is None:
            return None
        message: ToGuest = self._decoder.decode(body)
        return message

    def _read(self, size: int) -> bytes | bytearray | None:
        data = self._socket.recv(size)
        if len(data) == size:
            return data
        if not data and size:
            return None
        whole = bytearray(size)
        whole[: len(data)] = data
        view = memoryview(whole)[len(data) :]
        while view:
            count = self._socket.recv_into(view)
            if not count:
                return None
            view = view[count:]
        return whole
