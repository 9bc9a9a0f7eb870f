"""Client and enclave make a channel: handshake, request, evidence, acceptance, data; in this order and no other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.attestation.evidence import MAX_EVIDENCE
from adyton.attestation.expectation import Expectation
from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.sim import attest
from adyton.attestation.verify import validate, verify
from adyton.channel import client as channel_client
from adyton.channel import server as channel_server
from adyton.channel.client import ClientChannel, EvidenceReceived
from adyton.channel.server import Closed, Data, Established, EvidenceRequested, ServerChannel
from adyton.errors import LocalProtocolError

IDENTITY = EnclaveIdentity("sim", "sha256:" + "1" * 64, "", 0, 0, debug=False, runtime="", machine="")
EXPECTED = Expectation(platforms=["sim"], measurement=[IDENTITY.measurement])


def judging(evidence: bytes | None = None):
    """Both ends, at the moment when the client has the evidence; and its bytes."""
    client, server = ClientChannel(), ServerChannel(IDENTITY.digest())
    for _ in range(4):
        for event in server.receive(client.data_to_send()):
            assert isinstance(event, EvidenceRequested)
            server.provide(evidence or attest(IDENTITY, event.report_data))
        for event in client.receive(server.data_to_send()):
            assert isinstance(event, EvidenceReceived)
            return client, server, event.evidence
    raise AssertionError("no evidence came")


def established():
    client, server, _ = judging()
    client.accept()
    assert server.receive(client.data_to_send()) == [Established()]
    return client, server


def received(channel, data: bytes) -> bytes:
    return b"".join(event.data for event in channel.receive(data))


def test_evidence_is_verified_and_data_flows_both_ways():
    client, server, evidence = judging()
    verified = verify(evidence)
    assert validate(verified, EXPECTED, client.report_data(verified.identity.digest())) == IDENTITY
    assert not client.established
    assert not server.established
    client.accept()
    client.send(b"secret")
    assert server.receive(client.data_to_send()) == [Established(), Data(b"secret")]
    server.send(b"answer")
    assert client.receive(server.data_to_send()) == [Data(b"answer")]
    assert client.established
    assert server.established


def test_the_server_says_nothing_until_the_client_speaks():
    server = ServerChannel(IDENTITY.digest())
    assert server.data_to_send() == b""
    assert ClientChannel().data_to_send() != b""


def test_no_data_can_be_sent_before_acceptance():
    client, server = ClientChannel(), ServerChannel(IDENTITY.digest())
    for channel in (client, server):
        with pytest.raises(LocalProtocolError):
            channel.send(b"secret")
    client, server, _ = judging()
    for channel in (client, server):
        with pytest.raises(LocalProtocolError):
            channel.send(b"secret")
    client.accept()
    with pytest.raises(LocalProtocolError):
        server.send(b"secret")


def test_steps_out_of_order_are_refused():
    client, server = ClientChannel(), ServerChannel(IDENTITY.digest())
    with pytest.raises(LocalProtocolError):
        client.accept()
    with pytest.raises(LocalProtocolError):
        client.report_data(IDENTITY.digest())
    with pytest.raises(LocalProtocolError):
        server.provide(b"evidence")
    client, server, _ = judging()
    with pytest.raises(LocalProtocolError):
        server.provide(b"evidence")
    client.accept()
    with pytest.raises(LocalProtocolError):
        client.accept()


@pytest.mark.parametrize("size", [0, MAX_EVIDENCE + 1])
def test_evidence_of_a_size_that_cannot_be_is_refused(size):
    with pytest.raises(LocalProtocolError):
        ServerChannel(IDENTITY.digest()).provide(bytes(size))


def test_evidence_of_the_largest_size_arrives():
    _, _, evidence = judging(bytes(range(256)) * (MAX_EVIDENCE // 256))
    assert len(evidence) == MAX_EVIDENCE


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_nonce_has_32_bytes(size):
    with pytest.raises(LocalProtocolError):
        ClientChannel(nonce=bytes(size))


@settings(max_examples=40)
@given(st.lists(st.integers(0, 70_000), max_size=5), st.integers(1, 40_000))
def test_bytes_may_be_cut_anywhere(sizes, cut):
    client, server = established()
    messages = [bytes([number]) * size for number, size in enumerate(sizes)]
    for message in messages:
        client.send(message)
    ciphertext = client.data_to_send()
    cut += len(ciphertext) // 500  # a byte at a time is for small messages
    got = b"".join(received(server, ciphertext[at : at + cut]) for at in range(0, len(ciphertext), cut))
    assert got == b"".join(messages)


def test_the_handshake_may_be_cut_anywhere():
    client, server = ClientChannel(), ServerChannel(IDENTITY.digest())
    evidence = []
    for _ in range(4):
        for byte in client.data_to_send():
            for event in server.receive(bytes([byte])):
                server.provide(attest(IDENTITY, event.report_data))
        for byte in server.data_to_send():
            evidence += client.receive(bytes([byte]))
    (event,) = evidence
    assert verify(event.evidence).report_data == client.report_data(IDENTITY.digest())


def test_one_send_makes_as_few_records_as_can_be():
    client, _ = established()
    client.data_to_send()
    client.send(bytes(1 << 18))
    overhead = len(client.data_to_send()) - (1 << 18)
    assert overhead == 16 * 22  # RFC 8446 section 5.2: header 5, content type 1, tag 16; records of 2^14 bytes
    client.send(b"")
    assert client.data_to_send() == b""


def test_what_is_on_the_wire_shows_nothing_of_the_data():
    client, _ = established()
    client.send(b"the secret message" * 10)
    assert b"secret" not in client.data_to_send()


@pytest.mark.parametrize("who", ["client", "server"])
def test_either_end_can_close(who):
    client, server = established()
    closer, other = (client, server) if who == "client" else (server, client)
    closer.send(b"last")
    closer.close()
    assert other.receive(closer.data_to_send()) == [Data(b"last"), Closed()]
    for channel in (closer, other):
        assert not channel.established
        with pytest.raises(LocalProtocolError):
            channel.send(b"more")
        channel.close()


def test_a_client_that_refuses_the_evidence_closes():
    client, server, _ = judging()
    client.close()
    assert server.receive(client.data_to_send()) == [Closed()]
    with pytest.raises(LocalProtocolError):
        client.accept()


def test_both_may_close_before_the_handshake():
    for channel in (ClientChannel(), ServerChannel(IDENTITY.digest())):
        channel.close()
        assert not channel.established
        with pytest.raises(LocalProtocolError):
            channel.send(b"x")


def test_each_module_names_the_events_of_its_end():
    assert channel_client.Data is channel_server.Data
    assert channel_client.Closed is channel_server.Closed
