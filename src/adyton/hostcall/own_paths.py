"""The names in an enclave's file tree that are the enclave's own, whatever its client allows.

The policy is written on the untrusted side: were it able to lay its files over these names, the client would run its code in the
enclave. Both ends therefore hold the same table: the client refuses a policy that names one of them, and the enclave never asks
its client about one.
"""

from __future__ import annotations

import re

# Each covers itself and all below it; "*" stands for any characters of one name.
OWN_PATHS: tuple[str, ...] = (
    "/enclave",  # the image
    "/usr",  # libc and what belongs to it
    "/bin",
    "/sbin",
    "/lib*",
    "/opt/adyton",  # Python, and the runtime's libraries
    "/proc",
    "/dev",
    "/etc",
    "/sealed",  # sealed storage
)

# One group per row: the rows' names, and then the path's end or another name.
_ROWS = (re.escape(own).replace("\\*", "[^/]*") for own in OWN_PATHS)
_OWN = re.compile("|".join(rf"({row})(?=/|\Z)" for row in _ROWS))


def own_path(path: str) -> str | None:
    """The row of OWN_PATHS that `path` (absolute and normalised) is equal to or below; None if it is not the enclave's own."""
    found = _OWN.match(path)
    return None if found is None or found.lastindex is None else OWN_PATHS[found.lastindex - 1]


def leads_to_own(path: str) -> bool:
    """Whether `path` (absolute and normalised) is a directory above one of the enclave's own names: "/" and "/opt"."""
    above = path.rstrip("/") + "/"
    return any(own.startswith(above) for own in OWN_PATHS)
