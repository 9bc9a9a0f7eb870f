"""The process that asks hardware for reports: who asks gets an answer or none, and nobody else is held up for long."""

from __future__ import annotations

import os
import select
import socket
import threading
from contextlib import closing, suppress

import msgspec
import pytest

from adyton.attestation.binding import bound_to
from adyton.attestation.evidence import MAX_EVIDENCE, HardwareBody, decode, open_envelope
from adyton.attestation.hardware import HardwareReport
from adyton.attestation.identity import EnclaveIdentity
from adyton.channel.events import EvidenceRequested
from adyton.errors import PlatformError
from adyton.runtime.process import attesting
from adyton.runtime.process.attester import AttesterProcess, serve
from adyton.runtime.process.guest.proofs import Binding
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.proofs import proof_links
from adyton.runtime.process.supervisor.proving import at_most, by_hardware, simulated

DATA = bytes(range(64))
IDENTITY = EnclaveIdentity("tdx", "sha256:" + "1" * 64, "sha256:" + "2" * 64, 3, 4, debug=False, runtime="", machine="")
DIGEST = IDENTITY.digest()


class Fake:
    """An attester that makes what it is told to."""

    def __init__(self, make=lambda data: HardwareReport(b"over " + data, (b"certificate",))):
        self.make, self.asked = make, []

    def report(self, data):
        self.asked.append(data)
        return self.make(data)

    def close(self):
        pass


@pytest.fixture
def run():
    """Serves an attester on a thread; gives what to ask on."""
    ends = []

    def run(attester):
        asking, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        thread = threading.Thread(target=serve, args=(other, attester))
        thread.start()
        enrolled = attesting.enrol(asking.dup(), IDENTITY.digest())
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


@pytest.mark.parametrize("size", [1, 63, 65, 200])
def test_what_is_no_report_data_is_not_passed_on(run, size):
    fake = Fake()
    asking = run(fake)
    assert message(asking, bytes(size)) == b""
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
    second = attesting.enrol(run.asking().dup(), bytes(32))
    with second:
        assert over(DATA) in message(first)
        assert over(DATA, bytes(32)) in message(second)
        with attesting.ask(second, IDENTITY.digest()) as answer:  # enrolling again
            assert answer.recv(attesting.MAX_ANSWER) == b""
        assert over(DATA, bytes(32)) in message(second)
    assert over(DATA) in message(first)


def test_the_socket_that_enrols_gives_no_reports(run):
    fake = Fake()
    enrolled = run(fake)
    assert message(run.asking()) == b""
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
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(PlatformError, match=r"\w+ \w+"):
        AttesterProcess(platform)
    assert set(os.listdir("/proc/self/fd")) == before


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
    links = proof_links(loop, lambda step: step, DIGEST, at_most(4, lambda _loop, _wanted, take: asked.append(take)))

    def ask_and_hang_up():
        guest, taken = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with guest:
            links.take(taken)
            guest.send(msgspec.msgpack.encode(Binding("enclave program", *[bytes(32)] * 4)))
            loop.turn()
        loop.turn()

    for _ in range(10):
        ask_and_hang_up()
    assert len(asked) == 4
    asked[0](b"evidence")
    for _ in range(3):
        ask_and_hang_up()
    assert len(asked) == 5
    links.close()
    loop.close()
