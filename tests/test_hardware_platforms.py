"""Loads on a server whose enclaves a chip vouches for: everything but the chip is real, from configfs to the client's verdict."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from command import adyton as run
from cryptography.hazmat.primitives.serialization import Encoding
from fake_amd import MEASUREMENT, Amd
from fake_tsm import Tsm, served
from hardware_server import CONFIGFS, needs_root, run_there, server
from parties import descendants, gone

import adyton
from adyton.attestation.claims import digest_of_measured
from adyton.attestation.sev_snp import verify as sev_snp
from adyton.errors import AdytonError, BindingError, ExpectationError, NotFoundError, NotGenuineError, PlatformError

pytestmark = [pytest.mark.sandbox, needs_root]
RUNTIME = digest_of_measured("sev-snp", {"measurement": MEASUREMENT})
EXPECT = {"platforms": ["sev-snp"], "runtime": [RUNTIME], "debug": True}
SHORT_GRACE = (
    "--grace",
    "2",
)  # for as long does an enclave that its client has refused wait for it, and its server for that, at its end
PROGRAM = """
import os

def double(number: int) -> int:
    return 2 * number

def descriptors() -> list[str]:
    return sorted(os.readlink(f"/proc/self/fd/{each}").partition(":")[0] for each in os.listdir("/proc/self/fd")[:-1])

def keep(data: bytes) -> None:
    with open("/sealed/kept", "wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
"""


@pytest.fixture(scope="module")
def amd() -> Amd:
    return Amd()


@pytest.fixture(autouse=True)
def _trusts_the_stand_in(amd, monkeypatch):
    monkeypatch.setattr(sev_snp, "roots", lambda: amd.roots)


def chip_of(amd: Amd) -> Tsm:
    return Tsm("sev_guest", lambda data: (amd.report(data), amd.table), has_aux=True)


@pytest.fixture
def tsm(amd) -> Tsm:
    return chip_of(amd)


@pytest.fixture
def place(tsm):
    """Starts the server."""
    with ExitStack() as stack:
        folder = stack.enter_context(served(tsm))
        yield lambda *arguments, **options: stack.enter_context(server({CONFIGFS: folder}, *arguments, **options))


@pytest.fixture(scope="module")
def shared(amd):
    """The URL of a server, for tests that change nothing of its chip."""
    with served(chip_of(amd)) as folder, server({CONFIGFS: folder}, *SHORT_GRACE) as (_, url):
        yield url


@pytest.fixture
def program(workplace):
    path = workplace / "prog.py"
    path.write_text(PROGRAM)
    return str(path)


def load(program, url, **options):
    return adyton.load(program, on=url, **{"expect": EXPECT, **options})


def test_an_enclave_is_accepted_for_what_the_chip_measured(place, program, tsm):
    _, url = place()
    with load(program, url) as enclave:
        assert enclave.call("double", 21) == 42
        identity = enclave.identity
        assert (identity.platform, identity.runtime, identity.machine) == ("sev-snp", RUNTIME, bytes(range(64)).hex())
        assert identity.vouchers["runtime"] == "hardware"
        assert identity.vouchers["measurement"] == "runtime"
    assert tsm.items == {}
    assert len(set(tsm.asked)) == len(tsm.asked) == 2  # one when the platform was tried, one for the load


def test_what_it_is_bound_to_is_what_the_chip_signed(place, program, tsm):
    """A report over anything else is refused: here the chip signs what another connection asked for."""
    _, url = place()
    made = tsm.make
    tsm.make = lambda data: made(bytes(64) if tsm.asked[1:] else data)
    with pytest.raises(BindingError, match="report_data"):
        load(program, url)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"runtime": ["sha256:" + "0" * 64]}, "runtime"),
        ({"runtime": []}, "runtime: expected a reference value"),
        ({"debug": False}, "debug"),
        ({"platforms": ["tdx"]}, "platform"),
        ({"measurement": ["sha256:" + "0" * 64]}, "measurement"),
        ({"machines": ["00"]}, "machine"),
    ],
)
def test_each_wrong_expectation_is_refused(shared, program, change, field):
    with pytest.raises(ExpectationError, match=field):
        load(program, shared, expect={**EXPECT, **change})


def test_evidence_of_a_chip_whose_maker_is_not_amd_is_refused(shared, program, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(NotGenuineError):
        load(program, shared)


@pytest.mark.parametrize("platform", ["auto", "sev-snp"])
def test_the_platform_that_the_server_has_can_be_named_or_left_to_it(place, program, platform):
    _, url = place(platform="auto")
    with load(program, url, platform=platform) as enclave:
        assert enclave.identity.platform == "sev-snp"


@pytest.mark.parametrize("platform", ["sim", "tdx", "tpm"])
def test_another_platform_is_refused_and_nothing_takes_its_place(shared, program, platform):
    with pytest.raises(PlatformError, match=f"platform {platform} is not to be had on this server; it has: sev-snp"):
        load(program, shared, platform=platform)


def test_a_server_does_not_start_on_a_platform_that_gives_no_reports(place, tsm):
    tsm.provider = "tdx_guest"
    with pytest.raises(AssertionError, match=r"this is not an AMD SEV-SNP guest: there is no /dev/sev-guest"):
        place()


def test_reports_that_take_their_time_hold_up_nobody_else(place, program, tsm):
    _, url = place()
    slow, asked, made, loaded = threading.Event(), threading.Event(), tsm.make, []
    with load(program, url) as first:

        def make(data):
            asked.set()
            assert slow.wait(60)
            return made(data)

        tsm.make = make
        thread = threading.Thread(target=lambda: loaded.append(load(program, url)))
        thread.start()
        assert asked.wait(60)
        for _ in range(20):
            assert first.call("double", 3) == 6
        assert not thread.join(4)  # longer than a silent server would be borne
        assert not loaded
        assert first.call("double", 4) == 8
        slow.set()
        thread.join()
    with loaded[0] as second:
        assert second.call("double", 5) == 10


def test_a_load_whose_platform_fails_meanwhile_ends_soon_and_the_server_says_why(place, program, tsm):
    process, url = place(*SHORT_GRACE)
    with load(program, url) as first:

        def make(_data):
            raise OSError(errno.EIO, "")

        made, tsm.make = tsm.make, make
        with pytest.raises(AdytonError):
            load(program, url)
        assert "no evidence for an enclave: sev_guest gave no report: Input/output error" in process.stderr.readline()
        tsm.make = made
        with load(program, url) as second:
            assert second.call("double", first.call("double", 1)) == 4


def test_an_attester_that_was_killed_is_started_again_for_the_next_load(place, program):
    process, url = place()
    with load(program, url) as first:
        (attester,) = (pid for pid, said in descendants(process.pid).items() if said == "adyton-attest")
        os.kill(attester, signal.SIGKILL)
        assert not gone({attester})
        with load(program, url) as second:
            assert second.call("double", first.call("double", 1)) == 4


def test_a_lost_connection_is_made_again_with_new_evidence(place, program, tsm):
    _, url = place()
    with load(program, url) as enclave:
        before = len(tsm.asked)
        enclave._core.proxy._line._transport.hang_up()
        assert enclave.call("double", 21) == 42
        assert len(tsm.asked) == before + 1


def test_a_server_gives_an_enclave_its_place_for_sealed_files_beside_the_way_to_ask_the_chip(
    place, program, tmp_path, capfd
):
    """This chip signs, and has no keys: nothing is kept."""
    _, url = place("--sealed-directory", str(tmp_path / "sealed"))
    with load(program, url) as enclave:
        assert enclave.identity.platform == "sev-snp"
        with pytest.raises(FileNotFoundError):
            enclave.call("keep", b"data")
        assert enclave.call("double", 21) == 42
    assert capfd.readouterr().err.count("adyton: nothing can be sealed here") == 1
    (container,) = (tmp_path / "sealed").glob("sha256-*/container")
    assert container.read_bytes() == b""


def test_sealed_files_of_the_client_where_the_platform_has_no_keys_are_refused_at_load(shared, program, tmp_path):
    with pytest.raises(PlatformError, match="nothing can be sealed here") as caught:
        load(program, shared, sealed=tmp_path / "sealed")
    assert caught.value.exit_code == 31
    assert "adyton broker" in caught.value.message


def test_the_program_has_nothing_with_which_it_could_ask_for_a_report(shared, program, on_the_server):
    with load(program, shared) as hardware, adyton.load(program) as simulated:
        assert hardware.call("descriptors") == simulated.call("descriptors")


def test_nothing_is_left_of_a_server_that_ended(place, program, tsm):
    process, url = place()
    with load(program, url):
        pids = set(descendants(process.pid))
        assert pids
    process.terminate()
    assert process.wait(60) == 0
    assert not gone(pids)
    assert tsm.items == {}


def test_a_local_load_can_name_only_what_is_here(program):
    with pytest.raises(PlatformError, match="this is not an Intel TDX guest"):
        adyton.load(program, platform="tdx")


LOCALLY = """
import sys
from cryptography import x509
import adyton
from adyton.attestation.sev_snp import verify

program, certificates, platform, runtime = sys.argv[1:]
verify.roots = lambda: {"Milan": tuple(x509.load_pem_x509_certificates(open(certificates, "rb").read()))}
expect = {"runtime": [runtime]} if runtime else {}
with adyton.load(program, platform=platform, expect={"debug": True, **expect}) as enclave:
    print(enclave.identity.platform, enclave.call("double", 21))
"""


@pytest.mark.parametrize(
    ("platform", "runtime", "said"),
    [
        ("sev-snp", RUNTIME, "sev-snp 42"),
        ("auto", RUNTIME, "sev-snp 42"),
        ("auto", "", "sim 42"),  # without a reference value, hardware could only be refused
        ("sim", "", "sim 42"),
    ],
)
def test_a_local_load_goes_to_the_hardware_that_is_here_if_the_policy_can_judge_it(
    tsm, amd, program, tmp_path, platform, runtime, said
):
    certificates = tmp_path / "amd.pem"
    certificates.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in amd.roots["Milan"]))
    with served(tsm) as folder:
        done = run_there({CONFIGFS: folder}, LOCALLY, program, str(certificates), platform, runtime)
    assert done.stdout == f"{said}\n", done.stderr
    assert ("NOT CONFIDENTIAL" in done.stderr) == (said == "sim 42")


# -- adyton attest ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def policy(tmp_path):
    def policy(**expect):
        path = tmp_path / "policy.toml"
        path.write_text("[expect]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in expect.items()))
        return str(path)

    return policy


def attested(url, enclave, *more):
    return run("attest", enclave, "--on", url, *more)


def test_evidence_of_a_running_enclave_is_fresh_and_bound_and_can_be_verified_from_its_file(
    place, program, policy, tmp_path, amd, monkeypatch
):
    from click.testing import CliRunner

    from adyton.cli.verify import command

    _, url = place()
    with load(program, url) as enclave:
        files = [str(tmp_path / name) for name in "ab"]
        for file in files:
            done = attested(url, enclave.enclave_id, "-o", file)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        first, second = (json.loads(Path(file).read_text()) for file in files)
        assert first["bound"]["nonce"] != second["bound"]["nonce"]
        assert first["body"]["report"] != second["body"]["report"]
        assert enclave.call("double", 1) == 2  # it has noticed nothing
        wanted = policy(**{**EXPECT, "measurement": [enclave.identity.measurement]})
    result = CliRunner().invoke(command, [files[0], "--policy", wanted, "--json"])
    found = json.loads(result.output)
    assert (found["ok"], found["binding"], found["platform"]) == (True, "ok", "sev-snp")
    first["bound"] = second["bound"]
    (tmp_path / "mixed").write_text(json.dumps(first))
    result = CliRunner().invoke(command, [str(tmp_path / "mixed"), "--policy", wanted, "--json"])
    assert result.exit_code == BindingError.exit_code


def test_an_enclave_that_was_asked_before_its_client_came_is_still_its_clients(server_of_simulations, program):
    """Its ID is told to its loader alone, so this is its own doing."""
    from adyton.image.oci import Image
    from adyton.loader import open_image
    from adyton.provision.client import RemoteProvision
    from adyton.remote.evidence_query import evidence_of

    url = server_of_simulations
    image = open_image(program)
    assert isinstance(image, Image)
    provision = RemoteProvision.instantiate(url)
    transport = provision.provision(image, "auto")
    evidence_of(provision.find(transport.enclave_id), 60)
    evidence_of(transport, 60)  # nobody has ended it


@pytest.fixture
def server_of_simulations(server_url):
    return server_url


@pytest.fixture
def server_url(request):
    return request.getfixturevalue("server")


def test_evidence_of_a_simulated_enclave_is_of_the_same_form_and_says_what_it_is(program, policy, tmp_path, server_url):
    with adyton.load(program, on=server_url, allow_sim=True) as enclave:
        done = attested(server_url, enclave.enclave_id)
        wanted = policy(platforms=["sim"], debug=True, measurement=[enclave.identity.measurement])
    assert done.returncode == 0
    (tmp_path / "evidence").write_text(done.stdout)
    verified = run("verify", str(tmp_path / "evidence"), "--policy", wanted, "--json")
    found = json.loads(verified.stdout)
    assert (found["ok"], found["binding"], found["platform"]) == (True, "ok", "sim")
    assert found["failures"] == []


def test_an_enclave_that_has_ended_or_never_was_is_not_found(program, server_url):
    with adyton.load(program, on=server_url, allow_sim=True) as enclave:
        name = enclave.enclave_id
    for each in (name, "0" * 16, ""):
        done = attested(server_url, each)
        assert done.returncode == NotFoundError.exit_code
        assert "has no enclave" in done.stderr


def test_call_says_by_what_name_the_server_knows_the_enclave(program, server_url):
    done = run("call", "-v", program, "double", "2", "--on", server_url, "--allow-sim")
    assert done.stdout == "4\n"
    assert "the enclave is " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["0" * 16], 2, "--on is missing"),
        (["0" * 16, "--on", "grpc://127.0.0.1:1"], 10, "127.0.0.1:1"),
        ([], 2, "Missing argument"),
    ],
)
def test_a_wrong_use_says_what_is_wrong(arguments, code, said):
    done: subprocess.CompletedProcess[str] = run("attest", *arguments)
    assert done.returncode == code
    assert said in done.stderr
