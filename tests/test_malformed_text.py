"""MessagePack text that is not UTF-8 is malformed like anything else: msgspec raises UnicodeDecodeError for it, which is no error of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import msgspec
import pytest

from adyton.attestation.expectation import Expectation
from adyton.communicator import session
from adyton.communicator.messages import Counts, EnterRequest, Grant, LoadReply, LoadRequest, Raised, decode
from adyton.errors import EnclaveTypeError, RemoteProtocolError, UnreachableError
from adyton.hostcall.client.executor import Executor
from adyton.hostcall.client.policy import HostCallPolicy
from adyton.proto.values import Signature, decode_result
from adyton.remote import connection
from adyton.remote.proxy_client import ProxyClient
from adyton.remote.transport import Transport
from adyton.runtime.process.guest import link

MARK = "!" * 8


def spoilt(*fields: Any) -> bytes:
    """The array of these fields; the eight exclamation marks in it become bytes that are not UTF-8."""
    return msgspec.msgpack.encode(fields).replace(MARK.encode(), b"\xff" * 8)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Grant, (MARK, "read")),
        (LoadRequest, (b"", [], "/", MARK, {})),
        (LoadReply, ([MARK], [])),
        (EnterRequest, (MARK, b"")),
        (Raised, ("raised", MARK, "")),
        (Counts, (0, 0, 0, 0, 0, 0, 0, 0, [[0, 0, MARK]])),
    ],
)
def test_a_message(kind: Any, fields: tuple[Any, ...]) -> None:
    with pytest.raises(RemoteProtocolError, match=kind.__name__):
        decode(spoilt(*fields), kind)


def test_a_message_on_a_guests_link() -> None:
    body = spoilt("HostCall", MARK, b"")
    with pytest.raises(RemoteProtocolError, match="malformed message"):
        link.Reader(link.ToSupervisor).receive(len(body).to_bytes(4, "little") + body)


def test_an_argument_and_a_result() -> None:
    def entry(text: str) -> None:
        raise AssertionError(text)

    with pytest.raises(EnclaveTypeError, match="'text'"):
        Signature(entry).decode_arguments(spoilt([MARK], {}))
    with pytest.raises(EnclaveTypeError, match="malformed arguments"):
        Signature(entry).decode_arguments(spoilt([], {MARK: ""}))
    with pytest.raises(EnclaveTypeError, match="annotation"):
        decode_result("entry", spoilt(MARK), list[str])


class _Silent(Transport):
    """A connection on which nothing arrives."""

    enclave_id = ""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def run(self, outgoing: Any) -> Any:
        raise AssertionError(outgoing)

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def client(tmp_path: Any) -> Iterator[ProxyClient]:
    policy = HostCallPolicy.create(base=str(tmp_path), read=[], write=[], net=[], listen=[], env=[], call=[])
    with Executor(policy, [], denied=print, output=print) as executor:
        yield ProxyClient(_Silent(), executor, Expectation())


def test_a_host_call_ends_the_connection(client: ProxyClient) -> None:
    client._hosts.serve(session.Called(1, 0, "host", spoilt("Stat", MARK)))
    assert client._transport.closed.wait(60)
    with pytest.raises(RemoteProtocolError, match="malformed host call"):
        client.call("enter", b"")


def test_output_of_an_enclave(client: ProxyClient) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed output"):
        client._dispatch(session.Notified("output", spoilt("Output", MARK, b"")))


class _Failure(grpc.RpcError):
    """What grpc raises for a failed call."""

    def __init__(self, detail: bytes) -> None:
        self._detail = detail

    def trailing_metadata(self) -> list[tuple[str, bytes]]:
        return [(connection.ERROR_METADATA, self._detail)]

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNKNOWN

    def details(self) -> str:
        return "hostile"


def test_the_error_of_a_server() -> None:
    error = connection.error_from(_Failure(spoilt("ImageError", MARK)), "grpc://host", connected=False)
    assert type(error) is UnreachableError
