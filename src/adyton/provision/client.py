"""RemoteProvision: how a client gets a proxy server for an image, on a provision server or in a process of its own machine."""

from __future__ import annotations

import abc
import contextlib
import os
import queue
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grpc

from adyton.errors import (
    AdytonError,
    ConnectionLostError,
    DeadlineError,
    RemoteProtocolError,
    UnreachableError,
    UsageError,
)
from adyton.image.oci import Image
from adyton.provision.budget import Budget
from adyton.provision.first_line import CONNECTED, LISTENING
from adyton.provision.patience import Patience
from adyton.provision.upload import chunks_of, offer_of
from adyton.provision_pb2 import DialBackTo, Offer, ProvisionRequest, ProvisionResponse, Ready
from adyton.remote.address import SOCKET_PATH, TLS, Address, is_loopback, security_type_of
from adyton.remote.bearer import check_token, read_token
from adyton.remote.connection import Peer, error_from, open_channel, unpacked
from adyton.remote.dial_address import ListenAddress
from adyton.remote.dial_back import DialBack, tls_by_hand
from adyton.remote.grpc_transport import GrpcTransport
from adyton.remote.transport import Transport
from adyton.stopped import STOPPED_SECONDS, stopped

METHOD = "/adyton.ProvisionService/Provision"
START_TIMEOUT = 20.0  # seconds until a local proxy server must have said where it listens
ANSWER_TIMEOUT = (
    60.0  # seconds for a server's next answer, once it has taken all that was sent; it may be starting an enclave
)
LOOK_SECONDS = 0.5  # between two looks at whether it was stopped
JOIN_TIMEOUT = (
    20.0  # seconds for the next stream of a proxy server that has dialled before, or that a server has started
)
HAND_TIMEOUT = (
    120.0  # seconds for a proxy server that is started by hand to come, if the load has no timeout of its own
)
STOP_TIMEOUT = 5.0  # seconds for it to end by itself
SECRET_VARIABLE = "ADYTON_LAUNCH_SECRET"  # noqa: S105 - the name of a variable
PARENT_VARIABLE = "ADYTON_LAUNCH_FD"
DIRECTORY_VARIABLE = "ADYTON_LAUNCH_DIRECTORY"
CERTIFICATE_VARIABLE = "ADYTON_LAUNCH_CERTIFICATE"  # PEM: what the client shows that waits; empty on a unix socket
_OF_SERVERS = tuple(  # variables that are meant for servers of one's own, or say how this command prints
    f"ADYTON_{name}"
    for name in ("SSL_CERT", "SSL_KEY", "CLIENT_CA", "TOKEN_FILE", "SECURITY_TYPE", "HOST_ADDRESS", "LISTEN", "JSON")
)


class RemoteProvision(abc.ABC):
    """Gets proxy servers. Made by `instantiate`. An instance serves one load, and `another` the next; `finalize` ends what it started."""

    local = False

    @staticmethod
    def instantiate(
        server: str | None = None,
        *,
        remote_proxy: str | None = None,
        tls: TLS | None = None,
        token: str | None = None,
        security_type: str | None = None,
    ) -> RemoteProvision:
        """For `server` (or ADYTON_ON) the remote one; for neither the local one, with the command `remote_proxy`, else
        ADYTON_REMOTE_PROXY, else this Python's own `adyton proxy`. `tls`, `token`, `security_type` ("ssl", "local"): for the server;
        else ADYTON_CA and the like, ADYTON_TOKEN_FILE, ADYTON_SECURITY_TYPE. With dial-back and a `token` but no server, nothing is
        started: a proxy server that was started by hand is waited for, see `dialled_back`. UsageError."""
        server = server or os.environ.get("ADYTON_ON") or None
        kind = security_type_of(security_type or os.environ.get("ADYTON_SECURITY_TYPE"))
        if server is not None:
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
            self._call = stub(outgoing, metadata=self._metadata)
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
                transport = listener.transport(budget.left(JOIN_TIMEOUT))
                failing.pop_all()
                return transport
        if ready.port > 65535 or (ready.port and not self._address.host):
            raise RemoteProtocolError(f"{target} named no usable port of its proxy server: {ready.port}")
        proxy = self._address.with_port(ready.port) if ready.port else self._address
        return GrpcTransport(open_channel(proxy, tls), Peer(proxy, tls), ready.session)

    def another(self) -> RemoteProvision:
        return self  # it keeps nothing of a load

    def finalize(self) -> str:
        return ""  # the proxy server ends with its session, by itself


class _AwaitedProvision(RemoteProvision):
    """Waits for a proxy server that was started by hand."""

    def __init__(self, address: ListenAddress, token: str, tls: TLS | None) -> None:
        self._address = address
        self._token = token
        self._tls = tls

    def dialled_back(self, address: str) -> RemoteProvision:
        return _AwaitedProvision(ListenAddress.parse(address), self._token, self._tls)

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
    """Starts a proxy server as a child process; it ends when this process does, however that ends."""

    local = True

    def __init__(
        self, command: str | None, tls: TLS | None, token: str | None, dial_back: ListenAddress | None = None
    ) -> None:
        try:
            given = shlex.split(command or "")
        except ValueError as error:
            raise UsageError(f"--remote_proxy {command}: {error}") from None
        self._given = command, tls, token
        self._command = given or [sys.executable, "-P", "-m", "adyton.cli", "proxy"]
        self._dial_back = dial_back
        self._process: subprocess.Popen[str] | None = None
        self._life = -1  # writing end of a pipe; the proxy server ends when it is closed
        self._directory = ""  # of socket and blobs; both sides remove it at their end, whichever comes last
        self._said: list[str] = []
        self._readers: list[threading.Thread] = []

    def dialled_back(self, address: str) -> RemoteProvision:
        command, tls, token = self._given
        listen = ListenAddress.parse(address)
        if token is not None:
            if command is not None:
                raise UsageError(
                    "a token is for a proxy server started by hand: leave it out, or leave out remote_proxy"
                )
            return _AwaitedProvision(listen, check_token(token), tls)
        return _LocalProvision(command, tls, None, listen.absolute())

    def provision(
        self,
        image: Image | str,
        platform: str,
        tls: TLS | None = None,  # noqa: ARG002 - nothing leaves this machine
        timeout: float | None = None,
    ) -> Transport:
        if self._process is not None:
            raise UsageError("a RemoteProvision serves one load: instantiate another")
        secret, budget = secrets.token_hex(32), Budget(timeout)
        try:
            if self._dial_back is not None:
                return self._dialled(DialBack(self._dial_back, secret), secret, image, platform, budget)
            self._directory = _directory_for_socket()
            self._start(["--listen", f"unix:{self._directory}/proxy.sock"], {SECRET_VARIABLE: secret})
            target = self._ready_line(LISTENING, "where it listens", budget)
            address = Address.parse(target)
            with open_channel(address, None, impatient=True) as channel:
                ready = _upload(_DialledLink(channel, target, secret), target, image, platform, budget)
        except BaseException:
            self.finalize()
            raise
        return GrpcTransport(open_channel(address, None), target, ready.session)

    def another(self) -> RemoteProvision:
        return _LocalProvision(*self._given, self._dial_back)

    def _dialled(self, listener: DialBack, secret: str, image: Image | str, platform: str, budget: Budget) -> Transport:
        try:
            self._directory = _directory_for_socket()
            self._start(
                ["--host_address", listener.address.here],
                {SECRET_VARIABLE: secret, CERTIFICATE_VARIABLE: listener.certificate},
            )
            self._ready_line(CONNECTED, f"that it has reached {listener.address}", budget)
        except BaseException:
            listener.close()
            raise
        return _dialled(listener, image, platform, budget, JOIN_TIMEOUT)

    def _start(self, arguments: list[str], told: dict[str, str]) -> None:
        reading, self._life = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env={
                    **{name: value for name, value in os.environ.items() if name not in _OF_SERVERS},
                    **told,
                    PARENT_VARIABLE: str(reading),
                    DIRECTORY_VARIABLE: self._directory,
                },
                pass_fds=(reading,),
                start_new_session=True,  # an interrupt at the terminal is for the application, which ends its enclave in order
            )
        except OSError as error:
            raise UnreachableError(
                f"the proxy server cannot be started: {shlex.join(self._command)}: {error.strerror}. Check --remote_proxy"
            ) from None
        finally:
            os.close(reading)
        self._read("adyton-proxy-log", self._listen)

    def _read(self, name: str, target: Callable[[subprocess.Popen[str]], None]) -> None:
        thread = threading.Thread(target=target, args=(self._process,), name=name, daemon=True)
        self._readers.append(thread)
        thread.start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self._said = [*self._said[-19:], line.rstrip()]

    def _ready_line(self, begin: str, what: str, budget: Budget) -> str:
        """What follows `begin` in the child's first line."""
        process = self._process
        assert process is not None
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()

        def read(process: subprocess.Popen[str]) -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put(line)
            lines.put("")

        self._read("adyton-proxy-ready", read)
        line = self._first(lines, process, what, budget.left(START_TIMEOUT))
        if not line.startswith(begin):
            status = _kill(process)
            self._join()
            raise _start_error(shlex.join(self._command), line, status, self._said)
        return line.removeprefix(begin).strip()

    def _first(self, lines: queue.SimpleQueue[str], process: subprocess.Popen[str], what: str, seconds: float) -> str:
        until, still = time.monotonic() + seconds, 0.0
        while True:
            try:
                return lines.get(timeout=max(0.0, min(LOOK_SECONDS, until - time.monotonic())))
            except queue.Empty:
                still = still + LOOK_SECONDS if stopped(process.pid) else 0.0
            if still >= STOPPED_SECONDS or time.monotonic() >= until:
                why = "was stopped by a signal" if still else f"did not say within {round(seconds, 1):g} s {what}"
                raise UnreachableError(f"the proxy server ({shlex.join(self._command)}) {why}")

    def _join(self) -> None:
        """Until all that the ended proxy server said has been read."""
        for thread in self._readers:
            thread.join(timeout=1)

    def finalize(self) -> str:
        process, self._process = self._process, None
        if self._life >= 0:
            os.close(self._life)
            self._life = -1
        if process is not None:
            if stopped(process.pid):  # by a signal: it will not end by itself
                process.kill()
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                _kill(process)
            self._join()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                if not any(reader.is_alive() for reader in self._readers):  # a process that it left behind may have it
                    stream.close()
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
        return "\n".join(self._said)


def _kill(process: subprocess.Popen[str]) -> int:
    """End it and, where it is a script, what it runs; how it ended."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own
    return process.wait()


def _directory_for_socket() -> str:
    """A new folder whose path is short enough for that of a unix socket in it, however deep TMPDIR is."""
    directory = tempfile.mkdtemp(prefix="adyton-")
    if len(os.fsencode(directory)) <= SOCKET_PATH - len("/proxy.sock"):
        return directory
    os.rmdir(directory)
    return tempfile.mkdtemp(prefix="adyton-", dir="/tmp")


def _start_error(command: str, line: str, status: int, said: list[str]) -> AdytonError:
    from adyton import errors

    text = "\n".join(said).removeprefix("adyton: ").strip()
    kinds: dict[int, Any] = {31: errors.PlatformError, 2: errors.UsageError}
    kind = kinds.get(status)
    if kind is not None and text:
        error: AdytonError = kind(text)
        return error
    first = f"its first line was {line.strip()[:80]!r}" if line else f"it ended with status {status}"
    return UnreachableError(f"the proxy server ({command}) did not start: {first}. {text}".rstrip())
