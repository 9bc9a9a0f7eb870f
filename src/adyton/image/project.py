"""Building images of a project: from [tool.adyton] and the project's files to build/NAME.enclave.

Nothing but the files' contents, the table and adyton.lock decides about the bytes: no time, no path, no user, no installed version.
Nothing of the project is executed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from adyton.crypto.keys import SigningKey, debug_key
from adyton.errors import PlatformError, UsageError
from adyton.image.atomic_file import replacing
from adyton.image.build import make_image
from adyton.image.dependencies import Dependencies, Wanted, project_dependencies, save
from adyton.image.entries import read_entries
from adyton.image.lock import FILE as LOCK
from adyton.image.manifest import Entry, Manifest
from adyton.image.names import Program
from adyton.image.oci import Image
from adyton.image.platforms import parse_platform
from adyton.image.protos import compile_protos
from adyton.image.pyproject import (
    EnclaveTable,
    Project,
    find_project,
    host_call_groups,
    limits_of,
    load_project,
    programs_of,
)
from adyton.image.sign import add_signature
from adyton.image.sources import collect
from adyton.image.versions import PythonRange, PythonRangeError

BUILD_FOLDER = "build"

_ENTRY = re.compile(r"(?!\d)\w+(\.(?!\d)\w+)*:(?!\d)\w+")


@dataclass(frozen=True)
class Built:
    """One image that was built. `path`: absolute."""

    name: str
    path: str
    measurement: str


def build_project(
    directory: str | os.PathLike[str],
    names: Iterable[str] | None = None,
    *,
    key: SigningKey | None = None,
    python: str = "",
) -> list[Built]:
    """Build the images that a project declares: those of the enclaves and loaders named, else all.

    Writes build/NAME.enclave, and build/*_pb2.py for the driver. `key` signs instead of what the tables say; `python`: which
    Python packages are for, see `Wanted.chosen`. UsageError, PlatformError (a runtime that there is not); images that were built
    before the error stay.
    """
    project = load_project(directory)
    wanted = list(project.enclaves) if names is None else project.enclaves_of(names)
    if not wanted:
        raise UsageError(f"{project.file} declares no enclave: add a table [tool.adyton.enclave.NAME]")
    built = []
    for name in wanted:
        folder = os.path.join(project.directory, BUILD_FOLDER)
        target = os.path.join(folder, f"{name}.enclave")

        def make(name: str = name, folder: str = folder) -> Image:
            image, modules = build_image(project, name, key=key, python=python)
            for path, content in {**modules, ".gitignore": b"*\n"}.items():
                _write(os.path.join(folder, path), content)
            return image

        image = save(make, target)
        built.append(Built(name, target, image.measurement))
    return built


def build_image(
    project: Project, name: str, *, key: SigningKey | None = None, python: str = ""
) -> tuple[Image, dict[str, bytes]]:
    """One image in memory, signed as its table says, and the modules of its .proto files by path."""
    table, where = project.enclaves[name], f"{project.file}: [tool.adyton.enclave.{name}]"
    _check(table, where)
    files = collect(project.directory, table.sources, table.entry, where)
    protos = {path: content for path, content in files.items() if path.endswith(".proto")}
    modules = compile_protos(protos, where)
    application = {path: content for path, content in files.items() if path not in protos}
    for path in modules:
        if path in application:
            raise UsageError(
                f"{where}: {path} is among the sources, and made of a .proto file too: leave out one of the two"
            )
    application |= modules
    runs_on = _python(project, table, where)
    entries = _entries(table, application, where)  # before anything is resolved: it is what is mostly wrong
    lock = os.path.join(project.directory, LOCK)
    wanted = Wanted(table.dependencies, runs_on, project.directory, f"{where}: dependencies", table.platform, python)
    dependencies = project_dependencies(wanted, name, project.enclaves, lock)
    programs = programs_of(table.programs, application, where)
    manifest = _manifest(name, table, entries, programs, dependencies, where)
    image = make_image(manifest, application, dependencies.layer)
    signer = key or _signer(project, table)
    return (image if signer is None else add_signature(image, signer)), modules


@dataclass(frozen=True)
class BuiltLoader:
    """A loader target, ready to run. `driver`: absolute path; `arguments`: before the user's own; `build_directory`: for PYTHONPATH."""

    driver: str
    arguments: list[str]
    build_directory: str
    remote_proxy: str


def build_loader(start: str | os.PathLike[str], target: str, *, python: str = "") -> BuiltLoader:
    """Build the enclaves that [tool.adyton.loader.TARGET] of the project around `start` needs; see `build_project`."""
    project = load_project(find_project(start))
    loader = project.loader(target)
    driver = os.path.join(project.directory, loader.driver)
    if not os.path.isfile(driver):
        raise UsageError(f"{project.file}: [tool.adyton.loader.{target}]: the driver {driver} is not there")
    needed = list(dict.fromkeys(loader.enclaves.values()))
    built = build_project(project.directory, needed, python=python) if needed else []
    images = {each.name: each.path for each in built}
    build_directory = os.path.join(project.directory, BUILD_FOLDER)
    return BuiltLoader(driver, loader.arguments(images), build_directory, loader.remote_proxy)


def _check(table: EnclaveTable, where: str) -> None:
    if table.runtime == "wasm":
        raise PlatformError(f'{where}: runtime = "wasm" is reserved, and not to be had yet: use "process"')
    if table.runtime != "process":
        raise UsageError(f'{where}: there is no runtime {table.runtime!r}: use "process"')
    if not _ENTRY.fullmatch(table.entry):
        raise UsageError(f"{where}: entry = {table.entry!r} is not of the form module:name")
    for field in ("product_id", "security_version"):
        if not 0 <= getattr(table, field) <= 0xFFFF:
            raise UsageError(f"{where}: {field} = {getattr(table, field)} is not between 0 and 65535")
    try:
        parse_platform(table.platform)
    except ValueError as error:
        raise UsageError(f"{where}: platform: {error}") from error


def _python(project: Project, table: EnclaveTable, where: str) -> str:
    try:
        return PythonRange.parse(project.python if table.python is None else table.python).text
    except PythonRangeError as error:
        raise UsageError(f"{where}: {error}") from error


def _entries(table: EnclaveTable, application: Mapping[str, bytes], where: str) -> list[Entry]:
    try:
        return read_entries(Program(application), table.entry)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _manifest(
    name: str, table: EnclaveTable, entries: list[Entry], programs: list[str], dependencies: Dependencies, where: str
) -> Manifest:
    runtime: Literal["process"] = "process"
    return Manifest(
        name=name,
        entry=table.entry,
        entries=entries,
        runtime=runtime,
        python=dependencies.python,
        platforms=dependencies.platforms,
        product_id=table.product_id,
        security_version=table.security_version,
        host_calls=host_call_groups(table.host_calls, where),
        limits=limits_of(table.limits, where),
        programs=programs,
        time=table.time,
        broker=table.broker or msgspec.UNSET,
        seal="signer" if table.seal == "signer" else msgspec.UNSET,
        seal_memory="required" if table.seal_memory == "required" else msgspec.UNSET,
    )


def _signer(project: Project, table: EnclaveTable) -> SigningKey | None:
    match table.sign:
        case "none":
            return None
        case "debug":
            return debug_key()
        case path:
            return SigningKey.load(os.path.join(project.directory, path))


def _write(path: str, content: bytes) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with replacing(path) as file:  # another build, or a driver, may be reading it
            file.write(content)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
