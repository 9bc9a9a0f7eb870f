"""Where secrets are kept, and what keeps them from leaving this process other than on purpose.

What can be had: pages of secrets are in no core dump, no forked child and, where the limit of locked memory allows it, no swap; the process can be neither dumped nor
traced by others of its user. What cannot: passing copies in Python's and OpenSSL's memory, while an answer is made and encrypted, are freed, not all of them
overwritten; root of this machine reads everything.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource

_PR_SET_DUMPABLE = 4
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_MADV_WIPEONFORK = 18  # linux/mman.h
_libc = ctypes.CDLL(None, use_errno=True)


class SecretMemory:
    """A secret's own pages. `locked`: they are never written to swap."""

    def __init__(self, size: int) -> None:
        self._pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._whole = memoryview(self._pages)
        self._pages.madvise(mmap.MADV_DONTDUMP)
        self._pages.madvise(_MADV_WIPEONFORK)
        self.locked = not _libc.mlock(ctypes.c_void_p(_address(self._pages)), ctypes.c_size_t(len(self._pages)))
        self.view = self._whole[:size]

    def __repr__(self) -> str:
        return f"<SecretMemory of {len(self.view)} bytes>"

    def wipe(self) -> None:
        """Overwrite it with zeros."""
        self._whole[:] = bytes(len(self._whole))


def _address(pages: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(pages))


def wipe(data: bytearray | memoryview) -> None:
    """Overwrite with zeros."""
    data[:] = bytes(len(data))


def harden() -> list[str]:
    """Keep this process from being dumped, traced or swapped, for good; what of that cannot be had here, as sentences."""
    missing = []
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        missing.append(f"others of this user may read this process' memory: {os.strerror(ctypes.get_errno())}")
    # Where the limit does not hold for us, or is none: else later memory could not be had at all.
    if os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        if _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT):
            missing.append(f"passing copies of secrets may be written to swap: {os.strerror(ctypes.get_errno())}")
    else:
        missing.append(
            "passing copies of secrets may be written to swap: raise the limit of locked memory (ulimit -l unlimited), or have no swap"
        )
    return missing
