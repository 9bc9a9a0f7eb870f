"""Is a TPM's quote genuine, and whose it is."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from collections.abc import Iterable

from cryptography.hazmat.primitives.asymmetric import ec

from adyton.attestation.certificates import name_of, revocation_failures
from adyton.attestation.claims import UNVOUCHED, Claims, digest_of_measured
from adyton.attestation.collateral import Collateral, read_blobs
from adyton.attestation.findings import Failure, failed
from adyton.attestation.tpm.abi import (
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    Quoted,
)
from adyton.attestation.tpm.event_log import explain, initial
from adyton.attestation.tpm.raw import of_raw
from adyton.attestation.tpm.report import Shown, of_report
from adyton.attestation.tpm.signatures import is_signed_by
from adyton.attestation.tpm.trust import chain_of

_LEAST = {False: 2048, True: 256}  # bits, of RSA and of ECC
_NEEDED = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED | SIGN


def verify(data: bytes, collateral: Collateral, at: dt.datetime) -> Claims:
    """What adyton's report, or a raw quote with what is beside it in the collateral, proves at a time.

    Only AttestationErrors leave: EvidenceMalformedError, NotGenuineError, CollateralMissingError. A key that nobody vouches for is genuine
    only for a policy that names its machine: see `claims.UNVOUCHED`.
    """
    # (1) All of it is well-formed.
    shown = of_report(data) if data[:1] == b"{" else of_raw(data, collateral)
    quoted = shown.quoted
    # (2) The key signed the quote; it signs nothing but what its TPM says, and never was elsewhere.
    failures = [*_signature_failures(shown), *_key_failures(shown)]
    # (3) The quote is of what it seems to be of: these PCRs, these values, that report data.
    failures += _pcr_failures(shown)
    if not hmac.compare_digest(shown.extra, quoted.extra):
        failures.append(Failure("genuine", "extra data of the quote", shown.extra.hex(), quoted.extra.hex() or "none"))
    # (4) The event log, if there is one, does not contradict it.
    explained = explain(shown.event_log, shown.values) if shown.event_log and shown.values is not None else None
    failures += explained.failures if explained else ()
    # (5) Who vouches for the key.
    chain, of_chain = chain_of(shown.key, collateral + read_blobs((shown.certificate,)), at)
    failures += of_chain
    if failures:
        raise failed(failures)
    return Claims(
        platform="tpm",
        runtime=reference_value(quoted, shown.signature.hash),
        measured=_measured(shown),
        report_data=shown.report_data,
        debug=_is_blank(quoted, shown.signature.hash),
        machine=shown.machine,
        tcb="UpToDate" if chain else UNVOUCHED,
        more={
            "pcrs": quoted.selection,
            "firmware": f"{quoted.firmware:#x}",
            "resets": quoted.resets,
            "restarts": quoted.restarts,
            "key_certified_by": name_of(chain[-1]) if chain else "nobody",
            "explained_by_event_log": (" ".join(explained.whole) if explained else "") or "none",
            "not_explained": (" ".join(explained.further) or "none") if explained else quoted.selection,
        },
        failures=tuple(revocation_failures(chain, collateral.revocation_lists, at)[0]),
    )


def reference_value(quoted: Quoted, hash_name: str) -> str:
    """Of which PCRs, and the digest of them that the TPM signed: so it is the same whether or not their values came along."""
    return digest_of_measured("tpm", {"pcrs": quoted.selection.encode(), hash_name: quoted.digest})


def _signature_failures(shown: Shown) -> list[Failure]:
    signature = shown.signature
    if signature.hash == "sha1":
        return [Failure("genuine", "hash of the signature", "sha256 or longer", "sha1")]
    if shown.scheme != signature.scheme:
        return [Failure("genuine", "scheme of the signature", f"{shown.scheme}, which is the key's", signature.scheme)]
    if not is_signed_by(shown.key, signature, shown.quoted.raw):
        return [Failure("genuine", "signature of the quote", f"one by the key of {shown.machine}", "another")]
    return []


def _key_failures(shown: Shown) -> list[Failure]:
    least = _LEAST[isinstance(shown.key, ec.EllipticCurvePublicKey)]
    if shown.key.key_size < least:
        return [Failure("genuine", "the attestation key", f"{least} bits at least", str(shown.key.key_size))]
    if shown.attributes is None or shown.attributes & (_NEEDED | DECRYPT) == _NEEDED:
        return []
    wanted = "one that signs what its TPM says only, and was made there to stay"
    return [Failure("genuine", "the attestation key", wanted, f"attributes {shown.attributes:#x}")]


def _pcr_failures(shown: Shown) -> list[Failure]:
    quoted = shown.quoted
    if not quoted.registers:
        return [Failure("genuine", "PCRs of the quote", "some", "none: the TPM has no such bank")]
    if weak := [bank for bank, _ in quoted.selected if bank == "sha1"]:
        return [Failure("genuine", "bank of the PCRs", "sha256 or longer", weak[0])]
    if shown.values is None:
        return []
    values = shown.values
    digest = _digest_of((values[each] for each in quoted.registers), shown.signature.hash)
    if hmac.compare_digest(digest, quoted.digest):
        return []
    return [Failure("genuine", "digest of the PCRs", quoted.digest.hex(), digest.hex())]


def _digest_of(values: Iterable[bytes], hash_name: str) -> bytes:
    return hashlib.new(hash_name, b"".join(values)).digest()


def _is_blank(quoted: Quoted, hash_name: str) -> bool:
    """Nothing was measured: as good as an enclave in debug mode."""
    return _digest_of((initial(bank, number) for bank, number in quoted.registers), hash_name) == quoted.digest


def _measured(shown: Shown) -> dict[str, str]:
    if shown.values is None:
        return {shown.quoted.selection: shown.quoted.digest.hex()}
    return {f"{bank}:{number}": shown.values[bank, number].hex() for bank, number in shown.quoted.registers}
