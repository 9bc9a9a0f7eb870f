"""Which files of a project go into an image, and under which path: as they are imported, so `src/` in front falls away.

Left out of what a folder or glob brings: hidden names, bytecode, and the project's own `build/`. Nothing outside the project's folder
is taken, not through a symlink either.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from adyton.errors import UsageError

_SKIPPED_FOLDERS = frozenset({"__pycache__"})
_SKIPPED_ENDINGS = (".pyc", ".pyo")
_SOURCE_FOLDER = "src/"
_BUILD_FOLDER = "build"


def collect(directory: str, sources: list[str] | None, entry: str, where: str) -> dict[str, bytes]:
    """Content by path in the image. `sources`: files, folders and globs; None: the module or package of `entry`. UsageError."""
    root = Path(directory)
    patterns = [_default(root, entry, where)] if sources is None else sources
    found: dict[str, Path] = {}
    for pattern in patterns:
        for path in _matching(root, pattern, where):
            place = path.relative_to(root).as_posix().removeprefix(_SOURCE_FOLDER)
            if found.setdefault(place, path) != path:
                raise UsageError(
                    f"{where}: {found[place]} and {path} would both be {place} in the image: leave one of them out"
                )
    return {place: _read(root, path, where) for place, path in sorted(found.items())}


def _default(root: Path, entry: str, where: str) -> str:
    top = entry.partition(":")[0].partition(".")[0]
    for candidate in (f"{top}.py", top, f"{_SOURCE_FOLDER}{top}.py", f"{_SOURCE_FOLDER}{top}"):
        if top and (root / candidate).exists():
            return candidate
    raise UsageError(
        f"{where}: there is neither {top}.py nor a package {top}/ for entry = {entry!r}: correct it, or name `sources`"
    )


def _matching(root: Path, pattern: str, where: str) -> Iterator[Path]:
    """The files that one item of `sources` stands for, sorted."""
    if not pattern or os.path.isabs(pattern) or ".." in Path(pattern).parts:
        raise UsageError(f"{where}: sources: {pattern!r} must be a path inside of the project")
    named = root / os.path.normpath(pattern)
    if named.is_file():
        yield named
        return
    matches: Iterable[Path] = [named] if named.is_dir() else ()
    if not matches and glob.has_magic(pattern):
        matches = sorted(path for path in root.glob(pattern) if not _skipped(path.relative_to(root)))
    count = 0
    for match in matches:
        for path in _below(root, match, where) if match.is_dir() else (match,):
            count += 1
            yield path
    if not count:
        raise UsageError(f"{where}: sources: {pattern!r} matches no file in {root}")


def _below(root: Path, folder: Path, where: str) -> Iterator[Path]:
    for above, folders, files in os.walk(folder):
        here = Path(above)
        folders[:] = sorted(name for name in folders if not _skipped((here / name).relative_to(root)))
        for name in folders:
            if (here / name).is_symlink():
                raise UsageError(f"{where}: sources: {here / name} is a symlink to a folder: name its target instead")
        for name in sorted(files):
            path = here / name
            if not _skipped(path.relative_to(root)):
                yield path


def _skipped(path: Path) -> bool:
    return (
        any(name.startswith(".") or name in _SKIPPED_FOLDERS for name in path.parts)
        or path.name.endswith(_SKIPPED_ENDINGS)
        or path.parts[:1] == (_BUILD_FOLDER,)
    )


def _read(root: Path, path: Path, where: str) -> bytes:
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(root)):
        raise UsageError(
            f"{where}: sources: {path} is a symlink to {real}, which is outside of the project: copy it into it"
        )
    if not real.is_file():
        raise UsageError(f"{where}: sources: {path} is not a regular file")
    try:
        return real.read_bytes()
    except OSError as error:
        raise UsageError(f"{where}: sources: {path} cannot be read: {error.strerror}") from error
