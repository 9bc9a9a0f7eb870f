"""Attested connections between enclaves' programs: who is accepted, what a man in the middle can do, and how they end."""

import datetime as dt
import hashlib
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import msgspec
import pytest
import tpms
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given

from adyton import AllOf, AnyOf, Expectation, Not
from adyton.attestation import sim
from adyton.attestation.binding import ENCLAVE_ROLE
from adyton.attestation.collateral import Collateral
from adyton.attestation.evidence import Bound, HardwareBody, ImageClaims, seal
from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.tpm.verify import verify as verify_quote
from adyton.channel.client import ClientChannel, EvidenceReceived, EvidenceRequested
from adyton.channel.credential import Credential
from adyton.channel.tls import Tls
from adyton.errors import (
    AttestationError,
    BindingError,
    ClosedError,
    EvidenceMalformedError,
    ExpectationError,
    NotGenuineError,
    RemoteProtocolError,
    UnauthenticatedError,
    UsageError,
)
from adyton.runtime.process.guest.proofs import Binding
from adyton.runtime.process.supervisor.proofs import requested
from adyton.trusted import channel, proving
from adyton.trusted.attested import attested

SIGNER = "sha256:" + "5" * 64
OTHER = "sha256:" + "6" * 64
LATE = dt.datetime(2120, 1, 1, tzinfo=dt.UTC)
SECRET = b"what nobody else may read " * 8


class Enclave:
    """What has a program prove what it is, as a supervisor does. `shows`: in place of its evidence."""

    def __init__(self, digit="1", product=1, debug=False, shows=None):
        measurement = "sha256:" + digit * 64
        self.identity = EnclaveIdentity("sim", measurement, SIGNER, product, 3, debug=debug, runtime=OTHER, machine="")
        self.own_keys = set()
        self.made = []
        self._shows = shows

    def prepare(self):
        pass

    def prove(self, bound, seconds):
        assert 0 < seconds <= 30
        binding = msgspec.msgpack.encode(Binding(*(getattr(bound, field) for field in Binding.__struct_fields__)))
        self.made.append(sim.attest(self.identity, requested(binding, self.identity.digest()).report_data))
        return self.made[-1] if self._shows is None else self._shows(self)


def of(*enclaves, **more):
    return Expectation(platforms=["sim"], measurement=[each.identity.measurement for each in enclaves], **more)


ANN, BOB = Enclave("a"), Enclave("b", product=2)


class Wire:
    """Two connected sockets, with somebody between who keeps all that passes. `step(to_listener, data)`: what he makes of it; None: cut."""

    def __init__(self, step=lambda _to, data: data):
        self.passed = []
        self.dialling, a = socket.socketpair()
        self.listening, b = socket.socketpair()
        self.middle = (a, b)
        self._threads = [
            threading.Thread(target=self._carry, args=each) for each in ((a, b, True, step), (b, a, False, step))
        ]
        for thread in self._threads:
            thread.start()

    def _carry(self, source, target, to_listener, step):
        try:
            while data := source.recv(1 << 16):
                self.passed.append(data)
                data = step(to_listener, data)
                if data is None:
                    break
                target.sendall(data)
            else:
                target.shutdown(socket.SHUT_WR)
                return
        except OSError:
            pass
        for sock in self.middle:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        for sock in (self.dialling, self.listening):
            sock.close()
        for thread in self._threads:
            thread.join(30)
        for sock in self.middle:
            sock.close()


@pytest.fixture
def wires():
    made = []

    def wire(*arguments):
        made.append(Wire(*arguments))
        return made[-1]

    yield wire
    for each in made:
        each.close()


def meet(wire, dials=ANN, listens=BOB, expected_by_dialling=None, expected_by_listening=None):
    """What both ends got: sockets, or what was raised."""
    ends = (
        (wire.dialling, dials, expected_by_dialling or of(listens), False),
        (wire.listening, listens, expected_by_listening or of(dials), True),
    )

    def end(sock, enclave, expect, server_side):
        try:
            return attested(sock, enclave, expect, Collateral(), 30, server_side=server_side)
        except Exception as error:  # noqa: BLE001 - what it was is what is tested
            return error

    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(end, *each) for each in ends]
        return [each.result(60) for each in found]


def test_each_end_knows_the_other_and_nobody_else_reads_what_they_say(wires):
    wire = wires()
    ann, bob = meet(wire)
    assert (ann.peer.measurement, bob.peer.measurement) == (BOB.identity.measurement, ANN.identity.measurement)
    ann.sendall(SECRET)
    bob.sendall(SECRET[::-1])
    assert bob.makefile("rb").read(len(SECRET)) == SECRET
    assert ann.makefile("rb").read(len(SECRET)) == SECRET[::-1]
    passed = b"".join(wire.passed)
    assert not any(SECRET[at : at + 12] in passed for at in range(26))
    ann.close()
    assert bob.recv(1) == b""
    bob.close()
    assert not ANN.own_keys | BOB.own_keys


WRONG = {
    "another image": of(Enclave("c")),
    "another product": Expectation(platforms=["sim"], signer=[SIGNER], product_id=9),
    "another signer": Expectation(platforms=["sim"], signer=[OTHER], product_id=1),
    "a later version": of(ANN, BOB, min_version=4),
    "hardware": Expectation(platforms=["tdx"], measurement=[ANN.identity.measurement, BOB.identity.measurement]),
    "another runtime": of(ANN, BOB, runtime=[SIGNER]),
    "not this one": AllOf(of(ANN, BOB), Not(Expectation(signer=[SIGNER]))),
    "none of some": AnyOf(of(Enclave("c")), of(Enclave("d"))),
}


@pytest.mark.parametrize("side", ["dialling", "listening"])
@pytest.mark.parametrize("wrong", WRONG)
def test_who_is_not_expected_is_refused_before_anything_is_said(wires, side, wrong):
    found = dict(zip(("dialling", "listening"), meet(wires(), **{f"expected_by_{side}": WRONG[wrong]}), strict=True))
    refused = found.pop(side)
    assert isinstance(refused, ExpectationError), refused
    assert refused.failures
    (other,) = found.values()
    assert isinstance(other, UnauthenticatedError), other
    assert not ANN.own_keys | BOB.own_keys


def test_in_debug_is_refused_unless_it_is_expected(wires):
    debug = Enclave("e", debug=True)
    refused, _ = meet(wires(), listens=debug)
    assert isinstance(refused, ExpectationError)
    for sock in meet(wires(), listens=debug, expected_by_dialling=of(debug, debug=True)):
        sock.close()


@pytest.mark.parametrize("expect", [AnyOf(), AllOf(), Expectation(), Not(of(ANN)), AllOf(Not(of(ANN))), None, "tdx"])
def test_an_expectation_that_says_too_little_is_an_error_and_nothing_is_sent(wires, expect):
    wire = wires()
    proving.connection.connect(ANN, whole_process=False)
    try:
        with pytest.raises(UsageError):
            channel.wrap(wire.dialling, expect=expect)
    finally:
        proving.connection.connect(None, whole_process=False)
    assert not wire.passed
    assert wire.dialling.fileno() == -1


def test_outside_of_an_enclave_there_are_no_attested_connections(wires):
    with pytest.raises(ClosedError, match="this is none"):
        channel.wrap(wires().dialling, expect=of(BOB))


# -- in the middle -------------------------------------------------------------------------------------------------------


def test_who_ends_the_encryption_in_the_middle_and_relays_evidence_is_refused(wires):
    """He speaks TLS with each, and passes on what they say within."""
    near, far = Tls.server(must_have_key=True), Tls.client(Credential.fresh())
    waiting = {near: [], far: []}
    one_at_a_time = threading.Lock()

    def step(to_listener, data):
        source, target = (near, far) if to_listener else (far, near)
        with one_at_a_time:
            waiting[target].append(source.receive(data))
            for end in (near, far):
                if end.finished:
                    for plain in waiting[end]:
                        end.send(plain)
                        seen.append(plain)
                    waiting[end].clear()
            back, on = source.data_to_send(), target.data_to_send()
            wire.middle[0 if to_listener else 1].sendall(back)
            return on

    seen = []
    wire = wires(step)
    ann, bob = meet(wire)
    assert isinstance(ann, BindingError), ann
    assert isinstance(bob, Exception)
    assert b"evidence" in b"".join(seen)


def test_evidence_of_an_earlier_connection_is_refused(wires):
    for sock in meet(wires()):
        sock.close()
    replays = Enclave("b", product=2, shows=lambda _: BOB.made[-1])
    refused, _ = meet(wires(), listens=replays)
    assert isinstance(refused, BindingError)
    replays = Enclave("a", shows=lambda _: ANN.made[-1])
    _, refused = meet(wires(), dials=replays)
    assert isinstance(refused, BindingError)


@pytest.mark.parametrize("shown", [b"{}", b"\0" * 64, b"x" * 100_000])
def test_what_is_no_evidence_is_refused(wires, shown):
    refused, _ = meet(wires(), listens=Enclave("b", shows=lambda _: shown))
    assert isinstance(refused, EvidenceMalformedError)


class Forger(Enclave):
    """Has no TPM, and certifies by a CA of its own that it has one."""

    def __init__(self, authority):
        super().__init__()
        self._image = ImageClaims.of(BOB.identity)
        self.identity = self._image.on("tpm")
        self._certificate = authority.certified(tpms.KEY.public_key(), until=LATE).public_bytes(Encoding.DER)

    def prove(self, bound, seconds):
        data = bound.report_data(self.identity.digest())
        quoted = tpms.quote(extra=hashlib.sha256(data).digest())
        signed = {"quote": quoted, "signature": tpms.signature(quoted), "report_data": data}
        return seal("tpm", HardwareBody(tpms.report(**signed, certificate=self._certificate), self._image))


def test_a_root_in_a_folder_of_collateral_which_may_be_the_clients_vouches_for_nobody(wires, tmp_path):
    authority = tpms.Authority(until=LATE)
    (tmp_path / "root").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    wire, forger = wires(), Forger(authority)
    registers = verify_quote(tpms.report(), Collateral(), tpms.NOW).runtime
    expect = Expectation(platforms=["tpm"], measurement=[BOB.identity.measurement], runtime=[registers])
    proving.connection.connect(ANN, whole_process=False)
    try:
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(attested, wire.listening, forger, of(ANN), Collateral(), 30, server_side=True)
            with pytest.raises(NotGenuineError, match="nobody vouches"):
                channel.wrap(wire.dialling, expect=expect, collateral=tmp_path)
            assert isinstance(other.exception(30), UnauthenticatedError)
    finally:
        proving.connection.connect(None, whole_process=False)


def test_an_enclaves_evidence_returned_to_it_is_not_its_peers(wires):
    """Somebody without any dials it, and shows it its own, which he has just been shown."""
    wire = wires()
    stranger = ClientChannel(verifies=True, identity_digest=ANN.identity.digest(), programs=True)

    def dial():
        shown = b""
        with wire.dialling as sock:
            sock.sendall(stranger.data_to_send())
            while data := sock.recv(1 << 16):
                for event in stranger.receive(data):
                    if isinstance(event, EvidenceReceived):
                        shown = event.evidence
                        stranger.accept()
                    elif isinstance(event, EvidenceRequested):
                        stranger.provide(shown)
                sock.sendall(stranger.data_to_send())

    thread = threading.Thread(target=dial)
    thread.start()
    with pytest.raises(BindingError):
        attested(wire.listening, BOB, of(BOB), Collateral(), 30, server_side=True)
    thread.join()


def test_an_enclave_that_is_led_to_itself_refuses(wires):
    found = meet(wires(), dials=ANN, listens=ANN)
    assert isinstance(found[0], BindingError)
    assert "led back to it" in str(found[0])
    another = Enclave("a")  # of the same image
    for sock in meet(wires(), dials=ANN, listens=another):
        sock.close()


def test_what_a_supervisor_proves_of_its_own_channel_is_nothing_of_its_program(wires):
    def as_supervisor(enclave):
        return sim.attest(enclave.identity, b"\1" * 64)

    refused, _ = meet(wires(), listens=Enclave("b", shows=as_supervisor))
    assert isinstance(refused, BindingError)


def test_no_program_has_evidence_made_for_another_role():
    fields = [b"1" * 32] * 4
    said = msgspec.msgpack.encode(Binding(ENCLAVE_ROLE.decode(), *fields))
    with pytest.raises(RemoteProtocolError):
        requested(said, ANN.identity.digest())
    said = msgspec.msgpack.encode(Binding("enclave program", *fields))
    bound = Bound("enclave program", *fields).report_data(ANN.identity.digest())
    assert requested(said, ANN.identity.digest()) == EvidenceRequested(
        bound, Bound("enclave program", *fields).connection()
    )
    assert bound != Bound("enclave", *fields).report_data(ANN.identity.digest())


@given(st.binary(max_size=600) | st.builds(msgspec.msgpack.encode, st.lists(st.binary() | st.text())))
def test_what_no_guest_says_is_an_error_of_the_protocol(message):
    with pytest.raises(RemoteProtocolError):
        requested(message, bytes(32))


def test_a_peer_that_speaks_something_else_is_told_of(wires):
    wire = wires()
    wire.dialling.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(RemoteProtocolError):
        attested(wire.listening, BOB, of(ANN), Collateral(), 30, server_side=True)


def test_a_peer_that_says_nothing_is_not_waited_for_for_ever(wires):
    wire = wires()
    with pytest.raises(TimeoutError):
        attested(wire.listening, BOB, of(ANN), Collateral(), 0.1, server_side=True)
    assert wire.listening.fileno() == -1


# -- how they end ---------------------------------------------------------------------------------------------------------


class Snips:
    """Lets bytes to the listener pass until it is told to do something with the next ones."""

    def __init__(self):
        self.now = None

    def __call__(self, to_listener, data):
        if to_listener and self.now is not None:
            return self.now(data)
        return data


def test_a_cut_connection_is_told_from_an_end(wires):
    snips = Snips()
    ann, bob = meet(wires(snips))
    ann.sendall(b"all of it")
    assert bob.makefile("rb").read(9) == b"all of it"
    snips.now = lambda _: None
    ann.sendall(b"more")
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            bob.recv(100)
    ann.close()
    bob.close()


def test_what_came_before_a_cut_is_read_first(wires):
    ann, bob = meet(wires())
    ann.sendall(b"before")
    ann.cut()
    assert bob.recv(100) == b"before"
    with pytest.raises(ConnectionResetError):
        bob.recv(100)
    ann.close()
    bob.close()


def test_an_end_that_is_swallowed_is_a_cut(wires):
    """Of a close_notify, which somebody in the middle leaves out."""
    snips = Snips()
    ann, bob = meet(wires(snips))
    snips.now = lambda _: b""
    ann.close()
    with pytest.raises(ConnectionResetError):
        bob.recv(1)
    bob.close()


@pytest.mark.parametrize("at", [0, 3, 5, 20, -1])
def test_a_changed_byte_is_an_error_and_not_data(wires, at):
    snips = Snips()
    ann, bob = meet(wires(snips))

    def flip(data):
        changed = bytearray(data)
        changed[at] ^= 1
        return bytes(changed)

    snips.now = flip
    ann.sendall(SECRET)
    ann.shutdown(socket.SHUT_WR)
    with pytest.raises((RemoteProtocolError, ConnectionResetError)):
        bob.recv(1000)
    ann.close()
    bob.close()


def test_behind_a_changed_byte_nothing_can_be_sent(wires):
    snips = Snips()
    ann, bob = meet(wires(snips))
    snips.now = lambda data: data[:-1] + bytes([data[-1] ^ 1])
    ann.sendall(SECRET)
    with pytest.raises(RemoteProtocolError):
        bob.recv(1000)
    with pytest.raises(RemoteProtocolError):
        bob.sendall(b"answer")
    ann.close()
    bob.close()


def test_who_waits_while_another_thread_ends_the_reading_reads_an_end(wires):
    ann, bob = meet(wires())

    class Woken:
        """A socket of which somebody who reads is woken by the end at once."""

        def __getattr__(self, name):
            return getattr(below, name)

        def shutdown(self, how):
            below.shutdown(how)
            read.append(bob.recv(1))

    read, below = [], bob._sock
    bob._sock = Woken()
    bob.shutdown(socket.SHUT_RD)
    assert read == [b""]
    bob._sock = below
    ann.close()
    bob.close()


def test_a_forked_process_says_nothing_on_its_parents_connection(wires, monkeypatch):
    """Else it would encrypt under the key and the nonces with which its parent goes on."""
    wire = wires()
    ann, bob = meet(wire)
    before = len(wire.passed)
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: -1)
        for use in (
            lambda: ann.sendall(SECRET),
            lambda: ann.recv(1),
            lambda: ann.recv_into(bytearray(1)),
            lambda: ann.shutdown(socket.SHUT_RDWR),
        ):
            with pytest.raises(UsageError, match="fork"):
                use()
        ann.cut()
        copy, ann._sock = ann._sock, ann._sock.dup()
        ann.close()  # as the end of a `with` in the child
    ann._sock = copy
    assert len(wire.passed) == before
    ann.sendall(b"goes on")
    assert bob.recv(9) == b"goes on"
    ann.close()
    bob.close()


def test_one_direction_ends_and_the_other_goes_on(wires):
    ann, bob = meet(wires())
    ann.sendall(b"question")
    ann.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError):
        ann.sendall(b"more")
    assert bob.makefile("rb").read() == b"question"
    assert bob.recv(1) == b""
    bob.sendall(b"answer")
    bob.close()
    assert ann.makefile("rb").read() == b"answer"
    ann.close()


def test_large_data_goes_both_ways_at_once(wires):
    ann, bob = meet(wires())
    there, back = os.urandom(5_000_001), os.urandom(3_000_007)

    def send(sock, data):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(send, ann, there), pool.submit(send, bob, back)]
        read = [pool.submit(lambda sock: sock.makefile("rb").read(), each) for each in (bob, ann)]
        assert [each.result(60) for each in read] == [there, back]
        assert [each.result(60) for each in sent] == [None, None]
    ann.close()
    bob.close()


def test_many_connections_at_once(wires):
    with ThreadPoolExecutor(8) as pool:
        for ann, bob in pool.map(lambda _: meet(wires()), range(16)):
            ann.sendall(SECRET)
            assert bob.recv(1000) == SECRET
            ann.close()
            bob.close()


def test_it_is_used_as_a_socket_is(wires):
    ann, bob = meet(wires())
    with bob:
        assert ann.fileno() > 0
        with bob.makefile("rw", encoding="utf-8", newline="\n") as lines:
            with ann.makefile("rw", encoding="utf-8", newline="\n") as asked:
                ann.close()  # the file keeps it
                asked.write("who?\n")
                asked.flush()
                assert lines.readline() == "who?\n"
                lines.write("me\n")
                lines.flush()
                assert asked.readline() == "me\n"
            assert lines.readline() == ""
        assert ann.fileno() == -1


def test_timeouts_and_flags(wires):
    ann, bob = meet(wires())
    assert ann.gettimeout() is None
    ann.settimeout(0.05)
    with pytest.raises(TimeoutError):
        ann.recv(1)
    bob.sendall(b"late")
    buffer = bytearray(2)
    ann.settimeout(30)
    assert ann.recv_into(buffer) == 2
    assert (bytes(buffer), ann.pending(), ann.recv(0), ann.recv(9)) == (b"la", 2, b"", b"te")
    bob.sendall(b"kept")
    for wrong in (
        lambda: ann.settimeout(0),
        lambda: ann.recv(1, socket.MSG_PEEK),
        lambda: ann.sendall(b"", 1),
        lambda: ann.recv(-1),
        lambda: ann.recv_into(bytearray(2), 3),
    ):
        with pytest.raises(ValueError, match="attested socket"):
            wrong()
    assert ann.recv(9) == b"kept"
    ann.close()
    bob.close()


def test_errors_are_of_one_tree():
    assert issubclass(BindingError, AttestationError)
