"""What has to be known to judge evidence, and where vendors publish it: pure, from the evidence alone.

Sources: Intel's Provisioning Certification Service, version 4; AMD 57230, Key Distribution Service. AWS publishes nothing but its root.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from adyton.attestation.evidence import HardwareBody, decode, open_envelope, raw_kind
from adyton.attestation.sev_snp.abi import SIZE, Product, Report, Tcb, parse
from adyton.errors import AttestationError

INTEL = "https://api.trustedservices.intel.com"
INTEL_ROOT_CRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
AMD = "https://kdsintf.amd.com"
Vendor = Literal["intel", "amd"]

# Intel's answers have the certificates of who signed them in these headers, percent-encoded PEM.
CHAIN_HEADERS = (
    "TCB-Info-Issuer-Chain",
    "SGX-TCB-Info-Issuer-Chain",
    "SGX-Enclave-Identity-Issuer-Chain",
    "SGX-PCK-CRL-Issuer-Chain",
)


@dataclass(frozen=True)
class Need:
    """One document. `lives`: it never changes (a chip's certificate); else it is looked at again when it says."""

    vendor: Vendor
    url: str
    lives: bool = False


def needed(evidence: bytes, *, intel: str = INTEL) -> list[tuple[Need, ...]]:
    """Of hostile evidence: alternatives, of which the first holds whose first document can be had; none where it is malformed, or needs nothing.

    `intel`: PCS, or a PCCS.
    """
    try:
        raw = raw_kind(evidence)
        if raw is None:
            envelope = open_envelope(evidence)
            if envelope.platform == "sim":
                return []
            raw = envelope.platform, decode(envelope.body, HardwareBody).report
        platform, report = raw
        if platform in ("sgx", "tdx"):
            return [needs] if (needs := _of_quote(platform, report, intel)) else []
        if platform == "sev-snp":
            return _of_report(parse(report[:SIZE]))
    except (AttestationError, ImportError):  # who verifies says what is missing
        pass
    return []


def _of_quote(platform: str, quote_: bytes, intel: str) -> tuple[Need, ...]:
    import dcap_qvl

    try:
        parsed = dcap_qvl.parse_quote(quote_)
        fmspc, authority = parsed.fmspc().lower(), parsed.ca()
    except ValueError:
        return ()
    base = f"{intel}/{platform}/certification/v4"
    return (
        Need("intel", f"{base}/tcb?fmspc={quote(fmspc)}"),
        Need("intel", f"{base}/qe/identity"),
        Need("intel", f"{intel}/sgx/certification/v4/pckcrl?ca={quote(authority)}&encoding=der"),
        Need("intel", INTEL_ROOT_CRL if intel == INTEL else f"{intel}/sgx/certification/v4/rootcacrl"),
    )


_PARTS = {"bootloader": "blSPL", "tee": "teeSPL", "snp": "snpSPL", "microcode": "ucodeSPL"}


def _of_report(report: Report) -> list[tuple[Need, ...]]:
    # Before version 3 it does not say of which product: Milan and Genoa have the same form.
    products: tuple[Product, ...] = ("Milan", "Genoa") if report.product is None else (report.product,)
    key = report.signed_by.lower()
    alternatives: list[tuple[Need, ...]] = []
    for product in products:
        tcb = Tcb.of(report.tcb_reported, product)._asdict()
        parts = {**({"fmc": "fmcSPL"} if product == "Turin" else {}), **_PARTS}
        levels = "&".join(f"{name}={tcb[part]:02}" for part, name in parts.items())
        chip = (report.chip_id[:8] if product == "Turin" else report.chip_id).hex()
        # Clouds give VLEKs to those who rent from them, and nobody else has them.
        own = Need("amd", f"{AMD}/vcek/v1/{product}/{chip}?{levels}", lives=True)
        above = Need("amd", f"{AMD}/vlek/v1/{product}/cert_chain", lives=True)
        first = own if report.signed_by == "VCEK" else above
        alternatives.append((first, Need("amd", f"{AMD}/{key}/v1/{product}/crl")))
    return alternatives if report.signed_by == "VLEK" or any(report.chip_id) else []
