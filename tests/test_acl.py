"""Expectations put together accept what their words say, and never anything for want of words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import adyton
from adyton import AllOf, AnyOf, Expectation, Not
from adyton.attestation.acl import Acl
from adyton.attestation.identity import EnclaveIdentity
from adyton.config import Policy
from adyton.errors import UsageError

ONE, TWO, SIGNER = (f"sha256:{digit * 64}" for digit in "123")


def enclave(measurement: str = ONE, machine: str = "here", product: int = 1, version: int = 1) -> EnclaveIdentity:
    return EnclaveIdentity("sim", measurement, SIGNER, product, version, debug=False, runtime="", machine=machine)


def image(*measurements: str) -> Expectation:
    return Expectation(platforms=["sim"], measurement=measurements)


PRODUCT = Expectation(platforms=["sim"], signer=[SIGNER], product_id=1)


def accepts(acl: Acl, identity: EnclaveIdentity) -> bool:
    acl.check()
    return not acl.compare(identity, "")


def test_one_of_several_suffices():
    either = AnyOf(image(ONE), image(TWO))
    assert accepts(either, enclave(ONE))
    assert accepts(either, enclave(TWO))
    assert not accepts(either, enclave(SIGNER))


def test_what_several_demand_must_all_hold():
    both = AllOf(PRODUCT, image(ONE, TWO))
    assert accepts(both, enclave(ONE))
    assert not accepts(both, enclave(ONE, product=2))
    assert not accepts(both, enclave(SIGNER))


def test_what_is_excluded_is_refused_in_whatever_state():
    withdrawn = AllOf(PRODUCT, Not(Expectation(measurement=[TWO])))
    assert accepts(withdrawn, enclave(ONE))
    assert not accepts(withdrawn, enclave(TWO))
    lost = AllOf(PRODUCT, Not(AnyOf(Expectation(machines=["lost"]), Expectation(measurement=[TWO], machines=["here"]))))
    assert accepts(lost, enclave(ONE))
    assert accepts(lost, enclave(TWO, "there"))
    assert not accepts(lost, enclave(ONE, "lost"))
    assert not accepts(lost, enclave(TWO, "here"))


def test_an_explanation_says_only_what_is_named():
    (found,) = AllOf(image(ONE), Not(Expectation(measurement=[ONE]))).compare(enclave(ONE), "")
    assert found.expected == f"none of Expectation(measurement=['{ONE}'])"


@pytest.mark.parametrize("given", ["sim", [image(ONE)], 7])
def test_what_is_no_expectation_is_told_what_would_be(given):
    with pytest.raises(UsageError, match=r"give a dict of the keys of \[expect\], or an Expectation, AllOf or AnyOf"):
        Policy().extended(expect=given, environment={})


def test_an_exclusion_never_misses_a_runtime_for_its_spelling():
    with pytest.raises(UsageError, match="an exclusion names a runtime by"):
        AllOf(PRODUCT, Not(Expectation(runtime=["sha384:" + "1" * 96]))).check()


def test_each_alternative_says_what_it_misses():
    found = AnyOf(image(ONE), AllOf(PRODUCT, Not(image(SIGNER)))).compare(enclave(SIGNER), "")
    assert [failure.field for failure in found] == ["alternative 1: measurement", "alternative 2: exclusion"]
    assert ONE in found[0].expected
    assert SIGNER in found[0].got


@pytest.mark.parametrize(
    ("acl", "why"),
    [
        (AnyOf(), "is empty"),
        (AllOf(), "is empty"),
        (AnyOf(AllOf()), "is empty"),
        (Not(image(ONE)), "only whom not to accept"),
        (AllOf(Not(image(ONE))), "only whom not to accept"),
        (AnyOf(PRODUCT, Not(image(ONE))), "only whom not to accept"),
        (AllOf(PRODUCT, Not(Expectation())), "names nothing"),
        (AllOf(PRODUCT, Not(Expectation(debug=True))), "names debug"),
        (AllOf(PRODUCT, Not(Expectation(measurement=[ONE], tcb=["Revoked"]))), "names tcb"),
        (AllOf(PRODUCT, Not(AnyOf())), "is empty"),
        (AnyOf(PRODUCT, Expectation(platforms=["sim"])), "no image is named"),
        (AllOf(PRODUCT, Expectation(measurement=[ONE])), "platforms is empty"),
        (AnyOf({"platforms": ["sim"]}), "is no expectation"),
        (AllOf(PRODUCT, Not({"measurement": [ONE]})), "is no expectation"),
    ],
)
def test_what_says_too_little_is_an_error(acl, why):
    with pytest.raises(UsageError, match=why):
        acl.check()


identities = st.builds(
    enclave,
    st.sampled_from([ONE, TWO, SIGNER]),
    st.sampled_from(["here", "lost"]),
    st.integers(0, 2),
    st.integers(0, 2),
)
named = st.one_of(
    st.builds(lambda value: Expectation(measurement=[value]), st.sampled_from([ONE, TWO])),
    st.builds(lambda value: Expectation(machines=[value]), st.sampled_from(["here", "lost"])),
    st.builds(lambda value: Expectation(product_id=value), st.integers(0, 2)),
)


@given(identities, named, named)
def test_exclusions_are_sets(identity, one, other):
    def excluded(acl: Acl) -> bool:
        return bool(Not(acl).compare(identity, ""))

    assert excluded(AnyOf(one, other)) == (excluded(one) or excluded(other))
    assert excluded(AllOf(one, other)) == (excluded(one) and excluded(other))
    assert excluded(Not(one)) != excluded(one)
    assert bool(AllOf(PRODUCT, Not(one)).compare(identity, "")) == (identity.product_id != 1 or excluded(one))


def test_a_policy_file_and_what_is_put_together_must_both_hold():
    policy = Policy.parse(f'[expect]\nmeasurement = ["{ONE}"]\n', name="policy.toml", base="/").extended(expect=PRODUCT)
    assert policy.expect is not None
    assert policy.acl is PRODUCT
    more = policy.extended(expect=image(TWO)).acl
    assert more is not None
    assert not accepts(more, enclave(ONE))


@pytest.mark.sandbox
def test_a_load_accepts_and_refuses_by_them(tmp_path):
    program = tmp_path / "hello.py"
    program.write_text("def hello() -> str:\n    return 'hello'\n")
    with pytest.raises(adyton.AdytonError, match="alternative 2: measurement"):
        adyton.load(program, expect=AnyOf(image(ONE), image(TWO)))
    with adyton.load(program) as enclave_:
        measurement = enclave_.identity.measurement
    accepted = AllOf(Expectation(platforms=["sim"], measurement=[measurement], debug=True), Not(image(TWO)))
    with adyton.load(program, expect=accepted) as enclave_:
        assert enclave_.call("hello") == "hello"
    with pytest.raises(adyton.AdytonError, match="exclusion"):
        adyton.load(program, expect=AllOf(accepted, Not(Expectation(measurement=[measurement]))))
