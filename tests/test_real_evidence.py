"""Evidence that real machines have made: accepted at its own time under the right policy, and refused for whatever is wrong with it."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import urllib.parse
from pathlib import Path

import pytest
from command import adyton
from thorough import part_of
from vectors import FOLDER, VECTORS, Vector, needs_vectors

from adyton.attestation.acl import AllOf, Not
from adyton.attestation.collateral import Collateral, read_blobs, read_folder
from adyton.attestation.expectation import Expectation
from adyton.attestation.judge import judge
from adyton.attestation.verify import verify
from adyton.errors import AttestationError, CollateralMissingError, EvidenceMalformedError, NotGenuineError, UsageError

pytestmark = needs_vectors
NOW = dt.datetime(2026, 11, 27, tzinfo=dt.UTC)
each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)


def collateral_of(vector: Vector) -> Collateral:
    return Collateral() if vector.collateral is None else read_blobs(((FOLDER / vector.collateral).read_bytes(),))


def right_policy(vector: Vector, **changes) -> Expectation:
    verified = verify(vector.evidence, collateral_of(vector), vector.at)
    wanted = {"platforms": [vector.platform], "runtime": [verified.identity.runtime], "tcb": [vector.tcb]}
    return Expectation(**{**wanted, **changes})


@each_vector
def test_it_says_what_the_machine_measured(vector):
    verified = verify(vector.evidence, collateral_of(vector), vector.at)
    assert verified.identity.platform == vector.platform
    assert verified.identity.machine == vector.machine
    assert verified.identity.runtime == (vector.runtime or verified.identity.runtime)
    assert verified.tcb == vector.tcb
    assert not verified.identity.debug
    assert verified.identity.vouchers["runtime"] == "hardware"
    assert verified.identity.vouchers["measurement"] == "nobody"


@each_vector
def test_it_is_accepted_at_its_own_time_and_refused_now(vector):
    policy, collateral = right_policy(vector), collateral_of(vector)
    assert judge(vector.evidence, policy, collateral, vector.at).ok
    refused = judge(vector.evidence, policy, collateral, NOW)
    assert {failure.stage for failure in refused.failures} == {
        {"sgx": "collateral", "tdx": "collateral", "sev-snp": "tcb", "nitro": "genuine"}[vector.platform]
    }


@each_vector
@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("platform", {"platforms": ["sim"]}),
        ("measurement", {"measurement": ["sha256:" + "1" * 64]}),
        ("signer", {"signer": ["sha256:" + "1" * 64], "product_id": 0}),
        ("product_id", {"product_id": 7}),
        ("security_version", {"min_version": 1}),
        ("runtime", {"runtime": ["sha256:" + "1" * 64]}),
        ("machine", {"machines": ["another"]}),
        ("tcb", {"tcb": ["Revoked"]}),
    ],
)
def test_each_wrong_policy_refuses_it(vector, field, change):
    judged = judge(vector.evidence, right_policy(vector, **change), collateral_of(vector), vector.at)
    assert [failure.field for failure in judged.failures] == [field]


@each_vector
def test_raw_evidence_may_be_judged_without_what_runs_there(vector, policy):
    anything = right_policy(vector, runtime=[])
    assert judge(vector.evidence, anything, collateral_of(vector), vector.at).ok
    path = policy(vector, "sha256:" + "1" * 64)
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("runtime")))
    told = run(vector, path)
    assert told.returncode == 0
    assert "runtime: not checked: [expect] names none, so whatever runs on such hardware is accepted" in told.stdout


@each_vector
@pytest.mark.parametrize("expectation", [Expectation(), Expectation(runtime=["sha256:" + "1" * 64])])
def test_a_policy_that_names_too_little_is_an_error(vector, expectation):
    with pytest.raises(UsageError, match="platforms is empty"):
        judge(vector.evidence, expectation, collateral_of(vector), vector.at)


@each_vector
def test_no_byte_of_what_is_signed_may_change(vector):
    data, collateral = vector.evidence, collateral_of(vector)
    for at in part_of(range(*vector.signed(data).indices(len(data))), 7):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises((EvidenceMalformedError, NotGenuineError, CollateralMissingError)):
            verify(bytes(changed), collateral, vector.at)


@each_vector
def test_nothing_may_be_missing_or_added(vector):
    data, collateral = vector.evidence.rstrip(b"\0"), collateral_of(vector)
    for size in (0, 1, len(data) // 2, len(data) - 1):
        with pytest.raises(AttestationError):
            verify(data[:size], collateral, vector.at)
    with pytest.raises(AttestationError):
        verify(vector.evidence + b"x", collateral, vector.at)
    if vector.platform != "tdx":  # of which a kernel's buffer has zeros behind it
        with pytest.raises(AttestationError):
            verify(vector.evidence + b"\0", collateral, vector.at)


@each_vector
def test_report_data_is_compared_as_a_whole(vector):
    policy, collateral = right_policy(vector), collateral_of(vector)
    own = verify(vector.evidence, collateral, vector.at).report_data
    if own:
        assert judge(vector.evidence, policy, collateral, vector.at, own).binding == "ok"
    for other in (b"", bytes(64), b"\1" * 64, own[:-1], own + b"\0"):
        judged = judge(vector.evidence, policy, collateral, vector.at, other)
        assert other == own or {failure.stage for failure in judged.failures} == {"binding"}


@pytest.mark.parametrize("vector", [each for each in VECTORS if each.collateral], ids=lambda vector: vector.name)
def test_without_collateral_nobody_can_say(vector):
    with pytest.raises(CollateralMissingError):
        verify(vector.evidence, Collateral(), vector.at)


@pytest.mark.parametrize(
    "vector", [each for each in VECTORS if each.platform in ("sgx", "tdx")], ids=lambda each: each.name
)
def test_what_a_pccs_answers_is_collateral_file_by_file(vector, tmp_path):
    together = json.loads((FOLDER / vector.collateral).read_text())
    tcb, identity = together["tcb_info"], together["qe_identity"]
    files = {
        "tcb": f'{{"tcbInfo":{tcb},"signature":"{together["tcb_info_signature"]}"}}',
        "qe": f'{{"enclaveIdentity":{identity},"signature":"{together["qe_identity_signature"]}"}}',
        "signers.pem": together["tcb_info_issuer_chain"],
        "authorities.pem": together["pck_crl_issuer_chain"],
        "root.crl": bytes.fromhex(together["root_ca_crl"]),
        "pck.hex": together["pck_crl"],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert judge(vector.evidence, right_policy(vector), read_folder(str(tmp_path)), vector.at).ok
    for name in ("tcb", "qe", "signers.pem", "root.crl", "pck.hex"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        with pytest.raises(CollateralMissingError):
            verify(vector.evidence, read_folder(str(tmp_path)), vector.at)
        (tmp_path / name).write_bytes(content)


@pytest.mark.parametrize(
    "vector", [each for each in VECTORS if each.platform in ("sgx", "tdx")], ids=lambda each: each.name
)
def test_what_intels_library_keeps_and_headers_of_pcs_are_collateral(vector, tmp_path):
    together = json.loads((FOLDER / vector.collateral).read_text())
    kept = {
        "tcb_info": f'{{"tcbInfo":{together["tcb_info"]},"signature":"{together["tcb_info_signature"]}"}}',
        "qe_identity": f'{{"enclaveIdentity":{together["qe_identity"]},"signature":"{together["qe_identity_signature"]}"}}',
        "root_ca_crl": together["root_ca_crl"],
        "pck_crl": together["pck_crl"],
        "version": 3,
    }
    (tmp_path / "kept.json").write_text(json.dumps(kept))
    (tmp_path / "signers").write_text(urllib.parse.quote(together["tcb_info_issuer_chain"]))
    assert judge(vector.evidence, right_policy(vector), read_folder(str(tmp_path)), vector.at).ok
    (tmp_path / "kept.json").write_text(
        json.dumps({**kept, "tcb_info": kept["tcb_info"].replace('"tcbStatus"', '"tcbStatuz"')})
    )
    with pytest.raises(CollateralMissingError):
        verify(vector.evidence, read_folder(str(tmp_path)), vector.at)


def test_another_chips_certificate_is_refused():
    (vector,) = (each for each in VECTORS if each.platform == "sev-snp")
    other = read_blobs(((FOLDER / "snp-virtee-sev/tests/certs_data/vcek_turin.der").read_bytes(),))
    with pytest.raises(NotGenuineError, match="signature of the report"):
        verify(vector.evidence, other, vector.at)


def test_a_nitro_enclave_is_on_its_instance():
    (vector,) = (each for each in VECTORS if each.platform == "nitro")
    instance = vector.machine.partition("-enc")[0]
    for machine in (instance, vector.machine):
        named = right_policy(vector, machines=[machine])
        assert judge(vector.evidence, named, Collateral(), vector.at).ok
        assert judge(
            vector.evidence, AllOf(named, Not(Expectation(machines=[machine]))), Collateral(), vector.at
        ).failures
    others = right_policy(vector, machines=[instance[:-1], f"{instance}-enc", "i"])
    assert [each.field for each in judge(vector.evidence, others, Collateral(), vector.at).failures] == ["machine"]


REGISTERS = {"tdx": "mrtd", "sev-snp": "measurement", "nitro": "pcr0"}


@pytest.mark.parametrize("vector", [each for each in VECTORS if each.platform != "sgx"], ids=lambda vector: vector.name)
def test_a_policy_may_name_the_register_that_vendors_tools_show(vector):
    collateral = collateral_of(vector)
    register = verify(vector.evidence, collateral, vector.at).measured[REGISTERS[vector.platform]]
    named = right_policy(vector, runtime=["sha384:" + "1" * 96, f"sha384:{register}"])
    assert judge(vector.evidence, named, collateral, vector.at).ok
    other = right_policy(vector, runtime=[f"sha384:{register[:-1]}{'1' if register[-1] == '0' else '0'}"])
    assert [each.field for each in judge(vector.evidence, other, collateral, vector.at).failures] == ["runtime"]


def test_zeros_bind_evidence_to_nothing():
    document = (FOLDER / "nitro-evervault/test-data/beta/valid-attestation-doc-bytes").read_bytes()
    (vector,) = (each for each in VECTORS if each.platform == "nitro")
    for zeros in (b"", bytes(64)):
        judged = judge(document, right_policy(vector), Collateral(), vector.at, zeros)
        assert [(each.field, each.expected) for each in judged.failures] == [
            ("report_data", "some that is not all zeros")
        ]


def test_what_is_no_evidence_is_told_what_would_be():
    for text in (b"", b"root:x:0:0", bytes(300), b"\x30\x82\x01"):
        with pytest.raises(EvidenceMalformedError, match=r"expected adyton.s .JSON., a DCAP quote, an SNP report"):
            verify(text)


def test_zero_pcrs_are_debug():
    document = (FOLDER / "nitro-evervault/test-data/beta/debug-mode-attestation-doc-bytes").read_bytes()
    at = dt.datetime(2022, 10, 12, 14, tzinfo=dt.UTC)
    verified = verify(document, at=at)
    assert verified.identity.debug
    policy = Expectation(platforms=["nitro"], runtime=[verified.identity.runtime])
    assert [failure.field for failure in judge(document, policy, Collateral(), at).failures] == ["debug"]
    policy = Expectation(platforms=["nitro"], runtime=[verified.identity.runtime], debug=True)
    assert judge(document, policy, Collateral(), at).ok


def test_an_outdated_tcb_is_refused():
    folder = FOLDER / "sgx-tdx-dcap-qvl/sample"
    collateral = read_blobs(((folder / "tdx_quote_outdated_collateral.json").read_bytes(),))
    judged = judge(
        (folder / "tdx_quote_outdated").read_bytes(),
        Expectation(platforms=["tdx"], runtime=["sha256:" + "1" * 64]),
        collateral,
        dt.datetime(2026, 2, 19, tzinfo=dt.UTC),
    )
    assert {failure.stage for failure in judged.failures} == {"tcb"}


@pytest.mark.parametrize("text", ["2025", "2025-06", "yesterday", "", "1969-12-31", "0001-01-01", "9" * 21, "-1"])
def test_the_command_takes_no_time_for_another(text, tmp_path):
    (tmp_path / "policy.toml").write_text('[expect]\nplatforms = ["sgx"]\n')
    evidence = str(FOLDER / "sgx-tdx-dcap-qvl/sample/sgx_quote")
    refused = adyton("verify", evidence, "--policy", str(tmp_path / "policy.toml"), f"--at={text}")
    assert refused.returncode == 2
    assert f"{text!r} is no time since 1970: write 2025-06-20" in refused.stderr


# -- the command ----------------------------------------------------------------------------------------------------------


def run(vector: Vector, policy: Path, *options: str) -> subprocess.CompletedProcess[str]:
    collateral = () if vector.collateral is None else ("--collateral", str(policy.parent / "collateral"))
    at = f"{vector.at:%Y-%m-%dT%H:%M:%SZ}"
    return adyton("verify", str(FOLDER / vector.file), "--policy", str(policy), *collateral, "--at", at, *options)


@pytest.fixture
def policy(tmp_path):
    """Of a vector: a file with a policy, beside a folder with all collateral that there is."""
    (tmp_path / "collateral").mkdir()
    for each in VECTORS:
        if each.collateral:
            (tmp_path / "collateral" / each.name).write_bytes((FOLDER / each.collateral).read_bytes())

    def written(vector: Vector, runtime: str) -> Path:
        path = tmp_path / f"{vector.name}.toml"
        path.write_text(
            f'[expect]\nplatforms = ["{vector.platform}"]\nruntime = ["{runtime}"]\ntcb = ["{vector.tcb}"]\n'
        )
        return path

    return written


@each_vector
def test_the_command_accepts_and_refuses(vector, policy):
    refused = run(vector, policy(vector, "sha256:" + "1" * 64), "--json")
    assert refused.returncode == 24, refused.stderr
    told = json.loads(refused.stdout)
    assert not told["ok"]
    assert [(failure["stage"], failure["field"]) for failure in told["failures"]] == [("expectation", "runtime")]
    accepted = run(vector, policy(vector, told["identity"]["runtime"]), "-v")
    assert accepted.returncode == 0, accepted.stdout
    assert accepted.stdout.endswith("accepted\n")
    assert vector.machine in accepted.stdout
    assert f"  [expect] tcb: {vector.tcb}: holds\n" in accepted.stdout
    assert f"  [expect] platform: {vector.platform}: holds\n" in accepted.stdout
    explained = run(vector, policy(vector, "sha256:" + "1" * 64), "-v").stdout
    assert f"  [expect] runtime: sha256:{'1' * 64}: DOES NOT HOLD, got {told['identity']['runtime']}\n" in explained
    assert "REFUSED. If this is a machine that you trust, name what it measured in runtime of [expect]" in explained
