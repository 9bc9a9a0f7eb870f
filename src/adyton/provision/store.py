"""Blobs by digest in a folder: STORE/blobs/sha256/HEX. A blob appears under its digest only when its bytes have that digest."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from typing import Self

from adyton.crypto.digest import digest_of, is_digest
from adyton.errors import ImageError, ResourceLimitError

MAX_BLOB = 8 << 30  # bytes


class BlobStore:
    """A folder of verified blobs. Several processes may add to one store at a time."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._blobs = os.path.join(directory, "blobs", "sha256")
        self._incoming = os.path.join(directory, "incoming")
        for path in (self._blobs, self._incoming):
            os.makedirs(path, mode=0o755, exist_ok=True)

    def path(self, digest: str) -> str:
        """Where the blob is, or will be; ImageError for anything but "sha256:" and 64 hex digits."""
        if not is_digest(digest):
            raise ImageError(f"{digest[:80]!r} is not a digest: sha256: and 64 lower-case hex digits are expected")
        return os.path.join(self._blobs, digest[7:])

    def has(self, digest: str) -> bool:
        return os.path.exists(self.path(digest))

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those that are not here, each once, in order."""
        return [digest for digest in dict.fromkeys(digests) if not self.has(digest)]

    def read(self, digest: str, limit: int = MAX_BLOB) -> bytes:
        """The blob's bytes, checked again; ImageError if it is not here, too large, or not what it says."""
        try:
            with open(self.path(digest), "rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            raise ImageError(f"blob {digest} is not in the store") from None
        if len(data) > limit:
            raise ImageError(f"blob {digest} is larger than {limit} bytes")
        if digest_of(data) != digest:
            raise ImageError(
                f"blob {digest} in the store is damaged: remove {self.path(digest)} and load the image again"
            )
        return data

    def add(self, data: bytes) -> str:
        """Store the bytes; their digest."""
        digest = digest_of(data)
        if not self.has(digest):
            with Incoming(self, digest, len(data)) as incoming:
                incoming.write(0, data)
                incoming.finish()
        return digest


class Incoming:
    """One blob on its way in: chunks in order, without gaps, of the announced size and digest, or nothing is stored."""

    def __init__(self, store: BlobStore, digest: str, size: int) -> None:
        if size > MAX_BLOB:
            raise ResourceLimitError(f"blob {digest} of {size} bytes is too large: at most {MAX_BLOB} are taken")
        self._target = store.path(digest)
        self._digest, self._size = digest, size
        self._hash = hashlib.sha256()
        self._offset = 0
        self._temporary = os.path.join(store._incoming, secrets.token_hex(16))  # noqa: SLF001 - one unit
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._temporary, flags, 0o644)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, offset: int, data: bytes) -> None:
        """The next bytes; ImageError if they are not the next ones, or too many."""
        if offset != self._offset:
            raise ImageError(f"upload of {self._digest}: chunk at offset {offset}, expected {self._offset}")
        if offset + len(data) > self._size:
            raise ImageError(f"upload of {self._digest}: more than the announced {self._size} bytes")
        self._hash.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._offset += len(data)

    def finish(self) -> None:
        """All has been written: verify, and let it appear."""
        if self._offset != self._size:
            raise ImageError(f"upload of {self._digest}: {self._offset} bytes, not the announced {self._size}")
        got = "sha256:" + self._hash.hexdigest()
        if got != self._digest:
            raise ImageError(f"upload of {self._digest}: the bytes that arrived have the digest {got}")
        os.fsync(self._descriptor)
        os.rename(self._temporary, self._target)
        self._temporary = ""

    def close(self) -> None:
        """Drop what was not finished."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._temporary:
            os.unlink(self._temporary)
            self._temporary = ""
