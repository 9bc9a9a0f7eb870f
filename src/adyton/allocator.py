"""The C library's allocator, where much data goes through a process: it gives the system back what a message took, and asks for it again for
the next, with a page fault for each page; and keeps what lies between what is used."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT = 16 << 20  # bytes at an arena's end that are free, at most
_LARGE = 4 << 20  # bytes of what is given back at once
_ONCE = 8 << 20  # bytes


def keep_freed_memory() -> None:
    """In a process of ours, have it keep some of what is freed for what is needed next.

    It took a fifth of a relay's time. Nothing where the C library has no mallopt(3), or does it otherwise.
    """
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    if change is not None:
        change(_TRIM_THRESHOLD, _KEPT)
        change(_MMAP_THRESHOLD, _LARGE)


def give_back_freed_memory() -> None:
    """Give the system all pages that nothing uses. Nothing where the C library has no malloc_trim(3)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def have_freed_much() -> None:
    """In an application's process, whose allocator is not ours to set: as if it had once had and freed an object of 8 MiB.

    The GNU C library learns by that to give back at once what is larger only, and to keep twice as much as that free (mallopt(3):
    M_MMAP_THRESHOLD), unless somebody has set it otherwise. No memory is used.
    """
    bytes(_ONCE)
