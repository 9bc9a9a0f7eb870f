"""Dial-back, the client's side: it listens, and the proxy server dials it.

The streams are those of a proxy server that is dialled, with the roles of gRPC's two ends turned round: the proxy server calls, and the
client answers with what it would have sent.

proxy server                                  client (this module)
Provision(token)                        ──►   once: whoever shows the secret of the launch
  responses ──►  ◄── requests                 its Offer holds the session's secret
Communicate(session)                    ──►   whoever shows that; again, when a connection was lost
  envelopes ──►  ◄── envelopes
Report(session)                         ──►   once
  reports ──►  ◄── requests

Over TCP there is always TLS. A proxy server that was launched for this client, by itself or by a provision server, is told the certificate
that it will meet, made for this launch; one that is started by hand checks the user's certificate by its CA.
"""

from __future__ import annotations

import hmac
import queue
import secrets
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any, Generic, TypeVar

import grpc

from adyton.crypto.self_signed import launch_certificate
from adyton.errors import (
    ClosedError,
    ConnectionLostError,
    DeadlineError,
    PlatformError,
    UnauthenticatedError,
    UnreachableError,
    UsageError,
)
from adyton.processes_pb2 import ProcessesRequest, ProcessReport
from adyton.provision_pb2 import DialBackTo, ProvisionRequest, ProvisionResponse
from adyton.remote import envelopes
from adyton.remote.address import TLS
from adyton.remote.connection import SESSION_METADATA, abort, open_server, server_credentials
from adyton.remote.dial_address import ListenAddress
from adyton.remote.process_query import reports_of
from adyton.remote.rpc_threads import ThreadEach
from adyton.remote.transport import Bytes, Pulled, Source
from adyton.remote.unix_socket import check_free, remove_socket

SERVICE = "adyton.DialBack"
CONNECTIONS = 64  # at once: the application, whose descriptors they take, needs one
AGAIN_SECONDS = 5.0  # that a proxy server which has lost its stream is waited for at a time
ACCEPTED = "adyton-accepted"  # initial metadata of a stream whose secret was right
ENDED = memoryview(b"")  # the last envelope of the last stream: the enclave has ended
_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Stream(Generic[_Out, _In]):
    """One accepted stream. `run` it once."""

    def __init__(self, incoming: Iterator[_In], context: Any) -> None:
        self._incoming = incoming
        self._context = context
        self._said_all = False
        self._cancelled = False
        self.endless = False  # the proxy server has no reason to end it before we do
        self._outgoing: queue.SimpleQueue[Iterator[_Out] | None] = queue.SimpleQueue()
        if not context.add_callback(self.hang_up):
            self.hang_up()

    def messages(self) -> Iterator[_Out]:
        """What the RPC's handler answers: nothing until `run`."""
        outgoing = self._outgoing.get()
        if outgoing is not None:
            yield from outgoing
        self._said_all = True

    def hang_up(self) -> None:
        """Have the handler end, if nobody runs the stream."""
        self._outgoing.put(None)

    def run(self, outgoing: Iterator[_Out]) -> Iterator[_In]:
        """Send `outgoing` from a thread of the server's, and yield what arrives. The end of `outgoing` ends the stream. ConnectionLostError."""
        self._outgoing.put(outgoing)
        why: Exception | None = None
        try:
            yield from self._incoming
        except Exception as error:  # noqa: BLE001 - gRPC raises a plain RpcError, or Exception, when the other end is gone
            why = error
        if why is not None or self._cancelled or (self.endless and not self._said_all):
            raise ConnectionLostError(
                "the connection to the proxy server was lost. The outcome of calls under way is unknown"
            ) from why

    def cancel(self) -> None:
        """End it at once, from any thread."""
        self._cancelled = True
        self._context.cancel()


class DialBack:
    """Waits for the one proxy server of a launch. `close` it; a transport that it gave closes it too."""

    def __init__(self, listen: ListenAddress, token: str | None, tls: TLS | None = None) -> None:
        """`token`: what shows that a proxy server is the one that provisioning may be left to; None: it comes provisioned.

        `tls`: the user's (or an empty one for none), for a proxy server that is started by hand; None: a certificate of this launch.
        UsageError: cannot listen.
        """
        self._token = token
        self._session = secrets.token_bytes(32)
        self._certificate = b""
        self._provision: queue.SimpleQueue[Stream[ProvisionRequest, ProvisionResponse]] = queue.SimpleQueue()
        self._report: queue.SimpleQueue[Stream[ProcessesRequest, bytes]] = queue.SimpleQueue()
        self._communicate: queue.SimpleQueue[Stream[bytes, memoryview]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._taken: dict[int, Any] = {}  # of each method, by its queue: the context of the latest stream
        self._turned_away = 0
        self.closed = False
        credentials: grpc.ServerCredentials | None = None
        if not listen.path:
            if tls is None:
                key, self._certificate = launch_certificate()
                credentials = grpc.ssl_server_credentials([(key, self._certificate)])
            else:
                credentials = server_credentials(tls)
        check_free(str(listen))
        self._server, port = open_server(
            [self._handler()], listen.target, credentials, ThreadEach("adyton-dialled"), connections=CONNECTIONS
        )
        self.address = listen.at(port)
        self._server.start()

    @property
    def certificate(self) -> str:
        """What the proxy server will meet, in PEM; "" on a unix socket, or if it is the user's."""
        return self._certificate.decode()

    def offer(self) -> DialBackTo:
        """What the proxy server, or who launches it, is told."""
        return DialBackTo(address=str(self.address), session=self._session, certificate=self._certificate)

    def provisioning(self, seconds: float) -> Stream[ProvisionRequest, ProvisionResponse]:
        """The stream of the proxy server that showed the token; UnreachableError if none comes."""
        stream = self._arrived(self._provision, seconds)
        stream.endless = True
        return stream

    def transport(self, seconds: float, enclave_id: str = "") -> DialBackTransport:
        """The connection of the proxy server that showed the session's secret; UnreachableError if none comes. `enclave_id`: as a server calls it."""
        return DialBackTransport(self, self._arrived(self._communicate, seconds), enclave_id)

    def stream_again(self, seconds: float) -> Stream[bytes, memoryview]:
        """The next stream of the proxy server, which has lost the one before, or may have; UnreachableError if none comes."""
        return self._arrived(self._communicate, seconds)

    def reports(self, seconds: float) -> Stream[ProcessesRequest, bytes]:
        """The stream that reports on the enclave's processes come on; UnreachableError if there is none."""
        return self._arrived(self._report, seconds)

    def _arrived(self, streams: queue.SimpleQueue[Stream[_Out, _In]], seconds: float) -> Stream[_Out, _In]:
        try:
            return streams.get(timeout=max(0.0, seconds))
        except queue.Empty:
            turned = (
                f"{self._turned_away} callers without the right secret were turned away. " if self._turned_away else ""
            )
            raise UnreachableError(
                f"no proxy server came to {self.address} within {round(seconds, 1):g} s. {turned}Can its machine reach that address (dial_back, "
                "or its --host_address), and does no firewall or NAT keep it away? Without dial_back the client dials"
            ) from None

    def close(self) -> None:
        """Listen no more, and end what is connected. Safe to call again, and from any thread."""
        self.closed = True
        self._server.stop(None)
        remove_socket(str(self.address))

    # -- the service ---------------------------------------------------------------------------------------------------

    def _handler(self) -> grpc.GenericRpcHandler:
        methods = {
            "Provision": grpc.stream_stream_rpc_method_handler(
                self._provisioned, ProvisionResponse.FromString, ProvisionRequest.SerializeToString
            ),
            "Communicate": grpc.stream_stream_rpc_method_handler(self._communicated, envelopes.unpack, envelopes.pack),
            "Report": grpc.stream_stream_rpc_method_handler(self._reported, None, ProcessesRequest.SerializeToString),
        }
        handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(SERVICE, methods)
        return handler

    def _provisioned(self, requests: Iterator[ProvisionResponse], context: Any) -> Iterator[ProvisionRequest]:
        expected = f"Bearer {self._token}".encode() if self._token else None
        return self._take("authorization", expected, requests, context, self._provision)

    def _communicated(self, requests: Iterator[memoryview], context: Any) -> Iterator[bytes]:
        return self._take(SESSION_METADATA, self._session, requests, context, self._communicate)

    def _reported(self, requests: Iterator[bytes], context: Any) -> Iterator[ProcessesRequest]:
        return self._take(SESSION_METADATA, self._session, requests, context, self._report)

    def _take(
        self,
        key: str,
        expected: bytes | None,
        requests: Iterator[_In],
        context: Any,
        arrived: queue.SimpleQueue[Stream[_Out, _In]],
    ) -> Iterator[_Out]:
        shown = dict(context.invocation_metadata()).get(key, b"")
        shown = shown.encode() if isinstance(shown, str) else shown
        with self._lock:
            known = expected is not None and hmac.compare_digest(shown, expected)
            before = self._taken.get(id(arrived))
            first = before is None or (arrived is self._communicate and not before.is_active())
            if not known:
                self._turned_away += 1
            elif first:
                self._taken[id(arrived)] = context
        if not known:
            abort(
                context,
                UnauthenticatedError("this client waits for another proxy server: the secret is missing or wrong"),
            )
        if not first:
            abort(context, ClosedError("this client has its proxy server already"))
        stream: Stream[_Out, _In] = Stream(requests, context)
        context.send_initial_metadata(((ACCEPTED, "1"),))
        arrived.put(stream)
        return stream.messages()


class DialBackTransport:
    """See remote.transport.Transport: the stream of a proxy server that has dialled. Owns what listened for it."""

    redials = True
    nobody_listens = None

    def __init__(self, listener: DialBack, stream: Stream[bytes, memoryview], enclave_id: str = "") -> None:
        self.enclave_id = enclave_id
        self._listener = listener
        self._stream = stream
        self._ran = False
        self._outgoing: Pulled | None = None
        self._questions = _Questions(listener)

    def run(self, source: Source) -> Generator[Bytes, None, None]:
        """See Transport. Again: on the stream of a proxy server that dials again."""
        if self._ran:
            self._stream = self._listener.stream_again(AGAIN_SECONDS)
        self._ran = True
        self._outgoing = Pulled(source)
        for data in self._stream.run(iter(self._outgoing)):
            if not data:
                raise ClosedError("the enclave has ended")
            yield data

    def wake(self) -> None:
        """See Transport."""
        if self._outgoing is not None:
            self._outgoing.wake()

    wake_later = wake

    def hang_up(self) -> None:
        """See Transport."""
        self._stream.cancel()

    def close(self) -> None:
        """See Transport."""
        self._stream.cancel()
        self._listener.close()

    def processes(self, timeout: float) -> dict[str, ProcessReport]:
        """See Transport. On a stream of its own, of the same connection."""
        return reports_of(self._questions.ask(timeout))


class _Questions:
    """What the proxy server is asked beside the stream: one question at a time, each answered by one message."""

    def __init__(self, listener: DialBack) -> None:
        self._listener = listener
        self._lock = threading.Lock()
        self._stream: Stream[ProcessesRequest, bytes] | None = None
        self._asked: queue.SimpleQueue[ProcessesRequest | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._owed = False  # the reply to a question whose asker waits no more
        self._open = threading.Semaphore(0)  # questions that no reply has come to

    def ask(self, timeout: float) -> bytes:
        """The reply. ClosedError, ConnectionLostError, DeadlineError, PlatformError (it answers nothing of the kind)."""
        until = time.monotonic() + timeout
        with self._lock:
            if self._listener.closed:
                raise ClosedError("the connection is closed: its processes cannot be asked about any more")
            if self._stream is None:
                try:
                    self._stream = self._listener.reports(timeout)
                except UnreachableError:
                    raise PlatformError(
                        "the proxy server does not report its processes: is it an older adyton?"
                    ) from None
                threading.Thread(target=self._read, args=(self._stream,), name="adyton-reports", daemon=True).start()
            if self._owed:
                self._reply(until, timeout)  # is that of an earlier question
                self._owed = False
            self._owed = True
            self._open.release()
            self._asked.put(ProcessesRequest())
            reply = self._reply(until, timeout)
            self._owed = False
            return reply

    def _reply(self, until: float, timeout: float) -> bytes:
        try:
            reply = self._replies.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise DeadlineError(f"the proxy server did not report its processes within {timeout:g} s") from None
        if reply is None:
            self._replies.put(None)
            raise ConnectionLostError("the connection to the proxy server, or its reports, ended")
        return reply

    def _read(self, stream: Stream[ProcessesRequest, bytes]) -> None:
        try:
            for reply in stream.run(iter(self._asked.get, None)):
                if not self._open.acquire(blocking=False):  # what nobody asked for would be kept for ever
                    stream.cancel()
                    break
                self._replies.put(reply)
        except ConnectionLostError:
            pass  # said below
        self._asked.put(None)
        self._replies.put(None)


def tls_by_hand(listen: ListenAddress, tls: TLS | None) -> TLS:
    """The TLS of a client that waits for a proxy server started by hand; without files none. UsageError if its secret would travel in clear."""
    if not listen.path and listen.port == 0:
        raise UsageError(f"dial_back={listen}: a proxy server that is started by hand must know the port: name one")
    if tls is not None and (tls.cert or tls.key) and not listen.path:
        return tls
    if not listen.private:
        raise UsageError(
            f"dial_back={listen}: a proxy server started by hand checks the client by its certificate: give tls=TLS(cert=, key=), "
            "or wait at 127.0.0.1:PORT or unix:PATH"
        )
    return TLS()
