"""Wheel platforms: what an image with compiled code runs on, and what of it fits a machine. See PEP 600 and PEP 425.

An image names one, such as manylinux_2_28_x86_64: Linux with glibc 2.28 or newer on x86-64; or "any" if nothing in it is compiled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

DEFAULT_PLATFORM = "manylinux_2_28_x86_64"  # for every builder, so that all build the same

_PLATFORM = re.compile(r"manylinux_2_(\d{1,3})_(x86_64|aarch64)", re.ASCII)
_OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17}
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


def parse_platform(text: str) -> tuple[int, str]:
    """Minor version of glibc 2, and machine; ValueError for any other text."""
    match = _PLATFORM.fullmatch(text)
    if match is None or int(match[1]) < _OLDEST_GLIBC[match[2]]:
        raise ValueError(f"{text[:80]!r} is no platform such as {DEFAULT_PLATFORM}")
    return int(match[1]), match[2]


def other_machine(text: str) -> str:
    """The same platform on the other kind of machine."""
    minor, machine = parse_platform(text)
    (other,) = _OLDEST_GLIBC.keys() - {machine}
    return f"manylinux_2_{max(minor, _OLDEST_GLIBC[other])}_{other}"


def wheel_platforms(text: str) -> list[str]:
    """The platform tags of wheels that run there, best first."""
    minor, machine = parse_platform(text)
    found = []
    for each in range(minor, _OLDEST_GLIBC[machine] - 1, -1):
        found.append(f"manylinux_2_{each}_{machine}")
        if each in _LEGACY:
            found.append(f"{_LEGACY[each]}_{machine}")
    return [*found, f"linux_{machine}"]


def resolver_platform(text: str) -> str:
    """The same as uv spells it."""
    minor, machine = parse_platform(text)
    return f"{machine}-manylinux_2_{minor}"


def this_machine() -> tuple[str, str]:
    """Its name, and the version of its glibc, "" for another C library; what `fits` takes."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (OSError, ValueError):
        name, version = "", ""
    return os.uname().machine, version if name == "glibc" else ""


def fits(platforms: Iterable[str], machine: str, glibc: str) -> bool:
    """Whether an image of these platforms runs on this machine; `glibc`: its version ("2.36"), "" for another C library."""
    have = re.fullmatch(r"2\.(\d+)", glibc)
    for each in platforms:
        if each == "any":
            return True
        try:
            minor, wanted = parse_platform(each)
        except ValueError:
            continue
        if wanted == machine and have is not None and int(have[1]) >= minor:
            return True
    return False
