"""Operations on names: look-up, mkdir, mknod, unlink, rename, links. Operations: see `view`."""

from __future__ import annotations

import errno
import posixpath
import stat
from collections.abc import Generator

from adyton.hostcall import abi
from adyton.hostcall.names import in_bytes, in_text
from adyton.runtime.process.supervisor import fuse_abi
from adyton.runtime.process.supervisor.fuse_abi import FileError, Header
from adyton.runtime.process.supervisor.handles import Handles
from adyton.runtime.process.supervisor.layout import TEMPORARY, Place
from adyton.runtime.process.supervisor.private import Link
from adyton.runtime.process.supervisor.sealed import SEALED
from adyton.runtime.process.supervisor.tree import Node, is_same, learn
from adyton.runtime.process.supervisor.view import Steps, View, ask, is_root, private_directory, sendable

_WHITEOUT_AND_UNKNOWN = ~(fuse_abi.RENAME_NOREPLACE | fuse_abi.RENAME_EXCHANGE)


class NameOperations:
    """See the module."""

    def __init__(self, view: View, handles: Handles) -> None:
        self._view = view
        self._tree = view.tree
        self._handles = handles

    # -- finding ----------------------------------------------------------------------------------------------------

    def lookup(self, header: Header, body: fuse_abi.Name) -> Steps:
        """What is at a name."""
        parent = self._tree.get(header.node)
        name, path = self._view.child_path(parent, body.name)
        existing = parent.children.get(name)
        if existing is not None and existing.own:
            return self._view.entry(existing)
        match self._view.place(path):
            case Place.OWN:
                self._view.missed_sealed(path)
                raise FileError(errno.ENOENT)
            case Place.PRIVATE:
                if existing is not None and is_root(existing.private):
                    return self._view.entry(existing)
                directory = private_directory(parent)
                inode = directory.files.find(directory, name)
                return self._view.entry(self._tree.found_private(parent, name, inode))
            case Place.OUTSIDE:
                yield from self._view.denied(header, path, "read", guess=True)
            case Place.LEADING if existing is not None and _is_directory(existing):
                return self._view.entry(existing)  # judged once: what leads to an allowed path was resolved at load
            case Place.CLIENT if existing is not None and self._is_still_there(existing, path):
                return self._view.entry(existing)
        try:
            attributes = yield from ask(abi.Stat(sendable(path)), abi.Attributes)
        except FileError as error:
            if error.number in (errno.ENOENT, errno.ENOTDIR):
                self._tree.gone(parent, name)
            raise
        return self._view.entry(self._tree.found_client(parent, name, attributes))

    def _is_still_there(self, node: Node, path: str) -> bool:
        """Whether the client need not be asked about a directory's name; its attributes are asked for when they matter."""
        known = node.attributes
        return known is not None and known.kind == "directory" and self._view.cache.is_still_at(path, known.identity)

    def readlink(self, header: Header, _body: object) -> Steps:
        """A link's target; EACCES if a link of the client's leads to what is not the client's.

        Were it followed, a client could have the enclave open a file of its own (such as /proc/self/mem) where it means to open
        the client's. Each part of a target that is a link itself is judged when the kernel asks for that one; ".." behind a
        name would be applied to what that name leads to, and cannot be judged here.
        """
        node = self._tree.get(header.node)
        if isinstance(node.private, Link):
            return node.private.target
        path = self._tree.path(node)
        if node.private is not None or self._view.place(path) not in (Place.CLIENT, Place.LEADING):
            raise FileError(errno.EINVAL)
        target = (yield from ask(abi.ReadLink(sendable(path)), abi.Target)).path
        names = [name for name in target.split("/") if name not in ("", ".")]
        climbs = 0 if target.startswith("/") else next((i for i, name in enumerate(names) if name != ".."), len(names))
        if ".." in names[climbs:]:
            raise FileError(errno.EACCES)
        leads_to = posixpath.normpath("/" + posixpath.join(posixpath.dirname(path), target).lstrip("/"))
        place = self._view.place(leads_to)
        if place is Place.OWN or (place is Place.PRIVATE and not self._view.leads(leads_to)):
            raise FileError(errno.EACCES)
        return in_bytes(target)

    # -- making and removing ----------------------------------------------------------------------------------------

    def mkdir(self, header: Header, body: fuse_abi.MakeDir) -> Steps:
        """A new, empty directory."""
        parent = self._tree.get(header.node)
        name, path = self._view.child_path(parent, body.name)
        mode, umask = body.mode & 0o7777, body.umask & 0o777
        if (yield from self._writable(header, path)) is Place.PRIVATE:
            directory = private_directory(parent)
            made = directory.files.make_directory(directory, name, mode & ~umask)
            return self._view.entry(self._tree.found_private(parent, name, made))
        attributes = yield from ask(abi.MakeDirectory(sendable(path), mode, umask), abi.Attributes)
        return self._view.entry(self._tree.found_client(parent, name, attributes))

    def mknod(self, header: Header, body: fuse_abi.MakeNode) -> Steps:
        """A new, empty file; a pipe or a socket among private files. EPERM for one of these on the client, and for devices."""
        parent = self._tree.get(header.node)
        name, path = self._view.child_path(parent, body.name)
        kind, mode = stat.S_IFMT(body.mode) or stat.S_IFREG, stat.S_IMODE(body.mode)
        umask = body.umask & 0o777
        if (yield from self._writable(header, path)) is Place.PRIVATE:
            directory = private_directory(parent)
            if kind == stat.S_IFREG:
                return self._view.entry(
                    self._tree.found_private(parent, name, directory.files.make_file(directory, name, mode & ~umask))
                )
            if kind in (stat.S_IFIFO, stat.S_IFSOCK):
                special = directory.files.make_special(directory, name, kind | mode & ~umask)
                return self._view.entry(self._tree.found_private(parent, name, special))
            raise FileError(errno.EPERM)
        if kind != stat.S_IFREG:
            raise FileError(errno.EPERM)
        number = self._handles.reserve()
        try:
            request = abi.Open(sendable(path), number, "write", create=True, exclusive=True, mode=mode, umask=umask)
            attributes = yield from ask(request, abi.Attributes)
            self._view.tells.append(abi.Close(number))
            return self._view.entry(self._tree.found_client(parent, name, attributes))
        finally:
            self._handles.release(number)

    def link(self, header: Header, body: fuse_abi.Link) -> Steps:
        """One more name for a file; the first one for a file that was opened without. EXDEV between private files and the client's."""
        node, parent = self._tree.get(body.node), self._tree.get(header.node)
        name, path = self._view.child_path(parent, body.name)
        place = yield from self._writable(header, path)
        if node.private is not None:
            if place is not Place.PRIVATE or node.private.files is not private_directory(parent).files:
                raise FileError(errno.EXDEV)
            node.private.files.link(node.private, private_directory(parent), name)
            self._tree.one_more(node, parent, name)
            return self._view.entry(node)
        if node.own or place is Place.PRIVATE:
            raise FileError(errno.EXDEV)
        source = node.path
        if source is not None:
            yield from self._writable(header, source)
            attributes = yield from ask(abi.Link(sendable(source), sendable(path)), abi.Attributes)
        else:
            old, new = sendable(node.last_path), sendable(path)
            found = yield from self._handles.ask_open(node, lambda h: abi.Link(old, new, h), abi.Attributes)
            if found is None:
                raise FileError(errno.ESTALE)
            attributes = found
        if not is_same(node, attributes):
            return self._view.entry(self._tree.found_client(parent, name, attributes))
        learn(node, attributes)
        self._tree.one_more(node, parent, name)
        return self._view.entry(node)

    def symlink(self, header: Header, body: fuse_abi.SymLink) -> Steps:
        """A new symbolic link; on the client it may lead to what the enclave may write, which the client sees to."""
        parent = self._tree.get(header.node)
        name, path = self._view.child_path(parent, body.name)
        if (yield from self._writable(header, path)) is not Place.PRIVATE:
            attributes = yield from ask(abi.SymbolicLink(sendable(path), in_text(body.target)), abi.Attributes)
            return self._view.entry(self._tree.found_client(parent, name, attributes))
        directory = private_directory(parent)
        made = directory.files.make_link(directory, name, body.target)
        return self._view.entry(self._tree.found_private(parent, name, made))

    def unlink(self, header: Header, body: fuse_abi.Name) -> Steps:
        """Remove a file or link."""
        return self._remove(header, body, is_directory=False)

    def rmdir(self, header: Header, body: fuse_abi.Name) -> Steps:
        """Remove an empty directory."""
        return self._remove(header, body, is_directory=True)

    def _remove(self, header: Header, body: fuse_abi.Name, *, is_directory: bool) -> Steps:
        parent = self._tree.get(header.node)
        name, path = self._view.child_path(parent, body.name)
        if (yield from self._writable(header, path)) is Place.PRIVATE:
            directory = private_directory(parent)
            directory.files.remove(directory, name, is_directory=is_directory)
        else:
            yield from ask(abi.Remove(sendable(path), is_directory), abi.Done)
        self._tree.removed(parent, name)
        return b""

    def rename(self, header: Header, body: fuse_abi.OldRename) -> Steps:
        """RENAME2 without flags."""
        return self.rename2(header, fuse_abi.Rename(body.directory, 0, body.source, body.target))

    def rename2(self, header: Header, body: fuse_abi.Rename) -> Steps:
        """As renameat2(2) has it; EXDEV between private files and the client's, EINVAL for a whiteout, or into itself."""
        exchange = bool(body.flags & fuse_abi.RENAME_EXCHANGE)
        replace = not body.flags & fuse_abi.RENAME_NOREPLACE
        if body.flags & _WHITEOUT_AND_UNKNOWN or (exchange and not replace):
            raise FileError(errno.EINVAL)
        parent, target = self._tree.get(header.node), self._tree.get(body.directory)
        name, path = self._view.child_path(parent, body.source)
        new_name, new_path = self._view.child_path(target, body.target)
        source_place = yield from self._writable(header, path)
        target_place = yield from self._writable(header, new_path)
        if source_place is not target_place:
            raise FileError(errno.EXDEV)
        if new_path.startswith(path + "/") or (exchange and path.startswith(new_path + "/")):
            raise FileError(errno.EINVAL)
        same = path == new_path
        if source_place is Place.PRIVATE:
            source_directory, target_directory = private_directory(parent), private_directory(target)
            files = source_directory.files
            if target_directory.files is not files:
                raise FileError(errno.EXDEV)
            if exchange:
                files.exchange(source_directory, name, target_directory, new_name)
            else:
                same = source_directory.entries.get(name) is target_directory.entries.get(new_name)
                files.rename(source_directory, name, target_directory, new_name, replace=replace)
        else:
            yield from ask(abi.Rename(sendable(path), sendable(new_path), replace, exchange), abi.Done)
        if not same:
            (self._tree.exchange if exchange else self._tree.move)(parent, name, target, new_name)
        return b""

    def _writable(self, header: Header, path: str) -> Generator[abi.Request, abi.Result, Place]:
        """CLIENT or PRIVATE; all else is no place to change a name in."""
        place = self._view.place(path)
        if place is Place.OWN:
            raise FileError(errno.EACCES)
        if place is Place.PRIVATE and path in (TEMPORARY, SEALED):
            raise FileError(errno.EBUSY)
        if place in (Place.LEADING, Place.OUTSIDE):
            yield from self._view.denied(header, path, "write")
        return place


def _is_directory(node: Node) -> bool:
    """As far as is known of a client's name."""
    return node.attributes is not None and node.attributes.kind == "directory"
