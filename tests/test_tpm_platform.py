"""Loads on a server that proves by a TPM what its machine has started: the TPM is emulated; all else is real, from its device to the client's verdict."""

from __future__ import annotations

import datetime as dt
import json
from contextlib import ExitStack

import pytest
import tpms
from command import adyton as run
from cryptography.hazmat.primitives.serialization import Encoding
from fake_devices import TpmDevice, served
from hardware_server import needs_root, server
from swtpm import certified, emulated, needs_swtpm
from tpms import Authority

import adyton
from adyton.attestation.collateral import Collateral
from adyton.attestation.tpm import commands
from adyton.attestation.tpm.attest import DEVICE, PROVISIONED, attest
from adyton.attestation.tpm.verify import verify
from adyton.errors import EnclaveError, ExpectationError, NotGenuineError, TcbError
from adyton.loader import open_image

pytestmark = [pytest.mark.sandbox, needs_root, needs_swtpm]
PROGRAM = """
import adyton.trusted as trusted

def double(number: int) -> int:
    return 2 * number

def keep(data: bytes) -> bytes:
    return trusted.seal(data)

def give(sealed: bytes) -> bytes:
    return trusted.unseal(sealed)
"""
GOOGLE = PROVISIONED[1]
LONG = dt.timedelta(days=900)


@pytest.fixture(autouse=True)
def _today(monkeypatch):
    """Clients judge certificates by the time that it is."""
    monkeypatch.setattr(tpms, "NOW", dt.datetime.now(dt.UTC).replace(microsecond=0))


@pytest.fixture
def authority():
    return Authority("maker", until=tpms.NOW + LONG)


@pytest.fixture
def tpm(tmp_path):
    """A machine's, that has started something."""
    with emulated(tmp_path / "tpm") as tpm:
        tpm.extend(0, b"firmware")
        tpm.extend(4, b"loader")
        yield tpm


@pytest.fixture
def start(tpm):
    """Starts a server on that machine; another one ends it. Its URL."""
    with ExitStack() as stack:

        def start():
            stack.pop_all().close()
            places = {DEVICE: stack.enter_context(served(TpmDevice(tpm.exchange)))}
            return stack.enter_context(server(places, platform="tpm"))[1]

        yield start


@pytest.fixture
def program(workplace):
    path = workplace / "prog.py"
    path.write_text(PROGRAM)
    return str(path)


@pytest.fixture
def trusting(tmp_path, monkeypatch):
    """Makes a client's folder of collateral, in which these are."""

    def trusting(*documents):
        folder = tmp_path / "collateral"
        folder.mkdir(exist_ok=True)
        for number, document in enumerate(documents):
            (folder / str(number)).write_bytes(document.public_bytes(Encoding.PEM))
        monkeypatch.setenv("ADYTON_COLLATERAL", str(folder))
        return str(folder)

    return trusting


def expectation(tpm, program, **more):
    """A policy that pins what the machine has started, and the image."""
    runtime = verify(attest(bytes(64), tpm), Collateral(), tpms.NOW).runtime
    measurement = open_image(program).measurement
    return {"platforms": ["tpm"], "runtime": [runtime], "measurement": [measurement], "debug": True, **more}


def machine_of(tpm):
    return verify(attest(bytes(64), tpm), Collateral(), tpms.NOW).machine


def certify_in_the_tpm(tpm, authority):
    """As a cloud does: a template of its own key, and that key's certificate, in the TPM's memory."""
    template = commands.OWN_KEY.replace(bytes.fromhex("00050472"), bytes.fromhex("00050072"))
    handle, _, certificate = certified(tpm, template, authority, until=tpms.NOW + LONG)
    tpm.ask(commands.flush_context(handle))
    tpm.write(GOOGLE.certificate, certificate)
    tpm.write(GOOGLE.template, template)


def certificate_of_own_key(tpm, authority):
    from cryptography import x509

    handle, _, certificate = certified(tpm, commands.OWN_KEY, authority, until=tpms.NOW + LONG)
    tpm.ask(commands.flush_context(handle))
    return x509.load_der_x509_certificate(certificate)


def load(program, url, expect):
    return adyton.load(program, on=url, platform="tpm", expect=expect)


def test_an_enclave_is_accepted_for_what_its_machine_started_by_a_key_that_a_ca_certifies(
    start, program, tpm, authority, trusting
):
    certify_in_the_tpm(tpm, authority)
    trusting(authority.certificate)
    expect = expectation(tpm, program)
    with load(program, start(), expect) as enclave:
        assert enclave.call("double", 21) == 42
        identity = enclave.identity
        assert (identity.platform, identity.runtime) == ("tpm", expect["runtime"][0])
        assert identity.machine == machine_of(tpm)
        assert (identity.vouchers["runtime"], identity.vouchers["measurement"]) == ("hardware", "runtime")


def test_the_keys_certificate_may_be_the_clients(start, program, tpm, authority, trusting):
    trusting(authority.certificate, certificate_of_own_key(tpm, authority))
    with load(program, start(), expectation(tpm, program)) as enclave:
        assert enclave.call("double", 21) == 42


def test_the_policy_may_name_the_machine_in_place_of_a_ca(start, program, tpm):
    expect = expectation(tpm, program, machines=[machine_of(tpm)], tcb=["Unknown"])
    with load(program, start(), expect) as enclave:
        assert enclave.call("double", 21) == 42


def test_a_machine_that_has_started_something_else_is_refused(start, program, tpm, authority, trusting):
    certify_in_the_tpm(tpm, authority)
    trusting(authority.certificate)
    expect, url = expectation(tpm, program), start()
    tpm.extend(4, b"another loader")
    with pytest.raises(ExpectationError, match=f"runtime: expected {expect['runtime'][0]}, got sha256:"):
        load(program, url, expect)
    with load(program, url, expectation(tpm, program)) as enclave:
        assert enclave.call("double", 21) == 42


def test_another_image_is_refused(start, program, tpm, authority, trusting):
    certify_in_the_tpm(tpm, authority)
    trusting(authority.certificate)
    with pytest.raises(ExpectationError, match="measurement"):
        load(program, start(), expectation(tpm, program, measurement=["sha256:" + "0" * 64]))


@pytest.mark.parametrize("folder", ["of another CA", "without a root", "none"])
def test_a_key_of_a_ca_that_the_client_does_not_know_is_refused_with_what_to_do(
    start, program, tpm, authority, trusting, folder
):
    certify_in_the_tpm(tpm, authority)
    if folder != "none":
        trusting(*[Authority("another", until=tpms.NOW + LONG).certificate] if folder == "of another CA" else [])
    with pytest.raises(NotGenuineError) as caught:
        load(program, start(), expectation(tpm, program))
    said = str(caught.value)
    assert f"got the key of {machine_of(tpm)}, which nobody vouches for" in said
    assert "If a CA certifies the keys of such machines' TPMs, put its root" in said
    assert "ADYTON_COLLATERAL" in said


def test_a_certificate_that_was_revoked_is_refused(start, program, tpm, authority, trusting):
    certificate = certificate_of_own_key(tpm, authority)
    trusting(authority.certificate, certificate, authority.revoking(certificate))
    with pytest.raises(TcbError, match="revocation of the certificate"):
        load(program, start(), expectation(tpm, program))


def test_the_command_line_does_the_same_with_its_exit_codes(start, program, tpm, authority, trusting, tmp_path):
    certify_in_the_tpm(tpm, authority)
    url = start()

    def called(**expect):
        policy = tmp_path / "policy.toml"
        policy.write_text("[expect]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in expect.items()))
        return run("call", program, "double", "21", "--on", url, "--platform", "tpm", "--policy", str(policy))

    expect = expectation(tpm, program)
    unknown = called(**expect)
    assert unknown.returncode == NotGenuineError.exit_code
    assert "ADYTON_COLLATERAL" in unknown.stderr
    trusting(authority.certificate)
    done = called(**expect)
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
    other = called(**{**expect, "runtime": ["sha256:" + "0" * 64]})
    assert other.returncode == ExpectationError.exit_code
    assert "runtime" in other.stderr


def test_a_running_enclave_can_be_asked_for_evidence_that_its_file_is_verified_by(
    start, program, tpm, authority, trusting, tmp_path
):
    certify_in_the_tpm(tpm, authority)
    folder, url, expect = trusting(authority.certificate), start(), expectation(tpm, program)
    policy, evidence = tmp_path / "policy.toml", tmp_path / "evidence.json"
    policy.write_text("[expect]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in expect.items()))
    with load(program, url, expect) as enclave:
        done = run("attest", enclave.enclave_id, "--on", url, "-o", str(evidence))
        assert (done.returncode, done.stderr) == (0, "")
        assert enclave.call("double", 21) == 42
    verified = run("verify", str(evidence), "--policy", str(policy), "--collateral", folder, "--json")
    found = json.loads(verified.stdout)
    assert (verified.returncode, found["ok"], found["binding"], found["platform"]) == (0, True, "ok", "tpm")
    assert (found["tcb"], found["identity"]["measurement"]) == ("UpToDate", expect["measurement"][0])
    (tmp_path / "empty").mkdir()
    refused = run("verify", str(evidence), "--policy", str(policy), "--collateral", str(tmp_path / "empty"))
    assert refused.returncode == NotGenuineError.exit_code


def test_what_was_sealed_opens_while_the_machine_starts_the_same(start, program, tpm, authority, trusting):
    certify_in_the_tpm(tpm, authority)
    trusting(authority.certificate)
    with load(program, start(), expectation(tpm, program)) as enclave:
        sealed = enclave.call("keep", b"the state")
    with load(program, start(), expectation(tpm, program)) as enclave:
        assert enclave.call("give", sealed) == b"the state"
    tpm.extend(9, b"another kernel")
    with load(program, start(), expectation(tpm, program)) as enclave:
        with pytest.raises(EnclaveError, match="sealed when PCRs 0 to 15 had the digest"):
            enclave.call("give", sealed)
        assert enclave.call("give", enclave.call("keep", b"new")) == b"new"
