"""The process that asks hardware for reports and has the sealing keys: who asks gets an answer or none, and nobody else is held up for long."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import threading
from contextlib import closing, suppress

import msgspec
import pytest
from descriptors import held, nothing_more_than

from adyton.attestation.binding import bound_to
from adyton.attestation.evidence import MAX_EVIDENCE, HardwareBody, decode, open_envelope
from adyton.attestation.hardware import HardwareReport
from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.sealing.header import decode_whole, encode
from adyton.attestation.sealing.keys import RootKeys, Sealing
from adyton.attestation.sealing.roots import NoRoot
from adyton.channel.events import EvidenceRequested
from adyton.errors import IntegrityError, PlatformError
from adyton.runtime.process import attester as attester_process
from adyton.runtime.process import attesting
from adyton.runtime.process.attester import AttesterProcess, serve
from adyton.runtime.process.guest.proofs import Binding
from adyton.runtime.process.key_answers import understood
from adyton.runtime.process.supervisor import sealing_keys
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.proofs import proof_links
from adyton.runtime.process.supervisor.proving import by_hardware, in_turn, simulated
from adyton.runtime.process.supervisor.sealing_keys import AskedKeys

DATA = bytes(range(64))
IDENTITY = EnclaveIdentity("tdx", "sha256:" + "1" * 64, "sha256:" + "2" * 64, 3, 4, debug=False, runtime="", machine="")
DIGEST = IDENTITY.digest()
NO_ROOT = NoRoot("no keys here")
OTHER = msgspec.structs.replace(IDENTITY, measurement="sha256:" + "5" * 64)


class Fake:
    """An attester that makes what it is told to."""

    def __init__(self, make=lambda data: HardwareReport(b"over " + data, (b"certificate",))):
        self.make, self.asked = make, []

    def report(self, data):
        self.asked.append(data)
        return self.make(data)

    def close(self):
        pass


class Root:
    """Of a platform in its third state. `asked`: for which others it has asked the hardware; `ask`: what that does."""

    tcb = b"\3"

    def __init__(self, ask=lambda tcb: None):
        self.asked, self._ask = [], ask

    def key(self, tcb):
        if tcb != self.tcb:
            self.asked.append(tcb)
            self._ask(tcb)
        return hashlib.sha256(b"root" + tcb).digest()


@pytest.fixture
def run():
    """Serves an attester on a thread; gives what to ask on."""
    ends = []

    def run(attester, root=NO_ROOT):
        asking, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        thread = threading.Thread(target=serve, args=(other, attester, root))
        thread.start()
        enrolled = attesting.enrol(asking.dup(), IDENTITY)
        ends.append((asking, enrolled, thread))
        return enrolled

    run.asking = lambda: ends[-1][0]
    yield run
    for asking, enrolled, thread in ends:
        asking.close()
        enrolled.close()
        thread.join(20)
        assert not thread.is_alive()


def over(connection, digest=DIGEST):
    return b"over " + bound_to(connection, digest)


def message(enrolled, data=DATA):
    with attesting.ask(enrolled, data) as answer:
        return answer.recv(attesting.MAX_ANSWER)


def test_each_asker_gets_the_report_over_its_own_data(run):
    asking = run(Fake())
    answers = [(data, attesting.ask(asking, data)) for data in (DATA, DATA[::-1], bytes(64))]
    for data, answer in answers:
        with answer:
            report = msgspec.msgpack.decode(answer.recv(attesting.MAX_ANSWER), type=HardwareReport)
        assert report == (over(data), (b"certificate",))


def test_where_there_is_no_report_the_answer_is_empty_and_the_reason_is_said(run, capfd):
    def make(_):
        raise PlatformError("the host says no")

    assert message(run(Fake(make))) == b""
    assert "no evidence for an enclave: the host says no" in capfd.readouterr().err


@pytest.mark.parametrize("size", [1, 63, 65, 200, 5000])
def test_what_is_no_report_data_is_not_passed_on(run, size):
    fake = Fake()
    asking = run(fake)
    with pytest.raises(IntegrityError):
        understood(message(asking, bytes(size)))
    assert fake.asked == []
    assert message(asking)


def test_a_report_may_be_large(run):
    """That of a TPM has the log of its machine's start."""
    assert len(message(run(Fake(lambda _: HardwareReport(bytes(190_000)))))) > 190_000


def test_the_hardware_is_not_asked_for_those_who_have_gone(run):
    begun, go_on = threading.Event(), threading.Event()

    def make(data):
        begun.set()
        assert go_on.wait(60)
        return HardwareReport(data)

    fake = Fake(make)
    asking = run(fake)
    first = attesting.ask(asking, DATA)
    assert begun.wait(60)
    attesting.ask(asking, bytes(64)).close()
    last = attesting.ask(asking, DATA[::-1])
    go_on.set()
    for answer in (first, last):
        with answer:
            assert answer.recv(attesting.MAX_ANSWER)
    assert fake.asked == [over(each)[5:] for each in (DATA, DATA[::-1])]


def test_each_identity_has_a_socket_of_its_own_and_no_other_is_to_be_had_there(run):
    """Of two supervisors neither can have a report made that is the other's."""
    fake = Fake()
    first = run(fake)
    second = attesting.enrol(run.asking().dup(), OTHER)
    with second:
        assert over(DATA) in message(first)
        assert over(DATA, OTHER.digest()) in message(second)
        with pytest.raises(IntegrityError):  # enrolling again
            understood(message(second, msgspec.msgpack.encode(IDENTITY)))
        assert over(DATA, OTHER.digest()) in message(second)
    assert over(DATA) in message(first)


@pytest.mark.parametrize(
    "said",
    [b"", DIGEST, msgspec.msgpack.encode(IDENTITY)[:-1], msgspec.msgpack.encode({"measurement": ""}), bytes(5000)],
)
def test_who_says_no_identity_is_not_enrolled(run, said):
    run(Fake())
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine:
        with other:
            socket.send_fds(run.asking(), [said or b"?"], [other.fileno()])
        assert mine.recv(100) == b""


def test_the_socket_that_enrols_gives_no_reports(run):
    fake = Fake()
    enrolled = run(fake)
    assert message(run.asking()) == b""
    assert message(run.asking(), bytes(200)) == b""
    assert fake.asked == []
    assert message(enrolled)


def test_enclaves_that_go_on_when_the_launcher_has_gone_still_have_evidence(run):
    enrolled = run(Fake())
    run.asking().close()
    assert message(enrolled)


def test_descriptors_that_are_no_sockets_and_requests_without_any_do_no_harm(run):
    asking = run(Fake())
    reading, writing = os.pipe()
    socket.send_fds(asking, [DATA], [writing])
    asking.send(DATA)
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)
    assert message(asking)


def test_an_asker_that_takes_nothing_holds_up_nobody(run):
    asking = run(Fake())
    full, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with full, other:
        with suppress(BlockingIOError):
            while True:
                other.send(bytes(1 << 12), socket.MSG_DONTWAIT)
        socket.send_fds(asking, [DATA], [other.fileno()])
        assert message(asking)


@pytest.mark.parametrize("platform", ["sgx", "sim"])
def test_a_platform_that_is_not_here_is_an_error_with_the_reason_and_nothing_is_left(platform):
    before = held()
    with pytest.raises(PlatformError, match=r"\w+ \w+"):
        AttesterProcess(platform)
    nothing_more_than(before)


# -- sealing keys -------------------------------------------------------------------------------------------------------------


def header_of(identity=IDENTITY, tcb=Root.tcb):
    """Of something that an enclave sealed, when its platform was in that state."""
    made = Sealing(identity, RootKeys(identity, Root())).header("measurement", "data")
    return encode(msgspec.structs.replace(decode_whole(made), tcb=tcb))


def test_an_enclave_has_the_keys_of_what_was_sealed_to_it(run):
    root = Root()
    keys = AskedKeys(run(Fake(), root))
    assert keys.tcb == keys.tcb == Root.tcb
    for header in (header_of(), header_of(tcb=b"\1")):
        assert keys.key(header) == RootKeys(IDENTITY, Root()).key(header)
    assert root.asked == [b"\1"]


def test_it_has_no_other_whatever_has_become_of_its_supervisor(run):
    """Which says what it likes by then: the headers are those of others, or none."""
    enrolled = run(Fake(), Root())
    keys = AskedKeys(enrolled)
    others = [
        header_of(OTHER),
        header_of(msgspec.structs.replace(IDENTITY, debug=True)),
        header_of(msgspec.structs.replace(IDENTITY, platform="tpm")),
        header_of() + b"\0",
        header_of()[:-1],
        b"adyton sealed",
    ]
    for header in others:
        with pytest.raises(IntegrityError):
            keys.key(header)
    assert keys.key(header_of())
    with attesting.enrol(run.asking().dup(), OTHER) as second:
        assert AskedKeys(second).key(others[0]) == RootKeys(OTHER, Root()).key(others[0])


def test_a_platform_without_keys_says_so_to_whoever_seals_or_opens(run):
    keys = AskedKeys(run(Fake()))
    for ask in (lambda: keys.tcb, lambda: keys.key(header_of()), lambda: keys.tcb):
        with pytest.raises(PlatformError, match="no keys here"):
            ask()


def test_keys_are_given_while_the_hardware_makes_a_report(run):
    begun, go_on = threading.Event(), threading.Event()

    def make(data):
        begun.set()
        assert go_on.wait(60)
        return HardwareReport(data)

    root = Root()
    enrolled = run(Fake(make), root)
    with attesting.ask(enrolled, DATA) as report:
        assert begun.wait(60)
        keys = AskedKeys(enrolled)
        assert keys.tcb == Root.tcb
        assert keys.key(header_of())
        with attesting.ask(enrolled, header_of(tcb=b"\1")) as older:  # for which it may have to be asked, too
            assert keys.key(header_of())
            assert root.asked == []
            go_on.set()
            assert understood(older.recv(attesting.MAX_ANSWER))
        assert report.recv(attesting.MAX_ANSWER)


def test_a_key_that_takes_too_long_is_not_waited_for_and_is_there_the_next_time(run, monkeypatch):
    monkeypatch.setattr(sealing_keys, "PATIENCE", 0.05)
    go_on = threading.Event()
    keys = AskedKeys(run(Fake(), Root(lambda _: go_on.wait(60))))
    with pytest.raises(PlatformError, match="did not answer within"):
        keys.key(header_of(tcb=b"\1"))
    go_on.set()
    monkeypatch.setattr(sealing_keys, "PATIENCE", 60)
    assert keys.key(header_of(tcb=b"\1"))


def test_one_that_asks_for_more_than_an_enclave_needs_is_not_answered_and_others_are(run):
    begun, go_on = threading.Event(), threading.Event()

    def make(data):
        begun.set()
        assert go_on.wait(60)
        return HardwareReport(data)

    enrolled = run(Fake(make), Root())
    waiting = [attesting.ask(enrolled, DATA) for _ in range(attester_process._MOST_WAITING)]
    assert begun.wait(60)
    with attesting.enrol(run.asking().dup(), OTHER) as second:
        assert message(enrolled) == b""
        other = attesting.ask(second, DATA)
        go_on.set()
        for answer in (*waiting, other):
            with answer:
                assert answer.recv(attesting.MAX_ANSWER)
    assert message(enrolled)


def test_there_is_no_key_from_an_attester_that_has_ended():
    asking, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with asking:
        other.close()
        keys = AskedKeys(asking)
        for ask in (lambda: keys.tcb, lambda: keys.key(header_of())):
            with pytest.raises(PlatformError, match="has ended"):
                ask()


@pytest.mark.parametrize("answer", [b"\xff", b"\x93", msgspec.msgpack.encode(5), msgspec.msgpack.encode(["A"])])
def test_an_answer_that_is_none_is_a_platform_error(answer):
    with pytest.raises(PlatformError, match="out of order"):
        understood(answer)


# -- a supervisor's end -------------------------------------------------------------------------------------------------------


def proved(prove, data=DATA):
    """What it gives, the loop being turned until then."""
    found, loop = [], Loop()
    with closing(loop):
        prove(loop, EvidenceRequested(b"", data), found.append)
        while not found:
            loop.turn()
    (evidence,) = found
    return evidence


def test_hardwares_evidence_holds_the_report_and_what_the_runtime_says(run):
    envelope = open_envelope(proved(by_hardware(IDENTITY, run(Fake()))))
    body = decode(envelope.body, HardwareBody)
    assert (envelope.platform, body.report, body.certificates) == ("tdx", over(DATA), [b"certificate"])
    assert body.image.on("tdx") == IDENTITY


def test_a_simulations_is_there_at_once():
    found = []
    simulated(msgspec.structs.replace(IDENTITY, platform="sim"))(Loop(), EvidenceRequested(DATA, b""), found.append)
    assert open_envelope(found[0]).platform == "sim"


@pytest.mark.parametrize(
    "make",
    [
        lambda _: HardwareReport(bytes(MAX_EVIDENCE)),
        lambda _: HardwareReport(b"report", (bytes(MAX_EVIDENCE),)),
        lambda _: ("not", "a report"),
        lambda _: 5,
    ],
)
def test_what_cannot_be_evidence_is_none(run, make):
    assert proved(by_hardware(IDENTITY, run(Fake(make)))) is None


def test_there_is_none_from_an_attester_that_has_ended():
    asking, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with asking:
        other.close()
        assert proved(by_hardware(IDENTITY, asking)) is None


def test_nor_from_one_that_ends_meanwhile():
    asking, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with asking:
        threading.Thread(target=lambda: (select.select([other], [], []), other.close())).start()
        assert proved(by_hardware(IDENTITY, asking)) is None


def test_a_guest_that_asks_and_hangs_up_has_no_more_proofs_made_than_one_that_waits():
    asked, loop = [], Loop()
    links = proof_links(loop, lambda step: step, DIGEST, in_turn(4, lambda _loop, _wanted, take: asked.append(take)))

    def ask_and_hang_up():
        guest, taken = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with guest:
            links.take(taken)
            guest.send(msgspec.msgpack.encode(Binding("enclave program", *[bytes(32)] * 4)))
            loop.turn()
        loop.turn()

    for _ in range(10):
        ask_and_hang_up()
    for number in range(4):  # one at a time
        assert len(asked) == number + 1
        asked[number](b"evidence")
    assert len(asked) == 4
    ask_and_hang_up()
    assert len(asked) == 5
    links.close()
    loop.close()


@pytest.mark.parametrize("found", [b"evidence", None])
def test_each_who_stands_in_line_gets_what_was_made_for_it(found):
    asked, got = [], []
    prove = in_turn(3, lambda _loop, wanted, take: asked.append((wanted.report_data, take)))
    for number in range(5):
        prove(Loop(), EvidenceRequested(bytes([number]), b""), lambda evidence, n=number: got.append((n, evidence)))
    assert got == [(3, None), (4, None)]
    while asked:
        data, take = asked.pop()
        take(found and found + data)
    assert got[2:] == [(number, found and found + bytes([number])) for number in range(3)]


def test_an_enclave_waits_for_one_report_of_anothers_however_many_that_has_asked_for(run):
    made, begun, go_on = [], threading.Event(), threading.Event()

    def make(data):
        begun.set()
        assert go_on.wait(60)
        made.append(data)
        return HardwareReport(data)

    greedy = run(Fake(make), Root())
    many = [attesting.ask(greedy, bytes([number]) * 64) for number in range(20)]
    assert begun.wait(60)
    with attesting.enrol(run.asking().dup(), OTHER) as modest, attesting.ask(modest, DATA) as answer:
        assert message(modest, header_of())  # a key, which comes at once: and so the question before was taken
        go_on.set()
        assert answer.recv(attesting.MAX_ANSWER)
    for each in many:
        with each:
            assert each.recv(attesting.MAX_ANSWER)
    assert made.index(bound_to(DATA, OTHER.digest())) <= 2
