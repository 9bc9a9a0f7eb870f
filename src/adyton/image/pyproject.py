"""[tool.adyton] of pyproject.toml: which images and loaders a project has. Read strictly: a key that is not known is an error."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from adyton.errors import UsageError
from adyton.image.manifest import (
    DEFAULT_PYTHON,
    HOST_CALL_GROUPS,
    PYTHON_PROGRAM,
    Broker,
    HostCallGroup,
    Limits,
    Seal,
    Time,
    is_image_name,
    too_little,
)
from adyton.image.platforms import DEFAULT_PLATFORM
from adyton.image.versions import PythonRange, PythonRangeError

FILE = "pyproject.toml"

_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"(\d{1,12})\s*([A-Za-z]+)", re.ASCII)
_T = TypeVar("_T", bound=msgspec.Struct)


class LimitsTable(msgspec.Struct, frozen=True):
    """`memory`: bytes, or a text such as "512MiB"; `cpu`: seconds."""

    memory: int | str | None = None
    threads: int | None = None
    files: int | None = None
    cpu: int | None = None


class EnclaveTable(msgspec.Struct, frozen=True):
    """[tool.adyton.enclave.NAME]. `python`: None for the project's; `platform`: which wheels are taken, see `adyton.image.platforms`."""

    entry: str
    sources: list[str] | None = None
    dependencies: list[str] = msgspec.field(default_factory=list)
    runtime: str = "process"
    python: str | None = None
    platform: str = DEFAULT_PLATFORM
    product_id: int = 0
    security_version: int = 0
    sign: str = "debug"
    host_calls: list[str] | None = None
    limits: LimitsTable = msgspec.field(default_factory=LimitsTable)
    programs: list[str] = msgspec.field(default_factory=lambda: [PYTHON_PROGRAM])
    time: Time = "client"
    broker: Broker | None = None
    seal: Seal = "measurement"
    seal_memory: Literal["kept", "required"] = "kept"


class LoaderTable(msgspec.Struct, frozen=True):
    """[tool.adyton.loader.NAME]. `enclaves`: placeholder in `loader_args` → name of the enclave whose image's path it becomes."""

    driver: str
    enclaves: dict[str, str] = msgspec.field(default_factory=dict)
    loader_args: list[str] = msgspec.field(default_factory=list)
    remote_proxy: str = ""

    def arguments(self, images: Mapping[str, str]) -> list[str]:
        """`loader_args` with "{placeholder}" replaced; `images`: enclave's name → path of its image."""
        pattern = re.compile("|".join(re.escape("{" + name + "}") for name in self.enclaves) or r"(?!)")
        return [pattern.sub(lambda match: images[self.enclaves[match[0][1:-1]]], each) for each in self.loader_args]


@dataclass(frozen=True)
class Project:
    """What a project declares. `directory`: absolute; `file`: its pyproject.toml, for error texts; `python`: versions that it runs on."""

    directory: str
    file: str
    enclaves: Mapping[str, EnclaveTable]
    loaders: Mapping[str, LoaderTable]
    python: str = DEFAULT_PYTHON

    def loader(self, target: str) -> LoaderTable:
        """The loader of that name; UsageError if there is none."""
        if target not in self.loaders:
            raise UsageError(f"{self.file} declares no loader {target!r}{_declared(target, self.loaders)}")
        return self.loaders[target]

    def enclaves_of(self, targets: Iterable[str]) -> list[str]:
        """The enclaves that targets (enclaves or loaders, by name) need, each once, in order; UsageError for an unknown target."""
        found: dict[str, None] = {}
        for target in targets:
            if target in self.enclaves:
                found[target] = None
            elif target in self.loaders:
                found |= dict.fromkeys(self.loaders[target].enclaves.values())
            else:
                known = [*self.enclaves, *self.loaders]
                raise UsageError(f"{self.file} declares no enclave or loader {target!r}{_declared(target, known)}")
        return list(found)


def find_project(start: str | os.PathLike[str]) -> str:
    """The nearest folder, from `start` upwards, whose pyproject.toml has a [tool.adyton] table; UsageError if there is none."""
    folder = os.path.abspath(start)
    while True:
        path = os.path.join(folder, FILE)
        if os.path.isfile(path) and "adyton" in _tool(_content(path), path):
            return folder
        above = os.path.dirname(folder)
        if above == folder:
            raise UsageError(
                f"no {FILE} with a [tool.adyton] table in {os.path.abspath(start)} or above: "
                "change to the project's folder, or write a table [tool.adyton.enclave.NAME]"
            )
        folder = above


def load_project(directory: str | os.PathLike[str]) -> Project:
    """The project in a folder; UsageError says what is wrong, and where."""
    folder = os.path.abspath(directory)
    file = os.path.join(folder, FILE)
    content = _content(file)
    tool = _tool(content, file)
    if "adyton" not in tool:
        raise UsageError(f"{file} has no [tool.adyton] table: declare an image in [tool.adyton.enclave.NAME]")
    table = _table(tool["adyton"], f"{file}: [tool.adyton]")
    check_keys(table, ("enclave", "loader"), f"{file}: [tool.adyton]")
    enclaves = {}
    for name, entry in _table(table.get("enclave", {}), f"{file}: [tool.adyton.enclave]").items():
        where = f"{file}: [tool.adyton.enclave.{name}]"
        if not is_image_name(name):
            raise UsageError(f"{where}: {name!r} cannot be an image's name: use letters, digits and _ . + -")
        enclaves[name] = _convert(entry, EnclaveTable, where)
    loaders = {}
    for name, entry in _table(table.get("loader", {}), f"{file}: [tool.adyton.loader]").items():
        where = f"{file}: [tool.adyton.loader.{name}]"
        loaders[name] = loader = _convert(entry, LoaderTable, where)
        for enclave in loader.enclaves.values():
            if enclave not in enclaves:
                raise UsageError(f"{where}: no enclave {enclave!r} is declared{_nearest(enclave, enclaves)}")
    return Project(folder, file, enclaves, loaders, _requires_python(content, file))


def host_call_groups(names: list[str] | None, where: str) -> list[HostCallGroup]:
    """`host_calls` of a table, sorted; all for None. UsageError for a group that there is not."""
    if names is None:
        return list(HOST_CALL_GROUPS)
    for name in names:
        if name not in HOST_CALL_GROUPS:
            known = ", ".join(HOST_CALL_GROUPS)
            raise UsageError(
                f"{where}: host_calls: there is no group {name!r}{_nearest(name, HOST_CALL_GROUPS)}; there are: {known}"
            )
    return [group for group in HOST_CALL_GROUPS if group in names]


def limits_of(table: LimitsTable, where: str) -> Limits:
    """The limits in bytes and counts; UsageError for what is none."""
    memory = table.memory
    if isinstance(memory, str):
        match = _SIZE.fullmatch(memory.strip())
        if match is None or match[2] not in _UNITS:
            raise UsageError(f"{where}: limits: memory = {memory!r} is not a size such as 512MiB")
        memory = int(match[1]) * _UNITS[match[2]]
    try:
        limits = msgspec.convert({**msgspec.structs.asdict(table), "memory": memory}, Limits)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: limits: {error}") from error
    if said := too_little(limits.memory):
        raise UsageError(f"{where}: limits: memory = {table.memory!r}: {said}")
    return limits


def programs_of(paths: Iterable[str], files: Iterable[str], where: str) -> list[str]:
    """`programs` of a table, sorted; UsageError for what is not among the image's files (by path), nor "python"."""
    known = [*files, PYTHON_PROGRAM]
    for path in paths:
        if path not in known:
            raise UsageError(
                f"{where}: programs: {path!r} is none of the image's files{_nearest(path, known)}; "
                f"name files of `sources` by their path, and Python itself as {PYTHON_PROGRAM!r}"
            )
    return sorted(set(paths))


def check_keys(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """UsageError for the first key that is not known, with the nearest one that is."""
    names = list(known)
    for key in table:
        if key not in names:
            raise UsageError(
                f"{where} has a key {key!r} that is not known{_nearest(key, names)}; known are: {', '.join(names)}"
            )


def _declared(name: str, known: Iterable[str]) -> str:
    names = list(known)
    return f"{_nearest(name, names)}; it declares: {', '.join(names) or 'none'}"


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (nearest: {close[0]})" if close else ""


def _requires_python(content: dict[str, Any], file: str) -> str:
    """What [project] says of Python, where that leaves out a version that images can run on; UsageError if it cannot be read."""
    where = f"{file}: [project]"
    text = _table(content.get("project", {}), where).get("requires-python", DEFAULT_PYTHON)
    try:
        if not isinstance(text, str):
            raise PythonRangeError("python is no text")
        wanted = PythonRange.parse(text)
    except PythonRangeError as error:
        raise UsageError(f"{where}: requires-{error}") from error
    return DEFAULT_PYTHON if wanted.everything() else wanted.text


def _content(file: str) -> dict[str, Any]:
    try:
        with open(file, "rb") as opened:
            return tomllib.load(opened)
    except FileNotFoundError:
        raise UsageError(f"{file} is not there: run the command in the project's folder") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from error


def _tool(content: dict[str, Any], file: str) -> dict[str, Any]:
    return _table(content.get("tool", {}), f"{file}: [tool]")


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where} must be a table")
    return value


def _convert(content: Any, kind: type[_T], where: str) -> _T:
    table = _table(content, where)
    check_keys(table, kind.__struct_fields__, where)
    if isinstance(table.get("limits"), dict):
        check_keys(table["limits"], LimitsTable.__struct_fields__, f"{where}: limits")
    if isinstance(table.get("broker"), dict):
        check_keys(table["broker"], Broker.__struct_fields__, f"{where}: broker")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {error}") from error
