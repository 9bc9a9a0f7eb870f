"""RemoteProvision: how a client gets a proxy server for an image, on a provision server or in a process of its own machine."""

from __future__ import annotations

import abc
import os
import queue
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from adyton.errors import AdytonError, RemoteProtocolError, UnreachableError, UsageError
from adyton.image.oci import Image
from adyton.provision.patience import Patience
from adyton.provision.upload import chunks_of, offer_of
from adyton.provision_pb2 import Offer, ProvisionRequest, ProvisionResponse, Ready
from adyton.remote.address import SOCKET_PATH, TLS, Address, is_loopback, security_type_of
from adyton.remote.bearer import check_token, read_token
from adyton.remote.connection import Peer, error_from, open_channel
from adyton.remote.grpc_transport import GrpcTransport
from adyton.stopped import STOPPED_SECONDS, stopped

METHOD = "/adyton.ProvisionService/Provision"
START_TIMEOUT = 20.0  # seconds until a local proxy server must have said where it listens
ANSWER_TIMEOUT = (
    60.0  # seconds for a server's next answer, once it has taken all that was sent; it may be starting an enclave
)
LOOK_SECONDS = 0.5  # between two looks at whether it was stopped
STOP_TIMEOUT = 5.0  # seconds for it to end by itself
SECRET_VARIABLE = "ADYTON_LAUNCH_SECRET"  # noqa: S105 - the name of a variable
PARENT_VARIABLE = "ADYTON_LAUNCH_FD"
DIRECTORY_VARIABLE = "ADYTON_LAUNCH_DIRECTORY"
READY = "adyton proxy listening on "
_OF_SERVERS = tuple(  # variables that are meant for servers of one's own, or say how this command prints
    f"ADYTON_{name}"
    for name in ("SSL_CERT", "SSL_KEY", "CLIENT_CA", "TOKEN_FILE", "SECURITY_TYPE", "HOST_ADDRESS", "JSON")
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
        else ADYTON_CA and the like, ADYTON_TOKEN_FILE, ADYTON_SECURITY_TYPE. UsageError."""
        server = server or os.environ.get("ADYTON_ON") or None
        kind = security_type_of(security_type or os.environ.get("ADYTON_SECURITY_TYPE"))
        if server is not None:
            address = Address.parse(server, kind)
            if token is None:
                token = read_token(os.environ.get("ADYTON_TOKEN_FILE") or None) or None
            return _ServerProvision(address, TLS.from_environment() if tls is None else tls, token)
        if kind == "ssl":
            raise UsageError("security type ssl is TLS to a server, and none is named: give --on, or leave it out")
        return _LocalProvision(remote_proxy or os.environ.get("ADYTON_REMOTE_PROXY") or None)

    @abc.abstractmethod
    def provision(self, image: Image | str, platform: str, tls: TLS | None = None) -> GrpcTransport:
        """Have a proxy server started for the image (or for one that the server has, by its measurement); how to reach it.

        `tls` overrides what `instantiate` was given. Raises UnreachableError, UnauthenticatedError, ImageError, PlatformError.
        """

    @abc.abstractmethod
    def another(self) -> RemoteProvision:
        """One with the same settings, for another load; `finalize` of either is no business of the other."""

    @abc.abstractmethod
    def finalize(self) -> str:
        """End what `provision` started. Idempotent. The last lines that a local proxy server wrote to its standard error."""


def _upload(
    channel: grpc.Channel, target: Peer | str, image: Image | str, platform: str, metadata: tuple[tuple[str, str], ...]
) -> Ready:
    stub = channel.stream_stream(
        METHOD,
        request_serializer=ProvisionRequest.SerializeToString,
        response_deserializer=ProvisionResponse.FromString,
    )
    steps: queue.SimpleQueue[ProvisionRequest | Iterator[ProvisionRequest] | None] = queue.SimpleQueue()
    offer = Offer(measurement=image, platform=platform) if isinstance(image, str) else offer_of(image, platform)
    steps.put(ProvisionRequest(offer=offer))

    def requests() -> Iterator[ProvisionRequest]:
        while (step := steps.get()) is not None:
            for request in [step] if isinstance(step, ProvisionRequest) else step:
                patience.renew()
                yield request

    connected = asked = False
    responses: Any = None
    patience = Patience(ANSWER_TIMEOUT, lambda: responses.cancel())  # noqa: PLW0108 - it is made below
    try:
        with patience:
            responses = stub(requests(), metadata=metadata)
            for response in responses:
                connected = True
                patience.renew()
                match response.WhichOneof("step"):
                    case "missing" if not asked:
                        asked = True
                        if not isinstance(image, str):
                            steps.put(chunks_of(image, response.missing.digests))
                    case "ready":
                        ready: Ready = response.ready
                        return ready
                    case _:
                        break
    except grpc.RpcError as error:
        if patience.exhausted:
            raise UnreachableError(
                f"{target} did not answer within {ANSWER_TIMEOUT:g} s: is it an adyton server, and is it overloaded?"
            ) from None
        raise error_from(error, target, connected=connected) from error
    finally:
        steps.put(None)
    raise RemoteProtocolError(f"{target} ended provisioning without saying where the proxy server is")


class _ServerProvision(RemoteProvision):
    def __init__(self, address: Address, tls: TLS | None, token: str | None) -> None:
        self._address = address
        self._tls = tls
        if token is not None:
            check_token(token)
            if address.host and not address.secure and not is_loopback(address.host):
                raise UsageError(
                    f"the token would cross the network to {address.target} in clear: write grpcs://{address.target}, or leave the "
                    "token out"
                )
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def provision(self, image: Image | str, platform: str, tls: TLS | None = None) -> GrpcTransport:
        tls = tls or self._tls
        peer = Peer(self._address, tls)
        with open_channel(self._address, tls, impatient=True) as channel:
            ready = _upload(channel, peer, image, platform, self._metadata)
        if ready.port > 65535 or (ready.port and not self._address.host):
            raise RemoteProtocolError(f"{self._address.target} named no usable port of its proxy server: {ready.port}")
        proxy = self._address.with_port(ready.port) if ready.port else self._address
        return GrpcTransport(open_channel(proxy, tls), Peer(proxy, tls), ready.session)

    def another(self) -> RemoteProvision:
        return self  # it keeps nothing of a load

    def finalize(self) -> str:
        return ""  # the proxy server ends with its session, by itself


class _LocalProvision(RemoteProvision):
    """Starts a proxy server as a child process; it ends when this process does, however that ends."""

    local = True

    def __init__(self, command: str | None) -> None:
        try:
            given = shlex.split(command or "")
        except ValueError as error:
            raise UsageError(f"--remote_proxy {command}: {error}") from None
        self._given = command
        self._command = given or [sys.executable, "-P", "-m", "adyton.cli", "proxy"]
        self._process: subprocess.Popen[str] | None = None
        self._life = -1  # writing end of a pipe; the proxy server ends when it is closed
        self._directory = ""  # of socket and blobs; both sides remove it at their end, whichever comes last
        self._said: list[str] = []
        self._readers: list[threading.Thread] = []

    def provision(self, image: Image | str, platform: str, tls: TLS | None = None) -> GrpcTransport:  # noqa: ARG002
        if self._process is not None:
            raise UsageError("a RemoteProvision serves one load: instantiate another")
        secret = secrets.token_hex(32)
        try:
            target = self._start(secret)
            address = Address.parse(target)
            with open_channel(address, None, impatient=True) as channel:
                ready = _upload(channel, target, image, platform, (("authorization", f"Bearer {secret}"),))
        except BaseException:
            self.finalize()
            raise
        return GrpcTransport(open_channel(address, None), target, ready.session)

    def another(self) -> RemoteProvision:
        return _LocalProvision(self._given)

    def _start(self, secret: str) -> str:
        self._directory = _directory_for_socket()
        reading, self._life = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*self._command, "--listen", f"unix:{self._directory}/proxy.sock"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env={
                    **{name: value for name, value in os.environ.items() if name not in _OF_SERVERS},
                    SECRET_VARIABLE: secret,
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
        return self._ready_line(self._process)

    def _read(self, name: str, target: Callable[[subprocess.Popen[str]], None]) -> None:
        thread = threading.Thread(target=target, args=(self._process,), name=name, daemon=True)
        self._readers.append(thread)
        thread.start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self._said = [*self._said[-19:], line.rstrip()]

    def _ready_line(self, process: subprocess.Popen[str]) -> str:
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()

        def read(process: subprocess.Popen[str]) -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put(line)
            lines.put("")

        self._read("adyton-proxy-ready", read)
        line = self._first(lines, process)
        if not line.startswith(READY):
            process.kill()
            status = process.wait()
            self._join()
            raise _start_error(shlex.join(self._command), line, status, self._said)
        return line.removeprefix(READY).strip()

    def _first(self, lines: queue.SimpleQueue[str], process: subprocess.Popen[str]) -> str:
        until, still = time.monotonic() + START_TIMEOUT, 0.0
        while True:
            try:
                return lines.get(timeout=max(0.0, min(LOOK_SECONDS, until - time.monotonic())))
            except queue.Empty:
                still = still + LOOK_SECONDS if stopped(process.pid) else 0.0
            if still >= STOPPED_SECONDS or time.monotonic() >= until:
                what = (
                    "was stopped by a signal" if still else f"did not say within {START_TIMEOUT:g} s where it listens"
                )
                raise UnreachableError(f"the proxy server ({shlex.join(self._command)}) {what}")

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
                process.kill()
                process.wait()
            self._join()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                stream.close()
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
        return "\n".join(self._said)


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
