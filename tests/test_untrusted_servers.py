"""Servers that are not there, are something else, or do not prove who they are, and clients that they do not accept."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import certificates
import grpc
import pytest

from adyton import errors
from adyton.cli.root import run
from adyton.provision.service import ProvisionService
from adyton.provision.store import BlobStore
from adyton.remote import connection, probe
from adyton.remote.address import TLS, Address
from adyton.remote.certificates import Shown
from adyton.remote.connection import open_server
from adyton.remote.diagnosis import REASONS, Case, explain, has_waited
from adyton.remote.probe import BRIEF_SECONDS, Seen, look

REACHED = "this server starts nothing"
PATIENCE = 30.0  # seconds for what a machine that is not loaded does in a few milliseconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("certificates")
    certificates.write(path)
    (path / "prog.py").write_text("def f() -> int:\n    return 1\n")
    return path


@pytest.fixture
def cli(capfd, folder, monkeypatch):
    """`adyton call … OPTIONS` in the folder of certificates: exit code and standard error; nothing is printed."""
    monkeypatch.chdir(folder)
    wait_for_connections(monkeypatch, PATIENCE)
    monkeypatch.setattr(connection, "look", patient_look)

    def call(*options: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            run(["call", "prog.py", "f", *options])
        out, err = capfd.readouterr()
        assert out == ""
        return ended.value.code, err.removeprefix("adyton: ")

    return call


def wait_for_connections(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have gRPC give up what is silent for so long, that a loaded server is not taken for a silent one."""
    names = ("grpc.min_reconnect_backoff_ms", "grpc.http2.ping_timeout_ms")
    options = dict(connection._IMPATIENT) | dict.fromkeys(names, round(seconds * 1000))
    monkeypatch.setattr(connection, "_IMPATIENT", list(options.items()))


def patient_look(address: Address, seconds: float = PATIENCE) -> Seen:
    return look(address, max(seconds, PATIENCE))


@contextlib.contextmanager
def serving(folder: Path, tls: TLS | None = None, token: str = "") -> Iterator[int]:
    """The port of a server that takes images from those it accepts, and then starts nothing."""

    def start(order):
        raise errors.PlatformError(REACHED)

    if tls is not None:
        tls = TLS(*(file and str(folder / file) for file in (tls.ca, tls.cert, tls.key)))
    store = BlobStore(str(folder / "store"))
    server, port = open_server([ProvisionService(store, start, token).handler()], "127.0.0.1:0", tls, 2)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait(PATIENCE)


@contextlib.contextmanager
def answering(answer: bytes | None, *, hold: bool = False, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of something that answers whatever it is told with these bytes (None: not at all), and hangs up unless `hold`."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def answer_one(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            if context is not None:
                sock = context.wrap_socket(sock, server_side=True)
            with sock:
                if answer is not None:
                    sock.recv(4096)
                    sock.sendall(answer)
                if hold:
                    over.wait(60)

    def run_it() -> None:
        threads = []
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                break
            threads.append(threading.Thread(target=answer_one, args=(accepted,)))
            threads[-1].start()
        for each in threads:
            each.join()

    thread = threading.Thread(target=run_it)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def server_of(name: str, client_ca: str | None = None) -> TLS:
    return TLS(client_ca, f"{name}.pem", f"{name}.key")


def test_a_server_that_is_trusted(cli, folder):
    with serving(folder, server_of("server")) as port:
        status, err = cli("--on", f"127.0.0.1:{port}", "--security_type", "ssl", "--ca", "ca.pem")
        assert (status, err) == (31, f"{REACHED}\n")
    with serving(folder, server_of("self")) as port:
        status, err = cli("--on", f"grpcs://localhost:{port}", "--ca", "self.pem")
        assert (status, err) == (31, f"{REACHED}\n")


@pytest.mark.parametrize(
    ("server", "ca", "text"),
    [
        ("server", "other.pem", "its certificate is not signed by the CA of --ca (other.pem), but by OU=Testing CA"),
        ("server-other", "ca.pem", "its certificate is not signed by the CA of --ca (ca.pem), but by "),
        ("server", None, "its certificate is not signed by a public CA, which is what counts without --ca, but by "),
        ("self", "ca.pem", "its certificate is signed by itself, not signed by the CA of --ca (ca.pem)"),
        ("self", None, "its certificate is signed by itself, not signed by a public CA"),
        (
            "server-nameless",
            "ca.pem",
            "its certificate names no host (subjectAltName), and so not 127.0.0.1. Have it replaced",
        ),
        (
            "server-elsewhere",
            "ca.pem",
            "its certificate is for tee.example, not for 127.0.0.1. Write the server's name",
        ),
        ("self", "self.pem", "its certificate is for localhost, not for 127.0.0.1"),
    ],
)
def test_a_server_that_is_not_trusted(cli, folder, server, ca, text):
    with serving(folder, server_of(server)) as port:
        status, err = cli("--on", f"grpcs://127.0.0.1:{port}", *(["--ca", ca] if ca else []))
    assert status == 10
    assert err.startswith(f"127.0.0.1:{port} is not trusted: {text}"), err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("server", "text"),
    [
        ("server-expired", "its certificate expired on 2024-01-01 00:00 UTC (the clock here says "),
        ("server-early", "its certificate is not valid before 2090-01-01 00:00 UTC (the clock here says "),
    ],
)
def test_a_servers_certificate_out_of_its_time(cli, folder, monkeypatch, server, text):
    """Our own server refuses to start with it, but one that was started in time does not end."""
    credentials = grpc.ssl_server_credentials(
        [((folder / f"{server}.key").read_bytes(), (folder / f"{server}.pem").read_bytes())]
    )
    monkeypatch.setattr(connection, "server_credentials", lambda tls: credentials)
    with serving(folder) as port:
        status, err = cli("--on", f"grpcs://127.0.0.1:{port}", "--ca", "ca.pem")
    assert status == 10
    assert err.startswith(f"127.0.0.1:{port} is not trusted: {text}"), err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "wants a client certificate: give --cert and --key"),
        (
            ["--cert", "client-other.pem", "--key", "client-other.key"],
            "does not accept our client certificate (client-other.pem): it must be signed by the CA",
        ),
        (
            ["--cert", "self.pem", "--key", "self.key"],
            "does not accept our client certificate (self.pem): it must be signed by the CA",
        ),
    ],
    ids=["none", "foreign", "self"],
)
def test_a_client_that_a_server_does_not_know(cli, folder, options, text):
    with serving(folder, server_of("server", "ca.pem")) as port:
        on = "--on", f"grpcs://127.0.0.1:{port}", "--ca", "ca.pem"
        status, err = cli(*on, *options)
        assert (status, err.startswith(f"127.0.0.1:{port} {text}")) == (10, True), err
        assert cli(*on, "--cert", "client.pem", "--key", "client.key") == (31, f"{REACHED}\n")
        with pytest.raises(errors.UnauthenticatedError):
            raise explained(port, TLS(ca="ca.pem"), "Socket closed")


def test_a_token_that_is_missing_or_wrong(cli, folder):
    with serving(folder, server_of("server"), "a secret") as port:
        on = "--on", f"grpcs://127.0.0.1:{port}", "--ca", "ca.pem"
        status, err = cli(*on)
        assert (status, err) == (10, "the server wants a token, and none was shown: give its one as --token-file\n")
        status, err = cli(*on, "--token-file", "guess")
        assert (status, err) == (10, "the token is not the one of the server: give its one as --token-file\n")
        assert cli(*on, "--token-file", "token") == (31, f"{REACHED}\n")
    with serving(folder) as port:  # within this machine a token may go without TLS; this server wants none
        assert cli("--on", f"127.0.0.1:{port}", "--token-file", "token") == (31, f"{REACHED}\n")


def test_tls_and_plaintext_that_meet(cli, folder):
    with serving(folder) as port:
        status, err = cli("--on", f"grpcs://127.0.0.1:{port}", "--ca", "ca.pem")
        assert status == 10
        assert f"what answers there does not speak TLS. Write grpc://127.0.0.1:{port}" in err
    for tls in (server_of("server"), server_of("server", "ca.pem")):
        with serving(folder, tls) as port:
            status, err = cli("--on", f"127.0.0.1:{port}")
            assert status == 10
            assert f"cannot reach 127.0.0.1:{port}: the server there wants TLS. Write grpcs://127.0.0.1:{port}" in err


HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "hold", "plain", "secure"),
    [
        (HTTP, False, "what answers there is no adyton server", "what answers there does not speak TLS"),
        (b"SSH-2.0-x\r\n", True, "what answers there is no adyton server", "does not speak TLS"),
        (b"\x99" * 5000, True, "what answers there is no adyton server", "does not speak TLS"),
        (b"", False, "something ended the connection at once", "something ended the TLS handshake"),
    ],
    ids=["http", "ssh", "garbage", "nothing"],
)
def test_a_port_where_something_else_answers(cli, answer, hold, plain, secure):
    with answering(answer, hold=hold) as port:
        status, err = cli("--on", f"127.0.0.1:{port}")
        assert status == 10
        assert f"cannot reach 127.0.0.1:{port}: {plain}" in err
        status, err = cli("--on", f"grpcs://127.0.0.1:{port}", "--ca", "ca.pem")
        assert status == 10
        assert secure in err


def test_a_port_where_nothing_is_said(cli, monkeypatch):
    wait_for_connections(monkeypatch, 1)
    monkeypatch.setattr(connection, "look", look)
    with answering(None, hold=True) as port:
        for url in (f"grpc://127.0.0.1:{port}", f"grpcs://127.0.0.1:{port}"):
            status, err = cli("--on", url)
            assert status == 10
            assert "something takes the connection, but says nothing" in err


def test_who_has_waited_for_a_silent_server_waits_little_for_the_look():
    """Both together are the five seconds within which a load is to fail."""
    for details in ("connection attempt timed out before receiving SETTINGS frame", "tcp handshaker shutdown"):
        assert has_waited(details, secure=True)
        assert has_waited(details, secure=False)
    for details in ("Connection refused", "WRONG_VERSION_NUMBER", "Socket closed", ""):
        assert not has_waited(details, secure=True)
    waited = dict(connection._IMPATIENT)["grpc.min_reconnect_backoff_ms"] / 1000
    assert waited + BRIEF_SECONDS < 5


def test_an_https_server_is_no_adyton_server(cli, folder):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    with answering(HTTP, context=context) as port:
        status, err = cli("--on", f"grpcs://127.0.0.1:{port}", "--ca", "ca.pem")
        assert status == 10
        assert "what answers there is no adyton server" in err
        assert patient_look(Address.parse(f"grpcs://127.0.0.1:{port}")).http2 is False


def test_a_grpc_server_of_another_kind(cli, folder):
    server, port = open_server([], "127.0.0.1:0", None, 1)
    server.start()
    status, err = cli("--on", f"127.0.0.1:{port}")
    server.stop(None).wait(PATIENCE)
    assert (status, err.startswith(f"127.0.0.1:{port} is no adyton server")) == (11, True)


def test_a_server_that_has_gone(cli):
    """It was there when gRPC connected, and is not any more when it is looked at."""
    for secure in (True, False):
        address = Address("tee.example:4321", "tee.example", secure)
        error = explain(Case(address, TLS(), "Socket closed", Seen, dt.datetime(2026, 1, 1, tzinfo=dt.UTC)))
        assert "it ended the connection, and takes no other" in error.message


@pytest.mark.parametrize("details", ["", "Socket closed", "timed out"])
@pytest.mark.parametrize("secure", [True, False])
def test_a_server_from_which_nothing_comes_back(details, secure):
    """Whatever gRPC makes of it, or leaves out: it may have had no time to say more than that nothing has come about."""
    address = Address("tee.example:4321", "tee.example", secure)
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    error = explain(Case(address, TLS(), details, lambda: Seen(silent=True), now))
    assert "no packet gets there and back" in error.message


def test_what_stays_in_this_machine_goes_through_no_proxy(cli, folder, monkeypatch):
    """A token within this machine may be in clear; a proxy of the environment would carry it elsewhere."""
    listener = socket.create_server(("127.0.0.1", 0))
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for tls, options in ((None, ()), (server_of("server"), ("--security_type", "ssl", "--ca", "ca.pem"))):
        with serving(folder, tls, "a secret") as port:
            result = cli("--on", f"127.0.0.1:{port}", "--token-file", "token", *options)
            assert result == (31, f"{REACHED}\n")
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.close()


def test_a_proxy_that_says_no(cli, monkeypatch):
    with answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as port:
        for name in ("grpc_proxy", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        for name in ("no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        for scheme in ("grpc", "grpcs"):
            status, err = cli("--on", f"{scheme}://192.0.2.1:1")
            assert status == 10
            assert "does not let us through: response code 403. Have it allow this port" in err


def test_nobody_there(cli):
    status, err = cli("--on", "127.0.0.1:1")
    assert (status, err.startswith("cannot reach 127.0.0.1:1: nothing listens there.")) == (10, True)
    status, err = cli("--on", "grpc://nobody.invalid")
    assert (status, err.startswith("cannot reach nobody.invalid:4321: there is no host of that name")) == (10, True)


def explained(port: int, tls: TLS, details: str) -> errors.AdytonError:
    address = Address.parse(f"grpcs://127.0.0.1:{port}")
    return explain(Case(address, tls, details, lambda: patient_look(address), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)))


@pytest.mark.parametrize("scheme", ["grpc", "grpcs"])
def test_a_server_that_stopped_answering_on_its_connection_is_not_looked_at(scheme):
    def look() -> Seen:
        raise AssertionError

    address = Address.parse(f"{scheme}://127.0.0.1:1")
    case = Case(address, TLS(), "Stream removed (ping timeout)", look, dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    assert "said nothing for seconds" in str(explain(case))


def test_every_reason_is_worded_whatever_was_seen(folder):
    pem = [Shown.read(ssl.PEM_cert_to_DER_cert((folder / f"{each}.pem").read_text())) for each in ("server", "self")]
    assert None not in pem
    for secure in (True, False):
        address = Address("tee.example:4321", "tee.example", secure)
        for reason in REASONS:
            for seen in (
                Seen(),
                Seen(silent=True),
                Seen(True),
                *(Seen(True, False, True, http2, end, each) for http2 in (0, 1) for end in (0, 1) for each in pem),
            ):
                for tls in (TLS(), TLS("ca.pem", "client.pem", "client.key")):
                    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
                    error = explain(Case(address, tls, f"x {reason.mark} y", lambda seen=seen: seen, now))
                    assert error.exit_code == 10
                    assert error.message.startswith(("cannot reach tee.example:4321: ", "tee.example:4321 "))
                    assert error.message.isprintable()


def test_what_a_server_says_of_itself_is_bounded_and_printable(folder):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "\x1b[31m" + "x" * 55)] * 5)
    hostile = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, certificates.LONG_AGO, certificates.FAR)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("\x1b[31m" + "x" * 500)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    for details in ("unable to get local issuer certificate", "Hostname Verification Check failed"):
        shown = Shown.read(hostile.public_bytes(serialization.Encoding.DER))
        case = Case(Address.parse("grpcs://h"), TLS(), details, lambda shown=shown: Seen(certificate=shown), now)
        message = explain(case).message
        assert "xxx" in message
        assert message.isprintable()
        assert len(message) < 500


def test_a_look_shows_nothing_of_ours_and_ends(folder, monkeypatch):
    with answering(None, hold=True) as port:
        assert look(Address.parse(f"grpcs://127.0.0.1:{port}"), 0.3) == Seen(connected=True)
    assert look(Address.parse("grpcs://127.0.0.1:1")) == Seen()
    assert look(Address.parse("grpcs://nobody.invalid")) == Seen()


def test_a_look_at_a_name_of_many_addresses_ends_in_time(monkeypatch):
    now, waited = 0.0, []

    def silent(address, timeout):
        nonlocal now
        now += timeout
        waited.append(address)
        raise TimeoutError

    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{number}", 1)) for number in range(99)]
    monkeypatch.setattr(probe.socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(probe.socket, "create_connection", silent)
    monkeypatch.setattr(probe, "time", SimpleNamespace(monotonic=lambda: now))
    assert look(Address.parse("grpcs://many.example")) == Seen(silent=True)
    assert now <= probe.SECONDS
    assert len(waited) > 1


@pytest.mark.parametrize("wanted", [ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED])
def test_a_look_shows_no_certificate(folder, wanted):
    """Nor anything else to a server that lets it; one that does not ends the connection with an alert."""
    shown = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.verify_mode = wanted
    context.load_verify_locations(folder / "ca.pem")
    context.set_alpn_protocols(["h2"])
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        sock, _ = listener.accept()
        with sock:
            try:
                with context.wrap_socket(sock, server_side=True) as secured:
                    shown.extend([secured.getpeercert(), secured.recv(100)])
            except ssl.SSLError as error:
                shown.append(error.reason)

    thread = threading.Thread(target=accept)
    thread.start()
    # A server that lets it says nothing, so the look takes all of its time.
    seconds = PATIENCE if wanted is ssl.CERT_REQUIRED else 3
    seen = look(Address.parse(f"grpcs://127.0.0.1:{listener.getsockname()[1]}"), seconds)
    thread.join()
    listener.close()
    assert (seen.tls, seen.http2, seen.hung_up) == (True, True, wanted is ssl.CERT_REQUIRED)
    assert shown == (["PEER_DID_NOT_RETURN_A_CERTIFICATE"] if wanted is ssl.CERT_REQUIRED else [None, b""])
