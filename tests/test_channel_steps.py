"""Every state of every end, and all that it may do or be sent there: what happens is what the table says, and nothing else."""

import itertools

import pytest

from adyton.attestation.binding import VERSION
from adyton.channel.client import ClientChannel
from adyton.channel.credential import Credential
from adyton.channel.events import Closed, Data, Established, EvidenceReceived, EvidenceRequested
from adyton.channel.messages import Accept, AttestRequest, Evidence, encode
from adyton.channel.server import ServerChannel
from adyton.channel.steps import STEPS
from adyton.channel.tls import Tls
from adyton.errors import LocalProtocolError, RemoteProtocolError

DIGEST = bytes(32)
ENDS = {
    ("client", "verifies"): ClientChannel,
    ("client", "proves"): lambda: ClientChannel(verifies=False, identity_digest=DIGEST),
    ("client", "verifies, then proves"): lambda: ClientChannel(identity_digest=DIGEST),
    ("server", "proves"): lambda: ServerChannel(DIGEST),
    ("server", "verifies"): lambda: ServerChannel(verifies=True),
    ("server", "proves, then verifies"): lambda: ServerChannel(DIGEST, verifies=True),
}
OURS = {
    "provide": lambda channel: channel.provide(b"evidence"),
    "accept": lambda channel: channel.accept(),
    "send": lambda channel: channel.send(b"data"),
    "close": lambda channel: channel.close(),
}
MESSAGES = {
    "AttestRequest": encode(AttestRequest(VERSION, bytes(32))),
    "Evidence": encode(Evidence(b"evidence")),
    "Accept": encode(Accept()),
}
PEERS = {**MESSAGES, "data": b"\xff\xff\xff\xffdata"}


class Pair:
    """An end of ours, and a peer that makes its TLS properly, and else says anything."""

    def __init__(self, end):
        self.ours = ENDS[end]()
        self.peer = Tls.server() if end[0] == "client" else Tls.client(Credential.fresh())

    def do(self, what):
        """An input of the table, or of the test: the peer's end, or what is no TLS. What it gives."""
        if what in OURS:
            OURS[what](self.ours)
            return []
        if what == "handshake finished":
            events = []
            for _ in range(3):
                self.peer.receive(self.ours.data_to_send())
                events += self.ours.receive(self.peer.data_to_send())
            assert self.peer.finished
            return events
        if what == "end":
            self.peer.close()
        elif what == "garbage":
            return self.ours.receive(b"garbage, not TLS at all")
        else:
            self.peer.send(PEERS[what])
        return self.ours.receive(self.peer.data_to_send())


def routes(part):
    """To each state that is reached by the table: the inputs that lead there."""
    found, frontier = {"handshake": ()}, ["handshake"]
    while frontier:
        state = frontier.pop(0)
        for what, following in STEPS[part][state].items():
            if following not in found:
                found[following] = (*found[state], what)
                frontier.append(following)
    return found


def at(end, state):
    pair, part = Pair(end), end[1]
    for what in routes(part)[state]:
        pair.do(what)
    assert pair.ours._state == state
    return pair


@pytest.mark.parametrize("end", ENDS, ids=" ".join)
def test_all_that_can_happen_in_each_state_is_what_the_table_says(end):
    table = STEPS[end[1]]
    for state, what in itertools.product(routes(end[1]), OURS):
        pair = at(end, state)
        following = table[state].get(what)
        if following is None:
            with pytest.raises(LocalProtocolError):
                pair.do(what)
            following = state
        else:
            pair.do(what)
        assert pair.ours._state == following, (state, what)
    for state, what in itertools.product(set(routes(end[1])) - {"handshake", "closed", "open"}, PEERS):
        pair = at(end, state)
        following = table[state].get(what)
        if following is None:
            with pytest.raises(RemoteProtocolError) as caught:
                pair.do(what)
            with pytest.raises(RemoteProtocolError) as again:
                pair.ours.receive(b"more")
            assert again.value is caught.value
            assert pair.ours._state == "failed", (state, what)
        else:
            events = pair.do(what)
            assert pair.ours._state == following, (state, what)
            expected = {"attesting": EvidenceRequested, "judging": EvidenceReceived, "open": Established}.get(following)
            assert [type(event) for event in events] == [expected] * (expected is not None)
    for what, text in PEERS.items():
        pair = at(end, "open")
        assert pair.do(what) == [Data(text)]
        pair.do("close")
        assert pair.do(what) == []


@pytest.mark.parametrize("end", ENDS, ids=" ".join)
def test_a_peer_that_ends_or_fails_in_any_state_makes_what_we_then_say_no_mistake(end):
    for state, (what, becomes) in itertools.product(
        set(routes(end[1])) - {"handshake", "closed"}, {"end": "ended", "garbage": "failed"}.items()
    ):
        pair = at(end, state)
        if what == "end":
            assert pair.do(what) == [Closed()]
        else:
            with pytest.raises(RemoteProtocolError):
                pair.do(what)
        assert pair.ours._state == becomes
        due = pair.ours.data_to_send()
        OURS["provide"](pair.ours)
        OURS["accept"](pair.ours)
        with pytest.raises(LocalProtocolError):
            pair.ours.send(b"data")
        assert pair.ours.data_to_send() == b"", due
        pair.ours.close()


@pytest.mark.parametrize("part", STEPS)
def test_every_step_leads_to_a_state_of_the_table_and_can_be_closed(part):
    steps = STEPS[part]
    for row in steps.values():
        assert "close" in row
        assert set(row.values()) <= set(steps)
    assert set(routes(part)) == set(steps) - {"ended", "failed"}


@pytest.mark.parametrize("part", STEPS)
def test_nothing_is_open_before_all_that_was_demanded_is_proven(part):
    way = routes(part)["open"]
    assert ("accept" in way) == ("verifies" in part)
    assert ("Accept" in way) == ("proves" in part)
    for each in {"accept", "Accept"} & set(way):  # and there is no other way
        reached, frontier = set(), {"handshake"}
        while frontier:
            reached |= frontier
            frontier = {
                following for state in frontier for what, following in STEPS[part][state].items() if what != each
            } - reached
        assert "open" not in reached


def test_a_channel_on_which_nobody_proves_anything_is_none():
    for make in (lambda: ClientChannel(verifies=False), ServerChannel):
        with pytest.raises(LocalProtocolError):
            make()
