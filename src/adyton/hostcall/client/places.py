"""Where a host call's path is on this machine, if the policy lets it be used so.

path of a request ──► policy (may it?) ──► a place here ──► ConfinedTree (reached without links)
"""

from __future__ import annotations

import os
import stat

from adyton.hostcall.client import paths
from adyton.hostcall.client.openat import ConfinedTree
from adyton.hostcall.client.policy import Denied, HostCallPolicy, PathRight, Resolved
from adyton.hostcall.client.written import Written


class Refused(Exception):  # noqa: N818 - an answer
    """The policy denies what was asked."""

    def __init__(self, denied: Denied) -> None:
        super().__init__(str(denied))
        self.denied = denied


class Places:
    """See the module. Every method raises Refused where the policy denies, ValueError for a malformed path. Thread-safe.

    `written`: where the enclave may have changed something.
    """

    def __init__(self, policy: HostCallPolicy, tree: ConfinedTree) -> None:
        self.policy = policy
        self.tree = tree
        self.written = Written(tree)

    def allowed(self, path: str, right: PathRight) -> str:
        """Where the name `path` is on this machine; it may be a symbolic link there."""
        return self._resolved(path, right).path

    def followed(self, path: str, right: PathRight) -> str:
        """The same; but where the policy's own path is a symbolic link, what that led to when the policy was made."""
        found = self._resolved(path, right)
        if found.target is None:
            return found.path
        try:
            return found.path if self.link(found.path) is None else found.target
        except FileNotFoundError:
            return found.path

    def enterable(self, path: str) -> str:
        """The same as `allowed`, for attributes only."""
        check_path(path)
        found = self.policy.enter(path)
        if isinstance(found, Denied):
            raise Refused(found)
        return found.path

    def writable(self, path: str) -> bool:
        """Whether the policy lets it be changed."""
        found = self.policy.resolve(path, "write")
        if isinstance(found, Denied):
            return False
        self.written.note(found.path)
        return True

    def _resolved(self, path: str, right: PathRight) -> Resolved:
        check_path(path)
        found = self.policy.resolve(path, right)
        if isinstance(found, Denied):
            raise Refused(found)
        if right == "write":
            self.written.note(found.path)
        return found

    # -- symbolic links -----------------------------------------------------------------------------------------------

    def link(self, path: str) -> str | None:
        """What the link at `path`, a place on this machine, holds; None if there is something else."""
        with self.tree.parent(path) as (directory, name):
            if not stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                return None
            return os.readlink(name, dir_fd=directory)

    def check_target(self, link: str, target: str) -> None:
        """Refused unless each step of where a link leads, and its end, is what the enclave may enter or read.

        Nothing is looked at that the enclave may not see, so that an answer tells it nothing about the rest of this machine.
        """
        done, rest = paths.split(link)[0], _names(target)
        if target.startswith("/"):
            done = "/"
        links = 0
        while rest:
            name = rest.pop(0)
            if name == "..":
                done = paths.split(done)[0]
                continue
            here = paths.join(done, name)
            if isinstance(self.policy.enter(here), Denied):
                end = os.path.normpath("/".join([here, *rest]))
                found = self.policy.enter(end)
                raise Refused(found if isinstance(found, Denied) else Denied("read", here))
            try:
                following = self.link(here)
            except (FileNotFoundError, NotADirectoryError):
                following = None  # its end is missing, which the enclave finds out when it looks there
            if following is None:
                done = here
                continue
            links += 1
            if links > paths.MAX_LINKS:
                return  # a circle, of nothing but what it may see: its kernel comes round, too (ELOOP)
            if following.startswith("/"):
                done = "/"
            rest = _names(following) + rest


def check_path(path: str) -> None:
    """ValueError if no host call may carry it."""
    if not paths.is_normalised(path):
        raise ValueError("not an absolute and normalised path")


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in {"", "."}]
