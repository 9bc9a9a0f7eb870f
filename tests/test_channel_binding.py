"""Evidence is bound to one connection, nonce, key and identity: replay, relay, diversion and confusion of identities are all seen."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from adyton.attestation import binding
from adyton.attestation.expectation import Expectation
from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.sim import attest
from adyton.attestation.verify import validate, verify
from adyton.channel import credential, tls
from adyton.channel.client import ClientChannel
from adyton.channel.server import ServerChannel
from adyton.errors import BindingError

IDENTITY = EnclaveIdentity("sim", "sha256:" + "1" * 64, "", 0, 0, debug=False, runtime="", machine="")
OTHER = EnclaveIdentity("sim", "sha256:" + "2" * 64, "", 0, 0, debug=False, runtime="", machine="")
EXPECTED = Expectation(platforms=["sim"], measurement=[IDENTITY.measurement])


def requested(client: ClientChannel, server: ServerChannel) -> bytes:
    """The report data that the server is asked for."""
    for _ in range(4):
        for event in server.receive(client.data_to_send()):
            return event.report_data
        client.receive(server.data_to_send())
    raise AssertionError("nothing was asked for")


def judge(client: ClientChannel, evidence: bytes) -> EnclaveIdentity:
    verified = verify(evidence)
    return validate(verified, EXPECTED, client.report_data(verified.identity.digest()))


def test_both_ends_bind_to_the_same():
    client, server = ClientChannel(), ServerChannel(IDENTITY.digest())
    report_data = requested(client, server)
    assert len(report_data) == 64
    assert client.report_data(IDENTITY.digest()) == report_data
    assert judge(client, attest(IDENTITY, report_data)) == IDENTITY


def test_evidence_of_an_earlier_connection_is_refused_even_with_the_same_nonce():
    nonce = bytes(32)
    evidence = attest(IDENTITY, requested(ClientChannel(nonce=nonce), ServerChannel(IDENTITY.digest())))
    client = ClientChannel(nonce=nonce)
    requested(client, ServerChannel(IDENTITY.digest()))
    with pytest.raises(BindingError):
        judge(client, evidence)


def test_evidence_that_was_relayed_from_the_real_enclave_is_refused():
    victim = ClientChannel()
    requested(victim, ServerChannel(IDENTITY.digest()))  # the man in the middle ends the victim's TLS
    relayed = requested(ClientChannel(nonce=victim._nonce), ServerChannel(IDENTITY.digest()))
    with pytest.raises(BindingError):
        judge(victim, attest(IDENTITY, relayed))


def test_evidence_of_a_server_that_holds_another_identity_is_refused():
    client = ClientChannel()
    report_data = requested(client, ServerChannel(OTHER.digest()))
    with pytest.raises(BindingError):
        judge(client, attest(IDENTITY, report_data))


FIELDS = {
    "role": b"enclave",
    "nonce": bytes(32),
    "exporter": bytes(32),
    "key_digest": bytes(32),
    "identity_digest": bytes(32),
    "verifier_key_digest": bytes(32),
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_counts(field):
    assert binding.report_data(**FIELDS) != binding.report_data(**FIELDS | {field: b"other"})


def test_no_two_fields_run_into_each_other():
    assert binding.report_data(**FIELDS | {"nonce": b"ab", "exporter": b"c"}) != binding.report_data(
        **FIELDS | {"nonce": b"a", "exporter": b"bc"}
    )


def test_the_binding_is_fixed():
    values = (*list(FIELDS.values())[:4], bytes(32), bytes(32))
    fields = (b"adyton attested channel", b"\0\0\0\2", *values)
    expected = hashlib.sha512(b"".join(len(field).to_bytes(4, "big") + field for field in fields)).digest()
    assert binding.report_data(**FIELDS) == expected


@given(st.binary(min_size=32, max_size=32))
def test_the_nonce_decides(nonce):
    one = binding.report_data(**FIELDS | {"nonce": nonce})
    assert (one == binding.report_data(**FIELDS)) == (nonce == bytes(32))


def handshake(client: SSL.Connection, server: tls.Tls) -> None:
    """With a bare TLS client, which reads what comes after the handshake too."""
    for step in (client.do_handshake, client.do_handshake, lambda: client.recv(1)):
        try:
            step()
        except SSL.WantReadError:
            pass
        try:
            server.receive(client.bio_read(1 << 16))
        except SSL.WantReadError:
            pass
        if data := server.data_to_send():
            client.bio_write(data)
    assert server.finished


def test_nothing_can_be_resumed():
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_verify(SSL.VERIFY_NONE)
    context.set_session_cache_mode(SSL.SESS_CACHE_CLIENT)
    session = None
    for _ in range(3):
        client, server = SSL.Connection(context, None), tls.Tls.server()
        client.set_connect_state()
        if session is not None:
            client.set_session(session)
        handshake(client, server)
        # A resumed connection would still have the certificate of the first.
        assert credential.key_digest(client.get_peer_certificate(as_cryptography=True)) == server.own_key_digest()
        session = client.get_session()
        assert session is not None
        client.shutdown()  # else OpenSSL itself forbids to resume


def test_each_connection_has_a_key_of_its_own():
    assert tls.Tls.server().own_key_digest() != tls.Tls.server().own_key_digest()
