"""What a client suffers from a server, a relay and an enclave that lie, hang or send garbage."""

import contextlib
import os
import socket
import threading
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import Said

from adyton.attestation.expectation import Expectation
from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.sim import attest
from adyton.channel.client import ClientChannel, EvidenceReceived
from adyton.channel.server import Closed, Data, EvidenceRequested, ServerChannel
from adyton.communicator import frames
from adyton.communicator import session as communicator
from adyton.communicator.joining import Answer, HelloReader
from adyton.communicator.messages import LoadReply, LoadRequest, Raised, encode
from adyton.errors import (
    AdytonError,
    BindingError,
    ConnectionLostError,
    DeadlineError,
    EnclaveError,
    EvidenceMalformedError,
    ExpectationError,
    NotGenuineError,
    ProtocolError,
    RemoteProtocolError,
)
from adyton.handing_over import accept, control_pair
from adyton.hostcall import abi
from adyton.hostcall.client.executor import Executor
from adyton.hostcall.client.policy import HostCallPolicy
from adyton.remote import proxy_client
from adyton.remote.client_pairs import CallFailed
from adyton.remote.line import Line
from adyton.remote.proxy_client import ProxyClient
from adyton.remote.transport import Pulled, SocketTransport

MEASUREMENT = "sha256:" + "1" * 64
IDENTITY = EnclaveIdentity("sim", MEASUREMENT, "", 0, 0, False, MEASUREMENT, "")
EXPECTATION = Expectation(platforms=["sim"], measurement=[MEASUREMENT])
PATIENCE = 60.0  # seconds until a test gives up on something that takes milliseconds
LOAD = LoadRequest(b"secret configuration", [], "/", "", {})


class Enclave:
    """The server's side in the test's hands. `evidence(report_data)` is shown; `script(enclave)` runs once a load has come.

    `told`: all that the client said inside the channel.
    """

    def __init__(self, control, evidence=lambda data: attest(IDENTITY, data), script=None):
        self.control = control
        self.socket = None
        self.hello = HelloReader()
        self.joined = False
        self.channel = ServerChannel(IDENTITY.digest())
        self.session = communicator.Session(communicator.Side.ENCLAVE)
        self.evidence = evidence
        self.script = script
        self.told = b""
        self.events = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        self.socket = accept(self.control)
        if self.socket is None:
            return
        with contextlib.suppress(OSError, AdytonError), self.control, self.socket:
            while data := self.socket.recv(1 << 18):
                self.take(data)
                self.send()

    def take(self, data):
        for event in self.channel.receive(data):
            match event:
                case EvidenceRequested(report_data):
                    self.channel.provide(self.evidence(report_data))
                case Data(plaintext):
                    if not self.joined:
                        _, plaintext = self.hello.receive(plaintext)
                        self.channel.send(Answer(joined=True, read=0, grace=0).pack())
                        self.joined = True
                    self.told += plaintext
                    for inner in self.session.receive(plaintext):
                        self.said(inner)
                case Closed():
                    self.socket.shutdown(socket.SHUT_RDWR)

    def said(self, event):
        self.events.append(event)
        if isinstance(event, communicator.Called):
            if event.method == "load":
                self.session.reply(event.call, True, encode(LoadReply(["go"], [])))
            else:
                self.script(self, event)

    def send(self):
        if self.channel.established:
            while plaintext := self.session.data_to_send():
                self.channel.send(plaintext)
        if data := self.channel.data_to_send():
            self.socket.sendall(data)

    def raw(self, plaintext):
        self.send()
        self.channel.send(plaintext)
        self.send()


@pytest.fixture
def lines():
    return []


@pytest.fixture
def connect(tmp_path, lines):
    """connect(enclave's arguments) → (a client that is not connected, its enclave)."""
    opened = []

    def connect(**keywords):
        mine, other = control_pair()
        read = tmp_path / "read"
        read.mkdir(exist_ok=True)
        (read / "file").write_bytes(b"content")
        policy = HostCallPolicy.create(read=[str(read)], base=str(tmp_path))
        executor = Executor(policy, [], denied=lines.append, output=lambda _output: None)
        client = ProxyClient(SocketTransport(mine), executor, EXPECTATION)
        enclave = Enclave(other, **keywords)
        opened.append((client, enclave))
        return client, enclave

    yield connect
    for client, enclave in opened:
        client.abort()
        with contextlib.suppress(OSError):
            enclave.control.shutdown(socket.SHUT_RDWR)
        enclave.thread.join(60)
        assert not enclave.thread.is_alive()
        enclave.control.close()


def other_connection():
    """Evidence that was made for another client, a moment ago."""
    client, server = ClientChannel(), ServerChannel(IDENTITY.digest())
    while True:
        for event in server.receive(client.data_to_send()):
            if isinstance(event, EvidenceRequested):
                server.provide(attest(IDENTITY, event.report_data))
        for event in client.receive(server.data_to_send()):
            if isinstance(event, EvidenceReceived):
                return event.evidence


def changed(evidence, **fields):
    envelope = msgspec.json.decode(evidence)
    envelope.update(fields)
    return msgspec.json.encode(envelope)


def identified(**fields):
    return lambda data: attest(msgspec.structs.replace(IDENTITY, **fields), data)


@pytest.mark.parametrize(
    ("evidence", "error"),
    [
        (lambda _data: b"\0", EvidenceMalformedError),
        (lambda _data: b"{}", EvidenceMalformedError),
        (lambda data: attest(IDENTITY, data)[:-1], EvidenceMalformedError),
        (lambda _data: b"[" * 60_000, EvidenceMalformedError),
        (lambda data: changed(attest(IDENTITY, data), platform="tdx"), EvidenceMalformedError),
        (lambda data: attest(IDENTITY, data).replace(b'"signature":"', b'"signature":"AAAA'), NotGenuineError),
        (lambda _data: attest(IDENTITY, bytes(64)), BindingError),
        (lambda _data: other_connection(), BindingError),
        (identified(measurement="sha256:" + "2" * 64), BindingError),
        (identified(debug=True), BindingError),
        (identified(security_version=7), BindingError),
    ],
)
def test_nothing_is_told_to_an_enclave_whose_evidence_is_not_right(connect, evidence, error):
    client, enclave = connect(evidence=evidence)
    with pytest.raises(error):
        client.connect(LOAD, PATIENCE)
    assert enclave.told == b""
    assert enclave.events == []


@pytest.mark.parametrize("fields", [{"measurement": "sha256:" + "2" * 64}, {"debug": True}], ids=str)
def test_true_evidence_of_another_enclave_is_not_what_was_expected(connect, monkeypatch, fields):
    other = msgspec.structs.replace(IDENTITY, **fields)
    client, enclave = connect(evidence=lambda data: attest(other, data))
    enclave.channel = ServerChannel(other.digest())
    with pytest.raises(ExpectationError):
        client.connect(LOAD, PATIENCE)
    assert enclave.told == b""


class Relay:
    """In place of an enclave: a peer that says these bytes and then hangs, or goes."""

    def __init__(self, data, *, hang):
        self.mine, self.control = control_pair()
        self.data, self.hang = data, hang
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        with accept(self.control) as sock, contextlib.suppress(OSError):
            sock.sendall(self.data)
            if not self.hang:
                sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass


@pytest.mark.parametrize("hang", [True, False])
@pytest.mark.parametrize(
    "data", [b"", b"\x16\x03\x03", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(100_000), bytes(range(256)) * 4], ids=len
)
def test_a_relay_that_hangs_or_sends_garbage_is_an_error_in_seconds(connect, monkeypatch, hang, data):
    monkeypatch.setattr(proxy_client, "EVIDENCE_TIMEOUT", 0.3)
    relay = Relay(data, hang=hang)
    policy = HostCallPolicy.create(base="/")
    client = ProxyClient(SocketTransport(relay.mine), Executor(policy, [], denied=print, output=print), EXPECTATION)
    with relay.control, pytest.raises((ConnectionLostError, ProtocolError, DeadlineError)):
        client.connect(LOAD)


HOSTILE_FRAMES = [
    b"\xff\xff\xff\xff",
    b"\x01\x00\x00\x00\xc1",
    bytes(range(256)),
    frames.encode(frames.CallFrame(7, 0, "host", 0, b"")),
    frames.encode(frames.CallFrame(1, 1, "host", 1 << 62, b"")),
    frames.encode(frames.CallFrame(1, 99, "host", 0, b"")),
    frames.encode(frames.ReplyFrame(40, True, 0, b"")),
    frames.encode(frames.ReplyFrame(1, True, 0, b"")),
    frames.encode(frames.DisposeFrame(1)),
    frames.encode(frames.NotifyFrame(1, "output", 1, b"\xc1")),
    frames.encode(frames.NotifyFrame(1, "output", 1 << 40, b"")),
    frames.encode(frames.NotifyFrame(1, "counts", 5, msgspec.msgpack.encode([-1, 0, 0, 0]))),
    frames.encode(frames.GoodbyeFrame("\x1b[31m")) * 2,
]


@pytest.mark.parametrize("data", HOSTILE_FRAMES, ids=repr)
def test_an_enclave_that_breaks_the_protocol_is_an_error_at_the_waiting_caller(connect, data):
    client, _ = connect(script=lambda enclave, _event: enclave.raw(data))
    client.connect(LOAD, PATIENCE)
    with pytest.raises((RemoteProtocolError, ConnectionLostError, AdytonError)):
        client.call("enter", b"", PATIENCE)
    with pytest.raises(AdytonError):
        client.call("enter", b"", PATIENCE)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x91\xa4Nope",
        msgspec.msgpack.encode(["Stat", "", 1]),
        msgspec.msgpack.encode(["Read", 1, -1, 5]),
        b"\x91" * 50_000,
        msgspec.msgpack.encode(["Open", "/x" * 3000, 1, "read", False, False, False, False, 0]),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_malformed_host_call_ends_the_connection(connect, body):
    client, _ = connect(script=lambda enclave, _event: enclave.session.call(0, "host", body))
    client.connect(LOAD, PATIENCE)
    with pytest.raises(RemoteProtocolError):
        client.call("enter", b"", PATIENCE)


PATHS = st.one_of(
    st.sampled_from(
        [
            "/read/../etc/passwd",
            "read",
            "",
            "/",
            "//etc/passwd",
            "/etc/passwd\0",
            "/proc/self/mem",
            "/read/./file",
            "/a" * 2000,
            "/\udfff",
        ]
    ),
    st.text(max_size=20).map(lambda text: "/" + text),
)
HANDLES = st.integers(0, (1 << 32) - 1)
NUMBERS = st.one_of(st.integers(0, 100), st.just((1 << 63) - 1))
REQUESTS = st.one_of(
    st.builds(abi.Access, PATHS, st.sampled_from(["read", "write"])),
    st.builds(abi.Stat, PATHS),
    st.builds(abi.ReadLink, PATHS),
    st.builds(abi.List, PATHS, NUMBERS),
    st.builds(
        abi.Open,
        PATHS,
        HANDLES,
        st.sampled_from(["read", "write", "read-write"]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    st.builds(abi.Read, HANDLES, NUMBERS, st.integers(0, abi.MAX_BLOCK)),
    st.builds(abi.Write, HANDLES, NUMBERS, st.binary(max_size=10)),
    st.builds(abi.SetAttributes, PATHS, st.none() | HANDLES, NUMBERS, st.integers(0, 0o7777)),
    st.builds(abi.Sync, HANDLES, st.booleans()),
    st.builds(abi.Close, HANDLES),
    st.builds(abi.MakeDirectory, PATHS, st.integers(0, 0o7777)),
    st.builds(abi.Remove, PATHS, st.booleans()),
    st.builds(abi.Rename, PATHS, PATHS, st.booleans()),
    st.builds(abi.Call, st.text(min_size=1, max_size=10), st.binary(max_size=10)),
)


def sendable(request):
    try:
        return msgspec.msgpack.encode(request)
    except UnicodeEncodeError:
        return None


@settings(max_examples=60)
@given(requests=st.lists(REQUESTS, max_size=20))
def test_whatever_an_enclave_asks_for_it_gets_no_more_than_the_policy_says(tmp_path_factory, requests):
    base = tmp_path_factory.getbasetemp() / "confined"
    (base / "read").mkdir(parents=True, exist_ok=True)
    (base / "secret").write_bytes(b"secret")
    lines = []
    policy = HostCallPolicy.create(read=[str(base / "read")], base=str(base / "read"))
    bodies = [body for request in requests if (body := sendable(request)) is not None]
    with Executor(policy, [], denied=lines.append, output=lambda _output: None) as executor:
        for body in bodies:
            try:
                request = msgspec.msgpack.decode(body, type=abi.Request)
            except msgspec.ValidationError:
                continue
            result = executor.execute(request)
            assert isinstance(result, abi.Failed | abi.Attributes | abi.Done)
            if isinstance(result, abi.Attributes):
                assert isinstance(request, abi.Stat)
                assert str(base / "read").startswith(request.path)
    assert (base / "secret").read_bytes() == b"secret"
    assert sorted(os.listdir(base)) == ["read", "secret"]
    for line in lines:
        assert line.isprintable()


def test_handles_that_were_never_opened_and_paths_that_climb(connect, tmp_path):
    asked = [
        abi.Read(5, 0, 100),
        abi.Write(5, 0, b"x"),
        abi.Close(5),
        abi.Stat(f"{tmp_path}/read/../secret"),
        abi.Open(f"{tmp_path}/read/file\0", 1, "read"),
        abi.Open(f"{tmp_path}/read/file", 1, "write"),
        abi.Open(f"{tmp_path}/read/file", 1, "read"),
        abi.Open(f"{tmp_path}/read/file", 1, "read"),
        abi.Write(1, 0, b"x"),
        abi.Read(1, 0, 100),
    ]
    results = []

    def script(enclave, event):
        def said(inner):
            if isinstance(inner, communicator.Replied):
                results.append(msgspec.msgpack.decode(inner.body, type=abi.Result))
                if len(results) < len(asked):
                    enclave.session.call(0, "host", msgspec.msgpack.encode(asked[len(results)]))
                else:
                    enclave.session.reply(event.call, True, b"done")

        enclave.said = said
        enclave.session.call(0, "host", msgspec.msgpack.encode(asked[0]))

    client, _ = connect(script=script)
    client.connect(LOAD, PATIENCE)
    assert client.call("enter", b"", PATIENCE) == b"done"
    errnos = [result.errno if isinstance(result, abi.Failed) else type(result).__name__ for result in results]
    assert errnos == ["EBADF", "EBADF", "EBADF", "EINVAL", "EINVAL", "EACCES", "Attributes", "EINVAL", "EBADF", "Data"]
    assert results[-1].data == b"content"
    assert (tmp_path / "read" / "file").read_bytes() == b"content"


def test_control_characters_of_an_enclave_do_not_reach_the_terminal(connect, lines):
    def script(enclave, event):
        enclave.session.call(0, "host", msgspec.msgpack.encode(abi.Access("/\x1b[31mred\r\n\u202e", "read")))
        enclave.said = lambda _event: enclave.session.reply(event.call, True, b"")

    client, _ = connect(script=script)
    client.connect(LOAD, PATIENCE)
    client.call("enter", b"", PATIENCE)
    assert len(lines) == 1
    assert lines[0].isprintable()


def test_a_flood_of_output_and_host_calls_is_taken_as_it_comes(connect):
    def script(enclave, event):
        for _ in range(50):
            enclave.session.notify("output", msgspec.msgpack.encode(abi.Output("stdout", bytes(1 << 16))))
        for _ in range(4000):
            enclave.session.call(0, "host", msgspec.msgpack.encode(abi.Stat("/secret")))
        enclave.session.reply(event.call, True, b"done")

    client, _ = connect(script=script)
    client.connect(LOAD, PATIENCE)
    assert client.call("enter", b"", PATIENCE) == b"done"


@pytest.mark.parametrize("body", [b"", b"\xc1", encode(Raised("raised", "x", "y"))[:-1], b"\x97" * 1000], ids=repr)
def test_an_answer_that_cannot_be_read_is_an_error(connect, body):
    client, _ = connect(script=lambda enclave, event: enclave.session.reply(event.call, False, body))
    client.connect(LOAD, PATIENCE)
    with pytest.raises(RemoteProtocolError):
        client.call("enter", b"", PATIENCE)


@pytest.mark.parametrize(
    "builtin", ["SystemExit", "KeyboardInterrupt", "BaseException", "eval", "GeneratorExit", "__import__", "int", ""]
)
def test_an_enclave_chooses_no_exception_that_ends_its_client(connect, builtin):
    from adyton.client import error_of

    error = error_of(CallFailed(Raised("raised", builtin, "message", builtin), denied=False))
    assert isinstance(error, Exception)
    assert not isinstance(error, (SystemExit, KeyboardInterrupt))


def test_control_characters_in_what_failed_do_not_reach_the_terminal(capsys, monkeypatch):
    from adyton.cli import doctor, root

    def main(*_arguments):
        raise EnclaveError("E", "\x1b[31mred\x9b2J \u202e\r", "Traceback:\n\tline\x1b]0;title\x07")

    monkeypatch.setattr(doctor.command, "invoke", main)
    with pytest.raises(SystemExit):
        root.run(["doctor"])
    shown = capsys.readouterr().err
    assert "Traceback:\n\tline\\x1b]0;title" in shown
    assert all(character.isprintable() or character in "\n\t" for character in shown)


def test_a_peer_that_sends_much_and_takes_nothing_fills_no_queue():
    outgoing = Pulled(Said())
    for _ in range(10_000):
        outgoing.wake()
    assert outgoing._wakes.qsize() == 1


def test_a_line_that_is_to_end_has_that_to_say():
    line = Line(
        SimpleNamespace(wake=lambda: None), communicator.Session(communicator.Side.CLIENT), threading.Lock(), None
    )
    connection = line._connection
    assert line.pull(connection)  # the handshake's
    assert not line.due(connection)
    line._ending.set()
    assert line.due(connection)
    assert line.pull(connection) is None
