"""Who dials may have to prove what it is, alone or as well: with evidence of its own that is good for nothing else."""

import itertools

import pytest

from adyton.attestation.binding import DIALLING_ROLE, ENCLAVE_ROLE, report_data
from adyton.attestation.expectation import Expectation
from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.sim import attest
from adyton.attestation.verify import validate, verify
from adyton.channel.client import ClientChannel
from adyton.channel.credential import Credential
from adyton.channel.events import Data, Established, EvidenceReceived, EvidenceRequested
from adyton.channel.server import ServerChannel
from adyton.channel.tls import Tls
from adyton.errors import BindingError, ExpectationError, LocalProtocolError, RemoteProtocolError


def identity(digit):
    return EnclaveIdentity("sim", "sha256:" + digit * 64, "", 0, 0, debug=False, runtime="", machine="")


DIALS, LISTENS, OTHER = identity("1"), identity("2"), identity("3")


def client(*, verifies=True, proves=True, **more):
    return ClientChannel(verifies=verifies, identity_digest=DIALS.digest() if proves else None, **more)


def server(*, verifies=True, proves=True, **more):
    return ServerChannel(LISTENS.digest() if proves else None, verifies=verifies, **more)


class Talk:
    """Both ends, moved by hand: `shown` is what an end gets as its peer's evidence, in place of what the peer has made."""

    def __init__(self, dialling, listening, shown=None, expected=None):
        self.ends = {"client": dialling, "server": listening}
        self.identities = {"client": DIALS, "server": LISTENS}
        self.expected = expected or {"client": LISTENS, "server": DIALS}
        self.shown = shown or {}
        self.made = {}
        self.requested = {}
        self.events = {"client": [], "server": []}

    def go(self):
        for _ in range(8):
            for name, other in (("server", "client"), ("client", "server")):
                for event in self.ends[name].receive(self.ends[other].data_to_send()):
                    self.events[name].append(event)
                    self._take(name, event)
        return self

    def _take(self, name, event):
        end = self.ends[name]
        if isinstance(event, EvidenceRequested):
            self.requested[name] = event.report_data
            self.made[name] = attest(self.identities[name], event.report_data)
            end.provide(self.shown[name](self) if name in self.shown else self.made[name])
        elif isinstance(event, EvidenceReceived):
            verified = verify(event.evidence)
            expected = Expectation(platforms=["sim"], measurement=[self.expected[name].measurement])
            validate(verified, expected, end.report_data(verified.identity.digest()))
            end.accept()


WAYS = {
    "who listens proves": ({"proves": False}, {"verifies": False}),
    "who dials proves": ({"verifies": False}, {"proves": False}),
    "both prove": ({}, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_data_flows_both_ways_once_all_that_was_demanded_is_proven(way):
    dialling, listening = WAYS[way]
    talk = Talk(client(**dialling), server(**listening)).go()
    for name, other in (("client", "server"), ("server", "client")):
        talk.ends[name].send(b"secret")
        assert talk.ends[other].receive(talk.ends[name].data_to_send()) == [Data(b"secret")]
    proven = {
        name for name, events in talk.events.items() if any(isinstance(each, EvidenceRequested) for each in events)
    }
    assert proven == {"who listens proves": {"server"}, "who dials proves": {"client"}}.get(way, {"client", "server"})
    for name in proven:
        expects_more = name == "server" and way == "both prove"
        assert (talk.events[name][-1] == Established()) != expects_more


def test_of_two_enclaves_the_one_that_dials_says_nothing_of_itself_before_it_knows_the_other():
    talk = Talk(client(), server(), expected={"client": OTHER, "server": DIALS})
    with pytest.raises(ExpectationError):
        talk.go()
    assert "client" not in talk.requested
    assert not any(each.established for each in talk.ends.values())


@pytest.mark.parametrize("name", ["client", "server"])
def test_another_enclaves_evidence_is_refused_in_either_direction(name):
    expected = {"client": LISTENS, "server": DIALS, name: OTHER}
    talk = Talk(client(), server(), expected=expected)
    with pytest.raises(ExpectationError):
        talk.go()
    assert not talk.ends[name].established


def test_the_evidence_of_one_end_returned_to_it_is_not_the_others():
    # The one that listens has seen the evidence of ... itself, on this very connection, and shows it as who dials.
    talk = Talk(
        client(),
        server(),
        shown={"client": lambda talk: talk.made["server"]},
        expected={"client": LISTENS, "server": LISTENS},
    )
    with pytest.raises(BindingError):
        talk.go()
    assert not talk.ends["server"].established


def test_evidence_made_for_one_role_does_not_do_for_the_other_though_all_else_were_the_same():
    same = {"nonce": bytes(32), "exporter": bytes(32), "key_digest": bytes(32), "identity_digest": bytes(32)}
    assert report_data(role=ENCLAVE_ROLE, **same) != report_data(role=DIALLING_ROLE, **same)


def test_a_genuine_enclave_of_the_same_image_on_another_connection_does_not_do():
    elsewhere = Talk(client(verifies=False), server(proves=False)).go()
    for dialling, listening in (({"verifies": False}, {"proves": False}), ({}, {})):
        talk = Talk(client(**dialling), server(**listening), shown={"client": lambda _: elsewhere.made["client"]})
        with pytest.raises(BindingError):
            talk.go()
        assert not talk.ends["server"].established


class Between:
    """Who ends the TLS of both, and passes their messages on."""

    def __init__(self, dialling, listening):
        self.dialling, self.near = dialling, Tls.server(must_have_key=True)
        self.far, self.listening = Tls.client(Credential.fresh()), listening

    def go(self):
        """What the two ask of their owners, by end."""
        events = {"client": [], "server": []}
        for _ in range(8):
            plain = self.near.receive(self.dialling.data_to_send())
            self.far.send(plain) if self.far.finished else None
            events["server"] += self.listening.receive(self.far.data_to_send())
            plain = self.far.receive(self.listening.data_to_send())
            self.near.send(plain) if self.near.finished else None
            events["client"] += self.dialling.receive(self.near.data_to_send())
        return events


def test_who_passes_on_the_evidence_of_an_enclave_that_dials_is_refused():
    between = Between(client(verifies=False), server(proves=False))
    (requested,) = between.go()["client"]
    between.dialling.provide(attest(DIALS, requested.report_data))
    (received,) = between.go()["server"]
    verified = verify(received.evidence)
    expected = Expectation(platforms=["sim"], measurement=[DIALS.measurement])
    with pytest.raises(BindingError):
        validate(verified, expected, between.listening.report_data(verified.identity.digest()))


def test_both_keys_count():
    known = Credential.fresh()
    dialling, listening = ClientChannel(credential=known), ServerChannel(LISTENS.digest())
    talk = Talk(dialling, listening).go()
    assert listening.peer_key_digest == known.digest
    fields = {
        "role": ENCLAVE_ROLE,
        "nonce": dialling._nonce,
        "exporter": dialling._tls.exporter(ENCLAVE_ROLE),
        "key_digest": dialling.peer_key_digest,
        "identity_digest": LISTENS.digest(),
    }
    assert talk.requested["server"] == report_data(**fields, verifier_key_digest=known.digest)
    assert talk.requested["server"] != report_data(**fields)


def test_who_verifies_can_be_known_by_a_key_of_its_own():
    known = Credential.fresh()
    dialling = client(verifies=False)
    Talk(dialling, ServerChannel(verifies=True, credential=known)).go()
    assert dialling.established
    assert dialling.peer_key_digest == known.digest


def test_who_proves_has_a_fresh_key():
    known = Credential.fresh()
    for make in (
        lambda: ClientChannel(identity_digest=DIALS.digest(), credential=known),
        lambda: ServerChannel(LISTENS.digest(), credential=known),
    ):
        with pytest.raises(LocalProtocolError):
            make()


@pytest.mark.parametrize(
    ("dialling", "listening"),
    [each for each in itertools.product(WAYS, WAYS) if each[0] != each[1]],
    ids=lambda way: way,
)
def test_ends_that_want_different_things_never_have_a_channel(dialling, listening):
    talk = Talk(client(**WAYS[dialling][0]), server(**WAYS[listening][1]))
    try:
        talk.go()
    except RemoteProtocolError:
        pass
    # One may think that all is proven that it wants. Nothing of what it then says is taken for data.
    for name, other in (("client", "server"), ("server", "client")):
        if talk.ends[name].established:
            assert not talk.ends[other].established
            talk.ends[name].send(b"\0\0\0\0secret")
            with pytest.raises(RemoteProtocolError):
                talk.ends[other].receive(talk.ends[name].data_to_send())


def test_who_is_to_prove_what_it_is_and_has_no_key_is_refused():
    bare, listening = Tls.client(), server(proves=False)
    listening.receive(bare.data_to_send())
    bare.receive(listening.data_to_send())
    with pytest.raises(RemoteProtocolError):
        listening.receive(bare.data_to_send())
    assert not listening.established
