"""What a client that waits for its proxy server suffers from anybody else who dials, and from a proxy server that lies."""

from __future__ import annotations

import os
import select
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import grpc
import pytest
from conftest import waiting_address
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton import trusted
from adyton.attestation.expectation import Expectation
from adyton.communicator.messages import LoadRequest
from adyton.communicator_pb2 import Envelope
from adyton.crypto.self_signed import launch_certificate
from adyton.errors import (
    AdytonError,
    ClosedError,
    ConnectionLostError,
    DeadlineError,
    ImageError,
    PlatformError,
    RemoteProtocolError,
    UnauthenticatedError,
    UnreachableError,
)
from adyton.hostcall.client.executor import Executor
from adyton.hostcall.client.policy import HostCallPolicy
from adyton.image.build import build_file
from adyton.image.oci import Image
from adyton.loader import IN_PROCESS_MEASUREMENT
from adyton.processes_pb2 import ProcessesReply, ProcessReport
from adyton.provision.budget import Budget
from adyton.provision.client import _DialledLink, _upload
from adyton.provision.service import ProvisionService
from adyton.provision.store import BlobStore
from adyton.provision_pb2 import DialBackTo, Missing, ProvisionRequest, ProvisionResponse, Ready
from adyton.remote import dialling
from adyton.remote.connection import error_from, open_pinned_channel, open_server, packed
from adyton.remote.dial_address import ListenAddress
from adyton.remote.dial_back import ACCEPTED, CONNECTIONS, DialBack
from adyton.remote.dialling import Dialler
from adyton.remote.proxy_client import ProxyClient
from adyton.runtime.launch import launch_in_process

TOKEN = "the secret of the launch"
WAIT = 60  # seconds until a test gives up on something that takes milliseconds


def test_who_connects_again_and_again_takes_few_of_the_applications_descriptors(listener):
    """They are closed at once; and when they have gone, the proxy server gets in."""
    before = len(os.listdir("/proc/self/fd"))
    host, _, port = listener.address.here.rpartition(":")
    with ExitStack() as closing:
        many = [closing.enter_context(socket.create_connection((host, int(port)))) for _ in range(CONNECTIONS + 200)]
        closed = select.poll()
        for each in many:
            closed.register(each, select.POLLIN)
        gone: set[int] = set()
        while len(gone) < 200:
            for descriptor, _ in closed.poll(WAIT * 1000) or pytest.fail("they are not closed"):
                closed.unregister(descriptor)
                gone.add(descriptor)
        assert len(os.listdir("/proc/self/fd")) - before - len(many) < CONNECTIONS + 30
    until, accepted = time.monotonic() + WAIT, False
    while (
        not accepted and time.monotonic() < until
    ):  # as a proxy server does, until gRPC has noticed that they have gone
        with Caller(listener, "Provision", metadata=bearer(TOKEN)) as caller:
            accepted = caller.accepted
    assert accepted


@pytest.fixture(autouse=True)
def soon_given_up(monkeypatch) -> None:
    """A client that has gone, by its proxy server."""
    monkeypatch.setattr(dialling, "AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(dialling, "STOPPED_SECONDS", 0.1)


@pytest.fixture
def listener() -> Iterator[DialBack]:
    listener = DialBack(ListenAddress.parse("127.0.0.1:0"), TOKEN)
    yield listener
    listener.close()


def channel_to(listener: DialBack) -> grpc.Channel:
    return open_pinned_channel(listener.address.here, listener.certificate.encode())


class Caller:
    """Any gRPC client: one stream, whose messages are bytes."""

    def __init__(
        self, listener: DialBack, method: str, *messages: bytes, metadata=(), hang: bool = True, asked: bool = False
    ) -> None:
        """`asked`: the messages follow the first that comes, and do not come before it."""
        made = threading.Event()
        self.channel = channel_to(listener)
        self._end = threading.Event()

        def requests() -> Iterator[bytes]:
            if asked:
                made.wait()
                next(self.call)
            yield from messages
            if hang:
                self._end.wait()

        self.call = self.channel.stream_stream(f"/adyton.DialBack/{method}")(requests(), metadata=metadata)
        made.set()
        self.accepted = any(key == ACCEPTED for key, _ in self.call.initial_metadata())

    def error(self) -> AdytonError:
        self.call.code()
        return error_from(self.call, "the client", connected=False)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.channel.close()


def bearer(token: str):
    return (("authorization", f"Bearer {token}"),)


def of_session(listener: DialBack):
    return (("adyton-session-bin", listener.offer().session),)


class Echo(trusted.TrustedApplication):
    @trusted.entry
    def echo(self, text: str) -> str:
        return text


def proxy_server(listener: DialBack, application=None) -> threading.Thread:
    """The right one, with an enclave on threads of this process."""
    dialler = Dialler(channel_to(listener), listener.address.here)
    supervisor = launch_in_process(application or Echo())

    def run() -> None:
        dialler.communicate(listener.offer().session, supervisor, WAIT, lambda: None, grace=0.1)
        dialler.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def connected(listener: DialBack) -> ProxyClient:
    executor = Executor(HostCallPolicy.create(base="/"), [], denied=print, output=print)
    expectation = Expectation(platforms=["sim"], debug=True, measurement=[IN_PROCESS_MEASUREMENT])
    client = ProxyClient(listener.transport(WAIT), executor, expectation)
    client.connect(LoadRequest(b"", [], "/", "", {}), WAIT)
    return client


WRONG = {
    "Provision": [
        (),
        bearer(""),
        bearer("guess"),
        bearer(TOKEN + "x"),
        bearer(TOKEN[:-1]),
        (("authorization", TOKEN),),
    ],
    "Communicate": [(), (("adyton-session-bin", b""),), (("adyton-session-bin", bytes(32)),), bearer(TOKEN)],
}


@pytest.mark.parametrize("method", WRONG)
def test_an_impostor_who_comes_first_is_turned_away_and_disturbs_nothing(listener, method):
    for metadata in WRONG[method]:
        with Caller(listener, method, b"\xff" * 100, metadata=metadata) as caller:
            assert isinstance(caller.error(), UnauthenticatedError)
            assert not caller.accepted
    relay = proxy_server(listener)
    client = connected(listener)
    client.close()
    relay.join(WAIT)
    assert not relay.is_alive()


def test_an_impostor_who_comes_later_is_turned_away_and_disturbs_nothing(listener):
    relay = proxy_server(listener)
    client = connected(listener)
    with Caller(listener, "Communicate") as caller:
        assert isinstance(caller.error(), UnauthenticatedError)
    with Caller(listener, "Communicate", metadata=of_session(listener)) as caller:
        assert isinstance(caller.error(), ClosedError)
    assert client.call("finalize", b"", WAIT) == b""
    client.close()
    relay.join(WAIT)
    assert not relay.is_alive()


def test_the_launchs_secret_lets_one_in_and_no_second_one(listener):
    with Caller(listener, "Provision", metadata=bearer(TOKEN)) as first:
        assert first.accepted
        with Caller(listener, "Provision", metadata=bearer(TOKEN)) as second:
            assert isinstance(second.error(), ClosedError)
        listener.provisioning(10)
        with Caller(listener, "Communicate", metadata=bearer(TOKEN)) as early:
            assert isinstance(early.error(), UnauthenticatedError)


def test_without_a_token_nobody_is_asked_to_provision():
    listener = DialBack(ListenAddress.parse("127.0.0.1:0"), None)
    try:
        for token in ("", "None", TOKEN):
            with Caller(listener, "Provision", metadata=bearer(token)) as caller:
                assert isinstance(caller.error(), UnauthenticatedError)
    finally:
        listener.close()


def test_many_impostors_at_once_hold_nobody_up(listener):
    callers = [Caller(listener, "Communicate", hang=True) for _ in range(40)]
    relay = proxy_server(listener)
    connected(listener).close()
    relay.join(WAIT)
    for caller in callers:
        with caller:
            assert isinstance(caller.error(), UnauthenticatedError)


def test_who_connects_and_says_nothing_holds_nobody_up(listener):
    sockets = [socket.create_connection((str(listener.address.ip), listener.address.port)) for _ in range(30)]
    for sock in sockets[:10]:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(1000))
    relay = proxy_server(listener)
    connected(listener).close()
    relay.join(WAIT)
    for sock in sockets:
        sock.close()


def test_none_comes_or_only_wrong_ones(listener):
    with pytest.raises(UnreachableError, match=r"no proxy server came to 127\.0\.0\.1:.* within 0\.1 s"):
        listener.transport(0.1)
    with Caller(listener, "Communicate") as caller:
        caller.error()
    with pytest.raises(UnreachableError, match="1 callers without the right secret"):
        listener.provisioning(0.1)


def test_a_client_with_another_certificate_is_told_no_secret(listener):
    """Somebody else listens at the client's address now."""
    _, other = launch_certificate()
    dialler = Dialler(open_pinned_channel(listener.address.here, other), listener.address.here)
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(UnreachableError, match="cannot trust the client"):
        dialler.communicate(listener.offer().session, ours, WAIT, lambda: None)
    dialler.close()
    assert listener._turned_away == 0


@pytest.mark.parametrize("listening", ["nobody", "silent", "garbage", "another-service"])
def test_a_client_that_is_none_is_given_up(listening):
    """… by its proxy server, within its time, and nothing of the enclave's is lost on it."""
    server = None
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        if listening == "nobody":
            sock.close()
        if listening == "another-service":
            server, port = open_server([], "127.0.0.1:0", None, 2)
            server.start()
        if listening == "garbage":

            def answer() -> None:
                with suppress(OSError):  # the dialler has given up
                    near, _ = sock.accept()
                    with near:
                        near.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

            threading.Thread(target=answer, daemon=True).start()
        target = f"127.0.0.1:{port}"
        dialler = Dialler(open_pinned_channel(target, b""), target)
        ours, theirs = socket.socketpair()
        joined: list[bool] = []
        with theirs, pytest.raises((UnreachableError, RemoteProtocolError)):
            dialler.communicate(bytes(32), ours, 0.7, lambda: joined.append(True))
        assert joined == []
        dialler.close()
    if server is not None:
        server.stop(None)


@pytest.mark.parametrize("family", ["ipv4", "ipv6", "any", "unix"])
def test_the_streams_over_each_family(family):
    with (
        tempfile.TemporaryDirectory(prefix="a", dir="/tmp") as directory,  # short: a socket lies there
        closing(DialBack(ListenAddress.parse(waiting_address(family, directory)), None)) as listener,
    ):
        relay = proxy_server(listener)
        connected(listener).close()
        relay.join(WAIT)
        assert not relay.is_alive()


# -- a proxy server that shows the right secret, and then lies --------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "hello.py"
    path.write_text("def hello(name: str) -> str:\n    return 'Hello ' + name\n")
    return Image.open(build_file(str(path)))


def response(**step) -> bytes:
    return ProvisionResponse(**step).SerializeToString()


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], AdytonError),
        ([b"\xff" * 10], AdytonError),
        ([response()], RemoteProtocolError),
        ([response(missing=Missing(digests=["sha256:" + "0" * 64]))], RemoteProtocolError),
        ([response(missing=Missing()), response(missing=Missing())], RemoteProtocolError),
        ([response(failed=b"")], RemoteProtocolError),
        ([response(failed=b"\xc1")], RemoteProtocolError),
        ([response(failed=packed(ImageError("what it says")))], ImageError),
        ([response(failed=b"\x92\xa6object\xa1x")], RemoteProtocolError),
    ],
    ids=["nothing", "garbage", "empty", "foreign-blob", "twice", "no-reason", "no-msgpack", "reason", "no-error"],
)
def test_a_proxy_server_that_lies_about_provisioning(listener, image, messages, error):
    with (
        Caller(listener, "Provision", *messages, metadata=bearer(TOKEN), hang=False),
        pytest.raises(error),
    ):
        _upload(listener.provisioning(WAIT), "the proxy server", image, "sim", Budget(WAIT))


def test_a_proxy_server_that_hangs_while_provisioning(listener, image):
    with (
        Caller(listener, "Provision", response(missing=Missing()), metadata=bearer(TOKEN)),
        pytest.raises(TimeoutError),
    ):
        _upload(listener.provisioning(WAIT), "the proxy server", image, "sim", Budget(0.5))


@settings(max_examples=25)
@given(data=st.lists(st.binary(min_size=1, max_size=200), max_size=5), end=st.booleans())
def test_a_proxy_server_that_says_garbage_in_the_enclaves_place(data, end):
    messages = [Envelope(data=each).SerializeToString() for each in data] + [b"\xff\xff"] * end
    with (
        closing(DialBack(ListenAddress.parse("127.0.0.1:0"), None)) as listener,
        Caller(listener, "Communicate", *messages, metadata=of_session(listener), hang=False),
    ):
        executor = Executor(HostCallPolicy.create(base="/"), [], denied=print, output=print)
        client = ProxyClient(listener.transport(WAIT), executor, Expectation(platforms=["sim"], debug=True))
        with pytest.raises(AdytonError) as caught:
            client.connect(LoadRequest(b"secret", [], "/", "", {}), WAIT)
        assert caught.value.exit_code in (10, 11)


# -- a provision server is sent to a client ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "hint"),
    [
        (DialBackTo(address="127.0.0.1:9", session=bytes(31)), "32 to 64"),
        (DialBackTo(address="127.0.0.1:9", session=bytes(65)), "32 to 64"),
        (DialBackTo(address="127.0.0.1:9", session=bytes(32)), "certificate"),
        (DialBackTo(address="127.0.0.1:9", session=bytes(32), certificate=b"x"), "certificate"),
        (DialBackTo(address="127.0.0.1:9", session=bytes(32), certificate=bytes(9000)), "too large"),
        (
            DialBackTo(address="10.0.0.1:9", session=bytes(32), certificate=launch_certificate()[1]),
            "only where it sees",
        ),
        (DialBackTo(address="metadata:80", session=bytes(32)), "no IP address"),
        (DialBackTo(session=bytes(32)), "no address"),
    ],
    ids=["short", "long", "none", "no-pem", "large", "elsewhere", "name", "empty"],
)
def test_a_server_starts_nothing_for_a_client_that_sends_it_elsewhere(tmp_path, image, offered, hint):
    started: list[object] = []

    def start(order) -> Ready:
        started.append(order)
        return Ready()

    server, port = open_server(
        [ProvisionService(BlobStore(str(tmp_path / "store")), start).handler()], "127.0.0.1:0", None, 2
    )
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            link = _DialledLink(channel, "the server", None)
            with pytest.raises(AdytonError, match=hint) as caught:
                _upload(link, "the server", image, "sim", Budget(WAIT), offered)
            assert caught.value.code == "INVALID_ARGUMENT"
    finally:
        server.stop(None)
    assert started == []


# -- questions about processes ----------------------------------------------------------------------------------------


def test_questions_are_answered_one_by_one_and_end_with_the_connection(listener):
    relay = proxy_server(listener)
    transport = listener.transport(WAIT)
    dialler = Dialler(channel_to(listener), listener.address.here)
    dialler.report(listener.offer().session, lambda: ProcessesReply(processes=[ProcessReport(kind=1, error="x")]))
    assert [transport.processes(WAIT)["proxy"].error for _ in range(3)] == ["x"] * 3
    dialler.close()
    for _ in range(2):
        with pytest.raises(ConnectionLostError):
            transport.processes(WAIT)
    transport.close()
    relay.join(WAIT)
    with pytest.raises(ClosedError):
        transport.processes(WAIT)


@pytest.mark.parametrize(
    "garbage", [b"\xff", ProcessesReply(processes=[ProcessReport(kind=1)] * 2).SerializeToString()]
)
def test_a_malformed_report_is_an_error_and_no_more(listener, garbage):
    relay = proxy_server(listener)
    transport = listener.transport(WAIT)
    with Caller(listener, "Report", garbage, metadata=of_session(listener), asked=True):
        with pytest.raises(RemoteProtocolError):
            transport.processes(WAIT)
        with pytest.raises(DeadlineError):
            transport.processes(0.2)
    transport.close()
    relay.join(WAIT)


def test_a_proxy_server_that_reports_nothing(listener):
    relay = proxy_server(listener)
    transport = listener.transport(WAIT)
    with pytest.raises(PlatformError):
        transport.processes(0.1)
    transport.close()
    relay.join(WAIT)
    assert not relay.is_alive()


def test_nothing_is_sent_to_a_server_that_was_not_asked_for(listener):
    """The bytes of an enclave wait until the client has accepted."""
    ours, theirs = socket.socketpair()
    theirs.sendall(b"first bytes")
    dialler = Dialler(channel_to(listener), listener.address.here)
    with pytest.raises(UnauthenticatedError):
        dialler.provision("wrong", lambda _requests: iter([ProvisionResponse()]), WAIT)
    ours.setblocking(False)
    assert ours.recv(100) == b"first bytes"
    dialler.close()
    for sock in (ours, theirs):
        sock.close()


def test_requests_of_provisioning_reach_the_proxy_server(listener, image):
    dialler = Dialler(channel_to(listener), listener.address.here)
    offers: list[ProvisionRequest] = []

    def answers(requests) -> Iterator[ProvisionResponse]:
        offers.append(next(requests))
        yield ProvisionResponse(missing=Missing(digests=offers[0].offer.blobs[0:0]))
        yield ProvisionResponse(ready=Ready(enclave_id="7"))

    call: list[object] = []
    thread = threading.Thread(target=lambda: call.append(dialler.provision(TOKEN, answers, WAIT)), daemon=True)
    thread.start()
    ready = _upload(
        listener.provisioning(WAIT), "x", image, "sim", Budget(WAIT), DialBackTo(session=listener.offer().session)
    )
    thread.join(WAIT)
    assert ready.enclave_id == "7"
    assert offers[0].offer.dial_back == DialBackTo(session=listener.offer().session)
    assert call[0].code() is grpc.StatusCode.OK
    dialler.close()
