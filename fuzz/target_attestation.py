"""Fuzz targets of attestation: vendors' evidence, and what vendors publish to judge it by."""

from __future__ import annotations

import datetime as dt

from adyton.attestation import verify as whole
from adyton.attestation.certificates import name_of, read_certificate
from adyton.attestation.collateral import Collateral, read_blobs
from adyton.attestation.dcap import abi as dcap
from adyton.attestation.needed import needed
from adyton.attestation.nitro import abi as nitro
from adyton.attestation.sev_snp import abi as sev_snp
from adyton.attestation.sev_snp.certificates import endorsement_of

AT = dt.datetime(2025, 6, 20, tzinfo=dt.UTC)


def dcap_quote(data: bytes) -> None:
    """A quote of SGX or TDX."""
    quote = dcap.parse(data)
    assert data.startswith(quote.raw)
    assert len(quote.report_data) == 64


def snp_report(data: bytes) -> None:
    """A report of SEV-SNP."""
    report = sev_snp.parse(data)
    assert report.raw == data
    for product in ("Milan", "Genoa", "Turin"):
        sev_snp.Tcb.of(report.tcb_reported, product)


def nitro_document(data: bytes) -> None:
    """A document of Nitro Enclaves."""
    document = nitro.parse(data)
    assert {0, 1, 2} <= document.pcrs.keys()


def certificate(data: bytes) -> None:
    """A certificate; of a chip's key, perhaps."""
    found = read_certificate(data, "a certificate")
    name_of(found)
    endorsement_of(found)


def collateral(data: bytes) -> None:
    """A file of collateral."""
    read_blobs((data,))


def any_evidence(data: bytes) -> None:
    """Evidence of whatever kind, from what it needs to what it says. Nothing of it can be genuine but a simulation's."""
    needed(data)
    verified = whole.verify(data, Collateral(), AT)
    assert verified.identity.platform == "sim"
