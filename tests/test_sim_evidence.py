"""Simulated evidence goes the way of real evidence, and whatever is not genuine is refused for the right reason."""

import base64
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.attestation.evidence import MAX_EVIDENCE, seal
from adyton.attestation.identity import PLATFORMS, EnclaveIdentity
from adyton.attestation.sim import SimulatedBody, SimulatedClaims, attest, simulation_key
from adyton.attestation.verify import verify
from adyton.errors import AttestationError, EvidenceMalformedError, LocalProtocolError, NotGenuineError

IDENTITY = EnclaveIdentity(
    "sim", "sha256:" + "1" * 64, "", 0, 0, debug=True, runtime="sha256:" + "2" * 64, machine="here"
)
BOUND = bytes(range(64))
EVIDENCE = attest(IDENTITY, BOUND)


def test_evidence_says_what_was_attested():
    verified = verify(EVIDENCE)
    assert verified.identity == IDENTITY
    assert verified.identity.digest() == IDENTITY.digest()
    assert verified.report_data == BOUND
    assert verified.tcb == ""


def test_evidence_is_json_that_says_its_version_and_platform():
    document = json.loads(EVIDENCE)
    assert document["adyton_evidence"] == 1
    assert document["platform"] == "sim"
    assert len(EVIDENCE) < MAX_EVIDENCE // 16


def test_the_same_claims_give_the_same_evidence_everywhere():
    assert attest(IDENTITY, BOUND) == EVIDENCE
    assert attest(IDENTITY, bytes(64)) != EVIDENCE


@pytest.mark.parametrize("report_data", [b"", bytes(63), bytes(65)])
def test_only_64_bytes_can_be_attested(report_data):
    with pytest.raises(LocalProtocolError):
        attest(IDENTITY, report_data)


def test_the_simulation_attests_no_other_platform():
    with pytest.raises(LocalProtocolError):
        attest(msgspec.structs.replace(IDENTITY, platform="tdx"), BOUND)


def signed(claims: bytes) -> bytes:
    """Evidence over any claims, as an attacker makes it: the key is public."""
    frame = b"".join(len(part).to_bytes(4, "big") + part for part in (b"adyton SIMULATION evidence 1", claims))
    return seal("sim", SimulatedBody(claims, simulation_key().sign(frame)))


def test_the_key_signs_for_no_other_platform():
    claims = SimulatedClaims(msgspec.structs.replace(IDENTITY, platform="sgx"), BOUND)
    assert verify(signed(msgspec.json.encode(SimulatedClaims(IDENTITY, BOUND)))).identity == IDENTITY
    with pytest.raises(NotGenuineError):
        verify(signed(msgspec.json.encode(claims)))


def test_a_signature_over_other_claims_is_not_genuine():
    document = json.loads(EVIDENCE)
    claims = base64.b64decode(document["body"]["claims"]).replace(b'"debug":true', b'"debug":null')
    document["body"]["claims"] = base64.b64encode(claims).decode()
    with pytest.raises(NotGenuineError) as raised:
        verify(json.dumps(document).encode())
    assert raised.value.exit_code == 21
    assert raised.value.failures[0].field == "signature"


@given(st.data())
def test_no_byte_of_evidence_can_be_changed(data):
    position = data.draw(st.integers(0, len(EVIDENCE) - 1))
    changed = bytearray(EVIDENCE)
    changed[position] ^= data.draw(st.integers(1, 255))
    try:
        verified = verify(bytes(changed))
    except AttestationError:
        return
    assert (verified.identity, verified.report_data) == (IDENTITY, BOUND)  # only the spelling of the JSON changed


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_garbage_is_malformed(garbage):
    with pytest.raises(EvidenceMalformedError) as raised:
        verify(garbage)
    assert raised.value.exit_code == 20


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["sim", "tdx"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["claims", "signature"]), inner),
    max_leaves=8,
)


@given(st.fixed_dictionaries({"adyton_evidence": json_values, "platform": json_values, "body": json_values}))
def test_wrong_envelopes_raise_only_attestation_errors(document):
    with pytest.raises(AttestationError):
        verify(json.dumps(document).encode())


@given(json_values)
def test_wrong_claims_raise_only_attestation_errors(claims):
    with pytest.raises(EvidenceMalformedError):
        verify(signed(json.dumps(claims).encode()))


@pytest.mark.parametrize(
    "change",
    [
        {"measurement": "sha256:" + "1" * 63},
        {"measurement": "sha256:" + "1" * 64 + "\n"},
        {"measurement": ""},
        {"product_id": -1},
        {"product_id": 1 << 32},
        {"product_id": True},
        {"debug": 0},
        {"machine": "x" * 257},
        {"platform": "vtpm"},
        {"owner": "me"},
    ],
)
def test_claims_outside_their_ranges_are_malformed(change):
    claims = json.loads(msgspec.json.encode(SimulatedClaims(IDENTITY, BOUND)))
    claims["identity"] |= change
    with pytest.raises(EvidenceMalformedError):
        verify(signed(json.dumps(claims).encode()))


def test_a_machine_named_with_a_lone_surrogate_is_malformed():
    claims = msgspec.json.encode(SimulatedClaims(IDENTITY, BOUND)).replace(b'"here"', b'"\\ud800"')
    with pytest.raises(EvidenceMalformedError):
        verify(signed(claims)).identity.digest()


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_of_another_size_is_malformed(size):
    with pytest.raises(EvidenceMalformedError):
        verify(signed(msgspec.json.encode(SimulatedClaims(IDENTITY, bytes(size)))))


def test_evidence_of_a_later_version_is_told_apart():
    with pytest.raises(EvidenceMalformedError, match="version 2"):
        verify(b'{"adyton_evidence":2,"platform":"sim","proof":[]}')


def test_evidence_larger_than_its_bound_is_not_read():
    with pytest.raises(EvidenceMalformedError, match=str(MAX_EVIDENCE)):
        verify(EVIDENCE + b" " * MAX_EVIDENCE)


@pytest.mark.parametrize("platform", [platform for platform in PLATFORMS if platform != "sim"])
def test_another_platforms_envelope_around_a_simulation_is_malformed(platform):
    with pytest.raises(EvidenceMalformedError):
        verify(seal(platform, msgspec.Raw(json.dumps(json.loads(EVIDENCE)["body"]).encode())))
