"""adyton.lock: which wheels an image's dependencies are, by name and hash, and what is made of them. It names no registry.

    [[enclave.NAME]]                         for each Python version that it was resolved for, sorted by it
    abi, requirements, python, platform      what was resolved; a lock for anything else does not count
    resolved_for                             the version of the range `python` whose wheels these are
    runs_on_python, runs_on_platforms        what the wheels can do, as the image's manifest says it
    layer                                    digest of the layer that they make, on every machine
    [[enclave.NAME.wheel]]                   name, version, file, hash; sorted

Whoever has the lock builds the same bytes for the same Python version, from whichever index or folder the wheels come.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from adyton.errors import UsageError
from adyton.image.atomic_file import replacing
from adyton.image.versions import PythonRange, PythonRangeError, PythonVersion, parse_python

FILE = "adyton.lock"
MAX_LOCK = 1 << 24  # bytes

_HEAD = "# Written by `adyton build`; commit it. To resolve anew, remove it, or one table of it.\n"
VERSION = 2  # of the file's form

Hash = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
Word = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.+!-]{1,255}\Z")]


class Wheel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, order=True):
    """One wheel. `name` is normalized as in PEP 503; `hash` is the file's."""

    name: Word
    version: Word
    file: Word
    hash: Hash


class Locked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The dependencies of one image on one Python. See the module."""

    abi: str
    requirements: list[str]
    python: str
    platform: str
    resolved_for: str
    runs_on_python: str
    runs_on_platforms: list[str]
    layer: Hash
    wheel: list[Wheel] = msgspec.field(default_factory=list)

    @property
    def question(self) -> tuple[str, list[str], str, str]:
        """What was resolved."""
        return self.abi, self.requirements, self.python, self.platform

    def runs_on(self, version: PythonVersion) -> bool:
        """Whether an image of these wheels runs on that Python."""
        return version in PythonRange.parse(self.runs_on_python)


class _Head(msgspec.Struct, frozen=True):
    version: int


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    enclave: dict[str, list[Locked]] = msgspec.field(default_factory=dict)


class LockFile:
    """A lock file, which need not be there yet."""

    def __init__(self, path: str) -> None:
        """UsageError: there is a file, and it is no lock."""
        self.path = path
        self._enclaves: dict[str, list[Locked]] = {}
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_LOCK + 1)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        self._enclaves = parse_lock(data, path)

    def get(self, name: str) -> list[Locked]:
        """The dependencies of one image, for each Python that they were resolved for."""
        return self._enclaves.get(name, [])

    def put(self, name: str, locked: Locked, keep: Iterable[str]) -> None:
        """Write it, with those of the other images in `keep`, and those of this one on other Pythons unless they are for something else.

        UsageError: it cannot be written.
        """
        kept = set(keep)
        others = [
            each
            for each in self.get(name)
            if each.question == locked.question and each.resolved_for != locked.resolved_for
        ]
        self._enclaves = {each: found for each, found in self._enclaves.items() if each in kept}
        self._enclaves[name] = sorted([*others, locked], key=lambda each: parse_python(each.resolved_for))
        try:
            with replacing(self.path) as file:
                file.write(format_lock(self._enclaves).encode())
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error.strerror}") from error


def parse_lock(data: bytes, path: str = FILE) -> dict[str, list[Locked]]:
    """The images of a lock by name; UsageError for what is none."""
    if len(data) > MAX_LOCK:
        raise UsageError(f"{path} is longer than {MAX_LOCK} bytes: remove it and build again")
    try:
        table = tomllib.loads(data.decode())
        if (version := msgspec.convert(table, _Head).version) != VERSION:
            raise UsageError(f"{path} is of version {version}, and this adyton knows {VERSION}: remove it, or update")
        enclaves = msgspec.convert(table, _Content).enclave
        for each in (locked for found in enclaves.values() for locked in found):
            if any(
                parse_python(each.resolved_for) not in PythonRange.parse(text)
                for text in (each.python, each.runs_on_python)
            ):
                raise PythonRangeError(f"resolved_for = {each.resolved_for!r} is not in the ranges of Python beside it")
    except (
        *(tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError),
        PythonRangeError,
    ) as error:
        raise UsageError(f"{path} is no lock that this adyton can read: {error}. Remove it and build again") from error
    return enclaves


def format_lock(enclaves: dict[str, list[Locked]]) -> str:
    """The text of a lock: equal content gives equal text."""
    lines = [_HEAD, f"version = {VERSION}"]
    for name, locked in sorted(enclaves.items()):
        for each in locked:
            lines += _lines(f"enclave.{_key(name)}", each)
    return "\n".join(lines) + "\n"


def _lines(table: str, locked: Locked) -> list[str]:
    fields = msgspec.structs.asdict(locked)
    wheels = fields.pop("wheel")
    lines = ["", f"[[{table}]]", *(f"{key} = {_value(value)}" for key, value in fields.items())]
    for wheel in wheels:
        content = msgspec.structs.asdict(wheel)
        lines += ["", f"[[{table}.wheel]]", *(f"{key} = {_value(value)}" for key, value in content.items())]
    return lines


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    """A text or list of texts. JSON's strings are TOML's, but for DEL, which TOML wants escaped."""
    if isinstance(value, list):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
