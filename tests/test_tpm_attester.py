"""The attester, against an emulated TPM: what it quotes is accepted, and each part of it that was tampered with is refused."""

import contextlib
import hashlib
import os
import shutil
import socket
import struct
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from swtpm import READABLE, RSA_TEMPLATE, certified, emulated, needs_swtpm
from tpms import NOW, REPORT_DATA, Authority, event, extended, name_of, public_area, quote, signature, sized, spec_id

from adyton.attestation.binding import bound_to
from adyton.attestation.collateral import Collateral, read_blobs, read_folder
from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.sealing.roots import NoRoot
from adyton.attestation.tpm import attest as attester
from adyton.attestation.tpm import commands
from adyton.attestation.tpm.abi import parse_public
from adyton.attestation.tpm.attest import PCRS, PROVISIONED, Tpm, attest
from adyton.attestation.tpm.commands import TpmError
from adyton.attestation.tpm.report import TpmReport
from adyton.attestation.tpm.verify import verify
from adyton.attestation.verify import verify as verify_envelope
from adyton.channel.events import EvidenceRequested
from adyton.errors import EvidenceMalformedError, LocalProtocolError, NotGenuineError, PlatformError
from adyton.runtime.process import attesting
from adyton.runtime.process.attester import serve
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.proving import by_hardware

IDENTITY = EnclaveIdentity("tpm", "sha256:" + "1" * 64, "sha256:" + "2" * 64, 3, 4, debug=False, runtime="", machine="")
AZURE, GOOGLE, GOOGLE_RSA = PROVISIONED


@pytest.fixture
def start(tmp_path):
    """A function that starts a TPM, which has an event log; all of them are stopped."""
    with contextlib.ExitStack() as stack:

        def start(log=b""):
            return stack.enter_context(emulated(tmp_path / os.urandom(4).hex(), log))

        yield start


@pytest.fixture
def tpm(start):
    return start()


def judged(report, collateral=None):
    return verify(report, collateral or Collateral(), NOW)


@needs_swtpm
def test_the_evidence_of_an_enclave_is_made_around_a_quote_and_bound_to_it(start):
    """By way of the process that asks for it, and of a supervisor's end."""
    tpm = start(spec_id() + event(0, b"firmware"))
    tpm.extend(0, b"firmware")
    asking, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    thread = threading.Thread(target=serve, args=(other, tpm, NoRoot("none")))
    thread.start()
    found, loop = [], Loop()
    with attesting.enrol(asking, IDENTITY) as enrolled, contextlib.closing(loop):
        by_hardware(IDENTITY, enrolled)(loop, EvidenceRequested(b"", bytes(64)), found.append)
        while not found:
            loop.turn()
    thread.join(20)
    assert not thread.is_alive()
    verified = verify_envelope(found[0], Collateral(), NOW)
    assert verified.report_data == bound_to(bytes(64), IDENTITY.digest())
    assert verified.identity_digest == IDENTITY.digest()
    assert (verified.identity.platform, verified.identity.measurement) == ("tpm", IDENTITY.measurement)


def changed(report, **fields):
    return msgspec.json.encode(msgspec.structs.replace(msgspec.json.decode(report, type=TpmReport), **fields))


# -- what it makes is accepted --------------------------------------------------------------------------------------------


@needs_swtpm
def test_a_quote_says_what_the_machine_is_in(tpm):
    fresh = judged(attest(REPORT_DATA, tpm))
    assert fresh.debug  # nothing was measured
    tpm.extend(7, b"keys")
    claims = judged(attest(REPORT_DATA, tpm))
    assert not claims.debug
    assert claims.measured["sha256:7"] == extended(b"keys").hex()
    assert claims.more["pcrs"] == f"sha256:{','.join(map(str, PCRS))}"
    assert claims.report_data == REPORT_DATA
    assert claims.runtime != fresh.runtime
    assert judged(attest(bytes(64), tpm)).runtime == claims.runtime


@needs_swtpm
def test_the_key_is_the_same_each_time_and_another_on_each_machine(tpm, start):
    machines = {judged(attest(REPORT_DATA, each)).machine for each in (tpm, tpm, start())}
    assert len(machines) == 2


@needs_swtpm
def test_nothing_stays_loaded(tpm):
    for _ in range(8):  # it has room for three
        attest(REPORT_DATA, tpm)


@needs_swtpm
def test_the_event_log_goes_along(start):
    boot = [(0, b"firmware"), (4, b"loader")]
    tpm = start(spec_id() + b"".join(event(pcr, data) for pcr, data in boot))
    for pcr, data in [*boot, (10, b"a file")]:
        tpm.extend(pcr, data)
    more = judged(attest(REPORT_DATA, tpm)).more
    assert more["not_explained"] == "sha256:10"
    assert "sha256:4 " in more["explained_by_event_log"]


@needs_swtpm
def test_a_log_that_says_nothing_of_these_registers_stays_here(start):
    for log in (event(0, b"of SHA-1 only"), spec_id() + bytes(1 << 18)):
        assert msgspec.json.decode(attest(REPORT_DATA, start(log)), type=TpmReport).event_log == b""


# -- each part of it, tampered with ---------------------------------------------------------------------------------------


@needs_swtpm
def test_what_was_tampered_with_is_refused(tpm, start):
    tpm.extend(0, b"firmware")
    report = attest(REPORT_DATA, tpm)
    other_tpm = start()
    others = msgspec.json.decode(attest(REPORT_DATA, other_tpm), type=TpmReport)
    tpm.extend(4, b"another loader")
    later = msgspec.json.decode(attest(REPORT_DATA, tpm), type=TpmReport)
    for tampered in (
        changed(report, report_data=bytes(64)),
        changed(report, signature=later.signature),
        changed(report, quote=later.quote),
        changed(report, pcrs=later.pcrs),
        changed(report, key=others.key),
        changed(report, key=others.key, signature=others.signature),
        changed(report, event_log=spec_id() + event(0, b"other firmware")),
    ):
        with pytest.raises(NotGenuineError):
            judged(tampered)
    assert judged(report).machine != judged(msgspec.json.encode(others)).machine


# -- keys that a cloud provides -------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path):
    """A CA, and the collateral that trusts it."""
    found = Authority("cloud")
    folder = tmp_path / "roots"
    folder.mkdir()
    (folder / "root").write_bytes(found.certificate.public_bytes(Encoding.PEM))
    return found, read_folder(str(folder))


@needs_swtpm
def test_a_certified_key_at_a_handle_is_used(tpm, authority):
    ca, collateral = authority
    handle, public, certificate = certified(tpm, RSA_TEMPLATE, ca)
    tpm.keep(handle, AZURE.handle)
    tpm.ask(commands.flush_context(handle))
    tpm.write(AZURE.certificate, certificate + bytes(100))
    claims = judged(attest(REPORT_DATA, tpm), collateral)
    assert claims.machine == name_of(public)
    assert claims.tcb == "UpToDate"
    assert claims.more["key_certified_by"] == "cloud"


@needs_swtpm
@pytest.mark.parametrize(
    ("place", "template"), [(GOOGLE, commands.OWN_KEY), (GOOGLE_RSA, RSA_TEMPLATE)], ids=["ECC", "RSA"]
)
def test_a_certified_key_of_a_template_is_made_again(tpm, authority, place, template):
    ca, collateral = authority
    template = template.replace(
        struct.pack(">I", 0x00050472), struct.pack(">I", 0x00050072)
    )  # another key than adyton's
    handle, public, certificate = certified(tpm, template, ca)
    tpm.ask(commands.flush_context(handle))
    tpm.write(place.certificate, certificate)
    tpm.write(place.template, template)
    claims = judged(attest(REPORT_DATA, tpm), collateral)
    assert (claims.machine, claims.tcb) == (name_of(public), "UpToDate")


@needs_swtpm
def test_what_is_no_certificate_and_no_key_is_passed_over(tpm, authority):
    own = judged(attest(REPORT_DATA, tpm)).machine
    tpm.write(GOOGLE.certificate, b"something else", READABLE & ~(1 << 17 | 1 << 18) | 1 << 19)  # which nobody may read
    tpm.write(AZURE.certificate, certified(tpm, RSA_TEMPLATE, authority[0])[2])  # and there is no key at the handle
    assert judged(attest(REPORT_DATA, tpm)).machine == own


# -- what goes wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 32, 65])
def test_only_64_bytes_can_be_attested(size):
    with pytest.raises(LocalProtocolError):
        attest(bytes(size), None)


def test_a_machine_without_a_tpm_says_so(tmp_path):
    with pytest.raises(PlatformError, match="has this machine a TPM") as caught:
        Tpm.open(str(tmp_path / "none"))
    assert caught.value.exit_code == 31


def test_a_device_is_opened_and_closed_with_its_log(tmp_path):
    (tmp_path / "tpm").write_bytes(b"")
    (tmp_path / "log").write_bytes(spec_id())
    with Tpm.open(str(tmp_path / "tpm"), str(tmp_path / "log")) as tpm:
        assert tpm.event_log == spec_id()
    tpm.close()
    with pytest.raises(PlatformError):
        tpm.ask(commands.read_public(1))
    assert Tpm.open(str(tmp_path / "tpm"), str(tmp_path / "no log")).event_log == b""


@needs_swtpm
def test_what_the_tpm_refuses_is_told(tpm):
    with pytest.raises(TpmError, match=r"TPM2_Quote with TPM_RC 0x18b") as caught:
        tpm.ask(commands.quote(0x81000077, b"", PCRS))
    assert caught.value.response == 0x18B
    assert caught.value.exit_code == 31


def answered(body, code=0, size=None):
    return struct.pack(">HII", 0x8001, 10 + len(body) if size is None else size, code) + body


class Scripted:
    """A TPM that says what a test wants, through a socket; each command's answer comes in small pieces."""

    def __init__(self, answer):
        self._ours, self._theirs = socket.socketpair()
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.tpm = Tpm(self._ours.detach())

    def _serve(self):
        with self._theirs, contextlib.suppress(OSError):  # whoever asked may have had enough
            while command := self._theirs.recv(4096):
                answer = self._answer(*struct.unpack_from(">I", command, 6))
                for at in range(0, len(answer), 7):
                    self._theirs.sendall(answer[at : at + 7])
                if answer[2:6] != len(answer).to_bytes(4, "big"):
                    break  # it says no more

    def __enter__(self):
        return self.tpm

    def __exit__(self, *_):
        self.tpm.close()
        self._thread.join(20)


QUOTED = sized(quote()) + signature(quote())
GOOD = {
    commands.NV_READ_PUBLIC: answered(b"", code=0x18B),
    commands.CREATE_PRIMARY: answered(struct.pack(">II", 0x80000000, 0) + sized(public_area())),
    commands.QUOTE: answered(struct.pack(">I", len(QUOTED)) + QUOTED),
    commands.PCR_READ: answered(struct.pack(">III", 1, 0, 8) + sized(bytes(32)) * 8),
    commands.FLUSH_CONTEXT: answered(b""),
}


def test_registers_that_are_changed_all_the_time_are_given_up():
    asked = []

    def answer(code):
        asked.append(code)
        return GOOD[code]

    with Scripted(answer) as tpm, pytest.raises(PlatformError, match="PCRs of the TPM were changed"):
        attest(REPORT_DATA, tpm)
    assert asked.count(commands.QUOTE) == attester.ATTEMPTS
    assert asked[-1] == commands.FLUSH_CONTEXT


def test_registers_that_were_changed_meanwhile_are_quoted_again():
    values = iter([bytes(32), bytes(32)] + [hashlib.sha256(b"later").digest()] * 2)
    later = dict.fromkeys((("sha256", number) for number in PCRS), hashlib.sha256(b"later").digest())
    quoted = sized(quote(later)) + signature(quote(later))

    def answer(code):
        if code == commands.PCR_READ:
            return answered(struct.pack(">III", 1, 0, 8) + sized(next(values)) * 8)
        return answered(struct.pack(">I", len(quoted)) + quoted) if code == commands.QUOTE else GOOD[code]

    with Scripted(answer) as tpm:
        report = attest(REPORT_DATA, tpm)
    assert not judged(report).debug
    assert next(values, None) is None


def test_a_tpm_that_could_not_begin_is_asked_again():
    answers = [answered(b"", code=commands.RETRY)] * (attester.ATTEMPTS - 1) + [GOOD[commands.FLUSH_CONTEXT]]
    remaining = iter(answers)
    with Scripted(lambda _: next(remaining)) as tpm:
        tpm.ask(commands.flush_context(0x80000000))
    assert next(remaining, None) is None
    with Scripted(lambda _: answered(b"", code=commands.RETRY)) as tpm, pytest.raises(TpmError, match="0x922"):
        tpm.ask(commands.flush_context(0x80000000))


def test_threads_take_turns():
    with Scripted(GOOD.__getitem__) as tpm, ThreadPoolExecutor(8) as threads:
        areas = threads.map(lambda _: tpm.ask(commands.create_primary(commands.OWN_KEY))[1], range(40))
        assert set(areas) == {public_area()}


def test_a_tpm_without_the_bank_says_so():
    answers = {**GOOD, commands.PCR_READ: answered(struct.pack(">III", 1, 0, 0))}
    with Scripted(answers.__getitem__) as tpm, pytest.raises(PlatformError, match="no PCRs of SHA-256"):
        attest(REPORT_DATA, tpm)


@pytest.mark.parametrize(
    "answer",
    [
        b"\x80",
        answered(b"", size=100),
        answered(b"", size=0),
        answered(b"\0\0\0\1"),
        answered(struct.pack(">II", 1, 0) + sized(public_area())[:-1]),
        answered(bytes(5000)),
        answered(b"", code=0x902),
    ],
    ids=["cut", "less than it says", "a size of nothing", "no key", "a key that is cut", "too long", "refused"],
)
def test_a_tpm_that_answers_nonsense_is_told(answer):
    answers = {**GOOD, commands.CREATE_PRIMARY: answer}
    with Scripted(answers.__getitem__) as tpm, pytest.raises(PlatformError, match="TPM"):
        attest(REPORT_DATA, tpm)


@pytest.mark.parametrize("body", [b"", bytes(4), struct.pack(">I", 100), struct.pack(">I", 6) + sized(b"none") + b""])
def test_a_quote_that_is_none_is_told(body):
    answers = {**GOOD, commands.QUOTE: answered(body)}
    with Scripted(answers.__getitem__) as tpm, pytest.raises(PlatformError, match="TPM"):
        attest(REPORT_DATA, tpm)


# -- an independent implementation ----------------------------------------------------------------------------------------

needs_tools = pytest.mark.skipif(
    shutil.which("tpm2_checkquote") is None, reason="NO INDEPENDENT VERIFIER HERE: install tpm2-tools"
)


@needs_swtpm
@needs_tools
def test_tpm2_tools_agree(tpm, tmp_path):
    tpm.extend(0, b"firmware")
    report = msgspec.json.decode(attest(REPORT_DATA, tpm), type=TpmReport)
    key = parse_public(report.key).key

    files = {
        "key": key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "quote": report.quote,
        "signature": report.signature,
        "other": report.quote[:-1] + b"\0",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)

    def agrees(message):
        extra = hashlib.sha256(REPORT_DATA).hexdigest()
        command = ["tpm2_checkquote", "-u", "key", "-m", message, "-s", "signature", "-q", extra]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0

    assert agrees("quote")
    assert not agrees("other")
    raw = verify(report.quote + report.signature, read_blobs((files["key"],)), NOW)
    assert raw.runtime == judged(msgspec.json.encode(report)).runtime
    with pytest.raises((NotGenuineError, EvidenceMalformedError)):
        verify(files["other"] + report.signature, read_blobs((files["key"],)), NOW)
