"""What a host call says of a file, from what the operating system says of it."""

from __future__ import annotations

import os
import stat
from hashlib import blake2b

from adyton.hostcall import abi
from adyton.hostcall.client import openat

_KINDS: dict[int, abi.Kind] = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
_LARGEST = (1 << 63) - 1
_ATTEMPTS = 3


def attributes_at(directory: int, name: str) -> abi.Attributes:
    """Of what has this name in a directory, itself if it is a symbolic link. OSError."""
    for _ in range(_ATTEMPTS):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        inode, born = openat.born(directory, name)
        if inode in (status.st_ino, 0):  # else it was replaced in between
            break
    return attributes_of(status, born)


def attributes_of_open(descriptor: int, *, birth: bool = False) -> abi.Attributes:
    """Of what is open. `birth`: tell when it was made, too."""
    return attributes_of(os.fstat(descriptor), openat.born(descriptor)[1], birth=birth)


def attributes_of(status: os.stat_result, born: int | None, *, birth: bool = False) -> abi.Attributes:
    """The same, of what was stat'ed, and made at `born` (nanoseconds).

    That is part of its identity: file systems give the inode number of a file that was removed to the next one that is made, and the enclave
    may have the first one open while nothing here has.
    """
    identity = blake2b(b"%d:%d:%d" % (status.st_dev, status.st_ino, born or 0), digest_size=8).digest()
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
        born=time_of(born) if birth and born is not None else None,
    )


def time_of(nanoseconds: int) -> int:
    """A time that 64 bits hold; file systems know later ones."""
    return max(-_LARGEST, min(nanoseconds, _LARGEST))
