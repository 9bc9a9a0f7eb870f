"""The files of TLS, and what can be wrong with them. Without grpc.

They are judged before anything is dialled or listened at, because gRPC would report each as a server that is out of reach. What
certificates must be besides (names, chains) only the other side can judge.
"""

from __future__ import annotations

import datetime as dt
import re
import ssl
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from adyton.channel.credential import KINDS, MAX_CERTIFICATES, Credential
from adyton.crypto.self_signed import PrivateKey, certificate_around
from adyton.errors import UsageError
from adyton.remote.address import TLS, Caller

MAX_SIZE = 1 << 20  # bytes of one file; all public CAs together are a quarter of it
SHOWN = 120  # characters at most of a text that a server's certificate says
_BEGIN = b"-----BEGIN CERTIFICATE-----"
_BLOCK = re.compile(_BEGIN + b".+?-----END CERTIFICATE-----", re.DOTALL)
_CURVES = ("secp256r1", "secp384r1")  # BoringSSL, which gRPC brings, takes no signature of another curve or of Ed25519


@dataclass(frozen=True)
class Files:
    """What the files of a TLS hold, in PEM. `key` and `chain`: both or neither."""

    authorities: bytes | None = None
    key: bytes | None = None
    chain: bytes | None = None


def of_client(tls: TLS, now: dt.datetime | None = None) -> Files:
    """A client's files, judged at `now` (default: this moment); UsageError names what is wrong with them."""
    _together(tls, "a client certificate", "--cert", "--key")
    return _files(tls, "CA certificate", now)


def of_server(tls: TLS | None, now: dt.datetime | None = None) -> Files | None:
    """A server's files, likewise. `tls.ca` is the CA that clients must have a certificate of. None: no TLS."""
    if tls is None or tls == TLS():
        return None
    if tls.cert is None and tls.key is None:
        raise UsageError("TLS needs both --ssl_cert and --ssl_key; --client-ca alone serves without it")
    _together(tls, "a server's certificate", "--ssl_cert", "--ssl_key")
    return _files(tls, "client CA", now)


def of_caller(caller: Caller, now: dt.datetime | None = None) -> Credential:
    """What a caller's files hold; a key alone has a certificate that it signs itself. UsageError names what is wrong with them."""
    if caller.key is None:
        raise UsageError(
            "a caller's certificate needs its private key: give both --caller-cert and --caller-key (the key is missing)"
        )
    key = _private_key(_read(caller.key, "caller's key"), caller.key)
    certificates: tuple[x509.Certificate, ...] = (certificate_around(key, "adyton caller"),)
    if caller.cert is not None:
        _, found = _certificates(caller.cert, "caller's certificate")
        certificates = tuple(found)
        _check_pair(key, caller.key, certificates[0], caller.cert)
        _check_dates(certificates[:1], f"the caller's certificate {caller.cert}", now or dt.datetime.now(dt.UTC))
        if sum(len(each.public_bytes(serialization.Encoding.DER)) for each in certificates) > MAX_CERTIFICATES:
            raise UsageError(
                f"{caller.cert} holds certificates of more than {MAX_CERTIFICATES >> 10} KiB: leave out what is no issuer of the first"
            )
    try:
        return Credential(key, certificates)
    except ValueError:
        raise UsageError(
            f"the caller's key {caller.key} is of a kind that is not taken: make one for {KINDS}"
        ) from None


def _together(tls: TLS, what: str, cert: str, key: str) -> None:
    if tls.cert is not None and tls.key is None:
        raise UsageError(f"{what} needs its private key: give both {cert} and {key} ({key} is missing)")
    if tls.key is not None and tls.cert is None:
        raise UsageError(f"a private key needs its certificate: give both {cert} and {key} ({cert} is missing)")


def _files(tls: TLS, authority: str, now: dt.datetime | None) -> Files:
    now = now or dt.datetime.now(dt.UTC)
    authorities = key = chain = None
    if tls.ca is not None:
        authorities, found = _certificates(tls.ca, authority)
        _check_dates(found, f"the {authority} {tls.ca}", now)  # of several CAs, one that holds is enough
    if tls.cert is not None and tls.key is not None:
        chain, found = _certificates(tls.cert, "certificate")
        leaf = next(found)
        key = _key(tls.key, leaf, tls.cert)
        _check_dates([leaf], f"the certificate {tls.cert}", now)
    return Files(authorities, key, chain)


def _read(path: str, what: str) -> bytes:
    if not path:
        raise UsageError(f"the name of the {what} is empty: give the path of a PEM file, or leave the option out")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path}: {error.strerror}") from None
    except ValueError:  # a null byte
        raise UsageError(f"cannot read the {what} {path!r}: it is no path") from None
    if not data:
        raise UsageError(f"the {what} {path} is empty: it must be in PEM")
    if len(data) > MAX_SIZE:
        raise UsageError(f"the {what} {path} is larger than {MAX_SIZE >> 20} MiB: is it the right file?")
    return data


def _certificates(path: str, what: str) -> tuple[bytes, Iterator[x509.Certificate]]:
    """What a file holds, and its certificates, one at a time: of the public CAs some break rules that cryptography knows."""
    data = _read(path, what)
    blocks = _BLOCK.findall(data)
    if blocks or _BEGIN in data:
        damaged = UsageError(f"the {what} {path} is damaged: it holds a certificate in PEM that cannot be read")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii", "ignore"))
            x509.load_pem_x509_certificate(blocks[0])
        except (ValueError, IndexError, OSError, x509.InvalidVersion):
            raise damaged from None
        return data, _each(blocks)
    hint = ""
    if b"PRIVATE KEY-----" in data:
        hint = ", but a private key: are the two files exchanged?"
    elif data[:1] == b"\x30":
        hint = f"; if it is DER: openssl x509 -inform DER -in {path} -out …"
    raise UsageError(f"the {what} {path} holds no certificate in PEM{hint}")


def _each(blocks: list[bytes]) -> Iterator[x509.Certificate]:
    for block in blocks:
        with suppress(ValueError, x509.InvalidVersion):
            yield x509.load_pem_x509_certificate(block)


def _key(path: str, leaf: x509.Certificate, certificate: str) -> bytes:
    data = _read(path, "key")
    private = _private_key(data, path)
    if not (
        isinstance(private, rsa.RSAPrivateKey)
        or (isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in _CURVES)
    ):
        raise UsageError(f"the key {path} is of a kind that gRPC's TLS does not take: make one for ECDSA P-256, or RSA")
    _check_pair(private, path, leaf, certificate)
    return data


def _private_key(data: bytes, path: str) -> PrivateKey:
    try:
        private = serialization.load_pem_private_key(data, None)
    except TypeError:
        raise UsageError(
            f"the key {path} is encrypted, and nothing here asks for its password: openssl pkey -in {path} -out … "
            "writes it without one, in a file that only you may read"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        hint = ", but a certificate: are the two files exchanged?" if _BEGIN in data else ""
        raise UsageError(f"the key {path} holds no private key in PEM{hint}") from None
    if not isinstance(private, PrivateKey):
        raise UsageError(f"the key {path} is of a kind that TLS does not take: make one for ECDSA P-256, or RSA")
    return private


def _check_pair(key: PrivateKey, path: str, leaf: x509.Certificate, certificate: str) -> None:
    try:
        same = key.public_key() == leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        same = False
    if not same:
        raise UsageError(f"{path} is not the key of the certificate {certificate}: give the two that belong together")


@dataclass(frozen=True)
class Shown:
    """What a certificate says of itself. Texts are bounded, and without what a terminal would obey.

    `since`, `until`: when it holds; `issuer`: a name as RFC 4514 writes it; `names`: host names and addresses, separated by commas.
    """

    since: dt.datetime
    until: dt.datetime
    issuer: str = ""
    names: str = ""

    @classmethod
    def read(cls, encoded: bytes) -> Shown | None:
        """A certificate in DER, of anybody's; None if it cannot be read."""
        try:
            with warnings.catch_warnings(action="ignore"):  # of rules that it breaks
                certificate = x509.load_der_x509_certificate(encoded)
                since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
                issuer, names = certificate.issuer.rfc4514_string(), ", ".join(_names(certificate))
        except Exception:  # noqa: BLE001 - many kinds, for what is malformed and what is unknown; none matters here
            return None
        return cls(since, until, _printable(issuer), _printable(names))

    def wrong_dates(self, now: dt.datetime) -> str:
        """What is wrong with its dates: "expired on …", "is not valid before …", or ""."""
        clock = f"(the clock here says {_moment(now)})"
        if now > self.until:
            return f"expired on {_moment(self.until)} {clock}"
        return f"is not valid before {_moment(self.since)} {clock}" if now < self.since else ""


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [str(name.value) for name in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    return [str(name) for kind in (x509.DNSName, x509.IPAddress) for name in extension.get_values_for_type(kind)]


def _printable(text: str) -> str:
    text = "".join(each if each.isprintable() else "?" for each in text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _check_dates(certificates: Iterable[x509.Certificate], what: str, now: dt.datetime) -> None:
    """UsageError, with what is wrong with the first, if none of them holds now."""
    first = ""
    for each in certificates:
        wrong = Shown(each.not_valid_before_utc, each.not_valid_after_utc).wrong_dates(now)
        if not wrong:
            return
        first = first or wrong
    raise UsageError(f"{what} {first}: give one that is valid")


def _moment(time: dt.datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
