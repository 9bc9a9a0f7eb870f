"""How coherent each of the client's paths is to be: what its policy says of the nearest directory above it, or close-to-open."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable

from adyton.communicator.messages import Coherence, Mount

MAX_KNOWN = 1 << 12


def coherence_of(mounts: Iterable[Mount]) -> Callable[[str], Coherence]:
    """The coherence of a path, absolute and normalised."""
    said = {mount.path: mount.coherence for mount in mounts}
    if not said:
        return lambda _path: "close-to-open"
    known: dict[str, Coherence] = {}  # of directories

    def of(path: str) -> Coherence:
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
