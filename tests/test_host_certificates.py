"""The table of certificates that a host gives along with an SEV-SNP report: its own, so hostile."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vectors import needs_vectors, read

from adyton.attestation.collateral import read_blobs
from adyton.attestation.sev_snp.certificate_table import MAX_CERTIFICATE, parse
from adyton.errors import EvidenceMalformedError

VCEK, VLEK = "63da758d-e664-4564-adc5-f4b93be8accd", "a8074bc2-a25a-483e-aae6-39c045a0b8a1"
ASK, ARK = "4ab7b379-bbac-4fe4-a02f-05aef327c782", "c0b406a4-a803-4952-9743-3fb6014cd0ae"
CRL = "92f81bc3-5811-4d3d-97ff-d19f88dc67ea"


def table(*entries, end=bytes(24)):
    """`entries`: GUID and certificate."""
    at, heads, body = 24 * len(entries) + len(end), b"", b""
    for guid, certificate in entries:
        heads += struct.pack("<16sII", UUID(guid).bytes, at + len(body), len(certificate))
        body += certificate
    return heads + end + body


def test_certificates_come_in_the_order_in_which_an_issuers_follows():
    assert parse(table((ARK, b"ark"), (ASK, b"ask"), (VCEK, b"vcek"))) == (b"vcek", b"ask", b"ark")
    assert parse(table((ASK, b"asvk"), (VLEK, b"vlek"))) == (b"vlek", b"asvk")


def test_what_is_of_no_use_is_left_out():
    assert parse(table((CRL, b"crl"), (VCEK, b"vcek"), (ASK, b""))) == (b"vcek",)


def test_the_first_bytes_are_as_hardware_has_them():
    """A host's table begins with 63 da 75 8d, and not with 8d 75 da 63, which is how Windows writes a GUID."""
    assert table((VCEK, b"vcek"))[:4] == bytes.fromhex("63da758d")


@pytest.mark.parametrize("size", [0, 1, 24, 4096])
def test_a_host_may_have_none(size):
    assert parse(bytes(size)) == ()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (table((VCEK, b"vcek"), end=b""), "an entry of zeros at its end"),
        (table((VCEK, b"vcek"))[:-1], "within 51 bytes"),
        (struct.pack("<16sII", UUID(VCEK).bytes, 0xFFFFFFFF, 2) + bytes(24), "2 at 4294967295"),
        (struct.pack("<16sII", UUID(VCEK).bytes, 48, 0xFFFFFFFF) + bytes(24), "4294967295 at 48"),
        (table((VCEK, bytes(MAX_CERTIFICATE + 1))), "at most"),
        (table((VCEK, b"one"), (VCEK, b"two")), "one of each kind"),
        (table(*[(CRL, b"x")] * 32), "an entry of zeros at its end"),
    ],
)
def test_a_broken_table_is_refused(bad, why):
    with pytest.raises(EvidenceMalformedError, match=why):
        parse(bad)


@given(st.binary(max_size=400))
def test_only_the_documented_error_leaves(data):
    try:
        found = parse(data)
    except EvidenceMalformedError:
        return
    assert all(each in data for each in found)


@given(st.lists(st.tuples(st.sampled_from([VCEK, VLEK, ASK, ARK, CRL]), st.binary(max_size=40)), max_size=5), st.data())
def test_no_changed_byte_lets_another_error_out(entries, data):
    whole = bytearray(table(*entries))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))
    try:
        parse(bytes(whole))
    except EvidenceMalformedError:
        pass


@needs_vectors
def test_real_certificates_in_a_table_can_be_read_by_who_verifies():
    vcek = read("snp-virtee-sev/tests/certs_data/vcek_milan.der")
    chain = read("snp-virtee-sev/tests/certs_data/cert_chain_milan")
    found = read_blobs(parse(table((VCEK, vcek), (ASK, chain))))
    assert len(found.certificates) == 3
