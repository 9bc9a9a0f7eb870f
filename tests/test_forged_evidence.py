"""Evidence of each kind, signed by keys of our own that are trusted here as if they were the vendors': what is genuine, and every way in which it is not."""

from __future__ import annotations

import base64
import datetime as dt
import functools
import struct
import sys
from uuid import UUID

import forged
import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.attestation.certificates import MAX_CERTIFICATE, read_certificate
from adyton.attestation.collateral import Collateral, read_blobs
from adyton.attestation.evidence import HardwareBody, ImageClaims, seal
from adyton.attestation.expectation import Expectation
from adyton.attestation.judge import judge
from adyton.attestation.needed import needed
from adyton.attestation.nitro import verify as nitro
from adyton.attestation.sev_snp import verify as sev_snp
from adyton.attestation.verify import verify
from adyton.errors import (
    AttestationError,
    CollateralMissingError,
    EvidenceMalformedError,
    NotGenuineError,
    PlatformError,
)

AT, IMAGE = forged.AT, "sha256:" + "1" * 64


@pytest.fixture(params=["Milan", "Genoa", "Turin"])
def amd(request, monkeypatch):
    found = forged.Amd(request.param)
    monkeypatch.setattr(sev_snp, "roots", lambda: {found.product: found.chain})
    return found


@pytest.fixture
def aws(monkeypatch):
    found = forged.Aws()
    monkeypatch.setattr(nitro, "root", lambda: found.root_certificate)
    return found


def given_with(amd: forged.Amd, **changes) -> Collateral:
    return read_blobs((forged.der(amd.endorsement(**changes)), forged.der(amd.clouds)))


def stages(failures) -> set[str]:
    return {failure.stage for failure in failures}


# -- SEV-SNP --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vlek", [False, True])
@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_a_report_of_each_version_and_key_is_genuine(amd, version, vlek):
    if amd.product == "Turin":
        version = max(version, 3)  # with which its firmware began
    verified = verify(amd.report(version, vlek=vlek, report_data=b"\7" * 64), given_with(amd, vlek=vlek), AT)
    assert verified.identity.platform == "sev-snp"
    assert verified.tcb == "UpToDate"
    assert verified.report_data == b"\7" * 64
    assert verified.identity.machine == ("a cloud" if vlek else amd.report()[0x1A0:0x1E0].hex())
    assert verified.more["product"] == amd.product


@pytest.mark.parametrize(
    ("report", "endorsement", "field"),
    [
        ({"tcb": bytes(8)}, {}, "firmware of the report"),
        ({"cpu": (0x19, 0x77)}, {}, "the processor"),
        ({}, {"vlek": True}, "the report's key"),
        ({"vlek": True}, {}, "the report's key"),
        ({}, {"until": AT - dt.timedelta(days=1)}, "time of SEV-VCEK"),
        ({}, {"since": AT + dt.timedelta(days=1)}, "time of SEV-VCEK"),
    ],
)
def test_a_report_and_its_keys_certificate_must_agree(amd, report, endorsement, field):
    with pytest.raises(AttestationError) as raised:
        verify(amd.report(**report), given_with(amd, **endorsement), AT)
    assert raised.value.exit_code in (21, 22)
    if raised.value.exit_code == 21:
        assert field in {failure.field for failure in raised.value.failures}


def test_another_chips_report_is_not_genuine_whatever_key_signed_it(amd):
    other = forged.Amd(amd.product, chip=bytes(64), root=amd.root, between=amd.between, key=amd.key)
    with pytest.raises(NotGenuineError, match="chip"):
        verify(other.report(), given_with(amd), AT)


def test_a_certificate_of_another_root_is_not_genuine(amd):
    other = forged.Amd(amd.product)
    with pytest.raises(NotGenuineError, match="issuer of SEV-VCEK"):
        verify(other.report(), given_with(other), AT)


def test_a_revoked_key_is_refused(amd):
    lists = read_blobs((forged.revocations(f"SEV-{amd.product}", amd.between, 9),))
    verified = verify(amd.report(), given_with(amd) + lists, AT)
    assert stages(verified.failures) == {"tcb"}
    others = read_blobs((forged.revocations(f"SEV-{amd.product}", amd.between, 8),))
    verified = verify(amd.report(), given_with(amd) + others, AT)
    assert not verified.failures
    assert verified.more["revocation"] == "checked"
    forged_list = read_blobs((forged.revocations(f"SEV-{amd.product}", amd.key, 9),))  # signed by nobody who may
    verified = verify(amd.report(), given_with(amd) + forged_list, AT)
    assert not verified.failures
    assert verified.more["revocation"] == "not checked"


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"policy": 0xB0000}, "debug"), ({"policy": 0x70000}, "migration agent")],
)
def test_a_guest_that_is_not_its_own_master_is_refused(amd, changes, field):
    report = amd.report(**changes)
    runtime = verify(report, given_with(amd), AT).identity.runtime
    found = judge(report, Expectation(platforms=["sev-snp"], runtime=[runtime]), given_with(amd), AT)
    assert [failure.field for failure in found.failures] == [field]
    assert found.error.exit_code == 24


def test_another_vmpl_is_none_of_adytons_runtime_but_of_whoever_asked_for_the_report(amd):
    report = amd.report(vmpl=1, report_data=b"\7" * 64)
    raw = verify(report, given_with(amd), AT)
    assert (raw.more["vmpl"], raw.failures) == (1, ())
    body = HardwareBody(report, ImageClaims(IMAGE, "", 0, 0, debug=False), [forged.der(amd.endorsement())])
    assert [each.field for each in verify(seal("sev-snp", body), at=AT).failures] == ["vmpl"]


@pytest.mark.parametrize("data", [b"", b"hello", b"0", bytes(1184), b"HCLA" + bytes(2600)])
def test_what_is_no_evidence_of_any_kind_says_what_would_be(data):
    with pytest.raises(EvidenceMalformedError, match="a DCAP quote, an SNP report"):
        verify(data, at=AT)


def test_a_masked_chip_has_no_machine(amd):
    assert verify(amd.report(masked=True), given_with(amd), AT).identity.machine == ""


GUIDS = {"vcek": "63da758d-e664-4564-adc5-f4b93be8accd", "vlek": "a8074bc2-a25a-483e-aae6-39c045a0b8a1"}
GUIDS["ask"] = "4ab7b379-bbac-4fe4-a02f-05aef327c782"


def table(**certificates: x509.Certificate) -> bytes:
    """As a host gives it: an entry of GUID, offset and length for each, one of zeros, and the certificates."""
    entries, bodies, at = b"", b"", 24 * (len(certificates) + 1)
    for kind, found in certificates.items():
        entries += UUID(GUIDS[kind]).bytes + struct.pack("<II", at + len(bodies), len(forged.der(found)))
        bodies += forged.der(found)
    return entries + bytes(24) + bodies


@pytest.mark.parametrize("vlek", [False, True])
def test_a_report_with_its_hosts_certificates_behind_it_needs_no_others(amd, vlek):
    key = amd.endorsement(vlek=vlek)
    behind = table(vlek=key, ask=amd.clouds) if vlek else table(vcek=key)
    evidence = amd.report(vlek=vlek) + behind + bytes(100)
    assert verify(evidence, Collateral(), AT).more["signed_by"] == ("VLEK" if vlek else "VCEK")
    assert needed(evidence) == needed(amd.report(vlek=vlek))


def test_a_report_with_an_empty_table_of_certificates_needs_the_verifiers(amd):
    assert verify(amd.report() + bytes(4096), given_with(amd), AT).identity.platform == "sev-snp"
    with pytest.raises(CollateralMissingError):
        verify(amd.report() + bytes(4096), Collateral(), AT)


@pytest.mark.parametrize("behind", [b"\0", b"x", bytes(23), b"x" * 24, b"x" * 4096])
def test_what_is_behind_a_report_and_no_table_of_certificates_is_malformed(amd, behind):
    with pytest.raises(EvidenceMalformedError):
        verify(amd.report() + behind, given_with(amd), AT)


def test_a_certificate_that_a_host_made_itself_vouches_for_nothing(amd):
    other = forged.Amd(amd.product, chip=amd.chip)
    with pytest.raises(NotGenuineError, match="issuer of SEV-VCEK"):
        verify(other.report() + table(vcek=other.endorsement()), Collateral(), AT)


def test_old_firmware_is_out_of_date_since_its_bulletin(amd, monkeypatch):
    old = bytearray(forged.TCB[amd.product])
    old[3 if amd.product == "Turin" else 6] = 1
    verified = verify(
        amd.report(tcb=bytes(old)), given_with(amd, tcb=bytes(old)), dt.datetime(2026, 5, 20, tzinfo=dt.UTC)
    )
    assert verified.tcb == "OutOfDate"
    assert all(bulletin.startswith("AMD-SB-") for bulletin in verified.advisories)


# -- Nitro ----------------------------------------------------------------------------------------------------------------


def test_a_document_is_genuine(aws):
    verified = verify(aws.document(user_data=b"\7" * 64), at=AT)
    assert verified.identity.platform == "nitro"
    assert verified.report_data == b"\7" * 64
    assert not verified.identity.debug


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"timestamp": -1}, EvidenceMalformedError),
        ({"timestamp": 1 << 60}, EvidenceMalformedError),
        ({"timestamp": True}, EvidenceMalformedError),
        ({"digest": "SHA256"}, EvidenceMalformedError),
        ({"pcrs": {}}, EvidenceMalformedError),
        ({"pcrs": {0: bytes(48), 1: bytes(48), 2: bytes(47)}}, EvidenceMalformedError),
        ({"pcrs": {True: bytes(48), 0: bytes(48), 2: bytes(48)}}, EvidenceMalformedError),
        ({"cabundle": []}, EvidenceMalformedError),
        ({"cabundle": [b"0"]}, EvidenceMalformedError),
        ({"certificate": b""}, EvidenceMalformedError),
        ({"user_data": "text"}, EvidenceMalformedError),
        ({"module_id": b"bytes"}, EvidenceMalformedError),
        ({"at": AT + dt.timedelta(hours=1)}, NotGenuineError),
    ],
)
def test_a_document_whose_fields_are_wrong_is_refused(aws, changes, error):
    with pytest.raises(error):
        verify(aws.document(**changes), at=AT)


def test_a_document_of_another_root_is_not_genuine(aws):
    with pytest.raises(NotGenuineError, match="root of the certificates"):
        verify(forged.Aws().document(), at=AT)


def test_a_document_signed_by_another_key_is_not_genuine(aws):
    other = forged.Aws(root=aws.root)
    one, two = aws.document(), other.document()
    with pytest.raises(NotGenuineError, match="signature of the document"):
        verify(one[:-96] + two[-96:], at=AT)


@pytest.mark.parametrize(
    "written",
    [
        bytes.hex,
        lambda data: base64.b64encode(data).decode(),
        lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
    ],
)
def test_a_document_may_be_written_as_text(aws, written):
    text = written(aws.document(user_data=b"\xfb\xff" * 32))
    assert verify(f"{text[:70]}\n{text[70:]}\n".encode(), at=AT).identity.platform == "nitro"


@pytest.mark.parametrize("field", ["user_data", "nonce", "public_key"])
def test_a_document_may_leave_out_what_it_was_not_asked_for(aws, field):
    assert verify(aws.document(**{field: forged.LEFT_OUT}), at=AT).identity.platform == "nitro"


def test_a_tagged_document_is_one(aws):
    assert verify(b"\xd2" + aws.document(), at=AT).identity.platform == "nitro"


# -- whatever it is -------------------------------------------------------------------------------------------------------


@functools.cache
def evidence_and_collateral() -> tuple[list[bytes], Collateral]:
    chip, intel = forged.Amd(), forged.Intel()
    kinds = [chip.report(), chip.report() + table(vcek=chip.endorsement()), forged.Aws().document()]
    kinds += [forged.quote(3), forged.quote(5), intel.quote(3), intel.quote(5, kind=3)]
    return kinds, read_blobs((forged.der(chip.endorsement()), intel.collateral(), *intel.answers("tdx")))


@settings(max_examples=300)
@given(st.data())
def test_only_documented_errors_leave_whatever_is_changed(data):
    kinds, collateral = evidence_and_collateral()
    evidence = bytearray(kinds[data.draw(st.integers(0, len(kinds) - 1))])
    for at in data.draw(st.lists(st.integers(0, len(evidence) - 1), min_size=1, max_size=4)):
        evidence[at] = data.draw(st.integers(0, 255))
    size = data.draw(st.integers(0, len(evidence)) | st.just(len(evidence)))
    with pytest.raises(AttestationError):  # their roots are not trusted here
        verify(bytes(evidence[:size]), collateral, AT)


def test_what_the_runtime_says_of_its_image_counts_only_if_the_hardware_vouches_for_it(amd):
    image = ImageClaims(IMAGE, "", 0, 0, debug=False)
    runtime = verify(amd.report(), given_with(amd), AT).identity.runtime
    expectation = Expectation(platforms=["sev-snp"], measurement=[IMAGE], runtime=[runtime])
    certificates = [forged.der(amd.endorsement())]

    def judged(report_data: bytes, said: bytes | None):
        body = HardwareBody(amd.report(report_data=report_data), image, certificates)
        return judge(seal("sev-snp", body), expectation, Collateral(), AT, said)

    assert judged(b"\7" * 64, b"\7" * 64).ok
    assert stages(judged(b"\7" * 64, None).failures) == {"binding"}  # who made the envelope may say anything
    assert stages(judged(b"\7" * 64, b"\1" * 64).failures) == {"binding"}
    assert judged(b"\7" * 64, None).verified.identity.vouchers["measurement"] == "runtime"


def test_evidence_in_debug_hardware_is_in_debug_whatever_the_runtime_says(amd):
    image = ImageClaims(IMAGE, "", 0, 0, debug=False)
    body = HardwareBody(amd.report(policy=0xB0000), image, [forged.der(amd.endorsement())])
    assert verify(seal("sev-snp", body), at=AT).identity.debug


@pytest.mark.parametrize("data", [b"", b"0", b"\x30\x80", b"\x30" * 100, bytes(MAX_CERTIFICATE + 1)])
def test_what_is_no_certificate_is_malformed(data):
    with pytest.raises(EvidenceMalformedError):
        read_certificate(data, "a certificate")


def test_more_behind_a_certificate_is_malformed():
    with pytest.raises(EvidenceMalformedError):
        read_certificate(forged.p256_certificate() + b"\0", "a certificate")


def test_without_the_keys_certificate_nobody_can_say(amd):
    with pytest.raises(CollateralMissingError, match="certificate of the chip's key"):
        verify(amd.report(), Collateral(), AT)


@pytest.mark.parametrize(("evidence", "module"), [("quote", "dcap_qvl"), ("document", "cbor2")])
def test_what_is_not_installed_is_named_with_how_to_get_it(monkeypatch, aws, evidence, module):
    data = aws.document() if evidence == "document" else forged.quote(4)
    monkeypatch.setitem(sys.modules, module, None)
    for name in [name for name in sys.modules if name.startswith("adyton.attestation.nitro.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(PlatformError, match=rf"{module}.*adyton\[attest\]"):
        verify(data, Collateral(), AT)
