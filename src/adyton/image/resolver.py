"""Resolving requirements to wheels, and fetching them: uv does both, with the user's own settings for indexes, folders and proxies.

What is asked for never depends on this machine: the Python version and platform are the image's, and only wheels are taken. Raises
UsageError with uv's own words; ImageError for a wheel whose bytes are not those that the lock names.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adyton.errors import ImageError, UsageError
from adyton.image.lock import Wheel
from adyton.image.manifest import ABI, RUNTIME_PACKAGES
from adyton.image.platforms import resolver_platform
from adyton.image.requirements import supported_tags, wheel_tags

MISSING = "pip install 'adyton[build]' brings what resolves and unpacks dependencies"
_MAX_TEXT = 4000  # characters of what uv said


@dataclass(frozen=True)
class Target:
    """What wheels are for. `python`: "3.11"; `platform`: see `adyton.image.platforms`; `directory`: whose uv settings hold."""

    python: str
    platform: str
    directory: str

    def __str__(self) -> str:
        return f"Python {self.python} on {self.platform}"


def resolve(
    requirements: Iterable[str], constraints: Iterable[str], excluded: Iterable[str], target: Target, where: str
) -> list[Wheel]:
    """The wheels that fulfil `requirements` (PEP 508) under `constraints`, sorted; of `excluded` packages nothing is asked."""
    with tempfile.TemporaryDirectory(prefix="adyton-resolve-") as folder:
        paths = {}
        for name, lines in (("requirements", requirements), ("constraints", constraints), ("excluded", excluded)):
            paths[name] = os.path.join(folder, f"{name}.txt")
            with open(paths[name], "w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        _say(f"resolving what the program depends on, for {target}")
        output = _uv(
            [
                *("compile", paths["requirements"]),
                *("--constraints", paths["constraints"], "--excludes", paths["excluded"]),
                *("--format", "pylock.toml", "--no-header", "--no-annotate", "--no-sources"),
            ],
            target,
            where,
        )
    return _wheels(output, target, where)


def install(wheels: Iterable[Wheel], folder: str, target: Target, where: str) -> None:
    """Unpack exactly these wheels, their hashes checked, into a folder."""
    lines = [f"{each.name}=={each.version} --hash={each.hash}\n" for each in wheels]
    _say(f"fetching {len(lines)} package{'' if len(lines) == 1 else 's'}")
    with tempfile.NamedTemporaryFile("w", prefix="adyton-wheels-", suffix=".txt", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        _uv(["install", "--target", folder, "--no-deps", "--require-hashes", "-r", file.name], target, where)


def _say(text: str) -> None:
    """To a person who waits: downloads may take minutes."""
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(f"adyton: {text}\n")


def _find_uv() -> str:
    if importlib.util.find_spec("uv") is not None:
        import uv

        try:
            return str(uv.find_uv_bin())
        except FileNotFoundError:
            pass
    found = shutil.which("uv")
    if found is None:
        raise UsageError(f"dependencies are resolved by uv, and it is not installed: {MISSING}")
    return found


def _uv(arguments: list[str], target: Target, where: str) -> str:
    """Run `uv pip …`, and return its standard output."""
    command = [
        *(_find_uv(), "pip", *arguments),
        *("--quiet", "--only-binary", ":all:", "--python", sys.executable),
        *("--python-version", target.python, "--python-platform", resolver_platform(target.platform)),
    ]
    environment = {**os.environ, "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=target.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise UsageError(f"{where}: uv cannot be run ({error}): {MISSING}") from error
    if done.returncode:
        raise _failure(done.stderr.strip()[-_MAX_TEXT:], target, where)
    return done.stdout


# What uv says (in lower case) → what that means here.
_MEANINGS = (
    (r"hash mismatch", "a wheel is not the one that adyton.lock names"),
    (
        r"failed to fetch|error sending request|could not connect|network was disabled|network is unreachable|dns error",
        "the package index cannot be reached: connect, or set UV_FIND_LINKS or UV_INDEX_URL to a folder or index that can be",
    ),
    (
        r"no wheels|no usable wheels|source distribution|building source|no compatible wheel|--only-binary",
        "an image takes wheels only, and none fits: choose another version, another Python (--python) or platform, or build one, and name its folder in UV_FIND_LINKS",
    ),
    (
        r"not found in|was not found|no versions? of|is available and you require|are available and you require",
        "there is no such package or version where was looked: correct the requirement",
    ),
)


def _failure(said: str, target: Target, where: str) -> UsageError | ImageError:
    text = " ".join(said.lower().split())
    own = [f"{name}=={version}" for name, version in RUNTIME_PACKAGES.items()]
    if any(each in text for each in own):
        meaning = f"the runtime's own packages (ABI {ABI}) are {', '.join(own)}, and something wants another"
    else:
        meaning = next((meaning for pattern, meaning in _MEANINGS if re.search(pattern, text)), "")
    message = f"{where}: no set of wheels for {target} could be had{': ' + meaning if meaning else ''}\n{said}"
    kind = ImageError if "hash mismatch" in text else UsageError
    return kind(message)


def _wheels(pylock: str, target: Target, where: str) -> list[Wheel]:
    """What the resolution (PEP 751) names. uv has mostly chosen one wheel of each package; of several, the one that fits best."""
    found, ranks = [], supported_tags(target.python, target.platform)
    for package in tomllib.loads(pylock).get("packages", []):
        name, version = package["name"], package["version"]
        wheels = {_wheel(name, version, each) for each in package.get("wheels", [])}
        ranked = sorted((ranks[tag], each) for each in wheels for tag in wheel_tags(each.file) if tag in ranks)
        if not ranked:
            raise UsageError(
                f"{where}: there is no wheel of {name} {version} for {target}, and images take wheels only"
            )
        found.append(ranked[0][1])
    return sorted(found)


def _wheel(name: str, version: str, wheel: Mapping[str, object]) -> Wheel:
    address = str(wheel.get("url") or wheel.get("path") or wheel.get("name"))
    file = urllib.parse.unquote(urllib.parse.urlsplit(address).path).rpartition("/")[2]
    hashes = wheel["hashes"]
    assert isinstance(hashes, dict)
    return Wheel(name, version, file, f"sha256:{hashes['sha256']}")
