"""Whose each name in the guest's file tree is: the enclave's own, the client's, private, or nobody's.

The layout is built from what the client sends at load, which is hostile: it says where the client *wants* to be asked. It never
widens what is the client's over the enclave's own names, and it is no policy: the client alone enforces that.

    place      names                                                    answered by
    OWN        hostcall.own_paths, and what the runtime mounts           this process; the client is never asked
    CLIENT     an allowed path and all below it                          the client
    PRIVATE    below /tmp, where it is neither allowed nor in            this process, in memory
               the working directory
    LEADING    a directory above an allowed path, above the working     entered and stat'ed as the client says; not listed
               directory, or that itself
    OUTSIDE    all else                                                  EACCES, after the client was told of it

The first row that fits holds. `/tmp` is a mount of its own (OWN) as long as no allowed path and no working directory touches it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum

from adyton.communicator.messages import Grant
from adyton.errors import RemoteProtocolError, UsageError
from adyton.hostcall import abi
from adyton.hostcall.own_paths import OWN_PATHS, leads_to_own, own_path

IMAGE = "/enclave"  # where the guest starts if the client's working directory is one of the enclave's own names
TEMPORARY = "/tmp"  # noqa: S108 a name in the guest's tree
MAX_GRANTS = 1024
MAX_CHARACTERS = 1 << 24  # of all paths and the directories above each, together


class Place(Enum):
    OWN = "own"
    CLIENT = "client"
    PRIVATE = "private"
    LEADING = "leading"
    OUTSIDE = "outside"


class Layout:
    """See the module. RemoteProtocolError for a malformed path or too many; UsageError for a grant of the enclave's own names.

    `working_directory`: where the guest is to start. `needs_private_tmp`: `/tmp` is part of this tree, not a mount of its own.
    `private_directories`: below /tmp, directories that lead to the client's names; the first before what lies in it.
    """

    def __init__(self, grants: Iterable[Grant], working_directory: str) -> None:
        paths = [grant.path for grant in grants]
        if len(paths) > MAX_GRANTS or sum(len(path) * path.count("/") for path in paths) > MAX_CHARACTERS:
            raise RemoteProtocolError(f"the client allows too many paths: more than {MAX_GRANTS}, or too long ones")
        for path in (*paths, working_directory):
            if not is_normal(path):
                raise RemoteProtocolError(
                    f"the client sent the path {path[:80]!r}, which is not absolute and normalised"
                )
        for path in paths:
            if (own := own_path(path)) is not None:
                raise UsageError(
                    f"{path} cannot be allowed: {own} is the enclave's own. Allow a path outside {', '.join(OWN_PATHS)}."
                )
        self._granted = frozenset(paths)
        inside = own_path(working_directory) is None
        self.working_directory = working_directory if inside else IMAGE
        self._inside = working_directory if inside else None
        self._leading = {above for path in paths for above in _above(path)}
        if inside:
            self._leading.update(_above(working_directory), [working_directory])

        touching = [*paths, *([working_directory] if inside else [])]
        covered = self._is_granted(TEMPORARY) or self._inside == TEMPORARY
        self.needs_private_tmp = covered or any(_within(path, TEMPORARY) for path in touching)
        self._private = self.needs_private_tmp and not covered
        self.private_directories = tuple(
            sorted(path for path in self._leading if path != TEMPORARY and self.classify(path) is Place.PRIVATE)
        )

    def classify(self, path: str) -> Place:
        """Whose `path` (absolute and normalised) is."""
        if own_path(path) is not None:
            return Place.OWN
        temporary = _within(path, TEMPORARY)
        if temporary and not self.needs_private_tmp:
            return Place.OWN
        if self._is_granted(path):
            return Place.CLIENT
        if temporary and self._private and not (self._inside is not None and _within(path, self._inside)):
            return Place.PRIVATE
        if path in self._leading or leads_to_own(path):
            return Place.LEADING
        return Place.OUTSIDE

    def leads(self, path: str) -> bool:
        """Whether `path` is a directory above an allowed path or the working directory, or the latter."""
        return path in self._leading

    def names_in(self, directory: str) -> Iterator[str]:
        """Names directly in `directory` that are allowed, or lead to what is."""
        prefix = directory.rstrip("/") + "/"
        found = {
            path[len(prefix) :].split("/", 1)[0] for path in self._granted | self._leading if path.startswith(prefix)
        }
        return iter(sorted(found - {""}))

    def _is_granted(self, path: str) -> bool:
        return path in self._granted or not self._granted.isdisjoint(_above(path))


def _above(path: str) -> Iterator[str]:
    """The directories above `path`, the root last."""
    while path != "/":
        path = path[: path.rindex("/")] or "/"
        yield path


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def is_normal(path: str) -> bool:
    """Whether `path` is absolute and normalised, as paths of the host-call ABI are."""
    names = path.split("/")[1:]
    return (
        path.startswith("/")
        and len(path) <= abi.MAX_PATH
        and "\0" not in path
        and (path == "/" or all(name not in ("", ".", "..") for name in names))
    )
