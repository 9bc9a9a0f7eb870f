"""Images of a single .py file: what `adyton call pay.py …` and `adyton.load("pay.py")` load.

Its requirements are those of its PEP 723 block. Its entry point is the Enclave that it holds, else its TrustedApplication class, else
the module itself, whose public, annotated functions are then the entries. It is signed for debugging.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adyton.crypto.keys import debug_key
from adyton.errors import AdytonError, UsageError
from adyton.image.cache import cache_folder, make_room, used
from adyton.image.dependencies import Wanted, save, script_dependencies
from adyton.image.entries import APPLICATION, ENCLAVE, find_applications, plain_functions, read_entries
from adyton.image.layers import PACKAGES, LayerFile
from adyton.image.manifest import DEFAULT_PYTHON, Entry, Manifest, is_image_name
from adyton.image.names import Program
from adyton.image.oci import Image
from adyton.image.pyproject import check_keys
from adyton.image.sign import add_signature
from adyton.image.versions import PythonRange, PythonRangeError

MAX_SCRIPT = 1 << 24  # bytes

# The reference implementation's expression, from PEP 723.
_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")


def make_image(manifest: Manifest, application: Mapping[str, bytes], dependencies: LayerFile | None = None) -> Image:
    """An unsigned image; UsageError for files that must not be in one."""
    for path in application:
        first = path.partition("/")[0]
        if first in ("adyton", "adyton.py"):
            raise UsageError(f"{path} would take the place of the runtime's own adyton: give it another name")
        if first == PACKAGES:
            raise UsageError(f"{path} is where an image has its dependencies: give the folder {PACKAGES} another name")
    return Image.create(manifest, application, dependencies)


def script_image(path: str | os.PathLike[str], enclave: str | None = None, python: str = "") -> Image:
    """The debug-signed image of a .py file, in memory. `enclave`: the name of the Enclave that is meant, where it holds several.

    `python`: which Python its packages are for, see `Wanted.chosen`. UsageError says what is wrong with the file.
    """
    source = _read(os.fspath(path))
    module = Path(path).stem
    where = os.fspath(path)
    if not re.fullmatch(r"(?!\d)[\w-]+", module) or not is_image_name(module):
        raise UsageError(
            f"{where}: {module!r} cannot be a program's name: call the file something with letters from a to z, digits, _ and - only"
        )
    if module in sys.stdlib_module_names:
        raise UsageError(f"{where}: Python has a module {module} of its own: give the file another name")
    program = Program({f"{module}.py": source})
    name, entry, entries = _entry_point(program, module, enclave, where)
    requirements, runs_on = _block_of(source, where)
    folder = os.path.dirname(os.path.abspath(path))
    wanted = Wanted(requirements, runs_on, folder, f"{where}: dependencies", chosen=python)
    dependencies = script_dependencies(wanted)
    manifest = Manifest(
        name=name if is_image_name(name) else module,
        entry=entry,
        entries=entries,
        python=dependencies.python,
        platforms=dependencies.platforms,
    )
    return add_signature(make_image(manifest, {f"{module}.py": source}, dependencies.layer), debug_key())


def build_file(path: str | os.PathLike[str], enclave: str | None = None, python: str = "") -> Path:
    """The image file of `script_image`, in this user's cache, under its measurement."""
    return _built(path, enclave, python)[0]


def built_image(path: str | os.PathLike[str], enclave: str | None = None, python: str = "") -> Image:
    """The image in the file of `build_file`, verified."""
    return _built(path, enclave, python)[1]


def _built(path: str | os.PathLike[str], enclave: str | None, python: str) -> tuple[Path, Image]:
    image = script_image(path, enclave, python)
    folder = cache_folder("images")
    target = folder / f"{image.measurement[7:]}.enclave"
    used(target)
    with contextlib.suppress(AdytonError):
        if (cached := Image.open(target)).measurement == image.measurement:
            return target, cached
    make_room(folder, image.size)
    save(lambda: script_image(path, enclave, python), target)
    return target, Image.open(target)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            source = file.read(MAX_SCRIPT + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if len(source) > MAX_SCRIPT:
        raise UsageError(f"{path} is longer than {MAX_SCRIPT} bytes: make it a project with a pyproject.toml")
    return source


def _entry_point(program: Program, module: str, enclave: str | None, where: str) -> tuple[str, str, list[Entry]]:
    """Name, entry and entries of the image."""
    found = find_applications(program, module)
    enclaves = [each for each in found if each[0] == ENCLAVE]
    if enclave is not None:
        meant = [each for each in enclaves if enclave in each[1:]]
        if not meant:
            names = ", ".join(each[2] for each in enclaves) or "none"
            raise UsageError(f"{where} has no Enclave({enclave!r}) at the top of the file; it has: {names}")
        chosen = meant[:1]
    else:
        chosen = enclaves or [each for each in found if each[0] == APPLICATION]
        if len(chosen) > 1:
            names = ", ".join(each[1] for each in chosen)
            raise UsageError(
                f"{where} holds more than one program ({names}): load the Enclave object, or split the file"
            )
    if not chosen:
        entries = plain_functions(program, module)
        if not entries:
            raise UsageError(f"{where} has no entry: annotate the parameters of a public function, or make an Enclave")
        return module, f"{module}:", entries
    _, attribute, name = chosen[0]
    entry = f"{module}:{attribute}"
    return name if is_image_name(name) else module, entry, read_entries(program, entry)


def _block_of(source: bytes, where: str) -> tuple[list[str], str]:
    """The requirements and the Python versions that the PEP 723 block asks for; UsageError if it cannot be read."""
    try:
        text = source.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        text = source.decode("latin-1")  # a block is ASCII enough in whatever encoding the file declares
    blocks = list(_script_blocks(text))
    if not blocks:
        return [], DEFAULT_PYTHON
    if len(blocks) > 1:
        raise UsageError(f"{where} has more than one `# /// script` block")
    content = "".join(line[2:] if line.startswith("# ") else line[1:] for line in blocks[0].splitlines(keepends=True))
    try:
        table: dict[str, Any] = tomllib.loads(content)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: its `# /// script` block is not valid TOML: {error}") from error
    check_keys(table, ("dependencies", "requires-python", "tool"), f"{where}: its `# /// script` block")
    if "adyton" in (table["tool"] if isinstance(table.get("tool"), dict) else {}):
        raise UsageError(f"{where}: [tool.adyton] is read from pyproject.toml only: make the file a project")
    dependencies, python = table.get("dependencies", []), table.get("requires-python", DEFAULT_PYTHON)
    if (
        not isinstance(python, str)
        or not isinstance(dependencies, list)
        or not all(isinstance(each, str) for each in dependencies)
    ):
        raise UsageError(f"{where}: its `# /// script` block: dependencies is a list of texts, requires-python a text")
    try:
        return dependencies, PythonRange.parse(python).text
    except PythonRangeError as error:
        raise UsageError(f"{where}: requires-{error}") from error


def _script_blocks(text: str) -> Iterator[str]:
    return (match["content"] for match in _BLOCK.finditer(text) if match["type"] == "script")
