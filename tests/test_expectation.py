"""An expectation says exactly what it accepts, and all that is wrong at once."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.attestation.evidence import REPORT_DATA_SIZE
from adyton.attestation.expectation import Expectation
from adyton.attestation.findings import Failure
from adyton.attestation.identity import PLATFORMS, EnclaveIdentity
from adyton.attestation.verify import Verified, validate
from adyton.errors import AttestationError, BindingError, ExpectationError, LocalProtocolError, TcbError, UsageError

IMAGE = "sha256:" + "1" * 64
OTHER = "sha256:" + "2" * 64
SIGNER = "sha256:" + "3" * 64
RUNTIME = "sha256:" + "4" * 64
BOUND = bytes(range(REPORT_DATA_SIZE))

SIM = EnclaveIdentity("sim", IMAGE, SIGNER, 7, 3, debug=False, runtime="", machine="")
HARDWARE = EnclaveIdentity("tdx", IMAGE, SIGNER, 7, 3, debug=False, runtime=RUNTIME, machine="chip-1")
EXPECTED = Expectation(platforms=["sim"], measurement=[IMAGE])
EXPECTED_HARDWARE = Expectation(platforms=["tdx"], measurement=[IMAGE], runtime=[RUNTIME])


def changed(struct, **fields):
    return msgspec.structs.replace(struct, **fields)


def judge(identity, expectation, *, report_data=BOUND, tcb=""):
    return validate(Verified(identity, report_data, tcb), expectation, BOUND)


def test_what_is_expected_passes():
    assert judge(SIM, EXPECTED) is SIM
    assert judge(HARDWARE, EXPECTED_HARDWARE, tcb="UpToDate") is HARDWARE
    assert judge(SIM, Expectation(platforms=["sim"], signer=[SIGNER], product_id=7, min_version=3)) is SIM


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("platforms", ["tdx", "sgx"]),
        ("measurement", [OTHER]),
        ("signer", [OTHER]),
        ("product_id", 8),
        ("min_version", 4),
        ("runtime", [OTHER]),
        ("machines", ["chip-2"]),
    ],
)
def test_each_thing_that_is_named_must_hold(field, value):
    names = {"platforms": "platform", "min_version": "security_version", "machines": "machine"}
    with pytest.raises(ExpectationError) as raised:
        judge(SIM, changed(EXPECTED, **{field: value}))
    (failure,) = raised.value.failures
    assert failure.stage == "expectation"
    assert failure.field == names.get(field, field)
    assert failure.expected != failure.got
    assert failure.expected in str(raised.value)


def test_debug_is_refused_unless_it_is_accepted():
    debug = changed(SIM, debug=True)
    with pytest.raises(ExpectationError, match="debug: expected false, got true"):
        judge(debug, EXPECTED)
    assert judge(debug, changed(EXPECTED, debug=True)) is debug
    assert judge(SIM, changed(EXPECTED, debug=True)) is SIM


def test_an_unsigned_image_has_no_expected_signer():
    with pytest.raises(ExpectationError, match="got no signature"):
        judge(changed(SIM, signer=""), changed(EXPECTED, signer=[SIGNER]))


@pytest.mark.parametrize("platform", [platform for platform in PLATFORMS if platform != "sim"])
def test_sim_is_accepted_only_by_name(platform):
    with pytest.raises(ExpectationError, match="not confidential"):
        judge(SIM, changed(EXPECTED_HARDWARE, platforms=[platform], runtime=[]))


def test_hardware_needs_a_reference_value_even_if_none_was_named():
    with pytest.raises(ExpectationError, match="a reference value"):
        judge(HARDWARE, changed(EXPECTED_HARDWARE, runtime=[]), tcb="UpToDate")


@pytest.mark.parametrize("tcb", ["", "OutOfDate", "Revoked"])
def test_hardware_needs_an_accepted_tcb(tcb):
    with pytest.raises(TcbError):
        judge(HARDWARE, EXPECTED_HARDWARE, tcb=tcb)


@pytest.mark.parametrize("got", [b"", BOUND[:-1], bytes(64), BOUND + b"\0", bytes(reversed(BOUND))])
def test_evidence_of_another_connection_is_refused(got):
    with pytest.raises(BindingError):
        judge(SIM, EXPECTED, report_data=got)


def test_nothing_can_be_bound_to_short_report_data():
    with pytest.raises(LocalProtocolError):
        validate(Verified(SIM, b""), EXPECTED, b"")


def test_all_findings_come_together_and_the_earliest_stage_names_the_error():
    with pytest.raises(AttestationError) as raised:
        judge(changed(HARDWARE, measurement=OTHER, debug=True), EXPECTED_HARDWARE, report_data=bytes(64), tcb="Revoked")
    assert [(failure.stage, failure.field) for failure in raised.value.failures] == [
        ("tcb", "tcb"),
        ("binding", "report_data"),
        ("expectation", "measurement"),
        ("expectation", "debug"),
    ]
    assert raised.value.exit_code == 23
    with pytest.raises(AttestationError) as raised:
        judge(changed(SIM, measurement=OTHER), EXPECTED, report_data=bytes(64))
    assert raised.value.exit_code == 25
    assert all(isinstance(failure, Failure) for failure in raised.value.failures)


@pytest.mark.parametrize(
    ("expectation", "said"),
    [
        (Expectation(), "platforms is empty"),
        (Expectation(platforms=["sim"]), "no image is named"),
        (Expectation(measurement=[IMAGE]), "platforms is empty"),
        (Expectation(platforms=["sim"], signer=[SIGNER]), "no image is named"),
        (Expectation(platforms=["sim"], product_id=0, min_version=1), "no image is named"),
        (Expectation(platforms=["simm"], measurement=[IMAGE]), "no platform 'simm'"),
        (Expectation(platforms=["sim"], measurement=["demo"]), "64 hex digits"),
        (Expectation(platforms=["sim"], measurement=[IMAGE.upper()]), "64 hex digits"),
        (Expectation(platforms=["sim"], measurement=IMAGE), "must be a list"),
        (Expectation(platforms="sim", measurement=[IMAGE]), "must be a list"),
        (Expectation(platforms=["sim"], measurement=[IMAGE], machines="chip-1"), "must be a list"),
    ],
)
def test_an_expectation_that_names_too_little_is_an_error(expectation, said):
    with pytest.raises(UsageError, match=said):
        judge(SIM, expectation)


def test_the_table_of_a_policy_file_becomes_an_expectation():
    table = {"platforms": ["sim"], "measurement": [IMAGE], "product_id": 0, "debug": True, "machines": []}
    expectation = msgspec.convert(table, Expectation)
    expectation.check()
    assert judge(changed(SIM, product_id=0), expectation)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(table | {"mesurement": []}, Expectation)


digests = st.sampled_from([IMAGE, OTHER, SIGNER, RUNTIME])
identities = st.builds(
    EnclaveIdentity,
    platform=st.sampled_from(PLATFORMS),
    measurement=digests,
    signer=digests | st.just(""),
    product_id=st.integers(0, 2),
    security_version=st.integers(0, 2),
    debug=st.booleans(),
    runtime=digests | st.just(""),
    machine=st.sampled_from(["", "a", "b"]),
)


@given(identities, identities)
def test_identities_have_one_digest_each(one, other):
    assert len(one.digest()) == 32
    what_hardware_says = {"runtime": "", "machine": ""}
    same = changed(one, **what_hardware_says) == changed(other, **what_hardware_says)
    assert (one.digest() == other.digest()) == same


def test_an_identitys_digest_is_fixed():
    assert SIM.digest().hex() == "92d283a90a06216f313a9abff8fc716374eada3ff73d9d9665e826d347a9bc1d"


@given(identities, st.sampled_from(["platform", "measurement", "signer", "product_id", "debug", "runtime", "machine"]))
def test_an_expectation_of_an_identity_accepts_it_and_no_other(identity, field):
    expectation = Expectation(
        platforms=[identity.platform],
        measurement=[identity.measurement],
        signer=[identity.signer] if identity.signer else [],
        product_id=identity.product_id,
        min_version=identity.security_version,
        runtime=[identity.runtime] if identity.runtime else [],
        machines=[identity.machine] if identity.machine else [],
        debug=identity.debug,
    )
    passes = identity.platform == "sim" or identity.runtime != ""
    failures = expectation.compare(identity, "UpToDate")
    assert passes == (not failures)
    others = {
        "platform": "sgx" if identity.platform != "sgx" else "sim",
        "measurement": "sha256:" + "9" * 64,
        "signer": "sha256:" + "9" * 64,
        "product_id": 9,
        "debug": True,
        "runtime": "sha256:" + "9" * 64,
        "machine": "c",
    }
    unnamed = (field in ("signer", "machine", "runtime") and not getattr(identity, field)) or (
        field == "debug" and identity.debug
    )
    if not unnamed:
        found = expectation.compare(changed(identity, **{field: others[field]}), "UpToDate")
        assert field in [failure.field for failure in found]
