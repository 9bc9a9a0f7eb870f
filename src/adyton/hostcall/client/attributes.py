"""What a host call says of a file, from what the operating system says of it."""

from __future__ import annotations

import os
import stat
from hashlib import blake2b

from adyton.hostcall import abi

_KINDS: dict[int, abi.Kind] = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
_LARGEST = (1 << 63) - 1


def attributes_of(status: os.stat_result, born: int | None = None) -> abi.Attributes:
    """The attributes of what was stat'ed. `born`: when it was made, in nanoseconds."""
    identity = blake2b(b"%d:%d" % (status.st_dev, status.st_ino), digest_size=8).digest()
    return abi.Attributes(
        kind=_KINDS.get(stat.S_IFMT(status.st_mode), "other"),
        identity=(int.from_bytes(identity, "little") & _LARGEST) or 1,
        size=min(status.st_size, _LARGEST),
        mode=stat.S_IMODE(status.st_mode),
        links=min(status.st_nlink, (1 << 32) - 1),
        accessed=time_of(status.st_atime_ns),
        modified=time_of(status.st_mtime_ns),
        changed=time_of(status.st_ctime_ns),
        blocks=status.st_blocks,
        born=None if born is None else time_of(born),
    )


def time_of(nanoseconds: int) -> int:
    """A time that 64 bits hold; file systems know later ones."""
    return max(-_LARGEST, min(nanoseconds, _LARGEST))
