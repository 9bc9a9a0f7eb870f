"""Requirements as PEP 508 spells them: which are the runtime's own, and which Python versions and platforms a set of packages runs on."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from adyton._version import __version__
from adyton.errors import UsageError
from adyton.image.manifest import ABI, ANY_PLATFORM, DEFAULT_PYTHON, RUNTIME_PACKAGES
from adyton.image.platforms import other_machine, parse_platform, wheel_platforms
from adyton.image.versions import (
    NEWEST_PYTHON,
    PythonRange,
    PythonVersion,
    VersionError,
    VersionRange,
    parse_python,
    parse_release,
    spell_python,
)

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# PEP 508: name, extras, and a version specifier with or without parentheses; then an environment marker.
_REQUIREMENT = re.compile(
    r"\s*(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?P<extras>\[[^\]]*\])?\s*"
    r"(?:\((?P<inner>[^()]*)\)|(?P<versions>[^()@;]*))(?P<rest>[@;].*)?",
    re.DOTALL,
)


def normalized(name: str) -> str:
    """A package's name as it is compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def others(dependencies: Iterable[str], where: str) -> list[str]:
    """The requirements that the runtime does not fulfil by itself. UsageError for one that conflicts with it, or that is none."""
    own = re.match(r"[0-9.]*[0-9]", __version__)
    have = {**RUNTIME_PACKAGES, "adyton": own[0] if own else "0"}
    left = []
    for text in dependencies:
        match = _REQUIREMENT.fullmatch(text)
        if match is None:
            raise UsageError(f"{where}: {text!r} is not a requirement such as cryptography>=46")
        name = normalized(match["name"])
        if name not in have:
            left.append(text)
            continue
        if (match["rest"] or "").startswith("@"):
            raise UsageError(
                f"{where}: {text!r} names a source, but {name} is the runtime's own: remove what is behind the @"
            )
        try:
            wanted = VersionRange.parse(match["inner"] or match["versions"] or "")
        except VersionError as error:
            raise UsageError(f"{where}: {text!r}: {error}") from error
        if parse_release(have[name]) not in wanted:
            raise UsageError(
                f"{where}: {text!r} conflicts with the runtime, which has {name} {have[name]} (ABI {ABI}): widen the range"
            )
        if match["extras"] and name != "adyton":
            left.append(text)  # for what the extras bring
    return left


def parsed(requirements: Iterable[str], where: str) -> list[str]:
    """The requirements in one spelling, sorted, each once; UsageError for one that cannot be read, or that names an address."""
    from packaging.requirements import InvalidRequirement, Requirement

    found = set()
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(f"{where}: {text!r} is not a requirement such as numpy>=2: {reason}") from error
        if requirement.url:
            raise UsageError(
                f"{where}: {text!r} names an address, which an image does not: name a version, and put the wheel into a folder"
                " that UV_FIND_LINKS names"
            )
        requirement.name = normalized(requirement.name)
        found.add(str(requirement))
    return sorted(found)


def runs_on(
    packages: Iterable[importlib.metadata.Distribution],
    requirements: Iterable[str],
    python: str,
    resolved_for: PythonVersion,
    platform: str,
) -> tuple[str, list[str]]:
    """Python versions and platforms of an image of these packages, which were resolved for one version of the range `python`.

    That version and its neighbours in the range for which the packages have nothing else to say: their tags, Requires-Python and
    requirements.
    """
    from packaging.requirements import Requirement

    found = list(packages)
    names = {normalized(each.name) for each in found} | RUNTIME_PACKAGES.keys() | {"adyton"}
    stated = [Requirement(text) for each in found for text in each.requires or ()]
    stated += [Requirement(text) for text in requirements]
    conditional = [each for each in stated if each.marker is not None and normalized(each.name) not in names]

    def fits(version: PythonVersion) -> bool:
        supported = supported_tags(spell_python(version), platform)
        return all(_tags(each) & supported.keys() and _requires(each, version) for each in found) and not any(
            _new(each, _Place(version, platform), _Place(resolved_for, platform)) for each in conditional
        )

    def anywhere() -> bool:
        """Nothing is compiled, and the other kind of machine asks for nothing else."""
        here, there = _Place(resolved_for, platform), _Place(resolved_for, other_machine(platform))
        pure = all(any(str(tag).endswith("-none-any") for tag in _tags(each)) for each in found)
        return pure and not any(_new(each, there, here) for each in conditional)

    wanted = PythonRange.parse(python)
    versions = [(3, minor) for minor in range(11, max(NEWEST_PYTHON, resolved_for[1]) + 1) if (3, minor) in wanted]
    first = last = versions.index(resolved_for)
    while first > 0 and fits(versions[first - 1]):
        first -= 1
    while last < len(versions) - 1 and fits(versions[last + 1]):
        last += 1
    return _spelt(wanted, versions, first, last), [ANY_PLATFORM if anywhere() else platform]


def _spelt(wanted: PythonRange, versions: list[PythonVersion], first: int, last: int) -> str:
    """The part of a range from one to another of its versions, which are all that count."""
    if last - first == len(versions) - 1:
        return wanted.text
    if first == last:
        return spell_python(versions[first])
    clauses = [] if wanted.text == DEFAULT_PYTHON else [wanted.text]
    if first > 0 or not clauses:
        clauses.append(f">={spell_python(versions[first])}")
    if last < len(versions) - 1:
        clauses.append(f"<{spell_python(versions[last + 1])}")
    return ",".join(clauses)


def supported_tags(python: str, platform: str) -> dict[str, int]:
    """The tags of wheels that run there (PEP 425), the best one first: their ranks."""
    from packaging.tags import compatible_tags, cpython_tags

    version, platforms = parse_python(python), wheel_platforms(platform)
    tags = [
        *cpython_tags(version, platforms=platforms),
        *compatible_tags(version, f"cp3{version[1]}", platforms),
    ]
    return {str(tag): rank for rank, tag in reversed(list(enumerate(tags)))}


def wheel_tags(file: str) -> set[str]:
    """The tags in a wheel's file name."""
    from packaging.tags import parse_tag

    return {str(tag) for tag in parse_tag("-".join(file.removesuffix(".whl").split("-")[-3:]))}


def _tags(package: importlib.metadata.Distribution) -> set[str]:
    from packaging.tags import parse_tag

    lines = (package.read_text("WHEEL") or "").splitlines()
    return {str(tag) for line in lines if line.startswith("Tag:") for tag in parse_tag(line[4:].strip())}


def _requires(package: importlib.metadata.Distribution, version: PythonVersion) -> bool:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        return SpecifierSet(package.metadata["Requires-Python"] or "").contains(f"{spell_python(version)}.99")
    except InvalidSpecifier:
        return False


class _Place(NamedTuple):
    """Where markers are evaluated."""

    version: PythonVersion
    platform: str


def _new(requirement: Requirement, place: _Place, resolved_for: _Place) -> bool:
    """Whether a package is asked for in one place that is not asked for where was resolved for."""
    marker = requirement.marker
    assert marker is not None
    extras = ["", *re.findall(r"""extra\s*==\s*["']([^"']+)["']""", str(marker))]
    return any(
        marker.evaluate(_environment(place, extra)) and not marker.evaluate(_environment(resolved_for, extra))
        for extra in extras
    )


def _environment(place: _Place, extra: str) -> dict[str, str]:
    """The environment of PEP 508's markers in an enclave."""
    python = spell_python(place.version)
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": parse_platform(place.platform)[1],
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
        "extra": extra,
    }
