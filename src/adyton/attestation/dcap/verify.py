"""Is a quote genuine: dcap-qvl says so, by Intel's procedure; its words are sorted here into adyton's stages."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Any

import msgspec

from adyton.attestation.certificates import chain_failures, revocation_failures
from adyton.attestation.claims import Claims, digest_of_measured
from adyton.attestation.collateral import Collateral
from adyton.attestation.dcap.abi import Quote, parse
from adyton.attestation.dcap.collateral import Found, collateral_for
from adyton.attestation.findings import Stage, failed, refuse
from adyton.errors import AttestationError

if TYPE_CHECKING:
    import dcap_qvl

ROOT: bytes | None = None  # in DER; None: Intel's, which dcap-qvl has

# Nothing else: what it quotes of hostile documents stands behind other words.
_DEBUG = "Verification failed: Debug mode is enabled"
_MAY_FAULT = "Verification failed: SEPT_VE_DISABLE is not enabled"
_CHAIN = "Verification failed: Failed to verify certificate chain"
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
    # A genuine TD that is not its own master: what no policy of adyton's accepts.
    (
        "MR service TD|TD migration|SERVTD_EXT|TD profiling|bits in TD attributes",
        "expectation",
        "attributes of the TD",
        "those of one that nobody moves or profiles",
    ),
)


def verify(data: bytes, collateral: Collateral, at: dt.datetime) -> Claims:
    """What a quote proves at a time. Only AttestationErrors leave."""
    # (1) The quote is well-formed.
    quote = parse(data)
    # (2) Intel's documents for its processor are there.
    found = collateral_for(quote, collateral, at)
    # (3) dcap-qvl: chain, revocation, signatures, the quoting enclave's identity, the TCB's level.
    try:
        claims = _verified(quote, found.documents, at)
    except _ChainError as error:
        raise _chain_refused(found, collateral, at) from error
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
            **({"may_fault": quote.may_fault} if quote.platform == "tdx" else {}),
            **({"isv_prod_id": quote.product, "isv_svn": quote.security_version} if quote.platform == "sgx" else {}),
        },
        register=f"sha384:{quote.registers['mrtd'].hex()}" if quote.platform == "tdx" else "",
    )


# Which registers say what runs.
_REFERENCE = {"sgx": ("mrenclave",), "tdx": ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")}


def _verified(quote: Quote, collateral: dcap_qvl.QuoteCollateralV3, at: dt.datetime) -> dict[str, Any]:
    try:
        return _asked(quote.raw, collateral, at, ROOT)
    except ValueError as error:
        text = " ".join(str(error).split())
        if text == _CHAIN:
            raise _ChainError from error
        if not (text == _DEBUG and quote.debug) and not (text == _MAY_FAULT and quote.may_fault):
            raise _refused(text) from error
    # All else is as it should be: it looks at that last.
    from adyton.attestation.dcap.twin import twin

    other = twin(quote, collateral, at)
    try:
        return _asked(other.raw, other.collateral, at, other.root)
    except ValueError as error:
        raise _refused(" ".join(str(error).split())) from error


class _ChainError(Exception):
    """Some certificate's chain; dcap-qvl does not say whose, nor why."""


def _chain_refused(found: Found, collateral: Collateral, at: dt.datetime) -> AttestationError:
    if revoked := revocation_failures(found.chain, collateral.revocation_lists, at)[0]:
        return failed(revoked)
    if times := chain_failures(found.chain, at):
        return failed(times)
    if times := chain_failures(found.signer, at):
        return failed(msgspec.structs.replace(each, stage="collateral") for each in times)
    return refuse("genuine", "certificates of the quote", "a chain to Intel's root", "another")


def _asked(raw: bytes, collateral: dcap_qvl.QuoteCollateralV3, at: dt.datetime, root: bytes | None) -> dict[str, Any]:
    """ValueError says what dcap-qvl has against it."""
    import dcap_qvl

    now = max(0, int(at.timestamp()))
    claims = dcap_qvl.QuoteVerifier(root).verify_with_policy(
        raw, collateral, now, dcap_qvl.QuotePolicy.claims_only(now)
    )
    found: dict[str, Any] = msgspec.json.decode(claims.to_json())
    return found


_TIME = re.compile(r"UnixTime\((\d{1,11}|[12]\d{11})\)")


def _refused(text: str) -> AttestationError:
    text = _TIME.sub(lambda found: f"{dt.datetime.fromtimestamp(int(found[1]), dt.UTC):%FT%TZ}", text)
    text = text.removeprefix("Verification failed: ")
    for pattern, stage, field, expected in _MEANINGS:
        if re.search(pattern, text):
            return refuse(stage, field, expected, text[:300])
    return refuse("genuine", "the quote", "one of Intel's hardware", text[:300])
