"""What an image depends on, as its program finds it: as in site-packages anywhere, and read-only."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import pytest
from command import adyton as command

import adyton
from adyton.errors import PlatformError
from adyton.image.build import build_file

pytestmark = pytest.mark.sandbox

PROGRAM = """
import importlib
import importlib.metadata
import os
import sys


def value(module: str, name: str) -> str:
    return str(getattr(importlib.import_module(module), name))


def version(package: str) -> list[str]:
    found = importlib.metadata.distribution(package)
    return [found.version, *sorted(str(path) for path in found.files or [])]


def entry_points(group: str) -> list[str]:
    return [each.value for each in importlib.metadata.entry_points(group=group)]


def path() -> list[str]:
    return sys.path


def touch(path: str) -> str:
    try:
        open(path, "w")
    except OSError as error:
        return os.strerror(error.errno)
    return "written"


def stat(path: str) -> list[int]:
    found = os.stat(path)
    return [found.st_dev, found.st_ino]


def compiled(module: str) -> list[str]:
    found = importlib.import_module(module)
    if not os.path.exists(found.__cached__):
        return []
    with open(found.__cached__, "rb") as file:
        return [file.read(8)[4:].hex(), found.value.__code__.co_filename]
"""


@pytest.fixture
def program(workplace):
    def write(*dependencies: str, python: str = ">=3.11", more: str = "") -> Path:
        path = workplace / "prog.py"
        head = f'# /// script\n# requires-python = "{python}"\n# dependencies = {list(dependencies)!r}\n# ///\n'
        path.write_text(head + PROGRAM + more)
        return path

    return write


def test_packages_are_found_as_in_site_packages_anywhere(wheels, program):
    wheels.add(
        "alpha",
        "1.5",
        {
            "alpha/__init__.py": b"from alpha.table import VALUE\n",
            "alpha/table.py": b"import importlib.resources as r\nVALUE = r.files('alpha').joinpath('table').read_text()\n",
            "alpha/table": b"42",
            "colorsys.py": b"__doc__ = 'not the one of the standard library'\n",
            "alpha.pth": b"import sys; sys.executed = True\n",
            "alpha-1.5.dist-info/entry_points.txt": b"[things]\none = alpha:VALUE\n",
        },
        requires=["msgspec"],
    )
    wheels.add("msgspec", "0.22.0")
    with adyton.load(program("alpha")) as enclave:
        assert enclave.call("value", "alpha", "VALUE") == "42"
        assert enclave.call("value", "alpha", "__file__") == "/enclave/site-packages/alpha/__init__.py"
        assert enclave.call("value", "msgspec", "__file__").startswith("/opt/adyton/lib/")
        found, *files = enclave.call("version", "alpha")
        assert found == "1.5"
        assert {"alpha/table", "alpha/table.py"} < set(files)
        assert enclave.call("entry_points", "things") == ["alpha:VALUE"]
        assert "conversion" in enclave.call("value", "colorsys", "__doc__").lower()
        with pytest.raises(AttributeError):
            enclave.call("value", "sys", "executed")
        paths = enclave.call("path")
        assert paths[0] == "/enclave"
        assert paths[-2:] == ["/enclave/site-packages", "/opt/adyton/lib"]
        for name in ("alpha/table", "new", "alpha/__pycache__/new"):
            said = enclave.call("touch", f"/enclave/site-packages/{name}")
            assert said in ("Read-only file system", "No such file or directory")
        assert enclave.call("touch", "/enclave/site-packages/alpha/table.py") == "Read-only file system"


def test_a_layer_is_unpacked_once_for_all_enclaves_of_a_server_and_compiled(wheels, program, server):
    wheels.add("alpha", "1.0", {"alpha.py": b"def value() -> int:\n    return 1\n", "broken.py": b"def\n"})
    image = build_file(program("alpha"))
    found = []
    for _ in range(2):
        with adyton.load(image, on=server, allow_sim=True) as enclave:
            found.append(enclave.call("stat", "/enclave/site-packages"))
            assert enclave.call("touch", "/enclave/site-packages/alpha.py") == "Read-only file system"
    assert found[0] == found[1]
    deadline = time.monotonic() + 60
    while True:
        with adyton.load(image, on=server, allow_sim=True) as enclave:
            if seen := enclave.call("compiled", "alpha"):
                break
        assert time.monotonic() < deadline
    assert seen == ["01000000", "/enclave/site-packages/alpha.py"]  # PEP 552: hash-based, and not checked again


def test_an_image_for_another_machine_is_refused_with_what_the_server_has(wheels, program, workplace):
    wheels.add("alpha", "1.0", tag="cp311-cp311-manylinux_2_17_x86_64")
    wheels.add("alpha", "1.0", tag="cp399-cp399-manylinux_2_17_x86_64")
    wheels.add("alpha", "1.0", tag="cp39-abi3-manylinux_2_28_aarch64")
    wheels.add("alpha", "1.0", tag="cp39-abi3-manylinux_2_28_x86_64")
    with pytest.raises(PlatformError, match=r"runs on Python ==3\.99\.\*; this server has 3\..*requires-python"):
        adyton.load(build_file(program("alpha", python="==3.99.*")))
    machine = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    (workplace / "app.py").write_text("from adyton import trusted\napp = trusted.Enclave('app')\n")
    (workplace / "pyproject.toml").write_text(
        '[tool.adyton.enclave.app]\nentry = "app:app"\ndependencies = ["alpha"]\n'
        f'platform = "manylinux_2_28_{machine}"\n'
    )
    assert command("build").returncode == 0
    with pytest.raises(PlatformError, match=f"compiled code for manylinux_2_28_{machine}; this server has glibc"):
        adyton.load("build/app.enclave")


def test_the_command_line_says_what_cannot_be_resolved(wheels, program):
    done = command("call", str(program("nothere")), "path")
    assert done.returncode == 2
    assert "no such package" in done.stderr
    done = command("build", "--json")
    assert done.returncode == 2
