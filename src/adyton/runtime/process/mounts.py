"""Mounting with descriptors: file systems, clones of mounted trees, and their attributes. See fsopen(2), open_tree(2), mount_setattr(2)."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping

from adyton.runtime.process.libc import system_call

# Attributes of a mount (linux/mount.h)
READ_ONLY = 0x1
NO_SUID = 0x2
NO_DEV = 0x4
NO_EXEC = 0x8

_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_AT_EMPTY_PATH = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2


def make_private() -> None:
    """Let no mount below / be seen from other mount namespaces, nor theirs from here."""
    system_call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)


def file_system(kind: str, options: Mapping[str, str | int], attributes: int = NO_SUID | NO_DEV) -> int:
    """A new file system, mounted nowhere yet: a descriptor of its root."""
    context = system_call("fsopen", kind.encode(), _FSOPEN_CLOEXEC)
    try:
        for name, value in options.items():
            system_call("fsconfig", context, _FSCONFIG_SET_STRING, name.encode(), str(value).encode(), 0)
        system_call("fsconfig", context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return system_call("fsmount", context, _FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def fuse(device: int, uid: int) -> int:
    """A file system, mounted nowhere yet, of one user; its requests are read from `device`, an open /dev/fuse.

    What is in it is not to be mapped as code: it is the client's.
    """
    options: dict[str, str | int] = {
        "source": "adyton",
        "fd": device,
        "rootmode": "40000",
        "user_id": uid,
        "group_id": uid,
    }
    return file_system("fuse", options, NO_SUID | NO_DEV | NO_EXEC)


def clone(path: str) -> int:
    """A copy of what is mounted at and below `path` (a directory or file; links are followed), mounted nowhere yet.

    Always with all that is mounted below: in a user namespace, mounts that came from outside cannot be taken apart.
    """
    return system_call("open_tree", _AT_FDCWD, path.encode(), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE)


def attach(mount: int, path: str) -> None:
    """Mount at `path`; closes the descriptor."""
    try:
        system_call("move_mount", mount, b"", _AT_FDCWD, path.encode(), _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(mount)


def restrict(mount: int | str, attributes: int, *, below: bool = True) -> None:
    """Add attributes to a mount (its descriptor, or the path it is mounted at), and to those below it."""
    flags = _AT_RECURSIVE if below else 0
    argument = struct.pack("<4Q", attributes, 0, 0, 0)
    if isinstance(mount, int):
        system_call("mount_setattr", mount, b"", flags | _AT_EMPTY_PATH, argument, len(argument))
    else:
        system_call("mount_setattr", _AT_FDCWD, mount.encode(), flags, argument, len(argument))


def become_root(path: str) -> None:
    """Make the mount at `path` this mount namespace's root, and let go of the old one. See pivot_root(2), "."."""
    os.chdir(path)
    system_call("pivot_root", b".", b".")
    system_call("umount2", b".", _MNT_DETACH)
    os.chdir("/")
