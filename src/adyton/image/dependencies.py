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
from adyton.image.lock import FILE, Locked, LockFile, Wheel
from adyton.image.manifest import ABI, ANY_PLATFORM, RUNTIME_PACKAGES, canonical_json
from adyton.image.oci import Image
from adyton.image.platforms import DEFAULT_PLATFORM
from adyton.image.requirements import oldest_python, others, parsed, runs_on
from adyton.image.resolver import MISSING, Target, install, resolve
from adyton.image.site_packages import distributions, write_layer


@dataclass(frozen=True)
class Dependencies:
    """What an image has beside its application, and what it runs on because of that. `layer`: None if it has nothing."""

    python: str
    platforms: list[str]
    layer: LayerFile | None = None


@dataclass(frozen=True)
class Wanted:
    """What an image asks for. `dependencies`: PEP 508; `python`: a range; `directory`: whose settings for uv hold; `where`: for errors."""

    dependencies: list[str]
    python: str
    directory: str
    where: str
    platform: str = DEFAULT_PLATFORM


def project_dependencies(wanted: Wanted, name: str, images: Iterable[str], path: str) -> Dependencies:
    """Of the image `name` of a project that has these images; locked in the file `path`. UsageError, ImageError."""
    requirements = _checked(wanted)
    if not requirements:
        return Dependencies(wanted.python, [ANY_PLATFORM])
    lock = LockFile(path)
    locked = lock.get(name)
    if locked is None or not locked.answers(ABI, requirements, wanted.python, wanted.platform):
        locked, layer = _resolve(requirements, wanted, locked)
        lock.put(name, locked, images)
        return Dependencies(locked.runs_on_python, locked.runs_on_platforms, layer)
    return _locked(locked, wanted)


def script_dependencies(wanted: Wanted) -> Dependencies:
    """Of a single file; locked in this user's cache, for all files that ask for the same. UsageError, ImageError."""
    requirements = _checked(wanted)
    if not requirements:
        return Dependencies(wanted.python, [ANY_PLATFORM])
    key = hashlib.sha256(canonical_json([ABI, requirements, wanted.python, wanted.platform])).hexdigest()
    lock = LockFile(str(cache_folder("locks") / f"{key}.lock"))
    locked = lock.get("script")
    if locked is None:
        locked, layer = _resolve(requirements, wanted, None)
        lock.put("script", locked, [])
        return Dependencies(locked.runs_on_python, locked.runs_on_platforms, layer)
    return _locked(locked, wanted)


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


def _checked(wanted: Wanted) -> list[str]:
    """The requirements that are the image's to fulfil, in one spelling."""
    left = others(wanted.dependencies, wanted.where)
    if not left:
        return []
    if importlib.util.find_spec("packaging") is None:
        raise UsageError(f"{wanted.where}: {left[0]!r} is not one of the runtime's own packages: {MISSING}")
    return parsed(left, wanted.where)


def _target(wanted: Wanted) -> Target:
    return Target(oldest_python(wanted.python), wanted.platform, wanted.directory)


def _resolve(requirements: list[str], wanted: Wanted, before: Locked | None) -> tuple[Locked, LayerFile]:
    """Resolve anew; versions that were locked before stay if they can."""
    abi = [f"{name}=={version}" for name, version in sorted(RUNTIME_PACKAGES.items())]

    def wheels_under(constraints: list[str]) -> list[Wheel]:
        found = resolve(requirements, [*abi, *constraints], ["adyton"], _target(wanted), wanted.where)
        return [each for each in found if each.name not in RUNTIME_PACKAGES]

    wheels = None
    if before is not None:
        with contextlib.suppress(UsageError):
            wheels = wheels_under([f"{each.name}=={each.version}" for each in before.wheel])
    return _made(wheels_under([]) if wheels is None else wheels, requirements, wanted)


def _locked(locked: Locked, wanted: Wanted) -> Dependencies:
    """From the cache, else made again of the locked wheels."""
    path = cache_folder("layers") / locked.layer[7:]
    used(path)
    try:
        layer = LayerFile(locked.layer, path.stat().st_size, str(path))
    except FileNotFoundError:
        made, layer = _made(locked.wheel, locked.requirements, wanted)
        if made != locked:
            raise ImageError(
                f"{wanted.where}: the locked wheels make the layer {made.layer} here, and the lock says {locked.layer}:"
                f" was it made by another version of adyton? Remove {FILE} to lock anew"
            ) from None
    return Dependencies(locked.runs_on_python, locked.runs_on_platforms, layer)


def _made(wheels: list[Wheel], requirements: list[str], wanted: Wanted) -> tuple[Locked, LayerFile]:
    """The lock of these wheels, and the layer that they make, in the cache."""
    folder = cache_folder("layers")
    with tempfile.TemporaryDirectory(prefix=".installing-", dir=folder) as installed:
        install(wheels, installed, _target(wanted), wanted.where)
        temporary = os.path.join(installed, ".layer")
        try:
            python, platforms = runs_on(distributions(installed).values(), requirements, wanted.python, wanted.platform)
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
        runs_on_python=python,
        runs_on_platforms=platforms,
        layer=digest,
        wheel=wheels,
    )
    return locked, LayerFile(digest, size, str(path))
