"""Intel's documents for one quote, put together from whatever there is: PCS's own answers, a PCCS's, or one object of a client of those.

A document is signed over the very bytes of its object "tcbInfo" or "enclaveIdentity", so those are kept as they came.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.attestation.certificates import is_issued_by, is_list_of, name_of
from adyton.attestation.collateral import Collateral, read_blobs
from adyton.attestation.findings import refuse

if TYPE_CHECKING:
    import dcap_qvl

    from adyton.attestation.dcap.abi import Quote

_TCB = {"sgx": "SGX", "tdx": "TDX"}
_QUOTING_ENCLAVE = {"sgx": "QE", "tdx": "TD_QE"}
_SIGNER, _ROOT = "Intel SGX TCB Signing", "Intel SGX Root CA"
INTEL = "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"  # SHA-256 of its root's public key (SubjectPublicKeyInfo)
_AUTHORITIES = {"platform": "Intel SGX PCK Platform CA", "processor": "Intel SGX PCK Processor CA"}


class _Document(NamedTuple):
    """`text`: what is signed. `fields`: of it."""

    text: str
    signature: bytes
    fields: dict[str, Any]


class _Answer(msgspec.Struct, frozen=True):
    """Of PCS: an object and its signature, in hex."""

    signature: str
    tcbInfo: msgspec.Raw = msgspec.Raw()  # noqa: N815 - Intel's names
    enclaveIdentity: msgspec.Raw = msgspec.Raw()  # noqa: N815


class _Together(msgspec.Struct, frozen=True):
    """Of a client of PCS or a PCCS: objects as text, beside their signatures."""

    tcb_info: str
    tcb_info_signature: str
    qe_identity: str
    qe_identity_signature: str
    root_ca_crl: str = ""
    pck_crl: str = ""


class Found(NamedTuple):
    """What dcap-qvl is to judge by. `chain`: of the processor's key, with the root; `signer`: of the documents, with the root."""

    documents: dcap_qvl.QuoteCollateralV3
    chain: tuple[x509.Certificate, ...]
    signer: tuple[x509.Certificate, ...]


def collateral_for(quote: Quote, collateral: Collateral, at: dt.datetime) -> Found:
    """EvidenceMalformedError for a quote without its certificates, NotGenuineError where those are not Intel's; CollateralMissingError for what is missing.

    What others have signed under Intel's names, as suites of tests have it, may lie beside what Intel has.
    """
    import dcap_qvl

    try:
        parsed = dcap_qvl.parse_quote(quote.raw)
        fmspc, authority = parsed.fmspc().lower(), _AUTHORITIES[parsed.ca()]
    except (ValueError, KeyError) as error:
        raise refuse("malformed", "certificates of the quote", "a PCK certificate chain", str(error)[:200]) from error
    own = read_blobs((parsed.cert_chain_pem_bytes() or b"",))
    collateral += own
    root = _root(collateral)
    if any(name_of(each) == authority and not is_issued_by(each, root) for each in own.certificates):
        raise refuse("genuine", f"issuer of {authority}", f"{_ROOT}, which is Intel's", "another")
    signer, between = _certificate(collateral, _SIGNER, root, at), _certificate(collateral, authority, root, at)
    answers = list(_documents(collateral))
    tcb = _best(
        [
            each
            for each in answers
            if each.fields.get("id") == _TCB[quote.platform] and str(each.fields.get("fmspc")).lower() == fmspc
        ],
        signer,
        at,
        f"Intel's TCB info for {_TCB[quote.platform]}, FMSPC {fmspc}",
    )
    identity = _best(
        [each for each in answers if each.fields.get("id") == _QUOTING_ENCLAVE[quote.platform]],
        signer,
        at,
        f"Intel's identity of the quoting enclave, {_QUOTING_ENCLAVE[quote.platform]}",
    )
    documents = dcap_qvl.QuoteCollateralV3(
        pck_crl_issuer_chain=_pem(between, root),
        root_ca_crl=_revocation_list(collateral, root, at),
        pck_crl=_revocation_list(collateral, between, at),
        tcb_info_issuer_chain=_pem(signer, root),
        tcb_info=tcb.text,
        tcb_info_signature=tcb.signature,
        qe_identity_issuer_chain=_pem(signer, root),
        qe_identity=identity.text,
        qe_identity_signature=identity.signature,
    )
    leaf = next((each for each in own.certificates if each.issuer == between.subject), None)
    return Found(documents, (between, root) if leaf is None else (leaf, between, root), (signer, root))


def _documents(collateral: Collateral) -> Iterator[_Document]:
    for document, whole in collateral.documents:
        # Intel's own library keeps answers whole, as text in an object.
        within = [each.encode() for each in document.values() if isinstance(each, str) and each.startswith("{")]
        yield from _documents_in([whole, *within])


def _documents_in(texts: list[bytes]) -> Iterator[_Document]:
    for text in texts:
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


def _best(found: list[_Document], signer: x509.Certificate, at: dt.datetime, what: str) -> _Document:
    """Of those, one that Intel signed and that holds at that time, if any does; the latest."""
    if not found:
        raise refuse("collateral", "collateral", what, "none")
    signed = [each for each in found if _is_signed_by(each, signer)]
    latest = sorted(signed or found, key=lambda each: str(each.fields.get("issueDate")))
    now = f"{at:%Y-%m-%dT%H:%M:%SZ}"  # as Intel writes times, which sort as text
    hold = [each for each in latest if str(each.fields.get("issueDate")) <= now <= str(each.fields.get("nextUpdate"))]
    return (hold or latest)[-1]


def _is_signed_by(document: _Document, signer: x509.Certificate) -> bool:
    key, size = signer.public_key(), len(document.signature) // 2
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    r, s = (int.from_bytes(part, "big") for part in (document.signature[:size], document.signature[size:]))
    try:
        key.verify(encode_dss_signature(r, s), document.text.encode(), ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _root(collateral: Collateral) -> x509.Certificate:
    """Intel's, among those of its name."""
    named = [each for each in collateral.certificates if name_of(each) == _ROOT]
    if not named:
        raise refuse("collateral", "collateral", f"the certificate of {_ROOT}", "none")
    return next((each for each in named if digest_of_key(each) == INTEL), named[0])


def digest_of_key(certificate: x509.Certificate) -> str:
    """SHA-256 of SubjectPublicKeyInfo."""
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).hexdigest()


def _certificate(collateral: Collateral, name: str, issuer: x509.Certificate, at: dt.datetime) -> x509.Certificate:
    """One that is valid at that time, if any is: Intel has them issued anew."""
    found = [each for each in collateral.certificates if name_of(each) == name and is_issued_by(each, issuer)]
    if not found:
        raise refuse("collateral", "collateral", f"the certificate of {name}", "none")
    return next((each for each in found if each.not_valid_before_utc <= at <= each.not_valid_after_utc), found[0])


def _pem(*chain: x509.Certificate) -> str:
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in chain)


def _revocation_list(collateral: Collateral, issuer: x509.Certificate, at: dt.datetime) -> bytes:
    found = [each for each in collateral.revocation_lists if each.issuer == issuer.subject and is_list_of(each, issuer)]
    if not found:
        raise refuse("collateral", "collateral", f"the revocation list of {name_of(issuer)}", "none")
    found.sort(key=lambda each: each.last_update_utc)
    hold = [
        each
        for each in found
        if each.last_update_utc <= at and (each.next_update_utc is None or at <= each.next_update_utc)
    ]
    return (hold or found)[-1].public_bytes(Encoding.DER)
