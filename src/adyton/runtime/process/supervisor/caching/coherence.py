"""How coherent each of the client's paths is to be: what its policy says of the nearest directory above it, or close-to-open.

But for SQLite's index of a write-ahead log, DATABASE-shm: all users of a database map it and share its memory, which an enclave and programs
on the client cannot. That is exclusive, so that the others are kept off, or the enclave, where transactions would be lost.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable

from adyton.communicator.messages import Coherence, Mount

MAX_KNOWN = 1 << 12
SHARED_MEMORY = "-shm"  # the end of its name: https://sqlite.org/walformat.html


def coherence_of(mounts: Iterable[Mount]) -> Callable[[str], Coherence]:
    """The coherence of a path, absolute and normalised."""
    said = {mount.path: mount.coherence for mount in mounts}
    known: dict[str, Coherence] = {}  # of directories

    def of(path: str) -> Coherence:
        if path.endswith(SHARED_MEMORY):
            return "exclusive"
        if path in said:
            return said[path]
        if path == "/":
            return "close-to-open"
        directory = posixpath.dirname(path)
        found = known.get(directory)
        if found is None:
            if len(known) >= MAX_KNOWN:
                known.clear()
            found = known[directory] = of(directory)
        return found

    return of
