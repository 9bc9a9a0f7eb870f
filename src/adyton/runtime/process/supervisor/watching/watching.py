"""Who is told of what happens to files: the watches of all inotify instances of an enclave, by the node that they are of. Sans-IO.

What the enclave's own programs do comes from `happenings`, what others do on the client from its messages: it is asked to tell of them
(abi.Follow) when the first watch of a node is made. A file is followed by the name that it had then; where the enclave moves it, by the new one.
"""

from __future__ import annotations

import errno
import itertools
import posixpath
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from typing import Any

import msgspec

from adyton.hostcall import abi
from adyton.hostcall.events import Event, Kind
from adyton.hostcall.names import in_bytes
from adyton.runtime.process.supervisor.private import Directory
from adyton.runtime.process.supervisor.tree import Node, Tree
from adyton.runtime.process.supervisor.watching.instances import Budget, Instance, Mask, Watch

_OF_CLIENT = {
    "created": Mask.CREATE,
    "removed": Mask.DELETE,
    "modified": Mask.MODIFY,
    "attributes": Mask.ATTRIB,
    "closed": Mask.CLOSE_WRITE,
    "moved-from": Mask.MOVED_FROM,
    "moved-to": Mask.MOVED_TO,
}
# What says that there is to be no watch. Else the client cannot tell of changes there, and what the enclave does is told all the same.
_NO_WATCH = {"EACCES": errno.EACCES, "ENOENT": errno.ENOENT, "ENOSPC": errno.ENOSPC}
_CLIENTS = 0x80000000  # of the cookies: half are the client's
_ON_ITSELF = Mask.MODIFY | Mask.ATTRIB | Mask.CLOSE_WRITE

Key = tuple[str, str]  # directory and name, as a Follow has them


class Watched:
    """A node that is watched. `followed`: by which name the client tells of it; None: it does not."""

    __slots__ = ("followed", "node", "watches")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.watches: list[Watch[Watched]] = []
        self.followed: Key | None = None


class Watching:
    """See the module. `follows`: whether what is at a path is the client's. `to_send`: what nobody waits for, at most one request of each name."""

    def __init__(self, tree: Tree, follows: Callable[[str], bool]) -> None:
        self.to_send: dict[Key, abi.Follow] = {}  # and abi.Unfollow
        self._tree = tree
        self._follows = follows
        self._watched: dict[int, Watched] = {}  # by the node's number
        self._followed: dict[Key, Watched] = {}
        self._asked: Counter[Key] = Counter()  # of the client, which has not answered yet
        self._left: dict[int, tuple[Node, str]] = {}  # of open files whose last name is gone: what that was
        self._cookies = itertools.count(1)
        self.budget = Budget()
        self.instances: dict[Instance[Watched], None] = {}

    @property
    def active(self) -> bool:
        """Whether anything is watched."""
        return bool(self._watched)

    # -- instances and watches ----------------------------------------------------------------------------------------

    def open(self, unread: Callable[[], bool] = lambda: False) -> Instance[Watched]:
        """A new instance."""
        instance: Instance[Watched] = Instance(self.budget, unread)
        self.instances[instance] = None
        return instance

    def close(self, instance: Instance[Watched]) -> None:
        """Nobody has it any more."""
        del self.instances[instance]
        watches = list(instance.watches.values())
        instance.close()
        for watch in watches:
            self._removed(watch)

    def key(self, node: Node) -> Key | None:
        """What the client is to be asked to follow; None if the node is not the client's, or has no name."""
        path = node.path
        if path is None or node.private is not None or not self._follows(path):
            return None
        return (path, "") if is_directory(node) else posixpath.split(path)

    def watched(self, instance: Instance[Watched], node: Node, mask: int) -> Generator[Any, abi.Result, int]:
        """Watch a node, or another way; the watch's number. OSError EACCES, ENOENT, EBADF, EEXIST, ENOSPC."""
        key = self.key(node)
        if key is None or key in self._followed:
            return self._watch(instance, node, mask, key)
        self._asked[key] += 1
        self.to_send.pop(key, None)
        try:
            result = yield abi.Follow(*key)
            if isinstance(result, abi.Failed) and result.errno in _NO_WATCH:
                raise OSError(_NO_WATCH[result.errno], "the client does not let it be followed")
            number = self._watch(instance, node, mask, key)
        finally:
            self._asked[key] -= 1
            if not self._asked[key]:
                del self._asked[key]
                if key not in self._followed:
                    self.to_send[key] = abi.Unfollow(*key)
        if self.key(node) != key:  # moved meanwhile
            self.moved()
        return number

    def _watch(self, instance: Instance[Watched], node: Node, mask: int, key: Key | None) -> int:
        if instance not in self.instances:
            raise OSError(errno.EBADF, "it was closed meanwhile")
        watched = self._watched.get(node.id)
        for watch in watched.watches if watched is not None else ():
            if watch.instance is instance:
                instance.change(watch, mask)
                return watch.number
        known = watched or Watched(node)
        watch = instance.add(known, mask)
        known.watches.append(watch)
        if watched is None:
            self._watched[node.id] = known
            self._tree.told(node)  # kept though the kernel forgets it
            node.watched = True
            known.followed = key
            if key is not None:
                self._followed[key] = known
        return watch.number

    def unwatch(self, instance: Instance[Watched], number: int) -> None:
        """OSError EINVAL."""
        watch = instance.watches.get(number)
        if watch is None:
            raise OSError(errno.EINVAL, "no watch has that number")
        self._remove(watch)

    def _remove(self, watch: Watch[Watched]) -> None:
        watch.instance.remove(watch)
        self._removed(watch)

    def _removed(self, watch: Watch[Watched]) -> None:
        watched = watch.watched
        watched.watches.remove(watch)
        if not watched.watches:
            del self._watched[watched.node.id]
            watched.node.watched = False
            self._unfollow(watched)
            self._tree.forget(watched.node.id, 1)
            if not self._watched:
                self._left.clear()

    def _unfollow(self, watched: Watched) -> None:
        key, watched.followed = watched.followed, None
        if key is not None and self._followed.get(key) is watched:
            del self._followed[key]
            if key not in self._asked:
                self.to_send[key] = abi.Unfollow(*key)

    # -- telling ------------------------------------------------------------------------------------------------------

    def itself(self, node: Node, mask: int, name: str = "", cookie: int = 0) -> None:
        """Something happened to a node; with a name: to that name in it."""
        watched = self._watched.get(node.id)
        for watch in list(watched.watches) if watched is not None else ():
            if watch.mask & mask:
                watch.instance.tell(watch, mask, cookie, in_bytes(name))
                if watch.mask & Mask.ONESHOT:
                    self._remove(watch)

    def at(self, node: Node, mask: int) -> None:
        """Something happened to a node, which its directory is told of as well."""
        if is_directory(node):
            mask |= Mask.ISDIR
        place = next(iter(node.names), None) or self._left.get(node.id)
        if place is not None:
            self.itself(place[0], mask, place[1])
        self.itself(node, mask)

    def next_cookie(self) -> int:
        """Of a move by the enclave."""
        return next(self._cookies) % _CLIENTS

    def unlinked(self, node: Node, parent: Node, name: str) -> bool:
        """A file or directory has lost this name; whether nothing is left of it."""
        if is_directory(node):
            return True
        self.itself(node, Mask.ATTRIB)
        if _has_links(node):
            return False
        if node.handles:
            self._left[node.id] = parent, name
            return False
        return True

    def closed(self, node: Node) -> None:
        """A descriptor of it was the last one."""
        if not node.handles and self._left.pop(node.id, None) is not None:
            self.gone(node)

    def gone(self, node: Node) -> None:
        """There is no such file any more."""
        self.itself(node, Mask.DELETE_SELF)
        self._ignored(node)

    def _ignored(self, node: Node) -> None:
        watched = self._watched.get(node.id)
        for watch in list(watched.watches) if watched is not None else ():
            self._remove(watch)

    def moved(self) -> None:
        """The enclave moved something: what is watched may have another path."""
        for watched in list(self._watched.values()):
            key = self.key(watched.node)
            if key != watched.followed:
                self._unfollow(watched)
                if key is not None:
                    watched.followed = key
                    self._followed[key] = watched
                    self.to_send[key] = abi.Follow(*key)

    # -- what others do -----------------------------------------------------------------------------------------------

    def happened(self, events: Iterable[Event]) -> None:
        """The client tells of what other programs did."""
        for event in events:
            if event.kind == "lost":
                for instance in self.instances:
                    instance.lost()
            elif event.name:
                self._in(event)
            elif (watched := self._followed.get((event.directory, ""))) is not None:
                self._to_directory(watched.node, event.kind)

    def _in(self, event: Event) -> None:
        mask = _OF_CLIENT[event.kind] | (Mask.ISDIR if event.is_directory else 0)
        directory = self._followed.get((event.directory, ""))
        file = self._followed.get((event.directory, event.name))
        if file is not None and event.kind == "removed":
            self._replaced(file)
        if directory is not None:
            cookie = event.cookie | _CLIENTS if event.kind in ("moved-from", "moved-to") else 0
            self.itself(directory.node, mask, event.name, cookie)
        if file is not None and mask & _ON_ITSELF:
            self.itself(file.node, mask)
        elif file is not None and event.kind == "moved-from":
            self._unfollow(file)
            self.itself(file.node, Mask.MOVE_SELF)
        elif file is not None and event.kind == "moved-to":
            self._replaced(file)

    def _replaced(self, file: Watched) -> None:
        """A file that is followed by its name is not there any more."""
        self._unfollow(file)
        self.itself(file.node, Mask.ATTRIB)
        if file.node.attributes is None or file.node.attributes.links <= 1:
            self.gone(file.node)

    def _to_directory(self, node: Node, kind: Kind) -> None:
        if kind == "attributes":
            self.itself(node, Mask.ATTRIB | Mask.ISDIR)
        elif kind == "removed":
            self.gone(node)
        elif kind == "moved-from":
            self.itself(node, Mask.MOVE_SELF)
            self._ignored(node)


def _has_links(node: Node) -> bool:
    """Whether a file that has lost a name has others."""
    if node.private is not None:
        return node.private.links > 0
    if node.attributes is not None and node.attributes.links > 1:
        node.attributes = msgspec.structs.replace(node.attributes, links=node.attributes.links - 1)
        return True
    return False


def is_directory(node: Node) -> bool:
    """As far as is known of the client's."""
    if node.private is not None:
        return isinstance(node.private, Directory)
    return bool(node.own) or (node.attributes is not None and node.attributes.kind == "directory")
