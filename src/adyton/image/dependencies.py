"""The dependencies of an image: resolved once against the runtime's ABI, locked with hashes, and laid out as one layer.

The layer depends on the lock alone. It is kept in this user's cache under its digest, so that what is locked and was built here once
needs neither an index nor a network.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from adyton.errors import ImageError, UsageError
from adyton.image.cache import cache_folder, make_room, used
from adyton.image.layers import LayerFile
from adyton.image.lock import FILE, VERSION, Locked, LockFile, Wheel
from adyton.image.manifest import ABI, ANY_PLATFORM, RUNTIME_PACKAGES, canonical_json
from adyton.image.oci import Image
from adyton.image.platforms import DEFAULT_PLATFORM
from adyton.image.requirements import others, parsed, runs_on
from adyton.image.resolver import MISSING, Target, install, resolve
from adyton.image.site_packages import distributions, write_layer
from adyton.image.versions import (
    PythonRange,
    PythonRangeError,
    PythonVersion,
    parse_python,
    spell_python,
    this_python,
)


@dataclass(frozen=True)
class Dependencies:
    """What an image has beside its application, and what it runs on because of that. `layer`: None if it has nothing."""

    python: str
    platforms: list[str]
    layer: LayerFile | None = None


@dataclass(frozen=True)
class Wanted:
    """What an image asks for.

    `dependencies`: PEP 508; `python`: a range; `directory`: whose settings for uv hold; `where`: for errors; `chosen`: which version of
    the range wheels are for ("3.12"); "": this machine's if it is in the range, else the oldest one.
    """

    dependencies: list[str]
    python: str
    directory: str
    where: str
    platform: str = DEFAULT_PLATFORM
    chosen: str = ""


def project_dependencies(wanted: Wanted, name: str, images: Iterable[str], path: str) -> Dependencies:
    """Of the image `name` of a project that has these images; locked in the file `path`. UsageError, ImageError."""
    requirements = _checked(wanted)
    if not requirements:
        return Dependencies(wanted.python, [ANY_PLATFORM])
    return _of_lock(LockFile(path), name, images, requirements, wanted)


def script_dependencies(wanted: Wanted) -> Dependencies:
    """Of a single file; locked in this user's cache, for all files that ask for the same. UsageError, ImageError."""
    requirements = _checked(wanted)
    if not requirements:
        return Dependencies(wanted.python, [ANY_PLATFORM])
    key = hashlib.sha256(canonical_json([VERSION, ABI, requirements, wanted.python, wanted.platform])).hexdigest()
    return _of_lock(LockFile(str(cache_folder("locks") / f"{key}.lock")), "script", [], requirements, wanted)


def save(make: Callable[[], Image], path: str | os.PathLike[str]) -> Image:
    """Make an image and write it to a file; a layer that was damaged in the cache is made anew. UsageError, ImageError."""
    image = make()
    try:
        image.save(path)
    except ImageError:
        folder = cache_folder("layers")
        for each in image.layer_descriptors:
            (folder / each.digest[7:]).unlink(missing_ok=True)
        image = make()
        image.save(path)
    return image


def _of_lock(lock: LockFile, name: str, images: Iterable[str], requirements: list[str], wanted: Wanted) -> Dependencies:
    """What is locked for that Python, by the version or because it runs on it, too; else resolved for it, and locked."""
    version = _version(wanted)
    before = sorted(lock.get(name), key=lambda each: each.resolved_for != spell_python(version))
    for each in before:
        if each.question == (ABI, requirements, wanted.python, wanted.platform) and each.runs_on(version):
            return _locked(each, wanted)
    locked, layer = _resolve(requirements, wanted, version, before)
    lock.put(name, locked, images)
    return Dependencies(locked.runs_on_python, locked.runs_on_platforms, layer)


def _version(wanted: Wanted) -> PythonVersion:
    """The Python that wheels are for."""
    allowed = PythonRange.parse(wanted.python)
    if not wanted.chosen:
        return this_python() if this_python() in allowed else allowed.oldest()
    try:
        chosen = parse_python(wanted.chosen)
    except PythonRangeError as error:
        raise UsageError(f"--python (ADYTON_PYTHON): {error}") from error
    if chosen not in allowed:
        raise UsageError(
            f"{wanted.where}: --python (ADYTON_PYTHON) asks for {spell_python(chosen)}, and the program runs on {allowed.text}:"
            " leave it out, or change what the program says (`python`, of a .py file requires-python)"
        )
    return chosen


def _checked(wanted: Wanted) -> list[str]:
    """The requirements that are the image's to fulfil, in one spelling; UsageError also for a Python that it does not run on."""
    _version(wanted)
    left = others(wanted.dependencies, wanted.where)
    if not left:
        return []
    if importlib.util.find_spec("packaging") is None:
        raise UsageError(f"{wanted.where}: {left[0]!r} is not one of the runtime's own packages: {MISSING}")
    return parsed(left, wanted.where)


def _target(wanted: Wanted, version: PythonVersion) -> Target:
    return Target(spell_python(version), wanted.platform, wanted.directory)


def _resolve(
    requirements: list[str], wanted: Wanted, version: PythonVersion, before: list[Locked]
) -> tuple[Locked, LayerFile]:
    """Resolve anew; versions that were locked before (the first of these counts) stay if they can."""
    abi = [f"{name}=={version}" for name, version in sorted(RUNTIME_PACKAGES.items())]

    def wheels_under(constraints: list[str]) -> list[Wheel]:
        found = resolve(requirements, [*abi, *constraints], ["adyton"], _target(wanted, version), wanted.where)
        return [each for each in found if each.name not in RUNTIME_PACKAGES]

    wheels = None
    if before:
        with contextlib.suppress(UsageError):
            wheels = wheels_under([f"{each.name}=={each.version}" for each in before[0].wheel])
    return _made(wheels_under([]) if wheels is None else wheels, requirements, wanted, version)


def _locked(locked: Locked, wanted: Wanted) -> Dependencies:
    """From the cache, else made again of the locked wheels."""
    path = cache_folder("layers") / locked.layer[7:]
    used(path)
    try:
        layer = LayerFile(locked.layer, path.stat().st_size, str(path))
    except FileNotFoundError:
        made, layer = _made(locked.wheel, locked.requirements, wanted, parse_python(locked.resolved_for))
        if made != locked:
            raise ImageError(
                f"{wanted.where}: the locked wheels make the layer {made.layer} here, and the lock says {locked.layer}:"
                f" was it made by another version of adyton? Remove {FILE} to lock anew"
            ) from None
    return Dependencies(locked.runs_on_python, locked.runs_on_platforms, layer)


def _made(
    wheels: list[Wheel], requirements: list[str], wanted: Wanted, version: PythonVersion
) -> tuple[Locked, LayerFile]:
    """The lock of these wheels, and the layer that they make, in the cache."""
    folder = cache_folder("layers")
    with tempfile.TemporaryDirectory(prefix=".installing-", dir=folder) as installed:
        install(wheels, installed, _target(wanted, version), wanted.where)
        temporary = os.path.join(installed, ".layer")
        try:
            found = distributions(installed).values()
            python, platforms = runs_on(found, requirements, wanted.python, version, wanted.platform)
            with open(temporary, "xb") as file:
                digest, size = write_layer(installed, file, wanted.where)
        except (ValueError, csv.Error) as error:  # of packaging and importlib.metadata, too
            raise ImageError(f"{wanted.where}: what a wheel says of itself cannot be read: {error}") from error
        make_room(folder, size)
        path = folder / digest[7:]
        os.replace(temporary, path)
    locked = Locked(
        abi=ABI,
        requirements=requirements,
        python=wanted.python,
        platform=wanted.platform,
        resolved_for=spell_python(version),
        runs_on_python=python,
        runs_on_platforms=platforms,
        layer=digest,
        wheel=wheels,
    )
    return locked, LayerFile(digest, size, str(path))
