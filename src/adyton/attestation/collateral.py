"""What vendors publish that evidence is judged by: certificates, revocation lists, and Intel's JSON. It is signed, so it may come from anybody.

Found by what it says, never by the name of its file.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from cryptography import x509

from adyton.attestation.certificates import UNREADABLE, look_at
from adyton.errors import UsageError

FRESH_SECONDS = 60.0  # that a folder which is asked again and again is not looked at
MAX_FILE = 1 << 22  # bytes; Intel's processor list has 300 KiB
MAX_FILES = 4096
MAX_OTHER = 1 << 14  # bytes of a TPM's file
_PEM = re.compile(rb"-----BEGIN (CERTIFICATE|X509 CRL)-----[A-Za-z0-9+/=\s]+-----END \1-----")


@dataclass(frozen=True)
class Collateral:
    """`documents`: Intel's, as they came: JSON objects with their bytes, since they are signed. `others`: what is none of these: a TPM's files.

    `roots`: the certificates that are their own issuers, of a folder that the verifier has named: for a TPM they are whom it trusts. Of what was
    fetched, or came with evidence, none is.
    """

    certificates: tuple[x509.Certificate, ...] = ()
    revocation_lists: tuple[x509.CertificateRevocationList, ...] = ()
    documents: tuple[tuple[dict[str, Any], bytes], ...] = ()
    others: tuple[bytes, ...] = ()
    roots: tuple[x509.Certificate, ...] = ()

    def __add__(self, other: Collateral) -> Collateral:
        return Collateral(
            self.certificates + other.certificates,
            self.revocation_lists + other.revocation_lists,
            self.documents + other.documents,
            self.others + other.others,
            self.roots + other.roots,
        )

    def issued_to(self, subject: x509.Name) -> Iterator[x509.Certificate]:
        """The certificates of a name."""
        return (each for each in self.certificates if each.subject == subject)


@dataclass
class _Found:
    certificates: list[x509.Certificate] = field(default_factory=list)
    lists: list[x509.CertificateRevocationList] = field(default_factory=list)
    documents: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    others: list[bytes] = field(default_factory=list)

    def all(self) -> Collateral:
        return Collateral(tuple(self.certificates), tuple(self.lists), tuple(self.documents), tuple(self.others))


def read_folder(folder: str) -> Collateral:
    """All of a folder's files (those below it, too) that are any; others are left out. UsageError: it cannot be read."""
    found, count = _Found(), 0
    try:
        for above, _, names in os.walk(folder, onerror=_raise):
            for name in sorted(names):
                count += 1
                if count > MAX_FILES:
                    raise UsageError(f"the folder {folder} has more than {MAX_FILES} files: is it one of collateral?")
                path = os.path.join(above, name)
                if os.path.isfile(path) and os.path.getsize(path) <= MAX_FILE:
                    with open(path, "rb") as file:
                        _read(file.read(MAX_FILE + 1), found)
    except OSError as error:
        raise UsageError(
            f"the collateral in {folder} cannot be read: {error.strerror}: {error.filename}; name the folder that it lies in"
        ) from error
    roots = (each for each in found.certificates if each.issuer == each.subject)
    return replace(found.all(), roots=tuple(roots))


class Folder:
    """A folder's collateral while it may change; if it cannot be read any more, what there was. UsageError: it cannot be read at first.

    `trusted`: it is of who judges, so that its roots are believed. Of any other, which holds what vendors have signed, none is.
    """

    def __init__(self, path: str, *, trusted: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._trusted = trusted
        self._clock = clock
        self._looked = clock()
        self._found = self._read()

    def collateral(self) -> Collateral:
        """As it was at most a minute ago."""
        if self._clock() - self._looked > FRESH_SECONDS:
            self._looked = self._clock()
            with contextlib.suppress(UsageError):
                self._found = self._read()
        return self._found

    def _read(self) -> Collateral:
        found = read_folder(self._path)
        return found if self._trusted else replace(found, roots=())


def read_blobs(blobs: Iterator[bytes] | tuple[bytes, ...]) -> Collateral:
    """The same of what came along with evidence."""
    found = _Found()
    for blob in blobs:
        if len(blob) <= MAX_FILE:
            _read(blob, found)
    return found.all()


def _raise(error: OSError) -> None:
    raise error


_HEX = re.compile(r"30(?:[0-9a-fA-F]{2})+")  # a DER sequence


def _read(data: bytes, found: _Found) -> None:
    if b"-----BEGIN%20" in data:  # a header of PCS, as it came
        data = urllib.parse.unquote_to_bytes(data)
    stripped = data.strip()
    if stripped[:1] == b"{":
        _read_document(stripped, found)
        return
    if b"-----BEGIN " in data:
        matches = list(_PEM.finditer(data))
        for match in matches:
            _read_pem(match, found)
        if matches:
            return
    elif _read_der(data, found) or (re.fullmatch(rb"[0-9a-fA-F\s]+", stripped) and _read_der(_of_hex(stripped), found)):
        return
    if len(data) <= MAX_OTHER:
        found.others.append(data)


def _of_hex(text: bytes) -> bytes:
    try:
        return bytes.fromhex(text.decode())
    except ValueError:  # half a byte
        return b""


def _read_document(text: bytes, found: _Found) -> None:
    try:
        document = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return
    found.documents.append((document, text))
    for value in document.values():  # clients of a PCCS write chains as PEM, and lists in hex
        if isinstance(value, str) and "-----BEGIN " in value:
            for match in _PEM.finditer(value.encode()):
                _read_pem(match, found)
        elif isinstance(value, str) and _HEX.fullmatch(value):
            _read_der(bytes.fromhex(value), found)


def _read_pem(match: re.Match[bytes], found: _Found) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if match[1] == b"CERTIFICATE":
                found.certificates.append(look_at(x509.load_pem_x509_certificate(match[0])))
            else:
                found.lists.append(_looked_at(x509.load_pem_x509_crl(match[0])))
        except UNREADABLE:
            return


def _read_der(data: bytes, found: _Found) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found.certificates.append(look_at(x509.load_der_x509_certificate(data)))
        except UNREADABLE:
            pass
        else:
            return True
        try:
            found.lists.append(_looked_at(x509.load_der_x509_crl(data)))
        except UNREADABLE:
            return False
    return True


def _looked_at(found: x509.CertificateRevocationList) -> x509.CertificateRevocationList:
    """The same, of which nothing more can be unreadable before its signature is judged; else UNREADABLE."""
    _ = found.issuer, found.last_update_utc, found.next_update_utc, found.signature_hash_algorithm
    return found
