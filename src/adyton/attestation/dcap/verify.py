"""Is a quote genuine: dcap-qvl says so, by Intel's procedure; its words are sorted here into adyton's stages."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import msgspec

from adyton.attestation.claims import Claims, digest_of_measured
from adyton.attestation.collateral import Collateral
from adyton.attestation.dcap.abi import Quote, parse
from adyton.attestation.dcap.collateral import collateral_for
from adyton.attestation.findings import Stage, refuse

# What dcap-qvl says → stage, and what it is about. The first that fits; everything else is "genuine".
_MEANINGS: tuple[tuple[str, Stage, str, str], ...] = (
    ("decode quote|Unsupported (DCAP|quote)|decode QE report", "malformed", "the quote", "one of Intel's"),
    (
        "CrlExpired|expired|in the future|CertNotValidYet|CertExpired",
        "collateral",
        "time of the collateral",
        "one that holds then",
    ),
    ("CertRevoked|TCB status is invalid: Revoked", "tcb", "revocation", "none"),
    (
        "No matching TCB level|TDX module|below minimum required|No TCB levels",
        "tcb",
        "TCB level",
        "one that Intel knows",
    ),
    ("Fmspc mismatch|non-(TDX|SGX) TCB|Unsupported QE Identity", "collateral", "collateral", "of this processor"),
    (
        "(tcb_info|qe_identity) in quote_collateral|CRL|T(cb|CB )Info|TcbInfo|QE ?Identity|QeIdentity",
        "collateral",
        "collateral",
        "what Intel signed",
    ),
)


def verify(data: bytes, collateral: Collateral, at: dt.datetime) -> Claims:
    """What a quote proves at a time. Only AttestationErrors leave."""
    # (1) The quote is well-formed.
    quote = parse(data)
    # (2) Intel's documents for its processor are there.
    found = collateral_for(quote, collateral, at)
    # (3) dcap-qvl: chain, revocation, signatures, the quoting enclave's identity, the TCB's level.
    claims = _verified(quote, found, at)
    # (4) What is measured.
    tcb, platform = claims["tcb"], claims["platform"]
    reference = _REFERENCE[quote.platform]
    instance = bytes(platform["pck"]["platform_instance_id"] or ())
    return Claims(
        platform=quote.platform,
        runtime=digest_of_measured(quote.platform, {name: quote.registers[name] for name in reference}),
        measured={name: value.hex() for name, value in quote.registers.items()},
        report_data=quote.report_data,
        debug=quote.debug,
        machine=(instance or bytes(platform["pck"]["ppid"])).hex(),
        tcb=tcb["status"],
        advisories=tuple(tcb["advisory_ids"]),
        more={
            "fmspc": bytes(platform["pck"]["fmspc"]).hex(),
            "tcb_date": platform["tcb_level"]["tcbDate"],
            "attributes": quote.attributes.hex(),
            **({"isv_prod_id": quote.product, "isv_svn": quote.security_version} if quote.platform == "sgx" else {}),
        },
        register=f"sha384:{quote.registers['mrtd'].hex()}" if quote.platform == "tdx" else "",
    )


# Which registers say what runs.
_REFERENCE = {"sgx": ("mrenclave",), "tdx": ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")}


_TIME = re.compile(r"UnixTime\((\d{1,11}|[12]\d{11})\)")


def _readable(text: str) -> str:
    """Its words, with times as people write them."""
    plain = text.removeprefix("Verification failed: ")
    return _TIME.sub(lambda found: f"{dt.datetime.fromtimestamp(int(found[1]), dt.UTC):%FT%TZ}", plain)


def _verified(quote: Quote, collateral: Any, at: dt.datetime) -> dict[str, Any]:
    import dcap_qvl

    now = max(0, int(at.timestamp()))
    try:
        claims = dcap_qvl.QuoteVerifier().verify_with_policy(
            quote.raw, collateral, now, dcap_qvl.QuotePolicy.claims_only(now)
        )
    except ValueError as error:
        text = _readable(" ".join(str(error).split()))
        for pattern, stage, field, expected in _MEANINGS:
            if re.search(pattern, text):
                raise refuse(stage, field, expected, text[:300]) from error
        raise refuse("genuine", "the quote", "one of Intel's hardware", text[:300]) from error
    found: dict[str, Any] = msgspec.json.decode(claims.to_json())
    return found
