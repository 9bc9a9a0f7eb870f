"""Whatever comes in, only RemoteProtocolError leaves a channel, and nothing of it becomes data."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from adyton.attestation.binding import VERSION
from adyton.attestation.evidence import MAX_EVIDENCE
from adyton.channel import messages
from adyton.channel.client import ClientChannel, Closed, Data, EvidenceReceived
from adyton.channel.messages import Accept, AttestRequest, Evidence, MessageReader
from adyton.channel.server import Established, EvidenceRequested, ServerChannel
from adyton.channel.tls import Tls
from adyton.errors import RemoteProtocolError

DIGEST = bytes(32)
NONCE = bytes(32)


def server_with_bare_client():
    """A server's channel after the handshake, and a TLS end that can send it anything."""
    client, server = Tls.client(), ServerChannel(DIGEST)
    while not client.finished:
        server.receive(client.data_to_send())
        client.receive(server.data_to_send())
    server.receive(client.data_to_send())
    return client, server


def client_with_bare_server():
    """The same for a client's channel."""
    client, server = ClientChannel(), Tls.server()
    while not server.finished:
        server.receive(client.data_to_send())
        client.receive(server.data_to_send())
    return client, server


def through(end: Tls, plaintext: bytes) -> bytes:
    end.send(plaintext)
    return end.data_to_send()


def failure(channel, data: bytes) -> RemoteProtocolError | None:
    """What the channel says to bytes that are garbage."""
    try:
        assert channel.receive(data) == []
    except RemoteProtocolError as error:
        return error
    return None


@given(st.binary(min_size=1, max_size=300), st.sampled_from([ClientChannel, lambda: ServerChannel(DIGEST)]))
def test_garbage_is_refused_for_ever(garbage, make):
    channel = make()
    error = failure(channel, garbage)
    assert error is None or failure(channel, b"more") is error
    assert not channel.established


@settings(max_examples=50)
@given(st.booleans(), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_handshake_that_was_tampered_with_fails_or_binds_both_ends_to_the_same(of_server, where, change):
    client, server = ClientChannel(), ServerChannel(DIGEST)
    flight = bytearray(client.data_to_send())
    if of_server:
        server.receive(bytes(flight))
        flight = bytearray(server.data_to_send())
    flight[int(where * len(flight))] ^= change
    requests = []
    try:
        if of_server:
            client.receive(bytes(flight))
        else:
            server.receive(bytes(flight))
        for _ in range(3):
            client.receive(server.data_to_send())
            requests += server.receive(client.data_to_send())
    except RemoteProtocolError:
        pass
    # What TLS does not authenticate (the version in a record's header) may be changed without effect.
    assert all(request.report_data == client.report_data(DIGEST) for request in requests)
    assert not client.established
    assert not server.established


@settings(max_examples=50)
@given(st.binary(max_size=100))
def test_any_first_message_of_a_client_is_refused_or_a_request(plaintext):
    client, server = server_with_bare_client()
    try:
        events = server.receive(through(client, plaintext))
    except RemoteProtocolError:
        return
    assert not any(isinstance(event, Data | Established) for event in events)


@pytest.mark.parametrize(
    "sent",
    [
        messages.encode(Accept()),
        messages.encode(Evidence(b"x")),
        messages.encode(AttestRequest(VERSION + 1, NONCE)),
        messages.encode(AttestRequest(VERSION, NONCE)) + b"x",
        messages.encode(AttestRequest(VERSION, NONCE)) * 2,
        messages.encode(AttestRequest(VERSION, NONCE)) + messages.encode(Accept()),
        messages.encode(AttestRequest(VERSION, b"")),
        messages.encode(AttestRequest(VERSION, NONCE[1:])),
        messages.encode(AttestRequest(0, NONCE)),
        (MAX_EVIDENCE + 65).to_bytes(4, "little"),
        b"\xff" * 4,
        b"\0\0\0\0",
    ],
)
def test_a_client_that_does_not_ask_properly_is_refused(sent):
    client, server = server_with_bare_client()
    with pytest.raises(RemoteProtocolError):
        server.receive(through(client, sent))
    assert not server.established


def test_a_later_version_is_told_so_even_if_its_request_has_more_fields():
    client, server = server_with_bare_client()
    body = msgspec.msgpack.encode([1, VERSION + 1, NONCE, "more"])
    with pytest.raises(RemoteProtocolError, match=f"version {VERSION + 1}"):
        server.receive(through(client, len(body).to_bytes(4, "little") + body))


def test_a_client_that_accepts_before_there_is_evidence_is_refused():
    client, server = server_with_bare_client()
    (event,) = server.receive(through(client, messages.encode(AttestRequest(VERSION, NONCE))))
    assert isinstance(event, EvidenceRequested)
    with pytest.raises(RemoteProtocolError):
        server.receive(through(client, messages.encode(Accept())))


@pytest.mark.parametrize(
    "sent",
    [
        messages.encode(Accept()),
        messages.encode(AttestRequest(VERSION, NONCE)),
        messages.encode(Evidence(b"x")) + b"data before acceptance",
        messages.encode(Evidence(b"x")) * 2,
        messages.encode(Evidence(b"")),
        messages.encode(Evidence(bytes(MAX_EVIDENCE + 1))),
    ],
)
def test_a_server_that_does_not_prove_itself_properly_is_refused(sent):
    client, server = client_with_bare_server()
    with pytest.raises(RemoteProtocolError):
        client.receive(through(server, sent))
    assert not client.established


def test_a_server_that_talks_while_it_is_judged_is_refused():
    client, server = client_with_bare_server()
    assert client.receive(through(server, messages.encode(Evidence(b"x")))) == [EvidenceReceived(b"x")]
    with pytest.raises(RemoteProtocolError):
        client.receive(through(server, b"data"))


def test_ciphertext_that_was_changed_is_no_data():
    client, server = server_with_bare_client()
    server.receive(through(client, messages.encode(AttestRequest(VERSION, NONCE))))
    server.provide(b"evidence")
    assert server.receive(through(client, messages.encode(Accept()) + b"good")) == [Established(), Data(b"good")]
    ciphertext = bytearray(through(client, b"bad"))
    ciphertext[-1] ^= 1
    with pytest.raises(RemoteProtocolError):
        server.receive(bytes(ciphertext))
    assert not server.established


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_1_VERSION])
def test_older_tls_is_refused(version):
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(version)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    old = SSL.Connection(context, None)
    old.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        old.do_handshake()
    with pytest.raises(RemoteProtocolError):
        ServerChannel(DIGEST).receive(old.bio_read(1 << 16))


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_only_remote_protocol_errors_leave_the_message_reader(pieces):
    reader = MessageReader()
    try:
        for piece in pieces:
            reader.next(piece)
    except RemoteProtocolError:
        pass


@given(
    st.recursive(
        st.none() | st.integers(-5, 1 << 40) | st.binary(max_size=40) | st.text(max_size=4),
        st.lists,
        max_leaves=6,
    )
)
def test_any_encoded_message_is_one_of_the_three_or_refused(content):
    body = msgspec.msgpack.encode(content)
    try:
        message = MessageReader().next(len(body).to_bytes(4, "little") + body)
    except RemoteProtocolError:
        return
    assert isinstance(message, AttestRequest | Evidence | Accept)


@pytest.mark.parametrize("end", ["closes", "goes on with garbage"])
def test_a_peer_that_ends_before_our_answer_makes_that_no_mistake_of_ours(end):
    def sent(peer, message):
        peer.send(messages.encode(message))
        flight = peer.data_to_send()
        if end == "closes":
            peer.close()
        return flight, peer.data_to_send() or b"garbage, not TLS"

    client, bare_server = client_with_bare_server()
    bare_client, server = server_with_bare_client()
    for ours, peer, message in (
        (client, bare_server, Evidence(b"x")),
        (server, bare_client, AttestRequest(VERSION, NONCE)),
    ):
        first, last = sent(peer, message)
        (event,) = ours.receive(first)
        if end == "closes":
            assert ours.receive(last) == [Closed()]
        else:
            with pytest.raises(RemoteProtocolError):
                ours.receive(last)
        due = ours.data_to_send()
        ours.accept() if isinstance(event, EvidenceReceived) else ours.provide(b"evidence")
        assert not ours.established
        assert ours.data_to_send() == b"", due
