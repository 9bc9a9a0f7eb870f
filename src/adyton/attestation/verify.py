"""Is evidence genuine (`verify`), and is it of the enclave that was wanted, on this connection (`validate`).

Neither alone says anything: genuine evidence of another enclave is worthless, and so is expected evidence that nobody signed.
"""

from __future__ import annotations

import datetime as dt
import hmac
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from adyton.attestation.acl import Acl
from adyton.attestation.claims import Claims
from adyton.attestation.collateral import Collateral, read_blobs
from adyton.attestation.evidence import (
    REPORT_DATA_SIZE,
    Bound,
    Envelope,
    HardwareBody,
    decode,
    open_envelope,
    raw_kind,
)
from adyton.attestation.findings import Failure, failed, refuse
from adyton.attestation.identity import EnclaveIdentity, Platform
from adyton.attestation.sim import open_simulated
from adyton.errors import LocalProtocolError, PlatformError


class Verified(msgspec.Struct, frozen=True):
    """What genuine evidence says.

    `identity_digest`: of what the runtime says, which report data has to be bound to; b"" in raw evidence, which has none of it. `tcb`: the
    vendor's word for the state of the platform's TCB; "" for a simulated one, which has none. `failures`: what is wrong although it is
    genuine. `bound`: what it says that it is bound to. `register`: by what a policy may name its runtime instead, see `Claims`.
    """

    identity: EnclaveIdentity
    report_data: bytes
    tcb: str = ""
    identity_digest: bytes = b""
    advisories: tuple[str, ...] = ()
    measured: Mapping[str, str] = {}
    more: Mapping[str, Any] = {}
    failures: tuple[Failure, ...] = ()
    bound: Bound | None = None
    register: str = ""


Binding = Literal["ok", "not checked"]


def verify(evidence: bytes, collateral: Collateral | None = None, at: dt.datetime | None = None) -> Verified:
    """What hostile bytes prove at a time (None: now): adyton's envelope, or a vendor's raw evidence.

    Only AttestationErrors leave: EvidenceMalformedError, NotGenuineError, CollateralMissingError, TcbError.
    """
    at, collateral = at or dt.datetime.now(dt.UTC), collateral or Collateral()
    raw = raw_kind(evidence)
    if raw is not None:
        platform, report = raw
        claims = _claims(platform, report, collateral, at)
        identity = EnclaveIdentity(
            *(platform, "", "", 0, 0),
            debug=claims.debug,
            runtime=claims.runtime,
            machine=claims.machine,
        )
        return _verified(identity, b"", claims)
    if evidence.lstrip()[:1] != b"{":
        wanted = "adyton's (JSON), a DCAP quote, an SNP report, a Nitro document or a TPM's quote"
        got = f"{len(evidence)} bytes of none of these: {evidence[:8].hex(' ')} …" if evidence else "nothing"
        raise refuse("malformed", "the evidence", wanted, got)
    envelope = open_envelope(evidence)
    if envelope.platform == "sim":
        simulated = open_simulated(envelope)
        return Verified(
            simulated.identity,
            simulated.report_data,
            identity_digest=simulated.identity.digest(),
            bound=envelope.bound,
        )
    body = decode(envelope.body, HardwareBody)
    claims = _claims(envelope.platform, body.report, collateral + read_blobs(tuple(body.certificates)), at)
    claimed = body.image.on(envelope.platform)
    identity = msgspec.structs.replace(
        claimed, runtime=claims.runtime, machine=claims.machine, debug=claimed.debug or claims.debug
    )
    verified = _verified(identity, claimed.digest(), claims, envelope)
    # MRTD is of the firmware alone: it does not say which runtime vouches for the image.
    return msgspec.structs.replace(verified, register="") if envelope.platform == "tdx" else verified


def validate(verified: Verified, expectation: Acl, report_data: bytes) -> EnclaveIdentity:
    """The identity, if it is what was expected and bound to `report_data` (64 bytes).

    UsageError for an expectation that names too little. TcbError, BindingError or ExpectationError with every finding.
    """
    if len(report_data) != REPORT_DATA_SIZE:
        raise LocalProtocolError(f"report data has {REPORT_DATA_SIZE} bytes, not {len(report_data)}")
    # (1) The expectation is complete.
    expectation.check()
    # (2) The evidence was made for this connection, just now.
    failures = [*verified.failures, *binding_failures(verified, report_data)]
    # (3) The enclave is the expected one.
    failures += expectation.compare(verified.identity, verified.tcb, verified.register)
    if failures:
        raise failed(failures)
    return verified.identity


def binding_failures(verified: Verified, report_data: bytes) -> list[Failure]:
    """What is wrong with what the evidence is bound to; platforms sign along 64 bytes, whole."""
    if hmac.compare_digest(verified.report_data, report_data):
        return []
    return [Failure("binding", "report_data", report_data.hex(), verified.report_data.hex() or "none")]


def _verified(identity: EnclaveIdentity, digest: bytes, claims: Claims, envelope: Envelope | None = None) -> Verified:
    return Verified(
        identity,
        claims.report_data,
        claims.tcb,
        digest,
        claims.advisories,
        claims.measured,
        claims.more,
        claims.failures if envelope is None else (*claims.failures, *claims.failures_of_runtime),
        None if envelope is None else envelope.bound,
        claims.register,
    )


def _claims(platform: Platform, report: bytes, collateral: Collateral, at: dt.datetime) -> Claims:
    try:
        return _hardware(platform)(report, collateral, at)
    except ImportError as error:
        raise PlatformError(
            f"{platform} evidence is judged with {error.name}, which is not installed here: pip install adyton[attest]"
        ) from error


_Hardware = Callable[[bytes, Collateral, dt.datetime], Claims]


def _hardware(platform: Platform) -> _Hardware:
    """Who verifies a platform's reports; loaded when there is one."""
    if platform in ("sgx", "tdx"):
        from adyton.attestation.dcap.verify import verify as dcap

        return dcap
    if platform == "sev-snp":
        from adyton.attestation.sev_snp.verify import verify as sev_snp

        return sev_snp
    if platform == "nitro":
        from adyton.attestation.nitro.verify import verify as nitro

        return lambda report, _collateral, at: nitro(report, at)
    from adyton.attestation.tpm.verify import verify as tpm

    return tpm
