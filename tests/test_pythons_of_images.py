"""Which Python an image with packages is built for, which ones it then runs on, and that the lock decides it for everybody."""

from __future__ import annotations

import json
import tomllib

import pytest
from click.testing import CliRunner

from adyton.cli.root import root
from adyton.errors import UsageError
from adyton.image.oci import Image
from adyton.image.project import build_loader
from adyton.loader import open_image

pytestmark = pytest.mark.usefixtures("here")


PROGRAM = """
# /// script
# dependencies = ["alpha"]
# ///
def f() -> int:
    return 1
"""
PROJECT = """
[tool.adyton.enclave.app]
entry = "app:app"
dependencies = ["alpha"]

[tool.adyton.loader.start]
driver = "prog.py"
enclaves = { app = "app" }
loader_args = ["{app}"]
"""


def locks(folder):
    return tomllib.loads((folder / "adyton.lock").read_text())["enclave"]["app"]


BETWEEN = {
    "alpha": [("cp311-cp311", ""), ("cp312-cp312", ""), ("cp313-cp313", "")],
    "both": [("py3-none", ">=3.12,<3.14")],
    "newer": [("cp312-abi3", "")],
    "older": [("py3-none", "<3.13")],
    "needy": [("py3-none", "")],
}


@pytest.mark.parametrize(
    ("package", "minor", "python"),
    [
        ("alpha", 12, "3.12"),
        ("alpha", 13, "3.13"),
        ("both", 12, ">=3.12,<3.14"),
        ("both", 13, ">=3.12,<3.14"),
        ("newer", 13, ">=3.12"),
        ("older", 12, ">=3.11,<3.13"),
        ("needy", 12, ">=3.12"),
        ("needy", 11, ">=3.11"),
    ],
)
def test_packages_are_for_this_machines_python_and_bind_no_more_than_they_must(
    wheels, build, here, package, minor, python
):
    here(minor)
    for tag, requires in BETWEEN[package]:
        conditional = ['alpha; python_version < "3.12"'] if package == "needy" else []
        platform = "any" if "none" in tag else "manylinux_2_17_x86_64"
        wheels.add(package, "1.0", tag=f"{tag}-{platform}", python=requires or ">=3.8", requires=conditional)
    wheels.add("alpha", "1.0")
    assert build(package).manifest.python == python


def test_where_a_program_does_not_run_on_this_python_the_oldest_that_it_runs_on_is_taken(wheels, build, here):
    wheels.add("alpha", "1.0", tag="cp313-cp313-manylinux_2_17_x86_64")
    wheels.add("alpha", "1.0", tag="cp314-cp314-manylinux_2_17_x86_64")
    assert build("alpha", more='python = ">=3.13"').manifest.python == "3.13"
    here(14)
    assert build("alpha", more='python = ">=3.13"').manifest.python == "3.14"


def test_another_python_can_be_chosen(wheels, build, workplace):
    for minor in (11, 12):
        wheels.add("alpha", "1.0", tag=f"cp3{minor}-cp3{minor}-manylinux_2_17_x86_64")
    assert build("alpha").manifest.python == "3.11"
    assert build("alpha", python="3.12").manifest.python == "3.12"
    assert build(python="3.12").manifest.python == ">=3.11"
    for wrong in ("3.10", "3", "3.12.1", ">=3.12", "python3.12", "4.0", "--help"):
        with pytest.raises(UsageError, match=r"--python \(ADYTON_PYTHON\): .* is no version such as 3\.12"):
            build("alpha", python=wrong)
    for dependencies in (["alpha"], []):
        with pytest.raises(UsageError, match=r"app.*--python.*asks for 3\.13, and the program runs on ==3\.12\.\*"):
            build(*dependencies, more='python = "==3.12.*"', python="3.13")


def invoked(*command):
    """What `adyton COMMAND --json` prints."""
    return json.loads(CliRunner().invoke(root, [*command, "--json"], catch_exceptions=False).stdout)


def test_option_and_variable_choose_it(wheels, workplace, monkeypatch):
    for minor in (11, 12):
        wheels.add("alpha", "1.0", tag=f"cp3{minor}-cp3{minor}-manylinux_2_17_x86_64")
    (workplace / "prog.py").write_text(PROGRAM)
    (workplace / "app.py").write_text("from adyton import trusted\napp = trusted.Enclave('app')\n")
    (workplace / "pyproject.toml").write_text(PROJECT)

    def script(*options):
        return invoked("inspect", "prog.py", *options)["python"]

    def project(*options):
        (built,) = invoked("build", *options)
        return invoked("inspect", built["path"])["python"]

    assert script() == project() == "3.11"
    assert script("--python", "3.12") == project("--python", "3.12") == "3.12"
    project()
    assert open_image("prog.py", "3.12").manifest.python == "3.12"
    build_loader(workplace, "start", python="3.12")
    assert Image.open(workplace / "build/app.enclave").manifest.python == "3.12"
    monkeypatch.setenv("ADYTON_PYTHON", "3.12")
    assert script() == project() == open_image("prog.py").manifest.python == "3.12"
    assert script("--python", "3.11") == project("--python", "3.11") == open_image("prog.py", "3.11").manifest.python
    monkeypatch.setenv("ADYTON_PYTHON", "")
    assert script() == project() == open_image("prog.py").manifest.python == "3.11"


def test_the_python_that_a_project_runs_on_is_that_of_its_images_unless_they_say_another(build, workplace):
    def built(requires_python, more=""):
        return build(more=f'{more}\n[project]\nname = "x"\nrequires-python = {requires_python}').manifest.python

    assert built('">=3.9,<4"') == ">=3.11"
    assert built('">=3.12"') == ">=3.12"
    assert built('">=3.12"', 'python = "3.11"') == "3.11"
    for wrong in ('"latest"', '"<3.11"', "3"):
        with pytest.raises(UsageError, match=r"\[project\]: requires-python"):
            built(wrong)


def test_each_python_has_its_wheels_in_the_lock_and_builds_them_anywhere(wheels, build, workplace, here, forget):
    for minor in (11, 12, 13):
        wheels.add("alpha", "1.0", tag=f"cp3{minor}-cp3{minor}-manylinux_2_17_x86_64")
    wheels.add("beta", "1.0")
    found = {}
    for minor in (12, 11):
        here(minor)
        found[minor] = build("alpha", "beta").measurement
        wheels.add("beta", "2.0")
    assert [(each["resolved_for"], each["runs_on_python"]) for each in locks(workplace)] == [
        ("3.11", "3.11"),
        ("3.12", "3.12"),
    ]
    assert {each["wheel"][1]["version"] for each in locks(workplace)} == {"1.0"}
    text = (workplace / "adyton.lock").read_text()
    forget()
    for minor in (11, 12):
        here(13)
        assert build("alpha", "beta", python=f"3.{minor}").measurement == found[minor]
        here(minor)
        assert build("alpha", "beta").measurement == found[minor]
    assert (workplace / "adyton.lock").read_text() == text
    here(13)
    build("alpha", "beta")
    assert [each["resolved_for"] for each in locks(workplace)] == ["3.11", "3.12", "3.13"]
    build("alpha")
    assert [each["resolved_for"] for each in locks(workplace)] == ["3.13"]


def test_what_is_locked_for_one_python_serves_each_that_it_runs_on(wheels, build, workplace, here):
    wheels.add("alpha", "1.0")
    here(13)
    first = build("alpha")
    wheels.add("alpha", "2.0")
    for minor in (11, 14):
        here(minor)
        assert build("alpha").measurement == first.measurement
    assert [each["resolved_for"] for each in locks(workplace)] == ["3.13"]
