"""Fuzz targets of what platforms and hosts give an attester."""

from __future__ import annotations

from adyton.attestation.sev_snp.certificate_table import parse


def host_certificates(data: bytes) -> None:
    """A host's table of certificates: what comes out was in it."""
    for certificate in parse(data):
        assert certificate
        assert certificate in data
