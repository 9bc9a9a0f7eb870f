"""Sealed data: what only this enclave, or later versions of it, can read again, on this machine. `docs/sealing.md` says what that protects, by platform.

    kept = trusted.seal(state, to="signer")     # give it to the client, or write it to a file of the client's
    state = trusted.unseal(kept)                # in another run of this enclave, or of a later version

The enclave's supervisor seals and opens; the program never has a key.
"""

from __future__ import annotations

import hashlib
from typing import Literal, Protocol

from adyton.errors import ClosedError, UsageError
from adyton.trusted.connection import Connection

Bytes = bytes | bytearray | memoryview
To = Literal["measurement", "signer"]


class Sealer(Protocol):
    """How data is sealed and opened; `additional`: SHA-256 of the additional data."""

    def seal(self, data: memoryview, to: To, additional: bytes) -> bytes: ...
    def unseal(self, sealed: memoryview, additional: bytes) -> bytes: ...


connection: Connection[Sealer] = Connection()


def seal(data: Bytes, *, to: To = "measurement", aad: Bytes = b"") -> bytes:
    """Encrypt bytes so that only this image can open them, on this machine; with to="signer" also other images of the same signer and product
    whose security version is this one's or a later one.

    `aad` is authenticated along with it, not contained, and must be given to `unseal` again: what the data is, say, so that none is taken for other data.
    Sealed data can be replaced by older sealed data: what must be the latest has to be compared with something that only goes forward.

    ResourceLimitError: more than 64 MiB. UsageError: `to` is neither, or this image's signer is everybody (the debug key) or nobody. PlatformError: the
    platform has no key for this.
    """
    if to not in ("measurement", "signer"):
        raise UsageError(f'seal(to={to!r}): it is "measurement" or "signer"')
    view = memoryview(data).cast("B")
    return _sealer("seal").seal(view, to, hashlib.sha256(aad).digest())


def unseal(sealed: Bytes, aad: Bytes = b"") -> bytes:
    """What was sealed. Data that was sealed under older firmware of the same machine opens where the platform can have its key: seal it again then.

    IntegrityError: it was sealed by or for another enclave, a later version, or on another machine, or `sealed` or `aad` is not what it was; the text says what
    can be said. ResourceLimitError: it is longer than anything that is sealed. PlatformError: the platform has no key for this.
    """
    view = memoryview(sealed).cast("B")
    return _sealer("unseal").unseal(view, hashlib.sha256(aad).digest())


def _sealer(function: str) -> Sealer:
    sealer = connection.made
    if sealer is None:
        raise ClosedError(
            f"{function}() works in an enclave, and this is none (a process that an enclave forked is none either): load it and call it there"
        )
    return sealer
