"""Blobs by digest in a folder: STORE/blobs/sha256/HEX. A blob appears under its digest only when its bytes have that digest.

STORE/incoming holds what is on its way in, each file locked by who writes it; what nobody locks is left from a process that ended.
When a blob would not fit, those go that were not used for longest and that no load is using.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import threading
from collections.abc import Iterable, Iterator
from typing import Self

from adyton.crypto.digest import digest_of, is_digest
from adyton.errors import ImageError, ResourceLimitError, UsageError
from adyton.image.layers import pieces_of

MAX_BLOB = 8 << 30  # bytes
MAX_STORE = 16 << 30  # bytes of all blobs together
MAX_BLOBS = 1 << 16  # in a store
STEP = 4 << 20  # bytes of an upload until it is looked again whether there is room for its rest


class BlobStore:
    """A folder of verified blobs. Several processes may add to one store at a time."""

    def __init__(self, directory: str, limit: int = MAX_STORE) -> None:
        """Make its folders in `directory`, and remove what others left on its way in. UsageError: it cannot be trusted; OSError."""
        self.directory = directory
        self._limit = limit
        self._blobs = os.path.join(directory, "blobs", "sha256")
        self._incoming = os.path.join(directory, "incoming")
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}  # digest → how many loads use it
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), directory) from error
        _check_above(directory)
        for path in (os.path.dirname(self._blobs), self._blobs, self._incoming):
            with contextlib.suppress(FileExistsError):
                os.makedirs(path, mode=0o755)
            _check_own(path)
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        for name in os.listdir(self._incoming):
            path = os.path.join(self._incoming, name)
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:
                continue  # gone, or nothing of ours
            with contextlib.suppress(BlockingIOError), os.fdopen(descriptor):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)

    def path(self, digest: str) -> str:
        """Where the blob is, or will be; ImageError for anything but "sha256:" and 64 hex digits."""
        if not is_digest(digest):
            raise ImageError(f"{digest[:80]!r} is not a digest: sha256: and 64 lower-case hex digits are expected")
        return os.path.join(self._blobs, digest[7:])

    def has(self, digest: str) -> bool:
        return os.path.exists(self.path(digest))

    def size(self, digest: str) -> int:
        """Of the blob, in bytes; ImageError if it is not here."""
        try:
            return os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            raise ImageError(f"blob {digest} is not in the store") from None

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those that are not here, each once, in order."""
        return [digest for digest in dict.fromkeys(digests) if not self.has(digest)]

    def hold(self, digests: Iterable[str]) -> Hold:
        """Have these blobs, here or to come, stay until the hold is closed; they count as used now."""
        return Hold(self, digests)

    def make_room(self, size: int) -> None:
        """For so many bytes. ResourceLimitError: there is none, even without the blobs that nobody uses."""
        with self._lock:
            blobs = _files(self._blobs)
            used = sum(each.st_size for each in blobs.values())
            used += sum(each.st_size for each in _files(self._incoming).values())
            system = os.statvfs(self._blobs)
            excess = max(used + size - self._limit, size - system.f_bavail * system.f_frsize)
            surplus = len(blobs) - MAX_BLOBS + 1
            for name in sorted(blobs, key=lambda name: blobs[name].st_mtime_ns):
                if excess <= 0 and surplus <= 0:
                    return
                if "sha256:" + name not in self._held:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(self._blobs, name))
                    excess -= blobs[name].st_size
                    surplus -= 1
        if excess > 0 or surplus > 0:
            raise ResourceLimitError(
                f"the server has no room for a blob of {size} bytes: its disk or its store of images is full. "
                "Try again when fewer images are being loaded, or give it a larger --temporary_directory"
            )

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

    def pieces(self, digest: str, size: int) -> Iterator[bytes]:
        """The bytes of a blob of that size, unverified, and one more if there are more; ImageError if it is not here."""
        if not self.has(digest):
            raise ImageError(f"blob {digest} is not in the store")
        return pieces_of(self.path(digest), 0, size + 1)

    def add(self, data: bytes) -> str:
        """Store the bytes; their digest."""
        digest = digest_of(data)
        if not self.has(digest):
            with Incoming(self, digest, len(data)) as incoming:
                incoming.write(0, data)
                incoming.finish()
        return digest


class Hold:
    """Keeps blobs from being removed. For a `with`, or closed once."""

    def __init__(self, store: BlobStore, digests: Iterable[str] = ()) -> None:
        self._store = store
        self._digests: list[str] = []
        self.add(digests)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, digests: Iterable[str]) -> None:
        """These, too. ImageError: one of them is no digest."""
        for digest in digests:
            path = self._store.path(digest)
            held = self._store._held  # noqa: SLF001 - one unit
            with self._store._lock:  # noqa: SLF001
                held[digest] = held.get(digest, 0) + 1
                self._digests.append(digest)
                with contextlib.suppress(OSError):
                    os.utime(path)

    def close(self) -> None:
        """Let them go."""
        held = self._store._held  # noqa: SLF001
        with self._store._lock:  # noqa: SLF001
            for digest in self._digests:
                held[digest] -= 1
                if not held[digest]:
                    del held[digest]
            self._digests = []


class Incoming:
    """One blob on its way in: chunks in order, without gaps, of the announced size and digest, or nothing is stored."""

    def __init__(self, store: BlobStore, digest: str, size: int) -> None:
        if size > MAX_BLOB:
            raise ResourceLimitError(f"blob {digest} of {size} bytes is too large: at most {MAX_BLOB} are taken")
        self._target = store.path(digest)
        self._digest, self._size = digest, size
        self._hash = hashlib.sha256()
        self._offset = self._checked = 0
        self._store = store
        store.make_room(size)
        self._temporary = os.path.join(store._incoming, secrets.token_hex(16))  # noqa: SLF001 - one unit
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._temporary, flags, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)  # shows that it is being written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, offset: int, data: bytes) -> None:
        """The next bytes; ImageError if they are not the next ones, or too many. ResourceLimitError: others have taken the room."""
        if offset != self._offset:
            raise ImageError(f"upload of {self._digest}: chunk at offset {offset}, expected {self._offset}")
        if offset + len(data) > self._size:
            raise ImageError(f"upload of {self._digest}: more than the announced {self._size} bytes")
        self._hash.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._offset += len(data)
        if self._offset - self._checked >= STEP:  # what is only announced takes no room, so others may have it by now
            self._checked = self._offset
            self._store.make_room(self._size - self._offset)

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
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)
            self._temporary = ""


def _files(directory: str) -> dict[str, os.stat_result]:
    found = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found[entry.name] = entry.stat(follow_symlinks=False)
    return found


def _check_above(path: str) -> None:
    """UsageError if others could put a folder of theirs in the place of one of ours below `path`."""
    for found in (os.lstat(path), os.stat(path)):
        others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
        if found.st_uid not in (0, os.geteuid()) or (others and not stat.S_ISLNK(found.st_mode)):
            raise UsageError(
                f"images cannot be kept in {path}: it is another user's, or others may change what is there. "
                "Run chmod go-w, or give another --temporary_directory"
            )


def _check_own(path: str) -> None:
    """UsageError if others could have put a folder there, or could put files into it."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(
            f"images cannot be kept in {path}: it is no folder. Remove it, or give another --temporary_directory"
        )
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            f"images cannot be kept in {path}: it is another user's, or others may write there. "
            "Remove it, or give another --temporary_directory"
        )
