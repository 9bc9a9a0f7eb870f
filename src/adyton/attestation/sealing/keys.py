"""One enclave's sealing: which headers are its own, and the key of each. See the package for why the runtime is who decides.

Keys are derived where the root is, `RootKeys`: of hardware, in another process than the enclave's supervisor, which has each key of its own enclave's
and no other. The rules are a table, `_RULES`: each compares a field of the header with the enclave's identity, and says what to do where they do not fit. Headers are in the
clear, so saying which field it is tells nobody anything new; what fails behind a header that fits is not told apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple, Protocol

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.sealing.header import KEY_ID_SIZE, Header, Purpose, To, decode, decode_whole, encode
from adyton.attestation.sealing.roots import Root
from adyton.attestation.sealing.segments import RANDOM_SIZE, Segments, new_random
from adyton.crypto.keys import debug_key
from adyton.errors import IntegrityError, UsageError

KEY_SIZE = 32  # bytes
_LABEL = b"adyton sealing key 1\0"


class _Rule(NamedTuple):
    """`fits` is asked about a header of hostile origin; `says` what it has, and `wants` what the enclave has."""

    fits: Callable[[Header, EnclaveIdentity], bool]
    says: Callable[[Header], str]
    wants: Callable[[EnclaveIdentity], str]
    hint: str


def _kind(*, debug: bool) -> str:
    return "a debug one" if debug else "one of production"


_RULES: tuple[_Rule, ...] = (
    _Rule(
        lambda header, own: header.platform == own.platform,
        lambda header: f"on platform {header.platform}",
        lambda own: f"on {own.platform}",
        "open it there",
    ),
    _Rule(
        lambda header, own: header.debug == own.debug,
        lambda header: f"by {_kind(debug=header.debug)}",
        lambda own: _kind(debug=own.debug),
        "neither opens what the other has sealed",
    ),
    _Rule(
        lambda header, own: header.to != "measurement" or header.owner == own.measurement,
        lambda header: f"to the image {header.owner}",
        lambda own: f"the image {own.measurement}",
        "only that image opens it; what later versions are to open is sealed to='signer'",
    ),
    _Rule(
        lambda header, own: header.to != "signer" or header.owner == own.signer,
        lambda header: f"to the signer {header.owner}",
        lambda own: f"signed by {own.signer or 'nobody'}",
        "only images of that signer open it",
    ),
    _Rule(
        lambda header, own: header.to != "signer" or header.product_id == own.product_id,
        lambda header: f"to product {header.product_id}",
        lambda own: f"product {own.product_id}",
        "only images of that product open it",
    ),
    _Rule(
        lambda header, own: header.to != "signer" or header.security_version <= own.security_version,
        lambda header: f"by security version {header.security_version}",
        lambda own: f"of version {own.security_version}",
        "an older version opens nothing of a later one's: load that version, or a newer one",
    ),
)


class Keys(Protocol):
    """Of one enclave, wherever its platform's root is. `tcb`: the state of the platform that is sealed under, see `roots`. PlatformError: there are none."""

    @property
    def tcb(self) -> bytes: ...

    def key(self, header: bytes) -> bytes:
        """The key of an encoded header, 32 bytes. IntegrityError: it is no header, not this enclave's, or of a state that is not to be had here."""
        ...


class RootKeys:
    """The keys of the enclave of that identity, by whoever has the root. Headers are hostile here."""

    def __init__(self, identity: EnclaveIdentity, root: Root) -> None:
        self._identity = identity
        self._root = root

    @property
    def tcb(self) -> bytes:
        """See `Keys`."""
        return self._root.tcb

    def key(self, header: bytes) -> bytes:
        """See `Keys`."""
        found = decode_whole(header)
        for rule in _RULES:
            if not rule.fits(found, self._identity):
                raise IntegrityError(
                    f"the sealed data does not open: it was sealed {rule.says(found)}, and this enclave is {rule.wants(self._identity)}: {rule.hint}"
                )
        return HKDF(SHA256(), KEY_SIZE, salt=None, info=_LABEL + header).derive(self._root.key(found.tcb))


class Sealing:
    """Of one enclave, with its keys."""

    def __init__(self, identity: EnclaveIdentity, keys: Keys) -> None:
        self._identity = identity
        self._keys = keys

    def header(self, to: To, purpose: Purpose) -> bytes:
        """A new one, encoded; it has a key of its own. UsageError: this enclave cannot be sealed to so. PlatformError: the platform has no key."""
        own = self._identity
        if to == "signer":
            _check_signer(own.signer)
            owner, product_id, security_version = own.signer, own.product_id, own.security_version
        else:
            owner, product_id, security_version = own.measurement, 0, 0
        tcb = self._keys.tcb
        key_id = os.urandom(KEY_ID_SIZE)
        return encode(Header(own.platform, to, owner, product_id, security_version, own.debug, purpose, tcb, key_id))

    def key(self, header: bytes, purpose: Purpose) -> bytes:
        """See `Keys.key`; IntegrityError, too, for one of another purpose."""
        found = decode_whole(header)
        if found.purpose != purpose:
            raise IntegrityError(
                f"the sealed data does not open: it was sealed as {found.purpose}, and is opened as {purpose}"
            )
        return self._keys.key(header)

    def begin(self, to: To, additional: bytes) -> tuple[bytes, Segments]:
        """What sealed data begins with, and what seals its segments. `additional`: SHA-256 of the additional data. Errors: see `header`."""
        header, random = self.header(to, "data"), new_random()
        return header + random, Segments(self.key(header, "data"), header, random, additional)

    def open(self, head: bytes, additional: bytes) -> tuple[int, Segments]:
        """How much the sealed data has before its segments, and what opens those. `head`: its first bytes. IntegrityError, PlatformError."""
        _, size = decode(head)
        header, random = head[:size], head[size : size + RANDOM_SIZE]
        if len(random) < RANDOM_SIZE:
            raise IntegrityError(
                "the sealed data does not open: it was cut off behind its header. Take another copy of it"
            )
        return size + RANDOM_SIZE, Segments(self.key(header, "data"), header, random, additional)


def _check_signer(signer: str) -> None:
    if signer and signer != debug_key().signer:
        return
    what = "is signed with the debug key, which everybody has" if signer else "is not signed"
    raise UsageError(
        f"nothing can be sealed to this image's signer: it {what}, so any image could open it. Sign it with a key of your own"
        " (`adyton keygen`, `sign` in pyproject.toml), or seal to='measurement'"
    )
