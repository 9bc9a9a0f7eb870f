"""Quotes of SGX and TDX, signed by keys of our own that are trusted here as if they were Intel's, down to TCB info and revocation lists."""

from __future__ import annotations

import datetime as dt

import forged
import pytest

from adyton.attestation.collateral import read_blobs
from adyton.attestation.dcap import abi as dcap
from adyton.attestation.dcap import collateral as dcap_collateral
from adyton.attestation.expectation import Expectation
from adyton.attestation.judge import judge
from adyton.attestation.verify import verify
from adyton.errors import (
    AttestationError,
    CollateralMissingError,
    EvidenceMalformedError,
    ExpectationError,
    NotGenuineError,
    TcbError,
)

AT = forged.AT


@pytest.mark.parametrize(("version", "kind", "platform"), [(3, 0, "sgx"), (4, 0, "tdx"), (5, 2, "tdx"), (5, 3, "tdx")])
@pytest.mark.parametrize("debug", [False, True])
def test_a_quote_of_each_version_is_read(version, kind, platform, debug):
    raw = forged.quote(version, kind=kind, debug=debug, report_data=b"\7" * 64)
    quote = dcap.parse(raw + bytes(0 if platform == "sgx" else dcap.LEAST_ZEROS))
    assert (quote.platform, quote.version, quote.debug, quote.report_data) == (platform, version, debug, b"\7" * 64)
    assert len(quote.raw) == len(forged.quote(version, kind=kind))
    for more in (b"\0", bytes(dcap.LEAST_ZEROS - 1), bytes(dcap.LEAST_ZEROS) + b"\1"):
        with pytest.raises(EvidenceMalformedError):
            dcap.parse(raw + more)


@pytest.mark.parametrize(("version", "kind"), [(3, 0), (4, 0), (5, 2), (5, 3)])
def test_a_quote_that_nobody_signed_is_not_genuine(version, kind):
    pytest.importorskip("dcap_qvl")
    with pytest.raises(AttestationError) as raised:
        verify(forged.quote(version, kind=kind), at=AT)
    assert raised.value.exit_code in (20, 21, 22)


@pytest.fixture
def intel(monkeypatch):
    pytest.importorskip("dcap_qvl")
    from adyton.attestation.dcap import verify as module

    found = forged.Intel()
    monkeypatch.setattr(module, "ROOT", forged.der(found.chain[2]))
    return found


each_quote = pytest.mark.parametrize(
    ("version", "kind", "platform"), [(3, 0, "sgx"), (4, 0, "tdx"), (5, 2, "tdx"), (5, 3, "tdx")]
)
DEBUG = {"sgx": b"\7", "tdx": b"\1\0\0\x10"}


@each_quote
def test_a_signed_quote_is_genuine(intel, version, kind, platform):
    quote = intel.quote(version, kind=kind, report_data=b"\7" * 64)
    verified = verify(quote, read_blobs((intel.collateral(platform),)), AT)
    assert (verified.identity.platform, verified.tcb, verified.identity.debug) == (platform, "UpToDate", False)
    assert verified.report_data == b"\7" * 64
    assert verified.identity.machine == "08" * 16


@each_quote
def test_what_intels_service_answers_is_collateral_file_by_file(intel, version, kind, platform):
    found = read_blobs(intel.answers(platform, status="SWHardeningNeeded"))
    assert verify(intel.quote(version, kind=kind), found, AT).tcb == "SWHardeningNeeded"


@each_quote
@pytest.mark.parametrize("status", ["UpToDate", "OutOfDate"])
def test_debug_mode_is_for_the_policy_to_accept(intel, version, kind, platform, status):
    found = read_blobs(intel.answers(platform, status=status))
    quote = intel.quote(version, kind=kind, attributes=DEBUG[platform], report_data=b"\7" * 64)
    verified = verify(quote, found, AT)
    assert (verified.identity.debug, verified.tcb, verified.report_data) == (True, status, b"\7" * 64)
    wanted = {"platforms": [platform], "runtime": [verified.identity.runtime], "tcb": [status]}
    assert [each.field for each in judge(quote, Expectation(**wanted), found, AT).failures] == ["debug"]
    assert judge(quote, Expectation(**wanted, debug=True), found, AT).ok


@each_quote
@pytest.mark.parametrize("sept", [0x10, 0])
def test_attributes_hide_nothing_else(intel, version, kind, platform, sept):
    found, other = read_blobs(intel.answers(platform)), forged.Intel()
    attributes = DEBUG[platform][:3] + bytes((sept,))
    quote = intel.quote(version, kind=kind, attributes=attributes)
    for changed in (
        other.quote(version, kind=kind, attributes=attributes),
        quote[:60] + bytes((quote[60] ^ 1,)) + quote[61:],
    ):
        with pytest.raises(NotGenuineError):
            verify(changed, found, AT)
    with pytest.raises(CollateralMissingError):
        verify(quote, found, AT + dt.timedelta(days=90))
    with pytest.raises(TcbError):
        verify(quote, read_blobs(intel.answers(platform, revoked=(9,))), AT)


@each_quote
def test_a_revoked_processor_is_one_of_the_tcb(intel, version, kind, platform):
    with pytest.raises(TcbError, match="revocation of Intel SGX PCK Certificate"):
        verify(intel.quote(version, kind=kind), read_blobs(intel.answers(platform, revoked=(9,))), AT)


@each_quote
def test_an_expired_certificate_of_the_quotes_own_says_so(intel, version, kind, platform):
    late = forged.UNTIL + dt.timedelta(days=1)
    with pytest.raises(NotGenuineError, match="time of Intel SGX PCK Certificate"):
        verify(intel.quote(version, kind=kind), read_blobs(intel.answers(platform, at=late)), late)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (3, {"service": b"\1" * 48}),
        (2, {"attributes": b"\0\0\0\x30"}),
        (2, {"attributes": b"\2\0\0\x10"}),
    ],
)
def test_a_genuine_td_that_is_not_its_own_master_is_what_no_policy_wants(intel, kind, changes):
    with pytest.raises(ExpectationError, match="attributes of the TD"):
        verify(intel.quote(5, kind=kind, **changes), read_blobs(intel.answers("tdx")), AT)


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("version", [4, 5])
def test_whether_a_td_may_fault_is_for_the_measured_guest(intel, version, debug):
    found = read_blobs(intel.answers("tdx"))
    verified = verify(intel.quote(version, attributes=bytes((debug, 0, 0, 0x40))), found, AT)
    assert verified.more["may_fault"]
    assert verified.identity.debug is debug
    assert not verify(intel.quote(version), found, AT).more["may_fault"]


@pytest.mark.parametrize("certified", [1, 2, 3, 4, 6, 7])
def test_a_quote_without_the_certificates_of_its_processor_is_refused(intel, certified):
    with pytest.raises(EvidenceMalformedError, match="certificates of the quote"):
        verify(intel.quote(3, certified=certified), read_blobs(intel.answers()), AT)


@each_quote
def test_no_signed_part_of_a_debug_quote_may_change_nor_of_what_it_is_judged_by(intel, version, kind, platform):
    """dcap-qvl must look at attributes last (see `dcap.twin`): a release that does not is found here."""
    quote = intel.quote(version, kind=kind, attributes=DEBUG[platform])
    answers = intel.answers(platform)
    assert verify(quote, read_blobs(answers), AT).identity.debug
    end = {3: 432, 4: 632, 5: 54 + (648 if kind == 3 else 584)}[version]
    enclave = end + 4 + 128 + (6 if version > 3 else 0)
    parts = {"body": end - 1, "its signature": end + 10, "attestation key": end + 74, "quoting enclave": enclave + 300}
    parts |= {"its signature, too": enclave + 400, "data beside it": enclave + 455, "certificates": enclave + 900}
    for at in parts.values():
        with pytest.raises((NotGenuineError, EvidenceMalformedError)):
            verify(quote[:at] + bytes((quote[at] ^ 1,)) + quote[at + 1 :], read_blobs(answers), AT)
    for number, answer in enumerate(answers[:2]):
        other = answer.replace(b"2024-03-13", b"2024-03-14")
        assert other != answer
        with pytest.raises(CollateralMissingError):
            verify(quote, read_blobs((*answers[:number], other, *answers[number + 1 :])), AT)
    for number in range(2, 4):
        with pytest.raises(CollateralMissingError):
            verify(quote, read_blobs((*answers[:number], *answers[number + 1 :])), AT)


def test_certificates_that_intel_has_issued_anew_hold_at_their_own_time(intel):
    later = forged.UNTIL + dt.timedelta(days=400)
    new = forged.Intel(**{each: getattr(intel, each) for each in ("root", "authority", "pck", "attestation")})
    new.since, new.until = forged.UNTIL, later
    for blobs in ((*intel.answers(), *new.answers(at=AT)), (*new.answers(at=AT), *intel.answers())):
        assert verify(intel.quote(3), read_blobs(blobs), AT).tcb == "UpToDate"


@each_quote
def test_what_others_have_signed_under_intels_names_may_lie_beside_it(intel, monkeypatch, version, kind, platform):
    monkeypatch.setattr(dcap_collateral, "INTEL", dcap_collateral.digest_of_key(intel.chain[2]))
    other = forged.Intel()
    later = other.answers(platform, at=AT + dt.timedelta(days=1), status="Revoked")
    for blobs in ((*later, *intel.answers(platform)), (*intel.answers(platform), *later)):
        assert verify(intel.quote(version, kind=kind), read_blobs(blobs), AT).tcb == "UpToDate"
        with pytest.raises(NotGenuineError, match="issuer of Intel SGX PCK Platform CA"):
            verify(other.quote(version, kind=kind), read_blobs(blobs), AT)
