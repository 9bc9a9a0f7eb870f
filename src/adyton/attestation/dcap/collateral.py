"""Intel's documents for one quote, put together from whatever there is: PCS's own answers, a PCCS's, or one object of a client of those.

A document is signed over the very bytes of its object "tcbInfo" or "enclaveIdentity", so those are kept as they came.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from adyton.attestation.certificates import is_issued_by, name_of
from adyton.attestation.collateral import Collateral
from adyton.attestation.findings import refuse

if TYPE_CHECKING:
    import dcap_qvl

    from adyton.attestation.dcap.abi import Quote

_TCB = {"sgx": "SGX", "tdx": "TDX"}
_QUOTING_ENCLAVE = {"sgx": "QE", "tdx": "TD_QE"}
_SIGNER, _ROOT = "Intel SGX TCB Signing", "Intel SGX Root CA"
_AUTHORITIES = {"platform": "Intel SGX PCK Platform CA", "processor": "Intel SGX PCK Processor CA"}


class _Document(NamedTuple):
    """`text`: what is signed. `fields`: of it."""

    text: str
    signature: bytes
    fields: dict[str, Any]


class _Answer(msgspec.Struct, frozen=True):
    """Of PCS: an object and its signature, in hex."""

    signature: str
    tcbInfo: msgspec.Raw = msgspec.Raw()  # noqa: N815 - Intel's names. (With "| None" msgspec takes nothing but null.)
    enclaveIdentity: msgspec.Raw = msgspec.Raw()  # noqa: N815


class _Together(msgspec.Struct, frozen=True):
    """Of a client of PCS or a PCCS: objects as text, beside their signatures."""

    tcb_info: str
    tcb_info_signature: str
    qe_identity: str
    qe_identity_signature: str
    root_ca_crl: str = ""
    pck_crl: str = ""


def collateral_for(quote: Quote, collateral: Collateral, at: dt.datetime) -> dcap_qvl.QuoteCollateralV3:
    """CollateralMissingError for what is missing; EvidenceMalformedError for a quote without its certificates."""
    import dcap_qvl

    try:
        parsed = dcap_qvl.parse_quote(quote.raw)
        fmspc, authority = parsed.fmspc().lower(), _AUTHORITIES[parsed.ca()]
    except (ValueError, KeyError) as error:
        raise refuse("malformed", "certificates of the quote", "a PCK certificate chain", str(error)[:200]) from error
    documents = list(_documents(collateral))
    tcb = _best(
        [
            each
            for each in documents
            if each.fields.get("id") == _TCB[quote.platform] and str(each.fields.get("fmspc")).lower() == fmspc
        ],
        at,
        f"Intel's TCB info for {_TCB[quote.platform]}, FMSPC {fmspc}",
    )
    identity = _best(
        [each for each in documents if each.fields.get("id") == _QUOTING_ENCLAVE[quote.platform]],
        at,
        f"Intel's identity of the quoting enclave, {_QUOTING_ENCLAVE[quote.platform]}",
    )
    root = _certificate(collateral, _ROOT, None)
    signer = _pem(_certificate(collateral, _SIGNER, root), root)
    return dcap_qvl.QuoteCollateralV3(
        pck_crl_issuer_chain=_pem(_certificate(collateral, authority, root), root),
        root_ca_crl=_revocation_list(collateral, _ROOT, at),
        pck_crl=_revocation_list(collateral, authority, at),
        tcb_info_issuer_chain=signer,
        tcb_info=tcb.text,
        tcb_info_signature=tcb.signature,
        qe_identity_issuer_chain=signer,
        qe_identity=identity.text,
        qe_identity_signature=identity.signature,
    )


def _documents(collateral: Collateral) -> Iterator[_Document]:
    for _, text in collateral.documents:
        for kind, parts in ((_Answer, _of_answer), (_Together, _of_client)):
            try:
                found = msgspec.json.decode(text, type=kind)
                yield from parts(found)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                continue


def _of_answer(found: Any) -> Iterator[_Document]:
    for raw in (found.tcbInfo, found.enclaveIdentity):
        if bytes(raw):
            yield _document(bytes(raw).decode(), found.signature)


def _of_client(found: Any) -> Iterator[_Document]:
    yield _document(found.tcb_info, found.tcb_info_signature)
    yield _document(found.qe_identity, found.qe_identity_signature)


def _document(text: str, signature: str) -> _Document:
    return _Document(text, bytes.fromhex(signature), msgspec.json.decode(text, type=dict[str, Any]))


def _best(found: list[_Document], at: dt.datetime, what: str) -> _Document:
    """Of those, one that holds at that time, if any does; the latest."""
    if not found:
        raise refuse("collateral", "collateral", what, "none")
    latest = sorted(found, key=lambda each: str(each.fields.get("issueDate")))
    now = f"{at:%Y-%m-%dT%H:%M:%SZ}"  # as Intel writes times, which sort as text
    hold = [each for each in latest if str(each.fields.get("issueDate")) <= now <= str(each.fields.get("nextUpdate"))]
    return (hold or latest)[-1]


def _certificate(collateral: Collateral, name: str, issuer: x509.Certificate | None) -> x509.Certificate:
    for each in collateral.certificates:
        if name_of(each) == name and (issuer is None or is_issued_by(each, issuer)):
            return each
    raise refuse("collateral", "collateral", f"the certificate of {name}", "none")


def _pem(*chain: x509.Certificate) -> str:
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in chain)


def _revocation_list(collateral: Collateral, issuer: str, at: dt.datetime) -> bytes:
    found = [each for each in collateral.revocation_lists if _issuer_of(each) == issuer]
    if not found:
        raise refuse("collateral", "collateral", f"the revocation list of {issuer}", "none")
    found.sort(key=lambda each: each.last_update_utc)
    hold = [
        each
        for each in found
        if each.last_update_utc <= at and (each.next_update_utc is None or at <= each.next_update_utc)
    ]
    return (hold or found)[-1].public_bytes(Encoding.DER)


def _issuer_of(found: x509.CertificateRevocationList) -> str:
    common = found.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(common[0].value) if common else ""
