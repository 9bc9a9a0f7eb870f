"""The C library's allocator, in processes of ours that much data goes through."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT = 16 << 20  # bytes at an arena's end that are free, at most
_LARGE = 4 << 20  # bytes of what is given back at once


def keep_freed_memory() -> None:
    """Have it keep some of what is freed for what is needed next.

    Else it gives the system back what a message took, and asks for it again for the next: a page fault for each page, which took a fifth
    of a relay's time. Nothing where the C library has no mallopt(3), or does it otherwise.
    """
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    if change is not None:
        change(_TRIM_THRESHOLD, _KEPT)
        change(_MMAP_THRESHOLD, _LARGE)
