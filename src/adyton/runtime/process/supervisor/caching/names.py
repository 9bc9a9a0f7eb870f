"""What is known of the client's names, and of the files that they name.

A folder's names are known as long as its client promises to tell of changes (`watched`), or else for MOMENT seconds; a name that
is known to be absent is None. Files are known by their identity, so that two names of one file are one. Bounded: folders that were
not used for long are given up.
"""

from __future__ import annotations

import posixpath
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from adyton.hostcall import abi
from adyton.runtime.process.supervisor.caching.contents import Contents

MOMENT = 1.0  # seconds that an attribute holds which nobody promised to tell changes of
DIRECTORY_MOMENT = 30.0  # seconds: the same of a directory whose own names are not watched
MAX_LINKS = (1 << 32) - 1
MAX_NAMES = 1 << 17  # of all folders together


class File:
    """A file of the client's, or whatever else has attributes. `until`: when they have to be asked for again (seconds, monotonic).

    `version` is another one when its content was changed by others. `names`: how many are known; `handles`: how many are open.
    `writable`: it was opened for writing. `loose`: its time of change may have moved by what the enclave did; `error`: of a write that failed, and that no fsync has said; `said`: a close has.
    """

    __slots__ = (
        "attributes",
        "changes",
        "contents",
        "error",
        "foreign",
        "handles",
        "loose",
        "names",
        "noted",
        "said",
        "target",
        "there",
        "until",
        "version",
        "writable",
    )

    def __init__(self, attributes: abi.Attributes, version: int) -> None:
        self.attributes = attributes
        self.version = version
        self.until = 0.0
        self.names = 0
        self.handles = 0
        self.loose = False
        self.writable = False
        self.there: int | None = None  # its identity on the client, if it is known by another one here
        self.foreign = False  # others changed it while writes of the enclave were under way
        self.noted = 0  # the number of the enclave's last change of its content, see state.note_content
        self.error: abi.Failed | None = None
        self.said = False
        self.changes = 0  # of its content by the enclave
        self.target: abi.Target | None = None  # of a symbolic link
        self.contents = Contents()


class Folder:
    """What is known of the names in a directory. `complete`: there are no others. `listed`: the program lists it.

    The client promised to tell of changes: of all names if `watched`, of those in `promised`. `writable`: names were made or removed.
    `changes`: how often another file was found, or may be, at one of its names.
    """

    __slots__ = ("changes", "complete", "listed", "names", "progress", "promised", "surveyed", "watched", "writable")

    def __init__(self) -> None:
        self.names: dict[str, File | None] = {}
        self.progress = 0  # cookie up to which its list is known
        self.surveyed = False  # the client was asked for its list
        self.watched = False
        self.promised: set[str] = set()
        self.complete = False
        self.listed = False
        self.writable = False
        self.changes = 0

    def covers(self, name: str) -> bool:
        """Whether the client tells of changes of the name."""
        return self.watched or name in self.promised


class Names:
    """See the module. `now`: seconds, monotonic; `given_up`: told of each watched folder that is forgotten.

    `stale`: told of each file whose attributes do not hold any more though they were to; `dropped`: of each that nothing needs.
    """

    def __init__(
        self,
        now: Callable[[], float],
        given_up: Callable[[str], object],
        stale: Callable[[File], object],
        dropped: Callable[[File], object],
    ) -> None:
        self._stale = stale
        self._dropped = dropped
        self._now = now
        self._given_up = given_up
        self._folders: OrderedDict[str, Folder] = OrderedDict()
        self._files: dict[int, File] = {}
        self._versions = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    # -- looking ------------------------------------------------------------------------------------------------------

    def folder(self, directory: str) -> Folder:
        """The folder; a new one if nothing is known of it."""
        folder = self._folders.get(directory)
        if folder is None:
            folder = self._folders[directory] = Folder()
        else:
            self._folders.move_to_end(directory)
        return folder

    def state(self, directory: str) -> tuple[Folder, int] | None:
        """What is another one as soon as its names may be others; None if the client does not tell of that."""
        folder = self.folder(directory)
        return (folder, folder.changes) if folder.watched else None

    def known(self, path: str) -> tuple[bool, File | None]:
        """Whether it is known what is at the path, without asking; and that: None if nothing is."""
        directory, name = split(path)
        folder = self._folders.get(directory)
        if folder is None:
            return False, None
        if name not in folder.names:
            return folder.complete and folder.watched, None
        file = folder.names[name]
        if file is None:
            return folder.covers(name), None
        return file.until > self._now(), file

    def is_fresh(self, file: File) -> bool:
        """Whether its attributes need not be asked for."""
        return file.until > self._now()

    def is_covered(self, path: str) -> bool:
        """Whether the client tells when something else is at the path."""
        directory, name = split(path)
        folder = self._folders.get(directory)
        return folder is not None and folder.covers(name)

    def at(self, path: str) -> File | None:
        """The file that was last known to be at the path."""
        directory, name = split(path)
        folder = self._folders.get(directory)
        return None if folder is None else folder.names.get(name)

    def of(self, identity: int) -> File | None:
        """The file of that identity, if it is known."""
        return self._files.get(identity)

    # -- learning -----------------------------------------------------------------------------------------------------

    def learn(self, path: str, attributes: abi.Attributes, *, own: bool = False) -> File:
        """What is at the path. `own`: the enclave's own doing, and no other program's, made it what it is."""
        file = self.learn_file(attributes, own=own)
        directory, name = split(path)
        folder = self.folder(directory)
        self._place(folder, name, file)
        self.set_until(file, self._until(path, attributes, covered=folder.covers(name)))
        return file

    def set_until(self, file: File, until: float) -> None:
        """Its attributes hold so long from now on."""
        if file.until == FOREVER and until != FOREVER:
            self._stale(file)
        file.until = until

    def _until(self, path: str, attributes: abi.Attributes, *, covered: bool) -> float:
        """How long attributes hold. What is done through another of a file's names, or in a directory that is not watched, is not told."""
        if not covered:
            return self._now() + MOMENT
        if attributes.kind == "directory":
            own = self._folders.get(path)
            return FOREVER if own is not None and own.watched else self._now() + DIRECTORY_MOMENT
        return FOREVER if attributes.links <= 1 else self._now() + MOMENT

    def learn_file(self, attributes: abi.Attributes, *, own: bool = False) -> File:
        """The same of an open file, whatever its name."""
        file = self._files.get(attributes.identity)
        if file is None or file.attributes.kind != attributes.kind:
            self._versions += 1
            file = self._files[attributes.identity] = File(attributes, self._versions)
            return file
        before = file.attributes
        if file.contents.busy:  # what was on its way when this was said is known better here
            attributes = with_content_of(attributes, before)
        elif not own and _content_differs(before, attributes, loose=file.loose):
            self.changed_content(file)
        if not file.contents.busy:
            file.loose = False
        file.attributes = attributes
        return file

    def changed_content(self, file: File) -> None:
        """Another program has written into it."""
        self._versions += 1
        file.version = self._versions
        if file.until == FOREVER:  # else the kernel asks anyway, and a notice would have it drop what it is just told
            self._stale(file)
        file.contents.forget()
        file.target = None

    def absent(self, path: str) -> None:
        """Nothing is at the path."""
        directory, name = split(path)
        folder = self._folders.get(directory)
        if folder is not None:
            self._place(folder, name, None)

    def _place(self, folder: Folder, name: str, file: File | None) -> None:
        before = folder.names.get(name)
        if before is not file:
            folder.changes += 1
        if name not in folder.names:
            self._count += 1
        folder.names[name] = file
        if file is not None:
            file.names += 1
        if before is not None:
            before.names -= 1
            self.drop(before)
        if self._count > MAX_NAMES:
            self._shrink(folder)

    def promised(self, directory: str, name: str = "") -> None:
        """The client tells of changes in this directory from now on; of one name, if it is given."""
        folder = self.folder(directory)
        if name:
            folder.promised.add(name)
        else:
            folder.watched = True

    # -- forgetting ---------------------------------------------------------------------------------------------------

    def unknown(self, path: str) -> File | None:
        """What is at the path has to be asked; the file that was there."""
        directory, name = split(path)
        folder = self._folders.get(directory)
        if folder is None:
            return None
        folder.changes += 1
        file = folder.names.get(name)
        if name in folder.names:
            del folder.names[name]
            self._count -= 1
            if file is not None:
                file.names -= 1
                self.set_until(file, 0.0)
                self.drop(file)
        folder.complete = False
        return file

    def forget_folder(self, directory: str) -> list[File]:
        """Nothing is known of its names any more; the files that it had."""
        folder = self._folders.pop(directory, None)
        if folder is None:
            return []
        files = []
        self._count -= len(folder.names)
        for file in folder.names.values():
            if file is not None:
                files.append(file)
                file.names -= 1
                self.set_until(file, 0.0)
                self.drop(file)
        return files

    def forget_below(self, directory: str) -> None:
        """The same of the directory, and all below it: it has another name now, or none."""
        below = directory.rstrip("/") + "/"
        for each in [each for each in self._folders if each == directory or each.startswith(below)]:
            self.forget_folder(each)

    def drop(self, file: File) -> None:
        """Give the file up if nothing needs it."""
        if not file.names and not file.handles and not file.contents.busy and not file.error:
            known = self._files.get(file.attributes.identity)
            if known is file:
                del self._files[file.attributes.identity]
                self._dropped(file)

    def _shrink(self, kept: Folder) -> None:
        for directory, folder in list(self._folders.items()):
            if self._count <= MAX_NAMES * 3 // 4:
                return
            if folder is not kept:
                watched = folder.watched or folder.promised
                self.forget_folder(directory)
                if watched:
                    self._given_up(directory)
        for name in list(kept.names)[: max(0, self._count - MAX_NAMES * 3 // 4)]:  # a directory of very many
            kept.complete = False
            file = kept.names.pop(name)
            self._count -= 1
            if file is not None:
                file.names -= 1
                self.set_until(file, 0.0)
                self.drop(file)

    def touched(self, path: str, now: int, links: int = 0) -> None:
        """The enclave made or removed a name in the directory at `path`: its times, and so many more links."""
        file = self.at(path)
        if file is not None:
            known = file.attributes
            file.attributes = replaced(
                known, modified=now, changed=now, links=min(max(0, known.links + links), MAX_LINKS)
            )
            file.loose = True


FOREVER = float("inf")


def split(path: str) -> tuple[str, str]:
    """Directory and name; the root is "." in itself."""
    directory, name = posixpath.split(path)
    return directory, name or "."


def replaced(attributes: abi.Attributes, **fields: int) -> abi.Attributes:
    """The same with other fields."""
    return msgspec.structs.replace(attributes, **fields)


def with_content_of(attributes: abi.Attributes, known: abi.Attributes) -> abi.Attributes:
    """`attributes`, but with the size and times of `known`."""
    return replaced(attributes, size=known.size, modified=known.modified, changed=known.changed, blocks=known.blocks)


def _content_differs(before: abi.Attributes, now: abi.Attributes, *, loose: bool) -> bool:
    if (before.size, before.modified) != (now.size, now.modified):
        return not (loose and before.size == now.size and now.kind == "directory")
    return before.changed != now.changed and not loose
