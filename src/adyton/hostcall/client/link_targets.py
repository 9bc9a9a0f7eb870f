"""Where a symbolic link may lead that an enclave makes or moves on its client.

The client never follows one for the enclave. Its *other programs* do: a link to ~/.ssh/config, laid where one of them writes, would have
it write there in the enclave's stead. So a link may lead only to what the enclave may write itself, told from its text alone:

- ".." only at its front; behind a name it would go up from wherever that name leads to;
- absolute, or from the directory that holds it: the end is below a path that the policy lets be written (Refused otherwise).

A relative link leads elsewhere when it is moved, itself or with a directory above it: then it is judged anew, at its new place.
What is there already, made by the client's owner, may lead anywhere, and a link that leads through it does too.
"""

from __future__ import annotations

import errno
import os
import stat

from adyton.hostcall.client import paths
from adyton.hostcall.client.places import Places, Refused
from adyton.hostcall.client.policy import Denied

MAX_MOVED = 1 << 16  # names looked at in a directory that is moved; in a larger one no link is known to be harmless


class LinkTargets:
    """See the module. Places are paths on this machine."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._tree = places.tree

    def check(self, place: str, target: str) -> None:
        """Refused, or EPERM if it cannot be told, unless a link at `place` may hold `target`."""
        names = [name for name in target.split("/") if name not in {"", "."}]
        climbs = next((index for index, name in enumerate(names) if name != ".."), len(names))
        if ".." in names[climbs:]:
            raise PermissionError(errno.EPERM, "it cannot be told where the link would lead")
        above = paths.split(place)[0]
        for _ in range(climbs):
            above = paths.split(above)[0]
        if target.startswith("/"):
            above = "/"
        end = above.rstrip("/") + "".join(f"/{name}" for name in names[climbs:]) or "/"
        found = self._places.policy.resolve(end, "write")
        if isinstance(found, Denied):
            raise Refused(found)

    def check_move(self, source: str, target: str) -> None:
        """The same for what is at `source`, and all below it, once it is at `target`. EXDEV for a directory: its content can be copied."""
        with self._tree.parent(source) as (directory, name):
            kind = stat.S_IFMT(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
            text = os.readlink(name, dir_fd=directory) if kind == stat.S_IFLNK else ""
        if kind == stat.S_IFLNK:
            self.check(target, text)
        elif kind == stat.S_IFDIR and paths.split(source)[0] != paths.split(target)[0]:
            self._check_below(source, target)

    def _check_below(self, source: str, target: str) -> None:
        """Only links that go up lead elsewhere when a directory above them is moved."""
        looked_at = 0
        waiting = [""]
        while waiting:
            below = waiting.pop()
            descriptor = self._tree.list_directory(source + below)
            try:
                with os.scandir(descriptor) as entries:
                    for entry in entries:
                        looked_at += 1
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(f"{below}/{entry.name}")
                        elif entry.is_symlink():
                            self._check_moved(
                                f"{target}{below}/{entry.name}", os.readlink(entry.name, dir_fd=descriptor)
                            )
            finally:
                os.close(descriptor)
            if looked_at > MAX_MOVED:
                raise OSError(errno.EXDEV, "too large to look for links in it")

    def _check_moved(self, place: str, text: str) -> None:
        if text.startswith("/") or ".." not in text.split("/"):
            return
        try:
            self.check(place, text)
        except (PermissionError, Refused) as error:
            raise OSError(errno.EXDEV, "a link in it would lead elsewhere") from error
