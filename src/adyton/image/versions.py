"""Version ranges as PEP 440 spells them, for the two questions that images ask: which Python, and which of the runtime's packages.

Only release numbers take part ("3.11", "50.0.2"): what the runtime pins is always a release. A clause with anything else, such as
a pre-release, a local version or `===`, is an error and never silently true.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

_CLAUSE = re.compile(r"\s*(~=|==|!=|<=|>=|<|>)\s*(\d{1,9}(?:\.\d{1,9})*)(\.\*)?\s*", re.ASCII)
_BARE = re.compile(r"\s*(\d{1,4})\.(\d{1,4})\s*", re.ASCII)

Release = tuple[int, ...]
PythonVersion = tuple[int, int]  # major and minor


class VersionError(ValueError):
    """A version or a range of versions that cannot be read; the text says which part."""


class PythonRangeError(VersionError):
    """A range of Python versions that cannot be read, or in which nothing is left."""


def parse_release(text: str) -> Release:
    """The numbers of a release: (50, 0, 2) of "50.0.2"; VersionError."""
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})*", text, re.ASCII):
        raise VersionError(f"{text[:80]!r} is not a release number such as 1.2.3")
    return tuple(int(part) for part in text.split("."))


def _padded(left: Release, right: Release) -> tuple[Release, Release]:
    width = max(len(left), len(right))
    return left + (0,) * (width - len(left)), right + (0,) * (width - len(right))


@dataclass(frozen=True)
class Clause:
    """One comparison; `prefix`: with ".*" behind it."""

    operator: str
    release: Release
    prefix: bool

    def __contains__(self, version: Release) -> bool:
        have, wanted = _padded(version, self.release)
        match self.operator:
            case "==" | "!=":
                equal = version[: len(self.release)] == self.release if self.prefix else have == wanted
                return equal == (self.operator == "==")
            case "~=":
                return have >= wanted and version[: len(self.release) - 1] == self.release[:-1]
            case ">=":
                return have >= wanted
            case "<=":
                return have <= wanted
            case ">":
                return have > wanted
            case _:
                return have < wanted


@dataclass(frozen=True)
class VersionRange:
    """All clauses of a specifier; none: every version."""

    clauses: tuple[Clause, ...]

    @classmethod
    def parse(cls, text: str) -> VersionRange:
        """VersionError for what is not a comma-separated list of comparisons with release numbers."""
        clauses = []
        for part in text.split(",") if text.strip() else []:
            match = _CLAUSE.fullmatch(part)
            if match is None:
                raise VersionError(f"{part.strip()[:80]!r} is not a comparison with a release number, such as >=1.2")
            operator, release, star = match[1], parse_release(match[2]), match[3] is not None
            if (star and operator not in ("==", "!=")) or (operator == "~=" and len(release) < 2):
                raise VersionError(f"{part.strip()[:80]!r} is not a comparison that PEP 440 knows")
            clauses.append(Clause(operator, release, star))
        return cls(tuple(clauses))

    def __contains__(self, version: Release) -> bool:
        return all(version in clause for clause in self.clauses)


_OLDEST, _NEWEST = 11, 1000  # minor versions of Python 3 that are considered
NEWEST_PYTHON = 30  # the last one that packages are asked about: those to come are as this one


@dataclass(frozen=True)
class PythonRange:
    """Python versions by (major, minor), at least 3.11. `text`: in canonical spelling."""

    text: str
    versions: VersionRange

    @classmethod
    def parse(cls, text: str) -> PythonRange:
        """From "3.12" (that one only) or a specifier such as ">=3.11,<3.14"; PythonRangeError."""
        bare = _BARE.fullmatch(text)
        if bare is not None:
            text = f"{int(bare[1])}.{int(bare[2])}"
            found = cls(text, VersionRange((Clause("==", (int(bare[1]), int(bare[2])), prefix=True),)))
        else:
            try:
                parsed = VersionRange.parse(text)
            except VersionError as error:
                raise PythonRangeError(f"python = {text[:80]!r}: {error}") from error
            if not parsed.clauses:
                raise PythonRangeError("python is empty: name a version such as 3.11, or a range such as >=3.11")
            found = cls(",".join(part.strip().replace(" ", "") for part in text.split(",")), parsed)
        if not any((3, minor) in found for minor in range(_OLDEST, _NEWEST)):
            raise PythonRangeError(f"python = {found.text[:80]!r} leaves no version that is 3.{_OLDEST} or newer")
        return found

    def __contains__(self, version: PythonVersion) -> bool:
        """Whether some release of this (major, minor) is in the range: patch levels are not told apart."""
        if version < (3, _OLDEST):
            return False
        return any((*version, patch) in self.versions for patch in range(100))

    def oldest(self) -> PythonVersion:
        """The oldest version in it."""
        return next((3, minor) for minor in range(_OLDEST, _NEWEST) if (3, minor) in self)

    def everything(self) -> bool:
        """Whether it leaves out no version that an image can run on."""
        return all((3, minor) in self for minor in range(_OLDEST, NEWEST_PYTHON + 1))


def this_python() -> PythonVersion:
    """The Python that runs this: what enclaves of this machine have, too."""
    return sys.version_info.major, sys.version_info.minor


def parse_python(text: str) -> PythonVersion:
    """(3, 12) of "3.12"; PythonRangeError for any other text."""
    bare = _BARE.fullmatch(text)
    if bare is None or (version := (int(bare[1]), int(bare[2]))) < (3, _OLDEST) or version >= (3, _NEWEST):
        raise PythonRangeError(f"{text[:80]!r} is no version such as 3.12, from 3.{_OLDEST} on")
    return version


def spell_python(version: PythonVersion) -> str:
    """As `parse_python` reads it."""
    return f"{version[0]}.{version[1]}"
