"""What the enclave has removed of the client's files: what it does not find there any more is no news to it."""

from __future__ import annotations

from collections import OrderedDict

from adyton.hostcall.client.paths import split

MAX_NOTED = 1 << 15


class RemovedPaths:
    """Paths at which the enclave has removed what was there, by directory: MAX_NOTED at most, those of the oldest directories are given up."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, set[str]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, path: str) -> bool:
        directory, name = split(path)
        return name in self._names.get(directory, ())

    def any_in(self, directory: str) -> bool:
        return directory in self._names

    def note(self, path: str) -> None:
        directory, name = split(path)
        names = self._names.setdefault(directory, set())
        self._count += name not in names
        names.add(name)
        while self._count > MAX_NOTED:
            self.forget_all_in(next(iter(self._names)))

    def forget(self, path: str) -> None:
        directory, name = split(path)
        names = self._names.get(directory, set())
        if name in names:
            names.remove(name)
            self._count -= 1
            if not names:
                del self._names[directory]

    def forget_all_in(self, directory: str) -> None:
        self._count -= len(self._names.pop(directory, ()))
