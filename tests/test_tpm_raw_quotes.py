"""Quotes as other programs write them: with their signature behind them or beside, and the key beside, in any of its forms."""

import contextlib
import hashlib
import json
import struct

import pytest
from command import adyton
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS, PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from tpms import ATTRIBUTES, KEY, NOW, PCRS, RSA_KEY, Authority, name_of, public_area, quote, report, signature, sized

from adyton.attestation.collateral import Collateral, read_blobs, read_folder
from adyton.attestation.evidence import raw_kind
from adyton.attestation.expectation import Expectation
from adyton.attestation.judge import judge
from adyton.attestation.tpm.verify import verify
from adyton.errors import AttestationError, CollateralMissingError, EvidenceMalformedError, NotGenuineError

NONCE = b"a nonce of whoever asked"
QUOTE = quote(extra=NONCE)
SIGNATURE = signature(QUOTE)
WHOLE = QUOTE + SIGNATURE
AREA = public_area()
VALUES = b"".join(PCRS.values())
OTHER_KEY = ec.derive_private_key(0x43 << 64, ec.SECP256R1())


def spki(key, encoding):
    return key.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)


FINGERPRINT = "sha256:" + hashlib.sha256(spki(KEY, Encoding.DER)).hexdigest()


def judged(data, *beside):
    return verify(data, read_blobs(beside), NOW)


# -- forms ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "beside"),
    [(WHOLE, []), (sized(QUOTE) + SIGNATURE, []), (QUOTE, [SIGNATURE]), (sized(QUOTE), [SIGNATURE])],
    ids=["TPMS_ATTEST, signature", "TPM2B_ATTEST, signature", "signature beside", "TPM2B_ATTEST, signature beside"],
)
def test_a_quote_is_accepted_with_its_signature_behind_or_beside(data, beside):
    claims = judged(data, AREA, *beside)
    assert claims.machine == name_of(AREA)
    assert claims.report_data == NONCE
    assert claims.tcb == "Unknown"
    assert raw_kind(data) == ("tpm", data)
    assert raw_kind(data.hex().encode()) == ("tpm", data)


def test_a_signature_alone_is_one_if_the_key_made_it():
    """As tpm2_quote -f plain has it, and Azure's tools: no word of its scheme and its hash."""
    alone = KEY.sign(QUOTE, ec.ECDSA(SHA256()))
    of_rsa = [RSA_KEY.sign(QUOTE, each, SHA256()) for each in (PKCS1v15(), PSS(MGF1(SHA256()), 32))]
    for data, *beside in ((QUOTE, alone), (QUOTE + alone,), (sized(QUOTE) + alone,)):
        assert judged(data, AREA, *beside).machine == name_of(AREA)
        assert judged(data, spki(KEY, Encoding.PEM), VALUES, *beside).machine == FINGERPRINT
    for value in of_rsa:
        assert judged(QUOTE, spki(RSA_KEY, Encoding.PEM), value).report_data == NONCE
        with pytest.raises(NotGenuineError, match="signature of the quote"):
            judged(QUOTE, spki(RSA_KEY, Encoding.PEM), value[:-1] + bytes((value[-1] ^ 1,)))
    with pytest.raises(NotGenuineError, match="signature of the quote"):
        judged(QUOTE, spki(OTHER_KEY, Encoding.PEM), alone)


@pytest.mark.parametrize(
    ("file", "machine"),
    [
        (AREA, name_of(AREA)),
        (sized(AREA), name_of(AREA)),
        (spki(KEY, Encoding.PEM), FINGERPRINT),
        (spki(KEY, Encoding.DER), FINGERPRINT),
        (Authority().certified(KEY.public_key()).public_bytes(Encoding.PEM), FINGERPRINT),
    ],
    ids=["TPMT_PUBLIC", "TPM2B_PUBLIC", "PEM", "DER", "certificate"],
)
def test_the_key_is_found_in_any_of_its_forms(file, machine):
    claims = judged(WHOLE, file)
    assert claims.machine == machine
    assert claims.tcb == "Unknown"  # a key is nobody's word for itself, and of that certificate there is no root


def test_the_key_is_found_among_others():
    others = [public_area(OTHER_KEY), spki(RSA_KEY, Encoding.PEM), signature(quote(), OTHER_KEY), b"a note", VALUES]
    assert judged(WHOLE, *others, spki(KEY, Encoding.PEM)).machine == FINGERPRINT
    assert judged(QUOTE, *others, spki(KEY, Encoding.DER), SIGNATURE).machine == FINGERPRINT


def test_an_rsa_key_without_a_scheme_of_its_own():
    for scheme in ("rsassa", "rsapss"):
        judged(QUOTE + signature(QUOTE, RSA_KEY, scheme), spki(RSA_KEY, Encoding.PEM))


def test_a_certified_key_is_vouched_for(tmp_path):
    authority = Authority()
    for name, certificate in (("root", authority.certificate), ("key", authority.certified(KEY.public_key()))):
        (tmp_path / name).write_bytes(certificate.public_bytes(Encoding.PEM))
    assert verify(WHOLE, read_folder(str(tmp_path)), NOW).tcb == "UpToDate"


def test_the_reference_value_is_the_same_with_values_and_without():
    bare, with_values = judged(WHOLE, AREA), judged(WHOLE, AREA, VALUES)
    assert bare.runtime == with_values.runtime == verify(report(), Collateral(), NOW).runtime
    assert bare.measured == {bare.more["pcrs"]: hashlib.sha256(VALUES).hexdigest()}
    assert with_values.measured["sha256:7"] == PCRS["sha256", 7].hex()
    assert judged(WHOLE, AREA, VALUES[:-1] + b"x").measured == bare.measured


def test_zero_registers_are_debug_without_their_values():
    quoted = quote(dict.fromkeys(PCRS, bytes(32)))
    assert judged(quoted + signature(quoted), AREA).debug


# What tpm2_quote 5.4 (-m, -s) and tpm2_createak (-u, -n) wrote, of swtpm 0.7.1: PCRs 0 to 7, of which 7 was extended.
TOOLS_QUOTE = bytes.fromhex(
    "ff54434780180022000b148d69fb2cf6f96f5aa6d3fbf655c7efb1c0cd0429100cf71bf2f13c1a45f90b0005001122334400"
    "0000000000025b000000010000000001201910230016363600000001000b03ff00000020933ff24c3402a451dec2044a3710"
    "d30e6ecebe8f00e0ecb6002be660aaed9000"
)
TOOLS_SIGNATURE = bytes.fromhex(
    "0018000b002023c8e2470f7ef45899721ecc522e17b07b64df9a6abdcbfdc3305fe1f41341ac00206e981421235617660066"
    "9d238d694166a51caebd353c026bd5d29619636588ef"
)
TOOLS_KEY = bytes.fromhex(
    "00580023000b00050072000000100018000b00030010002009dadc9421db9f8ad63cf9d596cce515e739a8cb008eb6c1a0cc"
    "3227550765cb0020d66476aa6f0fd7869bb076bfb3646e02d39f31081ba9be155d891f057d4cee73"
)
TOOLS_NAME = "000b3cc027e59e5f64a5e7407b5fd62c34a326a0e0d63131d79ad66069e3ec7d514f"


def test_what_tpm2_tools_wrote_is_accepted():
    claims = judged(TOOLS_QUOTE + TOOLS_SIGNATURE, TOOLS_KEY)
    assert claims.machine == TOOLS_NAME
    assert claims.report_data == bytes.fromhex("0011223344")
    values = bytes(7 * 32) + hashlib.sha256(bytes(32) + b"\x11" * 32).digest()
    assert judged(TOOLS_QUOTE, TOOLS_SIGNATURE, TOOLS_KEY, values).measured["sha256:7"] == values[-32:].hex()


# -- what is refused ------------------------------------------------------------------------------------------------------


def test_a_quote_without_a_signature_is_no_evidence():
    for data in (QUOTE, sized(QUOTE)):
        with pytest.raises(EvidenceMalformedError, match="signature of the quote: expected a TPMT_SIGNATURE"):
            judged(data, AREA)


def test_a_quote_without_a_key_needs_one():
    with pytest.raises(CollateralMissingError, match="TPM2B_PUBLIC"):
        judged(WHOLE)


def test_another_key_is_refused():
    for beside in (public_area(OTHER_KEY), spki(OTHER_KEY, Encoding.PEM), public_area(RSA_KEY)):
        with pytest.raises(NotGenuineError, match="signature"):
            judged(WHOLE, beside)


def test_a_key_that_is_too_small_is_refused():
    for key in (rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP224R1())):
        with pytest.raises(NotGenuineError, match="bits at least"):
            judged(QUOTE + signature(QUOTE, key), spki(key, Encoding.PEM))


def test_a_key_that_signs_anything_is_refused_where_that_is_known():
    unrestricted = public_area(attributes=ATTRIBUTES & ~(1 << 16))
    for beside in ((unrestricted,), (spki(KEY, Encoding.PEM), unrestricted)):
        with pytest.raises(NotGenuineError, match="signs what its TPM says only"):
            judged(WHOLE, *beside)


def test_each_byte_counts():
    for at in range(len(WHOLE)):
        with pytest.raises((EvidenceMalformedError, NotGenuineError)):
            judged(WHOLE[:at] + bytes([WHOLE[at] ^ 0x10]) + WHOLE[at + 1 :], AREA)


def test_cut_or_extended_it_is_malformed():
    for data in (*(WHOLE[:size] for size in range(4, len(WHOLE))), WHOLE + b"\0", sized(QUOTE + b"\0") + SIGNATURE):
        with pytest.raises(EvidenceMalformedError):
            judged(data, AREA)


def test_a_wrong_nonce_is_found():
    policy = Expectation(
        platforms=["tpm"], machines=[name_of(AREA)], tcb=["Unknown"], runtime=[judged(WHOLE, AREA).runtime]
    )
    beside = read_blobs((AREA,))
    assert judge(WHOLE, policy, beside, NOW, NONCE).ok
    assert judge(WHOLE, policy, beside, NOW, NONCE).binding == "ok"
    assert judge(WHOLE, policy, beside, NOW).binding == "not checked"
    for other in (b"", NONCE[:-1], NONCE + b"\0", hashlib.sha256(NONCE).digest()):
        assert judge(WHOLE, policy, beside, NOW, other).error.exit_code == 25
    unnamed = Expectation(platforms=["tpm"], tcb=["Unknown"], runtime=policy.runtime)
    assert judge(WHOLE, unnamed, beside, NOW, NONCE).error.exit_code == 21


@given(st.integers(0, len(WHOLE)), st.integers(0, 8), st.binary(max_size=8), st.binary(max_size=100))
def test_only_attestation_errors_leave(at, taken, put, beside):
    with contextlib.suppress(AttestationError):
        judged(WHOLE[:at] + put + WHOLE[at + taken :], AREA, beside)


@given(st.binary(max_size=200))
def test_any_file_may_lie_beside(blob):
    with contextlib.suppress(AttestationError):
        judged(WHOLE, blob)
    assert judged(WHOLE, blob, AREA, struct.pack(">H", 3)).machine == name_of(AREA)


# -- the command ----------------------------------------------------------------------------------------------------------


def test_the_command_judges_raw_quotes(tmp_path):
    evidence, policy, beside = tmp_path / "quote", tmp_path / "policy.toml", tmp_path / "beside"
    evidence.write_bytes(WHOLE)
    beside.mkdir()
    (beside / "ak.pub").write_bytes(sized(AREA))

    def run(*options, **expect):
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in expect.items()]
        policy.write_text('[expect]\nplatforms = ["tpm"]\n' + "".join(lines))
        done = adyton("verify", str(evidence), "--policy", str(policy), "--collateral", str(beside), "--json", *options)
        return done.returncode, json.loads(done.stdout)

    code, told = run(runtime=["sha256:" + "1" * 64])
    assert code == 21
    assert [failure["field"] for failure in told["failures"]] == ["attestation key", "tcb", "runtime"]
    found = {"runtime": [told["identity"]["runtime"]], "machines": [told["identity"]["machine"]], "tcb": [told["tcb"]]}
    code, told = run("--report-data", NONCE.hex(), **found)
    assert (code, told["ok"], told["binding"]) == (0, True, "ok")
    assert run("--report-data", "00", **found)[0] == 25
    (beside / "ak.pub").unlink()
    assert run(**found)[0] == 22
