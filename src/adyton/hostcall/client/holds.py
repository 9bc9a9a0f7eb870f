"""Files that are kept for an enclave: locked as a whole against other programs, as long as the enclave has them open.

A program that asks for a lock of any kind (flock(2), fcntl(2)) waits or is refused; one that does not ask is not kept off. All open
files of one enclave share the hold of a file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading

_OFD_SETLK = 37  # asm-generic/fcntl.h
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid


class _Hold:
    __slots__ = ("descriptor", "handles", "writable")

    def __init__(self, descriptor: int, *, writable: bool) -> None:
        self.descriptor = descriptor
        self.writable = writable
        self.handles: set[int] = set()


class Holds:
    """See the module. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[tuple[int, int], _Hold] = {}
        self._of_handle: dict[int, tuple[int, int]] = {}

    def hold(self, handle: int, descriptor: int) -> None:
        """Keep the file of an open descriptor for the enclave's `handle`. OSError EBUSY if another program has a lock on it."""
        status = os.fstat(descriptor)
        key = status.st_dev, status.st_ino
        writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        with self._lock:
            held = self._held.get(key)
            if held is None:
                held = self._held[key] = _Hold(_locked(descriptor, writable=writable), writable=writable)
            elif writable and not held.writable:
                self._upgrade(held, descriptor)
            held.handles.add(handle)
            self._of_handle[handle] = key

    @staticmethod
    def _upgrade(held: _Hold, descriptor: int) -> None:
        """Shared with readers until now, for the enclave alone from now on; as it was if that cannot be."""
        _set(held.descriptor, fcntl.F_UNLCK, fcntl.LOCK_UN)
        try:
            stronger = _locked(descriptor, writable=True)
        except OSError:
            _set(held.descriptor, fcntl.F_RDLCK, fcntl.LOCK_SH)
            raise
        os.close(held.descriptor)
        held.descriptor, held.writable = stronger, True

    def release(self, handle: int) -> None:
        """The handle is closed."""
        with self._lock:
            key = self._of_handle.pop(handle, None)
            if key is None or key not in self._held:
                return
            held = self._held[key]
            held.handles.discard(handle)
            if not held.handles:
                del self._held[key]
                _give_back(held.descriptor)

    def close(self) -> None:
        """Release all."""
        with self._lock:
            held, self._held = list(self._held.values()), {}
            self._of_handle.clear()
        for each in held:
            _give_back(each.descriptor)


def _locked(descriptor: int, *, writable: bool) -> int:
    """Another descriptor of the same open file, which is locked as a whole."""
    own = os.dup(descriptor)
    try:
        _set(own, *((fcntl.F_WRLCK, fcntl.LOCK_EX) if writable else (fcntl.F_RDLCK, fcntl.LOCK_SH)))
    except OSError as error:
        os.close(own)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise OSError(errno.EBUSY, "another program has locked it") from error
        raise
    return own


def _give_back(descriptor: int) -> None:
    """Unlock, though the open file may have another descriptor still, and close."""
    _set(descriptor, fcntl.F_UNLCK, fcntl.LOCK_UN)
    os.close(descriptor)


def _set(descriptor: int, kind: int, flock: int) -> None:
    """Both kinds of locks of the open file, or none."""
    fcntl.fcntl(descriptor, _OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    try:
        fcntl.flock(descriptor, flock | fcntl.LOCK_NB)
    except OSError:
        fcntl.fcntl(descriptor, _OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
        raise
