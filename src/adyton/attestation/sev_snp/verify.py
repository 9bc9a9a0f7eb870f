"""Is an SEV-SNP report genuine: by the steps of AMD 56860, "Attestation", and 57230."""

from __future__ import annotations

import datetime as dt
import hmac

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from adyton.attestation.certificates import chain_failures, is_issued_by, revocation_failures
from adyton.attestation.claims import Claims, digest_of_measured
from adyton.attestation.collateral import Collateral, read_blobs
from adyton.attestation.findings import Failure, failed, refuse
from adyton.attestation.sev_snp import tcb as firmware
from adyton.attestation.sev_snp.abi import Report, Tcb, parse
from adyton.attestation.sev_snp.certificate_table import split
from adyton.attestation.sev_snp.certificates import Endorsement, endorsement_of, roots


def verify(data: bytes, collateral: Collateral, at: dt.datetime) -> Claims:
    """What a report proves at a time. `collateral`: has the certificate of the key that signed it, if the host's table of certificates is not
    behind the report, and revocation lists, if any.

    Only AttestationErrors leave: EvidenceMalformedError, NotGenuineError, CollateralMissingError.
    """
    # (1) The report is well-formed.
    raw, along = split(data)
    report, collateral = parse(raw), collateral + read_blobs(along)
    # (2) The key that signed it is among the certificates that were given: of this chip, this firmware.
    certificate, endorsement = _key_of(report, collateral)
    # (3) It was issued under AMD's root of that product, by keys that are valid at that time.
    chain = _chain_of(certificate, endorsement, report, collateral)
    failures = chain_failures(chain, at)
    # (4) The report is of that product and that firmware.
    failures += _mismatches(report, endorsement)
    if failures:
        raise failed(failures)
    # (5) No certificate of the chain was revoked, as far as lists were given.
    revoked, checked = revocation_failures(chain, collateral.revocation_lists, at)
    # (6) What is measured, and how good the firmware is.
    tcb = Tcb.of(report.tcb_reported, endorsement.product)
    state, bulletins = firmware.status(endorsement.product, tcb, at)
    registers = {"measurement": report.measurement}
    return Claims(
        platform="sev-snp",
        runtime=digest_of_measured("sev-snp", registers),
        measured={name: value.hex() for name, value in registers.items()},
        report_data=report.report_data,
        debug=report.debug,
        machine=report.chip_id.hex() if any(report.chip_id) else (endorsement.cloud or ""),
        tcb=state,
        advisories=bulletins,
        more={
            "product": endorsement.product,
            "signed_by": report.signed_by,
            "tcb": tcb._asdict(),
            "firmware": ".".join(map(str, report.firmware)),
            "host_data": report.host_data.hex(),
            "vmpl": report.vmpl,
            "guest_svn": report.guest_svn,
            "may_migrate": report.may_migrate,
            "may_share_cores": report.may_share_cores,
            "revocation": "checked" if checked else "not checked",
        },
        failures=(*revoked, *_moved(report)),
        failures_of_runtime=_below(report),
        register=f"sha384:{report.measurement.hex()}",
    )


def _key_of(report: Report, collateral: Collateral) -> tuple[x509.Certificate, Endorsement]:
    """The certificate whose key signed the report."""
    signature = encode_dss_signature(*report.signature)
    tried = 0
    for certificate in collateral.certificates:
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
            continue
        tried += 1
        try:
            key.verify(signature, report.signed, ec.ECDSA(SHA384()))
        except InvalidSignature:
            continue
        return certificate, endorsement_of(certificate)
    if tried:
        raise refuse("genuine", "signature of the report", "one of the chip's key that was given", "another")
    raise refuse("collateral", "certificate of the chip's key", f"a {report.signed_by}", "none")


def _chain_of(
    certificate: x509.Certificate, endorsement: Endorsement, report: Report, collateral: Collateral
) -> tuple[x509.Certificate, ...]:
    root, signer = roots()[endorsement.product]
    if report.signed_by == "VCEK":
        return certificate, signer, root
    for between in collateral.issued_to(certificate.issuer):
        if is_issued_by(certificate, between):
            return certificate, between, root
    raise refuse("collateral", "certificate of the VLEK's issuer", "an ASVK", "none")


def _mismatches(report: Report, endorsement: Endorsement) -> list[Failure]:
    failures = []
    if report.product not in (None, endorsement.product):
        failures.append(Failure("genuine", "product", endorsement.product, str(report.product)))
    tcb = Tcb.of(report.tcb_reported, endorsement.product)
    if tcb != endorsement.tcb:
        failures.append(Failure("genuine", "firmware of the report", str(endorsement.tcb), str(tcb)))
    if report.signed_by == "VLEK":
        if endorsement.cloud is None:
            failures.append(Failure("genuine", "the report's key", "a VLEK", "a VCEK"))
    elif endorsement.chip is None:
        failures.append(Failure("genuine", "the report's key", "a VCEK", "a VLEK"))
    elif not report.chip_masked:
        chip = endorsement.chip.ljust(len(report.chip_id), b"\0")
        if not hmac.compare_digest(chip, report.chip_id):
            failures.append(Failure("genuine", "chip", endorsement.chip.hex(), report.chip_id.hex()))
    return failures


def _moved(report: Report) -> list[Failure]:
    """What no policy of adyton's accepts: the guest must be its own master."""
    return [Failure("expectation", "migration agent", "none", "one is allowed")] if report.may_migrate else []


def _below(report: Report) -> tuple[Failure, ...]:
    """A report of another VMPL is one of whatever the measured guest lets run there; programs ask for it as they please (snpguest: of 1)."""
    return (Failure("expectation", "vmpl", "0", str(report.vmpl)),) if report.vmpl else ()
