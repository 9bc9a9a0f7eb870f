"""Fuzz targets of what a connection carries: sessions and their messages, channels, evidence, the link to the guest."""

from __future__ import annotations

import contextlib
import datetime as dt
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from draw import Draw, framed, packed
from OpenSSL import SSL, crypto
from target_enclave_files import PATHS

from adyton.attestation import sim
from adyton.attestation.binding import VERSION
from adyton.attestation.evidence import seal
from adyton.attestation.expectation import Expectation
from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.verify import validate, verify
from adyton.channel import credential
from adyton.channel.client import ClientChannel, EvidenceReceived
from adyton.channel.credential import Credential
from adyton.channel.messages import Accept, AttestRequest, Evidence
from adyton.channel.messages import encode as encode_channel_message
from adyton.channel.server import EvidenceRequested, ServerChannel
from adyton.channel.tls import Tls
from adyton.communicator import frames, messages, streams
from adyton.communicator.joining import AnswerReader, HelloReader
from adyton.communicator.session import Begun, Called, Limits, Session, Side
from adyton.errors import AdytonError, RemoteProtocolError, ResourceLimitError
from adyton.proto.values import ItemDecoder
from adyton.runtime.process.guest import link
from adyton.runtime.process.supervisor.layout import Layout, is_normal

# -- communicator: sessions, and the bodies of calls ------------------------------------------------------------------

SMALL = Limits(message=3 << 14, notification=2 << 14, buffered=5 << 14, pairs=4, nesting=4, in_flight=8)
ITEMS = ItemDecoder(int, "an item")
METHODS = ("load", "enter", "run", "finalize", "host", "output", "counts", "ended", "")
FRAMES = (*[frames.CallFrame] * 3, *[frames.ReplyFrame] * 2, frames.NotifyFrame, *[frames.MoreFrame] * 3)
RARE_FRAMES = (frames.CancelFrame, frames.DisposeFrame, frames.GoodbyeFrame, frames.MarkFrame, frames.ReadFrame)


def _passes(head: Any) -> bool:
    return head.call % 2 == 0 if isinstance(head, frames.ReplyFrame) else bool(head.pair == 3)


def session(side: Side, data: bytes) -> None:
    """The peer's bytes, between calls and replies of this end's own."""
    draw, ours = Draw(data, METHODS), Session(side, SMALL, passes=_passes)
    raw, waiting, next_call, next_notification = draw.below(8) == 0, [], 1, 1
    while draw:
        piece = draw.blob() if raw else b""
        if not raw:
            frame = draw.struct(draw.pick((*FRAMES, *RARE_FRAMES)))
            if isinstance(frame, frames.CallFrame) and draw.often():
                frame = msgspec.structs.replace(frame, call=next_call, size=_size_of(draw, frame.chunk))
                frame = _with_bulk(draw, frame)
                next_call += 1
            elif isinstance(frame, frames.NotifyFrame) and draw.often():
                frame = msgspec.structs.replace(frame, notification=next_notification, size=_size_of(draw, frame.chunk))
                next_notification += 1
            elif isinstance(frame, frames.MoreFrame) and draw.often():
                frame = msgspec.structs.replace(frame, chunk=memoryview(bytes(frames.CHUNK * (1 + draw.below(3)))))
            elif isinstance(frame, frames.ReplyFrame) and draw.often():
                frame = _with_bulk(draw, msgspec.structs.replace(frame, size=_size_of(draw, frame.chunk)))
            piece = draw.spoilt(frames.encode(frame))
        try:
            events = ours.receive(piece)
        except (RemoteProtocolError, ResourceLimitError) as error:
            ours.data_to_send()
            with contextlib.suppress(type(error)):
                ours.receive(b"more")
                raise AssertionError("a session that has failed takes more bytes") from error
            raise
        waiting += [event.call for event in events if isinstance(event, Called | Begun)]
        with contextlib.suppress(AdytonError):  # of this end's own doing
            _act(draw, ours, waiting)
        assert ours._arrived <= SMALL.buffered  # noqa: SLF001


def _with_bulk(draw: Draw, frame: Any) -> Any:
    """Sometimes: a head that says how it is cut."""
    if draw.below(4):
        return frame
    sizes = [draw.below(256) << 10 for _ in range(draw.below(4))]
    return msgspec.structs.replace(frame, size=sum(sizes), chunk=msgspec.msgpack.encode(sizes))


def _size_of(draw: Draw, chunk: bytes) -> int:
    return len(chunk) if draw.often() else draw.below(256) << 10


def _act(draw: Draw, ours: Session, waiting: list[int]) -> None:
    action = draw.below(8)
    if action == 0:
        ours.call(draw.below(4), "host", draw.blob())
    elif action == 1 and waiting:
        ours.reply(waiting.pop(), ok=True, body=draw.blob())
    elif action == 2:
        ours.cancel(draw.below(4))
    elif action == 3:
        ours.data_to_send(draw.below(256) << 6)
    elif action == 4:
        ours.notify("output", draw.blob())
    elif action == 6:
        ours.begin_call(draw.below(4), "host", draw.blob(), draw.below(256) << 10)
    elif action == 7:
        ours.go_on(draw.below(4), draw.blob(), "call")
    elif action == 5:  # on another connection, whose peer says how much it has read
        ours.resume(draw.below(256) << draw.below(8))


def joining(data: bytes) -> None:
    """The first bytes of a connection, in pieces: whatever they are cut into, what follows the head is not touched."""
    draw = Draw(data)
    reader = HelloReader() if draw.often() else AnswerReader()
    given = b""
    while draw:
        piece = draw.blob()
        given += piece
        if (found := reader.receive(piece)) is not None:
            head, rest = found
            assert head.pack() + rest == given
            return


def stream(data: bytes) -> None:
    """Batches of one stream, numbered rightly or not, taken or not, and its end said at some time: in order, and no more than there is room for."""
    draw, incoming, waiting = Draw(data), streams.Incoming(), []
    following = expected = 0
    while draw:
        action = draw.below(8)
        if action < 5:
            batch = streams.batch_of(
                streams.BATCH_HEAD.pack(1, draw.below(80), max(0, draw.number()) % (1 << 40), draw.below(4))
                + draw.blob()
                if draw.often()
                else draw.blob()
            )
            if draw.often():
                batch = batch._replace(number=following, kind=streams.ITEMS)
                following += 1
            for _, each in incoming.arrived(following, batch):
                assert each.number == expected
                expected += 1
                waiting.append(each)
            assert len(waiting) <= streams.MOST_BATCHES
            items, error = ITEMS.decode(batch.payload)
            assert error is not None or all(isinstance(each, int) for each in items)
        elif action < 7 and waiting:
            incoming.taken(len(waiting.pop(0).payload))
        elif action == 7 and not draw.often():
            incoming.ends(draw.below(256))


def message(data: bytes) -> None:
    """Each type of body; a load's grants go on into the layout of the guest's files."""
    draw = Draw(data, (*PATHS, "UTC", "TZ"))
    kinds = (
        *(messages.LoadRequest, messages.LoadReply, messages.EnterRequest, messages.StreamEnd),
        *(messages.Raised, messages.Counts),
    )
    kind: Any = draw.pick(kinds)
    body = draw.spoilt(packed(draw.struct(kind))) if draw.often() else draw.rest()
    decoded = messages.decode(body, kind)
    assert messages.decode(messages.encode(decoded), kind) == decoded
    if isinstance(decoded, messages.LoadRequest):
        layout = Layout(decoded.grants, decoded.working_directory)
        for path in (*filter(is_normal, PATHS), layout.working_directory):
            layout.classify(path)


# -- channel ----------------------------------------------------------------------------------------------------------


_FRESH = Credential.fresh()


def client_channel(data: bytes) -> None:
    """What a client's channel, or one of an enclave that dials, is told by a server that makes its own TLS properly, or not."""
    verifies, identity_digest = ((True, None), (False, bytes(32)), (True, bytes(32)))[sum(data[-1:]) % 3]
    ours = ClientChannel(verifies=verifies, identity_digest=identity_digest, nonce=bytes(range(32)))
    _channel(data, ours, Tls.server(_FRESH))


def server_channel(data: bytes) -> None:
    """The same for an enclave's channel, or one of who verifies those that dial."""
    verifies, identity_digest = ((False, bytes(32)), (True, None), (True, bytes(32)))[sum(data[-1:]) % 3]
    _channel(data, ServerChannel(identity_digest, verifies=verifies), Tls.client(_FRESH))


def _channel(data: bytes, ours: ClientChannel | ServerChannel, peer: Tls) -> None:
    draw = Draw(data)
    kind = draw.below(4)
    if kind == 0:
        while draw:
            _received(draw, ours, draw.blob())
        return
    for _ in range(3):
        _received(draw, ours, _spoilt(draw, peer.data_to_send(), kind == 1))
        with contextlib.suppress(RemoteProtocolError):
            peer.receive(ours.data_to_send())
    closing = False
    while draw and peer.finished and not closing:
        text = draw.blob()
        if draw.often():
            text = encode_channel_message(draw.struct(draw.pick((AttestRequest, Evidence, Accept))))
        if kind == 2 and (right := _RIGHT.get(ours._state)) is not None and draw.often():  # noqa: SLF001
            text = encode_channel_message(right)
        peer.send(text)
        if closing := draw.below(16) == 15:
            peer.close()
        _received(draw, ours, _spoilt(draw, peer.data_to_send(), spoil=kind == 3 and draw.below(8) == 0))


_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
_NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "caller")])
_DATES = dt.datetime(2000, 1, 1, tzinfo=dt.UTC), dt.datetime(9999, 12, 31, tzinfo=dt.UTC)
_SHOWN = (
    x509.CertificateBuilder(_NAME, _NAME, _KEY.public_key(), 1, *_DATES).sign(_KEY, None).public_bytes(Encoding.DER)
)
_DIGEST = credential.key_digest(x509.load_der_x509_certificate(_SHOWN))


def caller(data: bytes) -> None:
    """What a client that holds its key shows as its certificate, and as that one's issuer: whatever of it TLS lets pass."""
    draw = Draw(data)
    own, issuer = (_spoilt(draw, _SHOWN, draw.often()) if draw.below(4) else draw.rest() for _ in range(2))
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_verify(SSL.VERIFY_NONE)
    try:
        shown = crypto.load_certificate(crypto.FILETYPE_ASN1, own)
        context.use_certificate(shown)
        context.use_privatekey(_KEY)
        context.add_extra_chain_cert(crypto.load_certificate(crypto.FILETYPE_ASN1, issuer))
    except Exception:  # noqa: BLE001 - not even this end's TLS takes it
        return
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    client, ours = Tls(connection), ServerChannel(bytes(32))
    with contextlib.suppress(SSL.WantReadError):
        connection.do_handshake()
    for _ in range(2):
        ours.receive(client.data_to_send())
        client.receive(ours.data_to_send())
    if ours.peer_key_digest:
        assert ours.peer_key_digest == _DIGEST
        assert ours.peer_certificates()[0] == crypto.dump_certificate(crypto.FILETYPE_ASN1, shown)


_RIGHT = {"request": AttestRequest(VERSION, bytes(32)), "acceptance": Accept(), "evidence": Evidence(b"evidence")}


def _received(draw: Draw, ours: ClientChannel | ServerChannel, data: bytes) -> None:
    half = len(data) // 2 if draw.below(2) else 0
    for piece in (data[:half], data[half:]):
        for event in ours.receive(piece):
            if isinstance(event, EvidenceReceived):
                ours.report_data(bytes(32))
                ours.accept()
            elif isinstance(event, EvidenceRequested):
                ours.provide(b"evidence")


def _spoilt(draw: Draw, flight: bytes, spoil: bool) -> bytes:
    """The flight with some of its bytes changed."""
    if not spoil:
        return flight
    changed = bytearray(flight)
    for _ in range(draw.below(4)):
        at, change = int.from_bytes(draw.take(2), "little"), draw.below(256)
        if changed:
            changed[at % len(changed)] ^= change
    return bytes(changed)


# -- attestation ------------------------------------------------------------------------------------------------------

HASH = "sha256:" + "1f" * 32
WORDS_OF_EVIDENCE = (HASH, "", "sim", "tdx")
EXPECTED = Expectation(platforms=("sim",), measurement=(HASH,))


def evidence(data: bytes) -> None:
    """Raw evidence; or claims that are signed, which anybody can do for a simulated enclave."""
    draw = Draw(data, WORDS_OF_EVIDENCE)
    kind = draw.below(3)
    if kind == 0:
        shown = draw.rest()
    else:
        drawn = draw.struct(EnclaveIdentity)
        claims = msgspec.json.encode(sim.SimulatedClaims(drawn, bytes(64))) if kind == 1 else draw.rest()
        signature = sim.simulation_key().sign(sim._signed(claims))  # noqa: SLF001
        shown = seal("sim", sim.SimulatedBody(claims, signature))
    verified = verify(shown)
    assert len(verified.identity.digest()) == 32
    validate(verified, EXPECTED, bytes(64))


# -- the guest's end --------------------------------------------------------------------------------------------------


def guest_link(data: bytes) -> None:
    """What a guest sends to its supervisor, cut anywhere."""
    draw = Draw(data, ("lookup",))
    reader = link.Reader(link.ToSupervisor)
    while draw:
        piece = draw.blob()
        if draw.often():
            piece = framed(draw.spoilt(packed(draw.struct(link.ToSupervisor))) if draw.often() else piece)
        cut = draw.below(256)
        for part in (piece[:cut], piece[cut:]):
            for received in reader.receive(part):
                assert isinstance(received, link.ToSupervisor | memoryview)
            assert not reader.bulk or not reader.held  # bulk is not kept
