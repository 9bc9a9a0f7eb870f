"""What dcap-qvl thinks of a platform whose enclave or TD has attributes that it refuses itself, while here others decide: on debug mode the policy; on
TDs whose host may have pages fault (SEPT_VE_DISABLE is not set) the guest that was measured, since Linux then does not boot, or has the module prevent it.

It looks at attributes at the very end. So once it has nothing else against such a quote, it is asked about a twin: the same with these bits as it wants
them, on the same platform, and all of it (quote, quoting enclave, certificates, Intel's documents) signed again by keys that are made for it here and
thrown away.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import struct
from typing import NamedTuple

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.attestation.dcap.abi import Quote

_PLATFORM = x509.ObjectIdentifier(
    "1.2.840.113741.1.13.1"
)  # the extension of a PCK certificate that says which platform it is
_DAY = dt.timedelta(days=1)
_SIZE, _CERTIFIED = struct.Struct("<H"), struct.Struct("<HI")
_SIGNATURE, _POINT, _REPORT, _REPORT_DATA = 64, 64, 384, 64  # bytes
_CHAIN, _QUOTING_ENCLAVE = 5, 6  # types of certification data


class Twin(NamedTuple):
    """`root`: in DER, which alone it is genuine under."""

    raw: bytes
    collateral: dcap_qvl.QuoteCollateralV3
    root: bytes


class _Authority:
    """A key with a certificate, by another one or itself."""

    def __init__(
        self, name: str, at: dt.datetime, by: _Authority | None = None, *, ca: bool = True, extension: bytes = b""
    ) -> None:
        self.key, self.name, self._at = ec.generate_private_key(ec.SECP256R1()), name, at
        signer = by or self
        builder = x509.CertificateBuilder(
            _name(signer.name), _name(name), self.key.public_key(), x509.random_serial_number(), at - _DAY, at + _DAY
        ).add_extension(x509.BasicConstraints(ca, None), critical=True)
        if extension:
            builder = builder.add_extension(x509.UnrecognizedExtension(_PLATFORM, extension), critical=False)
        self.certificate = builder.sign(signer.key, SHA256())

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def sign(self, data: bytes) -> bytes:
        """r and s."""
        return _signed(self.key, data)

    def revoked_none(self) -> bytes:
        """A list, in DER."""
        builder = x509.CertificateRevocationListBuilder(_name(self.name), self._at - _DAY, self._at + _DAY)
        return (
            builder.add_extension(x509.CRLNumber(1), critical=False).sign(self.key, SHA256()).public_bytes(Encoding.DER)
        )


def twin(quote: Quote, collateral: dcap_qvl.QuoteCollateralV3, at: dt.datetime) -> Twin:
    """Of a quote that dcap-qvl has nothing against but these bits."""
    chain = x509.load_pem_x509_certificates(dcap_qvl.parse_quote(quote.raw).cert_chain_pem_bytes() or b"")
    (platform,) = (each.value.value for each in chain[0].extensions if each.oid == _PLATFORM)
    root = _Authority("Intel SGX Root CA", at)
    between = _Authority(_common_name(chain[0].issuer), at, root)
    pck = _Authority("Intel SGX PCK Certificate", at, between, ca=False, extension=platform)
    signer = _Authority("Intel SGX TCB Signing", at, root, ca=False)
    return Twin(
        _quote(quote, pck, (pck.pem + between.pem + root.pem).encode()),
        dcap_qvl.QuoteCollateralV3(
            pck_crl_issuer_chain=between.pem + root.pem,
            root_ca_crl=root.revoked_none(),
            pck_crl=between.revoked_none(),
            tcb_info_issuer_chain=signer.pem + root.pem,
            tcb_info=collateral.tcb_info,
            tcb_info_signature=signer.sign(collateral.tcb_info.encode()),
            qe_identity_issuer_chain=signer.pem + root.pem,
            qe_identity=collateral.qe_identity,
            qe_identity_signature=signer.sign(collateral.qe_identity.encode()),
        ),
        root.certificate.public_bytes(Encoding.DER),
    )


def _quote(quote: Quote, pck: _Authority, chain: bytes) -> bytes:
    """header ‖ body ‖ size ‖ signature ‖ attestation key ‖ [6, size, in versions 4 and 5] report ‖ its signature ‖ data beside it ‖ 5, size, chain"""
    key = ec.generate_private_key(ec.SECP256R1())
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
    signed = quote.with_plain_attributes()
    at = len(signed) + 4 + _SIGNATURE + _POINT + (_CERTIFIED.size if quote.version > 3 else 0)
    report = quote.raw[at : at + _REPORT - _REPORT_DATA]
    at += _REPORT + _SIGNATURE
    (size,) = _SIZE.unpack_from(quote.raw, at)
    beside = quote.raw[at + _SIZE.size : at + _SIZE.size + size]
    report += hashlib.sha256(point + beside).digest().ljust(_REPORT_DATA, b"\0")
    endorsed = report + pck.sign(report) + _SIZE.pack(size) + beside + _CERTIFIED.pack(_CHAIN, len(chain)) + chain
    if quote.version > 3:
        endorsed = _CERTIFIED.pack(_QUOTING_ENCLAVE, len(endorsed)) + endorsed
    data = _signed(key, signed) + point + endorsed
    return signed + struct.pack("<I", len(data)) + data


def _signed(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _common_name(name: x509.Name) -> str:
    return str(name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
