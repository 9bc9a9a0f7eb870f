"""RemoteProvision: how a client gets a proxy server for an image, on a provision server or in a process of its own machine."""

from __future__ import annotations

import abc
import contextlib
import os
import queue
import secrets
from collections.abc import Iterator
from typing import Any, Protocol

import grpc

from adyton.errors import (
    ConnectionLostError,
    DeadlineError,
    RemoteProtocolError,
    UnreachableError,
    UsageError,
)
from adyton.image.oci import Image
from adyton.provision.budget import Budget
from adyton.provision.local_proxy import LocalProxy
from adyton.provision.patience import Patience
from adyton.provision.upload import chunks_of, offer_of
from adyton.provision_pb2 import DialBackTo, Find, Offer, ProvisionRequest, ProvisionResponse, Ready
from adyton.remote import rpc_threads
from adyton.remote.address import TLS, Address, is_loopback, security_type_of
from adyton.remote.bearer import check_token, read_token
from adyton.remote.connection import Peer, channel_opener, error_from, open_channel, unpacked
from adyton.remote.dial_address import ListenAddress
from adyton.remote.dial_back import DialBack, tls_by_hand
from adyton.remote.grpc_transport import GrpcTransport
from adyton.remote.transport import Transport

METHOD = "/adyton.ProvisionService/Provision"
ANSWER_TIMEOUT = (
    60.0  # seconds for a server's next answer, once it has taken all that was sent; it may be starting an enclave
)
JOIN_TIMEOUT = (
    20.0  # seconds for the next stream of a proxy server that has dialled before, or that a server has started
)
HAND_TIMEOUT = (
    120.0  # seconds for a proxy server that is started by hand to come, if the load has no timeout of its own
)


class RemoteProvision(abc.ABC):
    """Gets proxy servers. Made by `instantiate`. An instance serves one load, and `another` the next; `finalize` ends what it started."""

    local = False
    place = "local"  # by which what is remembered of enclaves there is found again

    @staticmethod
    def instantiate(
        server: str | None = None,
        *,
        remote_proxy: str | None = None,
        tls: TLS | None = None,
        token: str | None = None,
        security_type: str | None = None,
    ) -> RemoteProvision:
        """For `server` (None: ADYTON_ON) the remote one; for none, or "", the local one, with the command `remote_proxy`, else
        ADYTON_REMOTE_PROXY, else this Python's own `adyton proxy`. `tls`, `token`, `security_type` ("ssl", "local"): for the server;
        else ADYTON_CA and the like, ADYTON_TOKEN_FILE, ADYTON_SECURITY_TYPE. With dial-back and a `token` but no server, nothing is
        started: a proxy server that was started by hand is waited for, see `dialled_back`. UsageError."""
        server = os.environ.get("ADYTON_ON") if server is None else server
        if not isinstance(tls, TLS | None):
            raise UsageError(f"tls={tls!r}: give adyton.TLS(ca=, cert=, key=)")
        if not isinstance(remote_proxy, str | None):
            raise UsageError(f"remote_proxy={remote_proxy!r}: give a command, as a shell takes it")
        kind = security_type_of(security_type or os.environ.get("ADYTON_SECURITY_TYPE"))
        if server:
            address = Address.parse(server, kind)
            if token is None:
                token = read_token(os.environ.get("ADYTON_TOKEN_FILE") or None) or None
            return _ServerProvision(address, TLS.from_environment() if tls is None else tls, token)
        if kind == "ssl":
            raise UsageError("security type ssl is TLS to a server, and none is named: give --on, or leave it out")
        return _LocalProvision(remote_proxy or os.environ.get("ADYTON_REMOTE_PROXY") or None, tls, token)

    @abc.abstractmethod
    def dialled_back(self, address: str) -> RemoteProvision:
        """The same, but the client waits at `address`, and the proxy server dials it.

        `address`: IP:PORT (port 0: a free one; [::] and 0.0.0.0: all addresses of this machine) or unix:PATH.

        A local proxy server, or a provision server's, is told a secret and a certificate of this launch, and nothing needs to be
        configured. A provision server dials only the address that it sees the client at; [::]:0 stands for it.

        A proxy server that is started by hand (`adyton proxy --host_address H:P --token-file F`) shows the `token` that `instantiate`
        was given. It checks the certificate of `tls` (cert, key) by its --client-ca; if `tls.ca` is given, it must show a certificate of
        that CA (--ssl_cert, --ssl_key). Only at a loopback address or a unix socket may TLS be left out. UsageError.
        """

    @abc.abstractmethod
    def provision(
        self, image: Image | str, platform: str, tls: TLS | None = None, timeout: float | None = None
    ) -> Transport:
        """Have a proxy server started for the image (or for one that the server has, by its measurement); how to reach it.

        `tls` overrides what `instantiate` was given. `timeout`: seconds that it may take. Raises UnreachableError, UnauthenticatedError,
        ImageError, PlatformError, DeadlineError.
        """

    def find(self, enclave_id: str, timeout: float | None = None) -> Transport:  # noqa: ARG002 - of a server
        """How to reach an enclave that the server runs already, by what `EnclaveClient.enclave_id` says; only who knows its session's secret can join it.

        `timeout`: seconds that it may take. NotFoundError, UnreachableError, UnauthenticatedError; UsageError without a server.
        """
        raise UsageError(f"the enclave {enclave_id} is to be found on a server, and none is named: give --on")

    @abc.abstractmethod
    def another(self) -> RemoteProvision:
        """One with the same settings, for another load; `finalize` of either is no business of the other."""

    @abc.abstractmethod
    def finalize(self) -> str:
        """End what `provision` started. Idempotent. The last lines that a local proxy server wrote to its standard error."""


class _Link(Protocol):
    """A conversation about provisioning, whoever dialled. Used once."""

    def run(self, outgoing: Iterator[ProvisionRequest]) -> Iterator[ProvisionResponse]: ...

    def cancel(self) -> None: ...


class _DialledLink:
    """With a server that we dial."""

    def __init__(self, channel: grpc.Channel, target: Peer | str, token: str | None) -> None:
        self._channel = channel
        self._target = target
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._call: Any = None
        self._cancelled = False

    def run(self, outgoing: Iterator[ProvisionRequest]) -> Iterator[ProvisionResponse]:
        stub = self._channel.stream_stream(
            METHOD,
            request_serializer=ProvisionRequest.SerializeToString,
            response_deserializer=ProvisionResponse.FromString,
        )
        connected = False
        try:
            self._call = rpc_threads.begin(stub, outgoing, self._metadata)
            if self._cancelled:
                self._call.cancel()
            for response in self._call:
                connected = True
                yield response
        except grpc.RpcError as error:
            raise error_from(error, self._target, connected=connected) from error

    def cancel(self) -> None:
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()


def _upload(
    link: _Link,
    target: Peer | str,
    image: Image | str,
    platform: str,
    budget: Budget,
    dial_back: DialBackTo | None = None,
) -> Ready:
    steps: queue.SimpleQueue[ProvisionRequest | Iterator[ProvisionRequest] | None] = queue.SimpleQueue()
    offer = Offer(measurement=image, platform=platform) if isinstance(image, str) else offer_of(image, platform)
    if dial_back is not None:
        offer.dial_back.CopyFrom(dial_back)
    steps.put(ProvisionRequest(offer=offer))

    def requests() -> Iterator[ProvisionRequest]:
        while (step := steps.get()) is not None:
            for request in [step] if isinstance(step, ProvisionRequest) else step:
                patience.renew()
                yield request

    asked = False
    patience = Patience(ANSWER_TIMEOUT, link.cancel)
    whole = Patience(budget.left(), link.cancel)  # never renewed
    try:
        with patience, whole:
            for response in link.run(requests()):
                patience.renew()
                match response.WhichOneof("step"):
                    case "missing" if not asked:
                        asked = True
                        if not isinstance(image, str):
                            steps.put(chunks_of(image, response.missing.digests))
                    case "ready":
                        ready: Ready = response.ready
                        return ready
                    case "failed":
                        raise unpacked(response.failed) or RemoteProtocolError(f"{target} failed without saying why")
                    case _:
                        break
    except (UnreachableError, ConnectionLostError):
        if whole.exhausted and asked:
            raise DeadlineError(
                f"{target} had not started the enclave when the load's {budget} were over: give it a longer timeout"
            ) from None
        if whole.exhausted:
            raise UnreachableError(
                f"{target} did not answer within the load's {budget}: is it an adyton server?"
            ) from None
        if patience.exhausted:
            raise UnreachableError(
                f"{target} did not answer within {ANSWER_TIMEOUT:g} s: is it an adyton server, and is it overloaded?"
            ) from None
        raise
    finally:
        steps.put(None)
    raise RemoteProtocolError(f"{target} ended provisioning without saying where the proxy server is")


class _ServerProvision(RemoteProvision):
    def __init__(
        self, address: Address, tls: TLS | None, token: str | None, dial_back: ListenAddress | None = None
    ) -> None:
        self._address = address
        self.place = address.target
        self._tls = tls
        if token is not None:
            check_token(token)
            if address.host and not address.secure and not is_loopback(address.host):
                raise UsageError(
                    f"the token would cross the network to {address.target} in clear: write grpcs://{address.target}, or leave the "
                    "token out"
                )
        self._token = token
        self._dial_back = dial_back

    def dialled_back(self, address: str) -> RemoteProvision:
        return _ServerProvision(self._address, self._tls, self._token, ListenAddress.parse(address).absolute())

    def provision(
        self, image: Image | str, platform: str, tls: TLS | None = None, timeout: float | None = None
    ) -> Transport:
        tls, budget = tls or self._tls, Budget(timeout)
        target = Peer(self._address, tls)
        with contextlib.ExitStack() as failing:
            listener = DialBack(self._dial_back, None) if self._dial_back is not None else None
            if listener is not None:
                failing.callback(listener.close)
            with open_channel(self._address, tls, impatient=True) as channel:
                link = _DialledLink(channel, target, self._token)
                ready = _upload(link, target, image, platform, budget, listener.offer() if listener else None)
            if listener is not None:
                transport = listener.transport(budget.left(JOIN_TIMEOUT), ready.enclave_id)
                failing.pop_all()
                return transport
        return self._transport(ready, tls, target)

    def find(self, enclave_id: str, timeout: float | None = None) -> Transport:
        target = Peer(self._address, self._tls)
        with open_channel(self._address, self._tls, impatient=True) as channel:
            link = _DialledLink(channel, target, self._token)
            asked = ProvisionRequest(find=Find(enclave_id=enclave_id))
            patience = Patience(Budget(timeout).left(ANSWER_TIMEOUT), link.cancel)
            try:
                with patience:
                    response = next(link.run(iter([asked])), None)
            except (UnreachableError, ConnectionLostError):
                if patience.exhausted:
                    raise UnreachableError(f"{target} did not answer in time: is it an adyton server?") from None
                raise
        if response is None or response.WhichOneof("step") != "ready":
            raise RemoteProtocolError(f"{target} did not say where the enclave's proxy server is")
        return self._transport(response.ready, self._tls, target)

    def _transport(self, ready: Ready, tls: TLS | None, target: Peer) -> Transport:
        if ready.port > 65535 or (ready.port and not self._address.host):
            raise RemoteProtocolError(f"{target} named no usable port of its proxy server: {ready.port}")
        proxy = self._address.with_port(ready.port) if ready.port else self._address
        opener = channel_opener(proxy, tls, grace=ready.grace / 1000)
        return GrpcTransport(opener, Peer(proxy, tls), ready.session, enclave_id=ready.enclave_id)

    def another(self) -> RemoteProvision:
        return self  # it keeps nothing of a load

    def finalize(self) -> str:
        return ""  # the proxy server ends with its session, by itself


class _AwaitedProvision(RemoteProvision):
    """Waits for a proxy server that was started by hand."""

    place = "dialled"

    def __init__(self, address: ListenAddress, token: str, tls: TLS | None) -> None:
        self._address = address
        self._token = token
        self._tls = tls

    def dialled_back(self, address: str) -> RemoteProvision:
        return _AwaitedProvision(ListenAddress.parse(address).absolute(), self._token, self._tls)

    def provision(
        self, image: Image | str, platform: str, tls: TLS | None = None, timeout: float | None = None
    ) -> Transport:
        tls = tls_by_hand(self._address, tls or self._tls or TLS.from_environment())
        listener = DialBack(self._address, self._token, tls)
        return _dialled(listener, image, platform, Budget(timeout), HAND_TIMEOUT if timeout is None else None)

    def another(self) -> RemoteProvision:
        return self  # it keeps nothing of a load

    def finalize(self) -> str:
        return ""  # whoever started it sees it end


def _dialled(listener: DialBack, image: Image | str, platform: str, budget: Budget, seconds: float | None) -> Transport:
    """Provision whoever shows the token of the listener, which is closed if that fails. `seconds` until it must have come."""
    try:
        link = listener.provisioning(budget.left(seconds))
        offer = DialBackTo(session=listener.offer().session)
        _upload(link, "the proxy server", image, platform, budget, offer)
        return listener.transport(budget.left(JOIN_TIMEOUT))
    except BaseException:
        listener.close()
        raise


class _LocalProvision(RemoteProvision):
    """Starts a proxy server as a child process."""

    local = True

    def __init__(
        self, command: str | None, tls: TLS | None, token: str | None, dial_back: ListenAddress | None = None
    ) -> None:
        self._given = command, tls, token
        self._proxy = LocalProxy(command)
        self._dial_back = dial_back

    def dialled_back(self, address: str) -> RemoteProvision:
        command, tls, token = self._given
        listen = ListenAddress.parse(address).absolute()
        if token is not None:
            if command is not None:
                raise UsageError(
                    "a token is for a proxy server started by hand: leave it out, or leave out remote_proxy"
                )
            return _AwaitedProvision(listen, check_token(token), tls)
        return _LocalProvision(command, tls, None, listen)

    def provision(
        self,
        image: Image | str,
        platform: str,
        tls: TLS | None = None,  # noqa: ARG002 - nothing leaves this machine
        timeout: float | None = None,
    ) -> Transport:
        if self._proxy.started:
            raise UsageError("a RemoteProvision serves one load: instantiate another")
        secret, budget = secrets.token_hex(32), Budget(timeout)
        try:
            if self._dial_back is not None:
                return self._dialled(DialBack(self._dial_back, secret), secret, image, platform, budget)
            target = self._proxy.listen(secret, budget)
            address = Address.parse(target)
            with open_channel(address, None, impatient=True) as channel:
                ready = _upload(_DialledLink(channel, target, secret), target, image, platform, budget)
        except BaseException:
            self.finalize()
            raise
        return GrpcTransport(channel_opener(address, None, grace=ready.grace / 1000), target, ready.session)

    def another(self) -> RemoteProvision:
        return _LocalProvision(*self._given, self._dial_back)

    def _dialled(self, listener: DialBack, secret: str, image: Image | str, platform: str, budget: Budget) -> Transport:
        try:
            self._proxy.dial(str(listener.address), listener.address.here, listener.certificate, secret, budget)
        except BaseException:
            listener.close()
            raise
        return _dialled(listener, image, platform, budget, JOIN_TIMEOUT)

    def finalize(self) -> str:
        return self._proxy.end()
