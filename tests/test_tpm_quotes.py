"""adyton's report of a TPM: accepted when all of it fits together and somebody vouches for its key, and refused for the right reason."""

import contextlib
import datetime as dt
import hashlib
import shutil
import struct

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from tpms import (
    ATTRIBUTES,
    CLIENT,
    KEY,
    NOW,
    PCRS,
    REPORT_DATA,
    RSA_KEY,
    Authority,
    event,
    extended,
    name_of,
    public_area,
    quote,
    report,
    signature,
    spec_id,
)

from adyton.attestation import binding
from adyton.attestation.collateral import Collateral, Folder, read_blobs, read_folder
from adyton.attestation.evidence import HardwareBody, ImageClaims, seal
from adyton.attestation.expectation import Expectation
from adyton.attestation.tpm.event_log import MAX_LOG
from adyton.attestation.tpm.verify import verify
from adyton.attestation.verify import validate
from adyton.attestation.verify import verify as verify_evidence
from adyton.errors import AttestationError, BindingError, EvidenceMalformedError, NotGenuineError, TcbError, UsageError

REPORT = report()
NOTHING = Collateral()
MACHINE = name_of(public_area())
OTHER_KEY = ec.derive_private_key(0x42 << 64, ec.SECP256R1())


def judged(data=REPORT, collateral=NOTHING, at=NOW):
    return verify(data, collateral, at)


def refused(error, match, *arguments):
    with pytest.raises(error, match=match or None) as caught:
        judged(*arguments)
    return [failure.field for failure in caught.value.failures]


def signed(quoted, key=KEY, **changed):
    """A report around a quote that its key did sign."""
    return report(key, quote=quoted, signature=signature(quoted, key), **changed)


# -- what is accepted -----------------------------------------------------------------------------------------------------


def test_a_report_says_what_was_measured_and_whose_it_is():
    claims = judged()
    assert claims.machine == MACHINE
    assert claims.measured == {f"{bank}:{number}": value.hex() for (bank, number), value in PCRS.items()}
    assert claims.report_data == REPORT_DATA
    assert not claims.debug
    assert claims.tcb == "Unknown"
    assert claims.more["pcrs"] == "sha256:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
    assert claims.more["resets"] == 3


@pytest.mark.parametrize(
    "key", [RSA_KEY, *(ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()))]
)
def test_keys_of_every_kind_that_tpms_have(key):
    assert judged(report(key)).machine == name_of(public_area(key))


def test_rsa_with_pss():
    quoted, area = quote(), public_area(RSA_KEY, scheme="rsapss")
    judged(report(RSA_KEY, quote=quoted, key=area, signature=signature(quoted, RSA_KEY, "rsapss")))
    fields = refused(NotGenuineError, "rsapss", report(RSA_KEY, key=area))  # signed in another scheme than the key's
    assert fields == ["scheme of the signature"]


def test_the_reference_value_is_of_the_registers_and_of_which_they_are():
    # PCR 16 can be set by anybody to what PCR 7 is: a quote of the one must not pass for the other's.
    seven, sixteen = ({("sha256", number): PCRS["sha256", 7]} for number in (7, 16))
    values = {judged(report(values=each)).runtime for each in (PCRS, seven, sixteen)}
    assert len(values) == 3
    assert judged(report(OTHER_KEY, values=seven)).runtime in values


def test_registers_of_which_nothing_was_measured_are_debug():
    assert judged(report(values=dict.fromkeys(PCRS, bytes(32)))).debug
    assert judged(report(values={("sha256", 17): b"\xff" * 32})).debug
    assert not judged(report(values={**dict.fromkeys(PCRS, bytes(32)), ("sha256", 14): b"1" * 32})).debug


# -- what is not ----------------------------------------------------------------------------------------------------------


def test_a_quote_with_any_byte_changed_is_refused():
    quoted = quote()
    signed_as_it_was = signature(quoted)
    for at in range(len(quoted)):
        changed = quoted[:at] + bytes([quoted[at] ^ 1]) + quoted[at + 1 :]
        with pytest.raises((EvidenceMalformedError, NotGenuineError)):
            judged(report(quote=changed, signature=signed_as_it_was))


@pytest.mark.parametrize("field", ["quote", "signature", "key"])
def test_a_structure_that_is_cut_or_extended_is_malformed(field):
    whole = msgspec.json.decode(REPORT, type=dict)[field]
    (structure,) = msgspec.convert([whole], list[bytes])
    for spoilt in (b"", structure[:-1], structure[:9], structure + b"\0", bytes(1 << 15)):
        refused(EvidenceMalformedError, "", report(**{field: spoilt}))


def test_another_keys_signature_is_refused():
    fields = refused(NotGenuineError, MACHINE, report(signature=signature(quote(), OTHER_KEY)))
    assert fields == ["signature of the quote"]
    assert refused(NotGenuineError, "signature", report(key=public_area(OTHER_KEY))) == fields
    assert refused(NotGenuineError, "scheme", report(key=public_area(RSA_KEY))) == ["scheme of the signature"]


@pytest.mark.parametrize(
    "attributes",
    [ATTRIBUTES & ~(1 << bit) for bit in (1, 4, 5, 16, 18)] + [ATTRIBUTES | 1 << 17],
    ids=["may leave its TPM", "may be moved", "was made elsewhere", "signs anything", "does not sign", "decrypts"],
)
def test_a_key_is_refused_that_is_none_for_attestation(attributes):
    assert refused(NotGenuineError, "to stay", report(key=public_area(attributes=attributes))) == [
        "the attestation key"
    ]


def test_values_that_are_not_those_quoted_are_refused():
    other = {**PCRS, ("sha256", 4): bytes(32)}
    assert refused(NotGenuineError, "digest", report(values=other, quote=quote())) == ["digest of the PCRs"]


def test_values_must_be_of_what_was_selected_and_as_long_as_they_are():
    values = [PCRS["sha256", number] for number in range(16)]
    missing = dict(enumerate(values[:-1]))
    moved = {
        **dict(enumerate(values)),
        0: values[0] + values[1][:1],
        1: values[1][1:],
    }  # the same bytes, one after the other
    for pcrs in (
        {},
        {"sha256": missing},
        {"sha1": missing},
        {"sha256": moved},
        {"sha256": {**missing, 15: b"", 16: b""}},
    ):
        assert refused(EvidenceMalformedError, "", report(pcrs=pcrs, quote=quote())) == ["values of the PCRs"]


def test_other_report_data_than_what_was_quoted_is_refused():
    assert refused(NotGenuineError, "extra", report(report_data=bytes(64))) == ["extra data of the quote"]
    assert refused(NotGenuineError, "got none", signed(quote(extra=b""))) == ["extra data of the quote"]
    refused(EvidenceMalformedError, "", report(report_data=b"", quote=quote(extra=hashlib.sha256(b"").digest())))


def test_sha_1_is_refused():
    quoted = quote(by="sha1")
    fields = refused(NotGenuineError, "sha256", report(quote=quoted, signature=signature(quoted, by="sha1")))
    assert fields == ["hash of the signature"]
    values = {("sha1", 0): bytes(range(20))}
    assert refused(NotGenuineError, "sha256", report(values=values)) == ["bank of the PCRs"]


def test_a_quote_of_no_register_is_refused():
    nothing = signed(quote({}, selected=struct.pack(">IHBI", 1, 0x0B, 3, 0)[:-1]), values={})
    assert refused(NotGenuineError, "some", nothing) == ["PCRs of the quote"]


@pytest.mark.parametrize(
    "selected",
    [
        struct.pack(">I", 0),
        struct.pack(">I", 5) + struct.pack(">HBBBB", 0x0B, 3, 1, 0, 0) * 5,
        struct.pack(">IHBBBB", 1, 0x77, 3, 1, 0, 0),
        struct.pack(">IHB", 1, 0x0B, 200) + bytes([1] * 200),
        struct.pack(">IHB", 1, 0x0B, 0),
    ],
    ids=["no bank", "five banks", "an unknown bank", "1600 registers", "no bitmap"],
)
def test_a_selection_that_no_tpm_makes_is_malformed(selected):
    refused(EvidenceMalformedError, "", signed(quote(selected=selected)))


def test_what_a_tpm_signs_otherwise_is_no_quote():
    certified = quote().replace(struct.pack(">H", 0x8018), struct.pack(">H", 0x8017), 1)
    refused(EvidenceMalformedError, "ATTEST_QUOTE", signed(certified))
    refused(EvidenceMalformedError, "ATTEST_QUOTE", signed(b"\xffTCH" + quote()[4:]))


def weak_area():
    """Of an RSA key of 1024 bits."""
    key = rsa.generate_private_key(65537, 1024)
    return public_area(key)


def off_the_curve():
    area = bytearray(public_area())
    area[-1] ^= 1
    return bytes(area)


@pytest.mark.parametrize(
    "area",
    [
        weak_area(),
        off_the_curve(),
        public_area(scheme="rsapss").replace(b"\x00\x23", b"\x00\x08", 1),
        public_area().replace(struct.pack(">HHH", 0x18, 0x0B, 3), struct.pack(">HHH", 0x14, 0x0B, 3)),
        public_area().replace(struct.pack(">HHH", 0x18, 0x0B, 3), struct.pack(">HHH", 0x18, 0x0B, 0x10)),
        public_area().replace(struct.pack(">HHH", 0, 0x10, 0x18), struct.pack(">HHH", 0, 0x06, 0x18)),
    ],
    ids=["RSA of 1024 bits", "a point on no curve", "keyed hash", "ECC with RSASSA", "another curve", "symmetric"],
)
def test_a_key_of_another_kind_is_malformed(area):
    refused(EvidenceMalformedError, "", report(key=area))


# -- who vouches for the key ----------------------------------------------------------------------------------------------


def folder_of(tmp_path, *files):
    """A folder of collateral with these certificates, lists, and bytes."""
    folder = tmp_path / "collateral"
    folder.mkdir()
    for number, file in enumerate(files):
        (folder / str(number)).write_bytes(file if isinstance(file, bytes) else file.public_bytes(Encoding.PEM))
    return read_folder(str(folder))


def der(certificate):
    return certificate.public_bytes(Encoding.DER)


def test_a_ca_vouches_for_the_key(tmp_path):
    authority = Authority()
    collateral = folder_of(tmp_path, authority.certificate)
    with_certificate = report(certificate=der(authority.certified(KEY.public_key())))
    claims = judged(with_certificate, collateral)
    assert claims.tcb == "UpToDate"
    assert claims.more["key_certified_by"] == "TPM CA"
    assert judged(REPORT, collateral).tcb == "Unknown"


def test_a_ca_below_the_root_may_come_along_with_the_evidence(tmp_path):
    root = Authority("root")
    below = Authority("below", above=root)
    certificate = below.certified(KEY.public_key())
    collateral = folder_of(tmp_path, root.certificate)
    assert judged(report(certificate=der(certificate)), collateral).tcb == "Unknown"
    along = collateral + read_blobs((der(below.certificate),))
    assert judged(report(certificate=der(certificate)), along).tcb == "UpToDate"


def test_a_root_that_came_along_with_the_evidence_vouches_for_nothing(tmp_path):
    forger = Authority()
    along = read_blobs((der(forger.certificate), der(forger.certified(KEY.public_key()))))
    assert judged(REPORT, along).tcb == "Unknown"
    assert judged(REPORT, folder_of(tmp_path, Authority().certificate) + along).tcb == "Unknown"  # of the same name


def test_a_folder_is_looked_at_again_and_its_roots_believed_only_where_it_is_the_verifiers(tmp_path):
    now = 0.0
    folder_of(tmp_path)
    path = str(tmp_path / "collateral")
    trusted = Folder(path, trusted=True, clock=lambda: now)
    others = Folder(path, trusted=False, clock=lambda: now)
    authority = Authority()
    (tmp_path / "collateral" / "root").write_bytes(der(authority.certificate))
    certified = report(certificate=der(authority.certified(KEY.public_key())))
    assert judged(certified, trusted.collateral()).tcb == "Unknown"
    now = 61.0
    assert judged(certified, trusted.collateral()).tcb == "UpToDate"
    assert others.collateral().certificates
    assert judged(certified, others.collateral()).tcb == "Unknown"
    shutil.rmtree(path)
    now = 200.0
    assert judged(certified, trusted.collateral()).tcb == "UpToDate"
    with pytest.raises(UsageError):
        Folder(path, trusted=True)


def test_a_certificate_that_signs_itself_vouches_for_nothing(tmp_path):
    authority = Authority()
    authority.key = KEY
    own = authority.builder(authority.name, KEY.public_key(), NOW + dt.timedelta(days=1))
    assert judged(REPORT, folder_of(tmp_path, own.sign(KEY, SHA256()))).tcb == "Unknown"


def test_a_certificate_of_another_key_vouches_for_nothing(tmp_path):
    authority = Authority()
    certificate = authority.certified(OTHER_KEY.public_key())
    assert judged(report(certificate=der(certificate)), folder_of(tmp_path, authority.certificate)).tcb == "Unknown"


@pytest.mark.parametrize("days", [-200, 200])
def test_a_certificate_that_is_not_valid_then_is_refused(tmp_path, days):
    authority = Authority()
    data = report(certificate=der(authority.certified(KEY.public_key())))
    at = NOW + dt.timedelta(days=days)
    fields = refused(NotGenuineError, "time of", data, folder_of(tmp_path, authority.certificate), at)
    assert all(field.startswith("time of ") for field in fields)


def test_an_expired_certificate_does_not_stand_in_the_way_of_a_renewed_one(tmp_path):
    authority = Authority()
    expired = authority.certified(KEY.public_key(), until=NOW - dt.timedelta(days=1))
    renewed = authority.certified(KEY.public_key())
    collateral = folder_of(tmp_path, authority.certificate, expired, renewed)
    assert judged(REPORT, collateral).tcb == "UpToDate"


def test_a_certificate_for_something_else_is_refused(tmp_path):
    authority = Authority()
    certificate = authority.certified(KEY.public_key(), use=CLIENT)
    collateral = folder_of(tmp_path, authority.certificate)
    refused(NotGenuineError, "attestation key", report(certificate=der(certificate)), collateral)
    unsaid = authority.certified(KEY.public_key(), use=None)
    assert judged(report(certificate=der(unsaid)), collateral).tcb == "UpToDate"


def test_a_ca_below_one_that_may_have_none_is_refused(tmp_path):
    root = Authority("root", path_length=0)
    below = Authority("below", above=root)
    collateral = folder_of(tmp_path, root.certificate, below.certificate, below.certified(KEY.public_key()))
    refused(NotGenuineError, "one that its root allows", REPORT, collateral)


def test_a_revoked_certificate_is_refused(tmp_path):
    authority = Authority()
    certificate = authority.certified(KEY.public_key())
    collateral = folder_of(tmp_path, authority.certificate, certificate, authority.revoking(certificate))
    (failure,) = judged(REPORT, collateral).failures
    assert failure.stage == "tcb"


# -- in adyton's envelope, under a policy ---------------------------------------------------------------------------------

IMAGE = ImageClaims("sha256:" + "1" * 64, "", 0, 0, debug=False)


def enveloped(**changed):
    """Evidence of an enclave, and what it is bound to."""
    bound = binding.report_data(
        role=b"enclave",
        nonce=bytes(32),
        exporter=bytes(32),
        key_digest=bytes(32),
        identity_digest=IMAGE.on("tpm").digest(),
    )
    quoted = quote(extra=hashlib.sha256(bound).digest())
    data = report(**{"quote": quoted, "signature": signature(quoted), "report_data": bound, **changed})
    return seal("tpm", HardwareBody(data, IMAGE)), bound


def expected(**changed):
    runtime = judged().runtime
    fields = {"platforms": ["tpm"], "measurement": [IMAGE.measurement], "runtime": [runtime], **changed}
    return Expectation(**fields)


def test_a_machine_that_the_policy_names_is_accepted():
    evidence, bound = enveloped()
    identity = validate(verify_evidence(evidence, at=NOW), expected(machines=[MACHINE], tcb=["Unknown"]), bound)
    assert identity.machine == MACHINE
    assert identity.vouchers["runtime"] == "hardware"


def test_a_machine_for_which_nobody_vouches_is_not_genuine_whatever_tcb_says():
    evidence, bound = enveloped()
    for policy in (
        expected(),
        expected(tcb=["UpToDate", "Unknown"]),
        expected(tcb=["Unknown"], machines=["000b" + "1" * 64]),
    ):
        with pytest.raises(NotGenuineError, match="nobody vouches for"):
            validate(verify_evidence(evidence, at=NOW), policy, bound)
    with pytest.raises(TcbError):
        validate(verify_evidence(evidence, at=NOW), expected(machines=[MACHINE]), bound)


def test_evidence_for_another_connection_is_refused():
    evidence, bound = enveloped()
    policy = expected(machines=[MACHINE], tcb=["Unknown"])
    for other in (bytes(64), bound[:-1] + bytes([bound[-1] ^ 1])):
        with pytest.raises(BindingError):
            validate(verify_evidence(evidence, at=NOW), policy, other)


def test_a_longest_event_log_fits_into_evidence():
    filling = MAX_LOG - len(spec_id()) - len(event(8, b""))
    values = {("sha256", number): bytes(32) for number in range(8)} | {("sha256", 8): extended(b"x" * filling)}
    log = spec_id() + event(8, b"x" * filling)
    evidence = seal("tpm", HardwareBody(report(values=values, event_log=log), IMAGE))
    assert verify_evidence(evidence, at=NOW).more["not_explained"] == "none"


# -- hostile bytes --------------------------------------------------------------------------------------------------------


STRUCTURES = {"quote": quote(), "signature": signature(quote()), "key": public_area(), "event_log": spec_id()}


@given(st.sampled_from(list(STRUCTURES)), st.integers(0, 200), st.integers(0, 8), st.binary(max_size=8))
def test_only_attestation_errors_leave(field, at, taken, put):
    whole = STRUCTURES[field]
    spoilt = whole[:at] + put + whole[at + taken :]
    again = (
        {"signature": signature(spoilt)} if field == "quote" else {}
    )  # so that what lies behind the signature is reached
    with contextlib.suppress(AttestationError):
        judged(report(**{field: spoilt, **again}))


@given(st.binary(max_size=400))
def test_only_malformed_leaves_for_bytes_that_are_nothing(data):
    with pytest.raises(EvidenceMalformedError):
        judged(b"{" + data)


CERTIFIED = der(Authority().certified(KEY.public_key()))


@given(st.integers(0, len(CERTIFIED)), st.integers(0, 4), st.binary(max_size=4))
def test_any_certificate_may_come_along(at, taken, put):
    spoilt = report(certificate=CERTIFIED[:at] + put + CERTIFIED[at + taken :])
    assert judged(spoilt, read_blobs((CERTIFIED[:at] + put,))).tcb == "Unknown"


def test_certificates_that_cannot_be_read_are_none():
    for version in (b"\xa0\3\2\1\3", b"\xa0\3\2\1\7"):
        assert judged(report(certificate=CERTIFIED.replace(b"\xa0\3\2\1\2", version, 1))).tcb == "Unknown"
