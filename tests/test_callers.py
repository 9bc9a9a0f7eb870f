"""Clients that enclaves know, by a key that they prove to hold inside the attested channel: what the enclave's code is told, and who resumes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import msgspec
import pytest
import trustme
from command import start
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hostile import Client, Ward
from ledgers import server
from OpenSSL import SSL

import adyton
from adyton import trusted
from adyton.channel.client import ClientChannel
from adyton.channel.credential import MAX_CERTIFICATES, Credential, key_digest
from adyton.channel.events import EvidenceReceived, EvidenceRequested
from adyton.channel.server import ServerChannel
from adyton.channel.tls import Tls, _context
from adyton.communicator.joining import Answer, AnswerReader, new_secret
from adyton.crypto.self_signed import certificate_around
from adyton.errors import RemoteProtocolError, UsageError
from adyton.loader import LoadArguments, load_in_process
from adyton.remote.address import Caller
from adyton.remote.certificates import of_caller

PROGRAM = """
import multiprocessing
import threading
from adyton import trusted

at_import = trusted.caller()

def _child(connection) -> None:
    connection.send(trusted.caller())

def keys() -> list[str | None]:
    found = [at_import, trusted.caller()]
    thread = threading.Thread(target=lambda: found.append(trusted.caller()))
    thread.start()
    thread.join()
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_child, args=(there,))
    child.start()
    found.append(here.recv())
    child.join()
    return [each and each.key for each in found]

async def key_of_task() -> str | None:
    found = trusted.caller()
    return found and found.key

def certificates() -> list[bytes]:
    found = trusted.caller()
    return [found.certificate, *found.chain]
"""


def digest_of(key) -> str:
    encoded = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "sha256:" + hashlib.sha256(encoded).hexdigest()


def written(path: Path, key) -> str:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(path)


KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
}

app = trusted.Enclave("callers")


@app.entry
def caller_key() -> str | None:
    found = trusted.caller()
    return found and found.key


@app.entry
async def caller_chain() -> list[bytes]:
    found = trusted.caller()
    assert found is not None
    return [found.certificate, *found.chain]


@pytest.mark.parametrize("kind", KEYS)
def test_an_enclave_knows_its_caller_by_a_key_alone(tmp_path, kind):
    key = KEYS[kind]()
    with load_in_process(app, LoadArguments(caller=Caller(written(tmp_path / "key", key)))) as client:
        assert client.call(caller_key) == digest_of(key)
        own, *chain = client.call(caller_chain)
    assert key_digest(x509.load_der_x509_certificate(own)).hex() == digest_of(key)[7:]
    assert chain == []


def test_an_enclave_knows_no_caller_that_shows_no_key_and_there_is_none_elsewhere():
    with load_in_process(app, LoadArguments()) as client:
        assert client.call(caller_key) is None
    assert trusted.caller() is None


def test_the_enclaves_code_gets_the_certificate_and_its_chain_to_judge_them(tmp_path):
    ca = trustme.CA().create_child_ca()
    issued = ca.issue_cert("ann@example.org")
    issued.private_key_pem.write_to_path(tmp_path / "key")
    (tmp_path / "cert").write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    caller = Caller(key=tmp_path / "key", cert=tmp_path / "cert")
    shown = [x509.load_pem_x509_certificate(each.bytes()) for each in issued.cert_chain_pems]
    assert len(shown) > 1
    with load_in_process(app, LoadArguments(caller=caller)) as client:
        assert client.call(caller_chain) == [each.public_bytes(Encoding.DER) for each in shown]


@pytest.mark.sandbox
def test_every_thread_and_forked_process_of_an_enclave_knows_the_caller_also_after_its_connection_was_made_again(
    tmp_path, monkeypatch
):
    (tmp_path / "program.py").write_text(PROGRAM)
    key = KEYS["P-256"]()
    monkeypatch.setenv("ADYTON_CALLER_KEY", written(tmp_path / "key", key))
    with server() as there, there.load(str(tmp_path / "program.py")) as client:
        assert client.call("keys") == [digest_of(key)] * 4
        before = there.network.accepted
        there.network.cut()
        assert client.call("key_of_task") == digest_of(key)
        assert there.network.accepted > before


@pytest.mark.sandbox
def test_the_command_line_names_the_callers_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAM)
    issued = trustme.CA().issue_cert("ann@example.org")
    issued.private_key_pem.write_to_path("ann.key")
    issued.cert_chain_pems[0].write_to_path("ann.pem")
    command = start("call", "program.py", "certificates", "--caller-key", "ann.key", "--caller-cert", "ann.pem")
    out, _ = command.communicate(timeout=60)
    assert command.returncode == 0
    own = x509.load_pem_x509_certificate(Path("ann.pem").read_bytes()).public_bytes(Encoding.DER)
    assert msgspec.json.decode(out, type=list[bytes]) == [own]


# -- whose session it is --------------------------------------------------------------------------------------------------


@pytest.fixture
def ward(tmp_path):
    ward = Ward(tmp_path)
    ward.request = msgspec.structs.replace(ward.request, grace=60.0)
    with contextlib.closing(ward):
        yield ward


def answer_to(client: Client, *, goes_on: bool = True) -> Answer:
    """What the enclave says to its Hello. `goes_on`: else what follows is dropped."""

    class Reader(AnswerReader):
        def receive(self, data):
            taken = super().receive(data)
            if taken is None:
                return None
            found.append(taken[0])
            return taken if goes_on else (taken[0], b"")

    found: list[Answer] = []
    client.joining = Reader()
    client.pump(lambda: found)
    return found[0]


@pytest.mark.sandbox
@pytest.mark.parametrize("known", [True, False], ids=["a session with a key", "a session without"])
def test_a_session_is_resumed_with_the_same_key_and_no_other(ward, known):
    own = Credential.fresh() if known else None
    secret = new_secret()
    with ward.zygote.launch(ward.request) as enclave:
        first = Client(enclave.socket, secret=secret, credential=own)
        assert answer_to(first).joined
        assert first.load().ok
        for thief in (Credential.fresh(), None if known else Credential.fresh()):
            client = Client(enclave.socket, secret=secret, credential=thief)
            assert not answer_to(client, goes_on=False).joined
            client.socket.close()
        assert first.enter("attempt", "1 + 1") == "2"  # and its connection is as it was
        again = Client(enclave.socket, secret=secret, read=0, credential=own)
        assert answer_to(again, goes_on=False).joined
        for each in (first, again):
            each.socket.close()


# -- hostile certificates ---------------------------------------------------------------------------------------------------


def meet(client: ClientChannel | Tls, listening: ServerChannel) -> None:
    for _ in range(4):
        for event in listening.receive(client.data_to_send()):
            if isinstance(event, EvidenceRequested):
                listening.provide(b"evidence")
        for event in client.receive(listening.data_to_send()):
            if isinstance(event, EvidenceReceived):
                client.accept()


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP256K1()), rsa.generate_private_key(65537, 1024)],
    ids=["secp256k1", "RSA 1024"],
)
def test_a_key_of_a_kind_that_is_not_taken_makes_no_channel(key):
    certificate = certificate_around(key, "anybody")
    with pytest.raises(ValueError, match="none of ECDSA"):
        Credential(key, (certificate,))
    context, listening = _context(None), ServerChannel(bytes(32))
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    context.set_verify(SSL.VERIFY_NONE)
    context.use_certificate(certificate)
    context.use_privatekey(key)
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    client = Tls(connection)
    client._handshake()
    with contextlib.suppress(RemoteProtocolError):  # of a curve that TLS has no name for it shows nothing
        meet(client, listening)
    assert not listening.established
    assert listening.peer_key_digest == b""


def test_more_certificates_than_an_enclave_takes_are_refused():
    own = Credential.fresh()
    many = (MAX_CERTIFICATES // len(own.certificates[0].public_bytes(Encoding.DER))) + 1
    others = tuple(Credential.fresh().certificates[0] for _ in range(8)) * (many // 8 + 1)
    listening = ServerChannel(bytes(32))
    meet(ClientChannel(credential=Credential(own.key, own.certificates + others)), listening)
    assert listening.peer_key_digest == own.digest
    with pytest.raises(RemoteProtocolError):
        listening.peer_certificates()


# -- files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "cert", "text"),
    [
        (None, "client.pem", "the key is missing"),
        ("none.key", None, "cannot read the caller's key none.key"),
        ("client.pem", None, "are the two files exchanged?"),
        ("client-encrypted.key", None, "is encrypted"),
        ("server.key", "client.pem", "server.key is not the key of the certificate client.pem"),
        ("client.key", "text.pem", "the caller's certificate text.pem holds no certificate in PEM"),
        ("client-expired.key", "client-expired.pem", "the caller's certificate client-expired.pem expired on"),
    ],
)
def test_files_of_a_caller_that_do_not_serve(tls_cli, key, cert, text):
    given = [*(("--caller-key", key) if key else ()), *(("--caller-cert", cert) if cert else ())]
    code, out, err = tls_cli("call", "prog.py", "f", *given)
    assert (code, out) == (2, "")
    assert text in err
    with pytest.raises(UsageError, match=text.replace("?", "[?]")):
        of_caller(Caller(key, cert))


def test_a_caller_is_named_by_paths():
    for wrong in (lambda: Caller(key=b"key"), lambda: adyton.load("x.py", caller="key")):
        with pytest.raises(UsageError, match="give"):
            wrong()


def test_a_caller_does_not_show_its_key():
    assert "PRIVATE" not in json.dumps(repr(Credential.fresh()))
    assert "key=" not in repr(Credential.fresh())
